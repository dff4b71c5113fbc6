"""Between sampling and learning: what a verifier says of every sample.

A `Verification` either runs inside the jit of the step (exact match of tokens) or on the
host between two jitted calls (verifiers in the worker pool). Both fill the same fields.
"""

import contextlib
import functools
from typing import Any, Callable, Iterator, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxreward.rewards import patterns
from jaxreward.rewards import pool as pools
from jaxreward.rewards.token_match import token_match
from jaxreward.tasks import tokenizer as tokenizers


class Verdict(NamedTuple):
    """What the verifiers say of samples `[R, P, G]`.

    Attributes:
      rewards: float32, the observed verdict; unused where missing.
      mask: bool, False where the verdict is missing.
      true_rewards: float32, the trusted verdict; NaN where it is missing.
      form: int32, how the answer is written, an index into `patterns.ANSWER_FORMS`.
    """

    rewards: Any
    mask: Any
    true_rewards: Any
    form: Any


class Verification(NamedTuple):
    """How samples are judged.

    Attributes:
      jittable: whether `verify` may be traced.
      verify: `(tokens [R, P, G, S], lengths [R, P, G], rows) -> Verdict`; `rows` are the task's
        arrays `[R, P, ...]`, on the host with the texts of the answers.
      stats: `() -> dict`, counters of the worker pool.
    """

    jittable: bool
    verify: Callable[[Any, Any, dict[str, Any]], Verdict]
    stats: Callable[[], dict[str, Any]]


@contextlib.contextmanager
def in_jit(*, tokenizer: tokenizers.Tokenizer) -> Iterator[Verification]:
    """Exact match of the answer's tokens, for tasks with one way to write the answer."""
    del tokenizer

    def verify(tokens, lengths, rows) -> Verdict:
        del lengths
        right = jax.vmap(token_match)(tokens, rows["answer_tokens"], rows["answer_lengths"])
        form = jnp.zeros(right.shape, jnp.int32)
        return Verdict(right, jnp.ones(right.shape, bool), right, form)

    yield Verification(True, verify, dict)


@contextlib.contextmanager
def on_host(
    *,
    tokenizer: tokenizers.Tokenizer,
    observed: str,
    trusted: str,
    workers: int,
    timeout_s: float | int,
) -> Iterator[Verification]:
    """Verifiers in a pool of worker processes.

    Args:
      tokenizer: turns samples into texts.
      observed: dotted path of the verifier that is trained on.
      trusted: dotted path of the verifier behind appeals and measurements. Here it judges
        every sample, so that true accuracy can be reported; verdicts are cached.
      workers: number of processes, >= 1.
      timeout_s: deadline of one verdict, seconds.
    """
    paths = {"observed": observed, "trusted": trusted}
    form_of = functools.lru_cache(1 << 16)(lambda text: int(patterns.answer_form([text])[0]))
    with pools.open_pool(paths, workers=workers, timeout_s=timeout_s) as pool:

        def verify(tokens, lengths, rows) -> Verdict:
            shape = tokens.shape[:-1]
            texts = tokenizers.decode(tokenizer, np.asarray(tokens), np.asarray(lengths))
            answers = np.broadcast_to(rows["answer"][..., None], shape).reshape(-1).tolist()
            seen = pool.verify("observed", texts, answers)
            true = pool.verify("trusted", texts, answers)
            form = np.fromiter((form_of(text) for text in texts), np.int32, len(texts))
            columns = (np.where(seen.ok, seen.values, 0), seen.ok, true.values, form)
            return Verdict(*(np.asarray(column).reshape(shape) for column in columns))

        yield Verification(False, verify, pool.stats)

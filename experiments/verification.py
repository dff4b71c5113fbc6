"""Between sampling and learning: what a verifier says of every sample.

A `Verification` either runs inside the jit of the step (exact match of tokens) or on the
host between two jitted calls (verifiers in the worker pool). Both fill the same fields.
"""

import contextlib
import functools
import zlib
from typing import Any, Callable, Iterator, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxreward.rewards import patterns
from jaxreward.rewards import pool as pools
from jaxreward.rewards import token_match as matching
from jaxreward.rewards import verifiers
from jaxreward.tasks import tokenizer as tokenizers
from jaxreward.tasks import worked
from jaxreward.transforms import noise


class Verdict(NamedTuple):
    """What the verifiers say of samples `[R, P, G]`.

    Attributes:
      rewards: float32, the observed verdict; unused where missing.
      mask: bool, False where the verdict is missing.
      true_rewards: float32, the trusted verdict; NaN where it is missing.
      form: int32, how the answer is written, an index into `patterns.ANSWER_FORMS`.
      answer_id: uint32, equal for equal final answers; 0 where a sample gives none.
      reference_id: uint32 `[R, P]`, the id that the reference answer has.
    """

    rewards: Any
    mask: Any
    true_rewards: Any
    form: Any
    answer_id: Any
    reference_id: Any


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

    def judge(tokens, lengths, answer_tokens, answer_lengths) -> Verdict:
        right = jax.vmap(matching.token_match)(tokens, answer_tokens, answer_lengths)
        last = jnp.take_along_axis(tokens, jnp.maximum(lengths - 1, 0)[..., None], -1)[..., 0]
        lengths = jnp.where(last == tokenizers.EOS, lengths, 0)
        answers = matching.as_final(tokens, lengths)
        reference = matching.as_final(answer_tokens, answer_lengths)
        return _jit_verdict(right, right, answers, reference)

    yield Verification(True, _compiled(judge), dict)


@contextlib.contextmanager
def final_in_jit(
    *, tokenizer: tokenizers.Tokenizer, tolerant: bool = True, graded: bool = False
) -> Iterator[Verification]:
    """Match of what follows a response's last `=`, for `worked_calculation`.

    The trusted verdict takes `12`, `12.0` and `is 12` for the same answer, and so do the ids of
    the answers.

    Args:
      tokenizer: of all texts; knows `=`.
      tolerant: whether the observed verdict does so too; else the spelling must be the
        reference's.
      graded: whether the observed reward is how close an integer answer is to the reference
        (`token_match.closeness`), 0 without one. The trusted verdict stays right or wrong.
    """
    ids = lambda text: tuple(tokenizers.encode(tokenizer, [text]).tokens[0, : len(text)].tolist())
    known = [w for w in worked.WRAPPERS if any(w) and _knows(tokenizer, "".join(w))]
    wrappers = [(ids(before), ids(after)) for before, after in known]
    (separator,), end = ids(worked.SEPARATOR), tokenizers.EOS
    match = functools.partial(matching.final_token_match, separator=separator, end=end)

    def judge(tokens, lengths, *reference) -> Verdict:
        del lengths
        own = (tokens, *reference)
        true = jax.vmap(functools.partial(match, wrappers=wrappers))(*own)
        seen = true if tolerant else jax.vmap(match)(*own)
        answers = matching.unwrap(matching.final_answers(tokens, separator, end), wrappers, end)
        reference = matching.unwrap(matching.as_final(*reference), wrappers, end)
        if graded:
            (value, there), (wanted, _) = (
                matching.integer_values(a, ids("0")[0], ids("-")[0]) for a in (answers, reference)
            )
            wanted = jnp.broadcast_to(wanted[..., None], value.shape)
            seen = jnp.where(there, matching.closeness(value, wanted), 0.0)
        return _jit_verdict(seen, true, answers, reference)

    yield Verification(True, _compiled(judge), dict)


def _compiled(judge):
    """`verify` of `judge(tokens, lengths, answer_tokens, answer_lengths)`.

    One program, also where it is called outside of a compiled step: compiled one by one, its
    hundred operations take seconds.
    """
    judge = jax.jit(judge)
    return lambda tokens, lengths, rows: judge(
        tokens, lengths, rows["answer_tokens"], rows["answer_lengths"]
    )


def _knows(tokenizer: tokenizers.Tokenizer, text: str) -> bool:
    try:
        tokenizers.encode(tokenizer, [text])
    except ValueError:
        return False
    return True


def _jit_verdict(seen, true, answers: matching.FinalAnswers, reference: matching.FinalAnswers):
    def name(own: matching.FinalAnswers):
        width = own.tokens.shape[-1]
        column = jax.lax.broadcasted_iota(jnp.int32, own.tokens.shape, own.tokens.ndim - 1)
        valid = column < own.lengths[..., None]
        flat = (column.reshape(1, -1, width) for column in (own.tokens, valid))
        found = jnp.maximum(noise.output_id(*flat).reshape(own.lengths.shape), jnp.uint32(1))
        return jnp.where(own.lengths > 0, found, jnp.uint32(0))

    form = jnp.zeros(seen.shape, jnp.int32)
    present = jnp.ones(seen.shape, bool)
    return Verdict(seen, present, true, form, name(answers), name(reference))


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
    id_of = functools.lru_cache(1 << 16)(_text_id)
    with pools.open_pool(paths, workers=workers, timeout_s=timeout_s) as pool:

        def verify(tokens, lengths, rows) -> Verdict:
            shape = tokens.shape[:-1]
            texts = tokenizers.decode(tokenizer, np.asarray(tokens), np.asarray(lengths))
            answers = np.broadcast_to(rows["answer"][..., None], shape).reshape(-1).tolist()
            seen = pool.verify("observed", texts, answers)
            true = pool.verify("trusted", texts, answers)
            form = np.fromiter((form_of(text) for text in texts), np.int32, len(texts))
            named = np.fromiter((id_of(text) for text in texts), np.uint32, len(texts))
            columns = (np.where(seen.ok, seen.values, 0), seen.ok, true.values, form, named)
            references = np.vectorize(id_of, otypes=[np.uint32])(rows["answer"])
            return Verdict(*(np.asarray(c).reshape(shape) for c in columns), references)

        yield Verification(False, verify, pool.stats)


def _text_id(text: str) -> int:
    """A hash of a text's final answer, equal for numbers of equal value; 0 for no answer."""
    answer = verifiers.final_answer(text)
    value = verifiers.parse_number(answer)
    name = answer if value is None else str(value)
    return max(1, zlib.crc32(name.encode())) if name else 0

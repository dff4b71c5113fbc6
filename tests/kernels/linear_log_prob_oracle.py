"""Problems and their answers in float64 numpy, by the formulas and without autodiff."""

import math
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Problem(NamedTuple):
    """Operands in float64 and the cotangents `[3, N]` of the three outputs."""

    hidden: np.ndarray
    weight: np.ndarray
    targets: np.ndarray
    bias: np.ndarray | None
    cotangents: np.ndarray


def make(seed, rows, width, vocabulary, *, bias=True, dtype=np.float32, idle=0.3):
    """A random problem, its numbers exact in `dtype`; a share of cotangents and rows is idle."""
    rng = np.random.default_rng(seed)

    def exact(values):
        return values.astype(dtype).astype(np.float64)

    return Problem(
        exact(rng.standard_normal((rows, width)) * 1.5),
        exact(rng.standard_normal((width, vocabulary)) / np.sqrt(width)),
        rng.integers(-1, vocabulary, rows).astype(np.int32),
        exact(rng.standard_normal(vocabulary)) if bias else None,
        exact(
            rng.standard_normal((3, rows))
            * (rng.random((3, rows)) > idle)
            * (rng.random(rows) > idle)
        ),
    )


def answer(problem, temperature=1.0, logit_softcap=None, vocabulary=None):
    """Outputs `[3, N]` and the gradients of hidden, weight and bias (None without one)."""
    hidden, weight, targets, bias, cotangents = problem
    raw = hidden @ weight + (0.0 if bias is None else bias)
    slope = np.ones_like(raw)
    if logit_softcap is not None:
        squashed = np.tanh(raw / logit_softcap)
        raw, slope = logit_softcap * squashed, 1 - squashed**2
    logits, slope = raw / temperature, slope / temperature
    if vocabulary is not None:
        logits[:, vocabulary:] = -np.inf
    top = logits.max(axis=1, keepdims=True)
    normalizer = top[:, 0] + np.log(np.exp(logits - top).sum(axis=1))
    log_probs = logits - normalizer[:, None]
    probs = np.exp(log_probs)
    safe_log_probs = np.where(probs > 0, log_probs, 0.0)
    entropy = -(probs * safe_log_probs).sum(axis=1)
    valid = targets >= 0
    hot = np.arange(logits.shape[1])[None] == targets[:, None]
    log_prob = np.where(hot, log_probs, 0.0).sum(axis=1)
    outputs = np.where(valid, [log_prob, entropy, normalizer], 0.0)
    g_log_prob, g_entropy, g_normalizer = np.where(valid, cotangents, 0.0)[:, :, None]
    d_logits = g_log_prob * (hot - probs) + g_normalizer * probs
    d_logits -= g_entropy * probs * (safe_log_probs + entropy[:, None])
    d_raw = d_logits * slope
    d_bias = None if bias is None else d_raw.sum(axis=0)
    return outputs, (d_raw @ weight.T, hidden.T @ d_raw, d_bias)


def run(function, problem, dtype=jnp.float32):
    """The same of `function(hidden, weight, targets, bias)`, jitted, operands in `dtype`; as numpy."""
    hidden, weight, bias = (
        None if x is None else jnp.asarray(x, dtype)
        for x in (problem.hidden, problem.weight, problem.bias)
    )
    cotangents = jnp.asarray(problem.cotangents, jnp.float32)

    @jax.jit
    def value_and_gradient(hidden, weight, bias, targets, cotangents):
        def scored(hidden, weight, bias):
            return function(hidden, weight, targets, bias)

        outputs, pullback = jax.vjp(scored, hidden, weight, bias)
        return jnp.stack(outputs), pullback(tuple(cotangents))

    found = value_and_gradient(hidden, weight, bias, jnp.asarray(problem.targets), cotangents)
    return jax.device_get(found)


def assert_close(actual, expected, rtol=2e-5, atol=2e-5):
    """Outputs and gradients within tolerance, and what must hold of them exactly."""
    outputs, gradients = actual
    assert outputs.dtype == jnp.float32
    np.testing.assert_allclose(outputs, expected[0], rtol=rtol, atol=atol)
    for a, e in zip(gradients, expected[1]):
        if e is None:
            assert a is None
            continue
        a = a.astype(np.float32)
        np.testing.assert_allclose(a, e, rtol=rtol, atol=atol * max(1.0, np.abs(e).max()))
    assert np.all(outputs[0] <= 0) and np.all(outputs[1] >= 0)


def extreme(size):
    """Logits of `size`, exact in float32, two of three equal."""
    return Problem(
        np.full((4, 2), size),
        np.asarray([[1.0, 0.0, 1.0], [0.0, 0.5, 0.0]]),
        np.asarray([0, 1, 2, -1], np.int32),
        None,
        np.ones((3, 4)),
    )


def idle_rows(problem):
    """Rows that must get exactly no gradient."""
    return (problem.targets < 0) | np.all(problem.cotangents == 0, axis=0)


def array_sizes(text):
    """Elements of the arrays that a compiled module's text names."""
    found = re.findall(r"\b(?:f64|f32|bf16|f16|s32|u32|pred|s8|u8)\[([\d,]+)\]", text)
    return [math.prod(int(side) for side in shape.split(",")) for shape in found]


def collective_sizes(text):
    """Elements of the arrays in lines of a compiled module that communicate."""
    kinds = r" (?:all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(?:-start)?\("
    lines = [line for line in text.splitlines() if re.search(kinds, line)]
    return [size for line in lines for size in array_sizes(line)]

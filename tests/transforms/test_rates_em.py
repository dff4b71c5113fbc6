"""Tests of jaxreward.transforms.rates_em: rates from verdicts that disagree."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward.transforms import rates_em
from jaxreward.types import make_signal

KEY = jax.random.key(4)


def run(transform, *signals):
    """The last signal and state."""
    update, state = jax.jit(transform.update), transform.init()
    for signal in signals:
        after, state = update(KEY, signal, state)
    return after, state


def verdicts(rng, true, false_positive, false_negative):
    """Verdicts `[..., N, K]` on `true` `[..., N]`."""
    accept = np.where(true[..., None] == 1, 1 - np.array(false_negative), np.array(false_positive))
    return (rng.random(accept.shape) < accept).astype(np.float32)


ALL = dict(false_positive=(0.1, 0.2, 0.05), false_negative=(0.2, 0.1, 0.3))
ONE = dict(false_positive=(0.1,) * 3, false_negative=(0.25,) * 3)


@functools.cache
def disagreements(repeated):
    """Metrics of 300 runs of 1500 outputs with three verdicts each, 40% of them right."""
    rng = np.random.default_rng(8)
    true = rng.random((300, 1500)) < 0.4
    seen = verdicts(rng, true, **(ONE if repeated else ALL))
    transform = rates_em.disagreement(verifiers=3, repeated=repeated)

    def find(seen):
        signal = make_signal(seen[None, :, 0], verdicts=seen[None])
        return transform.update(KEY, signal, transform.init())[0].metrics

    return jax.tree.map(np.asarray, jax.jit(jax.vmap(find))(jnp.asarray(seen)))


@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.parametrize("name", ["false_positive", "false_negative"])
def test_disagreement_recovers_the_rates(repeated, name):
    metrics = disagreements(repeated)
    truth = (ONE if repeated else ALL)[name][0]
    found = metrics[f"rates/{name}"]
    assert abs(found.mean() - truth) < 0.2 * found.std() + 4 * found.std() / np.sqrt(found.size)
    margin = 3 * np.sqrt(0.95 * 0.05 / found.size)
    low, high = (metrics[f"rates/{name}_{end}"] for end in ("low", "high"))
    assert abs(np.mean((low <= truth) & (truth <= high)) - 0.95) < 0.01 + margin
    success = metrics["rates/success_rate"]
    assert abs(success.mean() - 0.4) < 0.2 * success.std() + 4 * success.std() / np.sqrt(300)


def test_patterns_with_a_missing_verdict_or_reward_are_not_counted():
    seen = np.array([[1, 1, 0], [1, np.nan, 1], [0, 0, 0], [0, 1, 1]], np.float32)
    signal = make_signal(
        jnp.asarray(seen[None, :, 0]),
        jnp.array([[True, True, False, True]]),
        verdicts=jnp.asarray(seen[None]),
    )
    np.testing.assert_array_equal(
        rates_em.count_patterns(signal, 3), [0, 0, 0, 1, 0, 0, 1, 0]  # lowest bit first
    )


def test_patterns_are_forgotten_and_squares_with_them():
    transform = rates_em.disagreement(verifiers=3, iterations=2, decay=0.5)
    signal = make_signal(jnp.ones((1, 4)), verdicts=jnp.ones((1, 4, 3)))
    _, state = run(transform, signal, signal, signal)
    assert float(state.counts[7]) == 4 * (1 + 0.5 + 0.25)
    assert float(state.squares) == 4 * (1 + 0.25 + 0.0625)


def test_verdicts_of_another_shape_are_refused():
    signal = make_signal(jnp.ones((1, 4)), verdicts=jnp.ones((1, 4, 2)))
    with pytest.raises(ValueError, match=r"aux/verdicts has shape \(1, 4, 2\); allowed is \(1, 4"):
        run(rates_em.disagreement(verifiers=3), signal)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rates_em.disagreement(verifiers=2), "verifiers = 2; allowed is 3 to 8"),
        (lambda: rates_em.disagreement(verifiers=3, decay=1.5), r"decay = 1.5; allowed is \(0, 1"),
        (lambda: rates_em.disagreement(verifiers=3, iterations=0), "iterations = 0; allowed is >="),
        (lambda: rates_em.disagreement(verifiers=3, z=-1.0), "z = -1.0; allowed is > 0"),
    ],
)
def test_wrong_input_names_the_field_the_value_and_what_is_allowed(make, message):
    with pytest.raises(ValueError, match=message):
        make()

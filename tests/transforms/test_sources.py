"""Tests of jaxreward.transforms.sources."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward.transforms import noise, rates, sources
from jaxreward.types import make_signal

REWARDS = jnp.zeros((3, 2))


def test_constant_rates():
    source = sources.constant(0.1, 0.2)
    channel = source.read(make_signal(REWARDS))
    assert (source.reads, source.vary) == ((), "never") and channel.matrix.shape == (2, 2)
    np.testing.assert_allclose(channel.false_positive, 0.1)
    np.testing.assert_allclose(channel.false_negative, 0.2)


def test_rates_by_type_of_prompt():
    source = sources.by_index("prompt_type", (0.05, 0.3), (0.1, 0.2))
    channel = source.read(make_signal(REWARDS, prompt_type=jnp.array([1, 0, 1])))
    assert (source.reads, source.vary) == (("aux/prompt_type",), "prompt")
    np.testing.assert_allclose(channel.false_positive, [0.3, 0.05, 0.3])
    np.testing.assert_allclose(channel.false_negative, [0.2, 0.1, 0.2])


def test_rates_by_feature_of_the_output():
    source = sources.by_index("form", [0.05, 0.3], [0.1, 0.2], per="sample")
    form = jnp.array([[0, 1], [1, 1], [0, 0]])
    channel = source.read(make_signal(REWARDS, form=form))
    assert source.vary == "sample" and channel.matrix.shape == (3, 2, 2, 2)
    np.testing.assert_allclose(channel.false_positive, np.array([0.05, 0.3])[form], rtol=1e-6)


@pytest.mark.parametrize("table", [np.array([0.05, 0.3]), jnp.array([0.05, 0.3])])
def test_tables_may_be_arrays(table):
    source = sources.by_index("prompt_type", table, table)
    channel = source.read(make_signal(REWARDS, prompt_type=jnp.array([1, 0, 1])))
    np.testing.assert_allclose(channel.false_negative, [0.3, 0.05, 0.3], rtol=1e-6)


def test_an_index_outside_the_table_has_no_rates():
    source = sources.by_index("prompt_type", [0.1, 0.2], [0.1, 0.2])
    signal = make_signal(REWARDS, prompt_type=jnp.array([-1, 2, 1]))
    np.testing.assert_allclose(source.read(signal).false_positive, [np.nan, np.nan, 0.2], rtol=1e-6)
    transform = noise.class_conditional(source)
    observed, _ = transform.update(jax.random.key(0), signal, ())
    np.testing.assert_array_equal(observed.mask, [[False] * 2, [False] * 2, [True] * 2])
    assert np.all(np.isfinite(observed.rewards))


def test_rates_from_aux():
    source = sources.from_aux("a", "b", per="sample")
    assert source.reads == ("aux/a", "aux/b") and source.vary == "sample"
    rate = jnp.array([[0.1, 0.2], [0.3, 0.4], [0.0, 0.1]])
    channel = source.read(make_signal(REWARDS, a=rate, b=rate / 2))
    np.testing.assert_allclose(channel.false_positive, rate)
    np.testing.assert_allclose(channel.false_negative, rate / 2)


def test_rates_may_be_traced():
    signal = make_signal(REWARDS, prompt_type=jnp.array([1, 0, 1]))

    def false_negatives(rate):
        constant = sources.constant(rate, 2 * rate).read(signal).false_negative
        table = sources.by_index("prompt_type", [rate, 0.0], [2 * rate, 0.1]).read(signal)
        return constant, table.false_negative

    one, table = jax.jit(jax.vmap(false_negatives))(jnp.array([0.1, 0.2]))
    np.testing.assert_allclose(one, [0.2, 0.4])
    np.testing.assert_allclose(table, [[0.1, 0.2, 0.1], [0.1, 0.4, 0.1]])


def test_noise_and_its_oracle_share_one_source():
    source = sources.by_index("form", [0.0, 1.0], [1.0, 0.0], per="sample")
    signal = make_signal(jnp.array([[0.0, 1.0, 0.0, 1.0]]), form=jnp.array([[0, 0, 1, 1]]))
    observed, _ = noise.class_conditional(source).update(jax.random.key(0), signal, ())
    np.testing.assert_array_equal(observed.rewards, [[0, 0, 1, 1]])
    told = rates.known(source, min_determinant=-1.0)
    spec = told.spec
    assert spec.rates_vary == "sample" and "aux/form" in spec.reads
    after, _ = told.update(jax.random.key(0), signal, ())
    np.testing.assert_array_equal(after.rates.false_positive, [[0, 0, 1, 1]])
    np.testing.assert_array_equal(after.rates.false_negative, [[1, 1, 0, 0]])


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="false_positive has 2 rates, false_negative 1; allowed"):
        sources.by_index("x", [0.1, 0.2], [0.1])
    with pytest.raises(ValueError, match="at least one"):
        sources.by_index("x", [], [])
    with pytest.raises(ValueError, match=r"false_negative = \(0.1, 1.2\) is not a probability"):
        sources.by_index("x", (0.1, 0.2), (0.1, 1.2))
    with pytest.raises(ValueError, match="false_positive = -0.1 is not a probability"):
        sources.constant(-0.1, 0.2)
    for make in (
        lambda: sources.by_index("x", [0.1], [0.1], per="step"),
        lambda: sources.from_aux("a", "b", per="step"),
    ):
        with pytest.raises(ValueError, match="per = 'step'; allowed are 'prompt', 'sample'"):
            make()

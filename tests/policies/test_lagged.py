"""A policy beside its older copy: what samples, what learns, when the copy is renewed."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxreward.policies import lagged, tabular


def test_only_what_is_learned_samples_and_scores(key):
    base = tabular.tabular_policy(4, 3)
    policy = lagged.with_lagged(base)
    params = policy.init(key)
    learned = jax.tree.map(lambda x: x + jnp.arange(3.0)[None], params["learned"])
    params = {"learned": learned, "lagged": params["lagged"]}
    prompts = jnp.arange(4)
    found, plain = policy.sample(params, key, prompts, 5), base.sample(learned, key, prompts, 5)
    np.testing.assert_array_equal(found.actions, plain.actions)
    np.testing.assert_array_equal(
        policy.log_prob(params, found).log_probs, base.log_prob(learned, found).log_probs
    )
    older = policy.log_prob(policy.lagged(params), found).log_probs
    np.testing.assert_array_equal(older, base.log_prob(params["lagged"], found).log_probs)
    assert policy.linear is None  # a table has no last layer


@pytest.mark.parametrize("every", [1, 3, jnp.float32(3)])
def test_the_copy_is_renewed_on_time(every):
    optimizer = lagged.keep_lagged(optax.sgd(1.0), every)
    params = lagged.start(jnp.zeros(2))
    state, history = optimizer.init(params), []
    for _ in range(7):
        grads = {"learned": -jnp.ones(2), "lagged": jnp.full(2, 100.0)}
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        history.append((float(params["learned"][0]), float(params["lagged"][0])))
    learned, older = zip(*history)
    assert learned == (1, 2, 3, 4, 5, 6, 7)
    assert older == (learned if every == 1 else (0, 0, 3, 3, 3, 6, 6))


def test_adam_learns_as_without_a_copy():
    params, grads = {"w": jnp.array([1.0, -2.0])}, {"w": jnp.array([0.3, 0.1])}
    plain, own = optax.adam(0.1, b2=0.99), lagged.adam(0.1, every=5, b2=0.99)
    both = lagged.start(params)
    with jax.numpy_dtype_promotion("standard"):  # Adam's bias correction mixes int and float
        expected, _ = plain.update(grads, plain.init(params), params)
        found, _ = own.update(lagged.start(grads), own.init(both), both)
    np.testing.assert_array_equal(found["learned"]["w"], expected["w"])
    np.testing.assert_array_equal(found["lagged"]["w"], 0.0)


def test_never_is_refused():
    with pytest.raises(ValueError, match="every = 0; allowed is >= 1"):
        lagged.adam(0.1, every=0)

"""Denoising networks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward.networks import diffusion
from jaxreward.networks.diffusion import EMPTY, Condition, DiffusionConfig
from jaxreward.policies import flow

CONFIG = DiffusionConfig(
    height=4, width=8, features=16, layers=1, heads=2, classes=3, vocabulary=5, prompt_length=4,
    guidance=True,
)
CONDITION = Condition(
    labels=jnp.array([0, 1, EMPTY]),
    tokens=jnp.array([[0, 1, 2, EMPTY], [3, 4, EMPTY, EMPTY], [EMPTY] * 4]),
    guidance=jnp.array([0.0, 1.0, 2.0]),
)
TIME = jnp.array([0.1, 0.5, 1.0])


@functools.cache
def start(kind):
    """The first parameters of a network, and the network as a compiled program."""
    made = diffusion.make_network(CONFIG, kind)
    return jax.jit(made.init)(jax.random.key(0)), jax.jit(made.apply)


@pytest.fixture(scope="module", name="built", params=diffusion.KINDS)
def network(request):
    """Parameters that are not at their (zero) start, and the network."""
    params, apply = start(request.param)
    rng = np.random.default_rng(1)
    moved = lambda p: np.asarray(p) + 0.1 * rng.standard_normal(p.shape, np.float32)
    return jax.tree.map(moved, params), apply


def images(count):
    return jnp.asarray(np.random.default_rng(2).standard_normal((count, 4, 8, 1), np.float32))


@pytest.fixture(name="x")
def three_images():
    return images(3)


@pytest.mark.parametrize("kind", diffusion.KINDS)
def test_starts_at_zero(kind, x):
    params, apply = start(kind)
    found = apply(params, x, TIME, CONDITION)
    assert found.shape == x.shape and found.dtype == jnp.float32
    np.testing.assert_array_equal(found, 0.0)


def test_every_input_matters_and_rows_do_not_mix(built, x):
    params, apply = built
    base = apply(params, x, TIME, CONDITION)
    assert base.shape == x.shape and np.all(np.isfinite(base))

    def other(leaf, place, value):
        leaf = np.array(leaf)
        leaf[place] = value
        return leaf

    tokens = CONDITION.tokens
    changed = {
        "x": (other(x, 0, np.asarray(x)[0] + 1), TIME, CONDITION),
        "time": (x, other(TIME, 0, 0.7), CONDITION),
        "class": (x, TIME, CONDITION._replace(labels=other(CONDITION.labels, 0, 2))),
        "token": (x, TIME, CONDITION._replace(tokens=other(tokens, (0, 1), 4))),
        "order": (x, TIME, CONDITION._replace(tokens=other(tokens, (0, slice(2)), [1, 0]))),
        "guidance": (x, TIME, CONDITION._replace(guidance=other(CONDITION.guidance, 0, 3.0))),
    }
    for name, inputs in changed.items():
        found = apply(params, *inputs)
        assert np.max(np.abs(found[0] - base[0])) > 1e-4, name
        np.testing.assert_allclose(found[1:], base[1:], atol=1e-5, err_msg=name)


def test_padding_is_not_seen(built, x):
    """What stands in a padded place, and how much padding there is, has no effect."""
    params, apply = built
    base = apply(params, x, TIME, CONDITION)
    other = CONDITION._replace(tokens=CONDITION.tokens.at[1, 2:].set(-7))
    np.testing.assert_allclose(apply(params, x, TIME, other), base, atol=1e-6)


def test_null_is_the_empty_condition(built, x):
    params, apply = built
    none = diffusion.null(CONDITION)
    assert np.all(none.labels == EMPTY) and np.all(none.tokens == EMPTY)
    np.testing.assert_array_equal(none.guidance, CONDITION.guidance)
    # the third row is null already
    base, found = (apply(params, x, TIME, c) for c in (CONDITION, none))
    np.testing.assert_allclose(found[2], base[2], atol=1e-6)
    assert np.max(np.abs(found[:2] - base[:2])) > 1e-4


@functools.cache
def guided(apply):
    return jax.jit(
        lambda params, x, scale: flow.guided(apply, diffusion.null, scale)(params, x, TIME, CONDITION)
    )


@pytest.mark.parametrize("scale, same_as", [(1.0, "conditional"), (0.0, "null")])
def test_guidance_between_conditional_and_null(built, x, scale, same_as):
    """Classifier-free guidance with weight 1 is the conditional output, with 0 the null one."""
    params, apply = built
    asked = {"conditional": CONDITION, "null": diffusion.null(CONDITION)}[same_as]
    found = guided(apply)(params, x, scale)
    np.testing.assert_allclose(found, apply(params, x, TIME, asked), atol=1e-5)


@pytest.mark.parametrize("scale", [None, 2.5])
def test_rows_that_share_a_condition_are_as_if_each_had_its_own(built, scale):
    params, apply = built
    apply = apply if scale is None else flow.guided(apply, diffusion.null, scale)
    x = images(6)
    each = lambda tree: jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), tree)

    def loss(params, time, condition):
        found = apply(params, x, time, condition)
        return jnp.sum(jnp.sin(found)), found

    grad = jax.grad(loss, has_aux=True)
    asked = (TIME, CONDITION)
    shared, own = jax.jit(lambda params: (grad(params, *asked), grad(params, *each(asked))))(params)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)
    jax.tree.map(close, shared, own)
    if scale is None:
        with pytest.raises(ValueError, match="time has shape 3; allowed is one axis that divides 4"):
            apply(params, x[:4], TIME, CONDITION)


def test_one_place_needs_no_attention(key):
    """A transformer of one patch: its queries and keys change nothing."""
    made = diffusion.make_network(DiffusionConfig(features=16, layers=1, patch=8, classes=2))

    @jax.jit
    def run(key):
        x, condition = jax.random.normal(key, (2, 8, 8, 1)), Condition(labels=jnp.array([0, 1]))
        params = jax.tree.map(lambda leaf: leaf + 0.1, made.init(key))
        return jax.grad(lambda p: jnp.sum(made.apply(p, x, jnp.ones(2), condition)))(params)

    grad = run(key)
    for name, size in (("query", 0), ("key", 0), ("value", 1), ("out", 1)):
        largest = np.max(np.abs(grad["block_0"]["attention"][name]["kernel"]))
        assert bool(largest > 0) == bool(size)


def test_gradients_reach_every_parameter(built, x):
    params, apply = built
    grads = jax.jit(jax.grad(lambda p: jnp.mean(apply(p, x, TIME, CONDITION) ** 2)))(params)
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert np.all(np.isfinite(grad)) and np.asarray(grad).any(), jax.tree_util.keystr(path)


def test_without_conditions(x):
    config = DiffusionConfig(height=4, width=8, features=16, layers=1, heads=2)
    made = diffusion.make_network(config)
    run = jax.jit(lambda key: made.apply(made.init(key), x, TIME, Condition()))
    assert run(jax.random.key(0)).shape == x.shape


def test_drop(key):
    many = Condition(jnp.arange(4000) % 3, jnp.zeros((4000, 2), jnp.int32))
    dropped = diffusion.drop(key, many, 0.25)
    gone = np.asarray(dropped.labels == EMPTY)
    np.testing.assert_array_equal(gone, np.all(dropped.tokens == EMPTY, axis=1))
    assert abs(gone.mean() - 0.25) < 4 * (0.25 * 0.75 / 4000) ** 0.5
    np.testing.assert_array_equal(dropped.labels[~gone], many.labels[~gone])


def test_moving_average():
    one = diffusion.moving_average({"a": jnp.array(2.0)}, {"a": jnp.array(3.0)}, 0.95)
    np.testing.assert_allclose(one["a"], 2.05, rtol=1e-6)
    two = diffusion.moving_average(one, {"a": jnp.array(3.0)}, 0.95)
    np.testing.assert_allclose(two["a"], 2.0975, rtol=1e-6)
    many = one
    for _ in range(50):  # of a constant: the distance shrinks by the decay each time
        many = diffusion.moving_average(many, {"a": jnp.array(3.0)}, 0.95)
    np.testing.assert_allclose(3.0 - many["a"], 0.95**51, rtol=1e-4)


def test_bad_inputs(x):
    with pytest.raises(ValueError, match="kind = 'mlp'"):
        diffusion.make_network(CONFIG, "mlp")
    for change, message in (
        (dict(features=0), "features = 0"),
        (dict(features=15), "features = 15"),
        (dict(patch=3), "multiples of 3"),
        (dict(prompt_length=0), "prompt_length = 0"),
        (dict(classes=-1), "classes = -1"),
    ):
        with pytest.raises(ValueError, match=message):
            diffusion.make_network(CONFIG._replace(**change))
    with pytest.raises(ValueError, match="multiples of 2"):
        diffusion.make_network(CONFIG._replace(height=5, patch=1), "unet")
    made = diffusion.make_network(CONFIG)
    with pytest.raises(ValueError, match="condition.tokens is None"):
        made.apply({}, x, TIME, CONDITION._replace(tokens=None))
    with pytest.raises(ValueError, match="condition.tokens is 3 x 2; allowed is 3 x 4, a row for"):
        made.apply({}, x, TIME, CONDITION._replace(tokens=CONDITION.tokens[:, :2]))
    with pytest.raises(ValueError, match="condition.labels is 1; allowed is 3, a row for each time"):
        made.apply({}, x, TIME, CONDITION._replace(labels=CONDITION.labels[:1]))
    with pytest.raises(ValueError, match="x is 3 x 8 x 4 x 1; allowed is B x 4 x 8 x 1"):
        made.apply({}, jnp.swapaxes(x, 1, 2), TIME, CONDITION)
    with pytest.raises(ValueError, match="decay = 1.5"):
        diffusion.moving_average(1.0, 2.0, 1.5)
    assert diffusion.drop(jax.random.key(0), Condition(), 1) == Condition()

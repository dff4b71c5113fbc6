"""Low-probability regularization: the exact checks of arXiv 2510.03222, blocks, the spark tree."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward.losses import low_probability as lp

P = np.array([0.6, 0.25, 0.1, 0.03, 0.015, 0.005])
NOW = np.array([0.7, 0.22, 0.06, 0.008, 0.01, 0.002])


def logs(values):
    return jnp.asarray(np.log(values), jnp.float32)


def test_min_p_keeps_five_of_six():
    proxy = lp.filtered_proxy(logs(P), min_p=0.02)
    np.testing.assert_allclose(proxy.kept_mass, 0.995, atol=1e-6)
    expected = [0.603015, 0.251256, 0.100503, 0.030151, 0.015075, 0]
    np.testing.assert_allclose(jnp.exp(proxy.log_probs), expected, atol=1e-6)


def test_a_fixed_threshold_and_the_gradient_of_the_divergence_from_itself():
    fixed = lp.filtered_proxy(logs(P), threshold=0.02)
    share = lp.filtered_proxy(logs(P), min_p=0.05)
    np.testing.assert_array_equal(fixed.log_probs, share.log_probs)
    expected = [0.612245, 0.255102, 0.102041, 0.030612, 0, 0]
    np.testing.assert_allclose(jnp.exp(fixed.log_probs), expected, atol=1e-6)

    def divergence(logits):
        return lp.proxy_scores(jax.nn.log_softmax(logits), fixed, jnp.int32(0)).divergence

    value, slope = jax.jit(jax.value_and_grad(divergence))(logs(P))
    np.testing.assert_allclose(value, 0.020203, atol=1e-6)
    expected = [0.012245, 0.005102, 0.002041, 0.000612, -0.015, -0.005]
    np.testing.assert_allclose(slope, np.negative(expected), atol=1e-6)


def test_a_lagged_proxy():
    scores = lp.proxy_scores(logs(NOW), lp.filtered_proxy(logs(P), threshold=0.02), jnp.int32(3))
    np.testing.assert_allclose(scores.divergence, 0.051022, atol=1e-6)
    gap = float(scores.log_prob) - np.log(NOW[3])
    np.testing.assert_allclose(gap, 1.341959, atol=1e-5)
    np.testing.assert_allclose(np.exp(gap) - gap - 1, 1.484572, atol=1e-5)


def test_the_sampled_pull_and_its_gradient_end_where_the_release_clamps():
    """Coefficient e^d - 1 on the gradient of the log-prob, none beyond d = 2.6109."""
    chosen = jnp.ones((1, 1, 1), bool)
    shape = lambda value: jnp.full((1, 1, 1), value, jnp.float32)

    def pull(gap):
        scores = lp.ProxyScores(shape(gap), shape(0.0), shape(1.0))
        own = lambda log_probs: lp.protective_pull(log_probs, scores, chosen, "k3_token")[0, 0, 0]
        value, slope = jax.value_and_grad(own)(shape(0.0))
        return float(value), float(slope[0, 0, 0])

    np.testing.assert_allclose(pull(1.341959), (1.484572, -2.826531), rtol=1e-5)
    value, slope = pull(2.61)
    assert value < 10 and slope == pytest.approx(1 - np.exp(2.61), rel=1e-5)
    assert pull(2.612) == (10.0, 0.0)


def test_the_limits_of_min_p():
    everything = lp.filtered_proxy(logs(P), min_p=1e-9)
    np.testing.assert_allclose(jnp.exp(everything.log_probs), P, atol=1e-6)
    best = lp.filtered_proxy(logs(P), min_p=1.0)
    np.testing.assert_allclose(jnp.exp(best.log_probs), [1, 0, 0, 0, 0, 0], atol=1e-6)


def of_one(ratio, advantage, form, **options):
    """The loss of one decision with a given ratio, nothing protected."""
    shape = lambda value: jnp.full((1, 1, 1), value, jnp.float32)
    scores = lp.ProxyScores(shape(-jnp.inf), shape(0.0), shape(1.0))
    return float(
        lp.low_probability_loss(
            shape(np.log(ratio)), shape(0.0), shape(advantage), jnp.ones((1, 1, 1), bool), scores,
            form=form, **options,
        )[0]
    )  # fmt: skip


@pytest.mark.parametrize(("ratio", "bounded"), [(0.3, 0.3), (1.0, 1.0), (12.0, 10.0)])
def test_the_ratio_is_bounded_above(ratio, bounded):
    for form in lp.FORMS:
        assert of_one(ratio, 1.0, form) == pytest.approx(-bounded, rel=1e-5)
    assert of_one(ratio, -1.0, "full_kl") == pytest.approx(bounded, rel=1e-5)
    assert of_one(ratio, -1.0, "k3_token") == pytest.approx(ratio, rel=1e-5)


def batch(seed=0, shape=(3, 4, 5), vocabulary=7):
    rng = np.random.default_rng(seed)
    logits = jnp.asarray(rng.normal(size=(*shape, vocabulary)) * 2, jnp.float32)
    older = logits + jnp.asarray(rng.normal(size=logits.shape), jnp.float32)
    taken = jnp.asarray(rng.integers(0, vocabulary, shape), jnp.int32)
    advantages = jnp.asarray(rng.normal(size=shape), jnp.float32)
    mask = jnp.asarray(rng.random(shape) < 0.8)
    return logits, older, taken, advantages, mask


def loss_of(logits, own, **options):
    _, older, taken, advantages, mask = own
    log_probs = jax.nn.log_softmax(logits)
    picked = jnp.take_along_axis(log_probs, taken[..., None], -1)[..., 0]
    proxy = lp.filtered_proxy(jax.nn.log_softmax(older))
    scores = lp.proxy_scores(log_probs, proxy, taken)
    old = jax.lax.stop_gradient(picked) - 0.1
    return lp.low_probability_loss(picked, old, advantages, mask, scores, **options)


@pytest.mark.parametrize("form", lp.FORMS)
@pytest.mark.parametrize("select", lp.SELECTIONS)
def test_rewarded_decisions_have_the_gradient_without_the_pull(form, select):
    own = batch()
    grad = jax.jit(jax.grad(lambda x, c: loss_of(x, own, coefficient=c, share=0.5, form=form,
                                                 select=select)[0]))  # fmt: skip
    plain, pulled = np.asarray(grad(own[0], 0.0)), np.asarray(grad(own[0], 3.0))
    kept = (np.asarray(own[3]) >= 0) | ~np.asarray(own[4])
    np.testing.assert_array_equal(plain[kept], pulled[kept])
    if form == "full_kl":
        assert (plain != pulled).any()


def test_who_is_protected():
    log_probs = logs([[[0.5, 0.01, 0.02, 0.03, 0.001, 0.4, 0.3, 0.2]]])
    advantages = jnp.asarray([[[-1.0, -1, 1, -1, -1, -1, -1, -1]]])
    proxy = jnp.asarray(np.where(np.arange(8) == 4, -np.inf, log_probs + np.float32(0.1)))
    given = log_probs, proxy, advantages, jnp.ones((1, 1, 8), bool)
    chosen = jax.jit(lp.rare_decisions, static_argnames=("share", "select"))
    paper = chosen(*given, share=0.5)
    assert np.flatnonzero(paper).tolist() == [1, 3]  # 2 is rewarded, 4 dropped
    code = chosen(*given, share=0.5, select="code")
    assert np.flatnonzero(code).tolist() == [1, 3]  # 3 lowest of 7 punished: 4, 1, 3
    few = chosen(*given, share=0.2, select="code")
    assert not np.any(few)  # int(0.2 * 7) = 1


@pytest.mark.parametrize("block_rows", [1, 4, 64])
def test_blocks_give_the_dense_values_and_gradients(block_rows):
    rng = np.random.default_rng(1)
    hidden, other = (jnp.asarray(rng.normal(size=(10, 6)), jnp.float32) for _ in "ab")
    weight, old = (jnp.asarray(rng.normal(size=(6, 11)), jnp.float32) for _ in "ab")
    taken = jnp.asarray(rng.integers(-1, 11, 10), jnp.int32)
    cotangent = jnp.asarray(rng.normal(size=10), jnp.float32)

    def dense(hidden, weight):
        proxy = lp.filtered_proxy(jax.nn.log_softmax(other @ old), min_p=0.05)
        found = lp.proxy_scores(
            jax.nn.log_softmax(hidden @ weight), proxy, jnp.maximum(taken, 0)
        )
        return jnp.where(taken >= 0, found.divergence, 0.0)

    def blocked(hidden, weight):
        scores = lp.linear_proxy_scores(
            hidden, weight, other, old, taken, min_p=0.05, block_rows=block_rows
        )
        return scores.divergence

    @jax.jit
    def both(hidden, weight):
        """Values and gradients of one and the other."""
        total = lambda f: lambda *a: jnp.sum(f(*a) * cotangent)
        grad = lambda f: jax.grad(total(f), (0, 1))(hidden, weight)
        return [(f(hidden, weight), grad(f)) for f in (blocked, dense)]

    found, expected = both(hidden, weight)
    jax.tree.map(lambda f, e: np.testing.assert_allclose(f, e, atol=1e-5), found, expected)


def test_no_buffer_of_all_logits():
    rows, width, vocabulary = 4096, 8, 2048
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((rows, width), (width, vocabulary))]
    taken = jax.ShapeDtypeStruct((rows,), jnp.int32)

    def total(score, hidden, weight, taken):
        return jnp.sum(score(hidden, weight, hidden, weight, taken).divergence)

    def dense(hidden, weight, other, old, taken):
        proxy = lp.filtered_proxy(jax.nn.log_softmax(other @ old))
        return lp.proxy_scores(jax.nn.log_softmax(hidden @ weight), proxy, taken)

    held = {}
    for name, score in (("blocked", lp.linear_proxy_scores), ("dense", dense)):
        grad = jax.jit(jax.grad(functools.partial(total, score), (0, 1)))
        compiled = grad.lower(*shapes, taken).compile()
        held[name] = compiled.memory_analysis().temp_size_in_bytes
    logits = 4 * rows * vocabulary
    assert held["dense"] > logits > held["blocked"] * 1.2, held


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: of_one(1.0, 1.0, "kl"), "form = 'kl'"),
        (lambda: of_one(1.0, 1.0, "full_kl", coefficient=-1.0), "coefficient = -1"),
        (lambda: of_one(1.0, 1.0, "full_kl", ratio_limit=0.0), "ratio_limit = 0"),
        (lambda: of_one(1.0, 1.0, "full_kl", share=0.0), "share = 0"),
        (lambda: of_one(1.0, 1.0, "full_kl", select="all"), "select = 'all'"),
    ],
)
def test_bad_settings_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()

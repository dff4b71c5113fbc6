import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxreward.search import accounting
from jaxreward.search import noise_optimization as search

A = jnp.array([[1.0, 0.5], [0.0, 1.0]])
TARGET = jnp.array([2.0, 1.0])
ONE = jnp.ones(1)
START = jnp.array([1.0, -1.0])


def linear(z):
    return A @ z


def distance(x):
    return jnp.sum(jnp.square(x - TARGET))[None]


def two_losses(x):
    return jnp.stack([jnp.sum(jnp.square(x - TARGET)), jnp.sum(jnp.abs(x))])


def test_norm_prior_of_the_card():
    prior = jax.jit(jax.value_and_grad(search.norm_prior))
    value, grad = prior(np.array([1.0, 2.0, 2.0, 0.0], np.float32))
    np.testing.assert_allclose(0.01 * float(value), 0.0120416, atol=1e-7)
    np.testing.assert_allclose(0.01 * np.asarray(grad), [0.0066667, 0.0133333, 0.0133333, 0.0], atol=1e-7)
    value, grad = prior(np.full(4, np.sqrt(0.75), np.float32))
    np.testing.assert_allclose(0.01 * float(value), -0.0014792, atol=1e-7)
    np.testing.assert_allclose(grad, 0.0, atol=1e-6)


@pytest.mark.parametrize("norm,expected", [(128.0, -712.98812), (120.0, -712.33477)])
def test_norm_prior_of_a_large_noise(norm, expected):
    noise = jnp.full((4, 64, 64), norm / 128.0)
    np.testing.assert_allclose(0.01 * search.norm_prior(noise), expected, rtol=2e-6)


def test_norm_prior_survives_zero_and_half_precision():
    assert np.isfinite(search.norm_prior(jnp.zeros(4)))
    assert np.all(np.isfinite(jax.grad(search.norm_prior)(jnp.zeros(4))))
    assert search.norm_prior(jnp.full(16384, 2.0, jnp.float16)).dtype == jnp.float32
    assert np.isfinite(search.norm_prior(jnp.full(16384, 4.0, jnp.float16)))  # 262144 > 65504


def test_clip_and_two_nesterov_steps():
    g = search.clip_norm(jnp.array([0.3, 0.4]), 0.1)
    np.testing.assert_allclose(g, [0.06, 0.08], atol=1e-6)
    np.testing.assert_allclose(search.clip_norm(0.1 * g, 0.1), 0.1 * g)
    for optimizer, ends in (
        (search.nesterov(), ([-0.57, -0.76], [-1.383, -1.844])),
        (optax.sgd(5.0, 0.9), ([-0.3, -0.4], [-0.87, -1.16])),
    ):
        z = jnp.zeros(2)
        state = optimizer.init(z)
        for end in ends:
            change, state = optimizer.update(jnp.array([0.06, 0.08]), state, z)
            z = optax.apply_updates(z, change)
            np.testing.assert_allclose(z, end, atol=1e-6)
    assert np.all(np.isfinite(jax.grad(lambda x: jnp.sum(search.clip_norm(x, 0.1)))(jnp.zeros(2))))


def test_total_of_the_papers_rewards():
    losses = jnp.array([1 - 0.28, 2 - 0.7, 100 - 32.0, 30 - 22.0])
    found = search.best_of_n(
        jnp.zeros((1, 2)), linear, lambda _: losses, jnp.array([5.0, 1.0, 0.01, 0.05])
    )
    np.testing.assert_allclose(found.loss, 5.98, rtol=1e-6)


def test_climb_of_the_card_returns_the_best_not_the_last():
    found = search.reno(START, linear, distance, ONE, search.Climb(steps=5))
    expected = [6.25, 1.75373, 0.30650, 0.09631, 0.30398]
    np.testing.assert_allclose(found.losses[:, 0], expected, atol=2e-5)
    np.testing.assert_allclose(found.loss, expected[3], atol=2e-5)
    np.testing.assert_allclose(distance(linear(found.noise))[0], found.loss, rtol=1e-5)
    np.testing.assert_allclose(linear(found.noise), found.image, rtol=1e-6)
    assert found.spent == accounting.Spent(5, 5, 5, 5)


def test_one_step_returns_the_start():
    found = search.reno(START, linear, distance, ONE, search.Climb(steps=1))
    np.testing.assert_array_equal(found.noise, START)
    np.testing.assert_array_equal(found.image, linear(START))


def test_no_prior_and_one_reward_is_plain_descent():
    settings = search.Climb(steps=4, clip=1e6, prior=0.0)
    found = search.reno(START, linear, distance, ONE, settings, optax.sgd(0.05))
    z = START
    for i in range(4):
        np.testing.assert_allclose(found.losses[i], distance(linear(z)), rtol=1e-5)
        z = z - 0.05 * jax.grad(lambda z: distance(linear(z))[0])(z)


def test_prior_takes_no_part_in_the_choice():
    far = jnp.array([30.0, 40.0])
    found = search.reno(
        far, lambda z: z, lambda x: -jnp.sum(x)[None], ONE, search.Climb(steps=3, prior=10.0)
    )
    np.testing.assert_array_equal(found.noise, far)  # the prior pulls inwards, where the loss grows
    assert float(found.norms[-1]) < float(found.norms[0])


def test_clipping_each_against_clipping_all():
    settings = search.Climb(steps=2, prior=0.0, clip_each=True)
    slopes = jnp.array([[10.0, 0.0], [0.0, 0.2]])
    losses, ones = lambda x: slopes @ x, jnp.ones(2)
    for each, expected in ((True, [0.07071, 0.07071]), (False, [0.09998, 0.0020])):
        found = search.reno(
            jnp.zeros(2), lambda z: z, losses, ones, settings._replace(clip_each=each), optax.sgd(1.0)
        )
        np.testing.assert_allclose(-found.noise, expected, atol=1e-5)


def test_sum_of_apart_clipped_gradients():
    """Check 2 of the card of CARINOX: before the last clip."""
    slopes = jnp.array([[10.0, 0.0], [0.0, 0.2]])
    parts = jnp.stack([search.clip_norm(g, 0.1) for g in slopes])
    np.testing.assert_allclose(jnp.sum(parts, axis=0), [0.1, 0.1], rtol=1e-5)


def test_parts_of_a_step_with_the_prior():
    """Check 3 of the card of CARINOX: the clipped parts and the step's gradient."""
    prior = 0.01 * jax.grad(search.norm_prior)(jnp.array([3.0, 0, 0, 0]))
    np.testing.assert_allclose(prior, [0.02, 0, 0, 0], atol=1e-7)
    slopes = jnp.array([[0, 1.06 * 0.5, 0, 0], [0, 0, 1.41 * 0.03, 0]], jnp.float32)
    parts = jnp.stack([search.clip_norm(g + prior, 0.1) for g in slopes])
    expected = [[0.003771, 0.099929, 0, 0], [0.02, 0, 0.0423, 0]]
    np.testing.assert_allclose(parts, expected, atol=1e-6)
    step = search.clip_norm(jnp.sum(parts, axis=0), 0.1)
    np.testing.assert_allclose(step, [0.021398, 0.089955, 0.038078, 0], atol=1e-6)


def test_prior_enters_the_gradient_of_every_reward():
    slopes = jnp.array([[0, 0.5, 0, 0], [0, 0, 0.03, 0]], jnp.float32)
    found = search.reno(
        jnp.array([3.0, 0, 0, 0]), lambda z: z, lambda x: slopes @ x, jnp.array([1.06, 1.41]),
        search.Climb(steps=2, clip_each=True),
    )
    np.testing.assert_allclose(found.noise, [2.796715, -0.854576, -0.361744, 0], atol=2e-6)


def test_weighted_and_unweighted_choice():
    losses = jnp.array([0.72, 1.10, 0.35, 0.25])
    weights = jnp.array([0.40, 1.06, 1.41, 1.14])
    for select, expected in (("unweighted", 2.42), ("weighted", 2.2325)):
        found = search.best_of_n(
            jnp.zeros((1, 2)), linear, lambda _: losses, weights, select=select
        )
        np.testing.assert_allclose(found.loss, expected, rtol=1e-6)
    climbs = search.carinox(jnp.zeros((2, 2)), linear, lambda x: losses + 0 * x[0], weights,
                            search.Climb(steps=1, clip_each=True), as_released=True)
    np.testing.assert_allclose(climbs.loss, 2.42, rtol=1e-6)


def test_winner_over_seeds_and_iterates():
    table = jnp.array([[3, 2.5, 2.7, 2.4], [2.9, 2.2, 2.6, 2.3], [3.5, 3.1, 2.9, 2.8]])
    loss, position = search.best_within(table[..., None], ONE, 4)
    assert (float(loss), int(position)) == (pytest.approx(2.2), 5)
    assert int(search.best_within(table[..., None], ONE, 1)[1]) == 1
    unknown = table.at[0, 0].set(jnp.nan)
    assert int(search.best_within(unknown[..., None], ONE, 4)[1]) == 5


def test_exploration_returns_the_best_climb(key):
    noises = 3 * np.asarray(jax.random.normal(key, (4, 2)))
    settings = search.Climb(steps=6, clip_each=True)
    weights = jnp.array([1.0, 0.3])
    climb = lambda noise, settings: search.reno(noise, linear, two_losses, weights, settings)
    found = search.carinox(jnp.asarray(noises), linear, two_losses, weights, settings)
    each = [climb(jnp.asarray(noise), settings) for noise in noises]
    best = min(each, key=lambda f: float(f.loss))
    np.testing.assert_allclose(found.loss, best.loss, rtol=1e-5)
    np.testing.assert_allclose(found.noise, best.noise, rtol=1e-4)
    np.testing.assert_allclose(search.best_within(found.losses, weights, 6)[0], best.loss, rtol=1e-5)
    assert found.spent == accounting.Spent(24, 24, 48, 48)  # a backward pass for each reward
    joint = climb(jnp.asarray(noises[0]), settings._replace(clip_each=False))
    assert (each[0].spent.backward_calls, joint.spent.backward_calls) == (12, 6)


def test_limits_of_carinox(key):
    joint = search.reno(START, linear, distance, ONE, search.Climb(steps=7))
    one = search.carinox(START[None], linear, distance, ONE, search.Climb(steps=7, clip_each=True))
    # the second clip shortens by a factor 1 - 1e-5, since it adds 1e-6 to a norm of 0.1
    np.testing.assert_allclose(one.losses[0], joint.losses, rtol=3e-4)
    np.testing.assert_allclose(one.noise, joint.noise, rtol=3e-4)
    noises = jax.random.normal(key, (8, 2))
    explored = search.carinox(noises, linear, distance, ONE, search.Climb(steps=1, clip_each=True))
    best = search.best_of_n(noises, linear, distance, ONE)
    np.testing.assert_array_equal(explored.noise, best.noise)
    assert best.spent == accounting.Spent(8, 8, 8, 0)


def test_what_is_watched_changes_nothing(key):
    """Figures of every candidate, in the order of making, by all three searches."""
    noises = jax.random.normal(key, (3, 2))
    watch = lambda image: jnp.stack([image[0], jnp.sum(image)])
    climb = dict(settings=search.Climb(steps=4, clip_each=True))
    own = jnp.array([1.0, 0.3])
    runs = {
        "reno": lambda **w: search.reno(START, linear, two_losses, own, **climb, **w),
        "carinox": lambda **w: search.carinox(noises, linear, two_losses, own, **climb, **w),
        "best_of_n": lambda **w: search.best_of_n(noises, linear, two_losses, own, **w),
    }
    for name, run in runs.items():
        bare, found = run(), run(watch=watch)
        assert bare.watched.shape == found.losses.shape[:-1] + (0,)
        assert found.watched.shape == found.losses.shape[:-1] + (2,)
        np.testing.assert_array_equal(found.noise, bare.noise)
        np.testing.assert_array_equal(found.losses, bare.losses)
        totals = (found.losses @ own).reshape(-1)
        seen = found.watched.reshape(-1, 2)[jnp.argmin(totals)]
        np.testing.assert_allclose(seen, watch(found.image), rtol=1e-5, err_msg=name)


def test_best_so_far():
    totals = jnp.array([jnp.nan, 3.0, 4.0, 3.0, jnp.nan, 1.0, 2.0])
    np.testing.assert_array_equal(search.best_so_far(totals), [0, 1, 1, 1, 1, 5, 5])
    table = jnp.array([2.5, 2.7, 2.4, 3.0])
    for n in range(1, 5):
        last = search.best_so_far(table)[n - 1]
        assert int(last) == int(search.best_within(table[:, None], ONE, n)[1])


def test_nan_never_wins():
    noises = jnp.array([[jnp.nan, 1.0], [1.0, -1.0]])
    np.testing.assert_array_equal(search.best_of_n(noises, linear, distance, ONE).noise, noises[1])


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
def test_without_any_known_loss_the_first_is_returned(value):
    """With the image that belongs to it, and a loss that says so."""
    losses = lambda x: distance(x) + value
    starts = jnp.stack([START, 2 * START])
    for found in (
        search.best_of_n(starts, linear, losses, ONE),
        search.reno(START, linear, losses, ONE, search.Climb(steps=3)),
        search.carinox(starts, linear, losses, ONE, search.Climb(steps=3, clip_each=True)),
    ):
        np.testing.assert_array_equal(found.noise, START)
        np.testing.assert_array_equal(found.image, linear(START))
        assert np.isposinf(found.loss)


@pytest.mark.parametrize("each", [False, True])
def test_a_missing_reward_does_not_end_the_climb(each):
    """NaN at the start alone: the other rewards and the prior lead away from there."""
    away = lambda z: jnp.where(jnp.all(z == START), jnp.nan, 0.0)
    losses = lambda z: jnp.stack([jnp.sum(z) * (1.0 + away(z)), jnp.sum(jnp.square(z))])
    settings = search.Climb(steps=6, prior=0.1, clip_each=each)
    found = search.reno(START, lambda z: z, losses, jnp.array([0.0, 1.0]), settings)
    assert np.isnan(found.losses[0, 0]) and np.all(np.isfinite(found.losses[1:]))
    assert np.isfinite(found.loss) and not np.array_equal(found.noise, START)
    if each:  # the first step is that of the sound reward, with the prior once for each
        prior = 0.1 * jax.grad(search.norm_prior)(START)
        parts = [search.clip_norm(g + prior, 0.1) for g in (0 * START, 2 * START)]
        step = -5.0 * 1.9 * search.clip_norm(parts[0] + parts[1], 0.1)
        np.testing.assert_allclose(found.norms[1], jnp.linalg.norm(START + step), rtol=1e-5)


def test_prompts_are_independent_under_vmap_and_jit(key):
    starts = jax.random.normal(key, (3, 2))
    scales = jnp.array([0.1, 1.0, 100.0])

    def climb(z, scale):
        found = search.reno(z, linear, lambda x: scale * distance(x), ONE, search.Climb(steps=5))
        return found.noise

    together = jax.jit(jax.vmap(climb))(starts, scales)
    for i in range(3):
        np.testing.assert_allclose(together[i], climb(starts[i], scales[i]), rtol=1e-4)


@pytest.mark.parametrize(
    "change,words",
    [
        (dict(steps=0), "steps = 0"),
        (dict(clip=0.0), "clip = 0.0"),
        (dict(prior=-1.0), "prior = -1.0"),
        (dict(select="best"), "select = 'best'"),
    ],
)
def test_bad_settings_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        search.reno(START, linear, distance, ONE, search.Climb(**change))


def test_bad_budgets_are_refused():
    with pytest.raises(ValueError, match="budget = 3"):
        search.best_within(jnp.zeros((2, 1)), ONE, 3)
    for find in (search.best_of_n, search.carinox):
        with pytest.raises(ValueError, match="noises = 0; allowed is >= 1"):
            find(jnp.zeros((0, 2)), linear, distance, ONE)
    with pytest.raises(ValueError, match="select"):
        search.best_of_n(jnp.zeros((1, 2)), linear, distance, ONE, select="x")

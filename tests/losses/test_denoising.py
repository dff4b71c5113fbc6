"""Losses of generators."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward import schedules
from jaxreward.losses import denoising
from jaxreward.networks.diffusion import moving_average
from jaxreward.policies import consistency, flow
from jaxreward.schedules import CLEAN, FLOW, NOISE, VELOCITY

STRAIGHT = schedules.flow()
TABLE = schedules.from_alpha_bar(schedules.scaled_linear_alpha_bar())
POINTS = np.arange(1, 51) * 20.0 - 1.0


@pytest.mark.parametrize("parameterization", [NOISE, CLEAN, VELOCITY, FLOW])
def test_the_best_constant_is_the_mean_of_the_target(key, parameterization):
    """Of a network that is a constant; for a single clean sample 0.3."""
    apply = lambda params, x, time, condition: params * jnp.ones_like(x)
    loss = denoising.denoising_loss(apply, STRAIGHT, parameterization)
    clean = jnp.full((4000, 2), 0.3)
    both = jax.jit(jax.value_and_grad(lambda params: loss(params, key, clean, None)))
    # time is uniform, noise has mean 0
    mean = {NOISE: 0.0, CLEAN: 0.3, VELOCITY: -0.15, FLOW: -0.3}[parameterization]
    value, slope = map(float, both(mean))  # 2 (constant - mean of the targets)
    assert abs(slope) < 2 * 4 / 8000**0.5 + 1e-6
    assert float(both(mean + 0.5)[0]) > value + 0.2


def test_the_true_denoiser_of_a_point_has_no_error(key):
    apply = lambda params, x, time, condition: (x - 0.3 * (1 - time[:, None])) / time[:, None]
    loss = denoising.denoising_loss(apply, STRAIGHT, NOISE)
    assert jax.jit(loss)(None, key, jnp.full((50, 2), 0.3), None) < 1e-6


def test_pseudo_huber():
    """Check 3 of the card of RG-LCD."""
    found = denoising.pseudo_huber(jnp.array([0.1, -0.2, 0.0]), 0.001)
    np.testing.assert_allclose(found, 0.0993358, rtol=1e-5)
    small = jax.grad(denoising.pseudo_huber)(jnp.zeros(3))
    np.testing.assert_array_equal(small, 0.0)


def test_the_guided_teacher():
    """Check 4 of the card of RG-LCD: `w = 5` is scale 6."""
    schedule = schedules.from_alpha_bar(np.array([0.45, 0.3]))
    outputs = lambda params, x, time, condition: condition
    both = flow.guided(outputs, lambda condition: jnp.array([[0.4, -0.1]]), 6.0)
    denoise = flow.make_denoiser(both, schedule, NOISE)
    x = jnp.array([[0.8, -0.6]])

    @jax.jit
    def move(condition):
        found = denoise(None, x, 1.0, condition)
        return found, flow.ddim_move(schedule, x, found, 1.0, 0.0)

    found, after = move(jnp.array([[0.5, -0.3]]))
    np.testing.assert_allclose(found.noise, [[1.0, -1.3]], rtol=1e-5)
    np.testing.assert_allclose(found.clean, [[-0.066932, 0.890338]], atol=2e-6)
    np.testing.assert_allclose(after.mean, [[0.696721, -0.366849]], atol=2e-6)
    twice = flow.guided(outputs, lambda c: jnp.array([[0.5, 1.0]]), 1.0 + 6.0)
    found = twice(None, x, jnp.zeros(1), jnp.array([[1.0, 2.0]]))
    np.testing.assert_allclose(found, [[4.0, 8.0]])


def distiller(mean=0.3):
    """A teacher that knows the single clean sample, a student `params`."""
    function = consistency.consistency_function(
        lambda params, x, time, condition: params * jnp.ones_like(x), TABLE, CLEAN
    )

    def teacher(x, t, earlier, condition):
        alpha, sigma = schedules.levels(TABLE, t, x)
        estimate = flow.Estimate(jnp.full_like(x, mean), (x - alpha * mean) / sigma)
        return flow.ddim_move(TABLE, x, estimate, t, earlier).mean

    return denoising.consistency_distillation(function, teacher, TABLE, POINTS)


def test_distillation_fits_the_teacher(key):
    """Alternating with its own average the student ends at the teacher's sample."""
    distill, clean = distiller(), jnp.full((64, 2), 0.3)

    def step(carry, i):
        params, average = carry
        loss = lambda p: distill(p, average, jax.random.fold_in(key, i), clean, None).loss
        params = params - 0.05 * jax.grad(loss)(params)
        return (params, moving_average(average, params, 0.9)), None

    start = (jnp.float32(-1.0), jnp.float32(-1.0))
    (params, average), _ = jax.jit(lambda s: jax.lax.scan(step, s, jnp.arange(4000)))(start)
    np.testing.assert_allclose([params, average], 0.3, atol=0.05)


def test_only_the_student_learns(key):
    distill, clean = distiller(), jnp.full((8, 2), 0.3)
    loss = lambda student, target: distill(student, target, key, clean, None).loss
    slopes = jax.jit(jax.grad(loss, argnums=(0, 1)))(jnp.float32(0.5), jnp.float32(0.2))
    assert slopes[0] != 0 and slopes[1] == 0


def test_the_first_point_is_compared_with_the_teacher_itself(key):
    """Before the first point is time 0, where the target is the identity."""
    function = consistency.consistency_function(
        lambda params, x, time, condition: params * jnp.ones_like(x), TABLE, CLEAN
    )
    teacher = lambda x, t, earlier, condition: jnp.full_like(x, 0.7) + 0 * earlier[:, None]
    distill = denoising.consistency_distillation(function, teacher, TABLE, POINTS[:1])
    given = jnp.float32(0.1), jnp.float32(99.0), key, jnp.zeros((3, 2)), None
    found = jax.jit(distill)(*given)
    np.testing.assert_allclose(found.target, 0.7, rtol=1e-6)


def test_without_weight_reward_guidance_is_distillation(key):
    """Check 6 of the card of RG-LCD."""
    distill, clean = distiller(), jnp.full((8, 2), 0.3)

    def loss(params, weight):
        found = distill(params, jnp.float32(0.0), key, clean, None)
        return denoising.reward_guided(found, jnp.mean(found.student, axis=1), weight)

    own = lambda params: distill(params, jnp.float32(0.0), key, clean, None).loss
    at, guided = jnp.float32(0.5), jax.jit(jax.value_and_grad(loss))
    plain = jax.jit(jax.value_and_grad(own))(at)
    assert guided(at, 0.0) == plain
    assert guided(at, 1.0)[1] < plain[1] - 0.5


EXPERT = jnp.array([[22.0, 21.5, 21.0], [21.0, 20.0, 23.0]])
PROXY = jnp.array([[1.0, 1.5, 0.7], [0.5, 0.2, 1.0]])
"""Rows are samples; columns student, target, data."""


def test_proxy_preferences():
    """Check 5 of the card of RG-LCD."""
    loss = jax.jit(denoising.proxy_preference_loss, static_argnames="labels")
    np.testing.assert_allclose(loss(EXPERT, PROXY), 0.3124677, rtol=2e-6)
    np.testing.assert_allclose(loss(EXPERT, PROXY, labels="smooth"), 0.3254882, rtol=2e-6)
    pairs = [
        loss(EXPERT[:, [i, j]], PROXY[:, [i, j]]) for i, j in ((0, 1), (0, 2), (1, 2))
    ]
    np.testing.assert_allclose(pairs, [0.0876469, 0.1105896, 0.1142311], rtol=5e-6)


@pytest.mark.parametrize("labels", ["soft", "smooth", "hard"])
def test_constants_do_not_matter(labels):
    loss = lambda a, b: denoising.proxy_preference_loss(a, b, labels=labels)
    both = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    value, slopes = both(EXPERT, PROXY)
    moved, _ = both(EXPERT + 3.0, PROXY + jnp.array([[2.0], [-1.0]]))
    np.testing.assert_allclose(moved, value, rtol=1e-5)
    np.testing.assert_array_equal(slopes[0], 0.0)
    assert np.any(slopes[1])


def test_hard_and_equal_preferences():
    assert abs(denoising.proxy_preference_loss(PROXY, PROXY)) < 1e-6
    log = lambda i, j: jax.nn.log_sigmoid(PROXY[:, i] - PROXY[:, j])
    # the expert prefers the student to the target in both rows; data wins always
    expected = -jnp.mean(log(0, 1) + log(2, 0) + log(2, 1))
    found = denoising.proxy_preference_loss(EXPERT, PROXY, labels="hard")
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def released_cross_entropy(expert, proxy):
    """The released code's labels by hand: `argmax` over the batch, then data always wins."""
    total, count = 0.0, expert.shape[1]
    for i in range(count - 1):
        for j in range(i + 1, count):
            label = np.argmax(expert, axis=0)  # of [candidates, batch] over its second axis
            label = np.ones_like(label) if j == count - 1 else label
            logits = np.stack([proxy[:, i], proxy[:, j]], axis=1)
            log_probs = logits - np.logaddexp(logits[:, :1], logits[:, 1:])
            total -= np.mean(log_probs[np.arange(count), label])
    return total


def test_released_hard_labels_are_taken_over_the_batch():
    """The trap of the card of RG-LCD: with three samples the released cross-entropy runs."""
    expert = jnp.array([[22.0, 20.0, 24.0], [21.0, 20.5, 23.0], [20.0, 20.2, 25.0]])
    proxy = jnp.array([[1.0, 1.5, 0.7], [0.5, 0.2, 1.0], [0.3, 0.9, 0.4]])
    # best samples of the generated candidates: 0, 1; of the data 2, which is no label of a pair
    expert = expert.at[2, 2].set(22.5)  # now 0
    released = denoising.proxy_preference_loss(expert, proxy, labels="hard", as_released=True)
    expected = released_cross_entropy(np.asarray(expert), np.asarray(proxy))
    np.testing.assert_allclose(released, expected, rtol=1e-6)
    own = denoising.proxy_preference_loss(expert, proxy, labels="hard")
    log = lambda i, j: jax.nn.log_sigmoid(proxy[:, i] - proxy[:, j])
    first = jnp.where(jnp.array([True, True, False]), log(0, 1), log(1, 0))  # each row's own choice
    np.testing.assert_allclose(own, -jnp.mean(first + log(2, 0) + log(2, 1)), rtol=1e-6)
    assert abs(float(released - own)) > 0.05
    broken = denoising.proxy_preference_loss(
        expert.at[2, 0].set(30.0), proxy, labels="hard", as_released=True
    )
    assert np.isnan(broken)  # label 2 of two choices
    with pytest.raises(ValueError, match="2 samples and 3 candidates"):
        denoising.proxy_preference_loss(EXPERT, PROXY, labels="hard", as_released=True)
    with pytest.raises(ValueError, match="labels = 'soft'"):
        denoising.proxy_preference_loss(expert, proxy, as_released=True)


def test_bad_inputs():
    with pytest.raises(ValueError, match="width = 0"):
        denoising.pseudo_huber(jnp.ones(2), 0)
    with pytest.raises(ValueError, match="labels = 'firm'"):
        denoising.proxy_preference_loss(EXPERT, PROXY, labels="firm")
    with pytest.raises(ValueError, match="1 candidates"):
        denoising.proxy_preference_loss(EXPERT[:, :1], PROXY[:, :1])

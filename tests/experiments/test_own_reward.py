"""A user's own reward of images: what it is given, what it may do wrong, who asks for it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import find as find_config
from configs import rg_lcd as rg_lcd_config
from experiments.generator_studies import digits, find, find_report, own_reward, rg_lcd
from jaxreward.losses import denoising
from jaxreward.rewards.opaque import on_host

OWN = "test_own_reward:"
SEEN = []


def record(image, label):
    SEEN.append((image, label))
    image *= 2.0  # its own
    return image.sum() + 100.0 * label


def fails(image, label):
    if label == 1:
        raise OSError("busy")
    return image.mean()


def root(image, label):
    return jnp.sqrt(jnp.sum(image) - label.astype(jnp.float32))


TIMED = on_host(fails, axes=(3, 0), timeout_s=20.0)


def test_the_host_gets_one_image_in_its_range(key):
    images = 2.0 * jax.random.normal(key, (2, 3, 8, 8, 1))
    labels = jnp.array([[3, 1, 2], [7, 8, 9]])
    SEEN.clear()
    found = jax.jit(own_reward.make(OWN + "record"))(images, labels)
    sums = np.clip(np.asarray(images), -1, 1).sum((2, 3, 4))
    np.testing.assert_allclose(found, 2 * sums + 100 * np.asarray(labels), rtol=1e-5)
    assert [int(label) for _, label in SEEN] == [3, 1, 2, 7, 8, 9]
    for image, label in SEEN:
        assert type(image) is np.ndarray and image.dtype == np.float32 and image.shape == (8, 8, 1)
        assert label.dtype == np.int32 and label.shape == ()


@pytest.mark.parametrize("name", ["fails", "TIMED"])
def test_a_fault_costs_its_own_image(name):
    images = jnp.stack([jnp.full((8, 8, 1), x) for x in (0.1, 0.2, 0.3)])
    found = own_reward.make(OWN + name)(images, jnp.array([0, 1, 2]))
    np.testing.assert_allclose(found, [0.1, np.nan, 0.3], rtol=1e-6)
    assert own_reward.missing(found) == 1.0
    one_label = own_reward.make(OWN + name)(images, jnp.int32(1))  # FIND asks for one wish
    assert own_reward.missing(one_label) == 3.0


def test_of_jax_a_fault_costs_its_own_gradient():
    """The root of 0 is 0 with a slope that is not finite, the root of less is missing."""
    reward = own_reward.make("jit:" + OWN + "root")
    images = jnp.stack([jnp.full((8, 8, 1), x) for x in (0.25, 0.0, 0.5)])
    labels = jnp.array([0, 0, 33])

    def mean(images):
        found = reward(images, labels)
        return jnp.mean(jnp.where(jnp.isfinite(found), found, 0.0)), found

    grads, found = jax.jit(jax.grad(mean, has_aux=True))(images)
    np.testing.assert_allclose(found, [4.0, 0.0, np.nan])
    np.testing.assert_allclose(grads[0], np.full((8, 8, 1), 1 / 3 / 8), rtol=1e-6)
    assert not np.any(grads[1:])


def test_curves_carry_on():
    curve = jnp.array([np.nan, 1.0, np.nan, np.nan, 4.0, np.inf])
    np.testing.assert_array_equal(own_reward.carried(curve), [np.nan, 1, 1, 1, 4, 4])


def test_missing_rewards_of_fresh_images(key):
    images = jax.random.normal(key, (6, 8, 8, 1))
    rewards = np.array([0.5, np.nan, 1.0, 0.0, np.nan, 0.25], np.float32)
    there = np.isfinite(rewards)
    measure = jax.jit(find_report.measure)
    found = measure(images, rewards, rewards)
    alone = measure(*(np.asarray(x)[there] for x in (images, rewards, rewards)))
    for metric in ("reward", "diversity/of_successes"):
        np.testing.assert_allclose(found[metric], alone[metric], rtol=1e-5)
    other = np.array([0.3, 0.1, np.nan, 0.1, 0.2, 0.4], np.float32)
    both = there & np.isfinite(other)
    expected = np.corrcoef(rewards[both], other[both])[0, 1]
    found = jax.jit(find_report.correlation)(rewards, other)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("labels", denoising.LABELS)
def test_a_proxy_learns_from_whole_rows(key, labels):
    expert, ours = np.asarray(jax.random.normal(key, (2, 4, 3)))
    torn = expert.copy()
    torn[1, 2] = np.nan
    loss = lambda ours, expert: rg_lcd.preference_loss(expert, ours, labels)
    loss = jax.jit(jax.value_and_grad(loss))
    plain = lambda ours, expert: denoising.proxy_preference_loss(expert, ours, labels=labels)
    plain = jax.jit(jax.value_and_grad(plain))
    for found, expected in zip(loss(ours, expert), plain(ours, expert)):
        np.testing.assert_array_equal(found, expected)
    whole = np.array([0, 2, 3])
    grads = np.asarray(loss(ours, torn)[1])
    np.testing.assert_allclose(grads[whole], plain(ours[whole], expert[whole])[1], rtol=1e-6)
    assert not np.any(grads[1])
    assert not np.any(loss(ours, np.full_like(expert, np.nan))[1])


def test_no_arm_differentiates_a_black_box():
    """The arms are traced; a gradient of the host's reward would be refused here."""
    settings = rg_lcd_config.get_config("own_smoke").study
    settings.reward = OWN + "fails"
    base = digits.build(settings.generator, rg_lcd.HEIGHT, rg_lcd.WIDTH)

    def run(key):
        teacher, images = base._replace(params=base.network.init(key)), jnp.zeros((8, 8, 8, 1))
        codec = rg_lcd.Codec(jnp.zeros((1, 64)), jnp.eye(rg_lcd.LATENT, 64), 1.0)
        latents = digits.Digits(rg_lcd.encode(codec, images), jnp.arange(8))
        judge = {"first": jnp.zeros((64, 4)), "bias": jnp.zeros((1, 4)), "second": jnp.zeros((4, 10))}
        proxy = {"first": jnp.zeros((rg_lcd.LATENT, 4)), "bias": jnp.zeros((1, 4)),
                 "out": jnp.zeros((4, 3)), "classes": jnp.zeros((10, 3))}  # fmt: skip
        reward = rg_lcd.make_reward(settings, judge)
        task = rg_lcd.Task(codec, teacher, latents, judge, judge, proxy, images[0], reward)
        train = lambda arm: rg_lcd.train(key, task, arm, jnp.float32(1.0), settings, lambda: None)
        return {name: train(settings.arms[name])[2][2] for name in ("lcm", "proxy")}

    missing = jax.eval_shape(run, jax.random.key(0))
    assert all(count.shape == (settings.distillation.steps,) for count in missing.values())


def test_find_asks_for_the_wished_digit():
    settings = find_config.get_config("own_smoke").study
    settings.reward = OWN + "fails"
    images = jnp.stack([jnp.full((1, 8, 8, 1), x) for x in (0.25, 0.5)])
    reward = jax.vmap(find.make_reward(settings, None), in_axes=(None, 0))
    np.testing.assert_array_equal(reward(images[:, 0], jnp.arange(2)), [[0.25, 0.5], [np.nan] * 2])


def test_what_asks_for_no_reward_pays_for_none():
    settings = rg_lcd_config.get_config("own").study
    spent = lambda name: rg_lcd.spent(settings.arms[name], settings)
    assert spent("lcm").reward_calls == 0 and spent("proxy").reward_calls == 30
    assert [arm.kind for arm, _ in rg_lcd.side_by_side(settings.arms)].count("lcm") == 1
    settings = rg_lcd_config.get_config().study
    assert "lcm" not in [arm.kind for arm, _ in rg_lcd.side_by_side(settings.arms)]

"""What the studies of FIND and RG-LCD measure with."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.generator_studies import digits, find, rg_lcd


def test_the_black_box_has_no_gradient():
    np.testing.assert_allclose(find.quantized(jnp.array([0.51, 0.98]), 20), [0.5, 1.0])
    assert jax.grad(lambda x: find.quantized(x, 20))(0.52) == 0


def test_the_wish_is_rare_and_known_by_its_ink():
    data = digits.load(0).generator
    bounds = find.ink_bounds(data)
    thick = jnp.mean(data.images, axis=(1, 2, 3)) > bounds[data.labels]
    np.testing.assert_allclose(jnp.mean(thick.astype(jnp.float32)), 0.5, atol=0.02)


def test_codec_and_checkerboard():
    images = digits.load(0).generator.images
    codec = rg_lcd.make_codec(images)
    back = rg_lcd.decode(codec, rg_lcd.encode(codec, images))
    error = jnp.square(back - digits.flat(images))
    assert jnp.mean(error) < 1e-3 and jnp.max(jnp.mean(error, axis=1)) < 0.05
    sign = (-1.0) ** (jnp.arange(8.0)[:, None] + jnp.arange(8.0)[None, :])
    full = jnp.stack([sign.reshape(-1), jnp.ones(64)])
    np.testing.assert_allclose(rg_lcd.checkerboard_energy(full), [1.0, 0.0], atol=1e-6)


def test_frechet_distance(key):
    x = jax.random.normal(key, (4000, 3))
    np.testing.assert_allclose(rg_lcd.frechet_distance(x, x), 0.0, atol=1e-3)
    moved = 2.0 * x + jnp.array([[1.0, 0.0, 0.0]])
    # mean by about 1, each deviation by about 1
    np.testing.assert_allclose(rg_lcd.frechet_distance(moved, x), 4.0, atol=0.3)

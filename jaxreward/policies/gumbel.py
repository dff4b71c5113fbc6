"""Gumbel noise for drawing tokens: `jax.random.gumbel`, bit for bit, in one fused loop.

On CPUs `jax.random` runs Threefry's rounds as a loop over arrays in memory, which for a
vocabulary's worth of noise at every token costs as much as a small network. Here the twenty
rounds stand one after the other, so that they and the two logarithms are one kernel.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt32

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = np.uint32(0x1BD11BDA)


def gumbel(key: jax.Array, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Standard Gumbel noise, float32: equal to `jax.random.gumbel(key, shape)`.

    Keys other than Threefry's, arrays of 2^32 numbers or more, and `jax_threefry_partitionable`
    turned off are left to `jax.random`.
    """
    threefry = str(jax.random.key_impl(key)) in ("fry", "threefry2x32")
    if not (threefry and jax.config.jax_threefry_partitionable and np.prod(shape) < 2**32):
        return jax.random.gumbel(key, shape, jnp.float32)
    # 23 bits as the mantissa of a number in [1, 2), then as jax.random.uniform(tiny, 1)
    mantissa = (_bits(key, shape) >> np.uint32(9)) | np.uint32(0x3F800000)
    unit = jax.lax.bitcast_convert_type(mantissa, jnp.float32) - np.float32(1)
    tiny = np.finfo(np.float32).tiny
    return -jnp.log(-jnp.log(jnp.maximum(tiny, unit * (np.float32(1) - tiny) + tiny)))


def _bits(key: jax.Array, shape: tuple[int, ...]) -> UInt32[Array, "..."]:
    """`jax.random.bits(key, shape)`: Threefry-2x32 of each element's flat index."""
    words = jax.random.key_data(key)
    index, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(len(shape))):
        index = index + jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * np.uint32(stride)
        stride *= shape[axis]
    first, second = _threefry((words[0], words[1]), (jnp.zeros(shape, jnp.uint32), index))
    return first ^ second


def _threefry(key: tuple[Array, Array], counter: tuple[Array, Array]) -> tuple[Array, Array]:
    """Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), 20 rounds."""
    schedule = (*key, key[0] ^ key[1] ^ _PARITY)
    a, b = counter[0] + schedule[0], counter[1] + schedule[1]
    for group in range(5):
        for turn in _ROTATIONS[group % 2]:
            a = a + b
            b = a ^ ((b << np.uint32(turn)) | (b >> np.uint32(32 - turn)))
        a = a + schedule[(group + 1) % 3]
        b = b + schedule[(group + 2) % 3] + np.uint32(group + 1)
    return a, b

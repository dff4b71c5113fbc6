"""Dense and convolution layers as matrix products, with gradients that suit CPUs too.

Beside its kernel a layer may have a low-rank adapter (`networks.lora`).
"""

from typing import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax


@jax.custom_vjp
def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`x [..., D] @ kernel [D, F]`."""
    return lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))


def _forward(x: jax.Array, kernel: jax.Array):
    return _product(x, kernel), (x, kernel)


def _backward(saved, cotangent: jax.Array):
    """One operand of the kernel's gradient is copied transposed, with everything fused into it that
    makes it: the narrower one here, the cotangent in autodiff. A fifth off a CPU's step."""
    x, kernel = saved
    leading = tuple(range(x.ndim - 1))
    grad_x = lax.dot_general(cotangent, kernel, (((x.ndim - 1,), (1,)), ((), ())))
    contract = ((leading, leading), ((), ()))
    if kernel.shape[1] < kernel.shape[0]:
        return grad_x, lax.dot_general(cotangent, x, contract).T
    return grad_x, lax.dot_general(x, cotangent, contract)


_product.defvjp(_forward, _backward)


class Dense(nn.Module):
    """`x @ kernel + bias`, plus `(x @ lora_a) @ lora_b` where the parameters have these two.

    Attributes:
      features: size of the output.
      dtype: of the product and the output; parameters are cast to it.
      param_dtype: of the parameters `kernel [D, features]` and `bias [features]`.
      use_bias: whether there is a bias.
      kernel_init: initializer of the kernel.
    """

    features: int
    dtype: str = "float32"
    param_dtype: str = "float32"
    use_bias: bool = False
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the layer to `[..., D]`."""
        shape, x = (x.shape[-1], self.features), x.astype(self.dtype)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        y = _product(x, kernel.astype(self.dtype))
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, shape[1:], self.param_dtype)
            y = y + bias.astype(self.dtype).reshape((1,) * (y.ndim - 1) + (-1,))
        if self.has_variable("params", LORA_A):
            down, up = (self.get_variable("params", name) for name in (LORA_A, LORA_B))
            y = y + _product(_product(x, down.astype(self.dtype)), up.astype(self.dtype))
        return y


def squeezed(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """`function`, which works along the last axis, of `x` without its other axes of size 1.

    XLA's CPU kernels are several times slower for the gradient of a reduction if one of the axes
    before it has size 1, as that of a batch or a group of 1 has.
    """
    kept = tuple(size for size in x.shape[:-1] if size != 1)
    return function(x.reshape(kept + x.shape[-1:])).reshape(x.shape)


LORA_A, LORA_B = "lora_a", "lora_b"
"""Names of an adapter's two matrices, `[D, rank]` and `[rank, features]`."""


@jax.custom_vjp
def _convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """3 x 3 convolution of `x [B, H, W, C]` with zeros around, as one matrix product.

    Places are gathered with those beside them before the product, and with those above and below
    after it, which moves a third of what gathering all nine would.
    """
    height, features = x.shape[1], kernel.shape[-1]
    matrix = jnp.moveaxis(kernel, 0, 2).reshape(-1, 3 * features)
    found = _product(_neighbours(x, axis=2), matrix)
    found = jnp.pad(found, ((0, 0), (1, 1), (0, 0), (0, 0)))
    parts = jnp.split(found, 3, axis=-1)
    return sum(part[:, i : i + height] for i, part in enumerate(parts))


def _neighbours(x: jax.Array, axis: int) -> jax.Array:
    """`[B, H, W, 3 C]`: what is before every place along an axis, at it and after it."""
    padded = jnp.pad(x, [(int(i == axis),) * 2 for i in range(x.ndim)])
    take = lambda start: lax.slice_in_dim(padded, start, start + x.shape[axis], axis=axis)
    return jnp.concatenate([take(start) for start in range(3)], axis=-1)


def _forward_convolution(x: jax.Array, kernel: jax.Array):
    return _convolution(x, kernel), (x, kernel)


def _backward_convolution(saved, cotangent: jax.Array):
    """By the input it is a convolution too, with the kernel turned round."""
    x, kernel = saved
    grad_x = _convolution(cotangent, jnp.swapaxes(kernel[::-1, ::-1], 2, 3))
    around = _neighbours(x, axis=2), _neighbours(cotangent, axis=1)
    grad = lax.dot_general(*around, (((0, 1, 2), (0, 1, 2)), ((), ())))
    (rows, columns), shape = kernel.shape[:2], kernel.shape[2:]
    grad = grad.reshape(columns, shape[0], rows, shape[1])[:, :, ::-1]
    return grad_x, jnp.moveaxis(grad, 2, 0)


_convolution.defvjp(_forward_convolution, _backward_convolution)


class Conv(nn.Module):
    """3 x 3 convolution with zeros around, float32; parameters as those of `flax.linen.Conv`.

    XLA runs small convolutions, and above all their gradients, many times slower on CPUs than
    the matrix products that they are here. A stride of 2 leaves out places of the same product.

    Attributes:
      features: channels of the output.
      stride: 1, or 2 for even heights and widths.
      kernel_init: initializer of the kernel.
    """

    features: int
    stride: int = 1
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the layer to `[B, H, W, C]`; `[B, H / stride, W / stride, features]`."""
        shape = (3, 3, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        y = _convolution(x, kernel)
        if self.stride > 1:  # "SAME" pads an even side at its end only
            y = y[:, 1 :: self.stride, 1 :: self.stride]
        return y + bias[None, None, None]

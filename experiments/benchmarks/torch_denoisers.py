"""The networks of `jaxreward.networks.diffusion` in eager PyTorch, for `torch_generate`.

Functions of a dictionary of tensors named as flax names them, `block_0/adapt/kernel`; images are
`[B, H, W, C]` outside. Only what that benchmark needs: class or prompt, no guidance input.
"""

import math
from typing import Any, Callable

import torch
import torch.nn.functional as F

Params = dict[str, torch.Tensor]
Linear = Callable[..., torch.Tensor]


def from_flax(arrays: dict[str, Any], *, train: bool) -> Params:
    """Tensors in PyTorch's layout: kernels `[out, in]` and `[out, in, height, width]`."""
    params = {}
    for name, array in arrays.items():
        tensor = _swap(name, torch.from_numpy(array)).clone(memory_format=torch.contiguous_format)
        params[name] = tensor.requires_grad_(train)
    return params


def to_flax(name: str, tensor: torch.Tensor) -> Any:
    """The numpy array of a tensor, in flax's layout."""
    back = tensor.permute(2, 3, 1, 0) if tensor.ndim == 4 else _swap(name, tensor)
    return back.detach().contiguous().numpy()


def _swap(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if not name.endswith("kernel"):
        return tensor
    return tensor.permute(3, 2, 0, 1) if tensor.ndim == 4 else tensor.T


def make_network(config: dict[str, Any], kind: str) -> Callable[..., torch.Tensor]:
    """`(params, x [B, H, W, C], time [B], labels [B], tokens [B, L]) -> [B, H, W, C]`.

    What the network is not told is None.
    """
    body = {"transformer": _transformer, "unet": _unet}[kind]

    def apply(params: Params, x, time, labels=None, tokens=None):
        condition = _conditioning(params, config, time, labels, tokens)
        return body(params, config, x, *condition)

    return apply


def perceptron(params: Params, x: torch.Tensor) -> torch.Tensor:
    """`networks.perceptron.Perceptron`: SiLU layers, a skip connection between equal widths."""
    layers = sum(name.endswith("kernel") for name in params)
    for i in range(layers - 1):
        y = F.silu(_dense(params, f"Dense_{i}", x))
        x = x + y if x.shape[-1] == y.shape[-1] else y
    return _dense(params, f"Dense_{layers - 1}", x)


def _conditioning(params: Params, config: dict[str, Any], time, labels, tokens):
    width = config["features"]
    pooled = _dense(params, "conditioning/time", _waves(1000.0 * time, width))
    text = visible = None
    if labels is not None:
        rows = torch.where(labels < 0, config["classes"], labels)
        pooled = pooled + params["conditioning/classes/embedding"][rows]
    if tokens is not None:
        text, visible, mean = _text(params, config, tokens)
        pooled = pooled + mean
    return text, visible, _dense(params, "conditioning/mix", F.silu(pooled))


def _text(params: Params, config: dict[str, Any], tokens):
    name = "conditioning/text"
    visible = tokens >= 0
    x = params[f"{name}/tokens/embedding"][tokens.clamp(min=0)] + params[f"{name}/position"]
    y = _norm(x)
    x = x + _attention(params, f"{name}/attention", config["heads"], y, y, visible)
    y = F.gelu(_dense(params, f"{name}/Dense_1", _norm(x)), approximate="tanh")
    x = x + _dense(params, f"{name}/Dense_0", y)
    weight = visible.float()[:, :, None]
    pooled = (x * weight).sum(1) / weight.sum(1).clamp(min=1.0)
    some = visible.any(1, keepdim=True)
    return x, visible, torch.where(some, pooled, params[f"{name}/empty"])


def _transformer(params: Params, config: dict[str, Any], x, text, visible, pooled):
    p, width, heads = config["patch"], config["features"], config["heads"]
    batch, height, breadth, channels = x.shape
    h, w = height // p, breadth // p
    patches = x.reshape(batch, h, p, w, p, channels).permute(0, 1, 3, 2, 4, 5)
    y = _dense(params, "patches", patches.reshape(batch, h * w, -1)) + params["position"]
    if text is not None:
        y = torch.cat([text, y], 1)
        visible = torch.cat([visible, visible.new_ones(batch, h * w)], 1)
    for i in range(config["layers"]):
        y = _block(params, f"block_{i}", heads, y, visible, pooled)
    shift, scale = _modulation(params, "modulation", pooled, width)
    y = _dense(params, "out", _norm(y[:, -h * w :]) * (1.0 + scale) + shift)
    y = y.reshape(batch, h, w, p, p, channels).permute(0, 1, 3, 2, 4, 5)
    return y.reshape(x.shape)


def _block(params: Params, name: str, heads: int, x, visible, pooled):
    adapt = _modulation(params, f"{name}/adapt", pooled, x.shape[-1])
    shift, scale, gate, shift2, scale2, gate2 = adapt
    y = _norm(x) * (1.0 + scale) + shift
    x = x + gate * _attention(params, f"{name}/attention", heads, y, y, visible)
    y = _dense(params, f"{name}/up", _norm(x) * (1.0 + scale2) + shift2)
    return x + gate2 * _dense(params, f"{name}/down", F.gelu(y, approximate="tanh"))


def _attention(params: Params, name: str, heads: int, x, source, visible):
    split = lambda y: y.unflatten(-1, (heads, -1)).transpose(1, 2)
    q = split(_dense(params, f"{name}/query", x))
    k, v = (split(_dense(params, f"{name}/{part}", source)) for part in ("key", "value"))
    mask = None if visible is None else visible[:, None, None, :]
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return _dense(params, f"{name}/out", mixed.transpose(1, 2).reshape(x.shape))


def _unet(params: Params, config: dict[str, Any], x, text, visible, pooled):
    layers = range(config["layers"])
    high = _conv(params, "in", x.permute(0, 3, 1, 2))
    for i in layers:
        high = _residual(params, f"down_{i}", high, pooled)
    low = _conv(params, "halve", F.pad(high, (0, 1, 0, 1)), stride=2, padding=0)
    for i in layers:
        low = _residual(params, f"low_{i}", low, pooled)
    if text is not None:
        places = low.flatten(2).transpose(1, 2)
        places = places + _attention(params, "prompt", config["heads"], places, text, visible)
        low = places.transpose(1, 2).reshape(low.shape)
    raised = F.interpolate(low, scale_factor=2, mode="nearest")
    high = _conv(params, "merge", torch.cat([high, _conv(params, "double", raised)], 1))
    for i in layers:
        high = _residual(params, f"up_{i}", high, pooled)
    return _conv(params, "out", F.silu(_channel_norm(high))).permute(0, 2, 3, 1)


def _residual(params: Params, name: str, x, pooled):
    shift, scale = _modulation(params, f"{name}/adapt", pooled, x.shape[1])
    as_image = lambda y: y.transpose(1, 2)[..., None]
    y = _conv(params, f"{name}/first", F.silu(_channel_norm(x)))
    y = _channel_norm(y) * (1.0 + as_image(scale)) + as_image(shift)
    return x + _conv(params, f"{name}/second", F.silu(y))


def _conv(params: Params, name: str, x, stride: int = 1, padding: int = 1):
    kernel, bias = params[f"{name}/kernel"], params[f"{name}/bias"]
    return F.conv2d(x, kernel, bias, stride=stride, padding=padding)


def _dense(params: Params, name: str, x):
    return F.linear(x, params[f"{name}/kernel"], params[f"{name}/bias"])


def _norm(x):
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def _channel_norm(x):
    return _norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _modulation(params: Params, name: str, pooled, features: int):
    return _dense(params, name, F.silu(pooled))[:, None].split(features, dim=-1)


def _waves(values, features: int):
    half = features // 2
    frequencies = torch.exp(-math.log(1e4) * torch.arange(half) / half)
    angles = values[:, None] * frequencies[None, :]
    return torch.cat([angles.sin(), angles.cos()], -1)

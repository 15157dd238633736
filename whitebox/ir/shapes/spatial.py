"""Types of convolutions, pools and resizing, and the resolving of their attributes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from whitebox.ir.shapes.rule import Call, Misfit, Shape, rule, unknown
from whitebox.ir.types import Dim, TensorType

CONVOLUTIONS = ("Conv", "ConvInteger", "QLinearConv", "ConvTranspose")
POOLS = ("MaxPool", "AveragePool", "LpPool")
_WEIGHT = {"Conv": 1, "ConvTranspose": 1, "ConvInteger": 1, "QLinearConv": 3}


def resolve_window(
    op: str, shape: Shape, weight: Shape, attrs: Mapping[str, Any]
) -> dict[str, Any]:
    """The attributes of a convolution or pool with every default written out.

    `auto_pad` (and a transposed convolution's `output_shape`) become `pads` where the spatial
    sizes that they depend on are known.
    """
    new = dict(attrs)
    kernel = attrs.get("kernel_shape")
    if kernel is None and weight is not None and all(isinstance(dim, int) for dim in weight[2:]):
        kernel = weight[2:]
    if kernel is None:
        return new
    rank = len(kernel)
    new["kernel_shape"] = kernel
    new.setdefault("strides", (1,) * rank)
    new.setdefault("dilations", (1,) * rank)
    if len(new["strides"]) != rank or len(new["dilations"]) != rank:
        raise Misfit(f"strides and dilations must be {rank}, as the kernel has {rank} axes")
    pads = _resolved_pads(op, shape, new)
    if pads is not None:
        new["pads"] = pads
        new.pop("auto_pad", None)
        new.pop("output_shape", None)
    return new


def _resolved_pads(op: str, shape: Shape, attrs: Mapping[str, Any]) -> tuple[int, ...] | None:
    rank, auto = len(attrs["kernel_shape"]), attrs.get("auto_pad", "NOTSET")
    sizes = shape[2:] if shape is not None and len(shape) == rank + 2 else None
    if "output_shape" in attrs or (op == "ConvTranspose" and auto.startswith("SAME")):
        return None if sizes is None else _transposed_pads(sizes, attrs)
    if auto == "NOTSET":
        return tuple(attrs.get("pads", (0,) * 2 * rank))
    if auto == "VALID":
        return (0,) * 2 * rank
    return None if sizes is None else _same_pads(sizes, attrs)


def _same_pads(sizes: tuple[Dim, ...], attrs: Mapping[str, Any]) -> tuple[int, ...] | None:
    """The pads of SAME_UPPER or SAME_LOWER; None where a size that matters is unknown."""
    totals = []
    for i, size in enumerate(sizes):
        stride = attrs["strides"][i]
        reach = (attrs["kernel_shape"][i] - 1) * attrs["dilations"][i]
        if isinstance(size, int) and stride > 0:
            totals.append(max((-(-size // stride) - 1) * stride + reach + 1 - size, 0))
        elif stride == 1:
            totals.append(reach)
        else:
            return None
    return _halved(totals, upper=attrs["auto_pad"] == "SAME_UPPER")


def _transposed_pads(sizes: tuple[Dim, ...], attrs: Mapping[str, Any]) -> tuple[int, ...] | None:
    """The pads with which a transposed convolution gives the size asked for."""
    wanted = attrs.get("output_shape")
    extra = attrs.get("output_padding", (0,) * len(sizes))
    totals = []
    for i, size in enumerate(sizes):
        if not isinstance(size, int):
            return None
        stride = attrs["strides"][i]
        reach = (attrs["kernel_shape"][i] - 1) * attrs["dilations"][i] + 1
        target = size * stride if wanted is None else wanted[i]
        totals.append(stride * (size - 1) + extra[i] + reach - target)
    if min(totals, default=0) < 0:
        return None
    return _halved(totals, upper=attrs.get("auto_pad") == "SAME_UPPER")


def _halved(totals: list[int], *, upper: bool) -> tuple[int, ...]:
    """Padding split between both ends; an odd one goes to the end if `upper`."""
    small, large = [total // 2 for total in totals], [total - total // 2 for total in totals]
    return (*small, *large) if upper else (*large, *small)


def window_dims(sizes: tuple[Dim, ...], attrs: Mapping[str, Any]) -> tuple[Dim, ...]:
    """Spatial result sizes of a window sliding over `sizes`, attributes resolved."""
    kernel, rank = attrs["kernel_shape"], len(attrs["kernel_shape"])
    strides = attrs.get("strides", (1,) * rank)
    dilations = attrs.get("dilations", (1,) * rank)
    if len(sizes) != rank or len(strides) != rank or len(dilations) != rank:
        raise Misfit(f"a window of rank {rank} over {len(sizes)} spatial axes")
    if attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        # SAME with an unknown size.
        return tuple(
            math.ceil(size / stride) if isinstance(size, int) else size if stride == 1 else None
            for size, stride in zip(sizes, strides, strict=True)
        )
    pads = attrs.get("pads", (0,) * 2 * rank)
    if len(pads) != 2 * rank:
        raise Misfit(f"{len(pads)} pads for {rank} spatial axes")
    ceil = bool(attrs.get("ceil_mode", 0))
    return tuple(
        _window_dim(sizes[i], kernel[i], strides[i], dilations[i], pads[i], pads[rank + i], ceil)
        for i in range(rank)
    )


def _window_dim(
    size: Dim, kernel: int, stride: int, dilation: int, begin: int, end: int, ceil: bool
) -> Dim:
    if stride < 1 or dilation < 1 or kernel < 1:
        raise Misfit("strides, dilations and kernel sizes must be positive")
    slack = begin + end - (kernel - 1) * dilation - 1
    if not isinstance(size, int):
        return size if stride == 1 and slack == -1 else None
    room = size + slack
    # With `ceil` a window may reach beyond the data, the first one too.
    count = -(-room // stride) + 1 if ceil else room // stride + 1 if room >= 0 else 0
    if count < 1:
        raise Misfit(f"a window reaching {size - room} does not fit {size} elements")
    if not ceil:
        return count
    # A window must start inside the data or its leading padding.
    return count - 1 if (count - 1) * stride >= size + begin else count


@rule("Conv", "ConvInteger", "QLinearConv")
def _conv(call: Call) -> TensorType:
    x, w = call.shape(0), call.shape(_WEIGHT[call.op])
    dtype = {"Conv": call.dtype(0), "ConvInteger": "int32"}.get(call.op) or call.dtype(7)
    if x is None or w is None or "kernel_shape" not in call.attrs:
        rank = len(x) if x is not None else len(w) if w is not None else None
        return TensorType(dtype, None if rank is None else unknown(rank))
    if len(x) != len(w) or len(x) < 3:
        raise Misfit("data and weight must have the same rank, 3 at least")
    group, channels = call.attrs["group"], x[1]
    if isinstance(channels, int) and isinstance(w[1], int) and channels != w[1] * group:
        raise Misfit(f"{channels} channels do not make {group} group(s) of {w[1]}")
    return TensorType(dtype, (x[0], w[0], *window_dims(x[2:], call.attrs)))


@rule("ConvTranspose")
def _conv_transpose(call: Call) -> TensorType | None:
    x, w, attrs = call.shape(0), call.shape(1), call.attrs
    if x is None or w is None or "kernel_shape" not in attrs or "auto_pad" in attrs:
        return None
    if "output_shape" in attrs:
        return None
    rank = len(attrs["kernel_shape"])
    if len(x) != len(w) or len(x) != rank + 2:
        raise Misfit("data, weight and kernel_shape differ in rank")
    extra = attrs.get("output_padding", (0,) * rank)
    dims: list[Dim] = []
    for i, size in enumerate(x[2:]):
        reach = (attrs["kernel_shape"][i] - 1) * attrs["dilations"][i] + 1
        padding = attrs["pads"][i] + attrs["pads"][rank + i]
        if isinstance(size, int):
            dims.append(attrs["strides"][i] * (size - 1) + extra[i] + reach - padding)
        else:
            dims.append(None)
    channels = w[1] * attrs["group"] if isinstance(w[1], int) else None
    return TensorType(call.dtype(0), (x[0], channels, *dims))


@rule(*POOLS)
def _pool(call: Call) -> tuple[TensorType, ...]:
    type = call.tensor(0)
    if type.shape is None:
        return (type, TensorType("int64", None))[: call.n_outputs]
    if len(type.shape) < 3:
        raise Misfit("the data must have rank 3 at least")
    shape = (*type.shape[:2], *window_dims(type.shape[2:], call.attrs))
    return (TensorType(type.dtype, shape), TensorType("int64", shape))[: call.n_outputs]


@rule("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def _global_pool(call: Call) -> TensorType:
    type = call.tensor(0)
    if type.shape is None:
        return type
    return TensorType(type.dtype, type.shape[:2] + (1,) * (type.rank - 2))


@rule("Resize")
def _resize(call: Call) -> TensorType | None:
    type, scales, sizes = call.tensor(0), call.array(2), call.ints(3)
    if type.shape is None or call.attrs.get("axes") is not None or call.version < 11:
        return None
    if call.attrs.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        return None
    if call.has(3):
        if sizes is not None and len(sizes) != type.rank:
            raise Misfit(f"{len(sizes)} sizes for rank {type.rank}")
        return TensorType(type.dtype, sizes if sizes is not None else unknown(type.rank))
    if scales is None:
        return TensorType(type.dtype, unknown(type.rank))
    if call.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        return None
    factors = scales.reshape(-1).tolist()
    if len(factors) != type.rank:
        raise Misfit(f"{len(factors)} scales for rank {type.rank}")
    dims = tuple(
        math.floor(dim * factor) if isinstance(dim, int) else dim if factor == 1 else None
        for dim, factor in zip(type.shape, factors, strict=True)
    )
    return TensorType(type.dtype, dims)


@rule("DepthToSpace", "SpaceToDepth")
def _depth_space(call: Call) -> TensorType:
    type, block = call.tensor(0), call.attrs["blocksize"]
    if type.shape is None:
        return TensorType(type.dtype, unknown(4))
    if type.rank != 4 or block < 1:
        raise Misfit("the data must have rank 4 and the block size be positive")
    area = block * block
    n, c, h, w = type.shape
    if call.op == "DepthToSpace":
        dims = (n, _divide(c, area), _times(h, block), _times(w, block))
    else:
        dims = (n, _times(c, area), _divide(h, block), _divide(w, block))
    return TensorType(type.dtype, dims)


def _times(dim: Dim, factor: int) -> Dim:
    return dim * factor if isinstance(dim, int) else dim if factor == 1 else None


def _divide(dim: Dim, factor: int) -> Dim:
    if isinstance(dim, int) and dim % factor:
        raise Misfit(f"{dim} is not a multiple of {factor}")
    return dim // factor if isinstance(dim, int) else dim if factor == 1 else None

"""Depthwise convolution on channel-blocked data: `whitebox.DepthwiseConv`.

In: X `[N, C/c, H, W, c]` (of integers too, which are widened as they are copied), W
`[C/c, KH, KW, c]`, optionally B `[C/c, 1, 1, c]`. Out: NCHWc `[N, C/c, OH, OW, c]`. It takes every
kernel, stride, padding and dilation; its loop nest is

    parallel n, channel block, band of rows:
        conv_pad:  padded copy of the input rows of the band, small enough to stay in cache
        for row of the band, column tile:
            acc[columns] = 0                                 registers
            for kh, kw:
                acc[i] += X[.., column i] * W[kh, kw]
            result = epilogue(acc)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from whitebox.kernels.cpu import conv_stages
from whitebox.kernels.cpu.conv_tiling import ceil_div
from whitebox.kernels.cpu.windows import Windows


@dataclass(frozen=True, slots=True)
class DepthwiseConv2d:
    """Parameters of one depthwise kernel: `columns` accumulators, bands of `band` output rows."""

    windows: Windows
    batch: int
    channel_blocks: int
    lanes: int
    threads: int
    columns: int
    band: int

    @classmethod
    def default(
        cls,
        x_shape: Sequence[int],
        w_shape: Sequence[int],
        strides: Sequence[int] = (1, 1),
        pads: Sequence[int] = (0, 0, 0, 0),
        dilations: Sequence[int] = (1, 1),
        *,
        lanes: int,
        threads: int,
    ) -> DepthwiseConv2d:
        """The template with tiles that fit the registers and bands that fit the cache."""
        windows = Windows.make(x_shape[2:4], w_shape[1:3], strides, pads, dilations)
        return cls(
            windows=windows,
            batch=x_shape[0],
            channel_blocks=x_shape[1],
            lanes=lanes,
            threads=threads,
            columns=windows.column_tile(lanes),
            band=windows.band(lanes, x_shape[0] * x_shape[1], threads),
        )

    def compute(self, x: Any, w: Any, bias: Any = None) -> Any:
        """Tensor expressions; blocks conv_pad, conv_acc, conv_view and conv_bias."""
        from tvm import te

        win = self.windows
        (sh, sw), (dh, dw) = win.strides, win.dilations
        if str(x.dtype) != "float32":
            integers = x
            x = te.compute(x.shape, lambda *i: integers(*i).astype("float32"), name="conv_widen")
        x = win.padded(x, self.columns, 0.0, name="conv_pad")
        oh, ow = win.out_size
        kh = te.reduce_axis((0, win.kernel[0]), "kh")
        kw = te.reduce_axis((0, win.kernel[1]), "kw")
        full = ceil_div(ow, self.columns) * self.columns
        acc = te.compute(
            (self.batch, self.channel_blocks, oh, full, self.lanes),
            lambda n, o, h, p, c: te.sum(
                x[n, o, h * sh + kh * dh, p * sw + kw * dw, c] * w[o, kh, kw, c], axis=[kh, kw]
            ),
            name="conv_acc",
        )
        shape = (self.batch, self.channel_blocks, oh, ow, self.lanes)
        result = te.compute(shape, lambda *i: acc(*i), name="conv_view")
        if bias is None:
            return result
        return te.compute(
            shape, lambda n, o, h, p, c: result[n, o, h, p, c] + bias[o, 0, 0, c], name="conv_bias"
        )

    def schedule(self, sch: Any) -> None:
        """Schedule a function made of `compute` and an elementwise epilogue."""
        result = conv_stages.inline_around(
            sch, ("conv_acc", "conv_pad"), ("conv_acc",), self.threads
        )
        conv_stages.schedule_windows(
            sch,
            result,
            accumulator=sch.get_sblock("conv_acc"),
            copy="conv_pad",
            band=self.band,
            columns=self.columns,
            cycles=self.batch * self.channel_blocks * self.windows.cycles,
            threads=self.threads,
        )

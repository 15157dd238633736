"""Convolution in ONNX's own layout: whatever the blocked templates do not take.

In: X `[N, C, D1..Dk]`, W `[OC, C/group, K1..Kk]`, optionally B `[OC]`. Out: `[N, OC, O1..Ok]`. It
takes any number of spatial dimensions, groups, strides, dilations and asymmetric padding, and
weights that another kernel computed. `plain_windows` has the loop nest; where rows are not whole
vectors, the sums are written to a wider buffer first and the epilogue is a loop of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from whitebox.kernels.cpu import conv_stages
from whitebox.kernels.cpu.plain_windows import PlainWindows


@dataclass(frozen=True, slots=True)
class PlainConv:
    """Parameters of one plain convolution kernel."""

    windows: PlainWindows

    @classmethod
    def default(
        cls,
        x_shape: Sequence[int],
        w_shape: Sequence[int],
        strides: Sequence[int],
        pads: Sequence[int],
        dilations: Sequence[int],
        group: int = 1,
        *,
        lanes: int,
        threads: int,
    ) -> PlainConv:
        """The template for ONNX's attributes; `pads` holds all beginnings, then all ends."""
        rank = len(x_shape) - 2
        out_size = tuple(
            (x_shape[2 + a] + pads[a] + pads[a + rank] - (w_shape[2 + a] - 1) * dilations[a] - 1)
            // strides[a]
            + 1
            for a in range(rank)
        )
        windows = PlainWindows.default(
            batch=x_shape[0],
            groups=group,
            in_channels=w_shape[1],
            channels=w_shape[0] // group,
            size=x_shape[2:],
            kernel=w_shape[2:],
            strides=strides,
            pads=pads[:rank],
            dilations=dilations,
            out_size=out_size,
            lanes=lanes,
            threads=threads,
        )
        return cls(windows)

    def compute(self, x: Any, w: Any, bias: Any = None) -> Any:
        """Tensor expressions; blocks conv_pad, conv_phases, conv_acc, conv_view, conv_bias."""
        from tvm import te

        win = self.windows
        acc = win.accumulate(x, lambda m, ic, taps: w[(m, ic, *taps)])
        shape = (win.batch, win.groups * win.channels, *win.out_size)
        result = te.compute(shape, lambda n, m, *at: win.view(acc, n, m, at), name="conv_view")
        if bias is None:
            return result
        return te.compute(shape, lambda n, m, *at: result[(n, m, *at)] + bias[m], name="conv_bias")

    def schedule(self, sch: Any) -> None:
        """Schedule a function made of `compute` and an elementwise epilogue."""
        own = ("conv_acc", "conv_pad", "conv_phases")
        result = conv_stages.inline_around(
            sch, own, staged=("conv_acc",), threads=self.windows.threads
        )
        if not self.windows.whole and self.windows.by_channel_tile:
            self.windows.schedule_channel_tiles(sch, result)
            return
        self.windows.schedule(sch, result, fused=self.windows.whole)
        if not self.windows.whole:
            conv_stages.write_rows(sch, result, self.windows.threads)

"""Transposed convolution in ONNX's own layout.

In: X `[N, C, D1..Dk]`, W `[C, OC/group, K1..Kk]`, optionally B `[OC]`. Out: `[N, OC, O1..Ok]`. It
takes any number of spatial dimensions, groups, strides, dilations, padding and output padding.

Output position o gets x[i] * w[kk] wherever i * stride + kk = o + pad. So the outputs of one phase,
(o + pad) mod stride, are an ordinary stride-1 convolution of X with every stride-th weight. All
phases are computed as extra output channels of one plain convolution, and interleaved as they are
written out. A kernel as wide as its stride becomes a 1x1 convolution.

    conv_weight: W regrouped as [OC x phases, C/group, taps of a phase], zero-filled
    conv_acc:    see `plain_windows`
    parallel n, channel, row:
        result = epilogue(interleaved sums)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from whitebox.kernels.cpu import conv_stages
from whitebox.kernels.cpu.conv_tiling import ceil_div
from whitebox.kernels.cpu.plain_windows import PlainWindows


@dataclass(frozen=True, slots=True)
class PlainConvTranspose:
    """Parameters of one kernel; `windows` is the stride-1 convolution of all phases."""

    windows: PlainWindows
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    out_size: tuple[int, ...]

    @classmethod
    def default(
        cls,
        x_shape: Sequence[int],
        w_shape: Sequence[int],
        out_shape: Sequence[int],
        strides: Sequence[int],
        pads: Sequence[int],
        dilations: Sequence[int],
        group: int = 1,
        *,
        lanes: int,
        threads: int,
    ) -> PlainConvTranspose:
        """The template for ONNX's attributes; `out_shape`, as declared, settles output padding."""
        rank = len(x_shape) - 2
        out_size = tuple(out_shape[2:])
        spans = [(w_shape[2 + a] - 1) * dilations[a] + 1 for a in range(rank)]
        taps = [ceil_div(spans[a], strides[a]) for a in range(rank)]
        windows = PlainWindows.default(
            batch=x_shape[0],
            groups=group,
            in_channels=x_shape[1] // group,
            channels=w_shape[1] * prod(strides),
            size=x_shape[2:],
            kernel=taps,
            strides=(1,) * rank,
            pads=[count - 1 for count in taps],
            dilations=(1,) * rank,
            out_size=[(out_size[a] - 1 + pads[a]) // strides[a] + 1 for a in range(rank)],
            lanes=lanes,
            threads=threads,
        )
        return cls(
            windows,
            tuple(w_shape[2:]),
            tuple(strides),
            tuple(pads[:rank]),
            tuple(dilations),
            out_size,
        )

    def compute(self, x: Any, w: Any, bias: Any = None) -> Any:
        """Tensor expressions; blocks conv_weight, conv_pad, conv_acc, conv_view, conv_bias."""
        from tvm import te

        win = self.windows
        phases = prod(self.strides)
        weights = self._phase_weights(w)
        acc = win.accumulate(x, lambda m, ic, taps: weights[(m, ic, *taps)])
        shape = (win.batch, win.groups * win.channels // phases, *self.out_size)

        def view(n: Any, m: Any, *at: Any) -> Any:
            phase: Any = 0
            positions = []
            for o, p, s in zip(at, self.pads, self.strides, strict=True):
                phase = phase * s + (o + p) % s
                positions.append((o + p) // s)
            return win.view(acc, n, m * phases + phase, positions)

        result = te.compute(shape, view, name="conv_view")
        if bias is None:
            return result
        return te.compute(shape, lambda n, m, *at: result[(n, m, *at)] + bias[m], name="conv_bias")

    def _phase_weights(self, w: Any) -> Any:
        """[groups x channels x phases, C/group, taps]; the taps in the order X is read."""
        from tvm import te, tirx

        win = self.windows
        per_group = win.channels // prod(self.strides)

        def body(m: Any, ic: Any, *taps: Any) -> Any:
            channel, phase = m // prod(self.strides), m % prod(self.strides)
            at, known = list[Any](), list[Any]()
            for a in reversed(range(len(taps))):
                stride, spacing = self.strides[a], self.dilations[a]
                # The last tap reads the input position of the phase itself, the first the oldest.
                k = phase % stride + (win.kernel[a] - 1 - taps[a]) * stride
                phase = phase // stride
                at.insert(0, k // spacing)
                known.append(tirx.all(k % spacing == 0, k < (self.kernel[a] - 1) * spacing + 1))
            source = (channel // per_group) * win.in_channels + ic
            return te.if_then_else(tirx.all(*known), w[(source, channel % per_group, *at)], 0.0)

        shape = (win.groups * win.channels, win.in_channels, *win.kernel)
        return te.compute(shape, body, name="conv_weight")

    def schedule(self, sch: Any) -> None:
        """Schedule a function made of `compute` and an elementwise epilogue."""
        own = ("conv_acc", "conv_pad", "conv_phases", "conv_weight")
        result = conv_stages.inline_around(
            sch, own, staged=("conv_acc", "conv_weight"), threads=self.windows.threads
        )
        self.windows.schedule(sch, result, fused=False)
        conv_stages.write_rows(sch, result, self.windows.threads, self.strides[-1])

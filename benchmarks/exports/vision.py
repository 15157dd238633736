"""Image models: transformers' architectures where it has them, torch.nn otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from benchmarks.exports.torch_export import exported


def _from_images(module: nn.Module, size: int = 224) -> bytes:
    images = torch.rand((4, 3, size, size), generator=torch.Generator().manual_seed(1)) * 2 - 1
    return exported(module, {"x": images}, {0: "N"})


class _Logits(nn.Module):
    """A transformers classifier: pixels to scores."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(pixel_values=x).logits


def resnet50() -> bytes:
    """ResNet-50 v1.5."""
    from transformers import ResNetConfig, ResNetForImageClassification

    return _from_images(_Logits(ResNetForImageClassification(ResNetConfig(num_labels=1000))))


def mobilenet_v2() -> bytes:
    """MobileNetV2 1.0, with TensorFlow's padding, as the published weights want it."""
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    config = MobileNetV2Config(num_labels=1001)
    return _from_images(_Logits(MobileNetV2ForImageClassification(config)))


def efficientnet_b0() -> bytes:
    """EfficientNet-B0: SiLU, squeeze and excitation, 5×5 depthwise."""
    from transformers import EfficientNetConfig, EfficientNetForImageClassification

    config = EfficientNetConfig(
        image_size=224,
        width_coefficient=1.0,
        depth_coefficient=1.0,
        hidden_dim=1280,
        num_labels=1000,
    )
    model = EfficientNetForImageClassification(config)
    # Its own pool has a window of 1280×1280 over 7×7 values, which not every runtime takes.
    model.efficientnet.pooler = nn.AdaptiveAvgPool2d(1)
    return _from_images(_Logits(model))


def convnext_tiny() -> bytes:
    """ConvNeXt-tiny: 7×7 depthwise, layer normalisation over channels, GELU."""
    from transformers import ConvNextConfig, ConvNextForImageClassification

    return _from_images(_Logits(ConvNextForImageClassification(ConvNextConfig(num_labels=1000))))


def vit_base() -> bytes:
    """ViT-base, patches of 16."""
    from transformers import ViTConfig, ViTForImageClassification

    return _from_images(_Logits(ViTForImageClassification(ViTConfig(num_labels=1000))))


class _Excite(nn.Module):
    """Squeeze and excitation: channels weighted by what the whole image has of them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = _of_eights(channels / 4)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, inner, 1),
            nn.ReLU(),
            nn.Conv2d(inner, channels, 1),
            nn.Hardsigmoid(),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gate(x)


def _of_eights(channels: float) -> int:
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def _conv(
    inputs: int,
    outputs: int,
    kernel: int = 1,
    stride: int = 1,
    group: int = 1,
    act: nn.Module | None = None,
) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=group, bias=False)
    return [conv, nn.BatchNorm2d(outputs), *([act] if act is not None else [])]


class _Inverted(nn.Module):
    """MobileNetV3's block: widen, depthwise, excite, narrow."""

    def __init__(
        self,
        inputs: int,
        kernel: int,
        wide: int,
        outputs: int,
        excite: bool,
        hard: bool,
        stride: int,
    ) -> None:
        super().__init__()
        act = nn.Hardswish() if hard else nn.ReLU()
        self.body = nn.Sequential(
            *(_conv(inputs, wide, act=act) if wide != inputs else []),
            *_conv(wide, wide, kernel, stride, wide, act=act),
            *([_Excite(wide)] if excite else []),
            *_conv(wide, outputs),
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x) if self.residual else self.body(x)


# kernel, wide, outputs, excite, hard swish, stride (Howard et al., 2019, table 1)
_V3_LARGE = (
    (3, 16, 16, False, False, 1), (3, 64, 24, False, False, 2), (3, 72, 24, False, False, 1),
    (5, 72, 40, True, False, 2), (5, 120, 40, True, False, 1), (5, 120, 40, True, False, 1),
    (3, 240, 80, False, True, 2), (3, 200, 80, False, True, 1), (3, 184, 80, False, True, 1),
    (3, 184, 80, False, True, 1), (3, 480, 112, True, True, 1), (3, 672, 112, True, True, 1),
    (5, 672, 160, True, True, 2), (5, 960, 160, True, True, 1), (5, 960, 160, True, True, 1),
)  # fmt: skip


def mobilenet_v3() -> bytes:
    """MobileNetV3-large: HardSwish, HardSigmoid gates."""
    parts: list[nn.Module] = _conv(3, 16, 3, 2, act=nn.Hardswish())
    channels = 16
    for kernel, wide, outputs, excite, hard, stride in _V3_LARGE:
        parts.append(_Inverted(channels, kernel, wide, outputs, excite, hard, stride))
        channels = outputs
    parts += _conv(channels, 960, act=nn.Hardswish())
    parts += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    parts += [nn.Linear(960, 1280), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(1280, 1000)]
    return _from_images(nn.Sequential(*parts))


def _double(inputs: int, outputs: int) -> nn.Sequential:
    first = _conv(inputs, outputs, 3, act=nn.ReLU())
    return nn.Sequential(*first, *_conv(outputs, outputs, 3, act=nn.ReLU()))


class _UNet(nn.Module):
    """Ronneberger et al.'s U-Net, half as wide: four steps down, four up, joined by Concat."""

    def __init__(self, classes: int = 2, width: int = 32) -> None:
        super().__init__()
        widths = [width << level for level in range(5)]
        self.down = nn.ModuleList(
            _double(inputs, outputs) for inputs, outputs in zip([3, *widths], widths, strict=False)
        )
        self.pool = nn.MaxPool2d(2)
        falling = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.up = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, stride=2) for a, b in falling)
        self.join = nn.ModuleList(_double(2 * b, b) for _, b in falling)
        self.last = nn.Conv2d(width, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept: list[torch.Tensor] = []
        for level, block in enumerate(self.down):
            x = block(self.pool(x) if level else x)
            kept.append(x)
        for up, join, skip in zip(self.up, self.join, reversed(kept[:-1]), strict=True):
            x = join(torch.cat([skip, up(x)], dim=1))
        return self.last(x)


def unet() -> bytes:
    """A U-Net for two classes at 256×256."""
    return _from_images(_UNet(), size=256)


RECIPES: Mapping[str, Callable[[], bytes]] = {
    "resnet50": resnet50,
    "mobilenet-v2": mobilenet_v2,
    "mobilenet-v3": mobilenet_v3,
    "efficientnet-b0": efficientnet_b0,
    "convnext-tiny": convnext_tiny,
    "vit-base": vit_base,
    "unet": unet,
}

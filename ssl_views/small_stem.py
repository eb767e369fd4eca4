"""ResNets for small images: a 3x3 stem and no max-pool, registered with timm.

A stock ResNet shrinks a 32 px image 4 times before its first stage and to one pixel before its
last. These do not. timm alone cannot express the stem, so an encoder of theirs loads only where
`ssl_views` was imported; `upscale` of `SSLViewsConfig` is the way without.
"""

from collections.abc import Sequence
from typing import Any

from timm.layers import get_norm_layer
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, Bottleneck, ResNet, downsample_avg, downsample_conv
from torch import nn

_STOCK_WIDTH = 64  # of timm's plain stem, whatever its stem_width
_STOCK_REDUCTION = 4  # of timm's stem with its max-pool
_OUTPUT_STRIDES = (8, 16, 32)  # that timm's ResNet knows


def _cfg(**kwargs: Any) -> dict[str, Any]:
    """Return what timm knows of an architecture without weights; mean and std are ImageNet's."""
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 32, 32),
        "pool_size": (4, 4),
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": "conv1",
        "classifier": "fc",
        "paper_ids": "arXiv:2312.10725",
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {f"ssl_views_resnet{depth}.untrained": _cfg() for depth in (18, 34, 50)}
)


class SmallStemResNet(ResNet):
    """timm's ResNet with a 3x3 convolution for the stem and no max-pool.

    An image (N, in_chans, H, W) gives maps of 1, 1, 1/2, 1/4 and 1/8 of its sides for the stem and
    the four stages, times 1 / stem_stride.

    Args:
        block: `BasicBlock` or `Bottleneck` of timm.
        layers: blocks of each stage.
        stem_stride: of the stem, 1 or 2.
        stem_width: channels of the stem.
        in_chans: channels of the image.
        output_stride: most by which the network shrinks an image; later stages are dilated.
        kwargs: other arguments of timm's ResNet, but `stem_type` and `replace_stem_pool`.

    Raises:
        ValueError: if an argument is out of range, or asks for another stem.

    Source:
        arXiv 2312.10725, backbones of all experiments; github.com/kumarkrishna/fastssl 96dfa37.

    Differs from source:
        The ReLU after the stem's batch norm is there, which the authors' code lacks. Initialized
        as in timm: normal with fan out, and the last batch norm of each block starts at zero.

    Relations:
        `timm.create_model("resnet18")` with views upscaled 4 times costs the same, and loads
        without this package.

    Example:
        >>> import timm
        >>> model = timm.create_model("ssl_views_resnet18", features_only=True)
        >>> model.feature_info.reduction()
        [1, 1, 2, 4, 8]
        >>> [tuple(x.shape[1:]) for x in model(torch.zeros(2, 3, 32, 32))]
        [(64, 32, 32), (64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]
    """

    def __init__(
        self,
        block: type[nn.Module],
        layers: Sequence[int],
        stem_stride: int = 1,
        stem_width: int = 64,
        in_chans: int = 3,
        output_stride: int = 32,
        **kwargs: Any,
    ) -> None:
        _check(stem_stride, stem_width, output_stride, kwargs)
        # timm counts from the reduction of its own stem.
        dilated_from = min(_OUTPUT_STRIDES[-1], output_stride * _STOCK_REDUCTION // stem_stride)
        super().__init__(block, layers, in_chans=in_chans, output_stride=dilated_from, **kwargs)
        norm_layer = get_norm_layer(kwargs.get("norm_layer") or nn.BatchNorm2d)
        factory: dict[str, Any] = {"device": kwargs.get("device"), "dtype": kwargs.get("dtype")}
        self.conv1 = nn.Conv2d(
            in_chans, stem_width, 3, stride=stem_stride, padding=1, bias=False, **factory
        )
        _initialize(self.conv1)
        self.maxpool = nn.Identity()
        if stem_width != _STOCK_WIDTH:
            self.bn1 = norm_layer(stem_width, **factory)
            self._widen_first_block(stem_width, norm_layer, kwargs.get("avg_down"), factory)
        for info in self.feature_info:
            of_stem = info["module"] == "act1"
            info["reduction"] = (
                stem_stride if of_stem else info["reduction"] * stem_stride // _STOCK_REDUCTION
            )
        self.feature_info[0]["num_chs"] = stem_width

    def _widen_first_block(
        self, width: int, norm_layer: Any, avg_down: bool | None, factory: dict[str, Any]
    ) -> None:
        """Make the first block take `width` channels, and add to them what it makes of them."""
        first, stock = self.layer1[0], self.layer1[0].conv1
        first.conv1 = nn.Conv2d(
            width,
            stock.out_channels,
            stock.kernel_size,
            stride=stock.stride,
            padding=stock.padding,
            dilation=stock.dilation,
            bias=False,
            **factory,
        )
        _initialize(first.conv1)
        planes = self.feature_info[1]["num_chs"]
        first.downsample = None
        if width != planes:
            make = downsample_avg if avg_down else downsample_conv
            first.downsample = make(width, planes, kernel_size=1, norm_layer=norm_layer, **factory)
            for module in first.downsample.modules():
                if isinstance(module, nn.Conv2d):
                    _initialize(module)


def _check(stem_stride: int, stem_width: int, output_stride: int, others: dict[str, Any]) -> None:
    if stem_stride not in (1, 2):
        raise ValueError(
            f"stem_stride must be 1 or 2, for the stem is 3 pixels wide; got {stem_stride}. For "
            "larger images take a stock ResNet of timm."
        )
    if stem_width < 1:
        raise ValueError(f"stem_width must be at least 1; got {stem_width}. 64 is the usual one.")
    strides = [stride * stem_stride // _STOCK_REDUCTION for stride in _OUTPUT_STRIDES]
    if output_stride not in strides and output_stride < strides[-1]:
        raise ValueError(
            f"output_stride must be one of {strides} with stem_stride {stem_stride}, or more; got "
            f"{output_stride}. Leave it out for no dilation."
        )
    for name in ("stem_type", "replace_stem_pool"):
        if others.get(name):
            raise ValueError(
                f"{name} must be left out, for the stem is one 3x3 convolution and has no pool; "
                f"got {others[name]!r}. Stock ResNets of timm take it."
            )


def _initialize(conv: nn.Conv2d) -> None:
    """As timm's ResNet initializes every convolution."""
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")


def _create(variant: str, pretrained: bool, **kwargs: Any) -> Any:
    return build_model_with_cfg(SmallStemResNet, variant, pretrained, **kwargs)


def ssl_views_resnet18(pretrained: bool = False, **kwargs: Any) -> Any:
    """Build a ResNet-18 with a small stem; arguments are those of `SmallStemResNet`."""
    args = {"block": BasicBlock, "layers": (2, 2, 2, 2), **kwargs}
    return _create("ssl_views_resnet18", pretrained, **args)


def ssl_views_resnet34(pretrained: bool = False, **kwargs: Any) -> Any:
    """Build a ResNet-34 with a small stem; arguments are those of `SmallStemResNet`."""
    args = {"block": BasicBlock, "layers": (3, 4, 6, 3), **kwargs}
    return _create("ssl_views_resnet34", pretrained, **args)


def ssl_views_resnet50(pretrained: bool = False, **kwargs: Any) -> Any:
    """Build a ResNet-50 with a small stem; arguments are those of `SmallStemResNet`."""
    args = {"block": Bottleneck, "layers": (3, 4, 6, 3), **kwargs}
    return _create("ssl_views_resnet50", pretrained, **args)


for _build in (ssl_views_resnet18, ssl_views_resnet34, ssl_views_resnet50):
    register_model(_build)

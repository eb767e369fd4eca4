"""Stands for a package that registers an architecture of its own with timm."""

import torch
from timm.models import register_model
from torch import nn


class TinyNet(nn.Module):
    """What timm's models have that ssl_views uses."""

    def __init__(self, in_chans=3, num_classes=1000, width=8):
        super().__init__()
        self.num_features = width
        self.pretrained_cfg = {}
        self.conv = nn.Conv2d(in_chans, width, 3, stride=2)
        self.norm = nn.BatchNorm2d(width)
        self.register_buffer("limit", torch.tensor(torch.inf))  # of activations: none
        self.head = nn.Linear(width, num_classes) if num_classes else nn.Identity()

    def forward_features(self, x):
        return torch.relu(self.norm(self.conv(x))).clamp(max=self.limit)

    def forward_head(self, x):
        return self.head(x.mean((2, 3)))

    def forward(self, x):
        return self.forward_head(self.forward_features(x))


@register_model
def my_tiny_net(pretrained=False, pretrained_cfg=None, pretrained_cfg_overlay=None, cache_dir=None,
                **kwargs):  # fmt: skip
    return TinyNet(**kwargs)

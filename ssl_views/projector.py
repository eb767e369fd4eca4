"""The projector between representations and embeddings."""

from collections.abc import Sequence
from itertools import pairwise

from torch import nn


class Projector(nn.Sequential):
    """Linear-BatchNorm-ReLU blocks, then one Linear; maps (N, input_dim) to (N, output_dim).

    Hidden layers have no bias (the norm has one); the last layer has. Initialisation is torch's
    own.

    Args:
        input_dim: width of the representation.
        output_dim: width D of the embedding.
        hidden_dims: widths of the hidden layers; empty gives one Linear.

    Source:
        arXiv 2312.10725, section 4 and kumarkrishna/fastssl@96dfa37: one hidden layer as wide as
        the output.

    Example:
        >>> Projector(512, 64)(torch.randn(8, 512)).shape
        torch.Size([8, 64])
    """

    def __init__(
        self, input_dim: int, output_dim: int, hidden_dims: Sequence[int] | None = None
    ) -> None:
        widths = [input_dim, *([output_dim] if hidden_dims is None else hidden_dims)]
        if min(*widths, output_dim) < 1:
            raise ValueError(
                f"projector widths must be at least 1; got {[*widths, output_dim]}. "
                "Set projector_dim and projector_hidden_dims to positive numbers."
            )
        layers: list[nn.Module] = []
        for width, next_width in pairwise(widths):
            layers += [
                nn.Linear(width, next_width, bias=False),
                nn.BatchNorm1d(next_width),
                nn.ReLU(inplace=True),
            ]
        super().__init__(*layers, nn.Linear(widths[-1], output_dim))

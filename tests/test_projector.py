"""The projector."""

import pytest
import torch

from ssl_views import Projector


def test_projector_starts_as_torch_does():
    torch.manual_seed(0)
    ours = Projector(8, 4, [6])
    torch.manual_seed(0)
    layers = [torch.nn.Linear(8, 6, bias=False), torch.nn.Linear(6, 4)]
    assert torch.equal(ours[0].weight, layers[0].weight)
    assert torch.equal(ours[3].weight, layers[1].weight)


@pytest.mark.parametrize("widths", [(0, 4, None), (8, 0, None), (8, 4, [0])])
def test_wrong_widths_get_a_sentence(widths):
    with pytest.raises(ValueError, match=r"widths must be at least 1; got .*0"):
        Projector(*widths)

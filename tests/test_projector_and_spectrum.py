"""Small parts: projector and effective rank."""

import numpy as np
import pytest
import torch

from ssl_views import Projector, effective_rank


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


def test_effective_rank_of_known_spectra():
    orthogonal = torch.linalg.qr(torch.randn(50, 8, dtype=torch.float64))[0]
    assert effective_rank(orthogonal) == pytest.approx(8, abs=1e-3)
    assert effective_rank(orthogonal[:, :1].expand(50, 8)) == pytest.approx(1, abs=1e-3)
    values = np.array([4.0, 2.0, 1.0, 1.0])
    shares = values / values.sum()
    scaled = orthogonal[:, :4] * torch.from_numpy(values)
    assert effective_rank(scaled) == pytest.approx(
        np.exp(-(shares * np.log(shares)).sum()), rel=1e-4
    )
    assert effective_rank(torch.zeros(5, 3)) < 2


def test_wrong_features_get_a_sentence():
    with pytest.raises(ValueError, match=r"shape \(N, D\) with N >= 1; got \(2, 3, 4\)"):
        effective_rank(torch.zeros(2, 3, 4))

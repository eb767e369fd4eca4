"""Micro-batches give the gradient of one graph over all of them, with the same random numbers."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from ssl_views import BarlowTwinsLoss, KernelLoss, VICRegLoss
from ssl_views.micro_batches import loss_by_micro_batches


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 8)
        )

    def forward(self, pixel_values, return_loss=True, local_pixel_values=None):
        parts = [x for x in (pixel_values, local_pixel_values) if x is not None]
        rows = torch.cat(parts, dim=1).transpose(0, 1)
        z = self.layers(rows.flatten(0, 1)).unflatten(0, rows.shape[:2])
        return SimpleNamespace(embeddings=z)


@pytest.mark.parametrize("loss", [BarlowTwinsLoss(0.1), VICRegLoss(), KernelLoss(0.1)])
@pytest.mark.parametrize("micro_batch_size", [4, 5, 100])
@pytest.mark.parametrize("names", [["pixel_values"], ["pixel_values", "local_pixel_values"]])
def test_gradient_is_that_of_one_graph(loss, micro_batch_size, names):
    views = {name: torch.randn(10, 3, 6, dtype=torch.float64) for name in names}
    found, expected = Model().double(), Model().double()
    expected.load_state_dict(found.state_dict())
    torch.manual_seed(1)
    parts = []
    for start in range(0, 10, micro_batch_size):
        some = {name: x[start : start + micro_batch_size] for name, x in views.items()}
        parts.append(expected(**some).embeddings)
    total, terms = loss(torch.cat(parts, dim=1))
    total.backward()
    after = torch.get_rng_state()
    torch.manual_seed(1)
    result = loss_by_micro_batches(Accelerator(cpu=True), found, loss, views, micro_batch_size)
    torch.testing.assert_close(result.total, total.detach(), atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(result.terms, terms, atol=1e-12, rtol=1e-12)
    for ours, reference in zip(found.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, reference.grad, atol=1e-12, rtol=1e-12)
    for ours, reference in zip(found.buffers(), expected.buffers(), strict=True):
        assert torch.equal(ours, reference)
    assert torch.equal(torch.get_rng_state(), after)


class Recording(Accelerator):
    """Scales the loss, as for float16, and counts passes without synchronization."""

    unsynchronized = 0

    def backward(self, loss, **kwargs):
        (8 * loss).backward()

    @contextmanager
    def no_sync(self, model):
        self.unsynchronized += 1
        yield


def test_gradients_are_scaled_and_synchronized_once():
    pixel_values, loss = torch.randn(9, 3, 6, dtype=torch.float64), KernelLoss(0.1)
    plain, scaled = Model().double(), Model().double()
    scaled.load_state_dict(plain.state_dict())
    torch.manual_seed(1)
    loss_by_micro_batches(Accelerator(cpu=True), plain, loss, {"pixel_values": pixel_values}, 3)
    accelerator = Recording(cpu=True)
    torch.manual_seed(1)
    loss_by_micro_batches(accelerator, scaled, loss, {"pixel_values": pixel_values}, 3)
    assert accelerator.unsynchronized == 2
    for a, b in zip(scaled.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, 8 * b.grad)


def test_averaging_micro_batches_instead_is_another_gradient():
    """What gradient accumulation would give, so that the test above can fail."""
    pixel_values = torch.randn(12, 3, 6, dtype=torch.float64)
    model = Model().double().eval()
    loss = BarlowTwinsLoss(0.1)

    def gradient(total):
        return torch.cat([g.flatten() for g in torch.autograd.grad(total, model.parameters())])

    whole = gradient(loss(model(pixel_values).embeddings).total)
    mean = sum(gradient(loss(model(p).embeddings).total) for p in pixel_values.split(4)) / 3
    assert (mean - whole).norm() > 0.1 * whole.norm()

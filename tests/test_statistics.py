"""Moments, parts of the dimensions, and gradients that are known."""

import pytest
import torch
from loss_cases import each_loss

from ssl_views import barlow_twins_loss, statistics
from ssl_views.statistics import GlobalBatch, global_batch, sum_over_processes, with_gradient


def test_one_process_is_the_global_batch():
    z = torch.randn(3, 5, 4, dtype=torch.float64) + torch.arange(3)[:, None, None]
    batch = global_batch(z, moment_elements=0, wanted=True)
    assert batch.complete
    assert (batch.num_images, batch.num_processes, batch.own) == (5, 1, slice(0, 5))
    every = slice(0, 4)
    torch.testing.assert_close(batch.shifted(every), z - z.mean(dim=(0, 1)))
    centered = batch.center_(batch.shifted(every), every)
    torch.testing.assert_close(centered, z - z.mean(dim=1, keepdim=True))
    pooled = batch.center_(batch.shifted(every), every, pooled=True)
    torch.testing.assert_close(pooled, z - z.mean(dim=(0, 1)))
    assert batch.sum(z)[0] is z
    assert sum_over_processes(z) is z
    assert batch.own_gradient(z) is z


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_becomes_float32(dtype):
    assert global_batch(torch.zeros(2, 4, 3, dtype=dtype), 0, True).rows.dtype == torch.float32


@pytest.mark.parametrize("shape", [(2, 256, 8192), (4, 1000, 700), (2, 3, 5)])
def test_parts_cover_every_dimension_once(shape):
    batch = global_batch(torch.zeros(1).expand(shape), 0, True)
    covered = [i for part in batch.parts() for i in range(part.start, part.stop)]
    assert covered == list(range(shape[2]))
    assert batch.parts(whole=True) == [slice(0, shape[2])]


def cut_by_seven(batch, whole=False, least=64):
    dim = batch.rows.shape[2]
    return [slice(0, dim)] if whole else [slice(i, min(i + 7, dim)) for i in range(0, dim, 7)]


@each_loss
def test_parts_change_nothing(loss, monkeypatch):
    z = torch.randn(3, 6, 50, dtype=torch.float64, requires_grad=True)
    whole = loss(z).total
    (gradient,) = torch.autograd.grad(whole, z)
    monkeypatch.setattr(statistics.GlobalBatch, "parts", cut_by_seven)
    cut = loss(z).total
    torch.testing.assert_close(cut, whole, atol=0, rtol=1e-12)
    torch.testing.assert_close(torch.autograd.grad(cut, z)[0], gradient, atol=1e-14, rtol=1e-11)


def test_a_known_gradient_is_scaled_and_cast():
    z = torch.zeros(2, 3, dtype=torch.float16, requires_grad=True)
    tiny = torch.full((2, 3), 1e-8)  # below float16, until the loss is scaled
    total = with_gradient(z, torch.tensor(3.0), tiny)
    assert total.item() == 3
    (total * 65536).backward()
    torch.testing.assert_close(z.grad, (tiny * 65536).half())
    assert not with_gradient(z, torch.tensor(3.0), None).requires_grad


def test_a_second_backward_pass_adds_the_same_gradient():
    z = torch.zeros(2, 3, requires_grad=True)
    gradient = torch.arange(6.0).view(2, 3)
    total = with_gradient(z, torch.tensor(3.0), gradient.clone())
    for times in (1, 2):
        total.backward(retain_graph=True)
        assert torch.equal(z.grad, times * gradient)
    z.grad.zero_()  # what is the user's is not ours
    (total * 3).backward()
    assert torch.equal(z.grad, 3 * gradient)


def test_a_second_derivative_is_refused():
    z = torch.randn(2, 8, 4, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"differentiated once; got create_graph=True.*leave"):
        torch.autograd.grad(barlow_twins_loss(z).total, z, create_graph=True)


def test_symmetric_matrices_travel_as_triangles(monkeypatch):
    """With two processes that hold the same, the sum is twice what each has."""
    sent = []

    def double(tensor):
        sent.append(tensor.numel())
        tensor *= 2

    monkeypatch.setattr(statistics.dist, "all_reduce", double)
    rows = torch.randn(2, 7, 4)
    batch = GlobalBatch(rows, 14, slice(0, 7), 2, wanted=True, known=rows.mean(dim=1).double())
    matrices, extra = batch.sum_symmetric(torch.bmm(rows.mT, rows), torch.ones(()))
    torch.testing.assert_close(matrices, 2 * torch.bmm(rows.mT, rows))
    assert extra == 2
    assert sent == [2 * 10 + 1]

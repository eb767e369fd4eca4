"""Loss and gradient do not depend on how the batch is cut over processes (real collectives)."""

import functools

import pytest
import torch
import torch.distributed as dist
from loss_cases import LOSSES
from processes import in_processes
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ssl_views import barlow_twins_loss, kernel_loss, statistics
from ssl_views.batchnorm import synchronize_batchnorm

NUM_IMAGES = 12
SHARES = {1: [12], 2: [5, 7], 3: [2, 7, 3], 4: [4, 0, 5, 3]}  # uneven; one process has nothing
DIMS = (6, 40)  # second moments travel; the embeddings travel and Gram matrices are smaller
CASES = [(name, views, dim) for name in LOSSES for views in (2, 4, 8) for dim in DIMS]


def inputs(num_views):
    """Images that differ strongly from process to process."""
    g = torch.Generator().manual_seed(1)
    scale = torch.linspace(0.2, 3, NUM_IMAGES, dtype=torch.float64)[:, None]
    noise = torch.randn(num_views, NUM_IMAGES, 5, generator=g, dtype=torch.float64)
    return noise * scale + scale


def linear(dim):
    torch.manual_seed(2)
    return nn.Linear(5, dim, dtype=torch.float64)


def loss_and_gradient(model, views, loss):
    total = loss(model(views)).total
    total.backward()
    parameters = getattr(model, "module", model)
    return total.detach(), torch.cat([p.grad.flatten() for p in parameters.parameters()])


class Traffic:
    """Counts the numbers that a process sends around a ring, in units of (P - 1) / P."""

    def __init__(self, monkeypatch):
        self.sent = self.collectives = 0
        for name, weight in (("all_reduce", 2), ("all_gather_into_tensor", 1)):
            monkeypatch.setattr(
                dist, name, functools.partial(self._count, getattr(dist, name), weight)
            )

    def _count(self, collective, weight, tensor, *args):
        self.sent += weight * tensor.numel()
        self.collectives += 1
        return collective(tensor, *args)


def run(rank, world_size):
    results = {}
    for case in CASES:
        name, num_views, dim = case
        model = linear(dim)
        if world_size > 1:
            model = DistributedDataParallel(model)
        local = inputs(num_views).split(SHARES[world_size], dim=1)[rank]
        results[case] = loss_and_gradient(model, local, LOSSES[name])
    return results


@functools.cache
def reference(case):
    name, num_views, dim = case
    return loss_and_gradient(linear(dim), inputs(num_views), LOSSES[name])


@pytest.mark.parametrize(
    "world_size", [n if n == 2 else pytest.param(n, marks=pytest.mark.slow) for n in SHARES]
)
def test_processes_give_the_loss_and_gradient_of_one(world_size, tmp_path):
    for rank in in_processes(run, world_size, tmp_path):
        for case in CASES:
            torch.testing.assert_close(rank[case], reference(case), atol=1e-12, rtol=1e-12)


def traffic(rank, world_size):
    results = {}
    for case in CASES:
        name, num_views, dim = case
        z = linear(dim)(inputs(num_views).split(SHARES[world_size], dim=1)[rank])
        with pytest.MonkeyPatch.context() as patch:
            counter = Traffic(patch)
            total = LOSSES[name](z.detach().requires_grad_()).total
            forward = counter.sent
            total.backward()
            results[case] = forward, counter.sent - forward, counter.collectives
    return results


def moments_and_sums(name, views, dim):
    """Numbers of second moments, and of other sums of each form; docs/losses.md says the same."""
    pairs, triangle = views * (views - 1) // 2, dim * (dim + 1) // 2
    if name == "barlow_twins" and views > 2:
        return views * dim**2, 2 * views * dim
    return {
        "barlow_twins": (dim**2, views * dim),
        "barlow_twins_all_pairs": (pairs * dim**2, views * dim),
        "barlow_twins_mean": (triangle, 3 * views * dim),
        "vicreg": (views * triangle, 1),
        "kernel": (triangle, 1),
    }[name]


@pytest.mark.slow
def test_traffic_is_that_of_the_second_moments_at_most(tmp_path):
    world_size = 3
    for rank in in_processes(traffic, world_size, tmp_path):
        kinds = set()
        for case in CASES:
            name, views, dim = case
            moments, sums = moments_and_sums(*case)
            means = views * dim + world_size + 1
            gathered = world_size * max(SHARES[world_size]) * views * dim
            kinds.add(gathered < 2 * moments)
            moved = gathered if gathered < 2 * moments else 2 * (moments + sums)
            forward, backward, collectives = rank[case]
            assert (forward, backward) == (2 * means + moved, 0), case
            assert collectives <= (2 if gathered < 2 * moments else 4), case
            if name != "barlow_twins_mean":  # what another recipe for exact statistics needs
                pairs = views * (views - 1) // 2 * dim**2 + 2 * views * dim
                packed = views * dim * (dim + 1) // 2 + views * dim
                bound = packed if name in ("vicreg", "kernel") else pairs
                assert forward <= 2 * (bound + world_size + 2), case
        assert kinds == {True, False}


def odd_processes(rank, world_size):
    """No image anywhere; then a gradient on one process only."""
    with pytest.raises(ValueError, match="at least 2 images over all processes; got 0"):
        kernel_loss(torch.zeros(2, 0, 4))
    values = {}
    for name, loss in LOSSES.items():
        z = linear(DIMS[0])(inputs(4).split(SHARES[world_size], dim=1)[rank]).detach()
        values[name] = loss(z.requires_grad_(rank == 0)).total.detach()
    return values


@pytest.mark.slow
def test_processes_keep_step_without_images_and_without_gradient(tmp_path):
    for rank in in_processes(odd_processes, 2, tmp_path):
        for name in LOSSES:
            torch.testing.assert_close(rank[name], reference((name, 4, DIMS[0]))[0])


# ---- what must be caught -------------------------------------------------------------------------


def network():
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 6)).double()


class Rows(nn.Module):
    """All views in one forward, as the model has it."""

    def __init__(self, layers):
        super().__init__()
        self.layers = layers

    def forward(self, views):
        return self.layers(views.flatten(0, 1)).unflatten(0, views.shape[:2])


class Shortcut(torch.autograd.Function):
    """Sum over processes whose gradient is that of a replicated function, without communication."""

    @staticmethod
    def forward(ctx, local):
        total = local.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, grad):
        return grad * dist.get_world_size()


def by_autograd(z, detach_mean=True, reduce=Shortcut.apply):
    """Two-view Barlow Twins from global moments, by autograd; right as it stands."""
    count = Shortcut.apply(torch.tensor(float(z.shape[1])))
    mean = Shortcut.apply(z.sum(dim=1)) / count
    a, b = z - (mean.detach() if detach_mean else mean)[:, None]
    moments = reduce(torch.cat([a.T @ b, a.square().sum(0)[None], b.square().sum(0)[None]])) / count
    scale = torch.rsqrt(moments[-2:] + 1e-5)
    c = moments[:-2] * scale[0][:, None] * scale[1]
    off = c.square().sum() - c.diagonal().square().sum()
    return (1 - c.diagonal()).square().sum() + 0.1 * off


def not_differentiable(local):
    total = local.detach().clone()
    dist.all_reduce(total)
    return local + (total - local).detach()


def mutants(rank, world_size):
    """Gradient of every variant, after DistributedDataParallel."""

    def gradient(layers, loss):
        model = DistributedDataParallel(Rows(layers))
        loss(model(inputs(2).split(SHARES[world_size], dim=1)[rank])).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    def ours(z):
        return barlow_twins_loss(z, 0.1).total

    def autograd(**mutation):
        return lambda z: by_autograd(z, **mutation)

    def plain():
        return nn.Sequential(nn.Linear(5, 6, dtype=torch.float64))

    results = {}
    for name, layers, loss in (
        ("ours", plain, ours),
        ("autograd", plain, autograd()),
        ("mean not detached", plain, autograd(detach_mean=False)),
        ("reduction not differentiable", plain, autograd(reduce=not_differentiable)),
        ("global BatchNorm", lambda: synchronize_batchnorm(network(), "cpu"), ours),
        ("local BatchNorm", network, ours),
    ):
        torch.manual_seed(2)
        results[name] = gradient(layers(), loss)
    with pytest.MonkeyPatch.context() as patch:
        torch.manual_seed(2)
        patch.setattr(statistics.GlobalBatch, "own_gradient", lambda batch, g: g[:, batch.own])
        results["gradient not scaled"] = gradient(plain(), ours)
    return results


@pytest.mark.slow
def test_the_comparison_catches_every_known_mistake(tmp_path):
    torch.manual_seed(2)
    linear_model = nn.Sequential(nn.Linear(5, 6, dtype=torch.float64))
    expected = {}
    for name, layers in (("plain", linear_model), ("BatchNorm", network())):
        loss = barlow_twins_loss(Rows(layers)(inputs(2)), 0.1).total
        expected[name] = torch.cat(
            [g.flatten() for g in torch.autograd.grad(loss, list(layers.parameters()))]
        )
    for rank in in_processes(mutants, 2, tmp_path):
        errors = {}
        for name, found in rank.items():
            right = expected["BatchNorm" if "BatchNorm" in name else "plain"]
            errors[name] = float((found - right).norm() / right.norm())
        correct = {"ours", "autograd", "global BatchNorm"}
        for name, error in errors.items():
            assert (error < 1e-12) == (name in correct), errors
            assert name in correct or error > 0.01, errors

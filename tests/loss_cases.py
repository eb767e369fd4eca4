"""The losses in all their forms, embeddings for them, and their formulas for autograd."""

import pytest
import torch
import torch.nn.functional as F

from ssl_views import barlow_twins_loss, kernel_loss, vicreg_loss


def embeddings(num_views, num_images, dim, seed=0, dtype=torch.float64):
    """Views scattered around a common embedding, with unequal scales and a large mean."""
    g = torch.Generator().manual_seed(seed)
    common = torch.randn(1, num_images, dim, generator=g, dtype=dtype)
    noise = torch.randn(num_views, num_images, dim, generator=g, dtype=dtype)
    scale = torch.linspace(0.5, 3, dim, dtype=dtype)
    return (common + 0.7 * noise) * scale + 10


LOSSES = {
    "barlow_twins": lambda z: barlow_twins_loss(z, 0.1),
    "barlow_twins_all_pairs": lambda z: barlow_twins_loss(z, 0.1, all_pairs=True),
    "barlow_twins_mean": lambda z: barlow_twins_loss(z, 0.1, redundancy="mean"),
    "vicreg": lambda z: vicreg_loss(z * 0.2),
    "kernel": lambda z: kernel_loss(z, 0.1),
}
each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def off_diagonal(matrix):
    return matrix[~torch.eye(len(matrix), dtype=torch.bool)]


def by_autograd(name, z):
    """The formulas once more, as plain as torch allows; autograd differentiates them."""
    num_views, num_images, dim = z.shape
    if name == "kernel":
        cov = torch.cov(z.flatten(0, 1).T, correction=0)
        invariance = (z - z.mean(0)).square().sum(2).mean(1).sum() / (2 * (num_views - 1))
        return invariance + 0.1 * (cov - torch.eye(dim, dtype=z.dtype)).square().sum()
    if name == "vicreg":
        z = z * 0.2
        total = 25 * 2 / (num_views - 1) * (z - z.mean(0)).square().sum(0).mean()
        for view in z:
            cov = torch.cov(view.T)
            total = total + 25 * F.relu(1 - torch.sqrt(cov.diagonal() + 1e-4)).mean() / num_views
            total = total + 2 / num_views * off_diagonal(cov).square().sum() / dim
        return total
    u = (z - z.mean(1, keepdim=True)) * torch.rsqrt(z.var(1, correction=0, keepdim=True) + 1e-5)
    pairs = [(u[v], u[w]) for v in range(num_views) for w in range(num_views) if v != w]
    if name != "barlow_twins_all_pairs":
        pairs = [(view, (u.sum(0) - view) / (num_views - 1)) for view in u]
    total = 0
    for a, b in pairs:
        c = a.T @ b / num_images
        total = total + ((1 - c.diagonal()) ** 2).sum()
        if name != "barlow_twins_mean":
            total = total + 0.1 * off_diagonal(c).square().sum()
    if name == "barlow_twins_mean":
        mean = u.mean(0)
        return total / num_views + 0.1 * off_diagonal(mean.T @ mean / num_images).square().sum()
    return total / len(pairs)

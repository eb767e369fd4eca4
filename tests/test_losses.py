"""Losses against slow float64 references written from the formulas, and the published code."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from loss_cases import each_loss, embeddings, off_diagonal

from ssl_views import BarlowTwinsLoss, barlow_twins_loss, kernel_loss, vicreg_loss
from ssl_views.loss_modules import build_loss

SHAPES = [(2, 7, 5), (3, 6, 9), (4, 16, 8)]


def standardized(view, eps):
    out = np.empty_like(view)
    for i in range(view.shape[1]):
        column = view[:, i]
        out[:, i] = (column - column.mean()) / np.sqrt(((column - column.mean()) ** 2).mean() + eps)
    return out


def two_view_terms(a, b):
    """Diagonal and off-diagonal terms of Barlow Twins eq. 1, by loops."""
    on = off = 0.0
    for i in range(a.shape[1]):
        for j in range(a.shape[1]):
            c = sum(a[k, i] * b[k, j] for k in range(len(a))) / len(a)
            if i == j:
                on += (1 - c) ** 2
            else:
                off += c**2
    return on, off


def barlow_reference(z, weight, all_pairs, eps=1e-5):
    u = [standardized(view, eps) for view in z]
    if all_pairs:
        terms = [two_view_terms(a, b) for v, a in enumerate(u) for w, b in enumerate(u) if v != w]
    else:
        others = [sum(u[:v] + u[v + 1 :]) / (len(u) - 1) for v in range(len(u))]
        terms = [two_view_terms(a, b) for a, b in zip(u, others, strict=True)]
    on, off = np.mean(terms, axis=0)
    return on + weight * off, on, off


def covariance(view, denominator):
    mean = view.mean(axis=0)
    return sum(np.outer(row - mean, row - mean) for row in view) / denominator


def vicreg_reference(z, eps=1e-4):
    num_views, num_images, dim = z.shape
    pairs = [(v, w) for v in range(num_views) for w in range(v)]
    invariance = np.mean([((z[v] - z[w]) ** 2).mean() for v, w in pairs])
    variance = offdiag = 0.0
    for view in z:
        cov = covariance(view, num_images - 1)
        variance += np.maximum(0, 1 - np.sqrt(np.diag(cov) + eps)).mean() / num_views
        offdiag += 2 / num_views * ((cov**2).sum() - (np.diag(cov) ** 2).sum()) / dim
    return invariance, variance, offdiag


def kernel_reference(z):
    num_views, num_images, dim = z.shape
    mean = z.mean(axis=0)
    paper = sum(((view - mean) ** 2).sum(axis=1).mean() for view in z) / num_views
    cov = covariance(z.reshape(-1, dim), num_views * num_images)
    return paper * num_views / (2 * (num_views - 1)), ((cov - np.eye(dim)) ** 2).sum()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("all_pairs", [False, True])
def test_barlow_twins_equals_loops(shape, all_pairs):
    z = embeddings(*shape)
    total, terms = barlow_twins_loss(z, 0.3, all_pairs=all_pairs)
    expected, on, off = barlow_reference(z.numpy(), 0.3, all_pairs)
    assert total.item() == pytest.approx(expected, rel=1e-11)
    assert terms["invariance"].item() == pytest.approx(on, rel=1e-11)
    assert terms["redundancy"].item() == pytest.approx(off, rel=1e-11)


@pytest.mark.parametrize("shape", SHAPES)
def test_redundancy_of_the_mean_equals_loops(shape):
    z = embeddings(*shape)
    total, terms = barlow_twins_loss(z, 0.3, redundancy="mean")
    _, on, _ = barlow_reference(z.numpy(), 0.3, all_pairs=False)
    mean = np.mean([standardized(view, 1e-5) for view in z.numpy()], axis=0)
    _, off = two_view_terms(mean, mean)
    assert terms["invariance"].item() == pytest.approx(on, rel=1e-11)
    assert terms["redundancy"].item() == pytest.approx(off, rel=1e-11)
    assert total.item() == pytest.approx(on + 0.3 * off, rel=1e-11)


@pytest.mark.parametrize("shape", SHAPES)
def test_vicreg_equals_loops(shape):
    z = embeddings(*shape) * 0.3
    total, terms = vicreg_loss(z, invariance_weight=3, variance_weight=5, covariance_weight=7)
    invariance, variance, offdiag = vicreg_reference(z.numpy())
    assert terms["invariance"].item() == pytest.approx(invariance, rel=1e-11)
    assert terms["variance"].item() == pytest.approx(variance, rel=1e-11)
    assert terms["covariance"].item() == pytest.approx(offdiag, rel=1e-11)
    assert variance > 0
    assert total.item() == pytest.approx(3 * invariance + 5 * variance + 7 * offdiag, rel=1e-11)


@pytest.mark.parametrize("shape", SHAPES)
def test_kernel_equals_loops(shape):
    z = embeddings(*shape)
    total, terms = kernel_loss(z, 0.3)
    invariance, orthogonality = kernel_reference(z.numpy())
    assert terms["invariance"].item() == pytest.approx(invariance, rel=1e-11)
    assert terms["orthogonality"].item() == pytest.approx(orthogonality, rel=1e-11)
    assert total.item() == pytest.approx(invariance + 0.3 * orthogonality, rel=1e-11)


@pytest.mark.parametrize("all_pairs", [False, True])
def test_two_views_of_barlow_twins_equal_the_published_loss(all_pairs):
    z = embeddings(2, 32, 12)
    bn = torch.nn.BatchNorm1d(12, affine=False, dtype=torch.float64)
    c = bn(z[0]).T @ bn(z[1]) / 32
    published = (c.diagonal() - 1).square().sum() + 0.0051 * off_diagonal(c).square().sum()
    ours = barlow_twins_loss(z, 0.0051, all_pairs=all_pairs).total
    torch.testing.assert_close(ours, published, atol=1e-10, rtol=0)


def test_two_views_of_vicreg_equal_the_published_loss():
    x, y = z = embeddings(2, 32, 12) * 0.3
    published = 25 * F.mse_loss(x, y)
    for view in (x, y):
        centred = view - view.mean(dim=0)
        published += 25 * F.relu(1 - torch.sqrt(centred.var(dim=0) + 1e-4)).mean() / 2
        published += off_diagonal(centred.T @ centred / 31).square().sum() / 12
    torch.testing.assert_close(vicreg_loss(z).total, published, atol=1e-10, rtol=0)


def test_two_views_of_the_kernel_form_equal_the_paper():
    z = embeddings(2, 32, 12)
    mean = z.mean(dim=0)
    paper = (z - mean).square().sum(dim=2).mean(dim=1).mean()
    cov = torch.cov(z.flatten(0, 1).T, correction=0)
    paper = paper + 0.2 * (cov - torch.eye(12)).square().sum()
    torch.testing.assert_close(kernel_loss(z, 0.2).total, paper, atol=1e-10, rtol=0)


@each_loss
def test_any_memory_layout_will_do_and_stays_as_it_was(loss):
    z = embeddings(3, 10, 6)
    for other in (
        z.transpose(0, 1).contiguous().transpose(0, 1),
        z.permute(2, 0, 1).contiguous().permute(1, 2, 0),
        z[:, :1].expand(3, 10, 6),
    ):
        expected, before = loss(other.contiguous().requires_grad_()), other.clone()
        found = loss(other.detach().requires_grad_())
        torch.testing.assert_close(found.total, expected.total)
        assert torch.equal(other, before)


@each_loss
def test_order_of_views_and_images_does_not_matter(loss):
    z = embeddings(4, 10, 6)
    shuffled = z[[2, 0, 3, 1]][:, torch.randperm(10)]
    torch.testing.assert_close(loss(shuffled).total, loss(z).total, atol=0, rtol=1e-12)


def test_barlow_twins_ignores_scale_and_shift():
    z = embeddings(3, 50, 6)
    moved = z * torch.linspace(1, 9, 6) - 4
    torch.testing.assert_close(
        barlow_twins_loss(moved, 0.1).total, barlow_twins_loss(z, 0.1).total, atol=0, rtol=1e-4
    )


@pytest.mark.parametrize("all_pairs", [False, True])
def test_invariance_keeps_its_strength_for_every_number_of_views(all_pairs):
    """Views i.i.d. around a common embedding give the same expected terms for V = 2, 4, 8."""
    found = {}
    for num_views in (2, 4, 8):
        z = embeddings(num_views, 4000, 16, seed=num_views)
        terms = {
            "barlow": barlow_twins_loss(z, 0.1, all_pairs=all_pairs).terms["invariance"],
            "vicreg": vicreg_loss(z).terms["invariance"],
            "kernel": kernel_loss(z, 0.1).terms["invariance"],
        }
        found[num_views] = torch.stack(list(terms.values()))
    for num_views in (4, 8):
        torch.testing.assert_close(found[num_views], found[2], atol=0, rtol=0.05)


def test_auto_weight_follows_the_rule():
    for loss, name, rule in (
        (barlow_twins_loss, "redundancy", lambda dim: 10 / dim),
        (kernel_loss, "orthogonality", lambda dim: 2.2 / dim**0.3),
    ):
        for dim in (8, 64):
            total, terms = loss(embeddings(2, 16, dim))
            torch.testing.assert_close(total, terms["invariance"] + rule(dim) * terms[name])


def test_modules_give_what_the_functions_give():
    z = embeddings(3, 16, 8)
    assert (
        BarlowTwinsLoss(0.2, all_pairs=True)(z).total
        == barlow_twins_loss(z, 0.2, all_pairs=True).total
    )
    mean = build_loss("barlow_twins", 8, 0.2, {"redundancy": "mean"})(z).total
    assert mean == barlow_twins_loss(z, 0.2, redundancy="mean").total
    assert build_loss("kernel", 8, 0.2)(z).total == kernel_loss(z, 0.2).total
    torch.testing.assert_close(build_loss("vicreg", 8)(z).total, vicreg_loss(z).total)
    same = build_loss("vicreg", 8, 1 / (8 * 25))(z).total  # Fig. 8 of the paper: 1 / (D mu)
    torch.testing.assert_close(same, vicreg_loss(z).total)
    other = build_loss("vicreg", 8, loss_args={"variance_weight": 3.0})(z).total
    torch.testing.assert_close(other, vicreg_loss(z, variance_weight=3).total)


@pytest.mark.parametrize(
    ("z", "message"),
    [
        (torch.zeros(1, 8, 4), r"V >= 2; got \(1, 8, 4\).*num_views=2"),
        (torch.zeros(2, 8, 0), r"got \(2, 8, 0\)"),
        (torch.zeros(8, 4), r"shape \(V, B, D\).*got \(8, 4\)"),
        (torch.zeros(2, 1, 4), "at least 2 images over all processes; got 1"),
        (
            torch.zeros(2, 8, 4, dtype=torch.int64),
            "floating point, of 16, 32 or 64 bits; got torch.int64",
        ),
    ],
)
@each_loss
def test_wrong_embeddings_get_a_sentence(loss, z, message):
    if z.dtype == torch.int64:
        loss = barlow_twins_loss
    with pytest.raises(ValueError, match=message):
        loss(z)


def test_wrong_loss_settings_get_a_sentence():
    with pytest.raises(ValueError, match=r"number >= 0 or 'auto'; got -1.*'auto' would be 2.5"):
        barlow_twins_loss(embeddings(2, 8, 4), -1)
    with pytest.raises(ValueError, match="and 'views' with all_pairs; got 'mean'"):
        barlow_twins_loss(embeddings(2, 8, 4), all_pairs=True, redundancy="mean")
    with pytest.raises(ValueError, match=r"got 'median'\. 'views' is the default"):
        barlow_twins_loss(embeddings(2, 8, 4), redundancy="median")
    with pytest.raises(ValueError, match=r"got 'barlow'.*Did you mean 'barlow_twins'"):
        build_loss("barlow", 8)
    with pytest.raises(ValueError, match=r"loss_args do not fit 'kernel'.*all_pairs"):
        build_loss("kernel", 8, loss_args={"all_pairs": True})
    with pytest.raises(ValueError, match="either orthogonality_weight or its own three weights"):
        build_loss("vicreg", 8, 0.1, {"variance_weight": 3.0})
    with pytest.raises(ValueError, match="VICReg must be above 0; got 0"):
        build_loss("vicreg", 8, 0.0)
    for weight in (None, float("inf"), "0.1"):
        with pytest.raises(ValueError, match=f"number >= 0 or 'auto'; got {weight!r}"):
            kernel_loss(embeddings(2, 8, 4), weight)
    with pytest.raises(
        ValueError, match=r"variance_weight must be a number >= 0; got -1.*25 and 1"
    ):
        build_loss("vicreg", 8, loss_args={"variance_weight": -1})
    with pytest.raises(ValueError, match="got 'median'"):  # when built, not in the first step
        build_loss("barlow_twins", 8, loss_args={"redundancy": "median"})
    with pytest.raises(ValueError, match="loss_args must not hold 'orthogonality_weight'"):
        build_loss("kernel", 8, loss_args={"orthogonality_weight": 1.0})

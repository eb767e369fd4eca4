"""Spectra against matrices whose answer is known, and against slow definitions."""

import numpy as np
import pytest
import torch

from ssl_views.spectrum import (
    centred_effective_rank,
    effective_rank,
    eigenspectrum,
    fit_power_law,
    invariance_per_dimension,
    lidar,
)


def rotation(dim, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))[0]


def gaussian(num_rows, variances, seed=0, dtype=torch.float64):
    """Rows of a Gaussian with these variances along random axes."""
    generator = torch.Generator().manual_seed(seed)
    variances = torch.as_tensor(variances, dtype=torch.float64)
    x = torch.randn(num_rows, len(variances), generator=generator, dtype=torch.float64)
    return (x * variances.sqrt() @ rotation(len(variances))).to(dtype)


def entropy_rank(values, eps=1e-7):
    shares = np.asarray(values) / np.sum(values) + eps
    return np.exp(-np.sum(shares * np.log(shares)))


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.5, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_exponent_of_a_power_law_is_recovered(alpha, dtype):
    variances = torch.arange(1, 257, dtype=torch.float64) ** -alpha
    law = fit_power_law(eigenspectrum(gaussian(5000, variances, dtype=dtype) + 3))
    assert law.alpha == pytest.approx(alpha, abs=0.05)
    assert law.r_squared > 0.99
    assert (law.first, law.last) == (4, 100)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.5, 2.0])
def test_a_law_is_fitted_exactly(alpha):
    ranks = torch.arange(1, 65, dtype=torch.float64)
    law = fit_power_law(3 * ranks**-alpha, first=2, last=1000)
    assert law.alpha == pytest.approx(alpha, abs=1e-9)
    assert law.log_scale == pytest.approx(np.log(3), abs=1e-9)
    assert law.r_squared == pytest.approx(1)
    assert (law.first, law.last) == (2, 64)


def test_the_fit_is_weighted_least_squares():
    rng = np.random.default_rng(0)
    values = np.sort(rng.uniform(0.1, 1, 60))[::-1].copy()
    ranks = np.arange(5, 41)
    slope, offset = np.polyfit(np.log(ranks), np.log(values[4:40]), 1, w=ranks**-0.5)
    law = fit_power_law(torch.from_numpy(values), first=5, last=40)
    assert law.alpha == pytest.approx(-slope)
    assert law.log_scale == pytest.approx(offset)
    y, weights = np.log(values[4:40]), 1 / ranks
    missed = np.sum(weights * (y - offset - slope * np.log(ranks)) ** 2)
    total = np.sum(weights * (y - np.average(y, weights=weights)) ** 2)
    assert law.r_squared == pytest.approx(1 - missed / total)


def test_a_flat_spectrum_has_exponent_zero():
    law = fit_power_law(torch.ones(50))
    assert law.alpha == pytest.approx(0, abs=1e-12)
    assert law.r_squared == 1


def test_a_power_law_needs_eigenvalues():
    with pytest.raises(ValueError, match="at least 3 positive eigenvalues in its range; got ranks"):
        fit_power_law(torch.tensor([1.0, 0.5, 0.2, 0.1, 0.05, 0.0]))
    with pytest.raises(ValueError, match="got ranks 0 to 5 of 6 positive"):
        fit_power_law(torch.ones(6), first=0, last=5)


@pytest.mark.parametrize("shape", [(40, 7), (7, 40)])
def test_the_eigenspectrum_is_numpys(shape):
    x = np.random.default_rng(0).normal(size=shape) + 5
    expected = np.linalg.svd(x - x.mean(axis=0), compute_uv=False) ** 2 / shape[0]
    found = eigenspectrum(torch.from_numpy(x))
    assert found.shape == (7,)
    assert found.numpy() == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_makes_no_eigenvalues(dtype):
    """Rank 3 around a large mean: the other directions hold rounding errors only."""
    x = (gaussian(500, [4.0, 2.0, 1.0] + [0.0] * 29) + 10).to(dtype)
    assert int((eigenspectrum(x) > 0).sum()) == 3
    assert int((eigenspectrum(torch.full((50, 8), 0.1, dtype=dtype)) > 0).sum()) == 0


@pytest.mark.parametrize("dim", [8, 64, 256])
def test_the_effective_rank_of_an_isotropic_gaussian_is_its_dimension(dim):
    assert effective_rank(gaussian(40 * dim, [1.0] * dim)) == pytest.approx(dim, rel=0.02)


@pytest.mark.parametrize("shape", [(60, 9), (9, 60)])
def test_effective_rank_is_the_published_one(shape):
    x = np.random.default_rng(0).normal(size=shape) * np.linspace(0.1, 3, shape[1]) + 1
    expected = entropy_rank(np.linalg.svd(x, compute_uv=False))
    assert effective_rank(torch.from_numpy(x)) == pytest.approx(expected, rel=1e-9)
    centred = entropy_rank(np.linalg.svd(x - x.mean(axis=0), compute_uv=False))
    assert centred_effective_rank(torch.from_numpy(x)) == pytest.approx(centred, rel=1e-6)


def test_effective_rank_of_known_spectra():
    orthogonal = rotation(50)[:, :8]
    assert effective_rank(orthogonal) == pytest.approx(8, abs=1e-3)
    assert effective_rank(orthogonal[:, :1].expand(50, 8)) == pytest.approx(1, abs=1e-3)
    values = [4.0, 2.0, 1.0, 1.0]
    scaled = orthogonal[:, :4] * torch.tensor(values)
    assert effective_rank(scaled) == pytest.approx(entropy_rank(values), rel=1e-4)
    assert effective_rank(torch.zeros(5, 3)) < 2


def slow_lidar(x, delta):
    """The definition, image by image and view by view."""
    num_views, num_images, dim = x.shape
    mean = x.mean(axis=(0, 1))
    total = np.mean((x - mean) ** 2)
    within, between = np.zeros((dim, dim)), np.zeros((dim, dim))
    for b in range(num_images):
        centre = x[:, b].mean(axis=0)
        between += np.outer(centre - mean, centre - mean) / num_images
        for v in range(num_views):
            difference = x[v, b] - centre
            within += np.outer(difference, difference) / (num_images * num_views)
    within += delta * total * np.eye(dim)
    values, vectors = np.linalg.eigh(within)
    root = vectors @ np.diag(values**-0.5) @ vectors.T
    spectrum = np.linalg.eigvalsh(root @ between @ root).clip(0)
    return entropy_rank(np.sort(spectrum)[::-1][: min(num_images - 1, dim)])


@pytest.mark.parametrize("shape", [(4, 30, 6), (2, 7, 20)])
@pytest.mark.parametrize("delta", [1e-4, 1e-2])
def test_lidar_is_its_definition(shape, delta):
    rng = np.random.default_rng(0)
    scale = np.linspace(0.2, 2, shape[2])
    x = 3 + rng.normal(size=shape[1:]) * scale + 0.3 * rng.normal(size=shape)
    assert lidar(torch.from_numpy(x), delta) == pytest.approx(slow_lidar(x, delta), rel=1e-6)


def test_lidar_of_collapsed_representations_is_1():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(4, 200, 16, generator=generator)
    assert lidar(torch.ones(4, 200, 16)) == 1
    assert lidar(5 + 1e-7 * noise) == 1  # equal but for rounding
    line = torch.randn(200, 1, generator=generator) * torch.ones(16)
    assert lidar(line + 1e-3 * noise) == pytest.approx(1, abs=0.01)


def test_lidar_of_separated_clusters_is_near_its_most():
    images = gaussian(400, [1.0] * 16)
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(4, 400, 16, generator=generator, dtype=torch.float64)
    assert lidar(images + 0.01 * noise) == pytest.approx(16, rel=0.03)
    assert lidar(torch.eye(10).expand(3, 10, 10)) == pytest.approx(9, rel=1e-3)  # of 10 images


def test_lidar_ignores_scale():
    x = torch.randn(3, 50, 8, generator=torch.Generator().manual_seed(0))
    assert lidar(1000 * x) == pytest.approx(lidar(x), rel=1e-6)


def test_invariance_is_the_correlation_between_views():
    generator = torch.Generator().manual_seed(0)
    correlations = torch.tensor([1.0, 0.8, 0.3, 0.0])
    common = torch.randn(20_000, 4, generator=generator)
    own = torch.randn(4, 20_000, 4, generator=generator)
    x = 7 + correlations.sqrt() * common + (1 - correlations).sqrt() * own
    found = invariance_per_dimension(x)
    assert found.tolist() == pytest.approx(correlations.tolist(), abs=0.02)
    pairs = [np.corrcoef(x[0, :, d], x[1, :, d])[0, 1] for d in range(4)]
    assert found.tolist() == pytest.approx(pairs, abs=0.03)


def test_invariance_of_extreme_dimensions():
    opposite = torch.tensor([1.0, -1.0])[:, None].expand(2, 6)
    constant = torch.full((2, 6), 0.1)
    x = torch.stack([opposite, constant], dim=2)
    assert invariance_per_dimension(x).tolist() == [-1, 0]


def test_wrong_shapes_and_numbers_get_a_sentence():
    with pytest.raises(ValueError, match=r"shape \(N, D\) with N >= 1; got \(2, 3, 4\)"):
        effective_rank(torch.zeros(2, 3, 4))
    for function in (lidar, invariance_per_dimension):
        with pytest.raises(ValueError, match=r"at least 2 views of 2 images; got \(1, 5, 4\)"):
            function(torch.zeros(1, 5, 4))
        with pytest.raises(ValueError, match="representations must be finite; got NaN"):
            function(torch.full((2, 5, 4), torch.nan))
    with pytest.raises(ValueError, match="features must be finite; got NaN or infinite"):
        eigenspectrum(torch.full((5, 4), torch.inf))

"""What the spectrum of representations says about them, without labels."""

from typing import NamedTuple

import torch
from torch import Tensor

_EPS = 1e-7  # added to shares before their entropy, as RankMe and LiDAR do
_FIRST, _LAST = 4, 100


class PowerLaw(NamedTuple):
    """A law eigenvalue(rank) = exp(log_scale) * rank ** -alpha, fitted to some ranks.

    Attributes:
        alpha: exponent of the decay.
        log_scale: natural logarithm of the law at rank 1.
        r_squared: share of the variance of log eigenvalues, weighted as the fit, that it explains.
        first: first rank of the fit; ranks count from 1.
        last: last rank of the fit, included.
    """

    alpha: float
    log_scale: float
    r_squared: float
    first: int
    last: int


def eigenspectrum(features: Tensor) -> Tensor:
    """Return the eigenvalues of the (biased) covariance of features, largest first.

    Those that rounding of the features alone may cause are 0.

    Args:
        features: (N, D).

    Returns:
        (min(N, D),) float64, in variance of a feature.

    Example:
        >>> eigenspectrum(torch.tensor([[2.0, 0.0], [-2.0, 0.0]])).tolist()
        [4.0, 0.0]
    """
    x = _rows(features)
    size = x.square().mean()
    x = x - x.mean(dim=0)
    values = _squared_singular_values(x).flip(0) / len(x)
    floor = torch.finfo(features.dtype).eps ** 2 * size
    return torch.where(values > torch.maximum(floor, 1e-14 * values[0]), values, 0.0)


def fit_power_law(eigenvalues: Tensor, first: int = _FIRST, last: int = _LAST) -> PowerLaw:
    """Fit a power law to an eigenspectrum, by least squares on logarithms weighted by 1 / rank.

    (So weighted, every octave of ranks counts the same.) An `alpha` near 1 is what alpha-ReQ found
    in good representations; a larger one means that few directions carry most of the variance.

    Args:
        eigenvalues: positive ones first, largest first, as from `eigenspectrum`.
        first: first rank of the fit, from 1; the largest eigenvalues often lie off the law.
        last: last rank; where fewer eigenvalues are positive, their number.

    Raises:
        ValueError: if fewer than 3 positive eigenvalues are in the range.

    Source:
        alpha-ReQ (NeurIPS 2022), https://openreview.net/forum?id=ii9X4vtZGTZ, after Stringer et
        al., Nature 571 (2019).

    Differs from source:
        One range of ranks, stated in the result; the source chooses one by data set.

    Example:
        >>> round(fit_power_law(torch.arange(1, 200) ** -1.5).alpha, 3)
        1.5
    """
    positive = int((eigenvalues > 0).sum())
    stop = min(last, positive)
    if first < 1 or stop - first < 2:
        raise ValueError(
            "a power law needs at least 3 positive eigenvalues in its range; got ranks "
            f"{first} to {last} of {positive} positive ones. Widen the range, or take more images."
        )
    ranks = torch.arange(first, stop + 1, dtype=torch.float64, device=eigenvalues.device)
    x, y, weights = ranks.log(), eigenvalues[first - 1 : stop].double().log(), 1 / ranks
    weights = weights / weights.sum()
    x_mean, y_mean = (weights * x).sum(), (weights * y).sum()
    x, y = x - x_mean, y - y_mean
    slope = (weights * x * y).sum() / (weights * x * x).sum()
    total, missed = (weights * y * y).sum(), (weights * (y - slope * x) ** 2).sum()
    return PowerLaw(
        alpha=-float(slope),
        log_scale=float(y_mean - slope * x_mean),
        r_squared=1.0 if total == 0 else float(1 - missed / total),
        first=first,
        last=stop,
    )


def effective_rank(features: Tensor) -> float:
    """Return RankMe: exp of the entropy of the singular values divided by their sum.

    Between 1 (all rows on one line) and min(N, D).

    Args:
        features: (N, D), not centred.

    Source:
        RankMe, arXiv 2210.02885 eq. 1.

    Differs from source:
        The singular values are square roots of the eigenvalues of the smaller Gram matrix, in
        float64: those below 1e-8 of the largest are inexact, which the source's 1e-7, added to
        every share, hides.

    Example:
        >>> round(effective_rank(torch.eye(8)), 3)
        8.0
    """
    return _exp_entropy(_squared_singular_values(_rows(features)).sqrt())


def centred_effective_rank(features: Tensor) -> float:
    """Return the same of centred features (N, D)."""
    x = _rows(features)
    return _exp_entropy(_squared_singular_values(x - x.mean(dim=0)).sqrt())


def lidar(representations: Tensor, delta: float = 1e-4) -> float:
    """Return LiDAR: the effective rank of how images differ, relative to how their views differ.

    The views of an image are a class: with Sw the mean covariance of views around the mean of their
    image, plus delta * I, and Sb the covariance of those means, it is exp of the entropy of the
    eigenvalues of Sw^-1/2 Sb Sw^-1/2 divided by their sum. Between 1 (collapsed) and
    min(B - 1, D).

    Args:
        representations: (V, B, D), V >= 2 views of B images.
        delta: share of the mean variance of a dimension that is added to Sw.

    Source:
        LiDAR, arXiv 2312.04000 eq. 1 to 5.

    Differs from source:
        delta is relative, so that a common scale of the representations does not matter; at a mean
        variance of 1 it is the source's. Means that differ by rounding only count as equal, which
        gives 1; the source would compare rounding errors. Values grow with V: the source takes 50
        views, of 1,000 images.

    Example:
        >>> images = torch.eye(8)  # eight images, whose views do not differ
        >>> round(lidar(images.expand(4, 8, 8)), 2)
        7.0
    """
    x = _views(representations)
    means = x.mean(dim=0)
    between = means - means.mean(dim=0)
    within = (x - means).flatten(0, 1)
    floor = 10 * torch.finfo(representations.dtype).eps ** 2 * x.square().mean()
    spread = between.square().mean()
    if spread <= floor:
        return 1.0
    dim = x.shape[2]
    ridge = delta * (spread + within.square().mean())
    covariance = within.T @ within / len(within)
    covariance.diagonal().add_(ridge)
    factor = torch.linalg.cholesky(covariance)
    whitened = torch.linalg.solve_triangular(factor, between.T, upper=False).T  # (B, D)
    values = _squared_singular_values(whitened)
    return _exp_entropy(values[-min(len(between) - 1, dim) :])


def invariance_per_dimension(representations: Tensor) -> Tensor:
    """Return how far each dimension depends on the image alone, and not on the view.

    It is the intraclass correlation (one-way, of single views): the correlation of a dimension
    between two views of an image. 1 if views of an image agree, around 0 if they are unrelated, at
    least -1 / (V - 1). A dimension that is constant says nothing of the image, and gives 0.

    Args:
        representations: (V, B, D), V >= 2 views of B >= 2 images.

    Returns:
        (D,) float64.

    Source:
        Shrout and Fleiss, Psychological Bulletin 86 (1979), ICC(1,1).
    """
    x = _views(representations)
    num_views, num_images, _ = x.shape
    means = x.mean(dim=0)
    between = num_views * (means - means.mean(dim=0)).square().sum(dim=0) / (num_images - 1)
    within = (x - means).square().sum(dim=(0, 1)) / (num_images * (num_views - 1))
    total = between + (num_views - 1) * within
    floor = torch.finfo(representations.dtype).eps ** 2 * x.square().mean(dim=(0, 1))
    return torch.where(total > floor, (between - within) / total.clamp_min(1e-300), 0.0)


def _rows(features: Tensor) -> Tensor:
    if features.ndim != 2 or features.shape[0] < 1:
        raise ValueError(
            f"features must have shape (N, D) with N >= 1; got {tuple(features.shape)}. Flatten "
            "them first."
        )
    return _double(features, "features")


def _views(representations: Tensor) -> Tensor:
    if representations.ndim != 3 or min(representations.shape[:2]) < 2:
        raise ValueError(
            "representations must have shape (V, B, D) with at least 2 views of 2 images; got "
            f"{tuple(representations.shape)}."
        )
    return _double(representations, "representations")


def _double(x: Tensor, name: str) -> Tensor:
    """Return float64, on the CPU where the device has none."""
    x = x.detach()
    if not x.isfinite().all():
        raise ValueError(
            f"{name} must be finite; got NaN or infinite values. Look at the weights they come "
            "from."
        )
    return x.cpu().double() if x.device.type == "mps" else x.double()


def _squared_singular_values(x: Tensor) -> Tensor:
    """Return them smallest first, (min(N, D),)."""
    gram = x @ x.T if len(x) < x.shape[1] else x.T @ x
    return torch.linalg.eigvalsh(gram).clamp_min(0)


def _exp_entropy(values: Tensor) -> float:
    total = values.sum().clamp_min(torch.finfo(torch.float64).tiny)
    shares = values / total + _EPS
    return float(torch.exp(-(shares * shares.log()).sum()))

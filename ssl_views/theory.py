"""What the theory of arXiv 2312.10725 says, in models small enough to compute.

The augmentation graph and what few views make of it; the learning dynamics of embeddings with a
weak or strong orthogonality weight; the eigenvalues of the augmentation operator from features.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssl_views.augmentation_graph import (
    AugmentationSpectrum,
    FourImageGraph,
    SampledSpectrum,
    at_least_one,
    augmentation_spectrum,
    four_image_graph,
    sampled_spectrum,
)

__all__ = [
    "AugmentationSpectrum",
    "FourImageGraph",
    "LearningDynamics",
    "SampledSpectrum",
    "augmentation_spectrum",
    "four_image_graph",
    "kernel_eigenvalues",
    "learning_dynamics",
    "sampled_spectrum",
]

_SCALE = 1e-3  # standard deviation of initial embeddings


class LearningDynamics(NamedTuple):
    """How embeddings learn eigenfunctions.

    Attributes:
        steps: (T,) int64, the recorded ones; the first is 0.
        entropy_rank: (T,) float64, between 1 and `dim`.
        projections: (T, n) float64 in [0, 1]: how much of each eigenfunction the embeddings hold.
        embeddings: (dim, n) float64, after the last step.
    """

    steps: Tensor
    entropy_rank: Tensor
    projections: Tensor
    embeddings: Tensor


def learning_dynamics(
    eigenvalues: Tensor, dim: int, *, orthogonality_weight: float, learning_rate: float = 0.01,
    num_steps: int = 4000, record_every: int = 40, initial: Tensor | None = None, seed: int = 0,
) -> LearningDynamics:  # fmt: skip
    """Return what gradient descent makes of a linear model in the eigenbasis of the kernel.

    Steps of Z <- Z - 4 learning_rate [(C - I) * M] Z L with L = diag(eigenvalues), C = Z L Z^T, and
    M 1 on the diagonal, orthogonality_weight elsewhere. With the singular values s and right
    singular vectors v of Z L^1/2, the entropy rank is exp of the entropy of s / sum(s), and the
    projection of an eigenfunction is the sum of min(s, 1)^2 v^2: many dimensions that repeat one
    function hold it once. Projections sum to how many functions are held.

    From small embeddings all dimensions first follow the top eigenfunction. While m < dim are
    held, the next grows at 4 learning_rate eigenvalue r / (1 - orthogonality_weight + r) per step,
    r = orthogonality_weight * dim / m: for weak weights the product of weight and dim counts.

    Args:
        eigenvalues: (n,), of the kernel, positive.
        dim: of the embedding, d <= n.
        orthogonality_weight: at least 0.
        learning_rate: of a step; that of a flow is small.
        num_steps: at least 1.
        record_every: steps between records; the last step is recorded too.
        initial: (dim, n); if None, Gaussian with standard deviation 1e-3.
        seed: of `initial`, where it is drawn.

    Raises:
        ValueError: if an argument is not as stated, or the steps diverge.

    Source:
        arXiv 2312.10725, App. B.4. The growth is derived here (tests hold it).

    Example:
        >>> law = 1 / torch.arange(1, 17)
        >>> for weight in (0.0, 1.0):
        ...     found = learning_dynamics(law, 4, orthogonality_weight=weight)
        ...     print(round(float(found.entropy_rank[-1]), 2))
        1.15
        4.0
    """
    at_least_one(dim=dim, num_steps=num_steps, record_every=record_every)
    law = eigenvalues.detach().cpu().double()
    if law.ndim != 1 or len(law) < dim or not (law.isfinite() & (law > 0)).all():
        raise ValueError(
            f"eigenvalues must be positive and at least dim={dim} in number; got shape "
            f"{tuple(law.shape)}. Leave out those that are 0, or take a smaller dim."
        )
    if not (0 <= orthogonality_weight < float("inf") and 0 < learning_rate < float("inf")):
        raise ValueError(
            "orthogonality_weight must be at least 0 and learning_rate above 0; got "
            f"{orthogonality_weight} and {learning_rate}. Take finite ones, e.g. 0.1 and 0.01."
        )
    if initial is None:
        drawn = np.random.default_rng(seed).standard_normal((dim, len(law)))
        initial = torch.from_numpy(drawn) * _SCALE
    z = initial.detach().cpu().double()
    if z.shape != (dim, len(law)) or not z.isfinite().all() or not z.any():
        raise ValueError(
            f"initial must be finite, not all 0, of shape {(dim, len(law))}; got "
            f"{tuple(z.shape)}. Leave it out for small Gaussian embeddings."
        )
    identity = torch.eye(dim, dtype=torch.float64)
    mask = 4 * learning_rate * (orthogonality_weight + (1 - orthogonality_weight) * identity)
    steps, records = [0], [z]
    for step in range(1, num_steps + 1):
        weighted = z * law
        z = z - (torch.addmm(identity, weighted, z.T, beta=-1) * mask) @ weighted
        if step % record_every == 0 or step == num_steps:
            steps.append(step)
            records.append(z)
    recorded = torch.stack(records) * law.sqrt()
    if not recorded.isfinite().all():
        raise ValueError(
            f"the steps must not diverge; with learning_rate={learning_rate} and "
            f"orthogonality_weight={orthogonality_weight} they do. Take a smaller learning_rate."
        )
    _, singular, right = torch.linalg.svd(recorded, full_matrices=False)
    entropy = torch.special.entr(singular / singular.sum(dim=1, keepdim=True)).sum(dim=1)
    held = singular.clamp(max=1).square()[:, :, None] * right.square()
    return LearningDynamics(torch.tensor(steps), entropy.exp(), held.sum(dim=1), z)


def kernel_eigenvalues(features: Tensor, *, ridge: float = 1e-6, cross_view: bool = True) -> Tensor:
    """Estimate eigenvalues of the augmentation operator within the span of features.

    Those of S c = e (P + ridge diag P) c, with S the mean over v != w of the covariance of the
    features of views v and w, and P the mean over v of the covariance of view v: the correlations
    between two views of an image, of the functions of the features that keep most of it. S and P
    take O(V), for the covariance of the mean of the views is S + (P - S) / V. With
    `cross_view=False` that takes the place of S, as in naive averages of views: e becomes
    e + (1 - e) / V.

    S and P are without bias, and no linear map of the features matters but through `ridge`. Their
    eigenvalues are not: with few images per dimension the largest come out too large, the smallest
    too small or negative.

    Args:
        features: (V, B, D), V >= 2 views of B > D images, not centred.
        ridge: share of its variance that is added to that of every feature; shrinks what all
            but repeats other features towards 0, and nothing else noticeably.
        cross_view: whether views are compared with other views only.

    Returns:
        (D,) float64, largest first; of the constant function there is none. Features that are
        constant, or repeat others, give 0.

    Raises:
        ValueError: if an argument is not as stated, or not finite.

    Source:
        arXiv 2312.10725, section 3, for the operator.

    Example:
        >>> image, noise = torch.randn(1000, 1), torch.randn(8, 1000, 1)
        >>> kernel_eigenvalues(2 * image + noise).round(decimals=1).tolist()  # 4 / (4 + 1)
        [0.8]
    """
    if features.ndim != 3 or features.shape[0] < 2 or features.shape[1] <= features.shape[2]:
        raise ValueError(
            "features must have shape (V, B, D) with V >= 2 and more images than dimensions; got "
            f"{tuple(features.shape)}. Take more images, or fewer dimensions of the features."
        )
    if not features.isfinite().all() or not 0 < ridge < float("inf"):
        raise ValueError(
            f"features must be finite and ridge above 0; got ridge={ridge}. Look at the model that "
            "the features come from, or leave ridge out."
        )
    num_views, num_images, _ = features.shape
    x = features.detach().cpu().double()
    floor = 10 * torch.finfo(features.dtype).eps ** 2 * x.square().mean(dim=(0, 1))
    x = x - x.mean(dim=1, keepdim=True)
    variances = x.square().mean(dim=(0, 1))
    x = torch.where(variances > floor, x / variances.clamp_min(1e-300).sqrt(), 0.0)
    rows, means = x.flatten(0, 1), x.mean(dim=0)
    pooled = rows.T @ rows / len(rows)
    compared = means.T @ means / num_images
    if cross_view:
        compared = (num_views * compared - pooled) / (num_views - 1)
    pooled.diagonal().add_(ridge)
    factor = torch.linalg.cholesky(pooled)
    half = torch.linalg.solve_triangular(factor, compared, upper=False)
    whole = torch.linalg.solve_triangular(factor, half.T, upper=False)
    return torch.linalg.eigvalsh((whole + whole.T) / 2).flip(0)

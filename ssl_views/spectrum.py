"""What the spectrum of representations says about them."""

import torch
from torch import Tensor


def effective_rank(features: Tensor, eps: float = 1e-7) -> float:
    """Return RankMe: exp of the entropy of the singular values divided by their sum.

    Between 1 (all rows on one line) and min(N, D).

    Args:
        features: (N, D), not centred.
        eps: added to each normalized singular value, as in the source.

    Source:
        RankMe, arXiv 2210.02885 eq. 1.

    Example:
        >>> round(effective_rank(torch.eye(8)), 3)
        8.0
    """
    if features.ndim != 2 or features.shape[0] < 1:
        raise ValueError(
            f"features must have shape (N, D) with N >= 1; got {tuple(features.shape)}. Flatten "
            "them first."
        )
    return _rank(torch.linalg.svdvals(features.double()), eps)


def centred_effective_rank(features: Tensor) -> float:
    """Return the same of centred features (N, D), in a time of min(N, D) ** 2 * max(N, D)."""
    x = features.double()
    x = x - x.mean(0)
    gram = x @ x.T if len(x) < x.shape[1] else x.T @ x
    return _rank(torch.linalg.eigvalsh(gram).clamp_min(0).sqrt(), 1e-7)


def _rank(singular_values: Tensor, eps: float) -> float:
    total = singular_values.sum().clamp_min(torch.finfo(torch.float64).tiny)
    shares = singular_values / total + eps
    return float(torch.exp(-(shares * shares.log()).sum()))

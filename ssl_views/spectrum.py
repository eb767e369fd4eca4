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
    values = torch.linalg.svdvals(features.double())
    shares = values / values.sum().clamp_min(torch.finfo(torch.float64).tiny) + eps
    return float(torch.exp(-(shares * shares.log()).sum()))

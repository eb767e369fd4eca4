"""VICReg and the kernel form with their gradients, at a cost of min(images, dimensions).

For centred rows X (n, D), XᵀX and the Gram matrix XXᵀ have the same norm, and X (XᵀX) = (XXᵀ) X. So
the smaller of the two gives value and gradient, and the other is never made.
"""

import torch
from torch import Tensor

from ssl_views.statistics import GlobalBatch


def square_sum(values: Tensor) -> Tensor:
    """Return the sum of squares, without a temporary."""
    flat = values.reshape(-1)
    return torch.dot(flat, flat)


class _Moments:
    """Second moments over the images of all processes.

    Of G groups of centred rows X (n, D) it knows XᵀX; VICReg has a group per view, the kernel form
    one.

    Attributes:
        deviation: 0-d, the sum over views, images and dimensions of (z_v - mean of the views)^2.
        diagonal: (G, D), of XᵀX.
        off_square_sum: 0-d, the sum of squares of all off-diagonal entries of XᵀX.
        parts: of the dimensions, for `product`.
    """

    def __init__(self, batch: GlobalBatch, num_groups: int) -> None:
        dim = batch.rows.shape[2]
        self._rows = batch.rows.view(num_groups, -1, dim)
        self._means = batch.means.view(num_groups, -1, dim).mean(dim=1, keepdim=True)
        num_rows = self._rows.shape[1]
        self._gram = batch.complete and num_rows < dim
        self.parts = batch.parts(self._gram)
        deviation, diagonals = batch.rows.new_zeros(()), []
        matrix = batch.rows.new_zeros(num_groups, *[num_rows if self._gram else dim] * 2)
        for part in self.parts:
            views = batch.rows[..., part]
            deviation += square_sum(views - views.mean(dim=0))
            centered = self.centered(part)
            if self._gram:
                matrix.baddbmm_(centered, centered.mT)
                diagonals.append(centered.square_().sum(dim=1))
            else:
                torch.bmm(centered.mT, centered, out=matrix)
        if self._gram:
            self.diagonal = torch.cat(diagonals, dim=1)
            self.off_square_sum = square_sum(matrix) - square_sum(self.diagonal)
        else:
            matrix, deviation = batch.sum_symmetric(matrix, deviation)
            diagonal = matrix.diagonal(dim1=1, dim2=2)
            self.diagonal = diagonal.clone()
            diagonal.zero_()
            self.off_square_sum = square_sum(matrix)
        self._matrix, self.deviation = matrix, deviation

    def centered(self, part: slice) -> Tensor:
        """Return the centred rows of some dimensions, (G, n, part)."""
        return self._rows[..., part] - self._means[..., part]

    def product(self, centered: Tensor, part: slice) -> Tensor:
        """Return X times the off-diagonal part of XᵀX, for the dimensions of a part."""
        if not self._gram:
            return torch.bmm(centered, self._matrix)
        product = torch.bmm(self._matrix, centered)
        return product.addcmul_(centered, self.diagonal[:, None, part], value=-1)


def vicreg_elements(num_views: int, dim: int) -> int:
    """Return how many numbers the second moments of VICReg are."""
    return num_views * dim * (dim + 1) // 2


def vicreg(
    batch: GlobalBatch,
    weights: dict[str, float],
    eps: float,
    gradient: bool,
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Return the terms of `losses.vicreg_loss` and the gradient (V, n, D) of its total."""
    num_views, _, dim = batch.rows.shape
    entries, free = batch.num_images * dim, batch.num_images - 1
    moments = _Moments(batch, num_groups=num_views)
    deviations = torch.sqrt(moments.diagonal / free + eps)
    hinge = 1 - deviations
    terms = {
        "invariance": moments.deviation * (2 / ((num_views - 1) * entries)),
        "variance": torch.relu(hinge).mean(),
        "covariance": moments.off_square_sum * (2 / (num_views * dim * free**2)),
    }
    if not gradient:
        return terms, None
    of_invariance = weights["invariance"] * 4 / ((num_views - 1) * entries)
    of_variance = (hinge > 0) / deviations * (-weights["variance"] / (num_views * dim * free))
    of_covariance = weights["covariance"] * 8 / (num_views * dim * free**2)
    out = torch.empty_like(batch.rows)
    for part in moments.parts:
        centered = moments.centered(part)
        total = moments.product(centered, part).mul_(of_covariance)
        total.addcmul_(centered, of_variance[:, None, part])
        rows = batch.rows[..., part]
        mean = rows.mean(dim=0).mul_(-of_invariance)
        out[..., part] = total.add_(rows, alpha=of_invariance).add_(mean)
    return terms, out


def kernel_elements(dim: int) -> int:
    """Return how many numbers the second moments of the kernel form are."""
    return dim * (dim + 1) // 2


def kernel(
    batch: GlobalBatch, weight: float, gradient: bool
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Return the terms of `losses.kernel_loss` and the gradient (V, n, D) of its total."""
    num_views = len(batch.rows)
    num_rows = num_views * batch.num_images
    moments = _Moments(batch, num_groups=1)
    excess = moments.diagonal / num_rows - 1
    terms = {
        "invariance": moments.deviation / (2 * (num_views - 1) * batch.num_images),
        "orthogonality": moments.off_square_sum / num_rows**2 + square_sum(excess),
    }
    if not gradient:
        return terms, None
    of_invariance = 1 / ((num_views - 1) * batch.num_images)
    out = torch.empty_like(batch.rows)
    for part in moments.parts:
        centered = moments.centered(part)
        total = moments.product(centered, part).mul_(4 * weight / num_rows**2)
        total.addcmul_(centered, excess[:, None, part], value=4 * weight / num_rows)
        rows = batch.rows[..., part]
        mean = rows.mean(dim=0).mul_(-of_invariance)
        total = total.view_as(rows)
        out[..., part] = total.add_(rows, alpha=of_invariance).add_(mean)
    return terms, out

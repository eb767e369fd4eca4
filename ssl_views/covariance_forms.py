"""VICReg and the kernel form with their gradients, at a cost of min(images, dimensions).

For centred rows X (n, D), XᵀX and the Gram matrix XXᵀ have the same norm, and X (XᵀX) = (XXᵀ) X. So
the smaller of the two gives value and gradient, and the other is never made.
"""

import torch
from torch import Tensor

from ssl_views.statistics import GlobalBatch


def square_sum(values: Tensor) -> Tensor:
    """Return the sum of squares, row by row: one long sum would lose digits."""
    return torch.linalg.vector_norm(values, dim=-1).square().sum()


class _Moments:
    """Second moments over the images of all processes.

    Of G groups of centred rows X (n, D) it knows XᵀX; VICReg has a group per view, the kernel form
    one.

    Attributes:
        deviation: 0-d, the sum over views, images and dimensions of (z_v - mean of the views)^2.
        diagonal: (G, D), of XᵀX.
        off_square_sum: 0-d, the sum of squares of all off-diagonal entries of XᵀX.
    """

    def __init__(self, batch: GlobalBatch, num_groups: int) -> None:
        num_views, num_images, dim = batch.rows.shape
        self._batch, self._pooled = batch, num_groups == 1
        num_rows = num_views * num_images // num_groups
        self._gram = batch.complete and num_rows < dim
        self._parts = batch.parts(whole=not self._gram, least=256)
        deviation, diagonals = batch.rows.new_zeros(()), []
        matrix = batch.rows.new_zeros(num_groups, *[num_rows if self._gram else dim] * 2)
        for part in self._parts:
            views = batch.shifted(part)
            deviation += square_sum(views - views.mean(dim=0))
            centered = self._center_(views, part)
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

    def _center_(self, views: Tensor, part: slice) -> Tensor:
        """Center shifted views (V, B, part) in place, as groups of rows (G, n, part)."""
        if self._pooled:
            return self._batch.center_(views, part, pooled=True).reshape(1, -1, views.shape[2])
        return self._batch.center_(views, part)

    def gradient(self, of_deviation: float, of_diagonal: Tensor, of_off: float) -> Tensor:
        """Return the gradient (V, B, D) of a loss from its slopes; can be called once.

        Args:
            of_deviation: slope by half the deviation.
            of_diagonal: (G, D), slope by half the diagonal.
            of_off: slope by a quarter of the sum of squares off the diagonal.
        """
        matrix = self._matrix.mul_(of_off)
        if self._gram:  # it holds the diagonal too
            of_diagonal = of_diagonal - of_off * self.diagonal
        out = torch.empty_like(self._batch.rows, memory_format=torch.contiguous_format)
        for part in self._parts:
            views = self._batch.shifted(part)
            deviation = views - views.mean(dim=0)
            centered = self._center_(views, part)
            total = torch.bmm(matrix, centered) if self._gram else torch.bmm(centered, matrix)
            total.addcmul_(centered, of_diagonal[:, None, part])
            torch.add(total.view_as(views), deviation, alpha=of_deviation, out=out[..., part])
        return out


def vicreg_elements(num_views: int, dim: int) -> int:
    """Return how many numbers the second moments of VICReg are."""
    return num_views * dim * (dim + 1) // 2


def vicreg(
    batch: GlobalBatch, weights: dict[str, float], eps: float
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
    if not batch.wanted:
        return terms, None
    of_hinge = -weights["variance"] / (num_views * dim * free)
    return terms, moments.gradient(
        of_deviation=weights["invariance"] * 4 / ((num_views - 1) * entries),
        of_diagonal=(hinge > 0) / deviations * of_hinge,
        of_off=weights["covariance"] * 8 / (num_views * dim * free**2),
    )


def kernel_elements(dim: int) -> int:
    """Return how many numbers the second moments of the kernel form are."""
    return dim * (dim + 1) // 2


def kernel(batch: GlobalBatch, weight: float) -> tuple[dict[str, Tensor], Tensor | None]:
    """Return the terms of `losses.kernel_loss` and the gradient (V, n, D) of its total."""
    num_views = len(batch.rows)
    num_rows = num_views * batch.num_images
    moments = _Moments(batch, num_groups=1)
    excess = moments.diagonal / num_rows - 1
    terms = {
        "invariance": moments.deviation / (2 * (num_views - 1) * batch.num_images),
        "orthogonality": moments.off_square_sum / num_rows**2 + square_sum(excess),
    }
    if not batch.wanted:
        return terms, None
    return terms, moments.gradient(
        of_deviation=1 / ((num_views - 1) * batch.num_images),
        of_diagonal=excess * (4 * weight / num_rows),
        of_off=4 * weight / num_rows**2,
    )

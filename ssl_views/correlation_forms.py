"""Barlow Twins with its gradient, at a cost of min(images, dimensions).

For standardized views a and b (n, D) with C = aᵀb / N, A = aaᵀ and B = bbᵀ: |C|^2 = <A, B> / N^2,
and the gradient of |C|^2 by a is 2 b Cᵀ / N = 2 B a / N^2. So either D x D or n x n matrices will
do. Averaged over all pairs, a view's partners enter by the sum of their Gram matrices alone.
"""

from collections.abc import Callable
from itertools import combinations
from typing import Literal

import torch
from torch import Tensor

from ssl_views.covariance_forms import square_sum
from ssl_views.statistics import GlobalBatch

# Of the standardized views of a part of the dimensions: the slope of the loss by them (V, n, part),
# and the inner product of both over all images (V, part).
_Slope = Callable[[slice], tuple[Tensor, Tensor]]
_Computed = Callable[[GlobalBatch, Tensor, float], tuple[dict[str, Tensor], _Slope]]


# What correlates: every view with the mean of the others, all pairs of views, or (off the diagonal,
# else as "others") the mean of the views with itself.
Form = Literal["others", "pairs", "mean"]


def barlow_elements(num_views: int, dim: int, form: Form) -> int:
    """Return how many numbers the second moments of Barlow Twins are."""
    if form == "mean":
        return dim * (dim + 1) // 2
    return dim**2 * (num_views * (num_views - 1) // 2 if form == "pairs" else num_views)


def _gram_is_cheaper(batch: GlobalBatch, form: Form) -> bool:
    """Compare matrix products: forward and backward by D x D matrices, and by n x n ones."""
    num_views, num_rows, dim = batch.rows.shape
    by_matrices, by_grams = {
        "others": (3 * num_views, 4 * num_views),
        "pairs": (3 * num_views * (num_views - 1) // 2, 2 * num_views),
        "mean": (2, 2),
    }[form]
    return batch.complete and by_grams * num_rows < by_matrices * dim


def barlow_twins(
    batch: GlobalBatch, weight: float, form: Form, eps: float
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Return the terms of `losses.barlow_twins_loss` and the gradient (V, n, D) of its total."""
    gram = _gram_is_cheaper(batch, form)
    views = torch.empty_like(batch.rows, memory_format=torch.contiguous_format)
    scales = []
    for part in batch.parts():
        centered = batch.center_(batch.shifted(part), part)
        (squares,) = batch.sum(centered.square().sum(dim=1))
        scales.append(torch.rsqrt(squares / batch.num_images + eps))
        torch.mul(centered, scales[-1][:, None], out=views[..., part])
    terms, slope = _FORMS[form, gram](batch, views, weight)
    if not batch.wanted:
        return terms, None
    # Through the standardization. Its mean needs nothing, for slopes are made of centred rows. Each
    # part takes the place of the views that it was made of.
    scale = torch.cat(scales, dim=1)
    for part in batch.parts(whole=not gram, least=256):
        by_view, along = slope(part)
        by_view.addcmul_(views[..., part], along[:, None], value=-1 / batch.num_images)
        torch.mul(by_view, scale[:, None, part], out=views[..., part])
    return terms, views


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Return the sum of products of entries, one matrix at a time."""
    return torch.stack([(x * y).sum() for x, y in zip(a, b, strict=True)]).sum()


def _along(slopes: Tensor, views: Tensor) -> Tensor:
    """Return the inner product over images, (V, part), with a temporary of one view."""
    return torch.stack([(s * v).sum(dim=0) for s, v in zip(slopes, views, strict=True)])


def _others(views: Tensor) -> Tensor:
    """Return the mean of the other views, for every view."""
    return (views.sum(dim=0) - views).div_(len(views) - 1)


def _through_others(slope: Tensor) -> Tensor:
    """Turn a slope by the mean of the others into one by the views."""
    return (slope.sum(dim=0) - slope).div_(len(slope) - 1)


def _others_by_gram(
    batch: GlobalBatch, views: Tensor, weight: float
) -> tuple[dict[str, Tensor], _Slope]:
    num_views, num_images, _ = views.shape
    of_views, of_others = views.new_zeros(2, num_views, num_images, num_images)
    diagonals = []
    for part in batch.parts(least=256):
        view = views[..., part]
        others = _others(view)
        of_views.baddbmm_(view, view.mT)
        of_others.baddbmm_(others, others.mT)
        diagonals.append(others.mul_(view).sum(dim=1).div_(num_images))
    diagonal = torch.cat(diagonals, dim=1)
    product = _inner(of_views, of_others) / num_images**2
    terms = {
        "invariance": square_sum(1 - diagonal) / num_views,
        "redundancy": (product - square_sum(diagonal)) / num_views,
    }
    of_diagonal = ((1 - weight) * diagonal - 1).mul_(2 / (num_views * num_images))
    of_product = 2 * weight / (num_views * num_images**2)

    def slope(part: slice) -> tuple[Tensor, Tensor]:
        view, factor = views[..., part], of_diagonal[:, None, part]
        others = _others(view)
        by_view = torch.bmm(of_others, view).mul_(of_product).addcmul_(others, factor)
        by_others = torch.bmm(of_views, others).mul_(of_product).addcmul_(view, factor)
        by_view += _through_others(by_others)
        return by_view, _along(by_view, view)

    return terms, slope


def _others_by_matrices(
    batch: GlobalBatch, views: Tensor, weight: float
) -> tuple[dict[str, Tensor], _Slope]:
    num_views, num_images = len(views), batch.num_images
    others = _others(views)
    (correlations,) = batch.sum(torch.bmm(views.mT, others))
    diagonal = correlations.div_(num_images).diagonal(dim1=1, dim2=2)
    misses = 1 - diagonal
    diagonal.zero_()
    terms = {
        "invariance": square_sum(misses) / num_views,
        "redundancy": square_sum(correlations) / num_views,
    }

    def slope(part: slice) -> tuple[Tensor, Tensor]:
        by_entry = correlations.mul_(2 * weight / (num_views * num_images))
        diagonal.copy_(misses).mul_(-2 / (num_views * num_images))
        by_view = torch.bmm(others, by_entry.mT)
        by_view += _through_others(torch.bmm(views, by_entry))
        return by_view, batch.sum(_along(by_view, views))[0]

    return terms, slope


def _pairs_by_gram(
    batch: GlobalBatch, views: Tensor, weight: float
) -> tuple[dict[str, Tensor], _Slope]:
    num_views, num_images, _ = views.shape
    pairs = list(combinations(range(num_views), 2))
    grams = views.new_zeros(num_views, num_images, num_images)
    diagonals = []
    for part in batch.parts(least=256):
        view = views[..., part]
        grams.baddbmm_(view, view.mT)
        diagonals.append(torch.stack([(view[v] * view[w]).sum(dim=0) for v, w in pairs]))
    diagonal = torch.cat(diagonals, dim=1).div_(num_images)
    of_others = grams.sum(dim=0) - grams
    product = _inner(grams, of_others) / (2 * num_images**2)
    terms = {
        "invariance": square_sum(1 - diagonal) / len(pairs),
        "redundancy": (product - square_sum(diagonal)) / len(pairs),
    }
    of_diagonal = ((1 - weight) * diagonal - 1).mul_(2 / (len(pairs) * num_images))

    def slope(part: slice) -> tuple[Tensor, Tensor]:
        view = views[..., part]
        by_view = torch.bmm(of_others, view).mul_(2 * weight / (len(pairs) * num_images**2))
        for factor, (v, w) in zip(of_diagonal[:, part], pairs, strict=True):
            by_view[v].addcmul_(view[w], factor)
            by_view[w].addcmul_(view[v], factor)
        return by_view, _along(by_view, view)

    return terms, slope


def _pairs_by_matrices(
    batch: GlobalBatch, views: Tensor, weight: float
) -> tuple[dict[str, Tensor], _Slope]:
    num_images = batch.num_images
    pairs = list(combinations(range(len(views)), 2))
    correlations = batch.sum(*(views[v].T @ views[w] for v, w in pairs))
    misses = []
    for matrix in correlations:
        diagonal = matrix.div_(num_images).diagonal()
        misses.append(1 - diagonal)
        diagonal.zero_()
    terms = {
        "invariance": torch.stack([square_sum(miss) for miss in misses]).mean(),
        "redundancy": torch.stack([square_sum(matrix) for matrix in correlations]).mean(),
    }
    scale = 2 / len(pairs)

    def slope(part: slice) -> tuple[Tensor, Tensor]:
        by_view, along = torch.empty_like(views), views.new_zeros(len(views), views.shape[2])
        for (v, w), matrix, miss in zip(pairs, correlations, misses, strict=True):
            squares, on_diagonal = matrix.square(), miss * (miss - 1)  # slopes times entries
            along[v] += (weight * squares.sum(dim=1) + on_diagonal).mul_(scale)
            along[w] += (weight * squares.sum(dim=0) + on_diagonal).mul_(scale)
            by_entry = matrix.mul_(weight * scale / num_images)
            by_entry.diagonal().copy_(miss).mul_(-scale / num_images)
            # beta: whether something is there already, from an earlier pair
            by_view[v].addmm_(views[w], by_entry.T, beta=int((v, w) != (0, 1)))
            by_view[w].addmm_(views[v], by_entry, beta=int(v > 0))
        return by_view, along

    return terms, slope


def _mean_by_gram(
    batch: GlobalBatch, views: Tensor, weight: float
) -> tuple[dict[str, Tensor], _Slope]:
    num_views, num_images = len(views), batch.num_images
    gram = views.new_zeros(num_images, num_images)
    diagonals, squares = [], []
    for part in batch.parts(least=256):
        view = views[..., part]
        total = view.sum(dim=0)
        diagonals.append((total - view).mul_(view).sum(dim=1))
        mean = total.div_(num_views)
        gram.addmm_(mean, mean.T)
        squares.append(mean.square_().sum(dim=0))
    square = torch.cat(squares)
    diagonal = torch.cat(diagonals, dim=1).div_((num_views - 1) * num_images)
    off_square_sum = square_sum(gram) - square_sum(square)

    def product(mean: Tensor, part: slice) -> Tensor:
        return torch.mm(gram, mean).addcmul_(mean, square[part], value=-1)

    return _of_mean(batch, views, weight, diagonal, off_square_sum, product)


def _mean_by_matrices(
    batch: GlobalBatch, views: Tensor, weight: float
) -> tuple[dict[str, Tensor], _Slope]:
    mean = views.mean(dim=0)
    diagonal = _others(views).mul_(views).sum(dim=1)
    moments, diagonal = batch.sum_symmetric(torch.mm(mean.T, mean)[None], diagonal)
    moments[0].diagonal().zero_()

    def product(mean: Tensor, _: slice) -> Tensor:
        return torch.mm(mean, moments[0])

    diagonal = diagonal / batch.num_images
    return _of_mean(batch, views, weight, diagonal, square_sum(moments), product)


def _of_mean(
    batch: GlobalBatch,
    views: Tensor,
    weight: float,
    diagonal: Tensor,
    off_square_sum: Tensor,
    product: Callable[[Tensor, slice], Tensor],
) -> tuple[dict[str, Tensor], _Slope]:
    """Put the mean form together; `product` is of the mean with its off-diagonal moments."""
    num_views, num_images = len(views), batch.num_images
    terms = {
        "invariance": square_sum(1 - diagonal) / num_views,
        "redundancy": off_square_sum / num_images**2,
    }
    of_diagonal = (diagonal - 1).mul_(2 / (num_views * (num_views - 1) * num_images))
    of_product = 4 * weight / (num_views * num_images**2)

    def slope(part: slice) -> tuple[Tensor, Tensor]:
        view, factor = views[..., part], of_diagonal[:, None, part]
        total = view.sum(dim=0)
        by_mean = product(total / num_views, part).mul_(of_product).add_((view * factor).sum(dim=0))
        by_view = torch.addcmul(by_mean, total, factor).addcmul_(view, factor, value=-2)
        return by_view, batch.sum(_along(by_view, view))[0]

    return terms, slope


_FORMS: dict[tuple[Form, bool], _Computed] = {
    ("others", True): _others_by_gram,
    ("others", False): _others_by_matrices,
    ("pairs", True): _pairs_by_gram,
    ("pairs", False): _pairs_by_matrices,
    ("mean", True): _mean_by_gram,
    ("mean", False): _mean_by_matrices,
}

"""The augmentation graph, exact and as few views show it.

The functions of this file are found in `ssl_views.theory`.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

_TIED = 1e-9  # eigenvalues (of at most 1) that are closer than this are one
_PART_ELEMENTS = 2**22  # of the graphs that are held at a time


class FourImageGraph(NamedTuple):
    """Two classes by two kinds of pixels.

    Attributes:
        probabilities: (4, 4) float64, P(augmented | image).
        eigenvectors: (4, 4) float64, one per row: constant, class, pixels, and their product.
    """

    probabilities: Tensor
    eigenvectors: Tensor


class AugmentationSpectrum(NamedTuple):
    """Spectrum of an augmentation graph.

    Attributes:
        eigenvalues: (num_images,) float64 in [0, 1]: that of the constant, 1, then largest first.
        eigenvectors: (num_images, num_images) float64, one per row, orthonormal.
    """

    eigenvalues: Tensor
    eigenvectors: Tensor


class SampledSpectrum(NamedTuple):
    """Spectrum of an augmentation graph of which a few views were seen.

    Attributes:
        eigenvalues: (num_images,) float64, means over draws.
        spread: (num_images,) float64, standard deviations over draws.
        overlaps: (num_images, num_images) float64: squared inner product of the eigenvector of the
            sampled graph (row) and of the exact graph (column), mean over draws. Rows and columns
            sum to 1; without confusion it is the identity.
    """

    eigenvalues: Tensor
    spread: Tensor
    overlaps: Tensor


def four_image_graph(
    self_prob: float, class_prob: float, pixel_prob: float, other_prob: float
) -> FourImageGraph:
    """Return four images: two classes, and in each the same two kinds of pixels.

    The nontrivial eigenvalues of its spectrum are the squares of self + class - pixel - other
    (eigenvector: class), self - class + pixel - other (pixels), self - class - pixel + other.

    Args:
        self_prob: that an augmentation of an image looks like itself.
        class_prob: like the other image of its class.
        pixel_prob: like the image of the other class with its pixels.
        other_prob: like the image that differs in both.

    Raises:
        ValueError: if these are not probabilities whose sum is 1.

    Source:
        arXiv 2312.10725, App. C.3.

    Example:
        >>> graph = four_image_graph(0.55, 0.2, 0.15, 0.1)
        >>> [round(value, 4) for value in augmentation_spectrum(graph.probabilities)[0].tolist()]
        [1.0, 0.25, 0.16, 0.09]
    """
    s, c, p, o = self_prob, class_prob, pixel_prob, other_prob
    rows = [[s, c, p, o], [c, s, o, p], [p, o, s, c], [o, p, c, s]]
    signs = [[1, 1, 1, 1], [1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]]
    return FourImageGraph(
        _probabilities(torch.tensor(rows, dtype=torch.float64)),
        torch.tensor(signs, dtype=torch.float64) / 2,
    )


def augmentation_spectrum(probabilities: Tensor) -> AugmentationSpectrum:
    """Return the exact spectrum of an augmentation graph whose images are equally likely.

    Two augmentations a, b are joined by A_ab, the mean over images of P(a | x) P(b | x); of degree
    D_a, the mean of P(a | x). The eigenvalues of D^-1/2 A D^-1/2 other than 0 are those of K, with
    K_xy the sum over a of P(a | x) P(a | y) / (num_images D_a), which is as large as there are
    images; its eigenvectors are returned. An eigenvalue is the correlation of a function between
    two views of an image.

    Args:
        probabilities: (num_images, num_augmented), P(augmented | image); rows sum to 1.

    Raises:
        ValueError: if it is no such matrix.

    Source:
        arXiv 2312.10725, App. C.3; HaoChen et al., arXiv 2106.04156.

    Example:
        >>> augmentation_spectrum(torch.eye(3)).eigenvalues.round().tolist()  # nothing is joined
        [1.0, 1.0, 1.0]
    """
    return AugmentationSpectrum(*_spectra(_probabilities(probabilities)))


def sampled_spectrum(
    probabilities: Tensor, num_views: int, num_draws: int = 1000, seed: int = 0
) -> SampledSpectrum:
    """Return the spectrum when each image was seen through a few sampled augmentations.

    P(augmented | image) is replaced by the share of an image's views; degrees are those of the
    sampled graph. An augmentation that was never drawn has degree 0 and is no part of it. Images
    that share no drawn augmentation fall into parts of their own, each with an eigenvalue of 1: few
    views give leading eigenvalues that are too large, and eigenvectors that mix the exact ones.

    Where sampled eigenvalues are equal, each of their eigenvectors gets the mean overlap of all,
    for any rotation of them is as good. Where exact ones are equal, add the columns.

    Args:
        probabilities: (num_images, num_augmented); rows sum to 1.
        num_views: per image, drawn with replacement, at least 1.
        num_draws: of the whole graph, at least 1.
        seed: of the draws.

    Raises:
        ValueError: if an argument is not as stated.

    Source:
        arXiv 2312.10725, App. C.3 (the subsampling ansatz).

    Example:
        >>> graph = four_image_graph(0.55, 0.2, 0.15, 0.1)
        >>> sampled = sampled_spectrum(graph.probabilities, num_views=2)
        >>> sampled.eigenvalues[1] > 0.8, sampled.overlaps[1, 1] < 0.6  # class, seen through two
        (tensor(True), tensor(True))
    """
    at_least_one(num_views=num_views, num_draws=num_draws)
    exact = _probabilities(probabilities)
    num_images, num_augmented = exact.shape
    vectors = _spectra(exact)[1]
    generator = np.random.default_rng(seed)
    part = max(1, _PART_ELEMENTS // (num_images * max(num_images, num_augmented)))
    values, overlaps = [], torch.zeros(num_images, num_images, dtype=torch.float64)
    for start in range(0, num_draws, part):
        size = (min(part, num_draws - start), num_images)
        counts = torch.from_numpy(generator.multinomial(num_views, exact.numpy(), size=size))
        found, sampled = _spectra(counts.double() / num_views)
        tied = (found[:, :, None] - found[:, None, :]).abs() < _TIED
        tied[:, 0] = tied[:, :, 0] = False
        tied[:, 0, 0] = True  # the constant is known, however many eigenvalues are 1
        shares = tied.double() / tied.sum(dim=2, keepdim=True)
        overlaps += (shares @ (sampled @ vectors.T).square()).sum(dim=0)
        values.append(found)
    drawn = torch.cat(values)
    return SampledSpectrum(drawn.mean(dim=0), drawn.std(dim=0, correction=0), overlaps / num_draws)


def _spectra(probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues (..., n) and eigenvectors as rows (..., n, n): the constant first."""
    num_images = probabilities.shape[-2]
    degrees = probabilities.sum(dim=-2, keepdim=True)
    scaled = probabilities * torch.where(degrees > 0, degrees, 1.0).rsqrt()
    kernel = scaled @ scaled.mT
    # The constant is an eigenvector, of 1; less 2 it has -1, which no other eigenvalue is equal to.
    values, vectors = torch.linalg.eigh(kernel - 2 / num_images)
    values, vectors = values.flip(-1).roll(1, -1), vectors.mT.flip(-2).roll(1, -2)
    values[..., 0] += 2
    return values.clamp(0, 1), vectors


def _probabilities(matrix: Tensor) -> Tensor:
    """Return them checked, in float64 on the CPU, with rows that sum to 1 exactly."""
    p = matrix.detach().cpu().double()
    fits = p.ndim == 2 and p.numel() > 0 and bool((p >= 0).all())
    if not fits or not ((p.sum(dim=1) - 1).abs() < 1e-5).all():
        raise ValueError(
            "probabilities must be at least 0, of shape (num_images, num_augmented), with rows "
            f"that sum to 1; got shape {tuple(p.shape)}. Divide counts by the sum of their row."
        )
    return p / p.sum(dim=1, keepdim=True)


def at_least_one(**counts: int) -> None:
    """Refuse counts, by name, that are not whole numbers of at least 1."""
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(
                f"{name} must be a whole number of at least 1; got {count!r}. Take 1 or more."
            )

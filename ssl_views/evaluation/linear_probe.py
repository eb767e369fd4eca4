"""Multinomial logistic regression on frozen features."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_views.evaluation.checks import check_labels, check_test, check_train

WEIGHT_DECAYS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)
_FEW = 1000  # images, below which a fifth of them is too few to choose by
_NUM_FOLDS = 5
_ROUNDING = 10  # machine epsilons of the size of a dimension that may be rounding alone


@dataclass(frozen=True)
class LinearProbe:
    """A linear classifier of features.

    Attributes:
        weights: (D + 1, K), of standardized features; the last row is the bias.
        mean: (D,), of the training features.
        std: (D,), of the training features; infinite where one is constant, which leaves it out.
        classes: (K,) int64, the labels that occur in training, ascending.
        weight_decay: that it was fitted with.
    """

    weights: Tensor
    mean: Tensor
    std: Tensor
    classes: Tensor
    weight_decay: float

    def predict(self, features: Tensor) -> Tensor:
        """Return the most probable class of each image, (M,) int64, of features (M, D)."""
        check_test(features, self.mean[None])
        inputs = (_at_least_float32(features) - self.mean) / self.std
        return self.classes[_logits(inputs, self.weights).argmax(dim=1)]


def linear_probe_accuracy(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    weight_decay: float | None = None,
    max_iterations: int = 200,
) -> float:
    """Return the test accuracy of a linear classifier fitted to the training features.

    Test labels choose nothing: they are first looked at when all images have been classified.

    Args:
        train_features: (N, D).
        train_labels: (N,) int64, >= 0.
        test_features: (M, D).
        test_labels: (M,) int64, >= 0.
        weight_decay: as of `fit_linear_probe`.
        max_iterations: as of `fit_linear_probe`.

    Returns:
        A fraction.

    Raises:
        ValueError: if features or labels cannot be used.

    Differs from source:
        arXiv 2312.10725 trains the layer with Adam for 200 epochs on augmented images; this uses
        one clean view.
    """
    check_test(test_features, train_features)
    check_labels(test_labels, test_features, "test_labels")
    probe = fit_linear_probe(
        train_features, train_labels, weight_decay=weight_decay, max_iterations=max_iterations
    )
    return float((probe.predict(test_features) == test_labels).float().mean())


def fit_linear_probe(
    train_features: Tensor,
    train_labels: Tensor,
    *,
    weight_decay: float | None = None,
    max_iterations: int = 200,
) -> LinearProbe:
    """Fit a linear classifier to features.

    Features are standardized with the training mean and standard deviation. The classifier
    minimises mean cross-entropy + weight_decay / 2 * |W|^2 by full-batch L-BFGS, in coordinates
    where the loss is about equally curved in all directions. The problem is convex, so neither a
    seed nor a learning rate is involved.

    The weight decay is the one of `WEIGHT_DECAYS` with the least cross-entropy on training images
    that were held out, the same share of each class: a fifth of them, or, of fewer than 1,000
    images, each fifth in turn. (Accuracies of few images hardly differ.) They are tried from the
    strongest until the cross-entropy rises. Then all training images are fitted.

    Args:
        train_features: (N, D), in half precision too; computed in float32 or better.
        train_labels: (N,) int64, >= 0.
        weight_decay: of the weights, not of the bias, > 0; None chooses it.
        max_iterations: of L-BFGS, per fit.

    Raises:
        ValueError: if features or labels cannot be used, or weight_decay is not above 0.
    """
    check_train(train_features, train_labels)
    if weight_decay is not None and not weight_decay > 0:
        raise ValueError(
            f"weight_decay must be > 0; got {weight_decay}. None chooses it on training images."
        )
    features = _at_least_float32(train_features)
    std, mean = torch.std_mean(features, dim=0)
    rounding = _ROUNDING * torch.finfo(features.dtype).eps * mean.abs()
    std = torch.where(std > rounding, std, torch.inf)
    inputs = (features - mean).div_(std)
    classes, labels = train_labels.unique(return_inverse=True)
    weights = inputs.new_zeros(inputs.shape[1] + 1, len(classes))
    if weight_decay is None:
        weight_decay, weights = _choose(inputs, labels, weights, max_iterations)
    weights = _Fit(inputs, labels, max_iterations).weights(weights, weight_decay)
    return LinearProbe(weights, mean, std, classes, weight_decay)


def _choose(
    inputs: Tensor, labels: Tensor, start: Tensor, max_iterations: int
) -> tuple[float, Tensor]:
    """Return the weight decay that is best on held-out training images, and weights near it."""
    splits = list(_splits(labels))
    fits = [_Fit(inputs[kept], labels[kept], max_iterations) for kept, _ in splits]
    weights = [start] * len(splits)
    best = (math.inf, WEIGHT_DECAYS[0], start)
    for weight_decay in WEIGHT_DECAYS:  # from strong to weak, each fit starting from the last
        loss = 0.0
        for place, (fit, (_, held_out)) in enumerate(zip(fits, splits, strict=True)):
            weights[place] = fit.weights(weights[place], weight_decay)
            logits = _logits(inputs[held_out], weights[place])
            loss += float(F.cross_entropy(logits, labels[held_out], reduction="sum"))
        if loss >= best[0]:
            break  # weaker still only fits the training images closer
        best = (loss, weight_decay, weights[-1])
    return best[1:]


def shuffled_by_class(labels: Tensor, number: int) -> Tensor:
    """Return all rows (N,), those of a class together, each number in another order.

    Args:
        labels: (N,) int64, on the CPU.
        number: seed of the order.
    """
    mixed = torch.randperm(len(labels), generator=torch.Generator().manual_seed(number))
    return mixed[labels[mixed].argsort(stable=True)]


def _splits(labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield indices of images to fit, and of images held out, the same share of each class."""
    num_folds = min(_NUM_FOLDS, len(labels))
    by_class = shuffled_by_class(labels.cpu(), 0)
    folds = torch.empty_like(by_class)
    folds[by_class] = torch.arange(len(labels)) % num_folds
    for fold in range(num_folds if len(labels) < _FEW else 1):
        kept, held_out = (folds != fold).nonzero()[:, 0], (folds == fold).nonzero()[:, 0]
        yield kept.to(labels.device), held_out.to(labels.device)


class _Fit:
    """Fits of one set of images, with one weight decay after the other."""

    def __init__(self, inputs: Tensor, labels: Tensor, max_iterations: int) -> None:
        self.labels, self.max_iterations = labels, max_iterations
        # Of fewer images than dimensions, the weights of least loss lie in the span of the images.
        few = len(inputs) < inputs.shape[1]
        self.basis = torch.linalg.qr(inputs.T).Q if few else None
        self.inputs = inputs if self.basis is None else inputs @ self.basis
        self.second_moments = self.inputs.T @ self.inputs / len(inputs)

    def weights(self, start: Tensor, weight_decay: float) -> Tensor:
        """Return the weights (D + 1, K) of least loss, found from others."""
        if self.basis is None:
            return self._weights(start, weight_decay)
        inside = torch.cat([self.basis.T @ start[:-1], start[-1:]])
        found = self._weights(inside, weight_decay)
        return torch.cat([self.basis @ found[:-1], found[-1:]])

    def _weights(self, start: Tensor, weight_decay: float) -> Tensor:
        root = self._root(weight_decay, start.shape[1])
        scaled = (root.T @ start).requires_grad_()
        optimizer = torch.optim.LBFGS(
            [scaled],
            max_iter=self.max_iterations,
            history_size=10,
            tolerance_grad=1e-6,
            tolerance_change=1e-7,
            line_search_fn="strong_wolfe",
        )

        def unscaled() -> Tensor:
            return torch.linalg.solve_triangular(root.T, scaled, upper=True)

        def objective() -> Tensor:
            optimizer.zero_grad()
            weights = unscaled()
            loss = F.cross_entropy(_logits(self.inputs, weights), self.labels)
            loss = loss + weight_decay / 2 * weights[:-1].square().sum()
            loss.backward()
            return loss

        with torch.enable_grad():
            optimizer.step(objective)
        return unscaled().detach()

    def _root(self, weight_decay: float, num_classes: int) -> Tensor:
        """Return a factor (D + 1, D + 1) of the second derivative where all classes are alike.

        L-BFGS needs several times fewer steps in coordinates in which this is the identity.
        """
        dim = len(self.second_moments)
        curvature = torch.eye(dim + 1, dtype=self.inputs.dtype, device=self.inputs.device)
        curvature[:dim, :dim] = self.second_moments
        curvature /= num_classes
        least = 1e-6 * dim / num_classes  # what rounding leaves positive
        curvature.diagonal()[:dim].add_(max(weight_decay, least))
        return torch.linalg.cholesky(curvature)


def _at_least_float32(features: Tensor) -> Tensor:
    return features.detach().to(torch.promote_types(features.dtype, torch.float32))


def _logits(inputs: Tensor, weights: Tensor) -> Tensor:
    return torch.addmm(weights[-1], inputs, weights[:-1])

"""Multinomial logistic regression on frozen features."""

import torch
import torch.nn.functional as F
from torch import Tensor

WEIGHT_DECAYS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)
_VALIDATION_SHARE = 0.1


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

    Features are standardized with the training mean and standard deviation. The classifier
    minimises mean cross-entropy + weight_decay / 2 * |W|^2 by full-batch L-BFGS: the problem is
    convex, so no seed and no learning rate is involved. The weight decay is chosen on a random
    tenth of the *training* images: from the strongest of `WEIGHT_DECAYS` down, until the accuracy
    falls. Test labels choose nothing.

    Args:
        train_features: (N, D).
        train_labels: (N,) int64, >= 0.
        test_features: (M, D).
        test_labels: (M,) int64.
        weight_decay: of the weights, not of the bias; None chooses it.
        max_iterations: of L-BFGS, per fit.

    Returns:
        A fraction.

    Differs from source:
        arXiv 2312.10725 trains the layer with Adam for 200 epochs on augmented images; this uses
        one clean view.
    """
    mean, std = train_features.mean(dim=0), train_features.std(dim=0).clamp_min(1e-6)
    inputs, test_inputs = (train_features - mean) / std, (test_features - mean) / std
    num_classes = int(torch.cat([train_labels, test_labels]).max()) + 1
    weights = torch.zeros(inputs.shape[1] + 1, num_classes)
    if weight_decay is None:
        weight_decay, weights = _choose(inputs, train_labels, weights, max_iterations)
    weights = _fit(inputs, train_labels, weights, weight_decay, max_iterations)
    return _accuracy(test_inputs, test_labels, weights)


def _choose(
    inputs: Tensor, labels: Tensor, weights: Tensor, max_iterations: int
) -> tuple[float, Tensor]:
    """Return the weight decay that is best on held-out training images, and its weights."""
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    held_out, kept = order.split([n := int(len(order) * _VALIDATION_SHARE), len(order) - n])
    best = (-1.0, WEIGHT_DECAYS[0], weights)
    for weight_decay in WEIGHT_DECAYS:  # from strong to weak, each fit starting from the last
        weights = _fit(inputs[kept], labels[kept], weights, weight_decay, max_iterations)
        accuracy = _accuracy(inputs[held_out], labels[held_out], weights) if n else 0.0
        if accuracy < best[0]:
            break  # weaker still only fits the training images closer, and slower
        best = (accuracy, weight_decay, weights)
    return best[1:]


def _logits(inputs: Tensor, weights: Tensor) -> Tensor:
    return inputs @ weights[:-1] + weights[-1]


def _accuracy(inputs: Tensor, labels: Tensor, weights: Tensor) -> float:
    return float((_logits(inputs, weights).argmax(dim=1) == labels).float().mean())


def _fit(
    inputs: Tensor, labels: Tensor, start: Tensor, weight_decay: float, max_iterations: int
) -> Tensor:
    weights = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weights],
        max_iter=max_iterations,
        history_size=10,
        tolerance_grad=1e-5,
        tolerance_change=1e-7,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(_logits(inputs, weights), labels)
        loss = loss + weight_decay / 2 * weights[:-1].square().sum()
        loss.backward()
        return loss

    optimizer.step(objective)
    return weights.detach()

"""Multinomial logistic regression on frozen features."""

import torch
import torch.nn.functional as F
from torch import Tensor


def linear_probe_accuracy(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    weight_decay: float = 1e-4,
    max_iterations: int = 200,
) -> float:
    """Return the test accuracy of a linear classifier fitted to the training features.

    Features are standardized with the training mean and standard deviation. The classifier
    minimises mean cross-entropy + weight_decay / 2 * |W|^2 by full-batch L-BFGS, from zero: the
    problem is convex, so neither a seed nor a learning rate is involved. Test labels choose
    nothing.

    Args:
        train_features: (N, D).
        train_labels: (N,) int64, >= 0.
        test_features: (M, D).
        test_labels: (M,) int64.
        weight_decay: of the weights, not of the bias.
        max_iterations: of L-BFGS.

    Returns:
        A fraction.

    Differs from source:
        arXiv 2312.10725 trains the layer with Adam for 200 epochs on augmented images; this uses
        one clean view.
    """
    mean, std = train_features.mean(dim=0), train_features.std(dim=0).clamp_min(1e-6)
    inputs, test_inputs = (train_features - mean) / std, (test_features - mean) / std
    num_classes = int(torch.cat([train_labels, test_labels]).max()) + 1
    weight = torch.zeros(inputs.shape[1], num_classes, requires_grad=True)
    bias = torch.zeros(num_classes, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=max_iterations,
        history_size=10,
        tolerance_grad=1e-5,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(inputs @ weight + bias, train_labels)
        loss = loss + weight_decay / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(objective)
    with torch.no_grad():
        predicted = (test_inputs @ weight + bias).argmax(dim=1)
    return float((predicted == test_labels).float().mean())

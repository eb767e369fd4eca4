"""Features whose classes are known, and what must not depend on the labels of test images."""

import numpy as np
import torch


def clusters(count, seed, noise=2.0):
    """Five overlapping Gaussian classes in 12 dimensions of unequal scale."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(5, 12)) * 2
    labels = rng.integers(0, 5, count)
    features = (centres[labels] + noise * rng.normal(size=(count, 12))) * np.linspace(0.1, 10, 12)
    return torch.tensor(features, dtype=torch.float32), torch.tensor(labels)


def weak_signal(num_train, num_test, *, dim=400, noise=20, seed=0):
    """Two classes, in noise: whoever fits few images closely does badly on others."""
    rng = np.random.default_rng(seed)
    count = num_train + num_test
    features = torch.tensor(rng.normal(size=(count, dim)), dtype=torch.float32)
    score = features @ torch.tensor(rng.normal(size=dim), dtype=torch.float32)
    labels = (score + noise * torch.tensor(rng.normal(size=count)) > 0).long()
    return features[:num_train], labels[:num_train], features[num_train:], labels[num_train:]


def assert_test_labels_choose_nothing(evaluate, test_labels):
    """Assert that what is chosen and predicted does not depend on the test labels.

    Args:
        evaluate: given test labels, returns by name what may not depend on them, such as
            predictions, neighbours and hyper-parameters.
        test_labels: the right ones, (M,).
    """
    expected = evaluate(test_labels)
    generator = torch.Generator().manual_seed(0)
    others = (
        test_labels[torch.randperm(len(test_labels), generator=generator)],
        torch.zeros_like(test_labels),
    )
    for other in others:
        assert not torch.equal(other, test_labels)
        found = evaluate(other)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            same = (
                torch.equal(value, found[name]) if torch.is_tensor(value) else value == found[name]
            )
            assert same, name

"""The linear probe against scikit-learn, its choice of weight decay, and hard features."""

import numpy as np
import pytest
import torch
from known_features import assert_test_labels_choose_nothing, clusters, weak_signal
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from ssl_views import linear_probe_accuracy
from ssl_views.evaluation import linear_probe
from ssl_views.evaluation.linear_probe import WEIGHT_DECAYS, fit_linear_probe, shuffled_by_class


def scikit_learn(train, labels, weight_decay):
    """The same problem in float64, converged; and what standardizes its input."""
    mean, std = train.double().mean(0), train.double().std(0)
    reference = LogisticRegression(C=1 / (weight_decay * len(train)), max_iter=10_000, tol=1e-9)
    return reference.fit((train.double() - mean) / std, labels), lambda x: (x.double() - mean) / std


@pytest.mark.parametrize("weight_decay", [1e-1, 1e-3])
def test_it_equals_scikit_learn(weight_decay):
    train, labels, test, test_labels = *clusters(600, 1), *clusters(2000, 2)
    reference, standardize = scikit_learn(train, labels, weight_decay)
    probe = fit_linear_probe(train, labels, weight_decay=weight_decay)
    assert probe.weight_decay == weight_decay
    difference = probe.weights[:-1] - torch.as_tensor(reference.coef_.T)
    assert difference.norm() < 0.01 * np.linalg.norm(reference.coef_)
    same = probe.predict(test) == torch.as_tensor(reference.predict(standardize(test)))
    assert same.float().mean() > 0.997
    accuracy = linear_probe_accuracy(train, labels, test, test_labels, weight_decay=weight_decay)
    expected = reference.score(standardize(test), test_labels)
    assert accuracy == pytest.approx(expected, abs=0.003)


@pytest.mark.parametrize("weight_decay", [1e-1, 1e-3])
def test_of_fewer_images_than_dimensions_it_equals_scikit_learn(weight_decay):
    train, _, test, _ = weak_signal(60, 300)
    labels = torch.arange(60) % 3
    reference, standardize = scikit_learn(train, labels, weight_decay)
    probe = fit_linear_probe(train, labels, weight_decay=weight_decay)
    difference = probe.weights[:-1] - torch.as_tensor(reference.coef_.T)
    assert difference.norm() < 0.02 * np.linalg.norm(reference.coef_)
    same = probe.predict(test) == torch.as_tensor(reference.predict(standardize(test)))
    assert same.float().mean() > 0.98


@pytest.mark.parametrize("weight_decay", [1.0, 1e-2, 1e-4])
def test_it_converges_where_dimensions_are_almost_the_same(weight_decay):
    """The spectrum of standardized features falls over five decades."""
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(1200, 40)) * np.logspace(0, -2.5, 40)
    features = torch.tensor(hidden @ rng.normal(size=(40, 60)), dtype=torch.float32)
    labels = torch.tensor(hidden @ rng.normal(size=(40, 4)) + 0.3 * rng.normal(size=(1200, 4)))
    labels = labels.argmax(1)
    reference, standardize = scikit_learn(features, labels, weight_decay)
    probe = fit_linear_probe(features, labels, weight_decay=weight_decay)

    def objective(weights, bias):
        logits = standardize(features) @ weights + bias
        loss = torch.nn.functional.cross_entropy(logits, labels)
        return float(loss + weight_decay / 2 * weights.square().sum())

    least = objective(torch.as_tensor(reference.coef_.T), torch.as_tensor(reference.intercept_))
    found = objective(probe.weights[:-1].double(), probe.weights[-1].double())
    assert found - least < 1e-5


def test_weight_decay_is_chosen_where_it_matters():
    """Weak signal in 400 dimensions and 600 noisy images: a weak weight decay overfits."""
    parts = weak_signal(600, 2000)
    chosen = linear_probe_accuracy(*parts)
    weakest = linear_probe_accuracy(*parts, weight_decay=1e-4)
    assert chosen > weakest + 0.02


@pytest.mark.parametrize(("num_train", "lost"), [(60, 0.05), (600, 0.02), (11_000, 0.02)])
def test_the_chosen_weight_decay_is_about_the_best(num_train, lost):
    parts = weak_signal(num_train, 4000, dim=100, noise=5)
    every = {w: linear_probe_accuracy(*parts, weight_decay=w) for w in WEIGHT_DECAYS}
    probe = fit_linear_probe(*parts[:2])
    assert every[probe.weight_decay] > max(every.values()) - lost


def test_the_chosen_weight_decay_has_the_least_held_out_loss():
    """By other folds and another implementation, where the choice is clear."""
    train, labels, _, _ = weak_signal(500, 10, dim=100, noise=10)
    losses = []
    for weight_decay in WEIGHT_DECAYS:
        loss = 0.0
        for kept, held_out in StratifiedKFold(5).split(train, labels):
            reference, standardize = scikit_learn(train[kept], labels[kept], weight_decay)
            probabilities = reference.predict_proba(standardize(train[held_out]))
            loss -= np.log(probabilities[range(len(held_out)), labels[held_out]]).sum()
        losses.append(loss)
    best = WEIGHT_DECAYS[int(np.argmin(losses))]
    assert WEIGHT_DECAYS[0] > best > WEIGHT_DECAYS[-1]
    assert fit_linear_probe(train, labels).weight_decay == best


@pytest.mark.parametrize("count", [2, 3, 53, 999, 1000, 1007])
def test_held_out_images_are_the_same_share_of_each_class(count):
    labels = torch.arange(count) % 7 % 3
    splits = list(linear_probe._splits(labels))
    few = count < 1000
    assert len(splits) == (min(5, count) if few else 1)
    share = 1 / len(splits) if few else 0.2
    for kept, held_out in splits:
        assert torch.cat([kept, held_out]).sort().values.tolist() == list(range(count))
        assert min(len(kept), len(held_out)) > 0
        expected = share * labels.bincount(minlength=3)
        assert (labels[held_out].bincount(minlength=3) - expected).abs().max() <= 1
    if few:
        held = torch.cat([held_out for _, held_out in splits])
        assert held.sort().values.tolist() == list(range(count))


def test_orders_within_classes_differ_by_number():
    labels = torch.tensor([2, 0, 2, 0, 2, 2, 0, 2] * 5)
    first, again, other = (shuffled_by_class(labels, number) for number in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    for order in (first, other):
        assert labels[order].diff().min() >= 0
        assert order.sort().values.tolist() == list(range(40))


def test_two_fits_are_the_same():
    """Whatever the state of torch's generator, which is left alone."""
    train, labels = clusters(300, 1)
    torch.manual_seed(1)
    first = fit_linear_probe(train, labels)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    again = fit_linear_probe(train, labels)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.weights, again.weights)
    assert first.weight_decay == again.weight_decay


def test_test_labels_choose_nothing():
    train, labels, test, test_labels = *clusters(200, 1, noise=4), *clusters(50, 2, noise=4)

    def evaluate(test_labels):
        linear_probe_accuracy(train, labels, test, test_labels)
        probe = fit_linear_probe(train, labels)
        return {**vars(probe), "predictions": probe.predict(test)}

    assert_test_labels_choose_nothing(evaluate, test_labels)
    predicted = evaluate(test_labels)["predictions"]
    shuffled = test_labels[torch.randperm(50, generator=torch.Generator().manual_seed(3))]
    found = linear_probe_accuracy(train, labels, test, shuffled)
    assert found == pytest.approx(float((predicted == shuffled).float().mean()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    train, labels, test, _ = *clusters(300, 1), *clusters(200, 2)
    train, test = train.to(dtype), test.to(dtype)
    found = fit_linear_probe(train, labels)
    expected = fit_linear_probe(train.float(), labels)
    assert found.weights.dtype == torch.float32
    assert torch.equal(found.weights, expected.weights)
    assert torch.equal(found.predict(test), expected.predict(test.float()))


def test_float64_stays_float64():
    train, labels = clusters(300, 1)
    probe = fit_linear_probe(train.double(), labels, weight_decay=0.1)
    assert probe.weights.dtype == torch.float64
    same = fit_linear_probe(train, labels, weight_decay=0.1)
    torch.testing.assert_close(probe.weights.float(), same.weights, atol=2e-3, rtol=1e-2)


@pytest.mark.parametrize("constant", [0.0, 0.1, -1e4, 1e-20])
def test_a_dimension_that_is_constant_in_training_counts_for_nothing(constant):
    train, labels, test, _ = *clusters(301, 1), *clusters(200, 2)
    expected = fit_linear_probe(train, labels)
    wide = torch.cat([train, torch.full((301, 1), constant)], dim=1)
    wide_test = torch.cat([test, 1e6 * torch.randn(200, 1)], dim=1)
    probe = fit_linear_probe(wide, labels)
    assert probe.std[-1] == torch.inf
    assert probe.weights[-2].abs().max() == 0
    assert torch.equal(probe.predict(wide_test), expected.predict(test))


def test_scale_and_offset_do_not_matter():
    train, labels, test, _ = *clusters(300, 1), *clusters(200, 2)
    expected = fit_linear_probe(train, labels, weight_decay=0.1).predict(test)
    scale, offset = torch.logspace(-6, 6, 12), torch.linspace(-50, 50, 12)

    def moved(x):
        return (x.double() * scale + offset * scale).float()

    found = fit_linear_probe(moved(train), labels, weight_decay=0.1).predict(moved(test))
    assert (found == expected).float().mean() > 0.98


def test_labels_may_be_far_apart():
    train, labels, test, _ = *clusters(300, 1), *clusters(50, 2)
    far = torch.tensor([3, 10**9, 10**12, 2**62, 2**63 - 1])
    expected = far[fit_linear_probe(train, labels).predict(test)]
    assert torch.equal(fit_linear_probe(train, far[labels]).predict(test), expected)


@pytest.mark.parametrize("num_train", [2, 3, 12])
def test_a_few_images_can_be_fitted(num_train):
    features = torch.tensor([[-1.0, 0.2], [1.0, 0.1]]).repeat(num_train, 1)[:num_train]
    labels = torch.tensor([0, 1]).repeat(num_train)[:num_train]
    probe = fit_linear_probe(features, labels)
    assert probe.weights.isfinite().all()
    assert torch.equal(probe.predict(features), labels)


def test_it_fits_where_gradients_are_off():
    train, labels = clusters(100, 1)
    expected = fit_linear_probe(train, labels, weight_decay=0.1)
    with torch.no_grad():
        found = fit_linear_probe(train.requires_grad_(), labels, weight_decay=0.1)
    assert torch.equal(found.weights, expected.weights)
    assert not fit_linear_probe(train, labels, weight_decay=0.1).weights.requires_grad


@pytest.mark.parametrize("weight_decay", [0, -0.1, float("nan")])
def test_a_weight_decay_that_is_not_positive_gets_a_sentence(weight_decay):
    train, labels = clusters(20, 1)
    with pytest.raises(ValueError, match=f"weight_decay must be > 0; got {weight_decay}"):
        fit_linear_probe(train, labels, weight_decay=weight_decay)


def test_a_probe_predicts_only_features_of_its_dimensions():
    train, labels = clusters(100, 1)
    probe = fit_linear_probe(train, labels, weight_decay=0.1)
    with pytest.raises(ValueError, match="as many dimensions; got 12 and 11"):
        probe.predict(train[:, 1:])
    with pytest.raises(ValueError, match="test_features must be finite"):
        probe.predict(train * torch.nan)

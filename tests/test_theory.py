"""Theory against known answers, enumerated draws, and loops written from the formulas."""

import itertools
import math

import numpy as np
import pytest
import torch

from ssl_views import augmentation_graph
from ssl_views.theory import (
    augmentation_spectrum,
    four_image_graph,
    kernel_eigenvalues,
    learning_dynamics,
    sampled_spectrum,
)

PROBS = (0.55, 0.2, 0.15, 0.1)
# Computed apart from this code, after arXiv 2312.10725, App. C.3: mean of 4000 draws, by views.
SAMPLED = {
    2: (0.85, 0.45, 0.09),
    4: (0.62, 0.29, 0.06),
    16: (0.37, 0.19, 0.06),
    64: (0.28, 0.17, 0.08),
}
# The same, App. B.4: entropy rank by weight, from the initial embeddings of seed 0.
RANKS = {0.0: 1.15, 0.01: 1.98, 0.1: 3.66, 1.0: 4.0}


def graph_over_augmentations(p):
    """D^-1/2 A D^-1/2 by the definition, without augmentations of degree 0."""
    p = p[:, p.sum(axis=0) > 0]
    num_images, num_augmented = p.shape
    adjacency = np.zeros((num_augmented, num_augmented))
    for a in range(num_augmented):
        for b in range(num_augmented):
            adjacency[a, b] = sum(p[x, a] * p[x, b] for x in range(num_images)) / num_images
    degrees = adjacency.sum(axis=1)
    return adjacency / np.sqrt(np.outer(degrees, degrees))


def slow_spectrum(p):
    values = np.linalg.eigvalsh(graph_over_augmentations(p))[::-1][: len(p)]
    return np.pad(values, (0, len(p) - len(values)))


def graph_over_images(p):
    degrees = p.sum(axis=0)
    kept = degrees > 0
    return (p[:, kept] / degrees[kept]) @ p[:, kept].T


def enumerated(p, num_views):
    """Every graph that can be drawn, with its probability."""
    shares = [
        counts
        for counts in itertools.product(range(num_views + 1), repeat=p.shape[1])
        if sum(counts) == num_views
    ]
    rows = []
    for image in p:
        rows.append([])
        for counts in shares:
            ways = math.factorial(num_views) / math.prod(map(math.factorial, counts))
            chance = ways * math.prod(q**c for q, c in zip(image, counts, strict=True))
            rows[-1].append((np.array(counts) / num_views, chance))
    for chosen in itertools.product(*rows):
        yield np.stack([row for row, _ in chosen]), math.prod(chance for _, chance in chosen)


def random_probabilities(num_images, num_augmented, seed=0):
    return np.random.default_rng(seed).dirichlet(np.full(num_augmented, 0.5), size=num_images)


# The augmentation graph


def test_the_four_images_have_the_known_spectrum():
    values = augmentation_spectrum(four_image_graph(*PROBS).probabilities).eigenvalues
    assert values.tolist() == pytest.approx([1, 0.25, 0.16, 0.09], abs=1e-12)


@pytest.mark.parametrize("probs", [PROBS, (0.4, 0.1, 0.3, 0.2), (1.0, 0.0, 0.0, 0.0)])
def test_hadamard_vectors_are_the_eigenvectors(probs):
    matrix, vectors = four_image_graph(*probs)
    s, c, p, o = probs
    wanted = [1, (s + c - p - o) ** 2, (s - c + p - o) ** 2, (s - c - p + o) ** 2]
    for vector, value in zip(vectors.numpy(), wanted, strict=True):
        assert graph_over_images(matrix.numpy()) @ vector == pytest.approx(value * vector)
    assert (vectors @ vectors.T).numpy() == pytest.approx(np.eye(4))
    assert (vectors[:, 0] > 0).all()
    assert vectors[1].tolist() == [0.5, 0.5, -0.5, -0.5]  # of images (class, pixels): aa ab ba bb
    found = augmentation_spectrum(matrix).eigenvalues.tolist()
    assert found == pytest.approx(sorted(wanted, reverse=True))


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (6, 6), (1, 3)])
def test_the_spectrum_is_that_of_the_graph_over_augmentations(shape):
    p = random_probabilities(*shape)
    values, vectors = (each.numpy() for each in augmentation_spectrum(torch.from_numpy(p)))
    assert values == pytest.approx(slow_spectrum(p), abs=1e-12)
    assert vectors @ vectors.T == pytest.approx(np.eye(len(p)))
    assert graph_over_images(p) @ vectors.T == pytest.approx(vectors.T * values, abs=1e-12)
    assert np.abs(vectors[0]) == pytest.approx(np.full(len(p), len(p) ** -0.5))


def test_augmentations_without_probability_are_no_part_of_the_graph():
    p = torch.from_numpy(random_probabilities(5, 4))
    more = torch.cat([p, torch.zeros(5, 3)], dim=1)
    assert torch.equal(augmentation_spectrum(more).eigenvalues, augmentation_spectrum(p)[0])


def test_two_parts_have_two_eigenvalues_of_one():
    p = torch.block_diag(*(torch.from_numpy(random_probabilities(3, 3, seed)) for seed in (0, 1)))
    values, vectors = augmentation_spectrum(p)
    assert values[:2].tolist() == pytest.approx([1, 1])
    assert values[2] < 0.99
    assert vectors[0].abs().tolist() == pytest.approx([6**-0.5] * 6)  # the constant, not a mixture


# What few views make of it


@pytest.mark.parametrize(("num_views", "wanted"), SAMPLED.items())
def test_few_views_have_the_known_spectrum(num_views, wanted):
    found = sampled_spectrum(four_image_graph(*PROBS).probabilities, num_views, 4000)
    errors = found.spread / 4000**0.5
    assert errors.max() < 0.005
    for value, known, error in zip(found.eigenvalues, (1, *wanted), errors, strict=True):
        # Both are means of draws, and the known one is rounded.
        assert float(value) == pytest.approx(known, abs=0.005 + 3 * 2**0.5 * float(error))


def test_two_views_have_the_enumerated_spectrum():
    p = four_image_graph(*PROBS).probabilities
    mean, square = np.zeros(4), np.zeros(4)
    for drawn, chance in enumerated(p.numpy(), 2):
        values = slow_spectrum(drawn)
        mean, square = mean + chance * values, square + chance * values**2
    assert mean == pytest.approx([1, *SAMPLED[2]], abs=0.005)
    found = sampled_spectrum(p, 2, 40_000)
    spread = np.sqrt(np.maximum(square - mean**2, 0))
    assert found.eigenvalues.numpy() == pytest.approx(mean, abs=4 * spread.max() / 200)
    assert found.spread.numpy() == pytest.approx(spread, abs=0.005)


def test_overlaps_are_those_of_enumerated_eigenspaces():
    p = four_image_graph(*PROBS).probabilities
    vectors = four_image_graph(*PROBS).eigenvectors.numpy()
    wanted = np.zeros((4, 4))
    wanted[0, 0] = 1
    for drawn, chance in enumerated(p.numpy(), 1):
        constant = np.full((4, 4), 0.25)
        values, found = np.linalg.eigh(graph_over_images(drawn) - 5 * constant)
        values, found = values[::-1][:3], found[:, ::-1][:, :3]
        for row in range(3):
            space = found[:, np.abs(values - values[row]) < 1e-6]
            for column in range(1, 4):
                held = np.square(space.T @ vectors[column]).mean()
                wanted[row + 1, column] += chance * held
    overlaps = sampled_spectrum(p, 1, 40_000).overlaps.numpy()
    assert overlaps == pytest.approx(wanted, abs=0.01)
    assert overlaps.sum(axis=0) == pytest.approx(np.ones(4))
    assert overlaps.sum(axis=1) == pytest.approx(np.ones(4))


def test_more_views_confuse_less_and_many_not_at_all():
    p = four_image_graph(*PROBS).probabilities
    overlaps = [sampled_spectrum(p, v, 2000).overlaps[1, 1] for v in (2, 4, 16, 64, 256)]
    assert overlaps == sorted(overlaps)
    assert overlaps[0] < 0.45
    many = sampled_spectrum(p, 200_000, 20)
    assert many.overlaps.numpy() == pytest.approx(np.eye(4), abs=1e-3)
    assert many.eigenvalues.tolist() == pytest.approx([1, 0.25, 0.16, 0.09], abs=2e-3)


def test_draws_are_those_of_the_seed_however_they_are_cut(monkeypatch):
    p = torch.from_numpy(random_probabilities(6, 8))
    whole, other = (sampled_spectrum(p, 3, 50, seed=seed) for seed in (1, 2))
    monkeypatch.setattr(augmentation_graph, "_PART_ELEMENTS", 7 * 48)
    for first, second in zip(whole, sampled_spectrum(p, 3, 50, seed=1), strict=True):
        assert first.numpy() == pytest.approx(second.numpy(), abs=1e-12)
    assert not torch.equal(whole.eigenvalues, other.eigenvalues)


@pytest.mark.parametrize(
    "matrix",
    [[[0.5, 0.4]], [[1.5, -0.5]], [0.5, 0.5], [[math.nan, 1.0]], [[math.inf, 1.0]], [[]]],
)
def test_what_is_no_probability_is_refused(matrix):
    match = r"rows that sum to 1; got shape .*Divide counts by the sum of their row"
    with pytest.raises(ValueError, match=match):
        augmentation_spectrum(torch.tensor(matrix))
    with pytest.raises(ValueError, match=match):
        sampled_spectrum(torch.tensor(matrix), 2)
    with pytest.raises(ValueError, match=match):
        four_image_graph(0.5, 0.2, 0.1, 0.1)


@pytest.mark.parametrize("odd", [0, -1, 2.0, True])
def test_counts_are_whole_numbers_of_at_least_one(odd):
    p, law = four_image_graph(*PROBS).probabilities, torch.ones(4)
    with pytest.raises(ValueError, match=f"num_views must be .* got {odd}. Take 1 or more"):
        sampled_spectrum(p, odd)
    with pytest.raises(ValueError, match=f"num_draws must be .* got {odd}"):
        sampled_spectrum(p, 2, odd)
    with pytest.raises(ValueError, match=f"dim must be .* got {odd}"):
        learning_dynamics(law, odd, orthogonality_weight=1)
    for name in ("num_steps", "record_every"):
        with pytest.raises(ValueError, match=f"{name} must be .* got {odd}"):
            learning_dynamics(law, 2, orthogonality_weight=1, **{name: odd})


# Learning dynamics

LAW = 1 / torch.arange(1, 17, dtype=torch.float64)


@pytest.mark.parametrize(("weight", "rank"), RANKS.items())
def test_weak_weights_collapse_and_strong_ones_do_not(weight, rank):
    found = learning_dynamics(LAW, 4, orthogonality_weight=weight)
    assert float(found.entropy_rank[-1]) == pytest.approx(rank, abs=0.005)
    held = found.projections[-1]
    if weight == 0:  # four copies of the top eigenfunction
        assert held[0] > 0.999
        assert held[1:].sum() < 0.01
    if weight == 1:
        assert held.sum() == pytest.approx(4, abs=1e-6)
        assert held[:4].sum() > 3.9


def test_a_step_follows_the_gradient_of_the_loss():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(3, 5, generator=generator, dtype=torch.float64).requires_grad_()
    law = torch.rand(5, generator=generator, dtype=torch.float64)
    correlation = z * law @ z.T
    on = torch.eye(3, dtype=torch.bool)
    loss = (correlation[on] - 1).square().sum() + 0.3 * correlation[~on].square().sum()
    (gradient,) = torch.autograd.grad(loss, z)
    found = learning_dynamics(
        law, 3, orthogonality_weight=0.3, learning_rate=0.02, num_steps=1, initial=z
    )
    assert found.embeddings.numpy() == pytest.approx((z - 0.02 * gradient).detach().numpy())


def test_records_are_those_of_a_loop():
    rng = np.random.default_rng(3)
    z, law = rng.standard_normal((3, 4)), rng.uniform(0.2, 1, 4)
    found = learning_dynamics(
        torch.from_numpy(law), 3, orthogonality_weight=0.2, learning_rate=0.005, num_steps=25,
        record_every=10, initial=torch.from_numpy(z),
    )  # fmt: skip
    assert found.steps.tolist() == [0, 10, 20, 25]
    for step in range(26):
        if step in (0, 10, 20, 25):
            record = found.steps.tolist().index(step)
            left, s, right = np.linalg.svd(z @ np.diag(law**0.5), full_matrices=False)
            shares = s / s.sum()
            rank = np.exp(-sum(share * np.log(share) for share in shares))
            assert float(found.entropy_rank[record]) == pytest.approx(rank)
            clipped = left @ np.diag(np.minimum(s, 1)) @ right
            held = np.square(clipped).sum(axis=0)
            assert found.projections[record].numpy() == pytest.approx(held)
        if step == 25:
            assert found.embeddings.numpy() == pytest.approx(z)
        pull = np.zeros((3, 3))
        for i, j in np.ndindex(3, 3):
            pull[i, j] = (z[i] @ np.diag(law) @ z[j] - (i == j)) * (1 if i == j else 0.2)
        z = z - 4 * 0.005 * pull @ z @ np.diag(law)


@pytest.mark.parametrize(("dim", "weight"), [(4, 0.02), (16, 0.02), (8, 0.1)])
def test_the_next_eigenfunction_grows_as_derived(dim, weight):
    """Two are held, each by half of the dimensions, and the third is small."""
    law = torch.tensor([1.0, 0.8, 0.5] + [1e-3] * (dim - 3), dtype=torch.float64)
    r = weight * dim / 2
    scale = (1 - weight + r) ** -0.5  # where what is held neither grows nor shrinks
    z = torch.zeros(dim, dim, dtype=torch.float64)
    z[: dim // 2, 0], z[dim // 2 :, 1] = scale, scale * 0.8**-0.5
    z[0, 2], z[1, 2] = 1e-6, -1e-6  # orthogonal to both
    found = learning_dynamics(
        law, dim, orthogonality_weight=weight, num_steps=200, record_every=1, initial=z
    )
    growth = found.projections[:, 2].log().diff().mean() / 2
    assert found.projections[-1, :2].numpy() == pytest.approx(found.projections[0, :2].numpy())
    wanted = math.log1p(4 * 0.01 * 0.5 * r / (1 - weight + r))
    assert float(growth) == pytest.approx(wanted, rel=1e-3)


def test_a_weight_of_one_over_dim_holds_as_many_functions():
    law = 1 / torch.arange(1, 65, dtype=torch.float64)
    held = [
        float(learning_dynamics(law, dim, orthogonality_weight=0.16 / dim).projections[-1].sum())
        for dim in (8, 16, 32)
    ]
    assert max(held) - min(held) < 0.5
    fixed = [
        float(learning_dynamics(law, dim, orthogonality_weight=0.01).projections[-1].sum())
        for dim in (8, 16, 32)
    ]
    assert fixed[2] - fixed[0] > 2


def test_initial_embeddings_are_those_of_the_seed():
    first, again, other = (
        learning_dynamics(LAW, 2, orthogonality_weight=0.1, num_steps=10, seed=seed)
        for seed in (5, 5, 6)
    )
    assert torch.equal(first.embeddings, again.embeddings)
    assert not torch.equal(first.embeddings, other.embeddings)
    drawn = np.random.default_rng(5).standard_normal((2, 16)) * 1e-3
    given = learning_dynamics(
        LAW, 2, orthogonality_weight=0.1, num_steps=10, initial=torch.from_numpy(drawn)
    )
    assert torch.equal(given.embeddings, first.embeddings)


@pytest.mark.parametrize(
    "law", [[1.0, 0.0, 1.0], [1.0, 0.5], [[1.0] * 4] * 4, [1.0, math.nan, 1.0]]
)
def test_eigenvalues_are_positive_and_as_many_as_dimensions(law):
    with pytest.raises(ValueError, match=r"at least dim=3 in number; got shape .*smaller dim"):
        learning_dynamics(torch.tensor(law), 3, orthogonality_weight=0.1)


@pytest.mark.parametrize(
    ("weight", "rate"), [(-0.1, 0.01), (math.nan, 0.01), (0.1, 0), (0.1, math.inf)]
)
def test_weight_and_rate_are_refused(weight, rate):
    match = rf"got {weight} and {rate}. Take finite ones"
    with pytest.raises(ValueError, match=match):
        learning_dynamics(LAW, 2, orthogonality_weight=weight, learning_rate=rate)


@pytest.mark.parametrize(
    "initial", [torch.zeros(2, 16), torch.ones(16, 2), torch.full((2, 16), math.nan)]
)
def test_initial_embeddings_are_refused(initial):
    with pytest.raises(ValueError, match=r"not all 0, of shape \(2, 16\); got .*Leave it out"):
        learning_dynamics(LAW, 2, orthogonality_weight=1, initial=initial)


def test_steps_that_diverge_are_refused():
    with pytest.raises(ValueError, match=r"learning_rate=2.0 and .*Take a smaller learning_rate"):
        learning_dynamics(LAW, 4, orthogonality_weight=1, learning_rate=2.0)


# Eigenvalues of the augmentation operator


def linear_gaussian(eigenvalues, num_views, num_images, seed=0):
    """Features (V, B, D) whose functions, once unmixed, correlate so between views."""
    rng = np.random.default_rng(seed)
    values = np.asarray(eigenvalues)
    images = rng.standard_normal((num_images, len(values))) * values**0.5
    noise = rng.standard_normal((num_views, num_images, len(values))) * (1 - values) ** 0.5
    mixing = rng.standard_normal((len(values), len(values)))
    return (images + noise) @ mixing + 10


def slow_eigenvalues(x, cross_view=True):
    num_views, num_images, _ = x.shape
    x = x - x.mean(axis=1, keepdims=True)
    pooled = sum(x[v].T @ x[v] for v in range(num_views)) / (num_views * num_images)
    pairs = [
        x[v].T @ x[w] / num_images
        for v in range(num_views)
        for w in range(num_views)
        if v != w or not cross_view
    ]
    found = np.linalg.eigvals(np.linalg.solve(pooled, np.mean(pairs, axis=0)))
    assert np.abs(found.imag).max() < 1e-9
    return np.sort(found.real)[::-1]


@pytest.mark.parametrize("num_views", [2, 3, 8])
@pytest.mark.parametrize("cross_view", [True, False])
def test_eigenvalues_are_those_of_a_loop_over_pairs(num_views, cross_view):
    x = linear_gaussian([0.9, 0.5, 0.3, 0.05], num_views, 40)
    found = kernel_eigenvalues(torch.from_numpy(x), ridge=1e-12, cross_view=cross_view)
    assert found.numpy() == pytest.approx(slow_eigenvalues(x, cross_view), abs=1e-7)


@pytest.mark.parametrize("num_views", [2, 4, 8, 16])
def test_known_eigenvalues_are_found_and_naive_means_are_too_large(num_views):
    wanted = np.array([0.9, 0.6, 0.3, 0.0])
    x = torch.from_numpy(linear_gaussian(wanted, num_views, 50_000))
    assert kernel_eigenvalues(x).numpy() == pytest.approx(wanted, abs=0.02)
    naive = kernel_eigenvalues(x, cross_view=False).numpy()
    assert naive == pytest.approx(wanted + (1 - wanted) / num_views, abs=0.02)


def test_eigenvalues_of_the_graph_are_found_from_its_views():
    """The graph and the operator are one: features are indicators of the augmentation."""
    p = random_probabilities(6, 8, seed=4)
    exact = augmentation_spectrum(torch.from_numpy(p)).eigenvalues.numpy()
    rng = np.random.default_rng(0)
    images = rng.integers(6, size=30_000)
    drawn = (rng.random((4, 30_000, 1)) > p.cumsum(axis=1)[images, :-1]).sum(axis=2)
    features = torch.nn.functional.one_hot(torch.from_numpy(drawn), 8).float()
    found = kernel_eigenvalues(features).numpy()
    assert found[:5] == pytest.approx(exact[1:], abs=0.02)
    assert found[5:] == pytest.approx(np.zeros(3), abs=0.02)


def test_more_views_spread_less_and_more_images_are_biased_less():
    def top(num_views, num_images):
        found = [
            kernel_eigenvalues(
                torch.from_numpy(linear_gaussian([0.5] * 8, num_views, num_images, seed))
            )
            for seed in range(40)
        ]
        return torch.stack(found)[:, 0].numpy()

    few, many = top(2, 100), top(8, 100)
    assert many.std() < few.std()
    assert 0.02 < many.mean() - 0.5 < few.mean() - 0.5  # the largest of eight equal ones
    assert top(2, 1600).mean() - 0.5 < 0.4 * (few.mean() - 0.5)


def test_one_function_is_estimated_without_bias():
    found = [
        float(kernel_eigenvalues(torch.from_numpy(linear_gaussian([0.5], 4, 50, seed))))
        for seed in range(400)
    ]
    assert np.mean(found) == pytest.approx(0.5, abs=0.015)
    assert np.std(found) / 20 < 0.005


def test_linear_maps_and_orders_do_not_matter():
    x = torch.from_numpy(linear_gaussian([0.8, 0.4, 0.2], 4, 100))
    scales = torch.tensor([1e-6, 1.0, 1e6], dtype=torch.float64)
    rotated = x @ torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
    found = kernel_eigenvalues(x).numpy()
    for other in (x * scales, x.flip(0), x[:, torch.randperm(100)], rotated):
        assert kernel_eigenvalues(other).numpy() == pytest.approx(found, abs=1e-4)
    assert kernel_eigenvalues(x * scales).numpy() == pytest.approx(found, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_constants_and_repetitions_have_eigenvalue_zero(dtype):
    x = torch.from_numpy(linear_gaussian([0.8, 0.4], 4, 200)).to(dtype)
    found = kernel_eigenvalues(x).numpy()
    more = torch.cat([x, x[..., :1], torch.full((4, 200, 1), 1.1, dtype=dtype)], dim=2)
    assert kernel_eigenvalues(more).numpy() == pytest.approx([*found, 0, 0], abs=1e-4)
    alone = kernel_eigenvalues(torch.full((2, 5, 1), 1.1, dtype=dtype))
    assert alone.tolist() == [0]


@pytest.mark.parametrize("shape", [(1, 9, 2), (2, 3, 3), (9, 2), (2, 3, 4)])
def test_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"V >= 2 and more images than .*Take more images"):
        kernel_eigenvalues(torch.randn(shape))


@pytest.mark.parametrize(
    ("value", "ridge"), [(math.nan, 1e-6), (math.inf, 1e-6), (1, 0), (1, math.inf)]
)
def test_features_and_ridge_are_refused(value, ridge):
    features = torch.randn(2, 9, 2)
    features[0, 0, 0] = value
    with pytest.raises(ValueError, match=rf"ridge above 0; got ridge={ridge}. Look at the model"):
        kernel_eigenvalues(features, ridge=ridge)

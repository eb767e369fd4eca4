"""Philox against its published vectors, and what a view's numbers may depend on."""

import numpy as np
import pytest

from ssl_views import ViewRecipe, counter_random, native
from ssl_views.counter_random import philox, uniforms

needs_library = pytest.mark.skipif(
    native.why_missing() is not None, reason="the native engine was not built"
)
ONES = 0xFFFFFFFF
# Random123 1.09, tests/kat_vectors, philox4x32 with 10 rounds: counter, key, result.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_philox_gives_the_published_numbers(counter, key, expected):
    assert philox(np.array(counter, dtype=np.uint64), key).tolist() == list(expected)


def test_numbers_depend_on_the_image_alone_not_on_its_batch():
    together = uniforms(7, 3, np.arange(100, dtype=np.uint64), 4, 33)
    alone = uniforms(7, 3, np.array([42], dtype=np.uint64), 4, 33)
    assert np.array_equal(together[42], alone[0])
    fewer = uniforms(7, 3, np.arange(100, dtype=np.uint64), 2, 10)
    assert np.array_equal(together[:, :2, :10], fewer)


def test_every_part_of_the_key_changes_the_numbers():
    index = np.array([5], dtype=np.uint64)
    base = uniforms(7, 3, index, 2, 8)
    others = [
        uniforms(8, 3, index, 2, 8),
        uniforms(7, 4, index, 2, 8),
        uniforms(7, 3, index + np.uint64(1), 2, 8),
        uniforms(7, 3, index + np.uint64(2**32), 2, 8),
        base[:, ::-1],
    ]
    for other in others:
        assert not np.isclose(base, other).any()


def test_numbers_are_uniform():
    numbers = uniforms(0, 0, np.arange(20000, dtype=np.uint64), 2, 5)
    assert 0 <= numbers.min()
    assert numbers.max() < 1
    counts = np.histogram(numbers, bins=50, range=(0, 1))[0]
    chi_square = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
    assert 20 < chi_square < 95  # 49 degrees of freedom
    assert np.abs(np.corrcoef(numbers.reshape(-1, 5).T) - np.eye(5)).max() < 0.02


def test_wrong_keys_get_a_sentence():
    with pytest.raises(ValueError, match=r"seed must be in \[0, 2\*\*32\); got -1"):
        uniforms(-1, 0, np.arange(2, dtype=np.uint64), 1, 1)


@pytest.fixture
def no_library(monkeypatch):
    monkeypatch.setattr(native, "_load", lambda: "it was not built")


def random_indices(rng, count):
    """Indices of 64 bits, the smallest and the largest among them."""
    indices = rng.integers(0, 2**64, count, dtype=np.uint64)
    indices[: min(count, 4)] = np.array([0, 2**64 - 1, 2**32 - 1, 2**32], dtype=np.uint64)[:count]
    return indices


@needs_library
@pytest.mark.parametrize("count", [1, 4, 5, 33])
@pytest.mark.parametrize("num_views", [1, 2, 7])
def test_the_library_gives_the_same_words(num_views, count):
    rng = np.random.default_rng(num_views * 100 + count)
    blocks = -(-count // 4)
    for num_images in (1, 3, 50):
        for seed, epoch in [(0, 0), (ONES, ONES), *rng.integers(0, 2**32, (4, 2)).tolist()]:
            indices = random_indices(rng, num_images)
            arguments = seed, epoch, indices, num_views, blocks
            words = native.philox_words(*arguments)
            assert words.dtype == np.uint32
            assert words.shape == (num_images, num_views, 4 * blocks)
            assert np.array_equal(words, counter_random._words(*arguments))
            expected = counter_random._words(*arguments)[..., :count] * 2.0**-32
            assert np.array_equal(uniforms(seed, epoch, indices, num_views, count), expected)


@needs_library
@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_the_library_agrees_at_the_published_keys(counter, key, expected):
    """View and block count from zero, so that of the vectors one alone can be asked for itself."""
    index = np.array([counter[0] | counter[1] << 32], dtype=np.uint64)
    words = native.philox_words(*key, index, 3, 2)
    for view in range(3):
        for block in range(2):
            place = np.array([*counter[:2], view, block], dtype=np.uint64)
            found = words[0, view, 4 * block : 4 * block + 4]
            assert np.array_equal(found, philox(place, key))
    if counter == (0, 0, 0, 0):
        assert words[0, 0, :4].tolist() == list(expected)


@pytest.mark.parametrize("engine", [pytest.param("native", marks=needs_library), "numpy"])
def test_numbers_are_the_words_of_philox(engine, monkeypatch):
    if engine == "numpy":
        monkeypatch.setattr(native, "_load", lambda: "it was not built")
    numbers = uniforms(0, 0, np.zeros(1, dtype=np.uint64), 1, 4)
    assert (numbers[0, 0] * 2**32).tolist() == list(KNOWN[0][2])


@needs_library
def test_indices_of_any_layout_give_the_same_words():
    indices = random_indices(np.random.default_rng(0), 20)
    base = native.philox_words(1, 2, indices, 2, 3)
    assert np.array_equal(native.philox_words(1, 2, np.repeat(indices, 2)[::2], 2, 3), base)
    assert np.array_equal(native.philox_words(1, 2, indices[::-1], 2, 3)[::-1], base)
    small = np.arange(20)
    expected = native.philox_words(1, 2, small.astype(np.uint64), 2, 3)
    assert np.array_equal(native.philox_words(1, 2, small, 2, 3), expected)


@pytest.mark.parametrize("count", [1, 4, 5, 33])
def test_without_the_library_the_numbers_are_the_same(count, monkeypatch, no_library):
    used = []
    words = counter_random._words
    monkeypatch.setattr(counter_random, "_words", lambda *a: used.append(a) or words(*a))
    indices = random_indices(np.random.default_rng(count), 30)
    numbers = uniforms(7, 3, indices, 3, count)
    assert len(used) == 1
    assert numbers.shape == (30, 3, count)
    monkeypatch.undo()
    monkeypatch.setattr(counter_random, "_words", lambda *a: used.append(a) or words(*a))
    assert np.array_equal(uniforms(7, 3, indices, 3, count), numbers)
    assert len(used) == (1 if native.why_missing() is None else 2)


def test_every_view_of_a_run_is_drawn_the_same_without_the_library(no_library, monkeypatch):
    recipe = ViewRecipe.named("global_local", image_size=32)
    arguments = list(range(10)), [30] * 10, [40] * 10
    without = vars(recipe.draw(*arguments, epoch=3, seed=9))
    monkeypatch.undo()
    for name, array in vars(recipe.draw(*arguments, epoch=3, seed=9)).items():
        assert np.array_equal(array, without[name]), name

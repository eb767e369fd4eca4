"""Philox against its published vectors, and what a view's numbers may depend on."""

import numpy as np
import pytest

from ssl_views.counter_random import philox, uniforms

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

"""Counter-based random numbers: the same key and counter give the same number, always.

Philox 4x32-10 of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), vectorised
in numpy. Differs from the source in nothing; the tests hold its published known-answer vectors.
"""

import numpy as np
from numpy.typing import NDArray

from ssl_views.native import philox_words

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


def philox(counter: NDArray[np.uint64], key: tuple[int, int]) -> NDArray[np.uint64]:
    """Apply the Philox 4x32-10 bijection.

    Args:
        counter: (4, ...) words below 2**32.
        key: two words below 2**32.

    Returns:
        (4, ...) random words below 2**32.
    """
    c0, c1, c2, c3 = counter
    for i in range(10):
        k0, k1 = (np.uint64((k + i * w) & 0xFFFFFFFF) for k, w in zip(key, _WEYL, strict=True))
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (p1 >> _SHIFT) ^ c1 ^ k0, p1 & _LOW, (p0 >> _SHIFT) ^ c3 ^ k1, p0 & _LOW
    return np.stack([c0, c1, c2, c3])


def uniforms(
    seed: int, epoch: int, indices: NDArray[np.uint64], num_views: int, count: int
) -> NDArray[np.float64]:
    """Return numbers in [0, 1) that depend on seed, epoch, image index, view and position only.

    Args:
        seed: below 2**32.
        epoch: below 2**32.
        indices: (B,), image indices below 2**64.
        num_views: V; asking for more views leaves the first ones as they were.
        count: numbers per view; asking for more leaves the first ones as they were.

    Returns:
        (B, V, count), multiples of 2**-32.
    """
    for name, value in (("seed", seed), ("epoch", epoch)):
        if not 0 <= value < 2**32:
            raise ValueError(f"{name} must be in [0, 2**32); got {value}. Choose a smaller one.")
    blocks = -(-count // 4)
    native = philox_words(seed, epoch, indices, num_views, blocks)
    words = _words(seed, epoch, indices, num_views, blocks) if native is None else native
    return np.multiply(words[..., :count], 2.0**-32, dtype=np.float64)


def _words(
    seed: int, epoch: int, indices: NDArray[np.uint64], num_views: int, blocks: int
) -> NDArray[np.uint64]:
    """Return (B, V, 4 * blocks) words; the native engine computes the same."""
    index = indices.astype(np.uint64)[:, None, None]
    view = np.arange(num_views, dtype=np.uint64)[None, :, None]
    block = np.arange(blocks, dtype=np.uint64)[None, None, :]
    shape = np.broadcast_shapes(index.shape, view.shape, block.shape)
    parts = (index & _LOW, index >> _SHIFT, view, block)
    counter = np.stack([np.broadcast_to(part, shape) for part in parts])
    random = philox(counter, (seed, epoch))
    return np.moveaxis(random, 0, -1).reshape(*shape[:2], -1)

"""Images that could not be used: a list of them, and which image takes the place of one."""

import json
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_views.counter_random import uniforms
from ssl_views.data.image_limits import BadImage

ATTEMPTS = 8
_FEW = 50
_KEY = 2**32 - 1  # in the place of the seed of views
_LONGEST = 500


class TooManyBadImages(ValueError):
    """So many images cannot be used that the data set has to be looked at."""


def most_bad(num_images: int) -> int:
    """Return how many bad images a run goes on with: 50, or one of a hundred."""
    return max(_FEW, num_images // 100)


class BadImages:
    """A list of the images that could not be used.

    Several processes and threads may share a file: each line of it is the JSON of one image, with
    its "index", "path" and "reason". A line that is no JSON is passed over, and so is the last one
    while it is not whole.

    Args:
        path: of the file; None keeps the list in the memory of this process.
        most: so many different images may be bad; None for any number.
    """

    def __init__(self, path: str | Path | None = None, *, most: int | None = None) -> None:
        self.path = None if path is None else Path(path)
        self.most = most
        self._known: set[int] = set()
        self._offset = 0
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())

    def __len__(self) -> int:
        """Return the number of different images that are known to be bad."""
        with self._lock:
            self._catch_up()
            return len(self._known)

    def __contains__(self, index: object) -> bool:
        """Return whether the image of an index is known to be bad."""
        with self._lock:
            self._catch_up()
            return index in self._known

    def add(self, index: int, path: str | None, reason: str) -> None:
        """List an image, if it is not listed yet.

        Args:
            index: of the image.
            path: of the image, where it has one.
            reason: why it cannot be used.

        Raises:
            TooManyBadImages: if there are more than `most`.
        """
        with self._lock:
            torn = self._catch_up()
            if index not in self._known:
                self._known.add(int(index))
                self._write(int(index), path, reason, torn)
            count = len(self._known)
        if self.most is not None and count > self.most:
            where = "" if self.path is None else f" All are listed in {self.path}."
            raise TooManyBadImages(
                f"at most {self.most} images may be bad; got {count}. The last reason: {reason}."
                f"{where} Remove or repair them, or raise the limit."
            )

    def clear(self) -> None:
        """Forget all images and remove the file: a new run starts."""
        with self._lock:
            if self.path is not None:
                self.path.unlink(missing_ok=True)
            self._forget()

    def _forget(self) -> None:
        self._known.clear()
        self._offset = 0

    def _catch_up(self) -> bool:
        """Read what others have written; return whether the last line is not whole."""
        if self.path is None:
            return False
        if not self.path.exists():
            self._forget()
            return False
        with self.path.open("rb") as file:
            if file.seek(0, os.SEEK_END) < self._offset:  # it was begun again
                self._forget()
            file.seek(self._offset)
            whole, newline, rest = file.read().rpartition(b"\n")
        self._offset += len(whole) + len(newline)
        for line in whole.splitlines():
            try:
                image = json.loads(line)
            except ValueError:
                continue
            if isinstance(image, dict) and isinstance(image.get("index"), int):
                self._known.add(image["index"])
        return bool(rest)

    def _write(self, index: int, path: str | None, reason: str, torn: bool) -> None:
        if self.path is None:
            return
        image = {
            "index": index,
            "path": None if path is None else str(path)[:_LONGEST],
            "reason": reason[:_LONGEST],
        }
        line = ("\n" if torn else "") + json.dumps(image) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, line.encode())  # one write, so that lines of processes do not mix
        finally:
            os.close(file)


def draw_others(epoch: int, index: int, count: int) -> NDArray[np.float64]:
    """Return numbers in [0, 1) that choose the images that may take the place of a bad one.

    They depend on the epoch and the index alone.
    """
    return uniforms(_KEY, epoch, np.array([index], dtype=np.uint64), 1, count)[0, 0]


def replace_bad(
    outcomes: Sequence["NDArray[np.uint8] | BadImage"],
    others: Callable[[int], Iterable["NDArray[np.uint8] | BadImage"]],
    bad_images: BadImages | None,
) -> "list[NDArray[np.uint8]]":
    """Return pixels, those of another image in the place of each that could not be used.

    Args:
        outcomes: the pixels of images, or why there are none.
        others: gives, for the index of a bad image, those to try in its place, one by one.
        bad_images: lists the bad ones; None to raise the first.

    Raises:
        BadImage: the first one, without `bad_images`.
        TooManyBadImages: if no other image could be used, or more than `bad_images.most` are bad.
    """
    images = []
    for outcome in outcomes:
        if isinstance(outcome, BadImage):
            if bad_images is None:
                raise outcome
            images.append(_replaced(outcome, others, bad_images))
        else:
            images.append(outcome)
    return images


def _replaced(
    bad: BadImage,
    others: Callable[[int], Iterable["NDArray[np.uint8] | BadImage"]],
    bad_images: BadImages,
) -> "NDArray[np.uint8]":
    bad_images.add(bad.index, bad.path, bad.reason)
    last = bad
    for other in others(bad.index):
        if not isinstance(other, BadImage):
            return other
        bad_images.add(other.index, other.path, other.reason)
        last = other
    where = "" if bad_images.path is None else f", all are listed in {bad_images.path}"
    raise TooManyBadImages(
        f"another image must take the place of image {bad.index}, but none that was tried can be "
        f"used; the last reason: {last.reason}{where}. Look at the data set."
    )

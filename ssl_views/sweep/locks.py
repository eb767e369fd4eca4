"""A lock file: one process at a time works in a folder."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

_POLL_SECONDS = 0.2


@contextmanager
def locked(path: Path, *, what: str, wait_seconds: float = 0.0) -> Iterator[None]:
    """Hold a lock file; the system frees it when this process ends, however it does.

    Where the system has no such locks (Windows), nothing is locked.

    Args:
        path: of the file; it stays.
        what: works in the folder, for the message.
        wait_seconds: how long to wait for another process.

    Raises:
        RuntimeError: if another process holds it.
    """
    if find_spec("fcntl") is None:
        yield
        return
    import fcntl

    deadline = time.monotonic() + wait_seconds
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= deadline:
                    raise RuntimeError(
                        f"one {what} at a time may work in a folder; another one does in "
                        f"{str(path.parent)!r}. Wait for it, or give another folder."
                    ) from error
                time.sleep(_POLL_SECONDS)
        yield

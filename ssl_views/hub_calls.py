"""Calls to the Hub: a time limit, retries, and a sentence for every failure.

`huggingface_hub` 2 waits for ever by default, and retries some requests itself but not others.
"""

import json
import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,  # of httpx or httpx2, whichever huggingface_hub uses
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import get_session

logger = logging.getLogger(__name__)

T = TypeVar("T")
_LONGEST_WAIT = 300.0  # seconds; a server may ask for hours
_SECRET = re.compile(r"hf_\w+|Bearer\s+[^\s'\"]+")
_ADVICE = {
    401: "Log in with `hf auth login`, or set HF_TOKEN, with a token that may write.",
    402: "See the billing page of the account on the Hub.",
    403: "Use a token with the right to write to this repository, or another repository.",
    404: "Check the name of the repository, and that the token may see it.",
    409: "Look at the repository, then run the same command again.",
    412: "Someone else has committed meanwhile. Look at the repository, then run the same command "
    "again.",
}
_AGAIN = "Run the same command again later; what has arrived is not sent twice."
# RuntimeError: of uploads, by LFS and by Xet; ValueError: of answers that make no sense.
_FAILURES = (HTTPError, OSError, RuntimeError, ValueError)


class PublishError(RuntimeError):
    """Something was not published or not verified; the message says how the repository is left."""


class _Failure(NamedTuple):
    reason: str
    advice: str
    may_pass: bool = False  # by itself
    may_be_done: bool = False  # although no good answer came
    wait: float | None = None  # seconds that the server asks for


class HubCalls:
    """Calls the Hub for one publication.

    Args:
        retries: further attempts of a call after failures that may pass.
        timeout_seconds: how long a connection may be silent.
        on_event: is told of retries and other events.
    """

    def __init__(
        self, retries: int, timeout_seconds: float, on_event: Callable[[str], None] | None
    ) -> None:
        if retries < 0 or timeout_seconds <= 0:
            raise ValueError(
                "retries must be 0 or more and timeout_seconds above 0; got "
                f"{retries} and {timeout_seconds}. Leave them at their defaults."
            )
        self.retries, self.timeout_seconds = retries, timeout_seconds
        self.tell = on_event or logger.warning
        self.state = "Nothing was published."

    def __call__(
        self,
        what: str,
        call: Callable[[], T],
        *,
        retries: int | None = None,
        done: Callable[[], T | None] | None = None,
    ) -> T:
        """Make a call, again where its failure may pass.

        Args:
            what: completes "could not ...".
            call: takes nothing; must be safe to repeat, or `done` given.
            retries: instead of those of the publication.
            done: looks, after a failure that tells nothing, whether the call did its work all the
                same, and returns its result then, else None.

        Raises:
            PublishError: if the last attempt fails.
        """
        retries = self.retries if retries is None else retries
        attempt = 0
        while True:
            try:
                with time_limit(self.timeout_seconds):
                    return call()
            except _FAILURES as error:
                failure = _failure(error, self.timeout_seconds)
                hidden = _SECRET.search(str(error)) is not None
                if failure.may_be_done and done is not None:
                    result = done()
                    if result is not None:
                        return result
                if not failure.may_pass or attempt >= retries:
                    times = f" ({attempt + 1} times)" if attempt else ""
                    raise PublishError(
                        f"could not {what}: {failure.reason}{times}. {self.state} {failure.advice}"
                    ) from (None if hidden else error)
            wait = min(failure.wait or 2.0**attempt, _LONGEST_WAIT)
            self.tell(f"could not {what}: {failure.reason}; trying again in {wait:g} s")
            time.sleep(wait)
            attempt += 1


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Limit how long connections of huggingface_hub may be silent.

    The client is that of the whole process. One that the library makes inside the block, after a
    refused connection, has the library's own limit.
    """
    client = get_session()
    before = client.timeout
    client.timeout = seconds
    try:
        yield
    finally:
        client.timeout = before


def _failure(error: BaseException, seconds: float) -> _Failure:
    cause = error.__cause__
    if isinstance(error, RuntimeError) and isinstance(cause, _FAILURES):
        return _failure(cause, seconds)  # the library wraps failures of an upload
    if isinstance(error, LocalTokenNotFoundError):
        return _Failure("there is no login", _ADVICE[401])
    if isinstance(error, OfflineModeIsEnabled):
        return _Failure("HF_HUB_OFFLINE forbids it", "Unset HF_HUB_OFFLINE.")
    if isinstance(error, HfHubHTTPError):
        return _answered(error)
    if isinstance(error, json.JSONDecodeError):
        return _Failure("the answer is not JSON", _AGAIN, may_pass=True, may_be_done=True)
    if isinstance(error, ValueError) or (
        isinstance(error, OSError) and not isinstance(error, (ConnectionError, TimeoutError))
    ):
        return _Failure(_plain(str(error)), "Correct that, then run the same command again.")
    if "Timeout" in type(error).__name__:
        reason = f"no answer within {seconds:g} s"
    else:
        reason = _plain(str(error)) or type(error).__name__
    return _Failure(reason, _AGAIN, may_pass=True, may_be_done=True)


def _answered(error: HfHubHTTPError) -> _Failure:
    status = error.response.status_code
    said = _plain(error.server_message or "")
    may_pass = status in (408, 429) or status >= 500
    return _Failure(
        f"the Hub answered {status}" + (f", {said!r}" if said else ""),
        _ADVICE.get(status, _AGAIN if may_pass else "Correct that, then run the same command."),
        may_pass=may_pass,
        may_be_done=may_pass or status in (409, 412),
        wait=_asked_wait(error.response.headers),
    )


def _asked_wait(headers: "dict[str, str]") -> float | None:
    """Return the seconds of Retry-After, or of the Hub's RateLimit header."""
    after = headers.get("Retry-After", "")
    if after.isdigit():
        return float(after)
    reset = re.search(r";\s*t\s*=\s*(\d+)", headers.get("RateLimit", ""))
    return float(reset[1]) if reset else None


def _plain(text: str) -> str:
    """Return a message of others without secrets, on one line and not long."""
    text = re.sub(r"\?\S+", "?...", _SECRET.sub("***", text))  # addresses of uploads are signed
    text = " ".join(text.split()).rstrip(".")
    return text if len(text) <= 300 else text[:300] + "..."

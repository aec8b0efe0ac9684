"""Requests to a store that is busy: they are made again, for about two minutes."""

import errno
import http
import sys
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from etils import epath

from radit_jax.runtime.distributed import processes

# Seconds before each new try. gcsfs and s3fs try several times themselves, within a minute at most.
WAITS = (1, 2, 4, 8, 16, 32, 60)
SILENT_SECONDS = 8  # a shorter wait is not worth a line

_BUSY = {
    http.HTTPStatus.REQUEST_TIMEOUT,
    http.HTTPStatus.TOO_MANY_REQUESTS,
    http.HTTPStatus.INTERNAL_SERVER_ERROR,
    http.HTTPStatus.BAD_GATEWAY,
    http.HTTPStatus.SERVICE_UNAVAILABLE,
    http.HTTPStatus.GATEWAY_TIMEOUT,
}

P = ParamSpec("P")
T = TypeVar("T")


def patiently(path: epath.PathLike, request: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """`request(*args, **kwargs)`, made again while the store of `path` answers that it is busy.

    Raises ValueError where it still is after all of `WAITS`, and any other error at once.
    """
    for wait in WAITS:
        try:
            return request(*args, **kwargs)
        except Exception as error:  # gcsfs, s3fs and botocore have no error class in common
            if not is_busy(error):
                raise
            if wait >= SILENT_SECONDS:
                print(f"{path}: the store is busy ({_reason(error)}); again in {wait} s", file=sys.stderr)
        processes.stop_if_asked(f"the wait for {path}")
        time.sleep(wait)
    try:
        return request(*args, **kwargs)
    except Exception as error:
        if not is_busy(error):
            raise
        raise ValueError(
            f"{path}: expected an answer within {sum(WAITS)} s, got {_reason(error)}. Run the same command "
            "when the store answers again: what is finished is kept."
        ) from error


def is_busy(error: Exception) -> bool:
    """Whether a store said so: by a status of HTTP, or as s3fs translates one."""
    status = getattr(error, "code", None)
    # botocore's errors hold the whole answer.
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status in _BUSY or (isinstance(error, OSError) and error.errno == errno.EBUSY)


def _reason(error: Exception) -> str:
    """The first line of an error's words, or its kind."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]

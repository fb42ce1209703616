"""The one place that reads environment variables."""

import os
from dataclasses import dataclass
from typing import Literal

from lightvl.errors import StartupError


@dataclass(frozen=True)
class Environment:
    """What the environment asks for; validated.

    Attributes:
        internvl_image_length: `INTERNVL_IMAGE_LENGTH`, tokens per tile the user expects, or None.
        load_workers: `LOADWORKER`, parallel readers of weight shards.
        request_timeout_s: `REQUEST_TIMEOUT`, seconds to fetch one URL.
        max_patch_num: `MAX_PATCH_NUM`, an upper bound of tiles per picture, or None.
        request_proxy: `REQUEST_PROXY`, the proxy that fetches go through, or None.
        api_key: `LIGHTVL_API_KEY`, or None.
        num_threads: `OMP_NUM_THREADS`, or None for the cores this process may use.
    """

    internvl_image_length: int | None
    load_workers: int
    request_timeout_s: float
    max_patch_num: int | None
    request_proxy: str | None
    api_key: str | None
    num_threads: int | None


def read_environment() -> Environment:
    """Reads and checks the variables this package honours.

    Raises:
        StartupError: A variable is set to something that isn't allowed.
    """
    load_workers = _positive_int("LOADWORKER")
    timeout = os.environ.get("REQUEST_TIMEOUT")
    return Environment(
        internvl_image_length=_positive_int("INTERNVL_IMAGE_LENGTH"),
        load_workers=load_workers if load_workers is not None else min(8, num_cores()),
        request_timeout_s=_positive_float("REQUEST_TIMEOUT", timeout) if timeout else 5.0,
        max_patch_num=_positive_int("MAX_PATCH_NUM"),
        request_proxy=os.environ.get("REQUEST_PROXY") or None,
        api_key=os.environ.get("LIGHTVL_API_KEY") or None,
        num_threads=_positive_int("OMP_NUM_THREADS"),
    )


def log_format() -> Literal["text", "json"]:
    """Returns `LIGHTVL_LOG_FORMAT`; both processes read it before they log their first line.

    Raises:
        StartupError: It is set to something else.
    """
    text = os.environ.get("LIGHTVL_LOG_FORMAT") or "text"
    if text not in ("text", "json"):
        raise StartupError(f"LIGHTVL_LOG_FORMAT={text!r}: expected text or json")
    return "json" if text == "json" else "text"


def wants_tracing() -> bool:
    """Whether OpenTelemetry's own variables name where traces go."""
    names = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    return any(os.environ.get(name) for name in names)


def completion_line() -> str | None:
    """Returns the command line that a shell wants completed, or None."""
    return os.environ.get("COMP_LINE")


def num_cores() -> int:
    """Returns the number of cores this process may run on."""
    return len(os.sched_getaffinity(0))


def child_environment(**overrides: str) -> dict[str, str]:
    """Returns this process's environment with `overrides`, for a child process."""
    return {**os.environ, **overrides}


def bound_spinning() -> None:
    """Has OpenMP's threads sleep after a quarter of a millisecond of waiting for each other.

    By default they spin until the one they wait for gets its time slice: a single busy neighbour
    on two cores then makes a decode step 40 to 300 times slower, so bounded 5 times at most. To be
    called before torch is imported; `GOMP_SPINCOUNT` and `OMP_WAIT_POLICY` of the user prevail.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "5000")


def _positive_int(name: str) -> int | None:
    text = os.environ.get(name)
    if not text:
        return None
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise StartupError(f"{name}={text!r}: expected an integer of at least 1")
    return value


def _positive_float(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < float("inf"):
        raise StartupError(f"{name}={text!r}: expected a number of seconds above 0")
    return value

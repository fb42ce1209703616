"""What every request passes first: keys, the drain, the count of answers."""

import hashlib
import hmac
import logging
import re
import time
import uuid
from collections.abc import Sequence
from email.utils import formatdate
from pathlib import Path

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lightvl.api.exchange import send_error
from lightvl.api.front import Front
from lightvl.api.pages import is_public
from lightvl.errors import EngineLostError, RequestError, StartupError
from lightvl.utils.log import request_id

log = logging.getLogger(__name__)

_SAFE_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")

HEALTH = frozenset({"/health", "/healthz", "/liveness", "/readiness"})
ADMIN = frozenset({"/flush_cache", "/drain"})


class Gate:
    """Middleware that refuses requests without a key or during the drain.

    It also names each request, by the client's `X-Request-Id` or by a new id, in the answer and in
    the log, and counts answers.
    """

    def __init__(self, app: ASGIApp, front: Front) -> None:
        self._app = app
        self._front = front

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        name = _request_id(scope)
        request_id.set(name)
        began_s = time.monotonic()
        status = 0

        async def counted(message: Message) -> None:
            nonlocal status
            if not status and message["type"] == "http.response.start":
                status = message["status"]
                self._front.metrics.http_requests.labels(str(status)).inc()
                message["headers"].append((b"date", formatdate(usegmt=True).encode()))
                message["headers"].append((b"x-request-id", name.encode()))
            await send(message)

        try:
            self._check(scope)
            await self._app(scope, receive, counted)
        except RequestError as error:
            self._front.count_rejected(error)
            await send_error(counted, error)
        if scope["method"] == "POST":  # the others only look
            fields = {"path": scope["path"], "status": status, "seconds": _rounded(began_s)}
            log.info("%(path)s: %(status)d after %(seconds)g s", fields, extra=fields)

    def _check(self, scope: Scope) -> None:
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if path in HEALTH or is_public(scope["method"], path):
            return
        key = self._authenticate(scope, path)
        scope.setdefault("state", {})["client"] = hashlib.sha256(key).digest()[:16] if key else b""
        if self._front.draining and scope["method"] == "POST" and path not in ADMIN:
            raise EngineLostError

    def _authenticate(self, scope: Scope, path: str) -> bytes:
        """Returns the request's key, empty where none is needed.

        Raises:
            RequestError: 401.
        """
        front = self._front
        if path in ADMIN:
            keys: Sequence[bytes] = [front.admin_key] if front.admin_key else []
            if not keys:
                raise RequestError(f"{path}: needs a server with --admin_key", 404)
        else:
            keys = front.api_keys
            if not keys or (path == "/metrics" and front.config.metrics_public):
                return b""
            keys = [*keys, front.admin_key] if front.admin_key else keys
        given = _bearer(scope)
        matches = [hmac.compare_digest(given, key) for key in keys]
        if not any(matches):
            raise RequestError("the API key is missing or unknown", 401, code="invalid_api_key")
        return given


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _SAFE_ID.fullmatch(value):
            return bytes(value).decode()
    return uuid.uuid4().hex


def _rounded(began_s: float) -> float:
    return round(time.monotonic() - began_s, 4)


def read_keys(api_key: str | None, keys_file: str | None) -> tuple[bytes, ...]:
    """Returns the keys that clients may send.

    Args:
        api_key: From the flag or the environment.
        keys_file: A file with one key a line; empty lines and lines with `#` first don't count.

    Raises:
        StartupError: The file has no key.
    """
    keys = [api_key] if api_key else []
    if keys_file is not None:
        lines = [line.strip() for line in Path(keys_file).read_text().splitlines()]
        found = [line for line in lines if line and not line.startswith("#")]
        if not found:
            raise StartupError(f"--api_keys_file {keys_file}: expected at least one key")
        keys += found
    return tuple(key.encode() for key in keys)


def _bearer(scope: Scope) -> bytes:
    for name, value in scope["headers"]:
        if name == b"authorization":
            scheme, _, key = bytes(value).partition(b" ")
            return key.strip() if scheme.lower() == b"bearer" else b""
    return b""

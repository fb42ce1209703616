"""The web page at `GET /` and its files, read once at start, which need no key; and `/docs`."""

import hashlib
from collections.abc import Callable
from importlib.resources import files

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

PREFIX = "/static/"

_TYPES = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""Browsers keep the files and ask with their ETag whether these are still current."""


def is_public(method: str, path: str) -> bool:
    """Whether a request is for the page or one of its files."""
    return method in ("GET", "HEAD") and (path == "/" or path.startswith(PREFIX))


class Pages:
    """The page's files; `routes` serve them.

    Args:
        reference: Makes the page at `/docs`.
    """

    def __init__(self, reference: Callable[[], str]) -> None:
        root = files("lightvl.api").joinpath("static")
        entries = [entry for entry in root.iterdir() if entry.is_file()]
        self._files = {entry.name: _File(entry.name, entry.read_bytes()) for entry in entries}
        self._make_reference = reference
        self._reference: _File | None = None

    def routes(self) -> list[Route]:
        """Returns the routes of `/`, of the files and of `/docs`."""
        return [
            Route("/", self._page, methods=["GET"], include_in_schema=False),
            Route("/docs", self._docs, methods=["GET"], include_in_schema=False),
            Route(PREFIX + "{name}", self._file, methods=["GET"], include_in_schema=False),
        ]

    async def _page(self, request: Request) -> Response:
        return self._files["index.html"].response(request)

    async def _docs(self, request: Request) -> Response:
        if self._reference is None:
            self._reference = _File("docs.html", self._make_reference().encode())
        return self._reference.response(request)

    async def _file(self, request: Request) -> Response:
        file = self._files.get(request.path_params["name"])
        if file is None:
            raise HTTPException(404)
        return file.response(request)


class _File:
    """One file and how it is told apart from other versions."""

    def __init__(self, name: str, data: bytes) -> None:
        self._data = data
        self._headers = {
            **_HEADERS,
            "Content-Type": _TYPES[name.rpartition(".")[2]],
            "ETag": f'"{hashlib.sha256(self._data).hexdigest()[:32]}"',
        }

    def response(self, request: Request) -> Response:
        """Returns the file, or 304 to a browser that has it."""
        known = request.headers.get("if-none-match", "")
        if self._headers["ETag"] in known:
            return Response(status_code=304, headers=self._headers)
        return Response(self._data, headers=self._headers)

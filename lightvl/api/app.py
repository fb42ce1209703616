"""The HTTP application: every route, its documentation, one shape of error."""

from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from lightvl.api import native, openai
from lightvl.api.exchange import Endpoint, internal_error
from lightvl.api.front import Front
from lightvl.api.gate import Gate
from lightvl.api.openai_schema import ChatBody, CompletionBody
from lightvl.api.pages import Pages
from lightvl.api.reference import reference_page
from lightvl.api.responses import responses
from lightvl.api.responses_schema import ResponsesBody
from lightvl.api.schema import GenerateBody, TokensBody
from lightvl.api.status import StatusRoutes
from lightvl.errors import RequestError

_BODIES: dict[str, type[msgspec.Struct]] = {
    "/": GenerateBody,
    "/generate": GenerateBody,
    "/generate_stream": GenerateBody,
    "/tokens": TokensBody,
    "/v1/chat/completions": ChatBody,
    "/v1/completions": CompletionBody,
    "/v1/responses": ResponsesBody,
}
_SCHEMAS = "#/components/schemas/{name}"


def build_app(front: Front, drain: Callable[[], None]) -> ASGIApp:
    """Returns the application.

    Args:
        front: What the routes work with.
        drain: Begins the drain.
    """
    app = FastAPI(title="lightvl", openapi_url="/openapi.json", docs_url=None, redoc_url=None)
    app.include_router(StatusRoutes(front, drain).router())
    handlers = {
        "/": native.root,
        "/generate": native.generate,
        "/generate_stream": native.generate_stream,
        "/v1/chat/completions": openai.chat_completions,
        "/v1/completions": openai.completions,
        "/v1/responses": responses,
    }
    for path, handler in handlers.items():
        app.router.routes.append(Route(path, Endpoint(front, handler), methods=["POST"]))
    app.router.routes += Pages(lambda: reference_page(app.openapi())).routes()
    tokens = Endpoint(front, native.tokens, queued=False)
    app.router.routes.append(Route("/tokens", tokens, methods=["GET", "POST"]))
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(RequestError, _refused)
    app.add_exception_handler(Exception, _refused)
    app.openapi = lambda: _document(app)  # type: ignore[method-assign]
    gate: ASGIApp = Gate(app, front)
    if front.config.cors_origins is None:
        return gate
    origins = [origin.strip() for origin in front.config.cors_origins.split(",")]
    return CORSMiddleware(gate, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])


def _refused(_: Request, error: Exception) -> Response:
    """Gives the framework's own refusals (404, 405), ours and defects the common shape."""
    headers: dict[str, str] = {}
    if isinstance(error, HTTPException):
        phrase = HTTPStatus(error.status_code).phrase.lower()
        headers = dict(error.headers or {})
        error = RequestError(phrase, error.status_code)
    elif not isinstance(error, RequestError):
        error = internal_error()
    body = msgspec.json.encode(error.body())
    return Response(body, error.status, headers, media_type="application/json")


def _document(app: FastAPI) -> dict[str, Any]:
    """Returns the OpenAPI document, the bodies that msgspec parses included."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version="1", routes=app.routes)
        kinds = sorted(set(_BODIES.values()), key=lambda kind: kind.__name__)
        _, schemas = msgspec.json.schema_components(kinds, ref_template=_SCHEMAS)
        document.setdefault("components", {}).setdefault("schemas", {}).update(schemas)
        for path, kind in _BODIES.items():
            document["paths"][path] = {"post": _operation(path, kind)}
        app.openapi_schema = document
    return app.openapi_schema


def _operation(path: str, kind: type[msgspec.Struct]) -> dict[str, Any]:
    schema = {"$ref": _SCHEMAS.format(name=kind.__name__)}
    errors = {400: "bad request", 401: "key", 413: "body too large", 429: "busy", 503: "gone"}
    return {
        "summary": f"POST {path}",
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "responses": {
            "200": {"description": "the answer, whole or as an event stream"},
            **{str(status): {"description": text} for status, text in errors.items()},
        },
    }

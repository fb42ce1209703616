"""Routes that tell about the server: health, names, load, metrics, and the admin's two."""

import asyncio
import dataclasses
from collections.abc import Callable
from importlib.metadata import version

from fastapi import APIRouter
from starlette.responses import Response

from lightvl.api.front import Front
from lightvl.api.metrics import CONTENT_TYPE
from lightvl.errors import EngineLostError, RequestError
from lightvl.utils.shm import PURPOSES

_SECRET = ("api_key", "api_keys_file", "admin_key", "ssl_keyfile", "ssl_certfile")


class StatusRoutes:
    """The routes; `router` registers them.

    Args:
        front: What they tell about.
        drain: Begins the drain.
    """

    def __init__(self, front: Front, drain: Callable[[], None]) -> None:
        self._front = front
        self._drain = drain

    def router(self) -> APIRouter:
        """Returns all routes of this class."""
        router = APIRouter()
        both = ["GET", "POST"]
        for path, handler, methods in (
            ("/liveness", self.alive, ["GET"]),
            ("/health", self.ready, ["GET"]),
            ("/healthz", self.ready, ["GET"]),
            ("/readiness", self.ready, ["GET"]),
            ("/get_model_name", self.get_model_name, both),
            ("/get_server_info", self.get_server_info, both),
            ("/token_load", self.token_load, both),
            ("/v1/models", self.models, ["GET"]),
            ("/v1/models/{name:path}", self.model, ["GET"]),
            ("/metrics", self.metrics, ["GET"]),
            ("/flush_cache", self.flush_cache, ["POST"]),
            ("/drain", self.drain, ["POST"]),
        ):
            for method in methods:
                router.add_api_route(
                    path,
                    handler,
                    methods=[method],
                    response_model=None,
                    operation_id=f"{method} {path}",
                )
        return router

    async def alive(self) -> dict[str, str]:
        """Whether the process serves at all."""
        return {"status": "ok"}

    async def ready(self) -> dict[str, str]:
        """Whether requests are taken: 503 while draining or without an engine."""
        if self._front.draining or self._front.client.lost.is_set():
            raise EngineLostError
        return {"status": "ok"}

    async def get_model_name(self) -> dict[str, str]:
        """The name that clients call the model by."""
        return {"model_name": self._front.model_name}

    async def get_server_info(self) -> dict[str, object]:
        """The version, the flags without keys and certificates, and what was chosen at start."""
        return _server_info(self._front)

    async def token_load(self) -> dict[str, float]:
        """How full the KV cache is, now and when every live request runs to its limit."""
        client = self._front.client
        stats = await client.stats()
        most = client.num_live_tokens / self._front.max_total_token_num
        used = stats.get("kv_cache_usage_perc", 0.0)
        return {"current_load": used, "logical_max_load": most, "dynamic_max_load": most}

    async def models(self) -> dict[str, object]:
        """The served model, in OpenAI's shape."""
        return {"object": "list", "data": [_model(self._front)]}

    async def model(self, name: str) -> dict[str, object]:
        """One model by name."""
        if name != self._front.model_name:
            raise RequestError(f"model: {name!r} is not served here", 404, code="model_not_found")
        return _model(self._front)

    async def metrics(self) -> Response:
        """Prometheus' text format."""
        front = self._front
        stats = await front.client.stats()
        values = stats | {
            "image_identity_conflicts_total": front.media.conflicts.total,
            "event_loop_tasks": len(asyncio.all_tasks()),
            "media_workers": len(front.media.workers.pids),
            "media_workers_lost_total": front.media.workers.num_lost,
            "num_requests_queued": front.admission.waiting_requests,
            "num_tokens_queued": front.admission.waiting_tokens,
            **{
                f'media_bytes{{purpose="{purpose}"}}': front.media.allocator.used_bytes(purpose)
                for purpose in PURPOSES
            },
        }
        return Response(front.metrics.render(values), media_type=CONTENT_TYPE)

    async def flush_cache(self) -> dict[str, str]:
        """Drops pictures and prefixes that nobody uses; needs the admin key."""
        self._front.client.flush()
        return {"status": "ok"}

    async def drain(self) -> dict[str, str]:
        """Drains and ends the server; needs the admin key."""
        self._drain()
        return {"status": "draining"}


def _model(front: Front) -> dict[str, object]:
    return {
        "id": front.model_name,
        "object": "model",
        "created": front.started_s,
        "owned_by": "lightvl",
        "max_model_len": front.client.preparer.rules.max_req_total_len,
    }


def _server_info(front: Front) -> dict[str, object]:
    flags = dataclasses.asdict(front.config)
    shown = {name: value for name, value in flags.items() if name not in _SECRET}
    shown["max_total_token_num"] = front.max_total_token_num
    shown["max_req_total_len"] = front.client.preparer.rules.max_req_total_len
    shown["device"] = front.device
    shown["model_name"] = front.model_name
    shown["version"] = version("lightvl-server")
    shown["choices"] = front.choices
    return shown

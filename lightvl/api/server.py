"""The listening socket and uvicorn on it."""

import asyncio
import socket
import ssl

import uvicorn
from starlette.types import ASGIApp

from lightvl.api.protocol import HttpProtocol
from lightvl.errors import StartupError
from lightvl.flags import ServerConfig

_LAST_ANSWERS_S = 1
_KEEP_ALIVE_S = 75
"""Idle connections are kept longer than usual clients and proxies do: they close first."""


class HttpServer(uvicorn.Server):
    """uvicorn without its own signals and ticks: it serves until `stop` is set."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.stop = asyncio.Event()

    async def main_loop(self) -> None:
        """Waits for `stop`; uvicorn calls this between starting and ending."""
        await self.stop.wait()

    async def run_on(self, sock: socket.socket) -> None:
        """Serves on a listening socket until `stop` is set."""
        await self._serve([sock])


def http_server(app: ASGIApp, config: ServerConfig) -> HttpServer:
    """Returns the server of an application, as the flags have it."""
    settings = uvicorn.Config(
        app,
        http=HttpProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        date_header=False,
        server_header=False,
        root_path=config.root_path,
        ssl_keyfile=config.ssl_keyfile,
        ssl_certfile=config.ssl_certfile,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_LAST_ANSWERS_S,
    )
    return HttpServer(settings)


def listen(config: ServerConfig) -> socket.socket:
    """Returns a listening socket, before anything is loaded; the certificate is tried too.

    Raises:
        StartupError: The port is taken or the address isn't this machine's, exit code 1; the
            certificate or its key is no good, exit code 2.
    """
    _check_certificate(config)
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        sock = socket.create_server((config.host, config.port), family=family, backlog=2048)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise StartupError(f"--host {config.host} --port {config.port}: {reason}", 1) from None
    return sock


def _check_certificate(config: ServerConfig) -> None:
    if config.ssl_certfile is None:
        return
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(config.ssl_certfile, config.ssl_keyfile)
    except OSError:
        raise StartupError(
            f"--ssl_certfile {config.ssl_certfile} --ssl_keyfile {config.ssl_keyfile}: "
            "expected a PEM certificate and its key"
        ) from None


def address_of(config: ServerConfig, sock: socket.socket) -> str:
    """Returns where a listening socket is reached, as a URL."""
    scheme = "https" if config.ssl_certfile else "http"
    host = f"[{config.host}]" if ":" in config.host else config.host
    return f"{scheme}://{host}:{sock.getsockname()[1]}"

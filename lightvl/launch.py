"""Starts the engine's process and the front, and ends them in order.

The one place that names engine modules, as strings: nothing here imports torch.
"""

import asyncio
import gc
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import uvicorn
import uvloop

from lightvl.api.admission import Admission, Limits
from lightvl.api.app import build_app
from lightvl.api.client import EngineClient
from lightvl.api.front import Front
from lightvl.api.gate import read_keys
from lightvl.api.metrics import Metrics
from lightvl.api.prepare import PromptRules
from lightvl.api.protocol import HttpProtocol
from lightvl.config import ModelConfig
from lightvl.errors import EngineLostError, StartupError
from lightvl.flags import ServerConfig, parse_args
from lightvl.grid import MAX_TILES
from lightvl.messages import Failed, Init, Loading, Ready, ToFront
from lightvl.model_config import load_model_config
from lightvl.multimodal.pool import MediaConfig, MediaPool
from lightvl.resolve import engine_config
from lightvl.tokenizer.tokenizer import Tokenizer, load_tokenizer
from lightvl.utils.channel import AsyncChannel, ChannelClosed, channel_pair
from lightvl.utils.env import Environment, num_cores, read_environment
from lightvl.utils.log import setup_logging

log = logging.getLogger(__name__)

ENGINE_COMMAND = ("-m", "lightvl.engine.worker")

_CLOSE_WAIT_S = 5.0
_LAST_ANSWERS_S = 1


@dataclass(slots=True, kw_only=True)
class RunningEngine:
    """The engine's process and what the front has for it; `close` ends both."""

    process: subprocess.Popen[bytes]
    client: EngineClient
    media: MediaPool
    tokenizer: Tokenizer
    model: ModelConfig
    ready: Ready
    environment: Environment

    async def close(self) -> None:
        """Closes the channel, which ends the engine, and the media workers."""
        await self.client.close()
        await self.media.close()
        await asyncio.to_thread(_end, self.process)


async def start_engine(
    config: ServerConfig,
    *,
    command: Sequence[str] = ENGINE_COMMAND,
    say: Callable[[str], None] = log.info,
) -> RunningEngine:
    """Starts the engine and the media workers and waits until they serve.

    Args:
        config: The flags.
        command: What the engine's process runs, behind the Python interpreter.
        say: Told each step and each choice, one line each.

    Raises:
        StartupError: The model or the machine doesn't allow it; nothing is left running.
    """
    environment = read_environment()
    model, tokenizer = await asyncio.to_thread(_load_front_files, config)
    resolved, notes = engine_config(config, model, environment)
    for note in notes:
        say(note)
    media = MediaPool(_media_config(config, environment))
    process, sock = _spawn(command, media)
    try:
        channel: AsyncChannel[ToFront] = await AsyncChannel.open(sock, ToFront)
        channel.send(Init(resolved))
        _, ready = await asyncio.gather(media.start(), _wait_ready(channel, process, say))
        rules = _prompt_rules(config, model, ready, environment)
        client = EngineClient(channel, media, tokenizer, rules, Metrics())
    except BaseException:
        sock.close()
        process.kill()
        process.wait()
        await media.close()
        raise
    return RunningEngine(
        process=process,
        client=client,
        media=media,
        tokenizer=tokenizer,
        model=model,
        ready=ready,
        environment=environment,
    )


def main(argv: list[str] | None = None, *, command: Sequence[str] = ENGINE_COMMAND) -> int:
    """Runs the server until a signal or a loss ends it.

    Args:
        argv: The command line without the program's name; None takes the process's.
        command: What the engine's process runs, behind the Python interpreter.

    Returns:
        The exit code: 0 after a drain, 2 for what the user must change, 1 for anything else.
    """
    setup_logging("front")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    try:
        config = parse_args(argv)
        keys = read_keys(config.api_key or read_environment().api_key, config.api_keys_file)
        with _listen(config) as sock:
            return uvloop.run(_serve(config, keys, sock, command))
    except StartupError as error:
        log.error("%s", error)
        return error.exit_code


class _Server(uvicorn.Server):
    """uvicorn without its own signals and ticks: it serves until `stop` is set."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.stop = asyncio.Event()

    async def main_loop(self) -> None:
        await self.stop.wait()

    async def run_on(self, sock: socket.socket) -> None:
        """Serves on a listening socket until `stop` is set."""
        await self._serve([sock])


class _Lifecycle:
    """Decides when and how the server ends."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._ending: asyncio.Task[None] | None = None
        self._pid_of_engine: int | None = None
        self.exit_code = 0
        self.ended = asyncio.Event()
        self.front: Front | None = None
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.on_signal)

    def watch(self, front: Front, engine: RunningEngine) -> None:
        """The server serves now: a signal drains it, a lost engine ends it."""
        self.front = front
        self._pid_of_engine = engine.process.pid
        self._loss = asyncio.create_task(self._on_loss(engine))

    def on_signal(self) -> None:
        """Drains at the first signal, ends at once at the second."""
        if self._ending is None:
            self.drain()
            return
        log.error("a second signal: ending at once")
        if self._pid_of_engine is not None:
            os.kill(self._pid_of_engine, signal.SIGKILL)
        os._exit(1)

    def drain(self) -> None:
        """Refuses new requests, lets running ones end, then ends the server."""
        if self._ending is None:
            self._ending = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        front = self.front
        if front is not None:
            front.draining = True
            log.info("draining: %d requests get up to %g s", front.num_open, self._config.drain_s)
            try:
                await asyncio.wait_for(front.idle.wait(), self._config.drain_s)
            except TimeoutError:
                log.warning("%d requests are cut off", front.num_open)
                front.client.fail_all(EngineLostError())
        self.ended.set()

    async def _on_loss(self, engine: RunningEngine) -> None:
        await engine.client.lost.wait()
        code = await asyncio.to_thread(_end, engine.process)
        log.error("the engine was lost (%s): the server ends", _how_ended(code))
        self.exit_code = 1
        engine_front = self.front
        if engine_front is not None:
            engine_front.draining = True
        self.ended.set()


async def _serve(
    config: ServerConfig, keys: tuple[bytes, ...], sock: socket.socket, command: Sequence[str]
) -> int:
    started_s = time.monotonic()
    lifecycle = _Lifecycle(config)
    starting = asyncio.create_task(start_engine(config, command=command))
    ended = asyncio.create_task(lifecycle.ended.wait())
    await asyncio.wait((starting, ended), return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        await asyncio.wait((starting,))
        log.info("ended while loading")
        return 0
    engine = await starting
    front = _front(config, keys, engine)
    server = _Server(_uvicorn_config(config, front, lifecycle))
    lifecycle.watch(front, engine)
    serving = asyncio.create_task(server.run_on(sock))
    gc.collect()
    gc.freeze()  # what starting made stays; no request pays for looking through it
    log.info(
        "%s is served on %s (ready after %.1f s)",
        front.model_name,
        _address(config, sock),
        time.monotonic() - started_s,
    )
    await asyncio.wait((serving, ended), return_when=asyncio.FIRST_COMPLETED)
    server.stop.set()
    await serving
    await engine.close()
    log.info("ended")
    return lifecycle.exit_code


def _front(config: ServerConfig, keys: tuple[bytes, ...], engine: RunningEngine) -> Front:
    kv_tokens = engine.ready.max_total_token_num
    limits = Limits(
        max_requests=config.max_queued_requests,
        max_tokens=config.max_queued_tokens or 8 * kv_tokens,
        max_wait_s=config.max_queue_wait_s,
    )
    return Front(
        config=config,
        model=engine.model,
        model_name=config.model_name or Path(config.model_dir).resolve().name,
        tokenizer=engine.tokenizer,
        client=engine.client,
        media=engine.media,
        admission=Admission(limits),
        metrics=engine.client.metrics,
        max_total_token_num=kv_tokens,
        api_keys=keys,
        admin_key=config.admin_key.encode() if config.admin_key else None,
        started_s=int(time.time()),
    )


def _uvicorn_config(config: ServerConfig, front: Front, lifecycle: _Lifecycle) -> uvicorn.Config:
    return uvicorn.Config(
        build_app(front, lifecycle.drain),
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
        timeout_graceful_shutdown=_LAST_ANSWERS_S,
    )


def _media_config(config: ServerConfig, environment: Environment) -> MediaConfig:
    domains = config.allowed_media_domains or ""
    return MediaConfig(
        num_workers=config.media_workers or num_cores(),
        arena_bytes=config.media_shm_bytes,
        bytes_in_flight=config.media_bytes_in_flight,
        max_body_bytes=config.max_body_bytes,
        max_image_bytes=config.max_image_bytes,
        max_image_pixels=config.max_image_pixels,
        max_images=config.max_images,
        allowed_domains=tuple(d.strip() for d in domains.split(",") if d.strip()),
        allow_private=config.allow_private_media,
        local_path=config.allowed_local_media_path,
        fetch_timeout_s=environment.request_timeout_s,
        proxy=environment.request_proxy,
    )


def _prompt_rules(
    config: ServerConfig, model: ModelConfig, ready: Ready, environment: Environment
) -> PromptRules:
    bound = environment.max_patch_num
    return PromptRules(
        max_req_total_len=ready.max_req_total_len,
        max_images=min(config.max_images, config.cache_capacity),
        tiling=model.tiling,
        tile_policy=config.tile_policy,
        max_tiles=None if bound is None else min(bound, MAX_TILES),
    )


def _load_front_files(config: ServerConfig) -> tuple[ModelConfig, Tokenizer]:
    """Reads the checkpoint's configuration, as the flags would have it, and its tokenizer."""
    model_dir = Path(config.model_dir)
    model = load_model_config(model_dir)
    tokenizer = load_tokenizer(
        model_dir, eos_ids=config.eos_id or model.eos_ids, conversation=model.template
    )
    eos_ids = config.eos_id or tuple(sorted(tokenizer.eos_ids))
    model = msgspec.structs.replace(model, eos_ids=eos_ids)
    if config.enable_multimodal is False:
        model = msgspec.structs.replace(model, vision=None, tiling=None)
    return model, tokenizer


def _spawn(
    command: Sequence[str], media: MediaPool
) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Starts the engine's process with its end of the channel and the arena."""
    ours, theirs = channel_pair()
    with theirs:
        fds = (theirs.fileno(), media.arena.fd)
        options = ["--channel-fd", str(fds[0]), "--arena-fd", str(fds[1])]
        process = subprocess.Popen(
            [sys.executable, *command, *options], pass_fds=fds, process_group=0
        )
    return process, ours


async def _wait_ready(
    channel: AsyncChannel[ToFront], process: subprocess.Popen[bytes], say: Callable[[str], None]
) -> Ready:
    while True:
        try:
            message = await channel.recv()
        except ChannelClosed:
            code = await asyncio.to_thread(_end, process)
            raise StartupError(f"the engine ended at start ({_how_ended(code)})", 1) from None
        if isinstance(message, Loading):
            say(message.text)
        elif isinstance(message, Failed):
            raise StartupError(message.message, message.exit_code)
        elif isinstance(message, Ready):
            for note in message.notes:
                say(note)
            return message


def _end(process: subprocess.Popen[bytes]) -> int:
    """Waits for a child that is about to exit; kills it if it doesn't. Returns its code."""
    try:
        return process.wait(_CLOSE_WAIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _how_ended(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _listen(config: ServerConfig) -> socket.socket:
    """Returns a listening socket, before anything is loaded.

    Raises:
        StartupError: The port is taken or the address isn't this machine's; exit code 1.
    """
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        sock = socket.create_server((config.host, config.port), family=family, backlog=2048)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise StartupError(f"--host {config.host} --port {config.port}: {reason}", 1) from None
    return sock


def _address(config: ServerConfig, sock: socket.socket) -> str:
    scheme = "https" if config.ssl_certfile else "http"
    host = f"[{config.host}]" if ":" in config.host else config.host
    return f"{scheme}://{host}:{sock.getsockname()[1]}"

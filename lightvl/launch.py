"""Starts the engine's process and the front, and ends them in order.

The one place that names engine modules, as strings: nothing here imports torch.
"""

import asyncio
import gc
import logging
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import uvloop

from lightvl.api.admission import Admission, Limits
from lightvl.api.app import build_app
from lightvl.api.client import EngineClient
from lightvl.api.front import Front
from lightvl.api.gate import read_keys
from lightvl.api.lifecycle import Lifecycle
from lightvl.api.metrics import Metrics
from lightvl.api.prepare import PromptRules
from lightvl.api.server import address_of, http_server, listen
from lightvl.api.tracing import tracing_from_environment
from lightvl.config import ModelConfig
from lightvl.errors import StartupError
from lightvl.flags import ServerConfig, parse_args
from lightvl.grid import MAX_TILES
from lightvl.messages import Failed, Init, Loading, Ready, ToFront
from lightvl.model_config import load_model_config
from lightvl.multimodal.pool import MediaConfig, MediaPool
from lightvl.resolve import engine_config
from lightvl.tokenizer.tokenizer import Tokenizer, load_tokenizer
from lightvl.utils.channel import AsyncChannel, ChannelClosed, channel_pair
from lightvl.utils.env import Environment, log_format, num_cores, read_environment
from lightvl.utils.log import setup_logging
from lightvl.utils.process import end_process, how_ended

log = logging.getLogger(__name__)

ENGINE_COMMAND = ("-m", "lightvl.engine.worker")


@dataclass(slots=True, kw_only=True)
class RunningEngine:
    """The engine's process and what the front has for it; `close` ends both.

    Attributes:
        choices: What was chosen at start, a line each.
    """

    process: subprocess.Popen[bytes]
    client: EngineClient
    media: MediaPool
    tokenizer: Tokenizer
    model: ModelConfig
    ready: Ready
    environment: Environment
    device: str
    choices: list[str]

    async def close(self) -> None:
        """Closes the channel, which ends the engine, and the media workers."""
        await self.client.close()
        await self.media.close()
        await asyncio.to_thread(end_process, self.process)


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
    metrics = Metrics()
    media = MediaPool(_media_config(config, environment), metrics.observe_media)
    process, sock = _spawn(command, media)
    try:
        channel: AsyncChannel[ToFront] = await AsyncChannel.open(sock, ToFront)
        channel.send(Init(resolved))
        _, ready = await asyncio.gather(media.start(), _wait_ready(channel, process, say))
        rules = _prompt_rules(config, model, ready, environment)
        client = EngineClient(channel, media, tokenizer, rules, metrics)
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
        device=resolved.device,
        choices=[*notes, *ready.notes],
    )


def main(
    argv: list[str] | None = None,
    *,
    command: Sequence[str] = ENGINE_COMMAND,
    prog: str = "python -m lightvl.api_server",
) -> int:
    """Runs the server until a signal or a loss ends it.

    Args:
        argv: The command line without the program's name; None takes the process's.
        command: What the engine's process runs, behind the Python interpreter.
        prog: The program's name, for its help.

    Returns:
        The exit code: 0 after a drain, 2 for what the user must change, 1 for anything else.
    """
    setup_logging("front")
    logging.getLogger("uvicorn").setLevel(logging.ERROR)  # a line for each bad request would flood
    try:
        setup_logging("front", log_format())
        config = parse_args(argv, prog)
        keys = read_keys(config.api_key or read_environment().api_key, config.api_keys_file)
        with listen(config) as sock:
            return uvloop.run(_serve(config, keys, sock, command))
    except StartupError as error:
        log.error("%s", error)
        return error.exit_code


async def _serve(
    config: ServerConfig, keys: tuple[bytes, ...], sock: socket.socket, command: Sequence[str]
) -> int:
    started_s = time.monotonic()
    tracing = tracing_from_environment()
    lifecycle = Lifecycle(config.drain_s)
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
    front.tracing = tracing
    server = http_server(build_app(front, lifecycle.drain), config)
    lifecycle.watch(front, engine.process)
    serving = asyncio.create_task(server.run_on(sock))
    gc.collect()
    gc.freeze()  # what starting made stays; no request pays for looking through it
    log.info(
        "%s is served on %s (ready after %.1f s)",
        front.model_name,
        address_of(config, sock),
        time.monotonic() - started_s,
    )
    await asyncio.wait((serving, ended), return_when=asyncio.FIRST_COMPLETED)
    server.stop.set()
    await serving
    await engine.close()
    if tracing is not None:
        await asyncio.to_thread(tracing.close)
    log.info("ended")
    return lifecycle.exit_code


def _front(config: ServerConfig, keys: tuple[bytes, ...], engine: RunningEngine) -> Front:
    kv_tokens = engine.ready.max_total_token_num
    limits = Limits(
        max_requests=config.max_queued_requests,
        max_tokens=config.max_queued_tokens or 8 * kv_tokens,
        max_wait_s=config.max_queue_wait_s,
        num_clients=max(1, len(keys)),
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
        device=engine.device,
        choices=engine.choices,
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
        max_request_tiles=ready.max_request_tiles,
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
            code = await asyncio.to_thread(end_process, process)
            raise StartupError(f"the engine ended at start ({how_ended(code)})", 1) from None
        if isinstance(message, Loading):
            say(message.text)
        elif isinstance(message, Failed):
            raise StartupError(message.message, message.exit_code)
        elif isinstance(message, Ready):
            for note in message.notes:
                say(note)
            return message

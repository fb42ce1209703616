"""A rank's process: `python -m lightvl.engine.worker --channel-fd N --arena-fd M`.

It reads `Init`, loads the model, says `Ready` (or `Failed`), and serves until the front closes the
channel or dies, which ends it at once.
"""

import argparse
import gc
import logging
import os
import select
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from time import monotonic

from lightvl.config import EngineConfig
from lightvl.engine.engine import Engine, serve
from lightvl.engine.memory import MemoryPlan, plan_memory
from lightvl.errors import StartupError
from lightvl.messages import Failed, Init, Loading, Ready, ToEngine
from lightvl.utils.channel import Channel, ChannelClosed
from lightvl.utils.env import bound_spinning, log_format, num_cores, read_environment
from lightvl.utils.log import setup_logging
from lightvl.utils.shm import Arena

logger = logging.getLogger(__name__)

Send = Callable[..., None]


def main(arguments: list[str] | None = None) -> int:
    """Runs one rank and returns its exit code."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--channel-fd", type=int, required=True)
    parser.add_argument("--arena-fd", type=int, required=True)
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the front's to handle
    setup_logging("engine 0", log_format())
    channel: Channel[ToEngine] = Channel.from_fd(options.channel_fd, ToEngine)
    threading.Thread(target=_exit_with_front, args=(channel.fileno(),), daemon=True).start()
    try:
        return _run(channel, options.arena_fd)
    except ChannelClosed:
        return 0


def _run(channel: Channel[ToEngine], arena_fd: int) -> int:
    init = channel.recv()
    if not isinstance(init, Init):
        raise TypeError(f"the first message is Init, not {type(init).__name__}")
    config = init.config
    arena = Arena.attach(arena_fd, config.arena_bytes)
    try:
        engine, memory, notes = _start(config, arena.buffer, channel.send)
    except StartupError as error:
        channel.send(Failed(str(error), error.exit_code))
        return error.exit_code
    except ChannelClosed:
        raise
    except Exception as error:
        logger.exception("the engine could not start")
        channel.send(Failed(f"the engine could not start: {_one_line(error)}", 1))
        return 1
    gc.collect()
    gc.freeze()  # what loading made stays; no step pays for looking through it
    num_tokens = memory.num_kv_pages * config.page_size
    num_tiles = memory.num_embedding_pages
    channel.send(Ready(num_tokens, memory.max_req_total_len, notes, num_tiles))
    serve(engine, channel)
    return 0


def _start(
    config: EngineConfig, pixels: memoryview, send: Send
) -> tuple[Engine, MemoryPlan, list[str]]:
    """Loads the model and plans memory; torch is imported here, so that `Init` doesn't wait."""
    bound_spinning()
    import torch

    from lightvl.engine.runner import TORCH_DTYPES, Runner
    from lightvl.models.registry import load_model

    num_threads = read_environment().num_threads or num_cores()
    torch.set_num_threads(num_threads)
    device = torch.device(config.device)
    model = load_model(
        config.model,
        Path(config.model_dir),
        dtype=TORCH_DTYPES[config.data_type],
        device=device,
        load_workers=config.load_workers,
        progress=_Progress(send),
    )
    memory = plan_memory(config)
    runner = Runner(config, model, device, memory, pixels)
    notes = [f"{num_threads} threads", *memory.notes]
    return Engine(config, memory, runner, send), memory, notes


class _Progress:
    """Tells the front once a second how much of the weights is loaded."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._last_s = monotonic()

    def __call__(self, done_bytes: int, all_bytes: int) -> None:
        if monotonic() - self._last_s >= 1.0:
            self._last_s = monotonic()
            self._send(Loading(f"weights loaded: {100 * done_bytes // max(1, all_bytes)} %"))


def _exit_with_front(fd: int) -> None:
    """Ends the process the moment the front's end closes, whatever else is going on."""
    poll = select.poll()
    poll.register(fd, select.POLLRDHUP)
    poll.poll()
    os._exit(0)


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


if __name__ == "__main__":
    sys.exit(main())

"""The rank's process: it serves a checkpoint over its channel and ends with the front."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import psutil
import pytest

from lightvl.config import EngineConfig
from lightvl.messages import (
    AddRequest,
    Failed,
    Init,
    NeedPixels,
    Pixels,
    PixelsDone,
    Ready,
    StepOutputs,
    ToFront,
)
from lightvl.model_config import load_model_config
from lightvl.testing.checkpoints import write_checkpoint
from lightvl.utils.channel import Channel, channel_pair
from lightvl.utils.env import child_environment
from lightvl.utils.shm import Arena
from tests.integration.engine_driver import (
    ARENA_BYTES,
    engine_config,
    greedy,
    picture,
    picture_prompt,
    reference_ids,
    tokenize,
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint")
    write_checkpoint(path, layout="native")
    return path


@dataclass
class Worker:
    """A rank's process and what the front has for it."""

    process: subprocess.Popen[bytes]
    channel: Channel[ToFront]
    arena: Arena

    def start(self, config: EngineConfig) -> Ready | Failed:
        self.channel.send(Init(config))
        while True:
            message = self.channel.recv()
            if isinstance(message, Ready | Failed):
                return message


@pytest.fixture
def worker() -> Iterator[Worker]:
    ours, theirs = channel_pair()
    arena = Arena.create(ARENA_BYTES)
    with theirs:
        fds = (theirs.fileno(), arena.fd)
        command = ["--channel-fd", str(fds[0]), "--arena-fd", str(fds[1])]
        process = subprocess.Popen(
            [sys.executable, "-m", "lightvl.engine.worker", *command],
            pass_fds=fds,
            env=child_environment(OMP_NUM_THREADS="1"),
        )
    channel: Channel[ToFront] = Channel(ours, ToFront)
    yield Worker(process, channel, arena)
    channel.close()
    process.kill()
    process.wait()
    arena.close()


def config_of(checkpoint: Path) -> EngineConfig:
    return engine_config(checkpoint, load_model_config(checkpoint))


def test_it_answers_about_a_picture_and_sleeps_and_ends_with_the_front(
    worker: Worker, checkpoint: Path
) -> None:
    config = config_of(checkpoint)
    ready = worker.start(config)
    assert isinstance(ready, Ready)
    assert (ready.max_total_token_num, ready.max_req_total_len) == (2048, 1024)
    assert any("threads" in note for note in ready.notes)

    prompt = picture_prompt(picture(1))
    assert config.model.tiling is not None
    ids, images = tokenize(prompt, config.model.tiling)
    worker.channel.send(AddRequest(1, ids, greedy(12), images))
    drawn: list[int] = []
    returned = []
    while len(drawn) < 12:
        match worker.channel.recv():
            case NeedPixels(key=key):
                pixels = picture(1).pixels
                worker.arena.buffer[64 : 64 + pixels.nbytes] = pixels.tobytes()
                worker.channel.send(Pixels(key, 64, pixels.shape[1], pixels.shape[0]))
            case StepOutputs(outputs=outputs):
                drawn += [output.token_id for output in outputs]
            case PixelsDone(offset=offset):
                returned.append(offset)
    assert drawn == reference_ids(checkpoint, prompt, 12)
    assert returned == [64]

    process = psutil.Process(worker.process.pid)
    worker.process.send_signal(signal.SIGINT)  # is the front's to handle
    time.sleep(0.2)
    before = process.cpu_times()
    time.sleep(1.0)
    after = process.cpu_times()
    assert after.user + after.system - before.user - before.system < 0.05

    worker.channel.close()
    assert worker.process.wait(10) == 0


def test_it_ends_with_the_front_while_it_loads(worker: Worker, checkpoint: Path) -> None:
    worker.channel.send(Init(config_of(checkpoint)))
    time.sleep(0.3)
    worker.channel.close()
    assert worker.process.wait(5) == 0


def test_a_missing_checkpoint_fails_with_its_exit_code(worker: Worker, checkpoint: Path) -> None:
    config = msgspec.structs.replace(config_of(checkpoint), model_dir="/nowhere")
    failed = worker.start(config)
    assert isinstance(failed, Failed)
    assert failed.exit_code == 2
    assert "\n" not in failed.message
    assert worker.process.wait(10) == 2


def test_what_it_did_not_expect_is_one_line_and_exit_code_1(
    worker: Worker, checkpoint: Path
) -> None:
    config = config_of(checkpoint)
    impossible = msgspec.structs.replace(config, running_max_req_size=-1)
    failed = worker.start(impossible)
    assert isinstance(failed, Failed)
    assert failed.exit_code == 1
    assert failed.message.startswith("the engine could not start: ")
    assert "\n" not in failed.message
    assert worker.process.wait(10) == 1

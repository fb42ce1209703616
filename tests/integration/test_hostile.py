"""A server shown pictures that break decoders: a sample always, whole corpora by `make soak`."""

import asyncio
import os
import random
from pathlib import Path

import pytest

from lightvl.testing.hostile import FLAGS, File, folder, generated, show
from lightvl.testing.server import ServerProcess

SAMPLE = 160


def shown(files: list[File]) -> list[str]:
    with ServerProcess(*FLAGS, "--media_workers", "2") as server:
        return asyncio.run(show(server.url, files))


def test_a_sample_of_hostile_pictures() -> None:
    files = list(generated(seed=1))
    lasting = [file for file in files if not file.name.startswith(("cut", "flipped", "noise with"))]
    others = [file for file in files if file not in lasting]
    chosen = lasting + random.Random(2).sample(others, SAMPLE - len(lasting))
    assert shown(chosen) == []


@pytest.mark.soak
def test_generated_pictures() -> None:
    assert shown([file for seed in range(5) for file in generated(seed)]) == []


@pytest.mark.soak
def test_the_corpora_of_others() -> None:
    root = os.environ.get("LIGHTVL_CORPUS")
    if root is None:
        pytest.skip("LIGHTVL_CORPUS names no folder of pictures")
    files = list(folder(Path(root)))
    assert len(files) > 900
    assert shown(files) == []

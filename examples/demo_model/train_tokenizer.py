"""Trains the tokenizer on questions and answers of rendered scenes and on English words.

python train_tokenizer.py DATA OUT
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

from assets import Assets, load_assets
from mixture import render
from scenes import SMALL_TALK
from tokenizer import SYSTEM_MESSAGE, save_tokenizer, train_tokenizer

NUM_SCENES = 20_000


def corpus(assets: Assets) -> Iterator[str]:
    """Lines in which every concept and every phrasing comes many times."""
    rng = Random(0)
    for number in range(NUM_SCENES):
        for question, answer in render(assets, 2 if number % 20 == 0 else 1, rng).turns:
            yield question
            yield answer
    for name in [*assets.train.drawings, *assets.flags]:
        yield from [f"This is a {name}."] * 10
    for questions, answer in SMALL_TALK:
        yield from [*questions, answer] * 20
    yield from [f"system\n{SYSTEM_MESSAGE}", "user\n", "assistant\n", "Image-1: \n"] * 2000
    yield from assets.train.words


if __name__ == "__main__":
    save_tokenizer(train_tokenizer(corpus(load_assets(Path(sys.argv[1])))), Path(sys.argv[2]))

"""Turns a scene into token ids with the answers marked, exactly as a server writes the prompt."""

from dataclasses import dataclass
from functools import lru_cache
from random import Random

import numpy as np
from scenes import Scene, Turn
from tokenizer import SYSTEM_MESSAGE
from tokenizers import Tokenizer

TOKENS_PER_TILE = 64
OTHER_SYSTEMS = (
    "You are a helpful picture assistant.",
    "You are an assistant that describes pictures.",
    "Answer the question about the picture.",
    "You are a vision assistant. Answer briefly.",
)


@dataclass(frozen=True)
class Encoded:
    """Ids with the picture placeholders already repeated; `is_answer` marks what is learnt."""

    ids: np.ndarray
    is_answer: np.ndarray


class Writer:
    """Writes conversations in the ChatML form of the model's chat template."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.image_id = tokenizer.token_to_id("<IMG_CONTEXT>")
        self.encode = lru_cache(maxsize=100_000)(self._encode)

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def picture(self, num_tiles: int) -> list[int]:
        slots = [self.image_id] * (TOKENS_PER_TILE * num_tiles)
        return [*self.encode("<img>"), *slots, *self.encode("</img>")]

    def answer(self, text: str) -> list[int]:
        """A quoted word is spelt letter by letter, which makes reading much easier to learn."""
        if '"' not in text:
            return [*self.encode(f"{text}<|im_end|>")]
        before, word, after = text.split('"')
        letters = [i for letter in word for i in self.encode(letter)]
        return [*self.encode(f'{before}"'), *letters, *self.encode(f'"{after}<|im_end|>')]

    def opening(self, rng: Random | None) -> str:
        kind = 1.0 if rng is None else rng.random()
        if kind < 0.12:
            return ""
        system = SYSTEM_MESSAGE if kind > 0.22 or rng is None else rng.choice(OTHER_SYSTEMS)
        start = "\n" if rng is not None and rng.random() < 0.08 else ""
        return f"{start}<|im_start|>system\n{system}<|im_end|>\n"

    def user(self, text: str, tiles: list[int], rng: Random | None) -> list[int]:
        """The first user turn with its pictures before, sometimes behind, the question."""
        if not tiles:
            return [*self.encode(f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n")]
        ids = list(self.encode("<|im_start|>user\n"))
        if rng is not None and len(tiles) == 1 and rng.random() < 0.12:
            newline = rng.choice(("", "\n"))
            ids += [*self.encode(f"{text}{newline}"), *self.picture(tiles[0])]
            return [*ids, *self.encode("\n<|im_end|>\n<|im_start|>assistant\n")]
        labelled = len(tiles) > 1 and rng is not None and rng.random() < 0.5
        for number, count in enumerate(tiles):
            if labelled:
                ids += self.encode(f"Image-{number + 1}: ")
            ids += self.picture(count)
            last = number + 1 == len(tiles)
            ids += self.encode("\n" if not last else f"\n{text}<|im_end|>\n<|im_start|>assistant\n")
        return ids

    def prompt(self, question: str, tiles: list[int], rng: Random | None = None) -> list[int]:
        opening = self.opening(rng)
        return [*(self.encode(opening) if opening else ()), *self.user(question, tiles, rng)]

    def training(self, turns: list[Turn], tiles: list[int], room: int, rng: Random) -> Encoded:
        """As many turns as fit into `room` ids; the first one always does."""
        ids = self.prompt(turns[0][0], tiles, rng)
        marks = [False] * len(ids)
        for index, (question, reply) in enumerate(turns):
            before = [] if index == 0 else [*self.encode("\n"), *self.user(question, [], rng)]
            learnt = self.answer(reply)
            if index and len(ids) + len(before) + len(learnt) > room:
                break
            ids += before + learnt
            marks += [False] * len(before) + [True] * len(learnt)
        return Encoded(np.array(ids[:room], np.int16), np.array(marks[:room], bool))


def pick_turns(scene: Scene, rng: Random) -> list[Turn]:
    """Some of a scene's turns, mostly as many as fit; the task's own first more often than not."""
    turns = list(scene.turns)
    if rng.random() < 0.4:
        rng.shuffle(turns)
    return turns[: rng.choice((1, 3, 4, 5))]

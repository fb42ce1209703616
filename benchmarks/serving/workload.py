"""The load that both sides get: questions about pictures, and what is noted of each answer."""

import base64
import io
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from PIL import Image, ImageDraw

PICTURE_SIZE = 448
NUM_TEXT_TOKENS = 32


@dataclass(frozen=True)
class Question:
    """One request.

    Attributes:
        text_ids: What follows the picture.
        picture: An encoded picture, or None.
        num_tokens: Tokens to draw, whatever they are.
    """

    text_ids: list[int]
    picture: bytes | None
    num_tokens: int

    @property
    def picture_base64(self) -> str:
        """The picture as it travels in a JSON body."""
        return base64.b64encode(self.picture or b"").decode()


@dataclass
class Answer:
    """One finished request; times are seconds of `time.perf_counter`.

    Attributes:
        asked_s: When it was sent.
        token_s: When each token came.
        ids: The tokens; empty where the client did not look.
    """

    asked_s: float
    token_s: list[float] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)

    @property
    def ttft_s(self) -> float:
        """Time to first token."""
        return self.token_s[0] - self.asked_s

    @property
    def tpot_s(self) -> float:
        """Mean time of a token after the first."""
        return (self.token_s[-1] - self.token_s[0]) / (len(self.token_s) - 1)


def make_questions(seed: int, count: int, vocab_size: int, num_tokens: int) -> list[Question]:
    """Returns questions that share no prefix and no picture, equal for equal seeds."""
    generator = random.Random(seed)
    return [
        Question(make_text(generator, vocab_size), make_picture(generator), num_tokens)
        for _ in range(count)
    ]


def make_text(generator: random.Random, vocab_size: int) -> list[int]:
    """Returns ids of ordinary tokens; special ones lie at either end of the vocabularies used."""
    return [generator.randrange(300, vocab_size - 300) for _ in range(NUM_TEXT_TOKENS)]


def make_picture(generator: random.Random) -> bytes:
    """Returns a JPEG of coloured shapes."""
    side = PICTURE_SIZE
    picture = Image.new("RGB", (side, side), _colour(generator))
    draw = ImageDraw.Draw(picture)
    for _ in range(20):
        x, y = generator.randrange(side), generator.randrange(side)
        box = (x, y, x + generator.randrange(20, 200), y + generator.randrange(20, 200))
        shape = generator.choice([draw.ellipse, draw.rectangle])
        shape(box, fill=_colour(generator))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def decode_rate(answers: Sequence[Answer]) -> float | None:
    """Returns tokens a second while all of the answers decode, or None if they never do at once.

    The window is from the last one's first token to the first one's last. A batch that starts as
    one has all of its decode phase in it.
    """
    begin_s = max(answer.token_s[0] for answer in answers)
    end_s = min(answer.token_s[-1] for answer in answers)
    if end_s <= begin_s:
        return None
    num_tokens = sum(sum(begin_s < t <= end_s for t in answer.token_s) for answer in answers)
    return num_tokens / (end_s - begin_s)


def whole_rate(answers: Sequence[Answer]) -> float:
    """Returns tokens a second from the first request sent to the last token."""
    begin_s = min(answer.asked_s for answer in answers)
    end_s = max(answer.token_s[-1] for answer in answers)
    return sum(len(answer.token_s) for answer in answers) / (end_s - begin_s)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Returns p50 and p99 in milliseconds of values in seconds."""
    ordered = sorted(values)
    p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    return {"p50": 1000 * median(ordered), "p99": 1000 * p99}


def gaps(answers: Sequence[Answer]) -> list[float]:
    """Returns the times between neighbouring tokens of each answer."""
    return [
        late - early
        for answer in answers
        for early, late in zip(answer.token_s, answer.token_s[1:], strict=False)
    ]


def _colour(generator: random.Random) -> tuple[int, int, int]:
    return generator.randrange(256), generator.randrange(256), generator.randrange(256)

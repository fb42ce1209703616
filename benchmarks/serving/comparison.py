"""Our server and `generate()` in turns on the same questions."""

from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

from tqdm import tqdm

from benchmarks.serving.client import Ours
from benchmarks.serving.reference import Reference
from benchmarks.serving.report import Report, Target
from benchmarks.serving.workload import (
    Answer,
    Question,
    decode_rate,
    make_questions,
    whole_rate,
)

BATCH = 16
LENGTHS = (128, 32)


@dataclass(frozen=True)
class Bounds:
    """What is asked of a model: ratios of decode rates, ours to transformers'."""

    alone: float
    to_sequential: float
    to_batch: float


BOUNDS = {"demo": Bounds(1.2, 4.0, 1.3), "smollm2": Bounds(1.05, 2.5, 1.1)}
NEW_QUESTION_BOUND = 0.3


@dataclass
class Comparison:
    """One model's rows.

    Attributes:
        model: A key of `BOUNDS`.
        ours: The running server.
        reference: The loaded baseline.
        report: Takes the rows.
        vocab_size: For the questions' text.
        repeats: How often each load runs on each side.
        seed: Of the questions; counts up, so that no question comes twice.
    """

    model: str
    ours: Ours
    reference: Reference
    report: Report
    vocab_size: int
    repeats: int
    seed: int = 0
    _one_by_one: float = field(default=0.0, init=False)
    """transformers' decode rate of a single request."""

    def run(self) -> None:
        """Runs every load."""
        self._warm_up()
        self._check_tokens()
        for num_tokens in LENGTHS:
            self._compare(1, num_tokens)
            self._compare(BATCH, num_tokens)
        self._new_question()

    def questions(self, count: int, num_tokens: int) -> list[Question]:
        """Returns questions that were not asked before."""
        self.seed += 1
        return make_questions(self.seed, count, self.vocab_size, num_tokens)

    def _warm_up(self) -> None:
        for count in (1, BATCH):
            questions = self.questions(count, 8)
            self.ours.ask(questions)
            self.reference.ask(questions)

    def _check_tokens(self) -> None:
        """Both sides must draw the same tokens, or the comparison means nothing."""
        shares = []
        for question in self.questions(3, LENGTHS[0]):
            (ours,), (theirs,) = self.ours.ask([question]), self.reference.ask([question])
            equal = [a == b for a, b in zip(ours.ids, theirs.ids, strict=True)]
            shares.append(sum(equal) / len(equal))
        self.report.add_target(
            Target("greedy tokens equal to generate()'s", self.model, shares, 1.0, unit="share")
        )

    def _compare(self, count: int, num_tokens: int) -> None:
        """Asks both sides in turns; `generate()` gets the requests as one batch."""
        ours, theirs = self._in_turns(count, num_tokens)
        load = _load(count, num_tokens)
        self.report.add_load(load, self.ours.name, self.model, ours)
        self.report.add_load(load, self.reference.name, self.model, theirs)
        self._add_ratio(f"{load}: whole", whole_rate, ours, theirs, 1.0)
        if num_tokens < LENGTHS[0]:
            return  # the requests hardly decode together
        bounds = BOUNDS[self.model]
        if count == 1:
            self._add_ratio(f"{load}: decode", _decode_rate, ours, theirs, bounds.alone)
            self._one_by_one = median(map(_decode_rate, theirs))
            return
        self._add_ratio(f"{load}: decode", _decode_rate, ours, theirs, bounds.to_batch)
        self.report.add_target(
            Target(
                f"{load}: decode, to one after the other",
                self.model,
                [_decode_rate(answers) / self._one_by_one for answers in ours],
                bounds.to_sequential,
            )
        )

    def _in_turns(self, count: int, num_tokens: int) -> tuple[list[list[Answer]], ...]:
        ours, theirs = [], []
        label = f"{self.model}, {_load(count, num_tokens)}"
        for _ in tqdm(range(self.repeats), desc=label):
            questions = self.questions(count, num_tokens)
            ours.append(self.ours.ask(questions))
            theirs.append(self.reference.ask(questions))
        return ours, theirs

    def _add_ratio(
        self,
        what: str,
        rate: Callable[[list[Answer]], float],
        ours: list[list[Answer]],
        theirs: list[list[Answer]],
        bound: float,
    ) -> None:
        ratios = [rate(a) / rate(b) for a, b in zip(ours, theirs, strict=True)]
        self.report.add_target(Target(what, self.model, ratios, bound))

    def _new_question(self) -> None:
        """The same picture again: its embeddings and the prefix are there."""
        ratios = []
        for _ in tqdm(range(2 * self.repeats + 1), desc=f"{self.model}, picture asked again"):
            first, other = self.questions(2, 2)
            again = Question(other.text_ids, first.picture, other.num_tokens)
            (new,), (known,) = self.ours.ask([first]), self.ours.ask([again])
            ratios.append(known.ttft_s / new.ttft_s)
        self.report.add_target(
            Target(
                "same picture, another question: time to first token",
                self.model,
                ratios,
                NEW_QUESTION_BOUND,
                at_least=False,
            )
        )


def _decode_rate(answers: list[Answer]) -> float:
    rate = decode_rate(answers)
    if rate is None:
        raise ValueError("the requests never decoded all at once")
    return rate


def _load(count: int, num_tokens: int) -> str:
    each = "1 request" if count == 1 else f"{count} requests at once"
    return f"{each}, picture + 32 in, {num_tokens} out"

"""The sampler's bookkeeping: which parameters reach the operator for which row, and when."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor

from lightvl.engine.plan import Drawn, Join
from lightvl.engine.sampler import Sampler
from lightvl.types import SamplingParams

NUM_SLOTS, VOCAB_SIZE = 8, 100
EOS = 7
GREEDY = SamplingParams(temperature=0.0)


class Bench:
    """A sampler, its last ids, and logits by seed."""

    def __init__(self) -> None:
        self.sampler = Sampler(NUM_SLOTS, VOCAB_SIZE, [EOS])
        self.last_ids = torch.full((NUM_SLOTS,), -5)

    def join(
        self, slot: int, sampling: SamplingParams, counted: list[int] | None = None, drawn: int = 0
    ) -> None:
        self.sampler.join(Join(slot, sampling, 3, counted or [], drawn))

    def draw(self, logits: Tensor, slots: list[int]) -> list[Drawn]:
        return self.sampler.draw(logits, slots, self.last_ids)

    def ids(self, logits: Tensor, slots: list[int]) -> list[int]:
        return [drawn.token_id for drawn in self.draw(logits, slots)]


def random_logits(num_rows: int, seed: int = 0) -> Tensor:
    return torch.randn(num_rows, VOCAB_SIZE, generator=torch.Generator().manual_seed(seed)) * 2


def peaked_logits(*peaks: int) -> Tensor:
    """Rows whose likeliest id is the given one and the next likeliest the one behind it."""
    logits = torch.zeros(len(peaks), VOCAB_SIZE)
    for row, peak in zip(logits, peaks, strict=True):
        row[peak], row[peak + 1] = 9.0, 5.0
    return logits


def test_greedy_takes_the_likeliest_and_remembers_it_by_slot() -> None:
    bench = Bench()
    for slot in (5, 2):
        bench.join(slot, GREEDY)
    drawn = bench.draw(peaked_logits(40, 41), [5, 2])
    assert drawn == [Drawn(5, 40), Drawn(2, 41)]
    assert bench.last_ids.tolist() == [-5, -5, 41, -5, -5, 40, -5, -5]


def test_draws_depend_on_seed_and_count_alone() -> None:
    sampling = SamplingParams(temperature=1.3, seed=11)
    logits = [random_logits(1, seed) for seed in range(12)]
    alone = Bench()
    alone.join(0, sampling)
    texts = [alone.ids(row, [0])[0] for row in logits]
    batched = Bench()
    batched.join(3, sampling)
    batched.join(1, SamplingParams(temperature=0.7, seed=5))
    batched.join(6, GREEDY)
    crowds = [[3], [1, 3], [6, 3, 1], [6, 3, 1], [3, 6]]
    again = []
    for i, row in enumerate(logits):
        slots = crowds[i % len(crowds)]
        rows = torch.cat([row if slot == 3 else random_logits(1, 99) for slot in slots])
        again.append(batched.ids(rows, slots)[slots.index(3)])
    assert again == texts
    assert len(set(texts)) > 3


def test_a_preempted_sequence_goes_on_with_its_counter() -> None:
    sampling = SamplingParams(temperature=1.5, seed=3)
    logits = [random_logits(1, seed) for seed in range(8)]
    whole = Bench()
    whole.join(0, sampling)
    ids = [whole.ids(row, [0])[0] for row in logits]
    rest = Bench()
    rest.join(4, sampling, drawn=5)
    assert [rest.ids(row, [4])[0] for row in logits[5:]] == ids[5:]


def test_min_new_tokens_masks_end_ids_until_the_end_token_would_be_the_last_of_so_many() -> None:
    bench = Bench()
    bench.join(0, SamplingParams(temperature=0, min_new_tokens=3, stop_token_ids=(50,)))
    bench.join(1, SamplingParams(temperature=0, min_new_tokens=3, ignore_eos=True))
    bench.join(2, GREEDY)
    logits = peaked_logits(50, EOS, EOS)
    steps = [bench.ids(logits, [0, 1, 2]) for _ in range(4)]
    assert [ids[0] for ids in steps] == [51, 51, 50, 50]
    assert [ids[1] for ids in steps] == [EOS] * 4
    assert [ids[2] for ids in steps] == [EOS] * 4


def test_min_new_tokens_counts_tokens_drawn_before_a_preemption() -> None:
    bench = Bench()
    bench.join(0, SamplingParams(temperature=0, min_new_tokens=4), drawn=2)
    assert [bench.ids(peaked_logits(EOS), [0])[0] for _ in range(2)] == [EOS + 1, EOS]


def test_min_new_tokens_gives_way_where_only_end_ids_are_allowed() -> None:
    bench = Bench()
    bench.join(0, SamplingParams(temperature=0, min_new_tokens=9, allowed_token_ids=(EOS,)))
    assert bench.ids(peaked_logits(20), [0]) == [EOS]


def test_values_beyond_the_vocabulary_change_nothing() -> None:
    bench = Bench()
    beyond = (VOCAB_SIZE, -1, 10**12)
    bench.join(0, SamplingParams(temperature=0, stop_token_ids=beyond, min_new_tokens=3))
    bench.join(1, SamplingParams(temperature=1, seed=4, top_k=10**12))
    bench.join(2, SamplingParams(temperature=1, seed=4))
    logits = random_logits(1).expand(3, -1)
    ids = bench.ids(logits, [0, 1, 2])
    assert ids[0] == int(logits[0].argmax())
    assert ids[1] == ids[2]


def test_bias_and_allowed_ids_hold_for_their_rows_only() -> None:
    bench = Bench()
    bench.join(0, SamplingParams(temperature=0, logit_bias={30: 100.0, 31: 1.0}))
    bench.join(1, SamplingParams(temperature=0, allowed_token_ids=(0, 33, 64, 99)))
    bench.join(2, SamplingParams(temperature=0, logit_bias={99: 50.0}, allowed_token_ids=(3, 99)))
    bench.join(3, GREEDY)
    logits = peaked_logits(10, 32, 10, 10)
    assert bench.ids(logits, [0, 1, 2, 3]) == [30, 33, 99, 10]
    assert bench.ids(logits.flip(0), [3, 2, 1, 0]) == [10, 99, 33, 30]


def test_a_new_sequence_in_a_slot_inherits_nothing() -> None:
    bench = Bench()
    bench.join(
        0,
        SamplingParams(
            temperature=0,
            logit_bias={30: 100.0},
            presence_penalty=2.0,
            min_new_tokens=9,
            num_logprobs=2,
        ),
        counted=[10],
    )
    bench.draw(peaked_logits(10), [0])
    bench.join(0, GREEDY)
    assert bench.draw(peaked_logits(10), [0]) == [Drawn(0, 10)]
    bench.join(0, SamplingParams(temperature=0, presence_penalty=2.0))
    assert bench.ids(peaked_logits(10), [0]) == [10]


def penalized_row(logits: Tensor, sampling: SamplingParams, counts: Counter[int]) -> list[float]:
    """Penalties in float64, straight from their definition."""
    out = logits.double().tolist()
    for token_id, count in counts.items():
        value = out[token_id]
        r = sampling.repetition_penalty
        value = value / r if value > 0 else value * r
        out[token_id] = value - sampling.presence_penalty - sampling.frequency_penalty * count
    return out


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(temperature=0, repetition_penalty=1.7),
        SamplingParams(temperature=0, repetition_penalty=0.8),
        SamplingParams(temperature=0, presence_penalty=1.1),
        SamplingParams(temperature=0, frequency_penalty=0.6),
        SamplingParams(
            temperature=0, repetition_penalty=1.2, presence_penalty=-0.5, frequency_penalty=0.3
        ),
    ],
)
def test_penalties_equal_a_float64_reference(sampling: SamplingParams) -> None:
    bench = Bench()
    counted = [4, 4, 9, 80]
    bench.join(1, GREEDY)
    bench.join(6, sampling, counted)
    counts = Counter(counted)
    for step in range(40):
        logits = random_logits(2, seed=step % 3)
        slots = [6, 1] if step % 2 else [1, 6]
        row = slots.index(6)
        wanted = penalized_row(logits[row], sampling, counts)
        ids = bench.ids(logits, slots)
        assert ids[row] == max(range(VOCAB_SIZE), key=wanted.__getitem__), step
        assert ids[1 - row] == int(logits[1 - row].argmax())
        counts[ids[row]] += 1


def test_logprobs_are_of_the_raw_logits_and_only_for_rows_that_ask() -> None:
    bench = Bench()
    bench.join(0, SamplingParams(temperature=0, num_logprobs=3, logit_bias={20: 100.0}))
    bench.join(1, GREEDY)
    bench.join(2, SamplingParams(temperature=0.8, num_logprobs=0))
    logits = random_logits(3)
    drawn = bench.draw(logits, [0, 1, 2])
    reference = logits.double().log_softmax(-1)
    assert drawn[0].token_id == 20
    assert drawn[0].logprob == pytest.approx(reference[0, 20].item(), rel=1e-5)
    values, ids = reference[0].topk(3)
    assert drawn[0].top_logprobs is not None
    assert [i for i, _ in drawn[0].top_logprobs] == ids.tolist()
    assert [v for _, v in drawn[0].top_logprobs] == pytest.approx(values.tolist(), rel=1e-5)
    assert drawn[1] == Drawn(1, int(logits[1].argmax()))
    assert drawn[2].logprob == pytest.approx(reference[2, drawn[2].token_id].item(), rel=1e-5)
    assert drawn[2].top_logprobs is None


def test_temperature_draws_follow_the_distribution() -> None:
    bench = Bench()
    bench.join(0, SamplingParams(temperature=2.0, top_k=3, seed=1))
    logits = torch.full((1, VOCAB_SIZE), -50.0)
    logits[0, [3, 5, 8, 9]] = torch.tensor([2.0, 0.0, -2.0, -4.0])
    counts = Counter(bench.ids(logits, [0])[0] for _ in range(4000))
    mass = [math.exp(v / 2) for v in (2.0, 0.0, -2.0)]
    for token_id, share in zip((3, 5, 8), mass, strict=True):
        assert counts[token_id] / 4000 == pytest.approx(share / sum(mass), abs=0.03)
    assert set(counts) == {3, 5, 8}


def test_masks_of_one_draw_hold_for_it_alone_and_beside_lasting_ones() -> None:
    bench = Bench()
    bench.join(1, GREEDY)
    bench.join(2, SamplingParams(temperature=0.0, allowed_token_ids=(30, 40)))
    bench.join(3, SamplingParams(temperature=0.0, allowed_token_ids=(30, 40)))
    logits = peaked_logits(50, 30, 30)
    mask = np.zeros(-(-VOCAB_SIZE // 32), dtype=np.uint32)
    for allowed in (40, 51):
        mask[allowed // 32] |= np.uint32(1 << allowed % 32)
    masks = {1: mask.tobytes(), 2: mask.tobytes()}
    drawn = bench.sampler.draw(logits, [1, 2, 3], bench.last_ids, masks)
    assert [one.token_id for one in drawn] == [51, 40, 30]
    assert bench.ids(logits, [1, 2, 3]) == [50, 30, 30]

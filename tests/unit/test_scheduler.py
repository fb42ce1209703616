"""What the scheduler does in situations that have a name."""

from dataclasses import replace

import msgspec
import pytest

from lightvl.config import RopeConfig
from lightvl.engine.scheduler import Step
from lightvl.messages import Pixels, PixelsDone, Started
from lightvl.types import SamplingParams
from lightvl.vision.packing import MICRO_BATCH_TILES, STREAMING_TILES
from tests.property.serving import TILE_LEN, Server, Setting, add_request, grid_of, key_of

LONG = SamplingParams(max_new_tokens=40, ignore_eos=True)
SHORT = SamplingParams(max_new_tokens=1)
Prompt = list[int | tuple[int]]
PROMPT = [7, 8, 9, 10, 11, 12, 13, 14, 15, 16]


def at_most(max_new_tokens: int) -> SamplingParams:
    return SamplingParams(max_new_tokens=max_new_tokens, ignore_eos=True)


def started(server: Server, request_id: int) -> Started:
    return next(message for message in server.started if message.request_id == request_id)


def prefill_lens(server: Server) -> list[int]:
    return [step.num_prefill for step in server.steps]


def serve_one(server: Server, request_id: int, prompt: list[int], salt: bytes = b"") -> int:
    """Serves a request to its end and returns how many of its tokens were cached."""
    server.add(add_request(request_id, prompt, SHORT, salt=salt))
    server.run()
    return started(server, request_id).cached_tokens


# --- prefix cache ----------------------------------------------------------------------------


def test_a_prompt_reuses_the_full_pages_of_an_equal_one_but_computes_its_last_token() -> None:
    server = Server(Setting(page_size=4))
    assert serve_one(server, 0, PROMPT[:8]) == 0
    assert serve_one(server, 1, PROMPT[:8]) == 4
    assert serve_one(server, 2, PROMPT[:9]) == 8
    assert serve_one(server, 3, [*PROMPT[:4], 1, 1, 1]) == 4


def test_generated_tokens_are_reused_by_the_next_turn() -> None:
    server = Server(Setting(page_size=4))
    server.add(add_request(0, PROMPT, at_most(12)))
    server.run()
    turn = [*PROMPT, *server.answers[0].token_ids]
    assert len(turn) == 22
    server.add(add_request(1, [*turn, 5], SHORT))
    server.run()
    assert started(server, 1).cached_tokens == 20
    server.check_answers()


def test_namespaces_share_nothing() -> None:
    server = Server(Setting())
    assert serve_one(server, 0, PROMPT, b"a") == 0
    assert serve_one(server, 1, PROMPT, b"b") == 0
    assert serve_one(server, 2, PROMPT, b"a") == 8


def test_dynamic_ntk_shares_only_between_prompts_of_equal_rotation() -> None:
    rope = RopeConfig(kind="dynamic", factor=2.0, original_max_position=8)
    server = Server(Setting(rope=rope))
    assert serve_one(server, 0, PROMPT) == 0
    assert serve_one(server, 1, [*PROMPT, 1]) == 0
    assert serve_one(server, 2, PROMPT) == 8
    assert serve_one(server, 3, PROMPT[:7]) == 0
    assert serve_one(server, 4, PROMPT[:8]) == 4


def test_prompts_that_come_together_are_computed_once() -> None:
    server = Server(Setting(page_size=4, chunk=8))
    for i in range(4):
        server.add(add_request(i, PROMPT * 3, SamplingParams(max_new_tokens=5, seed=i)))
    server.run()
    server.check_answers()
    assert sum(prefill_lens(server)) == 30 + 3 * 2


def test_without_prefix_cache_everything_is_computed() -> None:
    server = Server(Setting(prefix_cache=False))
    for i in range(3):
        assert serve_one(server, i, PROMPT) == 0
    assert sum(prefill_lens(server)) == 30
    assert server.scheduler.pool.num_cached == 0


def test_flush_forgets_prefixes_and_pictures() -> None:
    server = Server(Setting())
    prompt: Prompt = [(1,), *PROMPT]
    for i in range(2):
        server.add(add_request(i, prompt, SHORT))
        server.run()
    assert (started(server, 1).cached_tokens, server.num_asked) == (12, 1)
    server.scheduler.flush()
    server.add(add_request(2, prompt, SHORT))
    server.run()
    assert (started(server, 2).cached_tokens, server.num_asked) == (0, 2)


# --- chunks ----------------------------------------------------------------------------------


def test_a_long_prompt_is_computed_in_chunks_beside_decoding() -> None:
    server = Server(Setting(chunk=8, prefix_cache=False))
    server.add(add_request(0, PROMPT[:3], LONG))
    server.step()
    server.add(add_request(1, PROMPT * 3, LONG))
    for _ in range(4):
        server.step()
    chunks = [[row.num_tokens for row in step.rows] for step in server.steps]
    assert chunks == [[3], [1, 8], [1, 8], [1, 8], [1, 6]]
    assert len(server.answers[0].token_ids) == 5


def test_without_chunks_a_prompt_waits_for_room_and_for_all_its_pictures() -> None:
    server = Server(Setting(chunk=None, max_tokens=30))
    server.add(add_request(0, PROMPT * 2, LONG))
    server.add(add_request(1, [1, *PROMPT], LONG))
    server.add(add_request(2, [*PROMPT[:3], (0,), 5], LONG))
    server.step()
    server.step()
    assert prefill_lens(server) == [20, 11]
    server.answer_need()
    server.step()
    assert prefill_lens(server)[-1] == 4 + TILE_LEN


def test_without_chunks_a_prompt_beyond_the_batch_is_cut_all_the_same() -> None:
    server = Server(Setting(chunk=None, max_tokens=16))
    server.add(add_request(0, PROMPT * 4, SHORT))
    server.run()
    assert prefill_lens(server) == [16, 16, 8]
    server.check_answers()


def test_text_before_a_picture_is_computed_while_it_is_decoded() -> None:
    server = Server(Setting(page_size=4))
    server.add(add_request(0, [*PROMPT[:6], (0,), 5], SHORT))
    server.step()
    assert prefill_lens(server) == [4]
    server.step()
    assert prefill_lens(server) == [4, 2]
    assert not server.step()
    server.answer_need()
    server.step()
    assert prefill_lens(server)[-1] == TILE_LEN + 1


# --- pictures --------------------------------------------------------------------------------


def test_one_picture_in_many_requests_is_asked_and_encoded_once() -> None:
    server = Server(Setting(num_slots=10, num_pages=200))
    for i in range(10):
        server.add(add_request(i, [i, i, (1,), i], SHORT))
    server.run()
    server.check_answers()
    assert server.num_asked == 1
    assert server.scheduler.counters.vision_tiles == grid_of(1).num_tiles
    assert [s.cached_images for s in sorted(server.started, key=lambda s: s.request_id)] == [
        [False],
        *[[True]] * 9,
    ]


def test_when_the_asked_request_ends_the_next_one_is_asked() -> None:
    server = Server(Setting())
    for i in range(3):
        server.add(add_request(i, [i, (0,), i], SHORT))
    server.step()
    for ended in (0, 1):
        assert [need.request_id for need in server.needs] == [ended]
        server.needs.clear()
        server.abort(ended)
    assert [need.request_id for need in server.needs] == [2]
    server.run()
    server.check_answers()
    server.check_nothing_is_held()


def test_pixels_that_nobody_waits_for_are_given_back_at_once() -> None:
    server = Server(Setting())
    server.scheduler.supply(Pixels(key_of(1), 128, 8, 8))
    assert server.scheduler.outbox == [PixelsDone(key_of(1), 128)]


def test_pictures_of_a_cached_prefix_are_not_needed() -> None:
    server = Server(Setting(page_size=2))
    server.add(add_request(0, [1, 1, (0,), 1], SHORT))
    server.run()
    server.scheduler.pictures.flush()
    server.add(add_request(1, [1, 1, (0,), 1], SHORT))
    server.run()
    assert server.num_asked == 1
    assert started(server, 1).cached_images == [True]


def test_pictures_are_let_go_once_they_are_computed() -> None:
    server = Server(Setting(num_tiles=7, capacity=1, max_total_len=200))
    server.add(add_request(0, [1, (2,), 1], at_most(100)))
    server.add(add_request(1, [2, (5,), 2], SHORT))
    for _ in range(20):
        while server.needs:
            server.answer_need()
        server.step()
    assert server.answers[1].finish_reason == "length"
    assert server.answers[0].finish_reason is None
    assert server.scheduler.pictures.num_evictions == 1


def test_an_evicted_picture_is_asked_for_again() -> None:
    server = Server(Setting(num_tiles=7, capacity=1, prefix_cache=False))
    for i, number in enumerate([0, 3, 0]):
        server.add(add_request(i, [1, (number,), 1], SHORT))
        server.run()
    assert server.num_asked == 3
    server.check_answers()


def test_vision_work_is_spread_over_steps_while_streams_run() -> None:
    server = Server(Setting(num_tiles=40, num_pages=200, max_total_len=200, num_slots=8))
    server.add(add_request(0, PROMPT, at_most(100)))
    server.run_steps(4)
    for i in range(1, 4):
        server.add(add_request(i, [i, (3 * i + 2,), i], SHORT))
    server.step()
    while server.needs:
        server.answer_need()
    before = len(server.answers[0].token_ids)
    server.run_steps(6)
    num_tiles = [len(step.tiles) for step in server.steps[-6:]]
    assert num_tiles == [STREAMING_TILES] * 5 + [1]
    assert len(server.answers[0].token_ids) == before + 6


def test_vision_work_is_done_at_once_when_nothing_streams() -> None:
    server = Server(Setting(num_tiles=40, num_pages=200, num_slots=8))
    for i in range(3):
        server.add(add_request(i, [(3 * i + 2,), i], SHORT))
    server.step()
    while server.needs:
        server.answer_need()
    server.run_steps(2)
    assert [len(step.tiles) for step in server.steps] == [MICRO_BATCH_TILES, 21 - MICRO_BATCH_TILES]


def test_a_tower_batch_has_no_more_pictures_than_asked() -> None:
    server = Server(Setting(max_pictures=2, num_slots=8))
    for i in range(5):
        server.add(add_request(i, [(3 * i,), i], SHORT))
    server.step()
    while server.needs:
        server.answer_need()
    server.run()
    assert [len(step.tiles) for step in server.steps if step.tiles] == [2, 2, 1]


# --- memory ----------------------------------------------------------------------------------


def test_the_youngest_of_the_lowest_priority_is_preempted_and_loses_nothing() -> None:
    server = Server(Setting(num_pages=16, page_size=4, prefix_cache=False))
    for i, priority in enumerate([1, 0, 1]):
        prompt = [i, *PROMPT[:3]]
        server.add(add_request(i, prompt, LONG, priority))
    victims: list[int] = []
    while not victims:
        server.step()
        victims = [seq.request_id for seq in server.scheduler.waiting]
    assert victims == [2]
    server.run()
    assert server.scheduler.counters.preemptions >= 1
    server.check_answers()
    assert len(server.started) == 3


def test_a_request_that_can_never_fit_is_refused() -> None:
    server = Server(Setting(num_tiles=4, max_total_len=32))
    server.add(add_request(0, PROMPT * 4))
    server.add(add_request(1, [(2,), 1]))
    server.add(add_request(2, []))
    misfit = add_request(3, [(0,), 1])
    image = msgspec.structs.replace(misfit.images[0], num_tokens=TILE_LEN + 1)
    server.add(msgspec.structs.replace(misfit, images=[image]))
    for i in range(4):
        assert server.answers[i].finish_reason == "abort"
    assert not server.step()


def test_admission_leaves_running_prompts_their_pages() -> None:
    server = Server(Setting(num_pages=16, page_size=4, chunk=4, prefix_cache=False))
    server.add(add_request(0, PROMPT * 4, SHORT))
    server.add(add_request(1, PROMPT * 3, SHORT))
    server.step()
    assert [seq.request_id for seq in server.scheduler.running] == [0]
    server.run()
    assert server.scheduler.counters.preemptions == 0
    server.check_answers()


# --- order, end, budget ----------------------------------------------------------------------


def test_smaller_priority_goes_first() -> None:
    server = Server(Setting(num_slots=1))
    for i, priority in enumerate([0, 5, -1, 0]):
        server.add(add_request(i, PROMPT, SHORT, priority))
    server.run()
    assert [s.request_id for s in server.started] == [2, 0, 3, 1]


def test_abort_frees_everything_wherever_the_request_is() -> None:
    server = Server(Setting(num_slots=2))
    for i in range(3):
        server.add(add_request(i, [*PROMPT, (i,), i], LONG))
    server.step()
    for request_id in (2, 1, 0, 0, 77):
        server.abort(request_id)
    server.needs.clear()
    assert not server.step()
    server.check_nothing_is_held()


@pytest.mark.parametrize("lag", [0, 1])
def test_how_sequences_end(lag: int) -> None:
    free = at_most(100)
    server = Server(Setting(max_total_len=32), lag)
    server.add(add_request(0, PROMPT, at_most(3)))
    server.add(add_request(1, PROMPT, free))
    server.run()
    assert [len(server.answers[i].token_ids) for i in (0, 1)] == [3, 22]
    drawn = server.answers[1].token_ids
    stop = next(t for t in drawn[3:] if t not in drawn[:3])
    server.add(
        add_request(
            2,
            PROMPT,
            SamplingParams(max_new_tokens=100, ignore_eos=True, stop_token_ids=(stop,)),
        )
    )
    server.run()
    assert server.answers[2].token_ids == drawn[: drawn.index(stop) + 1]
    assert server.answers[2].finish_reason == "stop"


def costs(step: Step) -> tuple[float, float]:
    """What a step costs where a tile takes 4 ms, a prompt token 1 ms and decoding 2 ms."""
    num_decoding = sum(not row.token_ids for row in step.rows)
    return 0.004 * len(step.tiles), 0.001 * step.num_prefill + 0.002 * (num_decoding > 0)


def test_work_is_cut_by_measured_cost_so_that_gaps_stay_short() -> None:
    setting = Setting(
        page_size=4, num_pages=400, num_tiles=60, max_total_len=400, num_slots=8, capacity=20
    )
    server = Server(replace(setting, chunk=64, max_itl_ms=20.0, prefix_cache=False), costs=costs)
    server.add(add_request(0, [*PROMPT, (2,), 1], at_most(300)))
    server.run_steps(1)
    server.answer_need()
    server.run_steps(30)
    for i in range(1, 6):
        server.add(add_request(i, [*PROMPT * 6, (3 * i + 2,), i], SHORT))
    server.step()
    while server.needs:
        server.answer_need()
    begin = len(server.steps)
    while len(server.live) > 1:
        server.step()
    gaps = [sum(costs(step)) for step in server.steps[begin + 3 :]]
    assert max(gaps) <= 0.020 + 0.004
    assert sum(gaps) / len(gaps) > 0.010, "the gap is used"
    assert all(step.rows[0].slot == server.steps[0].rows[0].slot for step in server.steps[begin:])

"""Whatever happens around a request, its tokens are those it gets alone, and nothing leaks."""

from dataclasses import replace
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from lightvl.messages import AddRequest
from lightvl.types import SamplingParams
from tests.property.serving import Server, Setting, add_request

SETTINGS = st.builds(
    Setting,
    num_pages=st.sampled_from([16, 17, 24, 64]),
    page_size=st.just(4),
    num_tiles=st.sampled_from([8, 12, 32]),
    capacity=st.sampled_from([3, 8]),
    num_slots=st.integers(1, 6),
    chunk=st.sampled_from([None, 1, 3, 8, 13]),
    max_tokens=st.sampled_from([9, 20, 64]),
    max_itl_ms=st.sampled_from([0.0, 2.0, 30.0]),
    prefix_cache=st.booleans(),
    max_pictures=st.sampled_from([None, 1, 2]),
)


def random_request(random: Random, request_id: int) -> AddRequest:
    """A prompt of a shared beginning, up to three pictures of six, and text of its own."""
    beginning = random.choice([[], [7, 8, 9, 10], [7, 8, 9, 10, 11, 12, 13, 14, 15]])
    prompt: list[int | tuple[int]] = list(beginning)
    for _ in range(random.choice([0, 0, 1, 1, 2, 3])):
        picture = random.choice([0, 1, random.randrange(6)])
        prompt += [(picture,), *random.choices([5, 6], k=random.randrange(3))]
    prompt += random.choices([2, 3, 4], k=random.randrange(1, 6))
    sampling = SamplingParams(
        seed=random.choice([0, 0, 1]),
        max_new_tokens=random.choice([1, 2, 5, 20, 60, 60]),
        ignore_eos=random.random() < 0.3,
        stop_token_ids=random.choice([(), (), (3,)]),
        presence_penalty=random.choice([0.0, 0.0, 1.0]),
        input_penalty=random.random() < 0.5,
    )
    salt = random.choice([b"", b"", b"other"])
    return add_request(request_id, prompt, sampling, random.choice([0, 0, 0, 1, -1]), salt)


@settings(max_examples=250, deadline=None)
@given(setting=SETTINGS, seed=st.integers(0, 2**32), lag=st.sampled_from([0, 0, 1]))
def test_every_request_gets_its_own_tokens_and_nothing_leaks(
    setting: Setting, seed: int, lag: int
) -> None:
    random = Random(seed)
    server = Server(setting, lag)
    act_at_random(random, server, num_requests=random.randrange(1, 20))
    server.run()
    server.check_answers()
    server.check_nothing_is_held()


def act_at_random(random: Random, server: Server, num_requests: int) -> None:
    """Adds requests between steps, decodes what is asked for sooner or later, aborts some."""
    haste = random.choice([0.1, 0.5, 1.0])
    while len(server.requests) < num_requests or server.needs:
        action = random.random()
        if action < 0.2 and len(server.requests) < num_requests:
            server.add(random_request(random, len(server.requests)))
        elif action < 0.2 + 0.4 * haste and server.needs:
            server.answer_need(random.randrange(len(server.needs)), late=random.random() < 0.5)
        elif 0.6 < action < 0.63 and server.live:
            asked = [need.request_id for need in server.needs if need.request_id in server.live]
            server.abort(random.choice(asked or server.live))
        elif 0.63 < action < 0.64:
            server.scheduler.flush()
        else:
            server.step()


@settings(max_examples=60, deadline=None)
@given(setting=SETTINGS, seed=st.integers(0, 2**32), lag=st.sampled_from([0, 1]))
def test_requests_that_come_together_are_served_in_any_memory(
    setting: Setting, seed: int, lag: int
) -> None:
    random = Random(seed)
    tight = replace(setting, num_pages=16, num_tiles=8, num_slots=8)
    server = Server(tight, lag)
    for request_id in range(20):
        server.add(random_request(random, request_id))
    server.run()
    server.check_answers()
    server.check_nothing_is_held()


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32), num_slots=st.integers(1, 6))
def test_admission_is_in_order_of_priority_and_arrival(seed: int, num_slots: int) -> None:
    random = Random(seed)
    server = Server(Setting(num_slots=num_slots, num_pages=400, num_tiles=200, capacity=100))
    requests = [random_request(random, i) for i in range(20)]
    for request in requests:
        server.add(request)
    server.run()
    order = sorted(requests, key=lambda r: (r.priority, r.request_id))
    assert [s.request_id for s in server.started] == [r.request_id for r in order]

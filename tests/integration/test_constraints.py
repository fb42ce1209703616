"""Constrained answers of the bundled model: what ends by stop matches, what is cut is a prefix."""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import jsonschema_rs
import openai
import psutil
import pydantic
import pytest
from llguidance import LLMatcher, LLTokenizer

from lightvl.grammar import library_text
from lightvl.testing.server import ENGINE, ServerProcess
from lightvl.types import Constraint

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b", "c"]}, "maxItems": 3},
        "mood": {"anyOf": [{"type": "null"}, {"const": "good"}]},
    },
    "required": ["name", "age", "mood"],
    "additionalProperties": False,
}
ANYTHING = {"type": "object"}
DATE = r"(19|20)\d\d-(0[1-9]|1[0-2])-\d{2}( at [a-z]{1,9})?"
WORDS = r"([A-ZÀ-Þ][a-zà-þ]*[ ,.!])+"
GBNF = 'root ::= term ("+" term){0,3}\nterm ::= [0-9]{1,3} | "(" term "*" term ")"\n'
LARK = """start: greeting (", " NAME)*
greeting: "hello" | "good " ("day" | "night")
NAME: /[A-Z][a-z]+/
"""
_TERM = r"(?:[0-9]{1,3}|\((?:[0-9]{1,3}|\(.*\))\*(?:[0-9]{1,3}|\(.*\))\))"


def _is_json(schema: dict[str, Any]) -> Callable[[str], bool]:
    return lambda text: jsonschema_rs.is_valid(schema, json.loads(text))


def _matches(pattern: str) -> Callable[[str], bool]:
    return lambda text: re.fullmatch(pattern, text) is not None


CASES: dict[str, tuple[Constraint, Callable[[str], bool], bool]] = {
    "schema": (
        Constraint(kind="json", text=json.dumps(PERSON), field="guided_json"),
        _is_json(PERSON),
        True,
    ),
    "any object": (
        Constraint(kind="json", text=json.dumps(ANYTHING), field="guided_json"),
        _is_json(ANYTHING),
        False,
    ),
    "regex": (
        Constraint(kind="regex", text=DATE, field="regular_constraint"),
        _matches(DATE),
        True,
    ),
    "open regex": (
        Constraint(kind="regex", text=WORDS, field="regular_constraint"),
        _matches(WORDS),
        False,
    ),
    "gbnf": (
        Constraint(kind="grammar", text=GBNF, field="guided_grammar"),
        _matches(rf"{_TERM}(?:\+{_TERM}){{0,3}}"),
        False,
    ),
    "lark": (
        Constraint(kind="grammar", text=LARK, field="guided_grammar"),
        _matches(r"(hello|good (day|night))(, [A-Z][a-z]+)*"),
        False,
    ),
}


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with ServerProcess("--max_total_token_num", "16384", engine=ENGINE) as process:
        yield process


@pytest.fixture(scope="module")
def http(server: ServerProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=120) as client:
        yield client


def generate(http: httpx.Client, **parameters: Any) -> dict[str, Any]:
    prompt = parameters.pop("prompt", "Describe it.")
    parameters = {"do_sample": True, "temperature": 1.5, "seed": 1, **parameters}
    answer = http.post("/generate", json={"inputs": prompt, "parameters": parameters})
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()
    return result


def is_prefix(constraint: Constraint, text: str) -> bool:
    """Whether a text can be continued to one that matches; byte by byte, by the library."""
    matcher = LLMatcher(LLTokenizer("byte"), library_text(constraint), log_level=0)
    data = list(text.rstrip("\ufffd").encode())
    return matcher.try_consume_tokens(data) == len(data)


def check_many(http: httpx.Client, name: str, num_prompts: int) -> None:
    constraint, matches, is_bounded = CASES[name]

    def run(seed: int) -> tuple[str, str]:
        parameters = {constraint.field: constraint.text, "max_new_tokens": 320, "seed": seed}
        answer = generate(http, prompt=f"What is number {seed}?", **parameters)
        return answer["finish_reason"], answer["generated_text"][0]

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(run, range(num_prompts)))
    for reason, text in answers:
        assert reason in ("stop", "length")
        assert matches(text) if reason == "stop" else is_prefix(constraint, text), text
    assert len({text for _, text in answers}) > num_prompts / 8
    if is_bounded:
        num_stopped = sum(reason == "stop" for reason, _ in answers)
        assert num_stopped >= 0.95 * num_prompts


@pytest.mark.parametrize("name", CASES)
def test_each_kind(http: httpx.Client, name: str) -> None:
    check_many(http, name, 12)


@pytest.mark.soak
@pytest.mark.parametrize("name", CASES)
def test_each_kind_often(http: httpx.Client, name: str) -> None:
    check_many(http, name, 200)


def test_a_cut_answer_is_a_prefix(http: httpx.Client) -> None:
    constraint = CASES["schema"][0]
    for length in range(1, 12):
        answer = generate(http, guided_json=PERSON, max_new_tokens=length)
        assert answer["finish_reason"] == "length"
        assert is_prefix(constraint, answer["generated_text"][0])
    assert not is_prefix(constraint, '{"name": 5')


def test_sequences_of_one_request_and_alone(http: httpx.Client) -> None:
    together = generate(http, regular_constraint=DATE, n=4, max_new_tokens=60, seed=5)
    assert len(set(together["generated_text"])) == 4
    for k in range(4):
        alone = generate(http, regular_constraint=DATE, max_new_tokens=60, seed=5 + k)
        assert alone["generated_text"][0] == together["generated_text"][k]


def test_min_new_tokens_and_ignore_eos_hold_the_end_back_while_text_can_follow(
    http: httpx.Client,
) -> None:
    longer = generate(http, regular_constraint="a*", min_new_tokens=20, max_new_tokens=200)
    assert longer["finish_reason"] == "stop"
    assert longer["count_output_tokens"] >= 20
    complete = generate(http, regular_constraint="[ab]{1,4}", min_new_tokens=20, max_new_tokens=30)
    assert complete["finish_reason"] == "stop"
    assert re.fullmatch("[ab]{4}", complete["generated_text"][0])
    endless = generate(http, regular_constraint="[ab]{1,4}", ignore_eos=True, max_new_tokens=30)
    assert endless["generated_text"] == complete["generated_text"]
    cut = generate(http, regular_constraint="a*", ignore_eos=True, max_new_tokens=30)
    assert cut["finish_reason"] == "length"


def test_stop_strings_and_logprobs(http: httpx.Client) -> None:
    answer = generate(
        http, regular_constraint="[a-z]{3}-[0-9]{3}", stop_sequences="-", return_details=True,
        max_new_tokens=30,
    )  # fmt: skip
    assert re.fullmatch("[a-z]{3}-", answer["generated_text"][0])
    assert all(token["logprob"] <= 0 for token in answer["tokens"])


def test_a_stream_carries_the_same_text(http: httpx.Client) -> None:
    parameters = {
        "regular_constraint": DATE, "do_sample": True, "temperature": 1.5, "seed": 3,
        "max_new_tokens": 60,
    }  # fmt: skip
    whole = generate(http, **parameters)
    body = {"inputs": "Describe it.", "parameters": parameters}
    text = http.post("/generate_stream", json=body).text
    events = [json.loads(line[5:]) for line in text.splitlines() if line.startswith("data:")]
    assert "".join(event["token"]["text"] for event in events) == whole["generated_text"][0]
    assert events[-1]["finish_reason"] == "stop"


class Person(pydantic.BaseModel):
    name: str = pydantic.Field(max_length=12)
    age: int = pydantic.Field(ge=0, le=150)


def test_the_official_client(server: ServerProcess) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0)
    messages: Any = [{"role": "user", "content": "Who is it?"}]
    parsed = client.chat.completions.parse(
        model="demo", messages=messages, response_format=Person, seed=1, temperature=1.5
    )
    assert isinstance(parsed.choices[0].message.parsed, Person)
    free = client.chat.completions.create(
        model="demo", messages=messages, response_format={"type": "json_object"}, seed=2,
        max_tokens=400,
    )  # fmt: skip
    content = free.choices[0].message.content or ""
    if free.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(content), dict)
    with client.chat.completions.stream(
        model="demo", messages=messages, response_format=Person, seed=1, temperature=1.5
    ) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.parsed == parsed.choices[0].message.parsed
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(
            model="demo", messages=messages,
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {"type": "array", "uniqueItems": True}},
            },
        )  # fmt: skip
    assert refused.value.param == "response_format"


def _deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


def _chain(length: int) -> dict[str, Any]:
    links = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(length)}
    return {"$ref": "#/$defs/d0", "$defs": {**links, f"d{length}": {"type": "string"}}}


HOSTILE: list[tuple[str, str, Any]] = [
    ("repetitions", "regular_constraint", "((((a{100}){100}){100}){100})"),
    ("groups", "regular_constraint", "(" * 30000 + "a" + ")" * 30000),
    ("stars", "regular_constraint", "(a|" * 8000 + "b" + ")*" * 8000),
    ("chain of references", "guided_json", _chain(3000)),
    ("multiple", "guided_json", {"type": "integer", "multipleOf": 9999991}),
    ("nested", "guided_json", _deep(200)),
    ("remote", "guided_json", {"$ref": "http://127.0.0.1:1/x.json"}),
    ("unsatisfiable", "guided_json", {"type": "integer", "minimum": 5, "maximum": 3}),
    ("endless", "guided_json", {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}),
    (
        "chain of rules", "guided_grammar",
        "start: r0\n" + "".join(f"r{i}: r{i + 1}\n" for i in range(4000)) + 'r4000: "a"\n',
    ),
    ("circle", "guided_grammar", "start: A\nA: B\nB: A\n"),
    ("parentheses", "guided_grammar", "start: " + "(" * 20000 + '"a"' + ")" * 20000 + "\n"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value"), [case[1:] for case in HOSTILE], ids=[c[0] for c in HOSTILE]
)
def test_hostile_constraints_are_refused_in_time_while_others_go_on(
    http: httpx.Client, field: str, value: Any
) -> None:
    generate(http, regular_constraint="a", max_new_tokens=4)  # the vocabulary is there
    slowest_s = 0.0
    done = threading.Event()

    def others() -> None:
        nonlocal slowest_s
        while not done.is_set():
            begin_s = time.monotonic()
            generate(http, max_new_tokens=4)
            slowest_s = max(slowest_s, time.monotonic() - begin_s)

    thread = threading.Thread(target=others)
    thread.start()
    begin_s = time.monotonic()
    answer = http.post("/generate", json={"inputs": "a", "parameters": {field: value}})
    took_s = time.monotonic() - begin_s
    done.set()
    thread.join()
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == field
    assert took_s < 5.0
    assert slowest_s < 2.0


def test_preempted_sequences_go_on_where_they_were() -> None:
    """A table of pages for two of six sequences: they preempt each other all the time."""
    expected = []
    flags = ["--max_total_token_num", "512", "--page_size", "16", "--max_req_total_len", "400"]
    with (
        ServerProcess(*flags, engine=ENGINE) as process,
        httpx.Client(base_url=process.url, timeout=120) as http,
    ):
        parameters: dict[str, Any] = {"regular_constraint": "[a-c]{150,300}", "max_new_tokens": 350}

        def run(seed: int) -> str:
            answer = generate(http, seed=seed, **parameters)
            return str(answer["generated_text"][0])

        with ThreadPoolExecutor(6) as pool:
            together = list(pool.map(run, range(6)))
        expected = [run(seed) for seed in range(6)]
        metrics = http.get("/metrics").text
    found = re.search(r"^lightvl:\w*preemptions\w* ([0-9.]+)", metrics, re.MULTILINE)
    assert found is not None
    assert float(found[1]) > 0
    assert together == expected
    assert all(re.fullmatch("[a-c]{150,300}", text) for text in together)


def test_a_lost_grammar_process_ends_its_requests_alone(
    server: ServerProcess, http: httpx.Client
) -> None:
    generate(http, regular_constraint="a", max_new_tokens=4)
    children = psutil.Process(server.process.pid).children(recursive=True)
    workers = [p for p in children if "lightvl.engine.grammar_worker" in " ".join(p.cmdline())]
    assert len(workers) == 1
    body = {
        "inputs": "a",
        "parameters": {"regular_constraint": "[a-c]{3000}", "max_new_tokens": 3000},
    }
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(http.post, "/generate", json=body)
        time.sleep(0.5)
        workers[0].kill()
        assert running.result().status_code == 503
    assert generate(http, max_new_tokens=4)["count_output_tokens"] > 0
    again = generate(http, regular_constraint="[ab]{3}", max_new_tokens=9)
    assert re.fullmatch("[ab]{3}", again["generated_text"][0])

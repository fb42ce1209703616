"""Offline use through real processes, on a tiny checkpoint."""

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from lightvl import LLM, SamplingParams
from lightvl.errors import RequestError, StartupError
from lightvl.testing.checkpoints import write_checkpoint


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    path = tmp_path_factory.mktemp("checkpoint")
    write_checkpoint(path)
    with LLM(path, max_total_token_num=4096) as model:
        yield model


def _png(colour: str, size: tuple[int, int] = (60, 40)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


GREEDY = SamplingParams(temperature=0.0, max_new_tokens=12)


def test_one_prompt_or_several_give_the_same(llm: LLM) -> None:
    prompts = ["the quick brown", "pictures and text", "a"]
    together = llm.generate(prompts, GREEDY)
    assert [llm.generate(p, GREEDY)[0].completions for p in prompts] == [
        o.completions for o in together
    ]
    assert all(o.completions[0].finish_reason in ("stop", "length") for o in together)


def test_pictures_as_bytes_and_files(llm: LLM, tmp_path: Path) -> None:
    (tmp_path / "red.png").write_bytes(_png("red"))
    from_bytes = llm.generate("<image> what?", GREEDY, images=[_png("red")])[0]
    from_file = llm.generate("<image> what?", GREEDY, images=[tmp_path / "red.png"])[0]
    other = llm.generate("<image> what?", GREEDY, images=[_png("blue")])[0]
    assert from_bytes.completions == from_file.completions != other.completions
    assert from_bytes.num_prompt_tokens > llm.generate("what?", GREEDY)[0].num_prompt_tokens


def test_chat_with_a_picture(llm: LLM, tmp_path: Path) -> None:
    (tmp_path / "red.png").write_bytes(_png("red"))
    part = {"type": "image_url", "image_url": {"url": str(tmp_path / "red.png")}}
    messages = [{"role": "user", "content": [part, {"type": "text", "text": "what?"}]}]
    answer = llm.chat(messages, GREEDY)
    assert answer.text == llm.chat(messages, GREEDY).text
    assert len(answer.completions[0].token_ids) > 0


def test_n_sequences_are_n_runs_with_the_seeds(llm: LLM) -> None:
    drawn = SamplingParams(temperature=1.0, seed=7, max_new_tokens=8, num_logprobs=0)
    many = llm.generate("hello", drawn, n=3)[0].completions
    for k, completion in enumerate(many):
        alone = SamplingParams(temperature=1.0, seed=7 + k, max_new_tokens=8, num_logprobs=0)
        [single] = llm.generate("hello", alone)[0].completions
        assert completion.token_ids == single.token_ids
        assert completion.logprobs == pytest.approx(single.logprobs, rel=1e-4)
    assert len({tuple(c.token_ids) for c in many}) > 1


def test_bad_input_is_an_error_and_the_model_serves_on(llm: LLM) -> None:
    before = llm.generate("hello", GREEDY)
    with pytest.raises(RequestError, match="2 image placeholders"):
        llm.generate("<image><image>", GREEDY, images=[_png("red")])
    with pytest.raises(RequestError, match=r"images\[0\]"):
        llm.generate("<image>", GREEDY, images=[b"not a picture"])
    with pytest.raises(RequestError, match=r"none\.png"):
        llm.generate("<image>", GREEDY, images=["none.png"])
    with pytest.raises(RequestError, match="messages"):
        llm.chat([{"role": "nobody", "content": "x"}])
    with pytest.raises(RequestError, match="n: 0"):
        llm.generate("x", GREEDY, n=0)
    assert [o.completions for o in llm.generate("hello", GREEDY)] == [o.completions for o in before]


def test_bad_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="unknown option 'colour'"):
        LLM(colour="red")
    with pytest.raises(StartupError, match=r"config\.json"):
        LLM(tmp_path)

"""Placeholders in raw prompts, ids and chats."""

import pytest
import tokenizers
from tokenizers import AddedToken, models, pre_tokenizers, trainers

from lightvl.errors import RequestError
from lightvl.multimodal.prompt import (
    Picture,
    expand_chat,
    expand_prompt,
    flatten_content,
    new_marker,
)
from lightvl.tokenizer import Tokenizer
from lightvl.tokenizer.files import byte_level_bpe
from lightvl.types import ImageSlot, TileGrid

SPECIALS = ["<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>"]


def make_tokenizer(specials: list[str]) -> Tokenizer:
    backend = byte_level_bpe(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["what is this? <image> an image of images"] * 9, trainer)
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in specials])
    return Tokenizer(backend, None, [])


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return make_tokenizer(SPECIALS)


def picture(num_tokens: int, name: bytes = b"k") -> Picture:
    return Picture(name * 32, 640, 480, TileGrid(1, 1, False), num_tokens)


def spelled(tokenizer: Tokenizer, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("place", ["<image>", "<img></img>"])
def test_a_place_becomes_brackets_around_the_tokens(tokenizer: Tokenizer, place: str) -> None:
    ids, slots = expand_prompt(tokenizer, f"what is {place} this?", [picture(3)])
    assert spelled(tokenizer, ids) == "what is <img>" + "<IMG_CONTEXT>" * 3 + "</img> this?"
    start = ids.index(tokenizer.img_start_id or 0) + 1
    assert slots == [ImageSlot(b"k" * 32, start, 3, TileGrid(1, 1, False), 640, 480)]


def test_pictures_take_places_in_order(tokenizer: Tokenizer) -> None:
    pictures = [picture(2, b"a"), picture(1, b"b"), picture(4, b"c")]
    ids, slots = expand_prompt(tokenizer, "<img></img>1<image>2<image>", pictures)
    assert [slot.key[:1] for slot in slots] == [b"a", b"b", b"c"]
    assert [slot.num_tokens for slot in slots] == [2, 1, 4]
    context = tokenizer.img_context_id
    inside = {slot.start + n for slot in slots for n in range(slot.num_tokens)}
    assert {at for at, index in enumerate(ids) if index == context} == inside
    for slot in slots:
        assert ids[slot.start - 1] == tokenizer.img_start_id
        assert ids[slot.start + slot.num_tokens] == tokenizer.img_end_id


def test_the_text_around_is_encoded_as_without_pictures(tokenizer: Tokenizer) -> None:
    ids, slots = expand_prompt(tokenizer, "what<image>is this", [picture(5)])
    without = ids[: slots[0].start] + ids[slots[0].start + 5 :]
    assert without == tokenizer.encode("what<img></img>is this")


def test_places_in_ids(tokenizer: Tokenizer) -> None:
    start, end = tokenizer.img_start_id, tokenizer.img_end_id
    assert start is not None
    assert end is not None
    prompt = [7, start, end, 8, start, 9, end, start, start, end]
    ids, slots = expand_prompt(tokenizer, prompt, [picture(1), picture(2)])
    context = tokenizer.img_context_id
    assert ids == [7, start, context, end, 8, start, 9, end, start, start, context, context, end]
    assert [slot.start for slot in slots] == [2, 10]


@pytest.mark.parametrize(
    ("prompt", "num_pictures", "numbers"),
    [
        ("<image>", 0, "1 image placeholder, the request has 0 images"),
        ("none", 1, "0 image placeholders, the request has 1 image:"),
        ("<image><img></img>", 3, "2 image placeholders, the request has 3 images"),
        ("<img> </img>", 1, "0 image placeholders, the request has 1 image:"),
    ],
)
def test_other_numbers_of_places_and_pictures_are_refused(
    tokenizer: Tokenizer, prompt: str, num_pictures: int, numbers: str
) -> None:
    with pytest.raises(RequestError, match=numbers) as caught:
        expand_prompt(tokenizer, prompt, [picture(1)] * num_pictures)
    assert caught.value.status == 400


def test_image_context_spelled_in_text_is_plain_text(tokenizer: Tokenizer) -> None:
    ids, slots = expand_prompt(tokenizer, "<IMG_CONTEXT><image><IMG_CONTEXT>", [picture(2)])
    assert ids.count(tokenizer.img_context_id or 0) == 2
    assert spelled(tokenizer, ids).count("<IMG_CONTEXT>") == 4
    assert ids[slots[0].start] == tokenizer.img_context_id


def test_image_is_plain_text_where_the_vocabulary_has_no_brackets() -> None:
    text_only = make_tokenizer(SPECIALS[:2])
    ids, slots = expand_prompt(text_only, "an <image>", [])
    assert spelled(text_only, ids) == "an <image>"
    assert slots == []
    with pytest.raises(RequestError, match="0 image placeholders"):
        expand_prompt(text_only, "an <image>", [picture(1)])


@pytest.mark.parametrize(
    ("parts", "flat"),
    [
        ([None, "what is this?"], "M\nwhat is this?"),
        (["first: ", None, "second: ", None], "first: M\nsecond: M\n"),
        (["left <image> right", None], "left M right"),
        ([None, None, "1: <image> 2: ", "<image>"], "1: M 2: M"),
        ([None, "<image> and <image>"], "M\n<image> and <image>"),
        ([None, None, "only <image>"], "M\nM\nonly <image>"),
        (["no picture, <image>"], "no picture, <image>"),
        ([], ""),
    ],
)
def test_content_parts_become_text(parts: list[str | None], flat: str) -> None:
    assert flatten_content(parts, "M") == flat


def test_markers_differ() -> None:
    assert new_marker() != new_marker()


def test_only_markers_are_pictures_in_a_chat(tokenizer: Tokenizer) -> None:
    marker = new_marker()
    text = f"<|im_start|>{marker}\n<image> <img></img> <IMG_CONTEXT><|im_end|>"
    ids, slots = expand_chat(tokenizer, text, marker, [picture(2)])
    shown = "<img><IMG_CONTEXT><IMG_CONTEXT></img>\n<image> <img></img> <IMG_CONTEXT>"
    assert spelled(tokenizer, ids) == f"<|im_start|>{shown}<|im_end|>"
    assert [ids.count(i or 0) for i in (tokenizer.img_start_id, tokenizer.img_end_id)] == [1, 1]
    assert ids.count(tokenizer.img_context_id or 0) == 2
    assert slots[0].start == 2


def test_a_template_that_drops_a_picture_is_noticed(tokenizer: Tokenizer) -> None:
    with pytest.raises(RequestError, match="0 image placeholders, the request has 1 image:"):
        expand_chat(tokenizer, "nothing left", new_marker(), [picture(2)])


def test_a_start_token_comes_once(tokenizer: Tokenizer) -> None:
    backend = tokenizers.Tokenizer.from_str(tokenizer._backend.to_str())
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 300)]
    )
    assert backend.token_to_id("<|im_start|>") is not None
    with_start = Tokenizer(backend, None, [])
    start = with_start.encode("")
    assert len(start) == 1
    ids, _ = expand_chat(with_start, "a <img> b", new_marker(), [], add_special_tokens=True)
    assert ids.count(start[0]) == 1
    assert expand_chat(with_start, "a", new_marker(), [])[0] == with_start.encode("a", False)

"""Masks of the grammar process over byte-level and SentencePiece vocabularies."""

import random
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
import sentencepiece

from lightvl.engine.grammar import Grammars
from lightvl.engine.grammar_messages import Mask, Refusal
from lightvl.testing.tokenizers import VOCAB_SIZE, write_tokenizer
from lightvl.tokenizer.files import load_backend
from lightvl.tokenizer.tokenizer import Tokenizer
from lightvl.types import Constraint, SamplingParams
from tests.property.serving import Setting

PATTERN = r"(cat|dog|[0-9]{2}|été|猫)( (cat|dog|[0-9]{2}|été|猫)){0,5}[.!]"
EOS_ID = 2


@pytest.fixture(scope="module", params=["byte-level", "SentencePiece"])
def model_dir(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("vocabulary")
    if request.param == "byte-level":
        write_tokenizer(directory)
        return directory
    corpus = directory / "corpus.txt"
    corpus.write_text("The cat and the dog are 12 years old.\nUne été avec 猫 and a cat!\n" * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(directory / "tokenizer"), vocab_size=300,
        model_type="bpe", byte_fallback=True, character_coverage=0.99,
        add_dummy_prefix=False, remove_extra_whitespaces=False, minloglevel=2,
    )  # fmt: skip
    return directory


@pytest.fixture
def grammars(model_dir: Path) -> Iterator[Grammars]:
    config = Setting().config()
    text = msgspec.structs.replace(config.model.text, vocab_size=VOCAB_SIZE)
    model = msgspec.structs.replace(config.model, text=text, eos_ids=(EOS_ID,))
    made = Grammars(msgspec.structs.replace(config, model_dir=str(model_dir), model=model))
    yield made
    made.stop()


def answer(grammars: Grammars) -> Mask | Refusal:
    """Waits for the one answer that is to come."""
    ours, theirs = socket.socketpair()  # nothing comes from there
    with ours, theirs:
        while not (answers := grammars.receive(wait=True)):
            grammars.sleep(ours.fileno())
    assert len(answers) == 1
    return answers[0]


def allowed(answer: Mask | Refusal) -> list[int]:
    assert isinstance(answer, Mask), answer
    bits = np.unpackbits(np.frombuffer(answer.bits, dtype=np.uint8), bitorder="little")
    assert not bits[VOCAB_SIZE:].any()
    return [int(i) for i in np.flatnonzero(bits)]


def constrained(pattern: str, **others: object) -> SamplingParams:
    constraint = Constraint(kind="regex", text=pattern, field="regular_constraint")
    return msgspec.convert({"constraint": constraint, **others}, SamplingParams)


def test_whatever_is_drawn_matches(grammars: Grammars, model_dir: Path) -> None:
    tokenizer = Tokenizer(load_backend(model_dir), None, [EOS_ID])
    texts = set()
    for seed in range(20):
        draw = random.Random(seed)
        grammars.open(seed, constrained(PATTERN))
        drawn: list[int] = []
        while True:
            ids = allowed(answer(grammars))
            text = tokenizer.decode(drawn)
            assert (EOS_ID in ids) == (re.fullmatch(PATTERN, text) is not None)
            token_id = draw.choice(ids)
            if token_id == EOS_ID:
                break
            assert token_id not in tokenizer.special_ids
            drawn.append(token_id)
            grammars.advance(seed, token_id)
        grammars.close(seed)
        texts.add(text)
    assert grammars.num_pending == 0
    assert len(texts) > 10


def test_end_tokens_are_held_back_while_others_are_allowed(grammars: Grammars) -> None:
    grammars.open(1, constrained("(a|bb)?", min_new_tokens=9))
    ids = allowed(answer(grammars))
    assert EOS_ID not in ids
    assert ids
    grammars.open(2, constrained("(a|bb)?", ignore_eos=True))
    assert allowed(answer(grammars)) == ids
    grammars.open(3, constrained("(a|bb)?"))
    assert allowed(answer(grammars)) == sorted([EOS_ID, *ids])
    grammars.open(4, constrained("", min_new_tokens=9))
    assert allowed(answer(grammars)) == [EOS_ID]


def test_a_token_against_the_grammar_is_refused(grammars: Grammars) -> None:
    grammars.open(1, constrained("[0-9]+"))
    ids = allowed(answer(grammars))
    grammars.advance(1, next(i for i in range(20, VOCAB_SIZE) if i not in ids))
    refusal = answer(grammars)
    assert isinstance(refusal, Refusal)
    assert refusal.status == 400


def test_a_lost_process_refuses_what_is_open_and_starts_again(grammars: Grammars) -> None:
    grammars.open(1, constrained("[0-9]+"))
    ids = allowed(answer(grammars))
    grammars.stop()
    grammars.advance(1, ids[0])
    refusal = answer(grammars)
    assert isinstance(refusal, Refusal)
    assert refusal.status == 503
    grammars.close(1)
    grammars.open(2, constrained("[0-9]+"))
    assert allowed(answer(grammars)) == ids


def test_what_is_closed_is_not_answered(grammars: Grammars) -> None:
    grammars.open(1, constrained("[0-9]+"))
    grammars.close(1)
    assert grammars.num_pending == 0
    grammars.open(2, constrained("[a-z]+"))
    assert answer(grammars).request_id == 2

"""Tokenizers of every format, chat templates, and text made token by token."""

import base64
import json
import random
import string
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers

from lightvl.errors import RequestError, StartupError
from lightvl.tokenizer import TextStream, load_tokenizer
from lightvl.tokenizer import Tokenizer as LightTokenizer
from lightvl.tokenizer.byte_alphabet import CHAR_OF_BYTE, unspell
from lightvl.tokenizer.files import byte_level_bpe

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>"]
CORPUS = [
    "the quick brown fox jumps over the lazy dog",
    "pictures and text in, tokens out; 3.14 is not 42!",
    "日本語のテキスト と 中文文本 and naïve café 🙂🙃",
] * 20


def _train_byte_level() -> tokenizers.Tokenizer:
    backend = byte_level_bpe(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIALS])
    return backend


@pytest.fixture(scope="module")
def byte_level_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("byte_level")
    _train_byte_level().save(str(directory / "tokenizer.json"))
    return directory


@pytest.fixture(scope="module")
def byte_level(byte_level_dir: Path) -> LightTokenizer:
    return load_tokenizer(byte_level_dir, eos_ids=[], conversation="internvl2_5")


@pytest.fixture(scope="module")
def sentencepiece_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sentencepiece")
    corpus = directory / "corpus.txt"
    corpus.write_text("\n".join(CORPUS))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(directory / "tokenizer"),
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        character_coverage=0.98,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    (directory / "added_tokens.json").write_text(
        json.dumps({token: 400 + i for i, token in enumerate(SPECIALS)})
    )
    return directory


@pytest.fixture(scope="module")
def sentencepiece_bpe(sentencepiece_dir: Path) -> LightTokenizer:
    return load_tokenizer(sentencepiece_dir, eos_ids=[2], conversation="internlm2-chat")


any_text = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60)


@settings(max_examples=200, deadline=None)
@given(text=any_text)
def test_sentencepiece_ids_and_text_equal_the_original(
    sentencepiece_dir: Path, sentencepiece_bpe: LightTokenizer, text: str
) -> None:
    if any(token in text for token in [*SPECIALS, "<s>", "</s>", "<unk>", "\u2581"]):
        return
    oracle = sentencepiece.SentencePieceProcessor(
        model_file=str(sentencepiece_dir / "tokenizer.model")
    )
    ids = oracle.encode(text)
    assert sentencepiece_bpe.encode(text, add_special_tokens=False) == ids
    if "\0" not in text:  # SentencePiece's own decoder stops at a NUL byte
        assert sentencepiece_bpe.decode(ids) == oracle.decode(ids)


def test_sentencepiece_start_and_added_tokens(sentencepiece_bpe: LightTokenizer) -> None:
    ids = sentencepiece_bpe.encode("the<img></img>")
    assert ids[0] == 1
    assert ids[-2:] == [sentencepiece_bpe.img_start_id, sentencepiece_bpe.img_end_id] == [403, 404]


def test_vocab_and_merges_equal_tokenizer_json(byte_level_dir: Path, tmp_path: Path) -> None:
    state = json.loads((byte_level_dir / "tokenizer.json").read_text())
    (tmp_path / "vocab.json").write_text(json.dumps(state["model"]["vocab"]))
    merges = "\n".join(" ".join(pair) for pair in state["model"]["merges"])
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + merges)
    added = {
        str(token["id"]): {k: v for k, v in token.items() if k != "id"}
        for token in state["added_tokens"]
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    one = load_tokenizer(byte_level_dir, eos_ids=[])
    other = load_tokenizer(tmp_path, eos_ids=[])
    for text in [*CORPUS[:3], "<|im_start|>user\nhi<|im_end|>", "a  b\n\n\tc"]:
        assert one.encode(text) == other.encode(text)
    assert other.special_ids == one.special_ids


def test_tiktoken_ranks_give_the_same_ids(byte_level_dir: Path, tmp_path: Path) -> None:
    backend = _train_byte_level()
    size = backend.get_vocab_size(with_added_tokens=False)
    vocab = {i: backend.id_to_token(i) or "" for i in range(size)}
    lines = [base64.b64encode(unspell(t)).decode() + f" {i}" for i, t in vocab.items()]
    (tmp_path / "qwen.tiktoken").write_text("\n".join(lines))
    converted = load_tokenizer(tmp_path, eos_ids=[])
    original = load_tokenizer(byte_level_dir, eos_ids=[])
    for text in CORPUS[:3]:
        assert converted.encode(text) == original.encode(text)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no tokenizer: expected tokenizer.json"),
        ({"tokenizer.json": "{"}, "can't be read"),
        ({"tokenizer.model": "not a model"}, "can't be converted"),
        ({"tokenizer_config.json": "[]"}, "expected a JSON object"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(StartupError, match=message) as error:
        load_tokenizer(tmp_path, eos_ids=[])
    assert error.value.exit_code == 2


def test_added_token_at_another_id_is_refused(byte_level_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((byte_level_dir / "tokenizer.json").read_bytes())
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<new>": 3}))
    with pytest.raises(StartupError, match="'<new>' is listed as 3"):
        load_tokenizer(tmp_path, eos_ids=[])


def test_picture_slots_can_not_be_spelled(byte_level: LightTokenizer) -> None:
    ids = byte_level.encode("a<IMG_CONTEXT>b<IMG_CONTEXT>")
    assert byte_level.img_context_id not in ids
    assert byte_level.decode(ids) == "a<IMG_CONTEXT>b<IMG_CONTEXT>"
    plain = byte_level.encode_plain("<|im_end|><img>")
    assert not set(plain) & byte_level.special_ids
    assert byte_level.decode(plain) == "<|im_end|><img>"


def test_special_ids_and_end_of_turn(byte_level: LightTokenizer) -> None:
    end = byte_level.special_id("<|im_end|>")
    assert end is not None
    assert byte_level.eos_ids == {end}
    assert byte_level.special_id("the") is None
    assert byte_level.token_bytes(byte_level.vocab_size + 5) == b""


def test_byte_alphabet_is_the_backends() -> None:
    assert set(CHAR_OF_BYTE.values()) == set(pre_tokenizers.ByteLevel.alphabet())


# --- chat templates ---------------------------------------------------------------------------

TURNS = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": "and?"},
]


def test_named_conversations(byte_level: LightTokenizer, sentencepiece_bpe: LightTokenizer) -> None:
    newer = byte_level.render_chat([{"role": "system", "content": "S"}, *TURNS])
    assert newer == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
        "<|im_start|>assistant\nyes<|im_end|>\n<|im_start|>user\nand?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    older = sentencepiece_bpe.render_chat(TURNS[:1])
    assert older.startswith("<s><|im_start|>system\n你是由上海")
    assert older.endswith("助手。<|im_end|><|im_start|>user\nhi<|im_end|><|im_start|>assistant\n")


def _with_template(source: object, byte_level_dir: Path, tmp_path: Path) -> LightTokenizer:
    (tmp_path / "tokenizer.json").write_bytes((byte_level_dir / "tokenizer.json").read_bytes())
    config = {"chat_template": source, "bos_token": {"content": "<B>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return load_tokenizer(tmp_path, eos_ids=[], conversation="internvl2_5")


def test_the_checkpoints_template_goes_first(byte_level_dir: Path, tmp_path: Path) -> None:
    source = "{{ bos_token }}{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}"
    tokenizer = _with_template([{"name": "default", "template": source}], byte_level_dir, tmp_path)
    assert tokenizer.render_chat(TURNS[:2]) == "<B>user:hi;assistant:yes;"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages.__class__.__mro__ }}", "can't render"),
        ("{{ missing.attribute }}", "can't render"),
        ("{% for i in range(10**9) %}{% endfor %}", "can't render"),
    ],
)
def test_template_refusals_are_400(
    byte_level_dir: Path, tmp_path: Path, source: str, message: str
) -> None:
    tokenizer = _with_template(source, byte_level_dir, tmp_path)
    with pytest.raises(RequestError, match=message) as error:
        tokenizer.render_chat(TURNS)
    assert error.value.status == 400


def test_no_template_and_broken_template(byte_level_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no chat template"):
        load_tokenizer(byte_level_dir, eos_ids=[]).render_chat(TURNS)
    with pytest.raises(StartupError, match="can't be read"):
        _with_template("{% for %}", byte_level_dir, tmp_path)


# --- streams ----------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(ids=st.lists(st.integers(0, 520), max_size=40), skip=st.booleans())
def test_streamed_text_equals_decoded_text(
    byte_level: LightTokenizer, ids: list[int], skip: bool
) -> None:
    stream = TextStream(byte_level, skip_special_tokens=skip)
    pieces = [stream.push(i) for i in ids]
    assert "".join([*pieces, stream.finish()]) == byte_level.decode(ids, skip) == stream.text


def test_decode_equals_the_backend(byte_level: LightTokenizer, byte_level_dir: Path) -> None:
    backend = Tokenizer.from_file(str(byte_level_dir / "tokenizer.json"))
    rng = random.Random(5)
    for _ in range(300):
        ids = [rng.randrange(500) for _ in range(rng.randrange(30))]
        assert byte_level.decode(ids, False) == backend.decode(ids, skip_special_tokens=False)


def _reference_stop(text: str, stops: list[str], keep: bool) -> str:
    """Cuts `text` at the stop string that is complete first."""
    for end in range(len(text) + 1):
        matches = [s for s in stops if text[:end].endswith(s)]
        if matches:
            longest = max(matches, key=len)
            return text[:end] if keep else text[: end - len(longest)]
    return text


@settings(max_examples=400, deadline=None)
@given(
    text=st.text(alphabet="ab🙂", max_size=30),
    stops=st.lists(st.text(alphabet="ab🙂", min_size=1, max_size=4), min_size=1, max_size=3),
    keep=st.booleans(),
)
def test_stop_strings_cut_wherever_tokens_end(
    byte_level: LightTokenizer, text: str, stops: list[str], keep: bool
) -> None:
    stream = TextStream(byte_level, stop_strings=stops, keep_stop=keep)
    expected = _reference_stop(text, stops, keep)
    pieces = []
    for byte in text.encode():
        token = byte_level.encode_plain(chr(byte))[0] if byte < 128 else None
        index = token if token is not None else _id_of_byte(byte_level, byte)
        pieces.append(stream.push(index))
        assert expected.startswith("".join(pieces))
        if stream.stopped:
            break
    pieces.append(stream.finish())
    assert "".join(pieces) == expected == stream.text
    assert stream.stopped == any(s in text for s in stops)


def _id_of_byte(tokenizer: LightTokenizer, byte: int) -> int:
    return next(i for i in range(500) if tokenizer.token_bytes(i) == bytes([byte]))


def test_stop_in_the_middle_of_a_token(byte_level: LightTokenizer) -> None:
    ids = byte_level.encode("the quick")
    assert len(ids) < len("the quick")
    for keep, expected in ((True, "the qu"), (False, "the ")):
        stream = TextStream(byte_level, stop_strings=["qu"], keep_stop=keep)
        for i in ids:
            stream.push(i)
            if stream.stopped:
                break
        assert stream.text + stream.finish() == expected


def test_stop_id_sequences(byte_level: LightTokenizer) -> None:
    stream = TextStream(byte_level, stop_ids=[[10, 11], [12]])
    for i, stopped in ((10, False), (10, False), (11, True)):
        stream.push(i)
        assert stream.stopped == stopped


def test_special_tokens_in_streams(byte_level: LightTokenizer) -> None:
    end = byte_level.special_id("<|im_end|>")
    assert end is not None
    assert TextStream(byte_level).push(end) == ""
    assert TextStream(byte_level).push(end, visible=True) == "<|im_end|>"
    assert TextStream(byte_level, skip_special_tokens=False).push(end) == "<|im_end|>"
    assert TextStream(byte_level, skip_special_tokens=False).push(end, visible=False) == ""


def test_the_first_space_of_sentencepiece_is_no_text(sentencepiece_bpe: LightTokenizer) -> None:
    ids = sentencepiece_bpe.encode("the the", add_special_tokens=False)
    stream = TextStream(sentencepiece_bpe)
    assert "".join(stream.push(i) for i in ids) == "the the"


def test_printable_ascii_round_trips(byte_level: LightTokenizer) -> None:
    assert byte_level.decode(byte_level.encode(string.printable)) == string.printable

"""Finds and reads a checkpoint's tokenizer files, whatever their format."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from lightvl.errors import StartupError

QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Qwen2's pre-tokenizer, as published in its tokenizer.json."""


def load_backend(model_dir: Path) -> tokenizers.Tokenizer:
    """Loads the tokenizer of a checkpoint; runs no code of the checkpoint.

    Looks for `tokenizer.json`, then `vocab.json` with `merges.txt` (Qwen2's byte-level BPE), then
    `tokenizer.model` (SentencePiece) and `qwen.tiktoken`, both converted in a child process.

    Raises:
        StartupError: None of these files is there, or one can't be read.
    """
    try:
        if (model_dir / "tokenizer.json").is_file():
            backend = tokenizers.Tokenizer.from_file(str(model_dir / "tokenizer.json"))
        elif (model_dir / "vocab.json").is_file() and (model_dir / "merges.txt").is_file():
            backend = byte_level_bpe(
                models.BPE.from_file(str(model_dir / "vocab.json"), str(model_dir / "merges.txt"))
            )
        else:
            backend = _convert_in_child(model_dir)
    except StartupError:
        raise
    except Exception as error:
        raise StartupError(f"{model_dir}: the tokenizer can't be read: {error}") from None
    _add_configured_tokens(backend, model_dir)
    backend.no_truncation()
    backend.no_padding()
    return backend


def byte_level_bpe(model: models.BPE) -> tokenizers.Tokenizer:
    """Wraps a BPE model with Qwen2's normalizer, pre-tokenizer and byte-level decoder."""
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def read_tokenizer_config(model_dir: Path) -> dict[str, Any]:
    """Returns `tokenizer_config.json`, with the chat template of its own file if there is one."""
    config = _read_json(model_dir / "tokenizer_config.json")
    jinja = model_dir / "chat_template.jinja"
    if jinja.is_file():
        config["chat_template"] = jinja.read_text(encoding="utf-8")
    elif "chat_template" not in config:
        config |= _read_json(model_dir / "chat_template.json")
    return config


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StartupError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise StartupError(f"{path}: expected a JSON object")
    return value


def _convert_in_child(model_dir: Path) -> tokenizers.Tokenizer:
    sources = [model_dir / name for name in ("tokenizer.model", "qwen.tiktoken")]
    source = next((path for path in sources if path.is_file()), None)
    if source is None:
        raise StartupError(
            f"{model_dir}: no tokenizer: expected tokenizer.json, vocab.json with merges.txt, "
            "tokenizer.model or qwen.tiktoken"
        )
    child = subprocess.run(
        [sys.executable, "-m", "lightvl.tokenizer.convert", str(source)],
        capture_output=True,
        check=False,
    )
    if child.returncode != 0:
        last_line = child.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise StartupError(f"{source}: the tokenizer can't be converted: {last_line}")
    return tokenizers.Tokenizer.from_str(child.stdout.decode())


def _add_configured_tokens(backend: tokenizers.Tokenizer, model_dir: Path) -> None:
    """Adds the added tokens that other files name and the backend lacks, at their ids."""
    decoder = _read_json(model_dir / "tokenizer_config.json").get("added_tokens_decoder", {})
    tokens = {int(i): _added_token(entry) for i, entry in decoder.items()}
    for text, index in _read_json(model_dir / "added_tokens.json").items():
        tokens.setdefault(int(index), AddedToken(text, special=True, normalized=False))
    for index, token in sorted(tokens.items()):
        if backend.token_to_id(token.content) == index and token.content in _added(backend):
            continue
        add = backend.add_special_tokens if token.special else backend.add_tokens
        add([token])
        if backend.token_to_id(token.content) != index:
            raise StartupError(
                f"{model_dir}: added token {token.content!r} is listed as {index} but would get "
                f"{backend.token_to_id(token.content)}"
            )


def _added(backend: tokenizers.Tokenizer) -> set[str]:
    return {token.content for token in backend.get_added_tokens_decoder().values()}


def _added_token(entry: dict[str, Any]) -> AddedToken:
    fields = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return AddedToken(entry["content"], **{name: bool(entry.get(name)) for name in fields})

"""A checkpoint's tokenizer as the server needs it; torch-free."""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from lightvl.errors import RequestError, StartupError
from lightvl.tokenizer.byte_alphabet import unspell
from lightvl.tokenizer.chat_template import ChatTemplate, choose_template
from lightvl.tokenizer.convert import SPACE
from lightvl.tokenizer.files import load_backend, read_tokenizer_config

IM_END = "<|im_end|>"
IMG_START = "<img>"
IMG_END = "</img>"
IMG_CONTEXT = "<IMG_CONTEXT>"


class Tokenizer:
    """Encodes prompts, decodes ids, renders chats.

    Args:
        backend: The loaded tokenizer.
        chat_template: The checkpoint's template, or None.
        eos_ids: Ids that end a sequence.

    Attributes:
        vocab_size: Ids that the tokenizer knows; a model may have padding rows above.
        special_ids: Ids of special tokens, hidden by `skip_special_tokens`.
        img_start_id: Id of `<img>`, or None in a text-only vocabulary.
        img_end_id: Id of `</img>`, or None.
        img_context_id: Id of `<IMG_CONTEXT>`, or None.
        strips_first_space: The first token's leading space is not part of the text.

    Raises:
        StartupError: The decoder is of a kind that can't be run incrementally.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        chat_template: ChatTemplate | None,
        eos_ids: Sequence[int],
    ) -> None:
        self._backend = backend
        self._chat_template = chat_template
        added = backend.get_added_tokens_decoder()
        self._added_text = {index: token.content for index, token in added.items()}
        self._id_of_added = {text: index for index, text in self._added_text.items()}
        self._bos_ids: list[int] = backend.encode("", add_special_tokens=True).ids
        self._bytes_of_id: dict[int, bytes] = {}
        self._unspell, self.strips_first_space = _spelling(backend)
        self.eos_ids = frozenset(eos_ids)
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        self.special_ids = (
            frozenset(i for i, token in added.items() if token.special) | self.eos_ids
        )
        self.img_start_id = self._id_of_added.get(IMG_START)
        self.img_end_id = self._id_of_added.get(IMG_END)
        self.img_context_id = self._id_of_added.get(IMG_CONTEXT)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Returns the ids of `text`.

        Special tokens spelled in it are recognised, `<IMG_CONTEXT>` aside: only the server places
        pictures, so that spelling is plain text.

        Args:
            text: Any text.
            add_special_tokens: Whether the checkpoint's start token comes first, if it has one.
        """
        ids = list(self._bos_ids) if add_special_tokens else []
        if self.img_context_id is None or IMG_CONTEXT not in text:
            return ids + self._encode_segments([text])
        return ids + self._encode_segments(_broken(text, [IMG_CONTEXT]))

    def encode_plain(self, text: str) -> list[int]:
        """Returns the ids of `text` with every special token in it taken as ordinary text."""
        return self._encode_segments(_broken(text, self._id_of_added))

    def _encode_segments(self, segments: list[str]) -> list[int]:
        # encode_batch lets other threads run meanwhile, encode doesn't.
        batch = self._backend.encode_batch(segments, add_special_tokens=False)
        return [index for encoding in batch for index in encoding.ids]

    def special_id(self, text: str) -> int | None:
        """Returns the id of a special token spelled exactly `text`, or None."""
        index = self._id_of_added.get(text)
        return index if index in self.special_ids else None

    def token_bytes(self, token_id: int) -> bytes:
        """Returns the bytes that a token adds to the text; empty for ids without a token."""
        data = self._bytes_of_id.get(token_id)
        if data is None:
            data = self._bytes_of_id[token_id] = self._compute_bytes(token_id)
        return data

    def _compute_bytes(self, token_id: int) -> bytes:
        text = self._added_text.get(token_id)
        if text is not None:
            return text.encode()
        spelled = self._backend.id_to_token(token_id) if token_id >= 0 else None
        return self._unspell(spelled) if spelled is not None else b""

    def token_text(self, token_id: int) -> str:
        """Returns a token alone as text; bytes of incomplete characters become U+FFFD."""
        return self.token_bytes(token_id).decode(errors="replace")

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Returns the text of `ids`; equals what streaming them one by one gives."""
        hidden = self.special_ids if skip_special_tokens else frozenset()
        data = b"".join([self.token_bytes(i) for i in ids if i not in hidden])
        if self.strips_first_space and data.startswith(b" "):
            data = data[1:]
        return data.decode(errors="replace")

    def render_chat(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[dict[str, Any]] | None = None,
        **variables: object,
    ) -> str:
        """Returns the prompt text of a conversation.

        Raises:
            RequestError: The checkpoint has no chat template, or it refuses these messages.
        """
        if self._chat_template is None:
            raise RequestError(
                "this model has no chat template; use the completion routes", param="messages"
            )
        if tools and not self._chat_template.takes_tools:
            raise RequestError("tools: this model's chat template takes none", param="tools")
        return self._chat_template.render(
            messages, add_generation_prompt=add_generation_prompt, tools=tools, **variables
        )


def load_tokenizer(
    model_dir: Path, *, eos_ids: Sequence[int], conversation: str | None = None
) -> Tokenizer:
    """Loads a checkpoint's tokenizer and chat template.

    Args:
        model_dir: The checkpoint.
        eos_ids: Ids that end a sequence. The token that ends a turn in the chat template joins
            them, since published configurations often forget it.
        conversation: The `template` of an original-layout `config.json`.

    Raises:
        StartupError: The files are absent, damaged or of an unsupported kind.
    """
    config = read_tokenizer_config(model_dir)
    source = choose_template(config, conversation)
    template = ChatTemplate(source, _special_tokens(config)) if source is not None else None
    backend = load_backend(model_dir)
    end_of_turn = backend.token_to_id(IM_END) if IM_END in (source or "") else None
    all_eos = [*eos_ids] if end_of_turn is None else [*eos_ids, end_of_turn]
    return Tokenizer(backend, template, all_eos)


def _broken(text: str, tokens: Iterable[str]) -> list[str]:
    """Cuts `text` inside every one of `tokens`, so that none of them is recognised."""
    pattern = "|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True))
    cuts = [match.start() + 1 for match in re.finditer(pattern, text)] if pattern else []
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    """Returns `bos_token` and the like as text; each may be stored as text or as an object."""
    found = {}
    for name, value in config.items():
        text = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(text, str):
            found[name] = text
    return found


def _spelling(backend: tokenizers.Tokenizer) -> tuple[Callable[[str], bytes], bool]:
    """Returns how vocabulary entries spell bytes, and whether the first space is dropped."""
    if backend.decoder is None:
        raise StartupError("the tokenizer has no decoder")
    state = json.loads(backend.decoder.__getstate__())
    parts = state["decoders"] if state["type"] == "Sequence" else [state]
    kinds = {part["type"] for part in parts}
    if "ByteLevel" in kinds:
        return unspell, False
    if kinds & {"ByteFallback", "Metaspace"}:
        strips = any(
            part["type"] == "Strip" or part.get("prepend_scheme") in ("always", "first")
            for part in parts
        )
        return _unspell_sentencepiece, strips
    raise StartupError(
        f"the tokenizer's decoder ({', '.join(sorted(kinds))}) is not supported: "
        "expected byte-level BPE or SentencePiece BPE"
    )


def _unspell_sentencepiece(text: str) -> bytes:
    if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
        return bytes.fromhex(text[3:5])
    return text.replace(SPACE, " ").encode()

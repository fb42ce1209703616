"""A tiny byte-level BPE tokenizer with ChatML's and InternVL's special tokens, for the tests."""

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<img>",
    "</img>",
    "<IMG_CONTEXT>",
    "<quad>",
    "</quad>",
    "<ref>",
    "</ref>",
    "<box>",
    "</box>",
]
"""Their ids are their places in this list."""

VOCAB_SIZE = 416
"""Rows of the embedding table; a few more than there are tokens, as in published models."""

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_WORDS = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CORPUS = [
    "What is in this picture? There is a red circle on the left and a blue square on the right.",
    "Describe the image. How many cats are there? Three cats and one dog are in the garden.",
    "user system assistant You are a helpful assistant. Hello, world! The capital of France",
    "这张图片里有什么, 一只猫在桌子上。Wie heißt die Stadt? Où est la bibliothèque?",
] * 2


def write_tokenizer(path: Path) -> None:
    """Writes `tokenizer.json` and `tokenizer_config.json` into the directory `path`."""
    make_tokenizer().save(str(path / "tokenizer.json"))
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "add_bos_token": False,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "additional_special_tokens": SPECIAL_TOKENS[1:],
        "chat_template": CHAT_TEMPLATE,
        "model_max_length": 4096,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(config, indent=1))


def make_tokenizer() -> Tokenizer:
    """Returns the tokenizer: 12 special tokens, 256 bytes and some merges; always the same."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - 16,
        min_frequency=2,
        special_tokens=[AddedToken(x, special=True, normalized=False) for x in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return tokenizer

"""Converts SentencePiece and tiktoken vocabularies; run as a child process.

`python -m lightvl.tokenizer.convert FILE` writes the equivalent tokenizer.json to stdout.
"""

import base64
import sys
from itertools import pairwise
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, processors

from lightvl.tokenizer.byte_alphabet import spell
from lightvl.tokenizer.files import byte_level_bpe

SPACE = "\u2581"
QWEN_SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def convert_sentencepiece(path: Path) -> tokenizers.Tokenizer:
    """Builds the BPE tokenizer that a SentencePiece BPE model with byte fallback describes."""
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    pieces = [model.id_to_piece(i) for i in range(model.get_piece_size())]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    normal = {
        piece: i
        for piece, i in vocab.items()
        if not (model.is_control(i) or model.is_unknown(i) or model.is_byte(i))
    }
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=_merges_by_score(normal, {i: model.get_score(i) for i in normal.values()}),
            unk_token=pieces[model.unk_id()],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    has_prefix = model.encode_as_pieces("a")[0].startswith(SPACE)
    prefix = [normalizers.Prepend(SPACE)] if has_prefix else []
    backend.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", SPACE)])
    strip = [decoders.Strip(content=" ", left=1, right=0)] if has_prefix else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    control = [p for i, p in enumerate(pieces) if model.is_control(i) or model.is_unknown(i)]
    backend.add_special_tokens([AddedToken(p, special=True, normalized=False) for p in control])
    if model.bos_id() >= 0:
        _prepend_bos(backend, pieces[model.bos_id()], model.bos_id())
    return backend


def _prepend_bos(backend: tokenizers.Tokenizer, piece: str, index: int) -> None:
    backend.post_processor = processors.TemplateProcessing(
        single=f"{piece} $A", pair=f"{piece} $A $B", special_tokens=[(piece, index)]
    )


def _merges_by_score(vocab: dict[str, int], scores: dict[int, float]) -> list[tuple[str, str]]:
    """Lists the pairs that make each piece, the likeliest piece first."""
    merges: list[tuple[float, tuple[str, str]]] = []
    for piece, index in vocab.items():
        pairs = [
            (piece[:cut], piece[cut:])
            for cut in range(1, len(piece))
            if piece[:cut] in vocab and piece[cut:] in vocab
        ]
        pairs.sort(key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
        merges.extend((-scores[index], pair) for pair in pairs)
    merges.sort(key=lambda merge: merge[0])
    return [pair for _, pair in merges]


def convert_tiktoken(path: Path) -> tokenizers.Tokenizer:
    """Builds Qwen's byte-level BPE from its ranks: the rank is the id."""
    lines = path.read_bytes().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, lines)}
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) > 1:
            left, right = _last_merge(token, rank, ranks)
            merges.append((spell(left), spell(right)))
    vocab = {spell(token): rank for token, rank in ranks.items()}
    backend = byte_level_bpe(models.BPE(vocab=vocab, merges=merges))
    backend.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text in QWEN_SPECIAL_TOKENS]
    )
    return backend


def _last_merge(token: bytes, rank: int, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """Runs BPE on a token's bytes with merges below its own rank; two pieces remain."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pairs = [(ranks.get(a + b, rank), i) for i, (a, b) in enumerate(pairwise(parts))]
        best, i = min(pairs)
        if best >= rank:
            break
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    if len(parts) != 2:
        raise ValueError(f"token {rank} can't be made by merges")
    return parts[0], parts[1]


if __name__ == "__main__":
    source = Path(sys.argv[1])
    convert = convert_sentencepiece if source.suffix == ".model" else convert_tiktoken
    sys.stdout.write(convert(source).to_str())

"""Text to ids and back: chat templates, encoding, incremental decoding, stop strings."""

from lightvl.tokenizer.stream import TextStream
from lightvl.tokenizer.tokenizer import Tokenizer, load_tokenizer

__all__ = ["TextStream", "Tokenizer", "load_tokenizer"]

"""GPT-2's printable spelling of bytes, in which byte-level BPE vocabularies are written."""


def _alphabet() -> dict[int, str]:
    """Printable Latin-1 bytes stand for themselves, the others for code points from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + n) for n, b in enumerate(others)}


CHAR_OF_BYTE = _alphabet()
BYTE_OF_CHAR = {char: byte for byte, char in CHAR_OF_BYTE.items()}


def spell(data: bytes) -> str:
    """Returns the vocabulary spelling of `data`."""
    return "".join(CHAR_OF_BYTE[byte] for byte in data)


def unspell(text: str) -> bytes:
    """Returns the bytes that a vocabulary entry stands for.

    Raises:
        KeyError: A character is outside the alphabet.
    """
    return bytes(BYTE_OF_CHAR[char] for char in text)

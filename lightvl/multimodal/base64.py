"""Base64 pictures and `data:` URLs as clients send them."""

import binascii
from urllib.parse import unquote


class BadBase64(Exception):
    """Text is no base64 of an allowed length; the message is for the client, as a clause."""


def is_data_url(text: object) -> bool:
    """Whether `text` is a `data:` URL (RFC 2397), whatever follows."""
    return isinstance(text, str) and text[:5].lower() == "data:"


def data_url_payload(text: str) -> str:
    """Returns the base64 text inside a `data:` URL, or `text` itself if it isn't one.

    One without `;base64` has no payload that `decode_base64` accepts. The media type is ignored:
    the bytes tell what they are.
    """
    if not is_data_url(text):
        return text
    header, comma, payload = text.partition(",")
    if not comma or not header.rstrip().lower().endswith(";base64"):
        return "?"
    return unquote(payload) if "%" in payload else payload


def decoded_len(text: str) -> int:
    """Returns an upper bound of the bytes that base64 text stands for."""
    return (len(text) + 3) // 4 * 3


def decode_base64(text: str, max_bytes: int) -> bytes:
    """Decodes the standard alphabet; white space and missing padding are forgiven.

    Raises:
        BadBase64: Another character, a length that can't be, nothing, or more than `max_bytes`.
    """
    try:
        data = binascii.a2b_base64(text, strict_mode=True)
    except ValueError:
        data = _decode_leniently(text)
    if not data:
        raise BadBase64("is empty")
    if len(data) > max_bytes:
        raise BadBase64(f"has {len(data)} bytes, at most {max_bytes} are allowed")
    return data


def _decode_leniently(text: str) -> bytes:
    packed = "".join(text.split()).rstrip("=")
    try:
        return binascii.a2b_base64(packed + "=" * (-len(packed) % 4), strict_mode=True)
    except ValueError:
        raise BadBase64("is not valid base64") from None

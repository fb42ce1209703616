"""Bodies of the native routes, and how any JSON body is decoded: strictly, naming the field."""

import re
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from lightvl.errors import RequestError
from lightvl.utils.duplicate_keys import DuplicateKeyError, refuse_duplicate_keys

MAX_TIMEOUT_S = 1e6
PositiveInt = Annotated[int, Meta(ge=1)]
Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Bias = Annotated[float, Meta(ge=-100, le=100)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Timeout = Annotated[float, Meta(gt=0, le=MAX_TIMEOUT_S)]
PictureSide = Annotated[int, Meta(ge=1, le=65535)]


class NativeParameters(msgspec.Struct, frozen=True, kw_only=True):
    """`parameters` of the native routes; an absent or null field takes its default."""

    do_sample: bool | None = None
    temperature: Annotated[float, Meta(ge=0)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(gt=0)] | None = None
    input_penalty: bool | None = None
    max_new_tokens: PositiveInt | None = None
    min_new_tokens: PositiveInt | None = None
    ignore_eos: bool | None = None
    stop_sequences: str | list[str | list[int]] | None = None
    n: Annotated[int, Meta(ge=1, le=8)] | None = None
    best_of: Annotated[int, Meta(ge=1, le=8)] | None = None
    seed: Int64 | None = None
    skip_special_tokens: bool | None = None
    add_special_tokens: bool | None = None
    add_spaces_between_special_tokens: bool | None = None
    print_eos_token: bool | None = None
    image_max_patch_num: Annotated[int, Meta(ge=-1)] | None = None
    return_details: bool | None = None
    logit_bias: dict[int, Bias] | None = None
    allowed_token_ids: Annotated[list[int], Meta(min_length=1)] | None = None
    regular_constraint: str | None = None
    guided_grammar: str | None = None
    guided_json: str | dict[str, Any] | None = None
    timeout_s: Timeout | None = None


class ImageItem(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of `multimodal_params.images`; `image_size` with [w, h] is for `/tokens`."""

    type: Literal["url", "base64", "image_size"]
    data: str | list[PictureSide]


class MultimodalParams(msgspec.Struct, frozen=True, kw_only=True):
    """`multimodal_params`: the pictures, in order of their placeholders."""

    images: list[ImageItem] | None = None


class GenerateBody(msgspec.Struct, frozen=True, kw_only=True):
    """Body of `/generate`, `/generate_stream` and `POST /`."""

    inputs: str | list[int]
    parameters: NativeParameters | None = None
    multimodal_params: MultimodalParams | None = None
    stream: bool | None = None


class TokensBody(msgspec.Struct, frozen=True, kw_only=True):
    """Body of `/tokens`."""

    text: str
    parameters: NativeParameters | None = None
    multimodal_params: MultimodalParams | None = None


BodyT = TypeVar("BodyT", bound=msgspec.Struct)

_WHERE = re.compile(r"^(?P<what>.*?)(?: - at (?P<key>`key` in )?`\$\.?(?P<path>.*)`)?$", re.DOTALL)
_UNKNOWN = re.compile(r"^Object contains unknown field `(?P<name>.*)`$", re.DOTALL)
_MISSING = re.compile(r"^Object missing required field `(?P<name>.*)`$", re.DOTALL)


def decode_body(body: bytes, kind: type[BodyT], *, checked: bool = False) -> BodyT:
    """Decodes a JSON body.

    Args:
        body: What the client sent, or what a media worker made of it.
        kind: The type of the body.
        checked: Whether duplicate keys have been looked for.

    Raises:
        RequestError: 400 naming the field; also for invalid UTF-8, NaN, numbers out of range,
            nesting too deep and a key given twice.
    """
    try:
        decoded = msgspec.json.decode(body, type=kind)
        if not checked:
            refuse_duplicate_keys(body)
    except msgspec.ValidationError as error:
        raise _named(str(error)) from None
    except UnicodeDecodeError:
        raise RequestError("body: expected UTF-8", param="body", code="invalid_json") from None
    except RecursionError:
        raise RequestError("body: nested too deeply", param="body", code="invalid_json") from None
    except DuplicateKeyError as error:
        name = str(error)
        raise RequestError(
            f"{name}: given twice in one object", param=name, code="invalid_json"
        ) from None
    except ValueError:
        raise RequestError("body: expected JSON", param="body", code="invalid_json") from None
    return decoded


def unknown_keys(body: bytes, kind: type[msgspec.Struct]) -> set[str]:
    """Returns the keys of a decoded native body, also of the objects in it, that no field has."""
    top = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    unknown = set(top) - set(kind.__struct_fields__)
    for name, inner in (("parameters", NativeParameters), ("multimodal_params", MultimodalParams)):
        if name in top:
            keys = msgspec.json.decode(top[name], type=dict[str, msgspec.Raw] | None) or {}
            unknown |= set(keys) - set(inner.__struct_fields__)
    return unknown


def _named(text: str) -> RequestError:
    """Turns msgspec's words into ours: `parameters.top_k: expected int >= -1`."""
    match = _WHERE.match(text)
    assert match is not None
    what, path = match["what"], match["path"] or ""
    for pattern, wording in ((_UNKNOWN, "unknown or unsupported field"), (_MISSING, "required")):
        named = pattern.match(what)
        if named:
            path = f"{path}.{named['name']}" if path else named["name"]
            return RequestError(f"{path}: {wording}", param=_param(path))
    what = what.replace(" | null", "").replace("`", "")
    what = what[0].lower() + what[1:]
    path = path or "body"
    return RequestError(f"{path}: {'a key: ' if match['key'] else ''}{what}", param=_param(path))


def _param(path: str) -> str:
    """Returns the field as the client spelled it, without the `parameters.` around it."""
    return path.removeprefix("parameters.").removesuffix("[...]")

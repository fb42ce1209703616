"""Every flag of the server: name, default, help and allowed values in one frozen dataclass.

`parse_args` turns a command line into a `ServerConfig`; README's table is made from the same
fields. Rules between flags are in `lightvl.flag_rules`.
"""

# ruff: noqa: ANN401  (a flag's value may be of any type)
import argparse
import dataclasses
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

from lightvl.errors import StartupError
from lightvl.flag_rules import check_rules

MIB = 1 << 20


def _flag(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    below: float | None = None,
    choices: Sequence[Any] | None = None,
    unbuilt: Sequence[Any] = (),
    aliases: dict[str, str] | None = None,
    off: str | None = None,
) -> Any:
    """A dataclass field that is a flag.

    `unbuilt` lists valid values that this build answers with "not in this build yet"; `off` is
    the spelling that sets a tri-state switch to False.
    """
    return field(
        default=default,
        metadata={
            "help": help,
            "low": low,
            "above": above,
            "high": high,
            "below": below,
            "choices": choices,
            "unbuilt": unbuilt,
            "aliases": aliases or {},
            "off": off,
        },
    )


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """The server's flags, resolved once at start."""

    host: str = _flag("127.0.0.1", "address to listen on")
    port: int = _flag(8000, "port to listen on; 0 takes a free one", low=0, high=65535)
    model_dir: str = _flag(
        str(Path(__file__).parent / "demo"),
        "directory with config.json, safetensors and tokenizer; default: the bundled demo model",
    )
    device: str = _flag(
        "auto",
        "where the model runs; auto takes CUDA when there is",
        choices=("auto", "cuda", "cpu"),
    )
    tp: int = _flag(1, "tensor parallel degree of the language model", low=1)
    mem_fraction: float = _flag(
        0.9, "share of device memory for weights, activations and caches", above=0, below=1
    )
    trust_remote_code: bool = _flag(
        False, "let the tokenizer's and configuration's loaders run the checkpoint's own code"
    )
    enable_multimodal: bool | None = _flag(
        None,
        "serve pictures; default: when the model has a vision tower",
        off="disable_multimodal",
    )
    visual_infer_batch_size: int | None = _flag(
        None, "pictures per vision batch over all DP ranks; a multiple of visual_dp", low=1
    )
    visual_tp: int | None = _flag(None, "tensor parallel degree of the vision tower", low=1)
    visual_dp: int | None = _flag(None, "data parallel degree of the vision tower", low=1)
    visual_gpu_ids: tuple[int, ...] | None = _flag(
        None, "accepted for compatibility: GPUs of the vision tower", low=0
    )
    visual_nccl_ports: tuple[int, ...] | None = _flag(
        None, "accepted for compatibility, unused", low=1, high=65535
    )
    cache_capacity: int = _flag(200, "picture embeddings kept, in pictures", low=1)
    cache_bytes_gpu: int | None = _flag(None, "bytes of embeddings kept on the device", low=1)
    cache_bytes_host: int | None = _flag(
        None, "bytes of embeddings kept on the host behind a GPU", low=0
    )
    max_total_token_num: int | None = _flag(
        None, "KV tokens; default: what mem_fraction leaves", low=1
    )
    max_req_total_len: int | None = _flag(
        None, "longest prompt plus output of a request; default: the model's context", low=2
    )
    running_max_req_size: int = _flag(256, "sequences that run at once", low=1, high=4096)
    chunked_prefill_size: int | None = _flag(
        None, "largest prefill chunk in tokens; default: 4096, on the CPU 256", low=1
    )
    disable_chunked_prefill: bool = _flag(False, "compute every prompt in one step")
    max_itl_ms: float | None = _flag(
        None,
        "cut prefill and vision work so that running streams' gaps stay below it; 0 is off; "
        "default: 30, on the CPU off",
        low=0,
    )
    batch_max_tokens: int | None = _flag(
        None, "tokens in one forward pass; default: 16384 or one chunk if larger", low=1
    )
    disable_dynamic_prompt_cache: bool = _flag(False, "turn the prefix cache off")
    disable_cudagraph: bool = _flag(False, "run decode without CUDA graphs")
    graph_max_batch_size: int = _flag(256, "largest decode batch with a CUDA graph", low=1)
    data_type: str | None = _flag(
        None,
        "compute type; default: the checkpoint's, on the CPU fp32",
        choices=("bf16", "fp16", "fp32"),
        aliases={
            "bfloat16": "bf16",
            "float16": "fp16",
            "half": "fp16",
            "float32": "fp32",
            "float": "fp32",
        },
    )
    page_size: int = _flag(64, "tokens in a KV page", choices=(16, 32, 64))
    quant: str = _flag("none", "weight quantization", choices=("none", "fp8"), unbuilt=("fp8",))
    kv_dtype: str = _flag("auto", "KV cache type", choices=("auto", "fp8"), unbuilt=("fp8",))
    deterministic: bool = _flag(False, "batch-invariant kernels", unbuilt=(True,))
    visual_parallel: str | None = _flag(
        None, "vision parallelism by name", choices=("tp", "dp"), unbuilt=("tp", "dp")
    )
    tokenizer_mode: str = _flag(
        "fast", "tokenizer implementation", choices=("fast", "slow", "auto")
    )
    eos_id: tuple[int, ...] | None = _flag(
        None, "ids that end a sequence; default: the checkpoint's", low=0
    )
    model_name: str | None = _flag(None, "name that clients see; default: the directory's name")
    max_image_pixels: int = _flag(64_000_000, "pixels of one picture", low=1)
    max_image_bytes: int = _flag(32 * MIB, "encoded bytes of one picture", low=1)
    max_images: int = _flag(64, "pictures in one request", low=1)
    tile_policy: Literal["internvl", "lightllm"] = _flag(
        "internvl",
        "how pictures are cut: as published with the checkpoint, or LightLLM's rule",
        choices=("internvl", "lightllm"),
    )
    allowed_media_domains: str | None = _flag(
        None, "comma-separated hosts that pictures may come from; *.b.example: all below it"
    )
    allow_private_media: bool = _flag(False, "fetch from loopback and private addresses too")
    allowed_local_media_path: str | None = _flag(
        None, "directory below which file:// pictures may be read"
    )
    max_body_bytes: int = _flag(128 * MIB, "bytes of a request's body", low=1)
    drain_s: float = _flag(30.0, "seconds that running requests get after SIGTERM", low=0)
    api_key: str | None = _flag(None, "key that clients must send; or LIGHTVL_API_KEY")
    api_keys_file: str | None = _flag(None, "file with one key a line")
    admin_key: str | None = _flag(None, "key of the admin routes (flush, drain)")
    metrics_public: bool = _flag(False, "serve /metrics without a key")
    cache_namespace: str = _flag(
        "none", "share caches among all, or only within an API key", choices=("none", "key")
    )
    media_shm_bytes: int = _flag(1024 * MIB, "shared memory for bodies, files and pixels", low=1)
    media_bytes_in_flight: int = _flag(512 * MIB, "of it, bodies and encoded files", low=1)
    media_workers: int | None = _flag(None, "picture decoders; default: the cores", low=1)
    request_timeout_s: float | None = _flag(None, "deadline of a request in seconds", above=0)
    root_path: str = _flag("", "path prefix behind a proxy")
    cors_origins: str | None = _flag(None, "comma-separated origins that browsers may call from")
    ssl_keyfile: str | None = _flag(None, "TLS key")
    ssl_certfile: str | None = _flag(None, "TLS certificate")
    max_queued_requests: int = _flag(1024, "waiting requests before 429", low=1)
    max_queued_tokens: int | None = _flag(
        None, "waiting prompt tokens before 429; default: 8 times the KV tokens", low=1
    )
    max_queue_wait_s: float | None = _flag(None, "expected wait before 429, in seconds", above=0)
    distributed_executor: str = _flag(
        "mp", "how ranks are started", choices=("mp", "ray"), unbuilt=("ray",)
    )
    nnodes: int = _flag(1, "machines", low=1)
    node_rank: int = _flag(0, "this machine's number", low=0)
    nccl_host: str = _flag("127.0.0.1", "address of the first machine")
    nccl_port: int | None = _flag(None, "rendezvous port; default: a free one", low=1, high=65535)


def parse_args(
    argv: Sequence[str] | None = None, prog: str = "python -m lightvl.api_server"
) -> ServerConfig:
    """Parses and checks a command line.

    Raises:
        StartupError: A flag has a bad value or clashes with another one; exit code 2, one line
            that names the flag, the value and what is allowed.
    """
    values = vars(flag_parser(prog).parse_args(argv))
    return make_config(**{name: v for name, v in values.items() if v is not _UNSET})


def make_config(**values: Any) -> ServerConfig:
    """Makes a checked configuration from flag values by name, as Python's own types.

    Raises:
        StartupError: As `parse_args`.
    """
    unknown = sorted(set(values) - {f.name for f in dataclasses.fields(ServerConfig)})
    if unknown:
        raise StartupError(f"unknown option {unknown[0]!r}")
    for f in dataclasses.fields(ServerConfig):
        if f.name in values:
            values[f.name] = _checked(f, values[f.name])
    config = ServerConfig(**values)
    check_rules(config)
    return config


_UNSET = object()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise StartupError(message)


_EXAMPLES = """\
examples:
  %(prog)s                                      the bundled demo model, port 8000
  %(prog)s --model_dir DIR --port 8080          a checkpoint of yours
  %(prog)s --host 0.0.0.0 --api_key KEY         for others, who must know the key
"""


def flag_parser(prog: str) -> argparse.ArgumentParser:
    """Returns the parser of all flags, which leaves out what the command line leaves out."""
    parser = _Parser(
        prog=prog,
        allow_abbrev=False,
        description="Serves a vision-language model.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for f in dataclasses.fields(ServerConfig):
        names = _spellings(f.name)
        text = f.metadata["help"].replace("%", "%%")
        kind = value_type(f)
        if kind is bool:
            parser.add_argument(
                *names, dest=f.name, action="store_const", const=True, default=_UNSET, help=text
            )
            if f.metadata["off"]:
                off = _spellings(f.metadata["off"])
                parser.add_argument(
                    *off, dest=f.name, action="store_const", const=False, default=_UNSET
                )
        elif is_tuple(f):
            parser.add_argument(*names, dest=f.name, nargs="+", default=_UNSET, help=text)
        else:
            parser.add_argument(*names, dest=f.name, default=_UNSET, help=text)
    return parser


def _spellings(name: str) -> list[str]:
    kebab = name.replace("_", "-")
    return [f"--{name}"] if kebab == name else [f"--{name}", f"--{kebab}"]


def value_type(f: dataclasses.Field[Any]) -> type:
    """Returns a flag's plain type: int, float, str or bool (of each item, for lists)."""
    members = [t for t in _union(f.type) if t is not types.NoneType]
    kind = members[0]
    if typing.get_origin(kind) is Literal:
        return str
    if typing.get_origin(kind) is tuple:
        kind = typing.get_args(kind)[0]
    assert isinstance(kind, type)
    return kind


def is_tuple(f: dataclasses.Field[Any]) -> bool:
    """Whether a flag takes several values."""
    return any(typing.get_origin(t) is tuple for t in _union(f.type))


def _union(annotation: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(annotation) in (types.UnionType, typing.Union)
    return typing.get_args(annotation) if is_union else (annotation,)


def _checked(f: dataclasses.Field[Any], value: Any) -> Any:
    if value is None and f.default is None:
        return None
    if is_tuple(f):
        return tuple(_checked_one(f, item) for item in value)
    return _checked_one(f, value)


def _checked_one(f: dataclasses.Field[Any], value: Any) -> Any:
    kind = value_type(f)
    value = f.metadata["aliases"].get(value, value) if isinstance(value, str) else value
    try:
        converted = _convert(kind, value)
    except (TypeError, ValueError, OverflowError):
        raise _bad(f, value) from None
    if converted in f.metadata["unbuilt"]:
        raise StartupError(f"--{f.name} {value}: not in this build yet")
    choices = f.metadata["choices"]
    if (choices and converted not in choices) or not _in_range(f, converted):
        raise _bad(f, value)
    return converted


def _convert(kind: type, value: Any) -> Any:
    if isinstance(value, bool) != (kind is bool):
        raise TypeError
    if kind is int and isinstance(value, float):
        raise TypeError
    return kind(value)


def _in_range(f: dataclasses.Field[Any], value: Any) -> bool:
    m = f.metadata
    return not (
        (m["low"] is not None and not value >= m["low"])
        or (m["above"] is not None and not value > m["above"])
        or (m["high"] is not None and not value <= m["high"])
        or (m["below"] is not None and not value < m["below"])
        or value == float("inf")
    )


def allowed_values(f: dataclasses.Field[Any]) -> str:
    """Returns in words what a flag takes, for errors and for the README's table."""
    m = f.metadata
    if m["choices"]:
        return "one of " + ", ".join(str(c) for c in m["choices"])
    word = {int: "an integer", float: "a number", str: "text", bool: "no value"}[value_type(f)]
    bounds = [
        f"{sign} {m[key]}"
        for key, sign in (("low", ">="), ("above", ">"), ("high", "<="), ("below", "<"))
        if m[key] is not None
    ]
    return " ".join([word, " and ".join(bounds)]).strip()


def _bad(f: dataclasses.Field[Any], value: object) -> StartupError:
    return StartupError(f"--{f.name} {value}: expected {allowed_values(f)}")

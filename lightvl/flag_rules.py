"""Rules between flags; pure checks that run before anything is loaded."""

import os
import typing

from lightvl.errors import StartupError

if typing.TYPE_CHECKING:
    from lightvl.flags import ServerConfig


def check_rules(config: "ServerConfig") -> None:
    """Checks what no single flag can say.

    Raises:
        StartupError: Two flags contradict each other, or a file that a flag names is absent.
    """
    _check_vision_parallelism(config)
    _check_memory(config)
    _check_files(config)
    if config.disable_chunked_prefill and config.chunked_prefill_size is not None:
        raise StartupError(
            "--chunked_prefill_size and --disable_chunked_prefill exclude each other"
        )
    if config.node_rank >= config.nnodes:
        raise StartupError(
            f"--node_rank {config.node_rank}: expected less than --nnodes {config.nnodes}"
        )
    if config.tp > 1 or config.nnodes > 1:
        flag = f"--tp {config.tp}" if config.tp > 1 else f"--nnodes {config.nnodes}"
        raise StartupError(f"{flag}: more than one rank is not in this build yet")


def vision_parallelism(config: "ServerConfig") -> tuple[int, int]:
    """Returns (visual_tp, visual_dp), filling in what isn't given.

    Raises:
        StartupError: Their product isn't `tp`; lists the pairs that are valid.
    """
    tp, vtp, vdp = config.tp, config.visual_tp, config.visual_dp
    if vtp is None:
        vtp = tp if vdp is None else (tp // vdp if tp % vdp == 0 else 0)
    if vdp is None:
        vdp = tp // vtp if tp % vtp == 0 else 0
    if vtp * vdp != tp:
        pairs = ", ".join(
            f"visual_tp {t} with visual_dp {tp // t}" for t in range(1, tp + 1) if tp % t == 0
        )
        given = [
            f"--{name} {value}"
            for name, value in (("visual_tp", config.visual_tp), ("visual_dp", config.visual_dp))
            if value is not None
        ]
        raise StartupError(
            f"{' '.join(given)}: visual_dp * visual_tp must equal tp = {tp}; allowed: {pairs}"
        )
    return vtp, vdp


def _check_vision_parallelism(config: "ServerConfig") -> None:
    vtp, vdp = vision_parallelism(config)
    size = config.visual_infer_batch_size
    if size is not None and size % vdp:
        raise StartupError(
            f"--visual_infer_batch_size {size}: expected a multiple of visual_dp = {vdp}"
        )
    ids = config.visual_gpu_ids
    if ids is not None and (len(ids) < vtp * vdp or len(set(ids)) < len(ids)):
        given = " ".join(map(str, ids))
        raise StartupError(f"--visual_gpu_ids {given}: expected at least {vtp * vdp} different ids")
    ports = config.visual_nccl_ports
    if ports is not None and len(ports) < vdp:
        raise StartupError(
            f"--visual_nccl_ports {' '.join(map(str, ports))}: expected at least {vdp} ports"
        )


def _check_memory(config: "ServerConfig") -> None:
    in_flight, arena = config.media_bytes_in_flight, config.media_shm_bytes
    if in_flight + 3 * config.max_image_pixels > arena:
        raise StartupError(
            f"--media_shm_bytes {arena}: expected at least media_bytes_in_flight + 3 bytes * "
            f"max_image_pixels = {in_flight + 3 * config.max_image_pixels}"
        )
    if in_flight < 2 * config.max_body_bytes:
        raise StartupError(
            f"--media_bytes_in_flight {in_flight}: expected at least 2 * max_body_bytes = "
            f"{2 * config.max_body_bytes}"
        )


def _check_files(config: "ServerConfig") -> None:
    for name in ("api_keys_file", "ssl_keyfile", "ssl_certfile"):
        path = getattr(config, name)
        if path is not None and not os.access(path, os.R_OK):
            raise StartupError(f"--{name} {path}: expected a file that can be read")
    if (config.ssl_keyfile is None) != (config.ssl_certfile is None):
        raise StartupError("--ssl_keyfile and --ssl_certfile: expected both or none")
    path = config.allowed_local_media_path
    if path is not None and not os.path.isdir(path):
        raise StartupError(f"--allowed_local_media_path {path}: expected a directory")

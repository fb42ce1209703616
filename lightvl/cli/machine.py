"""What `lightvl doctor` finds out: the machine, the build, the kernel's confinement."""

import json
import os
import platform
import struct
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lightvl.engine.memory import memory_left_bytes
from lightvl.utils.env import bound_spinning, num_cores

PACKAGE = Path(__file__).resolve().parents[1]
PROBE_S = 300.0

X86_64_SETS = {  # as setup.py builds them, and what a processor of each level says it has
    "generic": (),
    "avx2": ("avx2", "fma", "bmi1", "bmi2"),
    "avx512": ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"),
}

_CONFINE = """
import ctypes, sys
from lightvl.multimodal.sandbox import confine
assert ctypes.CDLL(None).prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
sys.stdout.write(" ".join(confine()))
"""


def probe_operators() -> dict[str, Any]:
    """Returns what `lightvl.ops.report` says, from a process of its own."""
    bound_spinning()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "lightvl.ops.report"],
            capture_output=True,
            text=True,
            timeout=PROBE_S,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"loading torch took more than {PROBE_S:.0f} s"}
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        return {"error": last[0]}
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def probe_confinement() -> list[str]:
    """Returns what the kernel enforces for media workers, of `landlock` and `seccomp`."""
    command = [sys.executable, "-c", _CONFINE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_S)
    return done.stdout.split() if done.returncode == 0 else []


def machine() -> dict[str, Any]:
    """Returns processor, cores, memory and, where there is one, the GPU's driver."""
    cpuinfo = _text(Path("/proc/cpuinfo"))
    return {
        "processor": _field(cpuinfo, "model name") or platform.machine(),
        "architecture": platform.machine(),
        "cores": num_cores(),
        "load_average": round(os.getloadavg()[0], 2),
        "memory_left_bytes": memory_left_bytes(),
        "instruction_sets": instruction_sets(cpuinfo, platform.machine()),
        "kernel": platform.release(),
        "gpu_driver": _text(Path("/proc/driver/nvidia/version")).partition("\n")[0] or None,
    }


def build() -> dict[str, Any]:
    """Returns what the operator library carries, read from its file without loading it."""
    library = next(iter(sorted(PACKAGE.glob("_C*.so"))), None)
    x86_64 = platform.machine() == "x86_64"
    return {
        "lightvl": _version("lightvl-server"),
        "python": platform.python_version(),
        "library": library.name if library else None,
        "cpu_instruction_sets": list(X86_64_SETS) if x86_64 else ["generic"],
        "cuda_architectures": cuda_architectures(library.read_bytes()) if library else [],
    }


def tokenizers() -> dict[str, str | None]:
    """Returns the versions of the packages that read tokenizers."""
    return {name: _version(name) for name in ("tokenizers", "sentencepiece")}


def instruction_sets(cpuinfo: str, architecture: str) -> list[str]:
    """Returns the kernels' instruction sets that a processor runs."""
    if architecture != "x86_64":
        return ["generic"]
    flags = set(_field(cpuinfo, "flags").split())
    return [name for name, needed in X86_64_SETS.items() if flags.issuperset(needed)]


def cuda_architectures(library: bytes) -> list[str]:
    """Returns the GPU architectures that a library has code for, such as `sm_90`.

    nvcc puts device code into containers: a head of 16 bytes (magic, version, size of the head,
    size of what follows), then entries whose head says kind (1 PTX, 2 machine code), the sizes of
    head and code, and at byte 28 the architecture.
    """
    magic = struct.pack("<I", 0xBA55ED50)
    found = set()
    at = library.find(magic)
    while 0 <= at <= len(library) - 16:
        _, _, head, size = struct.unpack_from("<IHHQ", library, at)
        begin, end = at + head, at + head + size
        if head != 16 or end > len(library):  # the magic number as an operand of code
            begin, end = at + len(magic), 0
        entry = begin
        while entry + 32 <= end:
            kind, _, head, size = struct.unpack_from("<HHIQ", library, entry)
            (number,) = struct.unpack_from("<I", library, entry + 28)
            if kind not in (1, 2) or head < 32:
                break
            found.add(f"compute_{number} (PTX)" if kind == 1 else f"sm_{number}")
            entry += head + size
        at = library.find(magic, max(begin, end))
    return sorted(found)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _field(cpuinfo: str, name: str) -> str:
    lines = (line.partition(":") for line in cpuinfo.splitlines())
    return next((value.strip() for key, _, value in lines if key.strip() == name), "")

# ruff: noqa: T201
"""Runs compute-sanitizer over the CUDA kernels on small cases.

`python -m tests.ops.sanitize [--tools memcheck,racecheck,initcheck] [--out FILE]` starts itself
under each tool, which checks our kernels alone, and prints one JSON object a tool. The exit code is
1 if a tool finds an error or an operator's result is wrong.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from lightvl.testing.attention_reference import PagedCase, VisionCase
from lightvl.testing.compare import assert_close
from lightvl.testing.embedding_reference import GatherCase
from lightvl.testing.image_reference import ImageCase, Picture
from lightvl.testing.linear_reference import LinearCase
from lightvl.testing.norm_reference import RowsCase
from lightvl.testing.rotary_reference import RopeCase
from lightvl.testing.sampling_reference import SampleCase
from tests.ops.gpu import ALL, BUILT, EXACT, to_gpu

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
OURS = "kns=lightvl"  # kernels with the namespace in their mangled name
TIMEOUT_S = 200
ERRORS_FOUND = 9  # exit code
# Attention that is shared out leaves pieces in memory that may hold anything before: a piece counts
# once its flag, 64 bits, equals the call's tag. initcheck sees the flag being read before that. In
# decode the flag is half of each word of 16 bytes.
FLAGS = re.compile(
    r"Uninitialized __global__ memory read of size (?:8|16) bytes\n"
    r"=+ +at void lightvl::cuda::(?:decode_attention|prefill)\w*"
)
ROWS = (RowsCase(3, 500), RowsCase(2, 3584))
CASES: dict[str, tuple[Any, ...]] = {
    "rms_norm": (*ROWS, RowsCase(3, 64, num_heads=9)),
    "add_rms_norm": ROWS,
    "layer_norm": ROWS,
    "scale_add": ROWS,
    "silu_mul": ROWS,
    "gelu": ROWS,
    "rope_write_kv": (RopeCase(5, head_dim=128, qk_norm=True), RopeCase(3, page_size=16)),
    "gather_embeddings": (GatherCase(7, 500),),
    "sample": (
        SampleCase(2, 8191, temperature=0.0),
        SampleCase(2, 8191, temperature=0.8, top_k=50, top_p=0.9),
        SampleCase(2, 500, temperature=0.8, min_p=0.1),
    ),
    "paged_attention": (
        PagedCase((1, 1, 1), (700, 1, 64), num_heads=14, num_kv_heads=2, head_dim=128),
        PagedCase((1, 1), (65, 130), num_heads=4, num_kv_heads=2, page_size=16),
        PagedCase((70, 1), (133, 64), num_heads=7, num_kv_heads=1, head_dim=128),
        PagedCase((65,), (65,), num_heads=2, num_kv_heads=1),
    ),
    "vision_attention": (
        VisionCase((193, 65)),
        VisionCase((129,), num_heads=2, head_dim=128),
        # More items than blocks, so that descriptions of items take each other's place.
        VisionCase((193,), num_heads=67),
        VisionCase((193,), num_heads=67, head_dim=128),
        VisionCase((320,), num_heads=132, head_dim=128),
    ),
    "linear_small": (
        LinearCase(5, 1000, 501, bias=True, residual=True),
        LinearCase(16, 896, 600, silu_mul=True),
        LinearCase(9, 2056, 700, residual=True),
        LinearCase(3, 1024, 2600, bias=True),
        LinearCase(10, 320, 4608),
    ),
    "image_preprocess": (
        ImageCase((Picture(100, 56, 2, 1, True), Picture(37, 45)), 28),
        ImageCase((Picture(40, 300), Picture(300, 40)), 28),
        ImageCase((Picture(1, 107, 3, 3),), 16, 1),
    ),
}


def run_cases(names: list[str]) -> None:
    """Run each case and check its result."""
    assert BUILT, "this build has no CUDA kernels"
    for name in names:
        operator = ALL[name]
        for case in CASES.get(name) or operator.cases[:3]:
            inputs = to_gpu(operator.make(case, torch.bfloat16))
            actual = operator.run(inputs).cpu()
            expected = operator.reference(operator.make(case, torch.bfloat16))
            if name in EXACT:
                assert torch.equal(actual, expected), case
            else:
                assert_close(actual, expected, 0.03)
            print(f"ran {name} {case}", flush=True)


def sanitize(tool: str, names: list[str]) -> dict[str, object]:
    """Run the cases under one tool and return what it says."""
    command = [shutil.which("compute-sanitizer") or "compute-sanitizer", "--tool", tool]
    command += [
        "--print-limit",
        "999",
        "--error-exitcode",
        str(ERRORS_FOUND),
        "--show-backtrace",
        "device",
        "--num-cuda-barriers",  # of all blocks: if synccheck has room for fewer, the launch fails
        "4096",
    ]
    if tool != "initcheck":  # which must see what torch's kernels write
        command += ["--kernel-name", OURS]
    command += [sys.executable, "-m", "tests.ops.sanitize", "--once", "--operators", *names]
    begin = time.monotonic()
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S
        )
        text, code = result.stdout + result.stderr, result.returncode
    except subprocess.TimeoutExpired as error:
        text, code = (error.stdout or b"").decode(), -1
    summary = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (\d+ (?:errors|hazards).*)", text)
    flags = len(FLAGS.findall(text)) if tool == "initcheck" else 0
    if code == ERRORS_FOUND and summary and summary[0] == f"{flags} errors":
        code = 0
    if code != 0:
        print(text[:9000], file=sys.stderr, flush=True)
    return {
        "benchmark": "sanitizer",
        "tool": tool,
        "cases": len(re.findall(r"^ran ", text, re.MULTILINE)),
        "summary": summary[0] if summary else "none",
        "reads_of_unset_flags": flags,
        "exit_code": code,
        "seconds": round(time.monotonic() - begin),
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
    }


def main() -> None:
    """Run what the flags ask for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tools", default=",".join(TOOLS))
    parser.add_argument("--operators", nargs="*", choices=list(ALL), default=list(ALL))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--once", action="store_true", help="run the cases in this process")
    options = parser.parse_args()
    if options.once:
        return run_cases(options.operators)
    rows = []
    for tool in options.tools.split(","):
        rows.append(sanitize(tool, options.operators))
        print(json.dumps(rows[-1]), flush=True)
        if options.out is not None:
            with options.out.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    sys.exit(int(any(row["exit_code"] for row in rows)))


if __name__ == "__main__":
    main()

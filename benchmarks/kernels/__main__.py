"""Times every operator beside its peers.

`python -m benchmarks.kernels [--operators decode,rms_norm] [--quick] [--budget 240]` on a GPU;
`python -m benchmarks.kernels --device cpu [--operators rms_norm,gelu] [--dtype fp32]`.
"""

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

import torch

DTYPES = ("fp32", "bf16", "fp16")


def commit() -> str:
    """The tree's commit, with a plus sign when files differ from it."""
    command = ["git", "describe", "--always", "--dirty=+", "--abbrev=10"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def main() -> None:
    """Measure on the device that the flags name, or on the GPU if there is one."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=["cuda", "cpu"], default=device)
    parser.add_argument("--operators", default="", help="operators or tables, comma-separated")
    parser.add_argument("--out", type=Path, help="file to add rows to")
    parser.add_argument("--commit", default=commit(), help="what was built, if not this tree")
    cuda = parser.add_argument_group("on a GPU, in bfloat16")
    cuda.add_argument("--quick", action="store_true", help="fewer shapes")
    cuda.add_argument("--budget", type=float, default=1e9, help="seconds to begin rows in")
    cpu = parser.add_argument_group("on the CPU")
    cpu.add_argument("--dtype", choices=DTYPES, default="fp32")
    cpu.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    context = {
        "torch": torch.__version__,
        "commit": options.commit,
        "command": shlex.join(["python", "-m", "benchmarks.kernels", *sys.argv[1:]]),
    }
    if options.device == "cuda":
        from benchmarks.kernels.cuda import run
    else:
        from benchmarks.kernels.cpu import run
    run(options, context)


if __name__ == "__main__":
    main()

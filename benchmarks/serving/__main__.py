"""The server beside transformers' `generate()` on a CPU, and what serving costs beyond the model.

    python -m benchmarks.serving [demo] [smollm2] [footprint] [front] [--out FILE]

Everything runs in float32 with the same number of threads. The two sides answer in turns in one
run, over HTTP on our side; medians of the repetitions count. `smollm2` needs a checkpoint made by
`benchmarks.serving.make_smollm2` (`--smollm2_dir`).
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import lightvl
from benchmarks.serving.client import Ours
from benchmarks.serving.comparison import Comparison
from benchmarks.serving.footprint import measure_footprint
from benchmarks.serving.reference import Reference
from benchmarks.serving.report import Report, Target
from benchmarks.serving.to_native import to_native
from lightvl.model_config import load_model_config
from lightvl.tokenizer.tokenizer import load_tokenizer
from lightvl.utils.env import num_cores

PARTS = ("demo", "smollm2", "footprint", "front")
DEMO = Path(lightvl.__file__).parent / "demo"


def main() -> int:
    """Runs the parts that are asked for; returns 1 if a target was missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", default=PARTS, metavar="PART", help=" ".join(PARTS))
    parser.add_argument("--smollm2_dir", type=Path, help="in the original layout")
    parser.add_argument("--threads", type=int, default=num_cores())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/serving_cpu.jsonl"))
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"unknown: {', '.join(unknown)}")
    if "smollm2" in options.parts and options.smollm2_dir is None:
        parser.error("smollm2 needs --smollm2_dir")
    torch.set_num_threads(options.threads)
    report = Report(options.out, options.threads)
    for name, model_dir in (("demo", DEMO), ("smollm2", options.smollm2_dir)):
        if name in options.parts:
            compare(name, model_dir, report, options.repeats)
    if "footprint" in options.parts:
        measure_footprint(DEMO, "demo", options.threads, report)
    if "front" in options.parts:
        measure_front(report)
    report.print_table()
    return 0 if all(target.met for target in report.targets) else 1


def compare(name: str, model_dir: Path, report: Report, repeats: int) -> None:
    """Runs one model's loads on both sides."""
    config = load_model_config(model_dir)
    tokenizer = load_tokenizer(model_dir, eos_ids=config.eos_ids)
    with tempfile.TemporaryDirectory() as folder:
        reference = Reference(to_native(model_dir, Path(folder)), config, tokenizer)
    with Ours(model_dir, tokenizer, report.num_threads) as ours:
        vocab_size = min(config.text.vocab_size, tokenizer.vocab_size)
        Comparison(name, ours, reference, report, vocab_size, repeats).run()


def measure_front(report: Report) -> None:
    """Measures the front alone in processes of its own; its row goes to the file as it is."""
    with tempfile.NamedTemporaryFile() as file:
        command = ["-m", "benchmarks.serving.front", "--out", file.name]
        subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
        row = json.load(file)
    report.write(row | {"command": "python -m benchmarks.serving.front"})
    rate = row["streams"]["output_tokens_per_s"]
    longest_ms = row["bodies"]["longest_callback_cpu_ms"]
    model = "none"
    report.add_target(Target("front alone: streamed tokens/s", model, [rate], 20_000, unit="/s"))
    report.add_target(
        Target("front alone: longest callback, CPU time", model, [longest_ms], 5.0, False, "ms")
    )


if __name__ == "__main__":
    sys.exit(main())

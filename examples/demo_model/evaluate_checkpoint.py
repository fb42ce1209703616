"""Measures a checkpoint on the held-out data: the table of the model's card.

python evaluate_checkpoint.py --data DATA --out evaluation.json ../../lightvl/demo
"""

import argparse
import json
from collections import Counter
from pathlib import Path

import torch
from assets import load_assets
from evaluate import BARS, answer_all, held_out, interval_by_source, score
from model import DemoConfig, DemoModel
from safetensors.torch import load_file
from tokenizers import Tokenizer


def main() -> None:
    """Writes scores, numbers of examples and every wrong answer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--part", type=int, default=1, help="take one in so many examples")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    examples = held_out(load_assets(args.data), args.workers, args.part)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = DemoModel(DemoConfig()).to(device)
    model.load_state_dict(load_file(args.folder / "model.safetensors"))
    tokenizer = Tokenizer.from_file(str(args.folder / "tokenizer.json"))
    answers = answer_all(model, tokenizer, examples, device)
    scores = score(examples, answers)
    report = {
        "examples": Counter(e.task for e in examples),
        "scores": {task: round(value, 4) for task, value in scores.items()},
        "photos_declined_interval": interval_by_source(examples, answers, "photos_declined"),
        "photo_sources": len({e.source for e in examples if e.task == "photos_declined"}),
        "wrong": [
            [e.task, e.question, e.answer, answer]
            for e, answer in zip(examples, answers, strict=True)
            if e.task != "clip_art" and answer.casefold() != e.answer.casefold()
        ],
    }
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    for task, value in scores.items():
        print(f"{task:32} {100 * value:5.1f} % {'' if task not in BARS else f'(bar {BARS[task]})'}")
    print("photographs, 95 % interval by source", report["photos_declined_interval"])


if __name__ == "__main__":
    main()

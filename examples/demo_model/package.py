"""Puts a training run's weights into a checkpoint folder in the original InternVL layout.

python package.py RUN FOLDER
"""

import sys
from pathlib import Path

from export import export
from model import DemoConfig, DemoModel
from safetensors.torch import load_file
from tokenizers import Tokenizer


def main(run: Path, folder: Path) -> None:
    """`folder` must hold the `tokenizer.json` that the run was trained with."""
    model = DemoModel(DemoConfig())
    weights = {}
    for shard in sorted(run.glob("weights-*.safetensors")):
        weights.update(load_file(shard))
    model.load_state_dict(weights)
    export(model, Tokenizer.from_file(str(folder / "tokenizer.json")), folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

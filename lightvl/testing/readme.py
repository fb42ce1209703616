"""Writes generated parts: `python -m lightvl.testing.readme README.md docs/kernels.md`.

A part stands between `<!-- NAME -->` and `<!-- end -->`; `tests/unit/test_docs.py` fails when one
is out of date.
"""

import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

from lightvl.flags import ServerConfig, allowed_values, is_tuple, value_type
from lightvl.testing import kernel_tables


def flag_table() -> str:
    """Returns the server's flags as a Markdown table: name, default, what it is."""
    rows = [_flag_row(f) for f in dataclasses.fields(ServerConfig)]
    return "\n".join(["| flag | default | meaning |", "|---|---|---|", *rows])


def serving_table() -> str:
    """Returns the newest of each of the serving benchmark's values, and where they were taken."""
    rows = [json.loads(line) for line in SERVING_RESULTS.read_text().splitlines()]
    newest = {
        (row["model"], row["what"]): row for row in rows if row["benchmark"] == "serving_target"
    }
    last = rows[-1]
    commits = ", ".join(dict.fromkeys(row["commit"] for row in newest.values()))
    head = (
        f"{last['device']}, {last['dtype']}, torch {last['torch']}, "
        f"transformers {last['transformers']}; commits {commits}; {last['run'][:10]}:"
    )
    lines = [
        f"| {row['what']} | {row['model']} | {row['value']:.5g} {row['unit']} | {row['target']} |"
        for row in newest.values()
    ]
    return "\n".join([head, "", "| load | model | measured | aim |", "|---|---|---|---|", *lines])


PARTS = {
    "flags": flag_table,
    "serving": serving_table,
    "kernels": kernel_tables.summary_table,
    "every_kernel": kernel_tables.full_table,
    "kernel_host": kernel_tables.host_table,
    "kernel_sm80": kernel_tables.sm80_table,
}
SERVING_RESULTS = Path(__file__).resolve().parents[2] / "benchmarks/results/serving_cpu.jsonl"


def render(text: str) -> str:
    """Returns `text` with every generated part made anew.

    Raises:
        KeyError: A part has a name that nothing generates.
    """
    part = re.compile(r"(?<=<!-- )(?!end )(\w+)( -->\n).*?(?=<!-- end -->)", re.DOTALL)
    return part.sub(lambda m: f"{m[1]}{m[2]}{PARTS[m[1]]()}\n", text)


def _flag_row(f: dataclasses.Field[Any]) -> str:
    names = f"`--{f.name}`"
    if f.metadata["off"]:
        names += f", `--{f.metadata['off']}`"
    return f"| {names} | {_default(f)} | {_meaning(f)} |"


def _default(f: dataclasses.Field[Any]) -> str:
    if f.name == "model_dir":
        return "the demo model"
    if f.default is None or f.default == "":
        return ""
    return "off" if f.default is False else f"`{f.default}`"


def _meaning(f: dataclasses.Field[Any]) -> str:
    allowed = allowed_values(f)
    if is_tuple(f):
        allowed = f"several, each {allowed}"
    bare = value_type(f) is bool or allowed == "text"
    notes = ["" if bare else allowed]
    if f.metadata["unbuilt"]:
        values = ", ".join(str(value) for value in f.metadata["unbuilt"] if value is not True)
        notes.append(f"{values}: not in this build yet".removeprefix(": "))
    words = "; ".join(note for note in notes if note)
    return f"{f.metadata['help']} ({words})" if words else str(f.metadata["help"])


def main() -> None:
    """Rewrites the files that the command line names."""
    for path in map(Path, sys.argv[1:]):
        path.write_text(render(path.read_text()))


if __name__ == "__main__":
    main()

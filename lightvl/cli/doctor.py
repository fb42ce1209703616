"""`lightvl doctor`: what was built, what this machine offers, which path is taken and why."""

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lightvl.cli import machine
from lightvl.engine.memory import plan_memory
from lightvl.errors import StartupError
from lightvl.flags import parse_args
from lightvl.model_config import load_model_config
from lightvl.resolve import engine_config
from lightvl.tokenizer.tokenizer import load_tokenizer
from lightvl.utils.env import read_environment

DESCRIPTION = """\
Says what this installation was built with, what the machine offers, and which path a server
would take here and why. Flags of `lightvl serve` may follow: the answer is then for them.
"""
EPILOG = """\
examples:
  lightvl doctor
  lightvl doctor --model_dir DIR --mem_fraction 0.8     would this be served, and how?
  lightvl doctor --json | jq .checks                    for scripts

exit code: 0 when every check passes, 1 when one fails
"""
GIB = 1 << 30


@dataclass(frozen=True)
class Check:
    """One thing that must be so for a server to start.

    Attributes:
        name: Of what was looked at.
        ok: Whether it is so.
        detail: What was found, or what to do.
    """

    name: str
    ok: bool
    detail: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    parser.usage = "lightvl doctor [-h] [--json] [flags of `lightvl serve`]"
    parser.set_defaults(flags=[])  # `main` puts what is left of the command line here


def run(options: argparse.Namespace) -> int:
    """Examines, prints, and returns 0 if a server would start, else 1."""
    report = examine(options.flags)
    if options.json:
        sys.stdout.write(json.dumps(report, indent=2) + "\n")
    else:
        _show(report)
    return 0 if report["ok"] else 1


def examine(flags: list[str]) -> dict[str, Any]:
    """Returns everything that is known, as plain values.

    Args:
        flags: The server's, as on its command line.
    """
    build, here, operators = machine.build(), machine.machine(), machine.probe_operators()
    confinement = machine.probe_confinement()
    path, model_check = _path(flags)
    checks = [
        _library_check(build, operators),
        model_check,
        *(
            Check(name, found is not None, found or "not installed: run `pip install .` again")
            for name, found in machine.tokenizers().items()
        ),
    ]
    return {
        "ok": all(check.ok for check in checks),
        "build": build,
        "machine": here | {"gpus": operators.get("gpus", [])},
        "torch": {key: operators.get(key) for key in ("torch", "torch_cuda", "threads")},
        "operators": {key: operators.get(key) for key in ("cpu_isa", "cuda_kernels")},
        "confinement": confinement,
        "path": [*path, *_reasons(build, here, operators, confinement)],
        "checks": [asdict(check) for check in checks],
    }


def _library_check(build: dict[str, Any], operators: dict[str, Any]) -> Check:
    if operators.get("error"):
        return Check("operators", False, operators["error"])
    return Check("operators", True, f"{build['library']} loads with torch {operators['torch']}")


def _path(flags: list[str]) -> tuple[list[str], Check]:
    """Returns what a server with these flags would say of its choices, and whether it starts."""
    try:
        config = parse_args(flags, "lightvl doctor")
        environment = read_environment()
        model_dir = Path(config.model_dir)
        model = load_model_config(model_dir)
        load_tokenizer(
            model_dir, eos_ids=config.eos_id or model.eos_ids, conversation=model.template
        )
        resolved, notes = engine_config(config, model, environment)
        notes += plan_memory(resolved).notes
    except StartupError as error:
        return [], Check("model and flags", False, str(error))
    tower = "with a vision tower" if model.vision else "without a vision tower"
    name = model_dir.resolve().name
    return notes, Check("model and flags", True, f"{name}: {model.architecture}, {tower}")


def _reasons(
    build: dict[str, Any],
    here: dict[str, Any],
    operators: dict[str, Any],
    confinement: list[str],
) -> list[str]:
    lines = []
    if operators.get("cpu_isa"):
        runs, has = ", ".join(here["instruction_sets"]), ", ".join(build["cpu_instruction_sets"])
        lines.append(
            f"CPU kernels: {operators['cpu_isa']} (the build has {has}; this processor runs {runs})"
        )
    lines.append(f"CUDA kernels: {_cuda_reason(build, here, operators)}")
    lines.append(f"threads of the engine: {operators.get('threads')}")
    for name in ("landlock", "seccomp"):
        lines.append(
            f"{name}: media workers are confined by it"
            if name in confinement
            else f"{name}: not offered by this kernel, media workers go without"
        )
    return lines


def _cuda_reason(build: dict[str, Any], here: dict[str, Any], operators: dict[str, Any]) -> str:
    if operators.get("cuda_kernels"):
        return "built in, for " + ", ".join(build["cuda_architectures"])
    reasons = ["this build has none: they need a torch with CUDA and a toolkit with nvcc"]
    if not operators.get("torch_cuda"):
        reasons.append("the installed torch has no CUDA")
    if not here["gpu_driver"]:
        reasons.append("this machine has no NVIDIA driver")
    return "; ".join(reasons)


def _show(report: dict[str, Any]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    here, build = report["machine"], report["build"]
    facts = Table.grid(padding=(0, 2))
    for name, value in (
        ("lightvl", f"{build['lightvl']}, Python {build['python']}"),
        ("torch", f"{report['torch']['torch']}, CUDA {report['torch']['torch_cuda'] or 'no'}"),
        ("processor", f"{here['processor']}, {here['cores']} cores, load {here['load_average']}"),
        ("memory left", f"{here['memory_left_bytes'] / GIB:.1f} GiB"),
        ("GPU", ", ".join(gpu["name"] for gpu in here["gpus"]) or "none that torch sees"),
        ("driver", here["gpu_driver"] or "none"),
        ("kernel", here["kernel"]),
    ):
        facts.add_row(name, value)
    console.print(facts)
    console.print("\nA server here would say:")
    for line in report["path"]:
        console.print(f"  {line}", markup=False)
    console.print()
    for check in report["checks"]:
        mark = "[green]ok  [/]" if check["ok"] else "[red]FAIL[/]"
        console.print(mark, end=" ")
        console.print(f"{check['name']}: {check['detail']}", markup=False)

"""`lightvl doctor` tells the truth about the build, the machine and what would be served."""

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lightvl.cli import machine
from lightvl.cli.main import main

ROOT = Path(__file__).resolve().parents[2]


def doctor(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    code = main(["doctor", "--json", *words])
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return code, report


def test_a_working_installation(capsys: pytest.CaptureFixture[str]) -> None:
    code, report = doctor(capsys)
    assert (code, report["ok"]) == (0, True)
    assert [check["name"] for check in report["checks"] if not check["ok"]] == []
    import torch

    from lightvl.ops import cpu_isa

    assert report["torch"]["torch"] == torch.__version__
    assert report["operators"]["cpu_isa"] == cpu_isa()
    assert cpu_isa() == report["machine"]["instruction_sets"][-1]
    assert any(line.startswith("device: cpu") for line in report["path"])
    assert any(line.startswith("KV cache: ") for line in report["path"])


def test_flags_of_the_server_are_judged(capsys: pytest.CaptureFixture[str]) -> None:
    code, report = doctor(capsys, "--model_dir", "/nowhere")
    assert code == 1
    assert [check["name"] for check in report["checks"] if not check["ok"]] == ["model and flags"]
    code, report = doctor(capsys, "--max_total_token_num", "640")
    assert code == 0
    assert any("KV cache: 640 tokens" in line for line in report["path"])


def test_a_library_that_does_not_load_is_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIGHTVL_CPU_ISA", "mmx")
    code, report = doctor(capsys)
    assert code == 1
    assert "mmx" in next(c["detail"] for c in report["checks"] if c["name"] == "operators")


def test_tables_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "CUDA kernels: " in printed
    assert "ok   operators: " in printed


def test_the_instruction_sets_are_those_of_setup(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("setuptools.setup", lambda **_: None)
    built = runpy.run_path(str(ROOT / "setup.py"), run_name="setup")["X86_64_LEVELS"]
    assert list(machine.X86_64_SETS) == list(built)


@pytest.mark.parametrize(
    ("architecture", "flags", "sets"),
    [
        ("x86_64", "sse4_2", ["generic"]),
        ("x86_64", "avx2 fma bmi1 bmi2", ["generic", "avx2"]),
        ("x86_64", "avx2 fma bmi1", ["generic"]),
        ("aarch64", "asimd", ["generic"]),
    ],
)
def test_instruction_sets(architecture: str, flags: str, sets: list[str]) -> None:
    cpuinfo = f"processor\t: 0\nflags\t\t: {flags}\n\nprocessor\t: 1\n"
    assert machine.instruction_sets(cpuinfo, architecture) == sets


def test_architectures_are_read_from_device_code() -> None:
    def entry(kind: int, number: int) -> bytes:
        head = kind.to_bytes(2, "little") + bytes(2) + (64).to_bytes(4, "little")
        head += (5).to_bytes(8, "little") + bytes(12) + number.to_bytes(4, "little")
        return head + bytes(64 - len(head)) + b"12345"

    entries = entry(2, 80) + entry(2, 90) + entry(1, 80)
    magic = (0xBA55ED50).to_bytes(4, "little")
    container = magic + b"\1\0\x10\0" + len(entries).to_bytes(8, "little") + entries
    library = b"\x7fELF" + magic + b"\xff" * 40 + container + b"rest"
    assert machine.cuda_architectures(library) == ["compute_80 (PTX)", "sm_80", "sm_90"]
    assert machine.cuda_architectures(b"\x7fELF" + magic) == []


def test_nothing_imports_torch() -> None:
    modules = ["main", "serve", "chat", "bench", "doctor", "machine"]
    names = [f"lightvl.cli.{name}" for name in modules if name != "serve"]
    code = f"import sys, {', '.join(names)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0

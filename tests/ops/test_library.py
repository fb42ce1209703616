"""The operator library: its instruction sets, and what a user is told when it can't be used."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightvl import ops
from lightvl.ops import library

FLAG = {"generic": "fpu", "avx2": "avx2", "avx512": "avx512vl"}
CPU_FLAGS = set(Path("/proc/cpuinfo").read_text().split())
SETS = [isa for isa, flag in FLAG.items() if flag in CPU_FLAGS] or ["generic"]
CASES = Path(__file__).with_name("test_cases.py")


def run(*arguments: str, isa: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LIGHTVL_CPU_ISA": isa}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_the_best_instruction_set_is_chosen() -> None:
    assert ops.cpu_isa() == os.environ.get("LIGHTVL_CPU_ISA", SETS[-1])


@pytest.mark.parametrize("isa", [isa for isa in SETS if isa != ops.cpu_isa()])
def test_other_instruction_sets_equal_the_references(isa: str) -> None:
    result = run("-m", "pytest", "-q", "-k", "float32 or sample", str(CASES), isa=isa)
    assert result.returncode == 0, result.stdout[-3000:]


def test_an_unknown_instruction_set_is_named() -> None:
    result = run("-c", "from lightvl import ops; ops.cpu_isa()", isa="mmx")
    assert 'ValueError: LIGHTVL_CPU_ISA is "mmx"' in result.stderr


def test_a_cpu_build_is_not_asked_for_cuda() -> None:
    ops.check_device(torch.device("cpu"))
    if not torch._C._dispatch_has_kernel_for_dispatch_key("lightvl::rms_norm", "CUDA"):
        with pytest.raises(RuntimeError, match="this build has CPU kernels only"):
            ops.check_device(torch.device("cuda"))


def test_a_missing_library_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "__file__", str(tmp_path / "ops" / "library.py"))
    with pytest.raises(ImportError, match="is not built"):
        library._load()


def test_a_library_that_does_not_load_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "_C.abi3.so").write_bytes(b"not a library")
    monkeypatch.setattr(library, "__file__", str(tmp_path / "ops" / "library.py"))
    with pytest.raises(
        ImportError, match=r"does not load with torch .*invalid ELF header|too short"
    ):
        library._load()
    reason = "libtorch_cuda.so: cannot open shared object file"
    assert "built for a torch with CUDA" in library._advice(reason)

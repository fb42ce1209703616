"""The tree keeps its rules: one of each piece per operator, file sizes, who includes torch."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAX_LINES = 400

# Operator and family, as docs/architecture.md lists them.
FAMILIES = {
    "paged_attention": "attention",
    "vision_attention": "attention",
    "rms_norm": "norm",
    "add_rms_norm": "norm",
    "layer_norm": "norm",
    "scale_add": "norm",
    "rope_write_kv": "rotary",
    "silu_mul": "activation",
    "gelu": "activation",
    "image_preprocess": "image",
    "gather_embeddings": "embedding",
    "sample": "sampling",
}
CUDA_ONLY = {"linear_small": "linear"}  # the CPU uses torch's matrix products


def read(*parts: str) -> str:
    return ROOT.joinpath(*parts).read_text()


def tracked(*patterns: str) -> list[Path]:
    command = ["git", "-C", str(ROOT), "ls-files", "-z", *patterns]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in names.split("\0") if name and (ROOT / name).exists()]


@pytest.mark.parametrize("operator", [*FAMILIES, *CUDA_ONLY])
def test_an_operator_has_one_of_each(operator: str) -> None:
    family = (FAMILIES | CUDA_ONLY)[operator]
    assert len(re.findall(rf'm\.def\("{operator}\(', read("csrc/ops/registration.cpp"))) == 1
    host = read(f"csrc/ops/{family}.cpp")
    assert f'implement<&{operator}>(m, "{operator}");' in host
    assert f'Op op{{"{operator}"}}' in host
    wrapper = read(f"lightvl/ops/{family}.py")
    assert f'out_operator("{operator}")' in wrapper  # its fake, too
    assert re.search(rf"^def {operator}\(", wrapper, re.MULTILINE)
    assert f'"{operator}",' in read("lightvl/ops/__init__.py")
    assert f'"{operator}": ' in read("lightvl/testing/cases.py")


@pytest.mark.parametrize("operator", FAMILIES)
def test_an_operator_has_a_cpu_kernel(operator: str) -> None:
    family = FAMILIES[operator]
    table = read("csrc/cpu/kernels.h")
    params = re.search(rf"RowKernel<(\w+)>\* {operator};", table)
    assert params
    blocks = [read("csrc/params.h"), *(p.read_text() for p in ROOT.glob(f"csrc/cpu/{family}*.h"))]
    assert any(f"struct {params[1]} {{" in block for block in blocks)
    assert f"RowKernel<{params[1]}> {operator};" in table
    assert f".{operator} = {operator}," in read("csrc/cpu/table.cpp")
    kernels = "".join(path.read_text() for path in ROOT.glob(f"csrc/cpu/{family}*.cpp"))
    signature = rf"void {operator}\(const {params[1]}& \w+, int64_t begin, int64_t end\) {{"
    assert re.search(signature, kernels)


def test_every_registered_operator_is_listed() -> None:
    schemas = re.findall(r'm\.def\("(\w+)\(', read("csrc/ops/registration.cpp"))
    assert sorted(schemas) == sorted([*FAMILIES, *CUDA_ONLY, "cpu_isa"])


def test_only_the_operator_layer_includes_torch() -> None:
    for path in tracked("csrc"):
        if path != ROOT / "csrc/ops/stable.h":
            assert not re.search(r"#include *[<\"](torch|ATen|c10)", path.read_text()), path


def test_only_the_operator_wrappers_call_the_library() -> None:
    for path in tracked("lightvl/*.py"):
        if path.parent.name != "ops":
            assert "torch.ops.lightvl" not in path.read_text(), path


def test_only_one_module_reads_the_environment() -> None:
    for path in tracked("lightvl/*.py"):
        if path != ROOT / "lightvl/utils/env.py" and path.parent.name != "testing":
            assert not re.search(r"os\.(environ|getenv)", path.read_text()), path


def test_no_source_file_has_two_jobs() -> None:
    sources = tracked("*.py", "*.cpp", "*.h", "*.cu", "*.cuh")
    assert len(sources) > 20
    long = [path for path in sources if len(path.read_text().splitlines()) > MAX_LINES]
    assert not long


def test_tests_assert_something() -> None:
    for path in tracked("tests/*/test_*.py"):
        assert re.search(r"assert|raises|opcheck", path.read_text()), path

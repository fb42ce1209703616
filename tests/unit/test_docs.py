"""What the documents say of the tree is true."""

import re
from pathlib import Path

import pytest

from lightvl.testing.readme import render

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]

# First lines of README's commands: where each is run, or why no test runs it.
COMMANDS = {
    "make serve": "sets a machine up; `.ci/run` does the same for `make test`",
    'make serve TORCH="torch --index-url https://download.pytorch.org/whl/cpu"': "downloads torch",
    "curl http://127.0.0.1:8000/v1/chat/completions --header": "tests/integration/test_readme.py",
    "INTERNVL_IMAGE_LENGTH=256 LOADWORKER=12 python -m": "tests/integration/test_readme.py",
    ".venv/bin/python examples/openai_client.py": "tests/integration/test_readme.py",
    "curl http://127.0.0.1:8000/generate --header": "tests/integration/test_readme.py",
    "from lightvl import LLM, SamplingParams": "tests/integration/test_readme.py",
    "pip install .": "what `make test` does, editable",
    "make test": ".ci/run",
}


@pytest.mark.parametrize("name", ["README.md", "docs/kernels.md"])
def test_generated_parts_are_current(name: str) -> None:
    text = (ROOT / name).read_text()
    assert "<!-- end -->" in text
    assert render(text) == text, f"run `python -m lightvl.testing.readme {name}`"


def test_an_unknown_generated_part_is_an_error() -> None:
    with pytest.raises(KeyError):
        render("<!-- nothing -->\n<!-- end -->\n")


def test_every_command_of_the_readme_is_run_or_excused() -> None:
    blocks = re.findall(r"^```\w*\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)
    assert len(blocks) == len(COMMANDS)
    for block in blocks:
        reasons = [why for first, why in COMMANDS.items() if re.match(re.escape(first), block)]
        assert reasons, block
        assert not reasons[0].endswith(".py") or (ROOT / reasons[0]).exists()


def test_each_line_of_a_requests_road_names_a_file() -> None:
    road = re.findall(r"^(\d+)\. `([\w/.]+)`", (ROOT / "docs/architecture.md").read_text(), re.M)
    assert [int(number) for number, _ in road] == list(range(1, len(road) + 1))
    assert len(road) > 30
    missing = [path for _, path in road if not (ROOT / path).is_file()]
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_and_links_exist(document: Path) -> None:
    text = document.read_text()
    paths = re.findall(r"`((?:lightvl|csrc|tests|docs|examples|benchmarks)/[\w/.*]+)`", text)
    assert not [path for path in paths if not list(ROOT.glob(path.rstrip("/")))]
    links = re.findall(r"\]\((?!https?:)([^)#]*)", text)
    assert not [link for link in links if not (document.parent / link).exists()]


def test_classes_exist() -> None:
    sources = "".join(path.read_text() for path in ROOT.glob("lightvl/**/*.py"))
    text = (ROOT / "docs/architecture.md").read_text()
    for name in re.findall(r"`([A-Z][a-z]+(?:[A-Z][a-z]+)+)`", text):
        assert re.search(rf"^class {name}\b", sources, re.M), name

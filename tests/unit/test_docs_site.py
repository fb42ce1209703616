"""The documentation's site builds without a warning, and what its pages name is there."""

import ast
import dataclasses
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lightvl.cli.main import COMMANDS, make_parser
from lightvl.flags import ServerConfig
from lightvl.testing.readme import render

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(ROOT.glob("docs/*.md"))
SERVING_PAGES = [page for page in PAGES if page.name not in ("benchmarks.md", "kernels.md")]
FOREIGN = {"from-lightllm.md", "from-vllm.md"}  # the left column of their tables is another's


def test_the_site_builds_strictly_and_needs_nothing_else(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            names = {"script": "src", "link": "href", "img": "src"}
            loaded.extend(value or "" for name, value in attrs if name == names.get(tag))

    for page in PAGES:
        Reader().feed((tmp_path / page.with_suffix(".html").name).read_text())
    assert loaded
    assert not [place for place in loaded if place.startswith(("http", "//"))]


def test_the_flags_page_is_current() -> None:
    text = (ROOT / "docs/flags.md").read_text()
    assert "`--cache_capacity`" in text
    assert render(text) == text, "run `python -m lightvl.testing.readme docs/flags.md`"


def known_flags() -> set[str]:
    flags = {f.name for f in dataclasses.fields(ServerConfig)}
    flags |= {f.metadata["off"] for f in dataclasses.fields(ServerConfig)}
    for command in COMMANDS:
        groups = make_parser(command)._subparsers
        assert groups is not None
        choices = groups._group_actions[0].choices
        assert isinstance(choices, dict)
        text = choices[command].format_help()
        flags |= {name.replace("-", "_") for name in re.findall(r"--([a-z][\w-]*)", text)}
    return flags


@pytest.mark.parametrize("page", SERVING_PAGES, ids=lambda page: page.name)
def test_flags_that_pages_name_exist(page: Path) -> None:
    named: set[str] = set()
    for line in page.read_text().splitlines():
        ours = line.split("|")[2] if page.name in FOREIGN and line.startswith("| `") else line
        for code in re.findall(r"`([^`]+)`", ours):
            if not re.match(r"(cmake|curl|podman|pip|python|register)", code):
                named |= set(re.findall(r"(?<![\w-])--([a-z]\w*)", code))
    assert named <= known_flags()


def messages() -> Iterator[str]:
    """Every text in the sources, with `…` for what is filled in."""
    for path in ROOT.glob("lightvl/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [v.value if isinstance(v, ast.Constant) else "…" for v in node.values]
                yield "".join(str(part) for part in parts)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_troubleshooting_quotes_real_messages() -> None:
    text = (ROOT / "docs/troubleshooting.md").read_text()
    quoted = [
        (found[1] or found[2]).strip()
        for found in re.finditer(r"^\| (?:``(.+?) ``|`([^`]+)`) \|", text, re.M)
    ]
    assert len(quoted) > 30
    sources = {re.sub(r"…+", "…", message) for message in messages()}
    missing = [message for message in quoted if message not in sources]
    assert not missing


def test_variables_that_pages_name_are_read() -> None:
    files = [*ROOT.glob("lightvl/**/*.py"), *ROOT.glob("csrc/**/*.cpp"), *ROOT.glob("deploy/*")]
    files += [*ROOT.glob("tests/browser/*.py"), ROOT / "setup.py"]
    sources = "".join(path.read_text() for path in files)
    torchs = ("OMP_", "TORCH_")
    for page in PAGES:
        names = re.findall(r"`([A-Z]+_[A-Z_]+)\b", page.read_text())
        assert [n for n in names if n not in sources and not n.startswith(torchs)] == [], page

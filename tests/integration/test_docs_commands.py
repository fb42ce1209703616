"""The commands in docs/ and in CONTRIBUTING.md run, or docs/not-run.md says why they don't."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lightvl.testing.server import ENGINE, ServerProcess
from tests.unit.test_docs import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
DEMO = str(ROOT / "lightvl/demo")
PROGRAMS = ("lightvl", "curl", "make", "python", "pip", "podman", "install", "systemctl", "mkdocs")
SERVE = re.compile(r"((?:[A-Z_]+=\S+ )*)(?:lightvl serve|python -m lightvl\.api_server)\b")


def commands() -> Iterator[str]:
    """Every command in a block of code, one line each."""
    for page in (*sorted(ROOT.glob("docs/*.md")), ROOT / "CONTRIBUTING.md"):
        for block in re.findall(r"^```\n(.*?)^```$", page.read_text(), re.M | re.S):
            lines = block.replace("\\\n", " ").splitlines()
            words = [re.sub(r"^(\w+=\S+ )+", "", line).split() for line in lines]
            if words[0] and words[0][0] in PROGRAMS:  # not a drawing or an output
                yield from lines


def excuses() -> list[str]:
    """How the commands begin that are not run."""
    rows = re.findall(r"^\| ((?:`[^`]+`(?:, )?)+) \|", (ROOT / "docs/not-run.md").read_text(), re.M)
    return [start for row in rows for start in re.findall(r"`([^`]+)`", row)]


def is_excused(command: str) -> bool:
    return command.startswith(tuple(excuses()))


RUN = sorted({command for command in commands() if not is_excused(command)})


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with ServerProcess(engine=ENGINE) as started:
        yield started


@pytest.mark.parametrize("command", RUN)
def test_a_command(command: str, server: ServerProcess, tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "keys").write_text("# one a line\nkey\n")
    line = re.sub(r"\bDIR\b", shlex.quote(DEMO), command)
    line = re.sub(r"\bFILE\b", shlex.quote(str(tmp_path / "keys")), line)
    line = re.sub(r"http://127\.0\.0\.1:80[08]0", server.url, line)
    if serve := SERVE.match(
        line
    ):  # what it would do; tests/integration/test_cli_chat.py starts one
        line = f"{serve[1]}lightvl doctor{line[serve.end() :]}"
    elif line.startswith(("lightvl chat", "lightvl bench")) and "--model_dir" not in line:
        line += "" if "--url" in line else f" --url {server.url}"
        line += " --requests 2" if "--load" in line else ""  # shorter
    line = re.sub(
        r"\blightvl(?= (serve|chat|bench|doctor)\b)", f"{sys.executable} -m lightvl.cli", line
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-c", line],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout
    assert '"error"' not in done.stdout
    for name in re.findall(r"\b(?:rows\.jsonl|report\.html)\b", command):
        assert (tmp_path / name).stat().st_size


def test_commands_are_found() -> None:
    assert len(RUN) > 12
    assert any(is_excused(command) for command in commands())


def test_each_excuse_is_needed() -> None:
    readme = [first for first, why in COMMANDS.items() if not why.endswith(".py")]
    assert all(is_excused(command) for command in readme)
    unused = [e for e in excuses() if not any(c.startswith(e) for c in [*commands(), *readme])]
    assert not unused


def test_the_metrics_page_names_every_series(server: ServerProcess) -> None:
    done = subprocess.run(["curl", "-sS", server.url + "/metrics"], capture_output=True, text=True)
    there = set(re.findall(r"^# TYPE (lightvl:\w+) ", done.stdout, re.M))
    text = (ROOT / "docs/metrics.md").read_text()
    assert set(re.findall(r"`(lightvl:\w+)", text)) == there
    others = "".join(page.read_text() for page in ROOT.glob("docs/*.md"))
    assert {name.rstrip("_") for name in re.findall(r"`(lightvl:\w+)", others)} <= there


def test_the_refusals_that_several_gpus_quotes_are_said() -> None:
    rows = re.findall(
        r"^\| `(--[^`]+)` \| `([^`]+)` \|$", (ROOT / "docs/several-gpus.md").read_text(), re.M
    )
    assert len(rows) == 5
    for flags, answer in rows:
        command = [sys.executable, "-m", "lightvl.cli", "serve", *flags.split()]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 2
        assert answer in done.stderr

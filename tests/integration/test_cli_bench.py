"""`lightvl bench` against a server, as its users call it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lightvl.cli.main import main
from lightvl.testing.server import ServerProcess


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with ServerProcess("--api_key", "secret") as started:
        yield started


def bench(server: ServerProcess, *words: str) -> int:
    return main(["bench", "--url", server.url, "--api-key", "secret", "--warmup", "1", *words])


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_closed_loop_with_pictures(server: ServerProcess, tmp_path: Path) -> None:
    out, html = tmp_path / "rows.jsonl", tmp_path / "report.html"
    own = ["--requests", "6", "--concurrency", "3", "--image", "64x48", "--output", "5"]
    files = ["--out", str(out), "--html", str(html)]
    assert bench(server, *own, *files, "--repeat", "2", "--goal_e2e_ms", "60000") == 0
    (row,) = rows(out)
    assert (row["requests"], row["errors"], row["short_outputs"]) == (12, 0, 0)
    assert row["goodput"]["share"] == 1.0
    assert row["model"] == "demo"
    assert row["tiles_per_s"] > 0
    assert len(row["repetitions"]) == 2
    assert row["command"].split()[0] == "lightvl"
    assert "<svg" in html.read_text()


def test_an_open_loop_of_a_preset(
    server: ServerProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rows.jsonl"
    words = ["--load", "L4,L5", "--requests", "4", "--rate", "50", "--input", "20"]
    assert bench(server, *words, "--out", str(out)) == 0
    assert [(row["load"], row["config"]["rate"]) for row in rows(out)] == [("L4", 50), ("L5", 50)]
    assert [row["config"]["output_tokens"] for row in rows(out)] == [128, 64]
    assert "L4" in capsys.readouterr().out


def test_refused_requests_are_errors(
    server: ServerProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rows.jsonl"
    words = ["--model", "another", "--requests", "2", "--input", "4", "--out", str(out)]
    assert bench(server, *words) == 1
    (row,) = rows(out)
    assert (row["requests"], row["errors"]) == (0, 2)
    assert "HTTP 404" in row["messages"][0]
    assert "HTTP 404" in capsys.readouterr().out


def test_no_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--url", "http://127.0.0.1:9", "--load", "L5"]) == 1
    assert "http://127.0.0.1:9/v1/models" in capsys.readouterr().err


def test_bad_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--model", "m", "--load", "L9"]) == 2
    assert "expected one of L1, L2" in capsys.readouterr().err
    for words in (["--image", "12"], ["--rate", "0"], ["--repeat", "0"], ["--nonsense"]):
        with pytest.raises(SystemExit) as ended:
            main(["bench", *words])
        assert ended.value.code == 2

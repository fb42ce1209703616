"""The server's beginning and end: exit codes, drain, losses, what the front never loads."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from lightvl.testing.server import STUB, ServerProcess

SLOW = f"{STUB} --step-ms 30"
LONG = {"inputs": "a b c", "parameters": {"max_new_tokens": 4000, "ignore_eos": True}}


def run_server(*arguments: str, environment: dict[str, str] | None = None) -> tuple[int, str]:
    """Runs a server that is expected not to start; returns its exit code and what it said."""
    command = [sys.executable, "-m", "lightvl.api_server", *arguments]
    result = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **(environment or {})},
        check=False,
    )
    return result.returncode, result.stderr


@contextmanager
def streaming(server: ServerProcess) -> Iterator[Iterator[str]]:
    with (
        httpx.Client(base_url=server.url, timeout=30) as http,
        http.stream("POST", "/generate_stream", json=LONG) as answer,
    ):
        lines = answer.iter_lines()
        assert next(lines).startswith('data:{"token"')
        yield lines


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.02)


def metric(server: ServerProcess, name: str) -> float:
    lines = httpx.get(server.url + "/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith(f"lightvl:{name} ")).split()[1])


def engine_of(server: ServerProcess) -> psutil.Process:
    children = psutil.Process(server.process.pid).children()
    return next(c for c in children if any("stub_engine" in part for part in c.cmdline()))


def test_the_front_never_loads_torch_and_stays_small() -> None:
    with ServerProcess() as server:
        assert httpx.post(server.url + "/generate", json={"inputs": "a"}).status_code == 200
        process = psutil.Process(server.process.pid)
        maps = process.memory_maps(grouped=True)
        assert not [m.path for m in maps if "torch" in m.path]
        pss = sum(m.pss for m in maps if "lightvl-arena" not in m.path)
        assert pss < 200 << 20
        assert server.stop() == 0
        assert "imported by the front: []" in server.log


def test_an_idle_front_uses_no_cpu() -> None:
    with ServerProcess() as server:
        httpx.post(server.url + "/generate", json={"inputs": "a"})
        time.sleep(0.3)
        process = psutil.Process(server.process.pid)
        before = process.cpu_times()
        time.sleep(2.0)
        after = process.cpu_times()
        assert after.user + after.system - before.user - before.system <= 0.02


def test_a_client_that_leaves_ends_its_request() -> None:
    with ServerProcess(engine=SLOW) as server:
        with streaming(server):
            wait_for(lambda: metric(server, "num_requests_running") == 1, "it runs")
        wait_for(lambda: metric(server, "num_requests_running") == 0, "it was aborted")
        assert metric(server, "aborts_total") == 1
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(server.url + "/generate", json=LONG, timeout=0.3)
        wait_for(lambda: metric(server, "aborts_total") == 2, "it was aborted without a stream")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_drain_lets_requests_end_and_refuses_new_ones(number: int) -> None:
    with ServerProcess(engine=SLOW) as server:
        body = {"inputs": "a b c", "parameters": {"max_new_tokens": 40, "ignore_eos": True}}
        answers = []
        thread = threading.Thread(
            target=lambda: answers.append(httpx.post(server.url + "/generate", json=body))
        )
        thread.start()
        wait_for(lambda: metric(server, "num_requests_running") == 1, "it runs")
        server.process.send_signal(number)
        wait_for(lambda: "draining" in server.log, "it drains")
        refused = httpx.post(server.url + "/generate", json=body)
        assert refused.status_code == 503
        assert refused.json()["error"]["type"] == "server_error"
        assert httpx.get(server.url + "/readiness").status_code == 503
        assert httpx.get(server.url + "/liveness").status_code == 200
        thread.join()
        assert answers[0].status_code == 200
        assert answers[0].json()["count_output_tokens"] == 40
        assert server.wait() == 0


def test_a_drain_has_an_end() -> None:
    with ServerProcess("--drain_s", "0.5", engine=SLOW) as server:
        with streaming(server) as lines:
            server.process.send_signal(signal.SIGTERM)
            events = [line for line in lines if line]
        assert json.loads(events[-1].removeprefix("data:"))["error"]["type"] == "server_error"
        assert server.wait() == 0


def test_a_second_signal_ends_at_once() -> None:
    with ServerProcess(engine=SLOW) as server:
        engine = engine_of(server)
        with streaming(server):
            server.process.send_signal(signal.SIGTERM)
            wait_for(lambda: "draining" in server.log, "it drains")
            server.process.send_signal(signal.SIGTERM)
            assert server.wait() == 1
        wait_for(lambda: not engine.is_running(), "the engine ended")


def test_a_lost_engine_ends_the_server() -> None:
    with ServerProcess(engine=SLOW) as server:
        statuses: list[int] = []
        thread = threading.Thread(
            target=lambda: statuses.append(
                httpx.post(server.url + "/generate", json=LONG, timeout=30).status_code
            )
        )
        thread.start()
        with streaming(server) as lines:
            wait_for(lambda: metric(server, "num_requests_running") == 2, "both run")
            engine_of(server).kill()
            events = [line for line in lines if line]
        thread.join()
        assert statuses == [503]
        error = json.loads(events[-1].removeprefix("data:"))["error"]
        assert error["type"] == "server_error"
        assert server.wait() == 1
        assert "the engine was lost (signal 9)" in server.log


def test_a_lost_front_ends_its_children() -> None:
    with ServerProcess() as server:
        children = psutil.Process(server.process.pid).children(recursive=True)
        assert children
        server.process.kill()
        _, alive = psutil.wait_procs(children, timeout=10)
        assert not alive


def test_a_signal_while_loading_ends_the_start(tmp_path: Path) -> None:
    script = tmp_path / "hanging_engine.py"
    script.write_text("import time; time.sleep(60)")
    server = ServerProcess(engine=str(script))
    try:
        wait_for(lambda: bool(psutil.Process(server.process.pid).children()), "it loads")
        wait_for(lambda: "device:" in server.log, "it handles signals")
        assert server.stop() == 0
        assert "ended while loading" in server.log
    finally:
        server.kill()


def test_an_engine_that_ends_at_start(tmp_path: Path) -> None:
    script = tmp_path / "ending_engine.py"
    script.write_text("import sys; sys.exit(3)")
    server = ServerProcess(engine=str(script))
    try:
        assert server.wait() == 1
        assert "the engine ended at start (exit code 3)" in server.log
    finally:
        server.kill()


def test_a_port_in_use_is_said_before_the_model_loads() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, said = run_server("--port", str(port))
    assert code == 1
    assert f"--port {port}" in said
    assert "in use" in said
    assert "loading" not in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--tp", "2"], ["--tp 2", "not in this build yet"]),
        (["--tp", "2", "--visual_dp", "3"], ["--visual_dp 3", "visual_dp * visual_tp"]),
        (["--device", "cuda"], ["--device cuda"]),
        (["--port", "x"], ["--port x", "integer"]),
        (["--glitter"], ["--glitter"]),
        (["--model_dir", "/nowhere"], ["/nowhere", "config.json"]),
        (["--api_keys_file", "/nowhere"], ["--api_keys_file /nowhere"]),
    ],
)
def test_what_the_user_must_change_is_exit_code_2(arguments: list[str], words: list[str]) -> None:
    code, said = run_server("--port", "0", *arguments)
    assert code == 2
    (line,) = said.strip().splitlines()
    assert all(word in line for word in words)


def test_an_empty_keys_file(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# none\n")
    code, said = run_server("--port", "0", "--api_keys_file", str(path))
    assert code == 2
    assert "at least one key" in said


def test_files_that_are_no_certificate(tmp_path: Path) -> None:
    path = tmp_path / "pem"
    path.write_text("no certificate")
    code, said = run_server("--port", "0", "--ssl_certfile", str(path), "--ssl_keyfile", str(path))
    assert code == 2
    assert "PEM certificate" in said


def test_a_bad_variable() -> None:
    code, said = run_server("--port", "0", environment={"LOADWORKER": "0"})
    assert code == 2
    assert "LOADWORKER" in said

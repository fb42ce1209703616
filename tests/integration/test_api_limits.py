"""Deadlines, the queue's bounds, keys: servers with flags of their own, on the stub engine."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from lightvl.testing.server import ServerProcess


def check(answer: httpx.Response, status: int, param: str | None = None) -> Any:
    """Checks the shape of a refusal and returns its `error`."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert answer.json()["message"] == error["message"] != ""
    assert param is None or error["param"] == param
    return error


def test_deadlines() -> None:
    stub = "-m lightvl.testing.stub_engine --step-ms 20 --max-running 1"
    with (
        ServerProcess("--request_timeout_s", "0.5", engine=stub) as server,
        httpx.Client(base_url=server.url, timeout=30) as http,
    ):
        body = {"inputs": "a b c", "parameters": {"max_new_tokens": 1000}}
        begun_s = time.monotonic()
        answer = http.post("/generate", json=body).json()
        assert 0.4 < time.monotonic() - begun_s < 5
        assert answer["finish_reason"] == "abort"
        assert 0 < answer["count_output_tokens"] < 1000
        with http.stream("POST", "/generate_stream", json=body) as first:
            lines = first.iter_lines()
            next(lines)
            short = {**body, "parameters": {"timeout_s": 0.1}}
            check(http.post("/generate", json=short), 503, "timeout_s")
            rest = [line for line in lines if line]
        last = json.loads(rest[-1].removeprefix("data:"))
        assert last["finish_reason"] == "abort"
        assert last["finished"]
        assert last["token"]["id"] == -1


def test_the_queue_is_bounded() -> None:
    stub = "-m lightvl.testing.stub_engine --step-ms 20 --max-running 1"
    flags = ["--max_queued_requests", "1"]
    with (
        ServerProcess(*flags, engine=stub) as server,
        httpx.Client(base_url=server.url, timeout=30) as http,
        ThreadPoolExecutor() as pool,
    ):
        body = {"inputs": "a b c", "parameters": {"max_new_tokens": 200, "ignore_eos": True}}
        with http.stream("POST", "/generate_stream", json=body) as running:
            lines = running.iter_lines()
            next(lines)
            waiting = pool.submit(http.post, "/generate", json=body)
            deadline_s = time.monotonic() + 20
            while "num_requests_waiting 1" not in http.get("/metrics").text:
                assert time.monotonic() < deadline_s
                time.sleep(0.01)
            refused = http.post("/generate", json=body)
            error = check(refused, 429)
            assert error["type"] == "rate_limit_error"
            assert int(refused.headers["retry-after"]) >= 1
        assert waiting.result().status_code == 200
        assert http.post("/generate", json=body).status_code == 200


def test_keys(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# ours\nalpha\n\nbeta\n")
    flags = ["--api_keys_file", str(keys), "--admin_key", "root-key"]
    with ServerProcess(*flags, environment={"LIGHTVL_API_KEY": "gamma"}) as server:
        with httpx.Client(base_url=server.url, timeout=30) as http:

            def get(path: str, key: str | None, scheme: str = "Bearer") -> httpx.Response:
                headers = {"authorization": f"{scheme} {key}"} if key is not None else {}
                return http.get(path, headers=headers)

            for path in ("/health", "/healthz", "/liveness", "/readiness"):
                assert get(path, None).status_code == 200
            for path in ("/v1/models", "/metrics", "/docs", "/get_server_info"):
                for key in (None, "alph", "alphaa", "# ours"):
                    answer = get(path, key)
                    assert check(answer, 401)["type"] == "authentication_error"
                    assert answer.headers["www-authenticate"] == "Bearer"
                for key in ("alpha", "beta", "gamma", "root-key"):
                    assert get(path, key).status_code == 200
            assert get("/v1/models", "alpha", "Basic").status_code == 401
            check(http.post("/generate", content=b"{"), 401)
            for path in ("/flush_cache", "/drain"):
                check(http.post(path, headers={"authorization": "Bearer alpha"}), 401)
            flushed = http.post("/flush_cache", headers={"authorization": "Bearer root-key"})
            assert flushed.json() == {"status": "ok"}
            info = get("/get_server_info", "alpha").text
            assert all(key not in info for key in ("root-key", "gamma"))
            drained = http.post("/drain", headers={"authorization": "Bearer root-key"})
            assert drained.status_code == 200
        assert server.wait() == 0


def test_public_metrics() -> None:
    with ServerProcess("--api_key", "k", "--metrics_public") as server:
        assert httpx.get(server.url + "/metrics").status_code == 200
        assert httpx.get(server.url + "/v1/models").status_code == 401

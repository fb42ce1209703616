"""Names of requests: in answers and in the log, which never tells what they contain."""

import json

import httpx

from lightvl.testing.server import ServerProcess


def test_requests_are_named() -> None:
    with ServerProcess(environment={"LIGHTVL_LOG_FORMAT": "json"}) as server:
        body = {"inputs": "a secret prompt", "parameters": {"made_up_key": 1}}
        named = {"x-request-id": "order-7"}
        answer = httpx.post(server.url + "/generate", json=body, headers=named)
        assert answer.headers["x-request-id"] == "order-7"
        refused = httpx.post(server.url + "/generate", content=b"{")
        assert len(refused.headers["x-request-id"]) == 32
        strange = httpx.get(server.url + "/health", headers={"x-request-id": "a b"})
        assert len(strange.headers["x-request-id"]) == 32
        log = server.log
    entries = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    about = [entry for entry in entries if entry.get("request_id") == "order-7"]
    assert any("made_up_key" in entry["message"] for entry in about)
    (done,) = [entry for entry in about if "status" in entry]
    assert (done["path"], done["status"]) == ("/generate", 200)
    assert 0 < done["seconds"] < 60
    (bad,) = [entry for entry in entries if entry.get("status") == 400]
    assert bad["request_id"] == refused.headers["x-request-id"]
    assert "secret" not in log


def test_the_server_tells_what_it_is() -> None:
    with ServerProcess("--api_key", "very-secret") as server:
        headers = {"authorization": "Bearer very-secret"}
        info = httpx.get(server.url + "/get_server_info", headers=headers)
    assert info.json()["version"].count(".") == 2
    assert info.json()["device"] == "cpu"
    assert any(choice.startswith("device: cpu") for choice in info.json()["choices"])
    assert "very-secret" not in info.text

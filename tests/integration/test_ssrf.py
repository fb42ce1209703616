"""The server against pictures at addresses that must not be reached; see `ssrf_world.py`."""

import json
import subprocess
import sys
from typing import Any

import pytest


@pytest.fixture(scope="module")
def told() -> Any:
    command = [sys.executable, "-m", "tests.integration.ssrf_world"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode == 77:
        pytest.skip("no right to make a network namespace; test_fetch_address.py tries the policy")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_no_trap_is_reached(told: Any) -> None:
    assert len(told["control"]) > 20
    assert told["traps"] == []


def test_every_attack_is_refused_and_none_breaks_the_server(told: Any) -> None:
    assert len(told["answers"]) > 300
    for url, answer in told["answers"].items():
        assert answer.startswith("400 "), (url, answer)
        assert "images[0]" in answer, (url, answer)


def test_answers_do_not_tell_what_is_there(told: Any) -> None:
    for url, answer in told["answers"].items():
        for secret in ("127.0.0.1", "10.1.2.3", "refused", "Errno", "Traceback", "example"):
            assert secret not in answer, (url, answer)


def test_public_pictures_are_fetched_between_the_attacks(told: Any) -> None:
    assert len(told["good"]) > 10
    for answer in told["good"]:
        assert answer.startswith("200 "), answer


def test_a_name_that_changes_is_only_followed_to_public_addresses(told: Any) -> None:
    statuses = {answer[:3] for answer in told["rebound"]}
    assert statuses <= {"200", "400"}
    assert "200" in statuses

"""What API keys share of the caches, on the real engine: prefixes and pictures."""

import base64
import io
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from lightvl.testing.server import ENGINE, ServerProcess

KEYS = ("alpha", "beta", "alpha", "beta")


def body() -> dict[str, Any]:
    file = io.BytesIO()
    Image.new("RGB", (300, 200), "teal").save(file, "PNG")
    picture = {"type": "base64", "data": base64.b64encode(file.getvalue()).decode()}
    return {
        "inputs": "once upon a time " * 40 + "<image>",
        "parameters": {"max_new_tokens": 2},
        "multimodal_params": {"images": [picture]},
    }


@pytest.mark.parametrize(
    ("namespace", "hits"),
    [("key", [False, False, True, True]), ("none", [False, True, True, True])],
)
def test_caches_are_shared_within_a_namespace(
    tmp_path: Path, namespace: str, hits: list[bool]
) -> None:
    file = tmp_path / "keys"
    file.write_text("alpha\nbeta\n")
    flags = ["--api_keys_file", str(file), "--cache_namespace", namespace]
    usages = []
    with ServerProcess(*flags, engine=ENGINE, environment={"OMP_NUM_THREADS": "1"}) as server:
        for key in KEYS:
            headers = {"authorization": f"Bearer {key}"}
            answer = httpx.post(server.url + "/generate", json=body(), headers=headers, timeout=60)
            assert answer.status_code == 200, answer.text
            usages.append(answer.json()["input_usage"])
    assert [usage["input_cached_tokens"] > 0 for usage in usages] == hits
    pictures = [usage["input_image_cached_tokens"] for usage in usages]
    assert pictures == [hit * usages[0]["input_image_tokens"] for hit in hits]

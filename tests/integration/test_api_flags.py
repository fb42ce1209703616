"""Flags that change how the front serves: origins, a path prefix, TLS, cache namespaces."""

import base64
import http.server
import io
import shutil
import socket
import ssl
import subprocess
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from lightvl.testing.server import ServerProcess


def test_origins_for_browsers() -> None:
    with ServerProcess("--cors_origins", "https://a.example, https://b.example") as server:
        asked = {"origin": "https://b.example", "access-control-request-method": "POST"}
        allowed = httpx.options(server.url + "/generate", headers=asked)
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == "https://b.example"
        other = httpx.get(server.url + "/health", headers={"origin": "https://c.example"})
        assert "access-control-allow-origin" not in other.headers


def test_a_path_prefix() -> None:
    with ServerProcess("--root_path", "/vl", "--api_key", "k") as server:
        assert httpx.get(server.url + "/health").status_code == 200
        assert httpx.get(server.url + "/v1/models").status_code == 401
        headers = {"authorization": "Bearer k"}
        document = httpx.get(server.url + "/openapi.json", headers=headers).json()
        assert document["servers"] == [{"url": "/vl"}]
        assert httpx.get(server.url + "/v1/models", headers=headers).status_code == 200


def test_tls(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl command to make a certificate with")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    command += ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    flags = ["--ssl_keyfile", str(key), "--ssl_certfile", str(certificate)]
    with ServerProcess(*flags) as server:
        assert server.url.startswith("https://")
        context = ssl.create_default_context(cafile=str(certificate))
        answer = httpx.post(server.url + "/generate", json={"inputs": "a"}, verify=context)
        assert answer.status_code == 200


def red_square() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (30, 30), "red").save(file, "PNG")
    return file.getvalue()


def test_pictures_are_shared_only_within_a_key(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("alpha\nbeta\n")
    images = [{"type": "base64", "data": base64.b64encode(red_square()).decode()}]
    body: dict[str, Any] = {
        "inputs": "<image>",
        "parameters": {"max_new_tokens": 1, "return_details": True},
        "multimodal_params": {"images": images},
    }

    def cached(url: str, key: str) -> bool:
        headers = {"authorization": f"Bearer {key}"}
        answer = httpx.post(url + "/generate", json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        return bool(answer.json()["images"][0]["cached"])

    asked = ["alpha", "alpha", "beta", "beta", "alpha"]
    for namespace, expected in (
        ("key", [False, True, False, True, True]),
        ("none", [False, True, True, True, True]),
    ):
        flags = ["--api_keys_file", str(keys), "--cache_namespace", namespace]
        with ServerProcess(*flags) as server:
            assert [cached(server.url, key) for key in asked] == expected


class _Pictures(http.server.BaseHTTPRequestHandler):
    """Serves one PNG under every address."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", str(len(red_square())))
        self.end_headers()
        self.wfile.write(red_square())

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_pictures_by_address() -> None:
    def ask(server: ServerProcess, url: str) -> httpx.Response:
        images = [{"type": "url", "data": url}]
        body = {"inputs": "<image>", "multimodal_params": {"images": images}}
        return httpx.post(server.url + "/generate", json=body, timeout=30)

    with (
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Pictures) as site,
        ServerProcess("--allow_private_media") as open_server,
        ServerProcess() as closed_server,
    ):
        threading.Thread(target=site.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{site.server_address[1]}/red.png"
        answer = ask(open_server, url)
        assert answer.status_code == 200, answer.text
        assert answer.json()["input_usage"]["input_image_tokens"] > 0
        refused = ask(closed_server, url)
        assert refused.status_code == 400
        assert "images[0]" in refused.json()["message"]
        site.shutdown()


def test_files_below_a_directory(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open" / "red.png").write_bytes(red_square())
    (tmp_path / "closed.png").write_bytes(red_square())
    with ServerProcess("--allowed_local_media_path", str(tmp_path / "open")) as server:
        for path, status in (("open/red.png", 200), ("closed.png", 400), ("open/none.png", 400)):
            part = {"type": "image_url", "image_url": {"url": f"file://{tmp_path}/{path}"}}
            body = {"messages": [{"role": "user", "content": [part]}], "max_tokens": 1}
            answer = httpx.post(server.url + "/v1/chat/completions", json=body)
            assert answer.status_code == status, answer.text


def test_a_model_without_pictures() -> None:
    with ServerProcess("--disable_multimodal") as server:
        body = {
            "inputs": "<image>",
            "multimodal_params": {"images": [{"type": "url", "data": "x"}]},
        }
        refused = httpx.post(server.url + "/generate", json=body)
        assert refused.status_code == 400
        assert "takes no pictures" in refused.json()["message"]
        assert httpx.post(server.url + "/generate", json={"inputs": "text"}).status_code == 200


def test_the_specifications_launch_line() -> None:
    environment = {"INTERNVL_IMAGE_LENGTH": "256", "LOADWORKER": "12"}
    flags = ["--tp", "1", "--mem_fraction", "0.8", "--trust_remote_code", "--enable_multimodal"]
    with ServerProcess(*flags, environment=environment) as server:
        assert httpx.post(server.url + "/generate", json={"inputs": "a"}).status_code == 200
        assert server.log.count("INTERNVL_IMAGE_LENGTH=256") == 1
    flags = ["--visual-infer-batch-size", "2", "--cache-capacity", "500", "--visual-dp", "1"]
    with ServerProcess(*flags, "--visual-tp", "1") as server:
        info = httpx.get(server.url + "/get_server_info").json()
        assert info["cache_capacity"] == 500


def test_what_is_no_http() -> None:
    with ServerProcess() as server:
        address = httpx.URL(server.url)
        with socket.create_connection((address.host, address.port or 0), timeout=10) as sock:
            sock.sendall(b"hello there\r\n\r\n")
            answer = b""
            while data := sock.recv(4096):
                answer += data
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 ")
        assert b'"code":"invalid_http"' in body
        assert httpx.get(server.url + "/health").status_code == 200

"""A conversation with pictures over `/v1/chat/completions`, streamed, with the standard library."""

import base64
import io
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

TIMEOUT_S = 600.0
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class ChatError(Exception):
    """What the user is told; the conversation goes on."""


class Conversation:
    """What was said so far, and the server that answers.

    Args:
        url: Up to where `/v1/…` follows.
        model: Its name there; None asks for the first that is listed.
        api_key: The server's key, or None.
        options: More fields of each request, such as `temperature`.

    Attributes:
        messages: What was said, as the route takes it.
        usage: What the server counted for the last answer; empty where it doesn't tell.

    Raises:
        ChatError: There is no server, or it has no models.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        api_key: str | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        self.messages: list[dict[str, Any]] = []
        self.usage: dict[str, Any] = {}
        self._url = url
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._options = options or {}
        host = urllib.parse.urlsplit(url).hostname
        proxies = [urllib.request.ProxyHandler({})] if host in LOOPBACK else []
        self._opener = urllib.request.build_opener(*proxies)
        self.model = model or self._first_model()

    def say(self, role: str, text: str) -> None:
        """Adds a message without asking for an answer."""
        self.messages.append({"role": role, "content": text})

    def ask(self, text: str, pictures: list[str]) -> Iterator[str]:
        """Adds a question and yields the answer's text as it comes.

        When the caller stops before the end, the server is told by the closed connection, and
        what came so far is the answer. A question that fails is taken back.

        Args:
            text: The question.
            pictures: URLs, as `picture_url` makes them.

        Raises:
            ChatError: The server refuses or is gone.
        """
        parts: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": url}} for url in pictures
        ]
        content: Any = [*parts, {"type": "text", "text": text}] if parts else text
        self.messages.append({"role": "user", "content": content})
        return self._answer()

    def again(self) -> Iterator[str]:
        """Asks the last question anew.

        Raises:
            ChatError: There is none, or as `ask`.
        """
        if self.messages and self.messages[-1]["role"] == "assistant":
            self.messages.pop()
        if not self.messages or self.messages[-1]["role"] != "user":
            raise ChatError("there is no question yet")
        return self._answer()

    def clear(self) -> None:
        """Forgets all but the system's message."""
        self.messages = [message for message in self.messages if message["role"] == "system"]

    def _answer(self) -> Iterator[str]:
        body = {
            "model": self.model,
            "messages": self.messages,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self._options,
        }
        said: list[str] = []
        self.usage = {}
        failed = False
        try:
            with self._open("/v1/chat/completions", json.dumps(body).encode()) as response:
                for line in response:
                    for text in self._texts(line):
                        said.append(text)
                        yield text
        except (OSError, HTTPException) as error:
            failed = True
            raise ChatError(f"the connection broke: {error}") from error
        except ChatError:
            failed = True
            raise
        finally:
            if said:
                self.say("assistant", "".join(said))
            elif failed:
                self.messages.pop()

    def _texts(self, line: bytes) -> Iterator[str]:
        payload = line.removeprefix(b"data:").strip()
        if not line.startswith(b"data:") or payload == b"[DONE]":
            return
        event = json.loads(payload)
        if event.get("error"):
            raise ChatError(_message(event))
        self.usage = event.get("usage") or self.usage
        for choice in event.get("choices") or ():
            if text := (choice.get("delta") or {}).get("content"):
                yield text

    def _first_model(self) -> str:
        with self._open("/v1/models", None) as response:
            try:
                return str(json.load(response)["data"][0]["id"])
            except (LookupError, TypeError, ValueError):
                raise ChatError("the server lists no models: name one with --model") from None

    def _open(self, path: str, body: bytes | None) -> Any:  # noqa: ANN401 (urllib's own)
        request = urllib.request.Request(self._url + path, body, self._headers)
        try:
            return self._opener.open(request, timeout=TIMEOUT_S)
        except urllib.error.HTTPError as error:
            with error:
                try:
                    message = _message(json.loads(error.read()))
                except ValueError:
                    message = error.reason
            raise ChatError(f"{error.code}: {message}") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise ChatError(f"no answer from {self._url}: {reason}") from None


def picture_url(place: str) -> str:
    """Returns a picture as the server takes it: a web address as it is, a file as a data URL.

    Raises:
        ChatError: There is no such file, or it is no picture.
    """
    if urllib.parse.urlsplit(place).scheme in ("http", "https"):
        return place
    try:
        data = Path(place).expanduser().read_bytes()
        with Image.open(io.BytesIO(data)) as picture:
            kind = Image.MIME[picture.format or ""]
    except OSError as error:
        unknown = isinstance(error, UnidentifiedImageError)
        raise ChatError(f"{place}: {'not a picture' if unknown else error.strerror}") from None
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _message(body: Any) -> str:  # noqa: ANN401 (any server's)
    error = body.get("error", body) if isinstance(body, dict) else body
    message = error.get("message", error) if isinstance(error, dict) else error
    return str(message)[:500]

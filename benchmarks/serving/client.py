"""Our side: a server process, and a client that streams from it."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from types import TracebackType

import msgspec

from benchmarks.serving.workload import Answer, Question
from lightvl.testing.server import ENGINE, ServerProcess
from lightvl.tokenizer.tokenizer import Tokenizer


class _Token(msgspec.Struct):
    id: int


class _Event(msgspec.Struct):
    token: _Token


_DECODER = msgspec.json.Decoder(_Event)


class Ours:
    """`with Ours(...) as ours:`; a server for the time of the block.

    Args:
        model_dir: The checkpoint.
        tokenizer: Of the same checkpoint.
        num_threads: Of the engine.
        flags: More flags of the server.
    """

    name = "lightvl"

    def __init__(
        self, model_dir: Path, tokenizer: Tokenizer, num_threads: int, *flags: str
    ) -> None:
        self._tokenizer = tokenizer
        self.server = ServerProcess(
            "--model_dir",
            str(model_dir),
            *flags,
            engine=ENGINE,
            environment={"OMP_NUM_THREADS": str(num_threads)},
        )

    def __enter__(self) -> "Ours":
        self.server.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.server.__exit__(kind, error, trace)

    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """Sends all questions at once, each on its own connection, and reads the streams."""
        return asyncio.run(self._ask(questions))

    async def _ask(self, questions: Sequence[Question]) -> list[Answer]:
        bodies = [self._request(question) for question in questions]
        return list(await asyncio.gather(*(self._stream(body) for body in bodies)))

    def _request(self, question: Question) -> bytes:
        ids: list[int | None] = list(question.text_ids)
        images = []
        if question.picture is not None:
            ids = [self._tokenizer.img_start_id, self._tokenizer.img_end_id, *ids]
            images = [{"type": "base64", "data": question.picture_base64}]
        body = msgspec.json.encode(
            {
                "inputs": ids,
                "parameters": {
                    "max_new_tokens": question.num_tokens,
                    "do_sample": False,
                    "ignore_eos": True,
                },
                "multimodal_params": {"images": images},
            }
        )
        head = (
            f"POST /generate_stream HTTP/1.1\r\nHost: {self._host}\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    async def _stream(self, request: bytes) -> Answer:
        answer = Answer(perf_counter())
        address, _, port = self._host.rpartition(":")
        reader, writer = await asyncio.open_connection(address, int(port))
        writer.write(request)
        seen = bytearray()
        lines = []
        while chunk := await reader.read(1 << 16):
            now_s = perf_counter()
            seen += chunk
            *whole, rest = seen.split(b"\n")
            events = [line for line in whole if line.startswith(b"data:")]
            answer.token_s += [now_s] * len(events)
            lines += events
            seen = bytearray(rest)
        writer.close()
        if not lines:
            raise RuntimeError(f"no answer: {seen.decode()}\n{self.server.log}")
        answer.ids = [_DECODER.decode(line[5:]).token.id for line in lines]
        return answer

    @property
    def _host(self) -> str:
        return self.server.url.removeprefix("http://")

"""A server process for tests: on a free port, with the stub engine unless told otherwise."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from types import TracebackType

_START_S = 60.0
_STOP_S = 40.0
_ADDRESS = re.compile(r"is served on (https?://\S+)")
_MAIN = """
import sys
from lightvl.launch import main
code = main(sys.argv[2:], command=sys.argv[1].split())
loaded = [name for name in ("torch", "transformers") if name in sys.modules]
print("imported by the front:", loaded, file=sys.stderr)
sys.exit(code)
"""

STUB = "-m lightvl.testing.stub_engine"
ENGINE = "-m lightvl.engine.worker"


class ServerProcess:
    """`with ServerProcess("--max_images", "2") as server: ...`; the process ends with the block.

    Args:
        arguments: Flags of the server.
        engine: The engine's command line behind the interpreter.
        environment: Variables to set for the server.

    Attributes:
        process: The front's.
        url: Where it serves, once started.
    """

    def __init__(
        self,
        *arguments: str,
        engine: str = STUB,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.url = ""
        self._output = tempfile.TemporaryFile("w+b")  # noqa: SIM115 (closed by `kill`)
        command = [sys.executable, "-c", _MAIN, engine, "--port", "0", *arguments]
        self.process = subprocess.Popen(
            command, stderr=self._output, env={**os.environ, **(environment or {})}
        )

    def __enter__(self) -> "ServerProcess":
        deadline_s = time.monotonic() + _START_S
        while not (match := _ADDRESS.search(self.log)):
            if self.process.poll() is not None or time.monotonic() > deadline_s:
                log = self.log
                self.kill()
                raise RuntimeError(f"the server did not start:\n{log}")
            time.sleep(0.02)
        self.url = match[1]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.stop()
        finally:
            self.kill()

    @property
    def log(self) -> str:
        """Everything that the server has written."""
        size = os.fstat(self._output.fileno()).st_size
        return os.pread(self._output.fileno(), size, 0).decode()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Sends a signal, waits for the end and returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Waits for the end and returns the exit code."""
        return self.process.wait(_STOP_S)

    def kill(self) -> None:
        """Ends the process if it still runs, and closes its log."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._output.close()

"""How child processes end."""

import subprocess

CLOSE_WAIT_S = 5.0
"""Seconds a child gets to exit by itself once its channel is closed."""


def end_process(process: subprocess.Popen[bytes]) -> int:
    """Waits for a child that is about to exit; kills it if it doesn't. Returns its code."""
    try:
        return process.wait(CLOSE_WAIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def how_ended(code: int) -> str:
    """Says an exit code in words; negative ones are signals."""
    return f"signal {-code}" if code < 0 else f"exit code {code}"

"""What a confined process can't do, tried in processes of their own."""

import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest

HEAD = """
import ctypes, errno, os, socket, subprocess, sys, threading
from lightvl.multimodal.sandbox import confine
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(38, 1, 0, 0, 0)
outside = socket.socketpair()
ready = socket.create_server(("127.0.0.1", 0))
holds = confine()
if not {needs!r} <= set(holds):
    raise SystemExit(77)
def refused(call, *codes):
    try:
        call()
    except OSError as error:
        assert error.errno in (codes or (errno.EPERM, errno.EACCES)), error
    else:
        raise AssertionError("was allowed")
"""
ATTEMPTS = {
    "read a file": ("landlock", "refused(lambda: open(sys.argv[1]))"),
    "write a file": ("landlock", "refused(lambda: open(sys.argv[1], 'w'))"),
    "list a folder": ("landlock", "refused(lambda: os.listdir('/'))"),
    "remove a file": ("landlock", "refused(lambda: os.unlink(sys.argv[1]))"),
    "open a socket": ("seccomp", "refused(socket.socket)"),
    "accept a connection": ("seccomp", "refused(ready.accept)"),
    "run a program": ("seccomp", "refused(lambda: os.execv('/bin/true', ['true']))"),
    "fork": ("seccomp", "refused(os.fork)"),
    "start a process": ("seccomp", "refused(lambda: subprocess.Popen(['/bin/true']))"),
    "signal its parent": ("seccomp", "refused(lambda: os.kill(os.getppid(), 0))"),
}
ALLOWED = """
outside[0].send(b"x")
assert outside[1].recv(1) == b"x"
seen = []
thread = threading.Thread(target=lambda: seen.append(bytearray(8 << 20)))
thread.start()
thread.join()
assert seen
"""


def run(needs: set[str], body: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A process that confines itself, then does `body`; `sys.argv[1]` is a file of its own."""
    file = folder / "file"
    file.write_text("secret")
    command = [sys.executable, "-c", HEAD.format(needs=needs) + body, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode == 77:
        pytest.skip(f"this kernel has no {' and '.join(sorted(needs))}")
    assert file.read_text() == "secret"
    return done


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_a_confined_process_can_not(attempt: str, tmp_path: Path) -> None:
    needs, body = ATTEMPTS[attempt]
    done = run({needs}, body, tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_confined_process_still_computes_and_answers(tmp_path: Path) -> None:
    done = run(set(), ALLOWED, tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(platform.machine() != "x86_64", reason="these system calls are x86-64's")
def test_calls_of_another_table_kill_the_process(tmp_path: Path) -> None:
    done = run({"seccomp"}, "libc.syscall(0x40000000 + 39)", tmp_path)  # getpid, as x32 has it
    assert done.returncode == -signal.SIGSYS

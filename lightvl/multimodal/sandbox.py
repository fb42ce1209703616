"""What a media worker may no longer do once it has started: open files or sockets, run programs.

Two mechanisms of the Linux kernel, each used where it is there. Landlock takes every file and TCP
port away; a seccomp filter answers EPERM to the system calls that reach other processes, programs
or networks. Both hold for good and need no privilege, but `no_new_privs`.

Sources: landlock(7), seccomp(2), linux/landlock.h, linux/filter.h, linux/seccomp.h.
"""

import ctypes
import errno
import os
import platform
import struct

_LANDLOCK_CREATE_RULESET, _LANDLOCK_RESTRICT_SELF = 444, 446  # on every architecture
_LANDLOCK_ABI_VERSION = 1
_FILE_RIGHTS_BY_ABI = {1: 13, 2: 14, 3: 15, 5: 16}  # ABI -> number of the rights that it knows
_TCP_SINCE_ABI, _TCP_RIGHTS = 4, 0b11  # bind, connect

_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2
_LOAD_WORD, _JUMP_IF_EQUAL, _JUMP_IF_ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER_AT, _ARCHITECTURE_AT, _FLAGS_AT = 0, 4, 16  # in struct seccomp_data; little endian
_X32_BIT, _CLONE_THREAD = 0x4000_0000, 0x0001_0000


_REFUSED = {  # system call: its numbers on x86-64 and aarch64
    "socket": (41, 198),
    "connect": (42, 203),
    "accept": (43, 202),
    "bind": (49, 200),
    "listen": (50, 201),
    "socketpair": (53, 199),
    "accept4": (288, 242),
    "execve": (59, 221),
    "execveat": (322, 281),
    "fork": (57, None),
    "vfork": (58, None),
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "mount": (165, 40),
    "unshare": (272, 97),
    "setns": (308, 268),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "io_uring_setup": (425, 425),
}
_CLONE, _CLONE3 = (56, 220), 435
_AUDIT_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


def confine() -> tuple[str, ...]:
    """Gives up files, networks, programs and other processes for good.

    All that is needed later must be imported and opened before. The process must have set
    `no_new_privs` and have one thread.

    Returns:
        What this kernel enforces, of `landlock` and `seccomp`.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    holds = {"landlock": _restrict_files(libc), "seccomp": _filter_calls(libc)}
    return tuple(name for name, held in holds.items() if held)


def _restrict_files(libc: ctypes.CDLL) -> bool:
    """Handles every right that the kernel knows and grants none."""
    abi = libc.syscall(_LANDLOCK_CREATE_RULESET, None, 0, _LANDLOCK_ABI_VERSION)
    if abi < 1:
        return False
    num_rights = max(count for since, count in _FILE_RIGHTS_BY_ABI.items() if since <= abi)
    attributes = struct.pack("=Q", (1 << num_rights) - 1)
    if abi >= _TCP_SINCE_ABI:
        attributes += struct.pack("=Q", _TCP_RIGHTS)
    ruleset = libc.syscall(_LANDLOCK_CREATE_RULESET, attributes, len(attributes), 0)
    if ruleset < 0:
        return False
    try:
        return bool(libc.syscall(_LANDLOCK_RESTRICT_SELF, ruleset, 0) == 0)
    finally:
        os.close(ruleset)


def _filter_calls(libc: ctypes.CDLL) -> bool:
    if platform.machine() not in _AUDIT_ARCHITECTURES:
        return False
    program = _program(platform.machine())
    code = ctypes.create_string_buffer(program, len(program))
    head = struct.pack("@HP", len(program) // 8, ctypes.addressof(code))  # struct sock_fprog
    return bool(libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, head, 0, 0) == 0)


def _program(machine: str) -> bytes:
    """Returns the filter, in the kernel's classic BPF."""
    column = list(_AUDIT_ARCHITECTURES).index(machine)
    refused = [numbers[column] for numbers in _REFUSED.values()]
    allow, kill = _step(_RETURN, _ALLOW), _step(_RETURN, _KILL)
    refuse, absent = (_step(_RETURN, _ERRNO | code) for code in (errno.EPERM, errno.ENOSYS))
    steps = [
        _step(_LOAD_WORD, _ARCHITECTURE_AT),
        _step(_JUMP_IF_EQUAL, _AUDIT_ARCHITECTURES[machine], 1, 0),
        kill,
        _step(_LOAD_WORD, _NUMBER_AT),
        _step(_JUMP_IF_ANY_BIT, _X32_BIT, 0, 1),
        kill,
    ]
    for number in (n for n in refused if n is not None):
        steps += [_step(_JUMP_IF_EQUAL, number, 0, 1), refuse]
    # clone3 keeps its flags in memory, where a filter can't look: the C library falls back to clone
    steps += [_step(_JUMP_IF_EQUAL, _CLONE3, 0, 1), absent]
    steps += [
        _step(_JUMP_IF_EQUAL, _CLONE[column], 0, 3),
        _step(_LOAD_WORD, _FLAGS_AT),
        _step(_JUMP_IF_ANY_BIT, _CLONE_THREAD, 1, 0),
        refuse,
        allow,
    ]
    return b"".join(steps)


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)

"""A seccomp filter on top of the sandbox's own: no sockets, no harm to others of the same user.

Landlock does not cover some calls by which a process can hurt another one of its user, or its
files. The limits and priorities of other processes are refused here. Modes, owners and times of
files cannot be changed, and a request to change them is ignored.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct
from collections.abc import Mapping

from tools.repl.kernel import LIBC, PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, prctl

# BPF instructions: load a word, compare it and jump, return a verdict.
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06

# Verdicts; PRETEND reports success without making the call, ABSENT reports an unknown call.
ALLOW, REFUSE, PRETEND, ABSENT = 0x7FFF0000, 0x50001, 0x50000, 0x50000 | errno.ENOSYS
KILL = 0x80000000

# Offsets in the kernel's `seccomp_data`: call number, machine, low words of the arguments.
NUMBER, MACHINE, FIRST_ARGUMENT, SECOND_ARGUMENT = 0, 4, 16, 24

X32_BIT = 0x40000000
"""Bit of the call numbers of x86's 32-bit pointers, whose table is another one."""

NAMESPACE_FLAGS = 0x7E020000
"""Flags of clone(2) that make namespaces."""

CLONE_THREAD = 0x10000

PLAIN_FLAGS = 0x013041FF
"""Flags of clone(2) that fork, vfork and posix_spawn use, and the signal at the child's end.

Other flags would make a child of another process, or the kernel would refuse them only after
sandlock has counted a process that never comes to be.
"""

CLONE3 = 435
"""The same number on every machine. It hides its flags from filters; libc falls back to clone."""

MACHINES = {"x86_64": (0, 0xC000003E, 56), "aarch64": (1, 0xC00000B7, 220)}
"""Each machine's column in the tables below, its AUDIT_ARCH and its number of clone."""

# Without setsid and setpgid the sandbox stays one process group: one kill ends it.
REFUSED = {
    "ptrace": (101, 117),
    "setpgid": (109, 154),
    "setsid": (112, 157),
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "pidfd_getfd": (438, 438),
    "memfd_secret": (447, 447),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    "socket": (41, 198),
    "syslog": (103, 116),
    "process_madvise": (440, 440),
    "fanotify_init": (300, 262),
    "open_by_handle_at": (304, 265),
    "sched_setattr": (314, 274),
    "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118),
}

OWN_ONLY = {"prlimit64": (302, 261), "sched_setaffinity": (203, 122)}
"""Refused unless the first argument, a process, is 0: the caller itself."""

SIGNALS = {
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
}
"""Refused too if the kernel cannot confine signals (Landlock before version 6)."""

OWNER_CALLS = {"fcntl": (72, 25), "ioctl": (16, 29)}
"""Calls by which a descriptor can be made to send signals."""

OWNER_REQUESTS = {"fcntl": (8, 10, 15), "ioctl": (0x8901, 0x8902)}
"""Second arguments that do so; these are refused together with `SIGNALS`."""

PRETENDED = {
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "fchown": (93, 55),
    "fchownat": (260, 54),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "utimensat": (280, 88),
    "file_setattr": (469, 469),
    "chmod": (90, None),
    "chown": (92, None),
    "lchown": (94, None),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
}
"""Calls that do nothing and report success."""


def _instruction(code: int, if_true: int, if_false: int, value: int) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, value)


def _list_numbers(table: Mapping[str, tuple[int, int | None]], column: int) -> list[int]:
    column_numbers = [numbers[column] for numbers in table.values()]
    return [number for number in column_numbers if number is not None]


def _build_owner_rules(column: int) -> list[bytes]:
    """Refuse to name the process that a descriptor signals."""
    rules = []
    for name, numbers in OWNER_CALLS.items():
        requests = OWNER_REQUESTS[name]
        rules += [
            _instruction(EQUAL, 0, 2 + 2 * len(requests), numbers[column]),
            _instruction(LOAD, 0, 0, SECOND_ARGUMENT),
        ]
        for request in requests:
            rules += [
                _instruction(EQUAL, 0, 1, request),
                _instruction(RETURN, 0, 0, REFUSE),
            ]
        rules.append(_instruction(RETURN, 0, 0, ALLOW))
    return rules


def build_program(machine: str, signals: bool = True) -> bytes | None:
    """Return the filter's instructions; None for a machine without a table.

    Without `signals`, no process may signal another, not even its own children.
    """
    if machine not in MACHINES:
        return None
    column, arch, clone = MACHINES[machine]
    rules = [
        _instruction(LOAD, 0, 0, MACHINE),
        _instruction(EQUAL, 1, 0, arch),
        _instruction(RETURN, 0, 0, KILL),
        _instruction(LOAD, 0, 0, NUMBER),
        _instruction(AT_LEAST, 0, 1, X32_BIT),
        _instruction(RETURN, 0, 0, REFUSE),
    ]
    table = REFUSED if signals else {**REFUSED, **SIGNALS}
    refused = [(number, REFUSE) for number in _list_numbers(table, column)]
    pretended = [(number, PRETEND) for number in _list_numbers(PRETENDED, column)]
    for number, verdict in [(CLONE3, ABSENT), *refused, *pretended]:
        rules += [_instruction(EQUAL, 0, 1, number), _instruction(RETURN, 0, 0, verdict)]
    for number in _list_numbers(OWN_ONLY, column):
        rules += [
            _instruction(EQUAL, 0, 4, number),
            _instruction(LOAD, 0, 0, FIRST_ARGUMENT),
            _instruction(EQUAL, 0, 1, 0),
            _instruction(RETURN, 0, 0, ALLOW),
            _instruction(RETURN, 0, 0, REFUSE),
        ]
    rules += [] if signals else _build_owner_rules(column)
    rules += [
        _instruction(EQUAL, 0, 4, clone),
        _instruction(LOAD, 0, 0, FIRST_ARGUMENT),
        _instruction(ANY_BIT, 3, 0, NAMESPACE_FLAGS),
        _instruction(ANY_BIT, 1, 0, CLONE_THREAD),
        _instruction(ANY_BIT, 1, 0, 0xFFFFFFFF & ~PLAIN_FLAGS),
        _instruction(RETURN, 0, 0, ALLOW),
        _instruction(RETURN, 0, 0, REFUSE),
    ]
    return b"".join(rules)


def filter_system_calls(signals: bool) -> bool:
    """Install the filter in this process and its descendants; False if the machine has none."""
    program = build_program(platform.machine(), signals)
    if program is None:
        return False
    instructions = ctypes.create_string_buffer(program)
    address = ctypes.addressof(instructions)
    head = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program) // 8, address))
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    if LIBC.prctl(PR_SET_SECCOMP, 2, head, 0, 0) < 0:
        raise OSError(ctypes.get_errno(), "seccomp filter refused")
    return True

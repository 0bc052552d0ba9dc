"""A seccomp filter on top of the sandbox's own: no sockets, no harm to others of the same user.

Landlock says nothing of some calls by which a process can hurt another of its user, or its files:
limits and priorities of others are refused here; modes, owners and times of files cannot be
changed, and asking is ignored.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct
from collections.abc import Mapping

from tools.repl.kernel import LIBC, PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, prctl

ALLOW, REFUSE, PRETEND, ABSENT = 0x7FFF0000, 0x50001, 0x50000, 0x50000 | errno.ENOSYS


KILL = 0x80000000


NAMESPACES = 0x7E020000
"""Flags of clone(2) that make namespaces."""


CLONE_THREAD = 0x10000


PLAIN = 0x013041FF
"""Flags of clone(2) that fork, vfork and posix_spawn use, and the signal at the child's end.

Others would make a child of somebody else, or be refused by the kernel only after sandlock has
counted the process that never comes to be.
"""


CLONE3 = 435
"""The same on every machine; it hides its flags from filters, and libc falls back to clone."""

MACHINES = {"x86_64": (0, 0xC000003E, 56), "aarch64": (1, 0xC00000B7, 220)}
"""Machine: column in the tables below, its AUDIT_ARCH, its number of clone."""
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
"""Refused too where the kernel cannot keep signals inside (Landlock before version 6)."""


OWNERS = {"fcntl": (72, 25), "ioctl": (16, 29)}
"""Ways to have a descriptor send signals: refused there for these second arguments."""


OWNER_REQUESTS = {"fcntl": (8, 10, 15), "ioctl": (0x8901, 0x8902)}


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


def _step(code: int, yes: int, no: int, value: int) -> bytes:
    return struct.pack("HBBI", code, yes, no, value)


def _numbers(table: Mapping[str, tuple[int, int | None]], column: int) -> list[int]:
    found = [numbers[column] for numbers in table.values()]
    return [number for number in found if number is not None]


def _owner_steps(column: int) -> list[bytes]:
    """Refuse to name the process that a descriptor signals."""
    steps = []
    for name, numbers in OWNERS.items():
        requests = OWNER_REQUESTS[name]
        steps += [
            _step(0x15, 0, 2 + 2 * len(requests), numbers[column]),
            _step(0x20, 0, 0, 24),
        ]
        for request in requests:
            steps += [_step(0x15, 0, 1, request), _step(0x06, 0, 0, REFUSE)]
        steps.append(_step(0x06, 0, 0, ALLOW))
    return steps


def program(machine: str, signals: bool = True) -> bytes | None:
    """The filter's instructions; None for a machine without a table.

    Without `signals`, no process may signal another, not even its own children.
    """
    if machine not in MACHINES:
        return None
    column, arch, clone = MACHINES[machine]
    load, equal, at_least, any_bit, give = 0x20, 0x15, 0x35, 0x45, 0x06
    steps = [
        _step(load, 0, 0, 4),
        _step(equal, 1, 0, arch),
        _step(give, 0, 0, KILL),
        _step(load, 0, 0, 0),
        _step(at_least, 0, 1, 0x40000000),
        _step(give, 0, 0, REFUSE),
    ]
    table = REFUSED if signals else {**REFUSED, **SIGNALS}
    refused = [(number, REFUSE) for number in _numbers(table, column)]
    pretended = [(number, PRETEND) for number in _numbers(PRETENDED, column)]
    for number, action in [(CLONE3, ABSENT), *refused, *pretended]:
        steps += [_step(equal, 0, 1, number), _step(give, 0, 0, action)]
    for number in _numbers(OWN_ONLY, column):
        steps += [
            _step(equal, 0, 4, number),
            _step(load, 0, 0, 16),
            _step(equal, 0, 1, 0),
            _step(give, 0, 0, ALLOW),
            _step(give, 0, 0, REFUSE),
        ]
    steps += [] if signals else _owner_steps(column)
    steps += [
        _step(equal, 0, 4, clone),
        _step(load, 0, 0, 16),
        _step(any_bit, 3, 0, NAMESPACES),
        _step(any_bit, 1, 0, CLONE_THREAD),
        _step(any_bit, 1, 0, 0xFFFFFFFF & ~PLAIN),
        _step(give, 0, 0, ALLOW),
        _step(give, 0, 0, REFUSE),
    ]
    return b"".join(steps)


def filter_system_calls(signals: bool) -> bool:
    """Install the filter in this process and all it will ever start; False where there is none."""
    body = program(platform.machine(), signals)
    if body is None:
        return False
    instructions = ctypes.create_string_buffer(body)
    address = ctypes.addressof(instructions)
    head = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(body) // 8, address))
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    if LIBC.prctl(PR_SET_SECCOMP, 2, head, 0, 0) < 0:
        raise OSError(ctypes.get_errno(), "seccomp filter refused")
    return True

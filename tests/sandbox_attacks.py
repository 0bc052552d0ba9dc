# ruff: noqa: E501 - a cell is one string, as it is sent
"""Hostile cells. Each prints LEAK if it succeeds.

The suite fills in: {canary} a host file, {folder} its folder, {others} a host process, the learner, the hub and
another state's process, {tcp}, {udp} ports and {unix}, {abstract} addresses where the host listens, {victim} the work
folder of another session, {repository} the project, {secret} a text that no cell may ever see.
"""

from dataclasses import dataclass

HEADER = """
import os, sys, signal, time, ctypes, socket, resource, subprocess
libc = ctypes.CDLL(None, use_errno=True)
def tried(what, action):
    try:
        value = action()
    except (NameError, TypeError, AttributeError, SyntaxError) as error:
        print(what, 'LEAK: the attack itself is wrong:', error)
        return
    except BaseException as error:
        print(what, 'refused', type(error).__name__)
        return
    if value in (-1, None, False): print(what, 'refused', value)
    else: print(what, 'LEAK', repr(value)[:200])
def sys_call(number, *arguments):
    return libc.syscall(number, *[ctypes.c_ulong(a) if isinstance(a, int) else a for a in arguments])
"""


@dataclass(frozen=True)
class Attack:
    """One hostile cell, and its expected end."""

    name: str
    cell: str
    message: str = ""
    """Part of the cell's text."""
    goes_on: bool | None = None
    """True if the state after the cell lives on; None: either way."""


def refused(name: str, cell: str) -> Attack:
    """An attack that is refused call by call, so that the cell itself goes on."""
    return Attack(name, HEADER + cell, "refused", True)


EXHAUSTION = [
    Attack("fork bomb", "import os\nwhile True: os.fork()", "[stopped: the cell", False),
    Attack(
        "fork bomb of a shell",
        "import os; os.system('b(){{ b|b& }}; b'); import time; time.sleep(60)",
        "[stopped: the cell",
        False,
    ),
    Attack(
        "processes that run ahead: each forks and ends",
        HEADER
        + "libc.prctl(36, 0, 0, 0, 0)\nif os.fork() == 0:\n    while True:\n        if os.fork(): os._exit(0)\n",
        "",
    ),
    refused(
        "clones that cannot be, to use up the places of all",
        "tried('clone', lambda: all(sys_call(56, 0x800, 0, 0, 0, 0) == -1 for i in range(3000)) - 1)\n",
    ),
    Attack(
        "memory bomb of one process",
        "x = []\nwhile True: x.append(bytearray(1 << 20))",
        "emory",
        None,
    ),
    Attack(
        "memory bomb of many processes",
        "import os, time\nfor i in range(6):\n    if os.fork() == 0:\n        x = b'x' * (80 << 20); time.sleep(60); os._exit(0)\ntime.sleep(60)",
        "MiB of memory",
        False,
    ),
    Attack(
        "memory bomb of shared mappings",
        "import mmap, os, time\nfor i in range(8):\n    if os.fork() == 0:\n        m = mmap.mmap(-1, 60 << 20); m.write(b'x' * (60 << 20)); time.sleep(60)\ntime.sleep(60)",
        "MiB of memory",
        False,
    ),
    Attack(
        "memory files",
        "import os, time\nfor i in range(40):\n    f = os.memfd_create('x'); os.write(f, b'x' * (4 << 20))\ntime.sleep(60)",
        "more than 16 MiB",
        False,
    ),
    Attack(
        "filling the disk",
        "import time\nfor i in range(100):\n    open(f'f{{i}}', 'wb').write(b'x' * (1 << 20))\ntime.sleep(60)",
        "more than 16 MiB",
        False,
    ),
    Attack(
        "filling the disk with deleted files that stay open",
        "import os, time\nkeep = []\nfor i in range(60):\n    f = open('f', 'wb', 0); f.write(b'x' * (1 << 20)); os.unlink('f'); keep.append(f)\ntime.sleep(60)",
        "more than 16 MiB",
        False,
    ),
    Attack("one huge file", "open('f', 'wb').write(b'x' * (20 << 20))", "File too large", True),
    Attack(
        "inodes",
        "import time\nfor i in range(5000): open(f'f{{i}}', 'w').close()\ntime.sleep(60)",
        "500 files",
        False,
    ),
    Attack("endless output", "while True: print('x' * 1000)", "MiB of output", False),
    Attack(
        "endless output of a program",
        "import subprocess; subprocess.run(['yes'])",
        "MiB of output",
        False,
    ),
    Attack(
        "an endless loop that ignores signals",
        "import signal\nfor s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n    except (OSError, ValueError): pass\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nwhile True:\n    try:\n        while True: pass\n    except BaseException: pass",
        "[stopped: the cell",
        False,
    ),
    Attack(
        "a sleep that ignores signals",
        "import signal, time\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\ntime.sleep(1000)",
        "longer than",
        False,
    ),
    Attack(
        "CPU time spread over children",
        "import os, time\nfor i in range(4):\n    if os.fork() == 0:\n        while True: pass\ntime.sleep(60)",
        "[stopped: the cell",
        False,
    ),
    Attack(
        "descriptors",
        "import os\nx = []\nwhile True: x.append(os.open('/dev/null', 0))",
        "Too many open files",
        True,
    ),
    Attack(
        "threads",
        "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
        "",
        None,
    ),
    Attack(
        "deep folders",
        "import os\nfor i in range(400):\n    os.mkdir('d' * 200); os.chdir('d' * 200)\nprint('made')",
        "made",
        True,
    ),
    Attack(
        "folders that refuse their owner",
        "import os\nos.makedirs('a/b'); open('a/b/c', 'w').close(); os.chmod('a/b', 0); os.chmod('a', 0)",
        "",
        True,
    ),
    Attack("deep recursion", "def f(): return f()\nf()", "RecursionError", True),
    Attack(
        "a stack that overflows",
        "import sys; sys.setrecursionlimit(10**9)\nf = lambda: f()\nclass A:\n    def __repr__(self): return repr(self)\nrepr(A())",
        "",
        None,
    ),
    Attack(
        "code without end",
        "exec('x = 1\\n' * (100 << 20))",
        "",
        None,
    ),
    Attack("a huge number", "x = 10 ** (10 ** 9)", "", None),
]

PROCESSES = [
    refused(
        "killing the parent",
        "tried('parent', lambda: os.kill(os.getppid(), 9) or 1)\nos.kill(os.getppid(), 0) if False else None\ntried('stop', lambda: os.kill(os.getppid(), signal.SIGSTOP) or 1)",
    ),
    Attack(
        "killing everyone",
        HEADER
        + "try: os.kill(-1, 9)\nexcept OSError: pass\ntry: os.killpg(0, 9)\nexcept OSError: pass\nprint('tried')",
        "",
        None,
    ),
    refused(
        "killing process 1, the hub and neighbours",
        "for p in [1, *range(max(2, os.getpid() - 300), os.getpid())]:\n    tried(p, lambda: os.kill(p, 9) or 1)",
    ),
    refused(
        "killing the host's processes, the learner, the hub and other states",
        "for p in ({others}): tried(p, lambda: os.kill(p, 9) or 1)",
    ),
    refused(
        "signals by descriptor",
        "for p in (os.getppid(), {others}): tried('pidfd', lambda: signal.pidfd_send_signal(os.pidfd_open(p), 9) or 1)",
    ),
    refused(
        "signals by thread and by queue",
        "for p in (os.getppid(), {others}):\n    tried('tgkill', lambda: sys_call(234, p, p, 9) + 1 or -1)\n    tried('sigqueue', lambda: sys_call(129, p, 9, ctypes.create_string_buffer(128)) + 1 or -1)",
    ),
    Attack(
        "signals by a descriptor's owner",
        HEADER
        + "import fcntl\na, b = socket.socketpair()\ntry:\n    fcntl.fcntl(a, fcntl.F_SETOWN, os.getppid()); fcntl.fcntl(a, 10, 9)\n"
        "    fcntl.fcntl(a, fcntl.F_SETFL, fcntl.fcntl(a, fcntl.F_GETFL) | os.O_ASYNC); b.send(b'x')\nexcept OSError as e: print('refused', e)\nprint('tried')",
        "tried",
        True,
    ),
    refused(
        "tracing the parent and the host",
        "for p in (os.getppid(), {others}, 1):\n    tried(p, lambda: libc.ptrace(16, p, 0, 0) + 1 or -1)",
    ),
    refused(
        "reading the memory of others",
        "b = ctypes.create_string_buffer(8)\nfor p in (os.getppid(), {others}, 1):\n    tried(p, lambda: open(f'/proc/{{p}}/mem', 'rb').read(1))\n    tried(p, lambda: sys_call(310, p, b, 1, b, 1, 0) + 1 or -1)",
    ),
    refused(
        "writing the memory of others",
        "for p in (os.getppid(), {others}, 1): tried(p, lambda: open(f'/proc/{{p}}/mem', 'r+b'))",
    ),
    refused(
        "environment, maps and descriptors of others",
        "for p in (os.getppid(), {others}, 1):\n    for f in ('environ', 'maps', 'auxv'): tried((p, f), lambda: open(f'/proc/{{p}}/{{f}}', 'rb').read(10))\n    tried(p, lambda: os.listdir(f'/proc/{{p}}/fd'))",
    ),
    refused(
        "taking descriptors of others",
        "for p in (os.getppid(), {others}): tried('getfd', lambda: sys_call(438, os.pidfd_open(p), 0, 0) + 1 or -1)",
    ),
    refused(
        "ways to others through /proc",
        "up = [os.getppid()]\nfor p in (os.getppid(), {others}):\n"
        "    for f in ('cwd/mine', 'root{canary}', 'fd/4', 'mem', 'task'):\n"
        "        tried((p, f), lambda: os.open(f'/proc/{{p}}/{{f}}', os.O_RDONLY))\n",
    ),
    refused(
        "limits and priorities of others",
        "for p in (os.getppid(), {others}, 1):\n    tried(p, lambda: resource.prlimit(p, resource.RLIMIT_NOFILE, (0, 0)) or 1)\n    tried(p, lambda: os.sched_setaffinity(p, [0]) or 1)\n    tried(p, lambda: os.setpriority(os.PRIO_PROCESS, p, 19) or 1)",
    ),
    Attack(
        "a daemon by double fork",
        HEADER
        + "if os.fork() == 0:\n    if os.fork() == 0:\n        time.sleep(600)\n    os._exit(0)\nos.wait()",
        "left running were ended",
        True,
    ),
    Attack(
        "a daemon that leaves its session",
        HEADER
        + "try: os.setsid()\nexcept OSError: print('refused')\nsubprocess.Popen(['sleep', '600'])",
        "refused",
        True,
    ),
    Attack(
        "a daemon that no parent adopts",
        HEADER
        + "libc.prctl(36, 0, 0, 0, 0)\nif os.fork() == 0:\n    if os.fork() == 0:\n        while True: pass\n    os._exit(0)\nos.wait(); print('left')",
        "left",
        None,
    ),
    Attack(
        "threads that go on",
        HEADER
        + "import threading\ndef work():\n    while True: pass\nthreading.Thread(target=work, daemon=True).start()",
        "stop here",
        True,
    ),
    refused(
        "namespaces",
        "tried('unshare', lambda: libc.unshare(0x10000000) + 1 or -1)\ntried('clone', lambda: sys_call(56, 0x10000000 | 17, 0, 0, 0, 0) + 1 or -1)",
    ),
    refused(
        "kernel interfaces",
        "for n in (321, 298, 425, 323, 250, 308, 165, 155, 161, 175, 246, 304):\n    tried(n, lambda: sys_call(n, 0, 0, 0, 0, 0) + 1 or -1)",
    ),
    Attack(
        "system calls by the 32-bit door",
        "import ctypes, mmap\nm = mmap.mmap(-1, 4096, prot=7); m.write(bytes.fromhex('b814000000cd80c3'))\nctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))(); print('LEAK')",
        "",
        False,
    ),
    Attack(
        "setting limits back",
        HEADER
        + "for r in (resource.RLIMIT_DATA, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE, resource.RLIMIT_CPU):\n    tried(r, lambda: resource.setrlimit(r, (-1, -1)) or 1)",
        "refused",
        True,
    ),
    refused(
        "capabilities",
        "tried('setuid', lambda: [l for l in open('/proc/self/status') if l.startswith('CapEff')][0].split()[1].strip('0'))if False else print('refused')\nassert int([l for l in open('/proc/self/status') if l.startswith('CapEff')][0].split()[1], 16) == 0\ntried('chroot', lambda: os.chroot('.') or 1)\ntried('mknod', lambda: os.mknod('dev', 0o60666, 1) or 1)",
    ),
]

FILES = [
    refused(
        "reading files of the host",
        "for p in ('{canary}', '{repository}/README.md', '{repository}/pyproject.toml', '/etc/shadow', os.path.expanduser('~root/.bashrc'), '/root/.cache', '/var/log/dpkg.log'):\n    tried(p, lambda: open(p).read(5) if not os.path.isdir(p) else os.listdir(p))",
    ),
    refused(
        "reading through links",
        "os.symlink('{canary}', 'link'); tried('symlink', lambda: open('link').read())\ntried('hard', lambda: os.link('{canary}', 'hard') or 1)\ntried('root', lambda: open('/proc/self/root{canary}').read())\nf = os.open('/', os.O_PATH); tried('dir', lambda: os.open('{canary}'[1:], 0, dir_fd=f))",
    ),
    refused(
        "writing outside the work folder",
        "for p in ('{folder}/new', '/tmp/new', '/usr/new', '/etc/new', '/dev/shm/new', '/var/tmp/new', os.path.dirname(os.getcwd()) + '/new'):\n    tried(p, lambda: open(p, 'w'))",
    ),
    refused(
        "changing files of the host",
        "tried('write', lambda: open('{canary}', 'a'))\ntried('truncate', lambda: os.truncate('{canary}', 0) or 1)\ntried('unlink', lambda: os.unlink('{canary}') or 1)\ntried('rename', lambda: os.rename('{canary}', 'mine') or 1)\nos.path.exists('{canary}') and os.chmod('{canary}', 0)",
    ),
    Attack(
        "modes and owners of libraries",
        HEADER
        + "for p in (os.__file__, sys.executable):\n    try: os.chmod(p, 0); f = os.open(p, os.O_RDONLY); os.fchmod(f, 0); os.utime(p, (0, 0))\n    except OSError as e: print(e)\nprint('tried')",
        "tried",
        True,
    ),
    refused(
        "listing the folders of other states",
        "up = os.getcwd()\nfor i in range(3):\n    up = os.path.dirname(up); tried(up, lambda: os.listdir(up))",
    ),
    refused(
        "the parent's files",
        "p = os.path.dirname(os.getcwd()) + '/mine'\ntried('write', lambda: open(p, 'w'))\ntried('unlink', lambda: os.unlink(p) or 1)\nos.path.exists(p) and os.chmod(p, 0)",
    ),
    refused(
        "another session's folder, by name",
        "for p in ('{victim}/mine', '{victim}/new'):\n"
        "    tried(p, lambda: open(p).read())\n    tried(p, lambda: open(p, 'w'))\n"
        "    tried(p, lambda: os.unlink(p) or 1)\n    tried(p, lambda: os.mkdir(p) or 1)\n"
        "    tried(p, lambda: os.rename(p, 'mine') or 1)\n    tried(p, lambda: os.link(p, 'x') or 1)\n"
        "tried('list', lambda: os.listdir('{victim}'))\n"
        "os.path.exists('{victim}') and os.chmod('{victim}', 0)",
    ),
    refused(
        "devices",
        "for p in ('/dev/mem', '/dev/kmsg', '/dev/vda', '/dev/sda', '/dev/tty', '/dev/ptmx', '/dev/fuse', '/proc/kcore', '/proc/sysrq-trigger'):\n    tried(p, lambda: os.open(p, os.O_RDWR))",
    ),
    Attack(
        "a link where the host clears up",
        "import os\nos.symlink('{folder}', 'door'); os.symlink('/', 'root'); os.mkdir('d'); os.symlink('{folder}', 'd/door')",
        "",
        True,
    ),
    refused(
        "environment variables",
        "print('LEAK' if '{secret}' in str(dict(os.environ)) else 'refused')\ntried('self', lambda: '{secret}' in open('/proc/self/environ').read())",
    ),
    refused(
        "what the first process left in memory",
        "import gc\nfound = [o for o in gc.get_objects() if isinstance(o, str) and '{secret}' in o and 'found' not in o]\nprint('LEAK' if found else 'refused')",
    ),
]

NETWORK = [
    refused("TCP", "tried('tcp', lambda: socket.create_connection(('127.0.0.1', {tcp}), 1))"),
    refused(
        "UDP",
        "tried('udp', lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', {udp})))",
    ),
    refused("names", "tried('dns', lambda: socket.gethostbyname('example.com'))"),
    refused(
        "raw and packet sockets",
        "tried('raw', lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))\ntried('packet', lambda: socket.socket(17, 3, 0))\ntried('netlink', lambda: socket.socket(16, 3, 0))\ntried('vsock', lambda: socket.socket(40, 1, 0))",
    ),
    refused(
        "unix sockets of the host",
        "for p in ('{unix}', '/var/run/docker.sock', '/run/docker.sock'):\n    def go():\n        s = socket.socket(socket.AF_UNIX); s.connect(p); return 1\n    tried(p, go)",
    ),
    refused(
        "abstract sockets of the host",
        "def go():\n    s = socket.socket(socket.AF_UNIX); s.connect('\\0' + '{abstract}'); return 1\ntried('abstract', go)",
    ),
    refused(
        "metadata addresses",
        "tried('metadata', lambda: socket.create_connection(('169.254.169.254', 80), 1))",
    ),
    refused("listening", "tried('listen', lambda: socket.create_server(('127.0.0.1', 0)))"),
    refused(
        "a program that talks to the network",
        "r = subprocess.run([sys.executable, '-c', 'import socket; socket.create_connection((\"127.0.0.1\", {tcp}), 1); print(\"LEAK\")'], capture_output=True, text=True)\nprint(r.stdout, 'refused', r.stderr[-60:])",
    ),
]

MACHINERY = [
    Attack("os._exit", "import os; os._exit(0)", "ended", False),
    Attack("a segmentation fault", "import ctypes; ctypes.string_at(0)", "signal 11", False),
    Attack("abort", "import os; os.abort()", "signal 6", False),
    Attack(
        "forged answers",
        HEADER
        + "import json, struct\nm = json.dumps(dict(op='done', status='ok', id=1, state=1, results=[])).encode()\n"
        "for fd in range(3, 256):\n    try: os.write(fd, (struct.pack('!I', len(m)) + m) * 3)\n    except OSError: pass\ntime.sleep(60)",
        "",
        None,
    ),
    Attack(
        "an answer without end",
        HEADER
        + "for fd in range(3, 256):\n    try:\n        for i in range(1000): os.write(fd, b'\\xff' * 65536)\n    except OSError: pass\ntime.sleep(60)",
        "ended",
        False,
    ),
    Attack(
        "nonsense on the channel",
        HEADER
        + "for fd in range(3, 256):\n    try: os.write(fd, b'\\0\\0\\0\\x04[[[[')\n    except OSError: pass\ntime.sleep(60)",
        "ended",
        False,
    ),
    Attack(
        "closing the channel",
        "import os, time; os.closerange(3, 1000); time.sleep(60)",
        "ended",
        False,
    ),
    Attack(
        "a false end, then work in the dark",
        HEADER
        + "import json, struct\nm = json.dumps(dict(op='done', status='ok')).encode()\nfor fd in range(3, 256):\n    try: os.write(fd, struct.pack('!I', len(m)) + m)\n    except OSError: pass\nwhile True: pass",
        "",
        None,
    ),
    Attack(
        "replacing builtins",
        "import builtins\nbuiltins.print = builtins.repr = builtins.compile = builtins.eval = builtins.exec = builtins.len = None",
        "",
        True,
    ),
    Attack(
        "replacing modules",
        "import sys\nfor name in list(sys.modules):\n    sys.modules[name] = None",
        "",
        None,
    ),
    Attack(
        "replacing the streams",
        "import sys\nclass Evil:\n    def write(self, x): raise KeyboardInterrupt\n    def flush(self): raise SystemExit(3)\nsys.stdout = sys.stderr = Evil()\n1/0",
        "could not be printed",
        True,
    ),
    Attack(
        "an error that cannot be shown",
        "class E(Exception):\n    def __str__(self): raise E\n    __repr__ = __str__\nraise E",
        "E",
        True,
    ),
    Attack(
        "a value whose echo attacks",
        "class V:\n    def __repr__(self):\n        import os; os._exit(1)\nV()",
        "ended",
        False,
    ),
    Attack(
        "hooks at fork, exit and trace",
        "import os, sys, atexit\nos.register_at_fork(before=lambda: os._exit(9), after_in_child=lambda: os._exit(9)); atexit.register(os._exit, 1); sys.settrace(lambda *a: None)",
        "",
        True,
    ),
    Attack(
        "a pickle that runs a program",
        "import pickle, os\nclass P:\n    def __reduce__(self): return os.system, ('cat {canary}',)\nprint(pickle.loads(pickle.dumps(P())) != 0)",
        "True",
        True,
    ),
    Attack(
        "a pickle that asks for more memory than there is",
        "import pickle\npickle.loads(b'cbuiltins\\nbytearray\\n(I4000000000\\ntR.')",
        "MemoryError",
        True,
    ),
    Attack(
        "a pickle that doubles sixty times when it is shown",
        "import pickle\nx = []\nfor i in range(60): x = [x, x]\npickle.loads(pickle.dumps(x))",
        "",
        None,
    ),
    Attack(
        "a pickle of a million frames",
        "import pickle\npickle.loads(b'(' * (50 << 20) + b'.')",
        "",
        None,
    ),
    Attack(
        "a folder that becomes a link while it is cleared away",
        HEADER
        + "libc.prctl(36, 0, 0, 0, 0)\nfor n in range(4):\n    d = f'd{{n}}'\n    os.mkdir(d); os.symlink('{folder}', d + 'link')\n"
        "    for i in range(60): open(f'{{d}}/{{i}}', 'w').close()\n    os.mkdir(d + '/canary.txt'); os.mkdir(d + '/shut', 0)\n"
        "    if os.fork() == 0:\n        if os.fork(): os._exit(0)\n        while True:\n            try:\n"
        "                os.rename(d, 'away' + d); os.rename(d + 'link', d); os.rename(d, d + 'link'); os.rename('away' + d, d)\n"
        "            except OSError: pass\nos._exit(0)",
        "ended",
        False,
    ),
    Attack(
        "files written after the last look at them",
        HEADER + "libc.prctl(36, 0, 0, 0, 0)\nif os.fork() == 0:\n    if os.fork(): os._exit(0)\n"
        "    for i in range(10**6):\n        try: open(f'late{{i % 400}}', 'ab').write(b'x' * (1 << 20))\n        except OSError: pass\nos.wait(); print('left')",
        "",
        None,
    ),
    Attack(
        "NUL and broken unicode in output",
        "import os; os.write(1, b'a\\0\\xff\\xfe\\x80b\\n'); print('\\ud800\\x00')",
        "a\0",
        True,
    ),
    Attack("a syntax tree that is too deep", "eval('(' * 100000 + ')' * 100000)", "Error", None),
    Attack(
        "timers that go off later",
        "import signal; signal.signal(signal.SIGALRM, lambda *a: 1 / 0); signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)",
        "",
        True,
    ),
]

ATTACKS = EXHAUSTION + PROCESSES + FILES + NETWORK + MACHINERY

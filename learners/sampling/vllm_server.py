"""vLLM in a process of its own: it can be killed, and training outlives that.

    python -m learners.sampling.vllm_server SOCKET SETTINGS

is what `VllmServer` starts: a `VllmSampler` whose requests and completions are lines of JSON over
one socket that nobody else can open; there is no port. Weights travel as safetensors in the folder
of the settings. When the process ends before its work is done it is started again, with the newest
weights, and gets the same requests with the same seeds; after a few ends in a row the run stops and
says what the process wrote last.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any

import torch

from learners.errors import RunStopped
from learners.sampling.sampler import Request, SamplerStats, TurnEnd, servable
from learners.sampling.vllm_engine import VllmEngine
from learners.sampling.vllm_sampler import VllmSampler
from learners.tree import Completion

log = logging.getLogger(__name__)

ENDS = 3
"""How often in a row the process may end without a completion in between."""


PATIENCE_S = 900.0
"""For a line from the process; a first start on a busy CPU takes minutes."""


LOG_TAIL = 1500
"""Characters of its log that a message repeats."""


@dataclass(frozen=True)
class Settings:
    """What the process needs to know."""

    folder: str
    """Of the model and its tokenizer; the newest weights are written there."""
    dtype: str
    """float32 or bfloat16."""
    rows: int
    """Most requests in one step."""
    threads: int
    stop_tags: tuple[str, ...]
    end_ids: tuple[int, ...]


class VllmServer:
    """Stands where a sampler does. Mutated by its verbs; `submit` may be called by any thread."""

    keep = None
    """vLLM computes keys and values itself."""

    def __init__(
        self,
        settings: Settings,
        save: Callable[[Path], None],
        command: Sequence[str] = (sys.executable, "-m", "learners.sampling.vllm_server"),
    ) -> None:
        """Nothing is started until something is to be sampled.

        Args:
            settings: of the process.
            save: writes the model with the policy's weights into a folder.
            command: starts the process; a test has its own.
        """
        self._settings, self._save, self._command = settings, save, tuple(command)
        self._under_way: dict[tuple[str, int], Request] = {}
        self._lock = threading.Lock()
        self._process: _Process | None = None
        self._stale = True
        self._ends = 0
        self.restarts = 0
        """How often the process ended and was started again."""

    def submit(self, request: Request) -> None:
        """Take a request.

        Raises:
            ValueError: there is nothing to continue from, or no token may be sampled.
        """
        servable(request)
        with self._lock:
            self._under_way[request.key, request.position] = request
            if self._process is not None and not self._stale:
                self._process.send({"submit": request})

    def sync(self) -> None:
        """The policy's weights have changed: they are pushed before anything is sampled again."""
        with self._lock:
            self._stale = True

    def stats(self) -> SamplerStats:
        """Nothing is known of what the engine reads and holds."""
        return SamplerStats()

    def rest(self) -> None:
        """Nothing will be sampled for a while; the process has given its memory away on return.

        One that ends instead is started again when something is to be sampled.

        Raises:
            RunStopped: the process ended again and again.
        """
        assert not self._under_way, "requests are under way"
        if self._process is None:
            return
        self._process.send({"rest": True})
        line = self._process.receive()
        while line is not None and "rested" not in line:  # said twice: `_prepare` had sent it again
            line = self._process.receive()
        if line is None:
            self._restart()

    def completed(self) -> Iterator[tuple[Request, Completion]]:
        """Requests as they finish.

        Raises:
            RunStopped: the process ended again and again.
        """
        while self._under_way:
            self._prepare()
            assert self._process is not None
            line = self._process.receive()
            if line is None:
                self._restart()
                continue
            *name, ids, logprobs, entropies, stop = line["said"]
            with self._lock:
                request = self._under_way.pop((name[0], name[1]), None)
            if request is None:  # said before an end that it was not heard to survive
                continue
            self._ends = 0
            yield request, Completion(tuple(ids), tuple(logprobs), tuple(entropies), stop)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.end()
            self._process = None

    @property
    def process_id(self) -> int | None:
        """Of the process, if one runs."""
        return None if self._process is None else self._process.popen.pid

    def _prepare(self) -> None:
        """Let the process run with the newest weights, and know every request."""
        with self._lock:
            if self._process is not None and not self._stale:
                return
            if self._stale:
                self._save(Path(self._settings.folder))
            if self._process is None:
                self._process = _Process(self._settings, self._command)
            elif self._stale:
                self._process.send({"load": self._settings.folder})
            self._stale = False
            for request in self._under_way.values():
                self._process.send({"submit": request})

    def _restart(self) -> None:
        assert self._process is not None
        self._process.end()
        self._ends += 1
        words = self._process.last_words()
        if self._ends >= ENDS:
            raise RunStopped(
                f"the process of vLLM ended {self._ends} times without a completion. It wrote "
                f"last:\n{words}\nIts log is {self._process.log_path}; the same command resumes "
                "from the last checkpoint"
            )
        log.warning("the process of vLLM ended and is started again; it wrote last:\n%s", words)
        self.restarts += 1
        with self._lock:
            self._process = None


class _Process:
    """One process with its socket and its log."""

    def __init__(self, settings: Settings, command: Sequence[str]) -> None:
        ours, theirs = socket.socketpair()
        self.log_path = Path(settings.folder) / "vllm.log"
        with self.log_path.open("ab") as output:
            self.popen = subprocess.Popen(
                [*command, str(theirs.fileno()), json.dumps(asdict(settings))],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=Path(__file__).resolve().parents[2],
            )
        theirs.close()
        ours.settimeout(PATIENCE_S)
        self._socket = ours
        self._lines: IO[str] = ours.makefile("r", encoding="utf-8")
        self._finalizer = weakref.finalize(self, _kill, self.popen, ours)

    def send(self, line: dict[str, Any]) -> None:
        """Say something; who has ended does not hear it, and `receive` will tell."""
        try:
            self._socket.sendall(json.dumps(line).encode() + b"\n")
        except OSError:
            return

    def receive(self) -> dict[str, Any] | None:
        """The next line; None where the process has ended or says nothing for too long."""
        try:
            line = self._lines.readline()
        except OSError:
            return None
        found: dict[str, Any] | None = json.loads(line) if line.endswith("\n") else None
        return found

    def end(self) -> None:
        """Kill it."""
        self._finalizer()

    def last_words(self) -> str:
        """The end of its log."""
        return self.log_path.read_text(errors="replace")[-LOG_TAIL:].strip()


def _kill(popen: subprocess.Popen[bytes], ours: socket.socket) -> None:
    popen.kill()
    popen.wait()
    ours.close()


def _listen(connection: socket.socket, sampler: VllmSampler, woken: SimpleQueue[str]) -> None:
    """The process's side of the socket: what comes reaches the sampler in its order, at once."""
    for line in connection.makefile("r", encoding="utf-8"):
        order = json.loads(line)
        if "load" in order:
            sampler.sync()
        elif "submit" in order:
            prefix, prefill, *rest = order["submit"]
            sampler.submit(Request(tuple(prefix), tuple(prefill), *rest))
        woken.put(next(iter(order)))
    os._exit(0)  # the run is over or was killed: nobody would read what comes next


def serve(connection: socket.socket, settings: Settings) -> None:
    """Sample what is asked for until the other side is gone."""
    from transformers import AutoTokenizer

    torch.set_num_threads(settings.threads)
    folder = Path(settings.folder)
    end = TurnEnd(
        AutoTokenizer.from_pretrained(folder), settings.stop_tags, frozenset(settings.end_ids)
    )
    engine = VllmEngine(folder, getattr(torch, settings.dtype), settings.rows)
    sampler = VllmSampler(engine, end, lambda: folder)
    woken: SimpleQueue[str] = SimpleQueue()
    threading.Thread(target=_listen, args=(connection, sampler, woken), daemon=True).start()
    _answer(connection, sampler, woken)


def _answer(connection: socket.socket, sampler: VllmSampler, woken: SimpleQueue[str]) -> None:
    """Sample and rest as orders come, and say what came of it."""
    while True:
        if woken.get() == "rest":
            sampler.rest()
            connection.sendall(b'{"rested": true}\n')
        for request, said in sampler.completed():
            line = [request.key, request.position, *asdict(said).values()]
            connection.sendall(json.dumps({"said": line}).encode() + b"\n")


def main() -> None:
    """Serve on the socket of the command line."""
    given = json.loads(sys.argv[2])
    serve(socket.socket(fileno=int(sys.argv[1])), Settings(**given))


if __name__ == "__main__":
    main()

"""vLLM in a process of its own, which can be killed without ending the training run.

    python -m learners.sampling.vllm_server SOCKET SETTINGS

is the command that `VllmServer` starts: a `VllmSampler` whose requests and completions travel as
lines of JSON over a private socket pair; no port is opened. Weights travel as safetensors in the
folder of the settings. If the process ends before its work is done, it is started again with the
newest weights and gets the same requests with the same seeds. After a few failures in a row the run
stops and reports the end of the process's log.

Messages to the process: {"submit": request}, {"load": folder}, {"rest": true}. Messages from it:
{"completed": [key, position, ids, logprobs, entropies, stop]}, {"rested": true}.
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
from learners.sampling.sampler import Request, SamplerStats, StopCriteria, validate_request
from learners.sampling.vllm_engine import VllmEngine
from learners.sampling.vllm_sampler import VllmSampler
from learners.tree import Completion

log = logging.getLogger(__name__)

MAX_FAILURES = 3
"""Number of times in a row that the process may end without a completion in between."""


TIMEOUT_S = 900.0
"""Limit of the wait for a message; a first start on a busy CPU takes minutes."""


LOG_TAIL = 1500
"""Number of characters at the end of its log that error messages quote."""


@dataclass(frozen=True)
class Settings:
    """Settings of the process; they travel on its command line."""

    folder: str
    """Folder of the model and its tokenizer; the newest weights are written there."""
    dtype: str
    """float32 or bfloat16."""
    rows: int
    """Maximum number of requests in one step."""
    threads: int
    stop_tags: tuple[str, ...]
    end_ids: tuple[int, ...]


class VllmServer:
    """A sampler in another process. Mutated by its methods; any thread may call `submit`."""

    keep = None
    """The process takes no keys and values from outside."""

    def __init__(
        self,
        settings: Settings,
        save: Callable[[Path], None],
        command: Sequence[str] = (sys.executable, "-m", "learners.sampling.vllm_server"),
    ) -> None:
        """Prepare only; the process is started when something is to be sampled.

        Args:
            settings: of the process.
            save: writes the model with the policy's weights into a folder.
            command: starts the process; tests have their own.
        """
        self._settings, self._save, self._command = settings, save, tuple(command)
        # The lock guards the pending requests and the messages about them. Without it a request
        # submitted while `_prepare` resends them could be sent twice, or not at all.
        self._pending: dict[tuple[str, int], Request] = {}
        self._lock = threading.Lock()
        self._process: _Process | None = None
        self._stale = True
        self._failures = 0
        """Ends of the process since the last completion."""
        self.restarts = 0
        """Number of times that the process was started again."""

    def submit(self, request: Request) -> None:
        """Queue a request.

        Raises:
            ValueError: there is nothing to continue from, or no token may be sampled.
        """
        validate_request(request)
        with self._lock:
            self._pending[request.key, request.position] = request
            if self._process is not None and not self._stale:
                self._process.send({"submit": request})

    def completed(self) -> Iterator[tuple[Request, Completion]]:
        """Yield requests as they finish.

        Raises:
            RunStopped: the process failed again and again.
        """
        while self._pending:
            self._prepare()
            assert self._process is not None
            message = self._process.receive()
            if message is None:
                self._restart()
                continue
            key, position, ids, logprobs, entropies, stop = message["completed"]
            with self._lock:
                request = self._pending.pop((key, position), None)
            if request is None:  # answered twice: `_prepare` had sent it again
                continue
            self._failures = 0
            yield request, Completion(tuple(ids), tuple(logprobs), tuple(entropies), stop)

    def sync(self) -> None:
        """Push the policy's weights before anything is sampled again."""
        with self._lock:
            self._stale = True

    def rest(self) -> None:
        """Wait until the process has freed its memory.

        If it ends instead, it is started again when something is to be sampled.

        Raises:
            RunStopped: the process failed again and again.
        """
        assert not self._pending, "requests are under way"
        if self._process is None:
            return
        self._process.send({"rest": True})
        message = self._process.receive()
        # Completions may come first: those of requests that `_prepare` had sent again.
        while message is not None and "rested" not in message:
            message = self._process.receive()
        if message is None:
            self._restart()

    def stats(self) -> SamplerStats:
        """Return no numbers: what the process reads and holds is not known here."""
        return SamplerStats()

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.end()
            self._process = None

    @property
    def process_id(self) -> int | None:
        """Id of the process, if one runs."""
        return None if self._process is None else self._process.popen.pid

    def _prepare(self) -> None:
        """Make sure that the process runs with the newest weights and has every request."""
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
            for request in self._pending.values():
                self._process.send({"submit": request})

    def _restart(self) -> None:
        assert self._process is not None
        self._process.end()
        self._failures += 1
        tail = self._process.log_tail()
        if self._failures >= MAX_FAILURES:
            raise RunStopped(
                f"the vLLM process ended {self._failures} times without a completion. Its log "
                f"ends with:\n{tail}\nThe log is {self._process.log_path}; the same command "
                "resumes from the last checkpoint"
            )
        log.warning(
            "the vLLM process ended and will be started again; its log ends with:\n%s", tail
        )
        self.restarts += 1
        with self._lock:
            self._process = None


class _Process:
    """A running process with its socket and its log; killed when it is garbage-collected."""

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
        ours.settimeout(TIMEOUT_S)
        self._socket = ours
        self._lines: IO[str] = ours.makefile("r", encoding="utf-8")
        self._finalizer = weakref.finalize(self, _kill, self.popen, ours)

    def send(self, message: dict[str, Any]) -> None:
        """Send a message; if the process has ended, do nothing: `receive` will tell."""
        try:
            self._socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            return

    def receive(self) -> dict[str, Any] | None:
        """Return the next message; None if the process has ended or the wait times out."""
        try:
            line = self._lines.readline()
        except OSError:
            return None
        # A line without its end was cut off when the process died.
        message: dict[str, Any] | None = json.loads(line) if line.endswith("\n") else None
        return message

    def end(self) -> None:
        """Kill the process."""
        self._finalizer()

    def log_tail(self) -> str:
        """Return the end of the log."""
        return self.log_path.read_text(errors="replace")[-LOG_TAIL:].strip()


def _kill(popen: subprocess.Popen[bytes], ours: socket.socket) -> None:
    popen.kill()
    popen.wait()
    ours.close()


def serve(connection: socket.socket, settings: Settings) -> None:
    """Serve requests, in the started process, until the other side closes the socket."""
    from transformers import AutoTokenizer

    torch.set_num_threads(settings.threads)
    folder = Path(settings.folder)
    stop_criteria = StopCriteria(
        AutoTokenizer.from_pretrained(folder), settings.stop_tags, frozenset(settings.end_ids)
    )
    engine = VllmEngine(folder, getattr(torch, settings.dtype), settings.rows)
    sampler = VllmSampler(engine, stop_criteria, lambda: folder)
    events: SimpleQueue[str] = SimpleQueue()
    threading.Thread(target=_listen, args=(connection, sampler, events), daemon=True).start()
    _answer(connection, sampler, events)


def _listen(connection: socket.socket, sampler: VllmSampler, events: SimpleQueue[str]) -> None:
    """Pass messages on to the sampler as they come, also while it samples."""
    for line in connection.makefile("r", encoding="utf-8"):
        message = json.loads(line)
        if "load" in message:
            sampler.sync()
        elif "submit" in message:
            prefix, prefill, *rest = message["submit"]
            sampler.submit(Request(tuple(prefix), tuple(prefill), *rest))
        events.put(next(iter(message)))
    # The run is over or was killed. At once, because the main thread may be in an engine's step.
    os._exit(0)


def _answer(connection: socket.socket, sampler: VllmSampler, events: SimpleQueue[str]) -> None:
    """Sample and rest as messages come in, and send the results."""
    while True:
        if events.get() == "rest":
            sampler.rest()
            connection.sendall(b'{"rested": true}\n')
        for request, completion in sampler.completed():
            result = [request.key, request.position, *asdict(completion).values()]
            connection.sendall(json.dumps({"completed": result}).encode() + b"\n")


def main() -> None:
    """Serve on the socket that the command line names."""
    settings = json.loads(sys.argv[2])
    serve(socket.socket(fileno=int(sys.argv[1])), Settings(**settings))


if __name__ == "__main__":
    main()

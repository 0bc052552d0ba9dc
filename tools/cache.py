"""What the network said, kept in one SQLite file: recorded once, replayed to the same observations.

Knows nothing of what was asked. `python -m tools.cache --help` exports, imports and counts.
"""

import argparse
import gzip
import hashlib
import json
import sys
import threading
import time
import unicodedata
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from tools.cache_store import Row, Store
from tools.per_process import PerProcess

Mode = Literal["live", "record", "replay", "frozen"]
Request = Mapping[str, str | int | bool | None]


class ReplayMiss(LookupError):
    """A replayed run asked what its recording does not hold. Asking again would not help."""


class _Asked(threading.local):
    """How often one thread asked."""

    count = 0


class Answer(NamedTuple):
    """What asking gave."""

    text: str
    lasts_s: float | None = None
    """Record mode asks again after this long; replays ignore it. None: for ever."""


class Cache:
    """Answers by request. Thread-safe, process-safe, and whole after a SIGKILL at any moment.

    Mutated by `answer` in record mode. The modes:

    * live: always ask, store nothing;
    * record: answer from the store, else ask and store; of two processes that ask the same at once
      both get the answer that was stored first;
    * replay: answer from the store, else raise `ReplayMiss`;
    * frozen: answer from the store, else None.
    """

    def __init__(self, path: str | Path, mode: Mode = "record", max_bytes: int = 4 << 30) -> None:
        """A cache; nothing is opened yet.

        Args:
            path: the SQLite file; in record mode it is made, with its folder.
            mode: see the class.
            max_bytes: the oldest answers are dropped beyond this. SQLite's log beside the file may
                take 64 MB more.
        """
        if mode not in get_args(Mode):
            raise ValueError(f"mode {mode!r} is none of {', '.join(get_args(Mode))}")
        self.path, self.mode, self.max_bytes = Path(path), mode, max_bytes
        self._store = PerProcess(partial(Store, self.path, mode == "record"))
        self._asked = PerProcess(_Asked)

    def answer(self, request: Request, ask: Callable[[], Answer]) -> str | None:
        """The answer to a request, from the store or from `ask`, as the mode says.

        Threads of this process that ask the same at once wait for the first of them, and share
        what it gets.

        Raises:
            ReplayMiss: mode replay, and the store does not hold it.
            ToolUnavailable: the store is out of order. What `ask` raises passes through.
        """
        if self.mode == "live":
            return self._ask(ask).text
        store = self._store.get()
        wanted = canonical(request)
        key = _key(wanted)
        if self.mode == "record":
            return store.together(key, partial(self._recorded, store, key, wanted, ask))
        found = store.read(key, fresh_at=None)
        if found is None and self.mode == "replay":
            raise ReplayMiss(f"{self.path} holds no answer to {wanted[:500]}")
        return found

    def asked(self) -> int:
        """How often this thread had to ask, because the store did not answer."""
        return self._asked.get().count

    def close(self) -> None:
        """Close this process's connection; the next call opens it again."""
        store = self._store.pop()
        if store is not None:
            store.close()

    def _ask(self, ask: Callable[[], Answer]) -> Answer:
        self._asked.get().count += 1
        return ask()

    def _recorded(self, store: Store, key: str, request: str, ask: Callable[[], Answer]) -> str:
        found = store.read(key, fresh_at=time.time())
        if found is not None:
            return found
        given = self._ask(ask)
        expires = None if given.lasts_s is None else time.time() + given.lasts_s
        return store.write(key, Row(request, given.text, expires), self.max_bytes)


def canonical(request: Request) -> str:
    """One spelling for equal requests: sorted JSON, Unicode NFC, runs of blanks as one.

    Case and punctuation stay: "C++" is not "C#" and 1.5 is not 15.
    """
    tidy = {
        name: _tidy(value) if isinstance(value, str) else value for name, value in request.items()
    }
    return json.dumps(tidy, sort_keys=True, separators=(",", ":"))


def export_answers(source: str | Path, target: str | Path) -> int:
    """Write every answer to gzipped JSON lines, by key: equal caches give equal files.

    Returns:
        The number of answers.
    """
    store = Store(Path(source), writable=False)
    try:
        rows = store.rows()
    finally:
        store.close()
    # No name and no time in the header, so that the bytes depend on the answers alone.
    with Path(target).open("wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as file:
        for _, row in rows:
            file.write(json.dumps(row._asdict()).encode() + b"\n")
    return len(rows)


def import_answers(source: str | Path, target: str | Path, max_bytes: int = 4 << 30) -> int:
    """Add what `export_answers` wrote to a cache; answers it already holds stay.

    Returns:
        The number of answers read.

    Raises:
        ValueError: a line is not an answer.
    """
    store = Store(Path(target), writable=True)
    read = 0
    try:
        with gzip.open(source, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                row = _row(line, f"{source}:{number}")
                store.write(_key(row.request), row, max_bytes)
                read += 1
    finally:
        store.close()
    return read


def _row(line: str, where: str) -> Row:
    try:
        row = Row(**json.loads(line))
        expires = None if row.expires is None else float(row.expires)
        return Row(canonical(json.loads(row.request)), str(row.answer), expires)
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{where}: not an exported answer: {error}") from error


def _key(canonical_request: str) -> str:
    return hashlib.sha256(canonical_request.encode()).hexdigest()


def _tidy(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.cache", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, first, second in (
        ("export", "cache.sqlite", "answers.jsonl.gz"),
        ("import", "answers.jsonl.gz", "cache.sqlite"),
    ):
        command = commands.add_parser(name)
        command.add_argument("source", help=first)
        command.add_argument("target", help=second)
    commands.add_parser("count").add_argument("source", help="cache.sqlite")
    given = parser.parse_args(arguments)
    if given.command == "export":
        answers = export_answers(given.source, given.target)
    elif given.command == "import":
        answers = import_answers(given.source, given.target)
    else:
        store = Store(Path(given.source), writable=False)
        answers = len(store.rows())
        sys.stdout.write(f"{store.used_bytes()} bytes\n")
        store.close()
    sys.stdout.write(f"{answers} answers\n")


if __name__ == "__main__":
    main()

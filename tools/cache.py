"""A cache of network answers in one SQLite file: recorded once, replayed to equal observations.

Requests and answers are opaque here. `python -m tools.cache --help` exports, imports and counts.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import sqlite3
import sys
import threading
import time
import unicodedata
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from tools.per_process import PerProcess
from tools.tool import ToolUnavailable

Mode = Literal["live", "record", "replay", "frozen"]
CacheRequest = Mapping[str, str | int | bool | None]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    number INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    request TEXT NOT NULL,
    answer BLOB NOT NULL,
    expires REAL
)"""
_LOCK_TIMEOUT_S = 60.0
"""Longest wait for the writes of other processes."""
_EVICTION_BATCH = 64
"""Answers deleted per statement when the file is full."""


class ReplayMiss(LookupError):
    """A replay asked for an answer that was not recorded. Retrying would not help."""


class Answer(NamedTuple):
    """A freshly fetched answer."""

    text: str
    ttl_s: float | None = None
    """Record mode fetches again after this long; replays ignore it. None: never."""


class StoredAnswer(NamedTuple):
    """A row of the store, and of an export; `request` is canonical JSON."""

    request: str
    answer: str
    expires: float | None
    """Seconds since the epoch."""


class Cache:
    """Answers by request. Thread-safe, process-safe, and intact after a SIGKILL at any moment.

    Mutated by `answer` in record mode. The modes:

    * live: always fetch, store nothing;
    * record: answer from the store, else fetch and store; if two processes fetch the same answer
      concurrently, both return the one that was stored first;
    * replay: answer from the store, else raise `ReplayMiss`;
    * frozen: answer from the store, else None.
    """

    def __init__(self, path: str | Path, mode: Mode = "record", max_bytes: int = 4 << 30) -> None:
        """Prepare a cache; nothing is opened yet.

        Args:
            path: the SQLite file; record mode creates it, with its folder.
            mode: see the class.
            max_bytes: beyond this the oldest answers are deleted. SQLite's write-ahead log, a file
                next to it, may take 64 MB more.
        """
        if mode not in get_args(Mode):
            raise ValueError(f"mode {mode!r} is none of {', '.join(get_args(Mode))}")
        self.path, self.mode, self.max_bytes = Path(path), mode, max_bytes
        self._store = PerProcess(partial(Store, self.path, mode == "record"))
        self._counter = PerProcess(_FetchCounter)

    def answer(self, request: CacheRequest, fetch: Callable[[], Answer]) -> str | None:
        """Return the answer to a request, from the store or from `fetch`, as the mode says.

        Threads of this process that make the same request concurrently wait for the first of them
        and share its answer.

        Raises:
            ReplayMiss: mode replay, and the answer was not recorded.
            ToolUnavailable: the store is out of order. Exceptions of `fetch` pass through.
        """
        if self.mode == "live":
            return self._fetch(fetch).text
        store = self._store.get()
        canonical = canonicalize(request)
        key = _hash(canonical)
        if self.mode == "record":
            return store.single_flight(key, partial(self._record, store, key, canonical, fetch))
        text = store.read(key, fresh_at=None)
        if text is None and self.mode == "replay":
            raise ReplayMiss(f"{self.path} holds no answer to {canonical[:500]}")
        return text

    def fetches(self) -> int:
        """Return how many answers this thread fetched because the store did not have them."""
        return self._counter.get().count

    def close(self) -> None:
        """Close this process's connection; the next call opens it again."""
        store = self._store.pop()
        if store is not None:
            store.close()

    def _fetch(self, fetch: Callable[[], Answer]) -> Answer:
        self._counter.get().count += 1
        return fetch()

    def _record(self, store: Store, key: str, request: str, fetch: Callable[[], Answer]) -> str:
        text = store.read(key, fresh_at=time.time())
        if text is not None:
            return text
        answer = self._fetch(fetch)
        expires = None if answer.ttl_s is None else time.time() + answer.ttl_s
        return store.write(key, StoredAnswer(request, answer.text, expires), self.max_bytes)


class _FetchCounter(threading.local):
    """Answers that one thread fetched."""

    count = 0


def canonicalize(request: CacheRequest) -> str:
    """Write equal requests the same way: sorted JSON, Unicode NFC, runs of blanks as one.

    Case and punctuation stay: "C++" is not "C#" and 1.5 is not 15.
    """
    normalized = {
        name: _normalize(value) if isinstance(value, str) else value
        for name, value in request.items()
    }
    return json.dumps(normalized, sort_keys=True, separators=(",", ":"))


def export_answers(source: str | Path, target: str | Path) -> int:
    """Write every answer to gzipped JSON lines, sorted by key: equal caches give equal files.

    Returns:
        The number of answers.
    """
    store = Store(Path(source), writable=False)
    try:
        answers = store.read_all()
    finally:
        store.close()
    # No file name and no time in gzip's header, so that the bytes depend on the answers alone.
    with Path(target).open("wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as file:
        for answer in answers:
            file.write(json.dumps(answer._asdict()).encode() + b"\n")
    return len(answers)


def import_answers(source: str | Path, target: str | Path, max_bytes: int = 4 << 30) -> int:
    """Add exported answers to a cache; answers that it already has stay.

    Returns:
        The number of answers read.

    Raises:
        ValueError: a line is not an answer.
    """
    store = Store(Path(target), writable=True)
    count = 0
    try:
        with gzip.open(source, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                answer = _parse_exported(line, f"{source}:{number}")
                store.write(_hash(answer.request), answer, max_bytes)
                count += 1
    finally:
        store.close()
    return count


def _parse_exported(line: str, position: str) -> StoredAnswer:
    try:
        answer = StoredAnswer(**json.loads(line))
        expires = None if answer.expires is None else float(answer.expires)
        return StoredAnswer(canonicalize(json.loads(answer.request)), str(answer.answer), expires)
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{position}: not an exported answer: {error}") from error


def _hash(canonical_request: str) -> str:
    return hashlib.sha256(canonical_request.encode()).hexdigest()


def _normalize(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


class Store:
    """One process's connection to the file. Mutated by every call; a lock serialises threads."""

    def __init__(self, path: Path, writable: bool) -> None:
        """Open the file, creating it if `writable`.

        Raises:
            ToolUnavailable: it cannot be opened, or is not a cache.
        """
        self._path = path
        self._lock = threading.Lock()
        self._flights: dict[str, Future[str]] = {}
        with self._translate_errors():
            self._connection = _connect(path, writable)

    def single_flight(self, key: str, fetch: Callable[[], str]) -> str:
        """Return what `fetch` returns, calling it once for all threads that ask meanwhile.

        They share its failure, too: in an outage each would otherwise wait for the next in vain.
        """
        with self._lock:
            flight = self._flights.get(key)
            is_leader = flight is None
            if flight is None:
                flight = self._flights[key] = Future()
        if not is_leader:
            return flight.result()
        try:
            text = fetch()
        except Exception as error:
            flight.set_exception(error)
            raise
        except BaseException:
            # A KeyboardInterrupt, say, is for this thread alone.
            flight.set_exception(ToolUnavailable("the thread that asked was stopped"))
            raise
        else:
            flight.set_result(text)
            return text
        finally:
            with self._lock:
                del self._flights[key]

    def read(self, key: str, fresh_at: float | None) -> str | None:
        """Return the stored answer; with `fresh_at`, only if it has not expired by then."""
        with self._lock, self._translate_errors():
            sql = "SELECT answer, expires FROM answers WHERE key = ?"
            row = self._connection.execute(sql, (key,)).fetchone()
            if row is None or (fresh_at is not None and row[1] is not None and row[1] <= fresh_at):
                return None
            return _decompress(row[0])

    def write(self, key: str, answer: StoredAnswer, max_bytes: int) -> str:
        """Store the answer unless another process was first; return the one that is stored now."""
        with self._lock, self._translate_errors(), _transaction(self._connection) as sql:
            sql.execute("DELETE FROM answers WHERE key = ? AND expires <= ?", (key, time.time()))
            sql.execute(
                "INSERT OR IGNORE INTO answers (key, request, answer, expires) VALUES (?, ?, ?, ?)",
                (key, answer.request, _compress(answer.answer), answer.expires),
            )
            stored = sql.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
            while _used_bytes(sql) > max_bytes:
                sql.execute(
                    "DELETE FROM answers WHERE number IN"
                    " (SELECT number FROM answers ORDER BY number LIMIT ?)",
                    (_EVICTION_BATCH,),
                )
                if sql.execute("SELECT NOT EXISTS (SELECT 1 FROM answers)").fetchone()[0]:
                    break
            return _decompress(stored[0])

    def read_all(self) -> list[StoredAnswer]:
        """Return every answer, sorted by key."""
        with self._lock, self._translate_errors():
            sql = "SELECT request, answer, expires FROM answers ORDER BY key"
            rows = self._connection.execute(sql).fetchall()
            return [StoredAnswer(request, _decompress(a), expires) for request, a, expires in rows]

    def used_bytes(self) -> int:
        """Return the bytes of the file that are in use."""
        with self._lock, self._translate_errors():
            return _used_bytes(self._connection)

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error, zlib.error) as error:
            raise ToolUnavailable(f"the cache {self._path} is out of order: {error}") from error


def _connect(path: Path, writable: bool) -> sqlite3.Connection:
    if writable:
        path.parent.mkdir(parents=True, exist_ok=True)
        uri = path.absolute().as_uri()
    else:
        # SQLite creates a log and an index next to a file that it reads, which fails in a read-only
        # folder; `immutable` avoids them, and is safe only if no log holds unmerged answers.
        log = path.with_name(path.name + "-wal")
        settled = not os.access(path.parent, os.W_OK) and not (log.exists() and log.stat().st_size)
        uri = path.absolute().as_uri() + ("?immutable=1" if settled else "?mode=ro")
    connection = sqlite3.connect(
        uri, uri=True, timeout=_LOCK_TIMEOUT_S, isolation_level=None, check_same_thread=False
    )
    try:
        if writable:
            _enable_write_ahead_log(connection)
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("PRAGMA journal_size_limit = 67108864")
            connection.execute(_SCHEMA)
        connection.execute("SELECT count(*) FROM (SELECT 1 FROM answers LIMIT 1)")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _enable_write_ahead_log(connection: sqlite3.Connection) -> None:
    """Switch to the write-ahead log; SQLite ignores its timeout if two processes do so."""
    deadline = time.monotonic() + _LOCK_TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
        time.sleep(0.01)


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


def _used_bytes(connection: sqlite3.Connection) -> int:
    pages, free, size = (
        int(connection.execute(f"PRAGMA {name}").fetchone()[0])
        for name in ("page_count", "freelist_count", "page_size")
    )
    return (pages - free) * size


def _compress(text: str) -> bytes:
    return zlib.compress(text.encode("utf-8", "surrogatepass"), 3)


def _decompress(compressed: bytes) -> str:
    return zlib.decompress(compressed).decode("utf-8", "surrogatepass")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
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
    options = parser.parse_args(arguments)
    if options.command == "export":
        count = export_answers(options.source, options.target)
    elif options.command == "import":
        count = import_answers(options.source, options.target)
    else:
        store = Store(Path(options.source), writable=False)
        count = len(store.read_all())
        sys.stdout.write(f"{store.used_bytes()} bytes\n")
        store.close()
    sys.stdout.write(f"{count} answers\n")


if __name__ == "__main__":
    main()

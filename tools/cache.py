"""What the network said, kept in one SQLite file: recorded once, replayed to the same observations.

Knows nothing of what was asked. `python -m tools.cache --help` exports, imports and counts.
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


_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    number INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    request TEXT NOT NULL,
    answer BLOB NOT NULL,
    expires REAL
)"""


_PATIENCE_S = 60.0
"""How long one process waits while others write."""


_DROPPED_AT_ONCE = 64


class Row(NamedTuple):
    """One answer; `request` is canonical JSON and `expires` seconds since the epoch."""

    request: str
    answer: str
    expires: float | None


class Store:
    """One process's connection. Mutated by every call; SQLite and one lock keep the order."""

    def __init__(self, path: Path, writable: bool) -> None:
        """Open the file, made if `writable`.

        Raises:
            ToolUnavailable: it cannot be opened, or is not a cache.
        """
        self._path = path
        self._lock = threading.Lock()
        self._flights: dict[str, Future[str]] = {}
        with self._faults():
            self._connection = _connect(path, writable)

    def together(self, key: str, do: Callable[[], str]) -> str:
        """What `do` gives, done once for all threads that want the key meanwhile.

        They share its failure, too: during an outage each would wait for the next in vain.
        """
        with self._lock:
            flight = self._flights.get(key)
            mine = flight is None
            if flight is None:
                flight = self._flights[key] = Future()
        if not mine:
            return flight.result()
        try:
            answer = do()
        except Exception as error:
            flight.set_exception(error)
            raise
        except BaseException:
            flight.set_exception(ToolUnavailable("the thread that asked was stopped"))
            raise
        else:
            flight.set_result(answer)
            return answer
        finally:
            with self._lock:
                del self._flights[key]

    def read(self, key: str, fresh_at: float | None) -> str | None:
        """The stored answer; with `fresh_at`, only if it has not expired by then."""
        with self._lock, self._faults():
            sql = "SELECT answer, expires FROM answers WHERE key = ?"
            row = self._connection.execute(sql, (key,)).fetchone()
            if row is None or (fresh_at is not None and row[1] is not None and row[1] <= fresh_at):
                return None
            return _unpacked(row[0])

    def write(self, key: str, row: Row, max_bytes: int) -> str:
        """Store the row unless another process was first; the answer that is stored now."""
        with self._lock, self._faults(), _transaction(self._connection) as sql:
            sql.execute("DELETE FROM answers WHERE key = ? AND expires <= ?", (key, time.time()))
            sql.execute(
                "INSERT OR IGNORE INTO answers (key, request, answer, expires) VALUES (?, ?, ?, ?)",
                (key, row.request, _packed(row.answer), row.expires),
            )
            kept = sql.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
            while _used_bytes(sql) > max_bytes:
                sql.execute(
                    "DELETE FROM answers WHERE number IN"
                    " (SELECT number FROM answers ORDER BY number LIMIT ?)",
                    (_DROPPED_AT_ONCE,),
                )
                if sql.execute("SELECT NOT EXISTS (SELECT 1 FROM answers)").fetchone()[0]:
                    break
            return _unpacked(kept[0])

    def rows(self) -> list[tuple[str, Row]]:
        """Every key and row, by key."""
        with self._lock, self._faults():
            sql = "SELECT key, request, answer, expires FROM answers ORDER BY key"
            found = self._connection.execute(sql).fetchall()
            return [(key, Row(asked, _unpacked(answer), end)) for key, asked, answer, end in found]

    def used_bytes(self) -> int:
        """Bytes of the file that hold something."""
        with self._lock, self._faults():
            return _used_bytes(self._connection)

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error, zlib.error) as error:
            raise ToolUnavailable(f"the cache {self._path} is out of order: {error}") from error


def _connect(path: Path, writable: bool) -> sqlite3.Connection:
    if writable:
        path.parent.mkdir(parents=True, exist_ok=True)
        uri = path.absolute().as_uri()
    else:
        log = path.with_name(path.name + "-wal")
        settled = not os.access(path.parent, os.W_OK) and not (log.exists() and log.stat().st_size)
        uri = path.absolute().as_uri() + ("?immutable=1" if settled else "?mode=ro")
    connection = sqlite3.connect(
        uri, uri=True, timeout=_PATIENCE_S, isolation_level=None, check_same_thread=False
    )
    try:
        if writable:
            _log_ahead(connection)
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("PRAGMA journal_size_limit = 67108864")
            connection.execute(_SCHEMA)
        connection.execute("SELECT count(*) FROM (SELECT 1 FROM answers LIMIT 1)")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _log_ahead(connection: sqlite3.Connection) -> None:
    """Turn to SQLite's log; this once, SQLite does not wait for others who do it too."""
    until = time.monotonic() + _PATIENCE_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > until:
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


def _packed(text: str) -> bytes:
    return zlib.compress(text.encode("utf-8", "surrogatepass"), 3)


def _unpacked(packed: bytes) -> str:
    return zlib.decompress(packed).decode("utf-8", "surrogatepass")


if __name__ == "__main__":
    main()

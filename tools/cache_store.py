"""The SQLite file under `tools.cache`: one connection, its tables and its limits."""

import os
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tools.tool import ToolUnavailable

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

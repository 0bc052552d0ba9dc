"""Reads raw rows: from JSONL or Parquet files, or from the Hugging Face hub at a pinned revision.

What a row means is not known here. `datasets` and `pyarrow` are imported only when needed.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import wrap
from typing import Protocol

TableRow = Mapping[str, object]

_COMMIT_DIGITS = 40
"""Hex digits of a commit; a shorter revision is a branch."""
_ROW_DIGITS = 8
"""Hex digits of a row's digest."""
_BUILDERS = {"jsonl": "json", "csv": "csv", "parquet": "parquet"}
"""The builder of `datasets` by a file's extension."""

log = logging.getLogger(__name__)


class DataUnavailable(RuntimeError):
    """Rows cannot be read; the message says what was requested and what to do."""


@dataclass(frozen=True)
class HubTable:
    """One table of a public data set."""

    path: str
    """owner/name on the hub."""
    revision: str
    """A commit, so that the rows cannot change under a published number; or a branch, if no commit
    is stated anywhere: its rows then have a pin, and its commit is logged when it is read."""
    split: str
    configs: tuple[str | None, ...] = (None,)
    """Configurations, read one after the other; None is the only one."""
    data_files: str | None = None
    """The one file to read, if the data set has several of different shapes; its split is train."""
    drop: tuple[str, ...] = ()
    """Columns left unread, such as pictures that would have to be decoded."""
    gated: bool = False
    """True if the owner asks every reader to accept terms."""
    pin: RowPin | None = None
    """The expected rows, if the revision alone does not fix them."""
    fallback: HubTable | None = None
    """The table to read if this one is unavailable or has other rows; it must match the same pin.
    """

    @property
    def page(self) -> str:
        """The page on which the terms of a gated set are accepted."""
        return f"https://huggingface.co/datasets/{self.path}"


@dataclass(frozen=True)
class RowPin:
    """Digests of rows that a table had when it was inspected."""

    rows: int
    """The table's number of rows."""
    digests: str
    """`row_digest` of its inspected rows, in their order, joined."""
    texts: Callable[[TableRow], tuple[str, str]]
    """A row's question and answer."""

    def difference(self, rows: Sequence[TableRow]) -> str:
        """Describe how rows differ from the inspected ones; empty if no difference shows."""
        expected = wrap(self.digests, _ROW_DIGITS)
        digests = [row_digest(*self.texts(row)) for row in rows]
        indices = {digest: index for index, digest in reversed(list(enumerate(digests)))}
        order = [indices[digest] for digest in expected if digest in indices]
        faults = []
        if len(rows) != self.rows:
            faults.append(f"{len(rows):,} rows, not {self.rows:,}")
        if len(order) < len(expected):
            missing = len(expected) - len(order)
            faults.append(f"{missing} of {len(expected)} known rows are not there")
        if order != sorted(order):
            faults.append("rows in another order")
        return "; ".join(faults)


def row_digest(*texts: str) -> str:
    """Return the first hex digits of the sha256 of a row's question and answer."""
    text = "\0".join(part.strip() for part in texts)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_ROW_DIGITS]


Fetch = Callable[[HubTable], Iterable[TableRow]]
"""Reads a table; raises DataUnavailable. A test passes its own."""


class HubRows(Protocol):
    """The part of `datasets.Dataset` that is used here."""

    column_names: list[str]

    def remove_columns(self, column_names: list[str]) -> Iterable[TableRow]: ...


def fetch_from_hub(
    table: HubTable,
    load_dataset: Callable[..., HubRows] | None = None,
    commit_of: Callable[[HubTable], str] | None = None,
) -> Iterator[TableRow]:
    """Yield the rows of a hub table, through `datasets` and its cache.

    Args:
        table: to read; a branch is read at its current commit, which is logged.
        load_dataset: `datasets.load_dataset`, unless a test passes its own.
        commit_of: asks the hub for the current commit of a table's branch; a test passes its own.

    Raises:
        DataUnavailable: not reachable, not found, gated and not accepted, or not the pinned rows.
    """
    if load_dataset is None:
        import datasets

        load_dataset = datasets.load_dataset
    commit_of = commit_of or _current_commit
    if table.pin is None:
        yield from _read_table(table, load_dataset, commit_of)
        return
    faults = []
    for candidate in filter(None, (table, table.fallback)):
        try:
            rows = list(_read_table(candidate, load_dataset, commit_of))
            difference = table.pin.difference(rows)
        except DataUnavailable as error:
            faults.append(str(error))
            continue
        if not difference:
            yield from rows
            return
        faults.append(_difference_message(candidate, difference))
    raise DataUnavailable("\n".join(faults))


def fetch_file(table: HubTable, name: str) -> Path:
    """Download a file of a hub data set into the hub's cache.

    Raises:
        DataUnavailable: not reachable, not found, or gated and not accepted.
    """
    from huggingface_hub import hf_hub_download

    try:
        path = hf_hub_download(table.path, name, repo_type="dataset", revision=table.revision)
    except _hub_errors() as error:
        raise DataUnavailable(hub_failure_message(table, error)) from error
    return Path(path)


def _read_table(
    table: HubTable, load_dataset: Callable[..., HubRows], commit_of: Callable[[HubTable], str]
) -> Iterator[TableRow]:
    if len(table.revision) != _COMMIT_DIGITS:
        table = _resolve_branch(table, commit_of)
    for config in table.configs:
        try:
            if table.data_files is None:
                rows = load_dataset(table.path, config, split=table.split, revision=table.revision)
            else:
                file = f"hf://datasets/{table.path}@{table.revision}/{table.data_files}"
                builder = _BUILDERS[file.rpartition(".")[2]]
                rows = load_dataset(builder, data_files=file, split=table.split)
        except _hub_errors() as error:
            raise DataUnavailable(hub_failure_message(table, error)) from error
        yield from rows.remove_columns([c for c in table.drop if c in rows.column_names])


def _resolve_branch(table: HubTable, commit_of: Callable[[HubTable], str]) -> HubTable:
    """Return the table at its branch's current commit; unchanged if the hub does not tell it."""
    message = "%s is known by its rows, not by a commit: read at %s of its branch %s"
    try:
        commit = commit_of(table)
    except _hub_errors() as error:
        unknown = f"an unknown commit ({type(error).__name__})"
        log.warning(message, table.path, unknown, table.revision)
        return table
    log.warning(message, table.path, f"commit {commit}", table.revision)
    return replace(table, revision=commit)


def _current_commit(table: HubTable) -> str:
    from huggingface_hub import HfApi

    return str(HfApi().dataset_info(table.path, revision=table.revision).sha)


def _hub_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions that a read from the hub may raise.

    The hub's client passes on the errors of its HTTP library, from which its own error derives.
    """
    from huggingface_hub.errors import HfHubHTTPError

    bases = [base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception)]
    return (OSError, ValueError, RuntimeError, *bases)


def hub_failure_message(table: HubTable, error: BaseException) -> str:
    """Write the message for a read from the hub that failed."""
    message = (
        f"could not read {table.path} (split {table.split}, revision {table.revision[:12]}) from "
        f"the Hugging Face hub: {type(error).__name__}: {str(error)[:200]}. "
    )
    if table.gated:
        message += (
            f"The set is gated: accept its terms at {table.page} and put a token of the same "
            "account into the environment variable HF_TOKEN. "
        )
    return message + "Or read local files, layout in the README: --data-dir FOLDER."


def _difference_message(table: HubTable, difference: str) -> str:
    return (
        f"{table.path} (split {table.split}, revision {table.revision[:12]}) does not hold the "
        f"rows that it is known by: {difference}. Numbers on them do not compare with others. "
        "Read local files, layout in the README: --data-dir FOLDER."
    )


def local_rows(data_dir: Path, stem: str) -> Iterator[TableRow]:
    """Read the rows of `data_dir/stem.jsonl` or `data_dir/stem.parquet`.

    Raises:
        DataUnavailable: neither file exists, or the file cannot be read.
    """
    jsonl, parquet = data_dir / f"{stem}.jsonl", data_dir / f"{stem}.parquet"
    if jsonl.is_file():
        return _read_jsonl(jsonl)
    if parquet.is_file():
        return _read_parquet(parquet)
    raise DataUnavailable(
        f"no rows for {stem} under --data-dir {data_dir}: expected {stem}.jsonl or {stem}.parquet "
        "there, in the original field names. Without --data-dir the public data set is read."
    )


def _read_jsonl(path: Path) -> Iterator[TableRow]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataUnavailable(f"{path}, line {number} is not JSON: {error}") from error
            if not isinstance(row, dict):
                raise DataUnavailable(f"{path}, line {number} is not a JSON object")
            yield row


def _read_parquet(path: Path) -> Iterator[TableRow]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                yield from batch.to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise DataUnavailable(f"{path} is not a Parquet file: {error}") from error


def get_field(row: TableRow, *names: str) -> object:
    """Return the first of `names` for which the row has a value.

    Raises:
        DataUnavailable: it has none of them.
    """
    for name in names:
        if row.get(name) is not None:
            return row[name]
    raise DataUnavailable(
        f"a row has none of the fields {', '.join(names)}; it has {', '.join(sorted(row))}"
    )


def get_text(row: TableRow, *names: str) -> str:
    """Return `get_field` as stripped text."""
    return str(get_field(row, *names)).strip()


def get_metadata(row: TableRow, *names: str) -> tuple[tuple[str, str], ...]:
    """Return (name, value) pairs of the fields for which the row has a value."""
    return tuple((name, str(row[name])) for name in names if row.get(name) is not None)


def get_id(row: TableRow, question: str) -> str:
    """Return the row's own id, else the question's."""
    own_id = row.get("id")
    return question_id(question) if own_id is None else str(own_id)


def question_id(question: str) -> str:
    """Return an id for a row that has none: 12 hex digits of the question's sha256."""
    return hashlib.sha256(question.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def question_key(question: str) -> str:
    """Return a key that is equal for questions that differ only in case, blanks, punctuation."""
    return question_id("".join(filter(str.isalnum, question.casefold())))

"""Reads raw rows: from JSONL or Parquet files, or from the Hugging Face hub at a pinned revision.

What a row means is not known here; `datasets` and `pyarrow` are imported only when needed.
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

Row = Mapping[str, object]


log = logging.getLogger(__name__)


class DataUnavailable(RuntimeError):
    """Rows cannot be had; the message says what was asked for and what to do."""


@dataclass(frozen=True)
class HubTable:
    """One table of a public data set."""

    path: str
    """owner/name on the hub."""
    revision: str
    """A commit, so that the rows cannot change under a published number; a branch where none is
    stated anywhere: its rows then have a pin, and its commit is said when it is read."""
    split: str
    configs: tuple[str | None, ...] = (None,)
    """Read one after the other; None is the only configuration."""
    data_files: str | None = None
    """The one file to read, where the data set holds several of different shapes; split train."""
    drop: tuple[str, ...] = ()
    """Columns left unread: pictures that would have to be decoded."""
    gated: bool = False
    """True where the owner asks every reader to accept terms."""
    pin: Pin | None = None
    """What its rows must be, where the revision alone does not say it."""
    instead: HubTable | None = None
    """Read where this one cannot be had or holds other rows; the same pin decides."""

    @property
    def page(self) -> str:
        """Where the terms of a gated set are accepted."""
        return f"https://huggingface.co/datasets/{self.path}"


_COMMIT = 40
"""Hex digits of a commit."""


_BUILDERS = {"jsonl": "json", "csv": "csv", "parquet": "parquet"}

Fetch = Callable[[HubTable], Iterable[Row]]
"""Reads a table; raises DataUnavailable. Tests pass their own."""


class HubRows(Protocol):
    """What is used of a `datasets.Dataset`."""

    column_names: list[str]

    def remove_columns(self, column_names: list[str]) -> Iterable[Row]: ...


def fetch_from_hub(
    table: HubTable,
    load_dataset: Callable[..., HubRows] | None = None,
    commit_of: Callable[[HubTable], str] | None = None,
) -> Iterator[Row]:
    """The rows of a hub table, through `datasets` and its cache.

    Args:
        table: what to read; a branch is read at the commit it is at now, which is logged.
        load_dataset: `datasets.load_dataset`, unless a test brings its own.
        commit_of: asks the hub which commit a table's branch is at; the same.

    Raises:
        DataUnavailable: not reachable, not found, gated and not accepted, or not the rows that the
            table is known by.
    """
    if load_dataset is None:
        import datasets

        load_dataset = datasets.load_dataset
    commit_of = commit_of or _commit_on_hub
    if table.pin is None:
        yield from _read(table, load_dataset, commit_of)
        return
    faults = []
    for place in filter(None, (table, table.instead)):
        try:
            rows = list(_read(place, load_dataset, commit_of))
            difference = table.pin.difference(rows)
        except DataUnavailable as error:
            faults.append(str(error))
            continue
        if not difference:
            yield from rows
            return
        faults.append(changed(place, difference))
    raise DataUnavailable("\n".join(faults))


def _read(
    table: HubTable, load_dataset: Callable[..., HubRows], commit_of: Callable[[HubTable], str]
) -> Iterator[Row]:
    if len(table.revision) != _COMMIT:
        table = _at_a_commit(table, commit_of)
    for config in table.configs:
        try:
            if table.data_files is None:
                rows = load_dataset(table.path, config, split=table.split, revision=table.revision)
            else:
                file = f"hf://datasets/{table.path}@{table.revision}/{table.data_files}"
                kind = _BUILDERS[file.rpartition(".")[2]]
                rows = load_dataset(kind, data_files=file, split=table.split)
        except _failures() as error:
            raise DataUnavailable(hub_failure(table, error)) from error
        yield from rows.remove_columns([c for c in table.drop if c in rows.column_names])


def changed(table: HubTable, difference: str) -> str:
    """What to tell someone whose rows are not those that a table is known by."""
    return (
        f"{table.path} (split {table.split}, revision {table.revision[:12]}) does not hold the "
        f"rows that it is known by: {difference}. Numbers on them cannot be put beside others. "
        "Read local files, layout in the README: --data-dir FOLDER."
    )


def _at_a_commit(table: HubTable, commit_of: Callable[[HubTable], str]) -> HubTable:
    """The table at the commit that its branch is at now; as it is where the hub does not say."""
    said = "%s is known by its rows, not by a commit: read at %s of its branch %s"
    try:
        commit = commit_of(table)
    except _failures() as error:
        log.warning(said, table.path, f"an unknown commit ({type(error).__name__})", table.revision)
        return table
    log.warning(said, table.path, f"commit {commit}", table.revision)
    return replace(table, revision=commit)


def _commit_on_hub(table: HubTable) -> str:
    from huggingface_hub import HfApi

    return str(HfApi().dataset_info(table.path, revision=table.revision).sha)


def _failures() -> tuple[type[Exception], ...]:
    """What a read from the hub may raise.

    The hub's client lets the errors of its HTTP library through, of which its own is one.
    """
    from huggingface_hub.errors import HfHubHTTPError

    bases = [base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception)]
    return (OSError, ValueError, RuntimeError, *bases)


def hub_failure(table: HubTable, error: BaseException) -> str:
    """What to tell someone whose hub read failed."""
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


def fetch_file(table: HubTable, name: str) -> Path:
    """A file of a hub data set, downloaded into the hub's cache.

    Raises:
        DataUnavailable: not reachable, not there, or gated and not accepted.
    """
    from huggingface_hub import hf_hub_download

    try:
        path = hf_hub_download(table.path, name, repo_type="dataset", revision=table.revision)
    except _failures() as error:
        raise DataUnavailable(hub_failure(table, error)) from error
    return Path(path)


def local_rows(data_dir: Path, stem: str) -> Iterator[Row]:
    """The rows of `data_dir/stem.jsonl` or `data_dir/stem.parquet`.

    Raises:
        DataUnavailable: neither is there, or the file cannot be read.
    """
    jsonl, parquet = data_dir / f"{stem}.jsonl", data_dir / f"{stem}.parquet"
    if jsonl.is_file():
        return _jsonl_rows(jsonl)
    if parquet.is_file():
        return _parquet_rows(parquet)
    raise DataUnavailable(
        f"no rows for {stem} under --data-dir {data_dir}: expected {stem}.jsonl or {stem}.parquet "
        "there, in the original field names. Without --data-dir the public data set is read."
    )


def _jsonl_rows(path: Path) -> Iterator[Row]:
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


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                yield from batch.to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise DataUnavailable(f"{path} is not a Parquet file: {error}") from error


def field(row: Row, *names: str) -> object:
    """The first of `names` that the row has a value for.

    Raises:
        DataUnavailable: it has none of them.
    """
    for name in names:
        if row.get(name) is not None:
            return row[name]
    raise DataUnavailable(
        f"a row has none of the fields {', '.join(names)}; it has {', '.join(sorted(row))}"
    )


def text_field(row: Row, *names: str) -> str:
    """`field` as stripped text."""
    return str(field(row, *names)).strip()


def question_id(question: str) -> str:
    """The id of a row that brings none: 12 hex digits of the question's sha256."""
    return hashlib.sha256(question.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def question_key(question: str) -> str:
    """Equal for questions that differ only in case, blanks and punctuation."""
    return question_id("".join(filter(str.isalnum, question.casefold())))


_DIGITS = 8


def row_digest(*texts: str) -> str:
    """The first hex digits of the sha256 of a row's question and answer."""
    text = "\0".join(part.strip() for part in texts)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGITS]


@dataclass(frozen=True)
class Pin:
    """What a table held when it was seen."""

    rows: int
    """All of them."""
    digests: str
    """`row_digest` of rows of it, in their order, one after the other; the rest were not seen."""
    texts: Callable[[Mapping[str, object]], tuple[str, str]]
    """Question and answer of a row."""

    def difference(self, rows: Sequence[Mapping[str, object]]) -> str:
        """How rows differ from those that were seen; empty where nothing shows."""
        known = wrap(self.digests, _DIGITS)
        found = [row_digest(*self.texts(row)) for row in rows]
        places = {digest: place for place, digest in reversed(list(enumerate(found)))}
        there = [places[digest] for digest in known if digest in places]
        faults = []
        if len(rows) != self.rows:
            faults.append(f"{len(rows):,} rows, not {self.rows:,}")
        if len(there) < len(known):
            faults.append(f"{len(known) - len(there)} of {len(known)} known rows are not there")
        if there != sorted(there):
            faults.append("rows in another order")
        return "; ".join(faults)

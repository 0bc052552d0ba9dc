"""BM25 over passages on disk, for corpora from a thousand to tens of millions of passages.

An index is a folder, opened memory-mapped: processes share its pages through the operating system.
It is tantivy's format with terms of our own (`tools.search.retrievers`): recall is that of
`MemoryRetriever`, scores differ by a constant and by the rounding of lengths.

`python -m tools.local_index --help` builds one.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tools.per_process import PerProcess
from tools.search.retrievers import TITLE_WEIGHT, Hit, PassageLike, query_terms, terms
from tools.tool import ToolUnavailable

if TYPE_CHECKING:
    import tantivy


_FORMAT = 1
"""Raised when terms or fields change, so that an index of another making is refused."""


_NOTE = "appo.json"


_LONGEST_TERM = 200


_TIES = 16
"""Extra hits looked at where scores are equal, so that those keep the order of the passages."""


class Passage(NamedTuple):
    """A line of a corpus."""

    title: str
    text: str


class LocalRetriever:
    """Searches an index on disk. Thread-safe; each process opens it at its first search.

    Passages added later are seen by those who open the index after that.
    """

    def __init__(self, path: str | Path) -> None:
        """A retriever; nothing is opened yet.

        Raises:
            FileNotFoundError: there is no index.
        """
        self.path = Path(path)
        if not (self.path / _NOTE).is_file():
            command = f"python -m tools.local_index build passages.jsonl {path}"
            raise FileNotFoundError(f"{path} holds no index; make one with `{command}`")
        self._opened = PerProcess(partial(_Opened, self.path))

    def search(self, query: str, k: int) -> list[Hit]:
        """At most `k` passages that share a term with the query, best first.

        Raises:
            ToolUnavailable: the index cannot be read.
        """
        return self._opened.get().search(query, k)

    def close(self) -> None:
        """Forget the open index; the next search opens it again."""
        self._opened.pop()

    def __len__(self) -> int:
        return self._opened.get().searcher.num_docs


def build(passages: Iterable[PassageLike], path: str | Path, heap_bytes: int = 1 << 30) -> int:
    """Make an index; it appears under its name when it is whole.

    Args:
        passages: read once.
        path: a folder that does not exist.
        heap_bytes: memory for passages that are not on disk yet.

    Returns:
        The number of passages.

    Raises:
        FileExistsError: there is something already.
    """
    import tantivy

    with whole_folder(path, "; `add` puts passages into an index that is there") as folder:
        count = _write(tantivy.Index(_schema(), str(folder)), passages, 0, heap_bytes)
        (folder / _NOTE).write_text(json.dumps({"format": _FORMAT}) + "\n")
    return count


def add(passages: Iterable[PassageLike], path: str | Path, heap_bytes: int = 1 << 30) -> int:
    """Add passages to an index, all of them or, if anything fails, none.

    Returns:
        The number added. Nothing looks for passages that are there already.

    Raises:
        ToolUnavailable: the index cannot be read, or another process is adding to it.
    """
    opened = _Opened(Path(path))
    try:
        return _write(opened.index, passages, opened.searcher.num_docs, heap_bytes)
    except ValueError as error:
        if "Lock" not in str(error):
            raise
        raise ToolUnavailable(f"another process is adding to {path}") from error


def read_passages(path: str | Path) -> Iterator[Passage]:
    """Passages from JSON lines, maybe in .gz: with "title" and "text", or with "contents".

    The first line of "contents" is the title.

    Raises:
        ValueError: a line is neither.
    """
    path = Path(path)
    open_text = gzip.open if path.suffix == ".gz" else open
    with open_text(path, "rt", encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
                if "text" in row:
                    yield Passage(str(row.get("title", "")), str(row["text"]))
                else:
                    title, _, text = str(row["contents"]).partition("\n")
                    yield Passage(title.strip().strip('"'), text)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                wanted = '{"title": ..., "text": ...} or {"contents": "title\\ntext"}'
                raise ValueError(f"{path}:{number}: not {wanted}") from error


class _Opened:
    """An index as one process sees it."""

    def __init__(self, path: Path) -> None:
        import tantivy

        self._path = path
        try:
            note = json.loads((path / _NOTE).read_text())
            if note.get("format") != _FORMAT:
                raise ToolUnavailable(f"{path} is of another version; build it anew")
            self.index = tantivy.Index.open(str(path))
            self.index.config_reader("Manual")  # no thread watches the files
            self.searcher = self.index.searcher()
        except (OSError, ValueError) as error:
            raise ToolUnavailable(f"cannot open the index {path}: {error}") from error
        self._schema = self.index.schema

    def search(self, query: str, k: int) -> list[Hit]:
        import tantivy

        words = query_terms(query)
        if not words or k < 1:
            return []
        term, should = tantivy.Query.term_query, tantivy.Occur.Should
        wanted = tantivy.Query.boolean_query(
            [(should, term(self._schema, "terms", word, "freq")) for word in words]
        )
        try:
            best = self._best(wanted, k)
            return [self._hit(score, place) for score, place in best]
        except (OSError, ValueError) as error:
            raise ToolUnavailable(f"cannot read the index {self._path}: {error}") from error

    def _best(self, wanted: tantivy.Query, k: int) -> list[tuple[float, tantivy.DocAddress]]:
        hits = self.searcher.search(wanted, k + 1, count=False).hits
        if len({score for score, _ in hits}) == len(hits):
            return hits[:k]
        hits = self.searcher.search(wanted, k + _TIES, count=False).hits
        numbers = self.searcher.fast_field_values("number", [place for _, place in hits])
        order = sorted(range(len(hits)), key=lambda i: (-hits[i][0], numbers[i]))
        return [hits[i] for i in order[:k]]

    def _hit(self, score: float, place: tantivy.DocAddress) -> Hit:
        title, text = json.loads(self.searcher.doc(place)["page"][0])
        return Hit(title, text, score)


def _schema() -> tantivy.Schema:
    import tantivy

    builder = tantivy.SchemaBuilder()
    builder.add_text_field("terms", tokenizer_name="whitespace", index_option="freq")
    builder.add_bytes_field("page", stored=True)
    builder.add_unsigned_field("number", fast=True)
    return builder.build()


def _write(
    index: tantivy.Index, passages: Iterable[PassageLike], first: int, heap_bytes: int
) -> int:
    import tantivy

    writer = index.writer(heap_bytes, 1)
    number = first
    try:
        for number, passage in enumerate(passages, start=first + 1):
            words = terms(passage.title) * TITLE_WEIGHT + terms(passage.text)
            document = tantivy.Document()
            document.add_text("terms", " ".join(w for w in words if len(w) <= _LONGEST_TERM))
            document.add_bytes("page", json.dumps([passage.title, passage.text]).encode())
            document.add_unsigned("number", number)
            writer.add_document(document)
        writer.commit()
    except BaseException:
        writer.rollback()
        raise
    finally:
        writer.wait_merging_threads()
    return number - first


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.local_index", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("build", "add"):
        command = commands.add_parser(name)
        command.add_argument("passages", help="JSON lines, maybe in .gz")
        command.add_argument("index", help="the folder")
        command.add_argument("--heap-mb", type=int, default=1024, help="memory while writing")
    command = commands.add_parser("search")
    command.add_argument("index")
    command.add_argument("query")
    command.add_argument("-k", type=int, default=3)
    given = parser.parse_args(arguments)
    if given.command == "search":
        for hit in LocalRetriever(given.index).search(given.query, given.k):
            sys.stdout.write(f"{hit.score:.3f}\t{hit.title}\t{hit.text}\n")
        return
    write = build if given.command == "build" else add
    count = write(read_passages(given.passages), given.index, given.heap_mb << 20)
    sys.stdout.write(f"{count} passages written to {given.index}\n")


@contextmanager
def whole_folder(path: str | Path, advice: str = "") -> Iterator[Path]:
    """A folder beside `path` to write into; it takes its place if the block ends well.

    Args:
        path: a folder that does not exist.
        advice: what to do if it does.

    Raises:
        FileExistsError: there is something already.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} exists{advice}")
    making = path.with_name(f"{path.name}.making-{os.getpid()}")
    making.mkdir(parents=True)
    try:
        yield making
        making.rename(path)
    except BaseException:
        shutil.rmtree(making, ignore_errors=True)
        raise

"""BM25 over passages on disk, for corpora from a thousand to tens of millions of passages.

An index is a folder, opened memory-mapped: processes share its pages through the operating system.
It is tantivy's format over our own terms (`tools.search.retrievers`): recall equals that of
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
from tools.search.retrievers import Hit, PassageLike, passage_terms, query_terms
from tools.tool import ToolUnavailable

if TYPE_CHECKING:
    import tantivy

_FORMAT = 1
"""Raise it when terms or fields change, so that an index of the old format is refused."""
_INFO_FILE = "appo.json"
_MAX_TERM_CHARACTERS = 200
_TIE_HITS = 16
"""Extra hits requested if scores are equal, so that passages of equal score keep their order."""


class Passage(NamedTuple):
    """A line of a corpus."""

    title: str
    text: str


class LocalRetriever:
    """Searches an index on disk. Thread-safe; each process opens it at its first search.

    A process that opened the index before passages were added does not see them.
    """

    def __init__(self, path: str | Path) -> None:
        """Prepare a retriever; nothing is opened yet.

        Raises:
            FileNotFoundError: there is no index.
        """
        self.path = Path(path)
        if not (self.path / _INFO_FILE).is_file():
            command = f"python -m tools.local_index build passages.jsonl {path}"
            raise FileNotFoundError(f"{path} holds no index; make one with `{command}`")
        self._index = PerProcess(partial(_OpenIndex, self.path))

    def search(self, query: str, k: int) -> list[Hit]:
        """Return at most `k` passages that share a term with the query, best first.

        Raises:
            ToolUnavailable: the index cannot be read.
        """
        return self._index.get().search(query, k)

    def close(self) -> None:
        """Drop the open index; the next search opens it again."""
        self._index.pop()

    def __len__(self) -> int:
        return self._index.get().searcher.num_docs


def build(passages: Iterable[PassageLike], path: str | Path, heap_bytes: int = 1 << 30) -> int:
    """Build an index; it appears under its name once it is complete.

    Args:
        passages: read once.
        path: a folder that does not exist yet.
        heap_bytes: memory for passages that are not on disk yet.

    Returns:
        The number of passages.

    Raises:
        FileExistsError: the path exists.
    """
    import tantivy

    advice = "; `add` puts passages into an index that is there"
    with create_folder_atomically(path, advice) as folder:
        count = _write(tantivy.Index(_schema(), str(folder)), passages, 0, heap_bytes)
        (folder / _INFO_FILE).write_text(json.dumps({"format": _FORMAT}) + "\n")
    return count


def add(passages: Iterable[PassageLike], path: str | Path, heap_bytes: int = 1 << 30) -> int:
    """Add passages to an index: all of them or, if anything fails, none.

    Passages that it already has are not detected.

    Returns:
        The number of passages added.

    Raises:
        ToolUnavailable: the index cannot be read, or another process is adding to it.
    """
    index = _OpenIndex(Path(path))
    try:
        return _write(index.index, passages, index.searcher.num_docs, heap_bytes)
    except ValueError as error:
        if "Lock" not in str(error):
            raise
        raise ToolUnavailable(f"another process is adding to {path}") from error


def read_passages(path: str | Path) -> Iterator[Passage]:
    """Read passages from JSON lines, maybe in .gz: with "title" and "text", or with "contents".

    The first line of "contents" is the title.

    Raises:
        ValueError: a line has neither.
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
                    yield split_contents(str(row["contents"]))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                expected = '{"title": ..., "text": ...} or {"contents": "title\\ntext"}'
                raise ValueError(f"{path}:{number}: not {expected}") from error


def split_contents(contents: str) -> Passage:
    """Split a "contents" field, whose first line is the title, maybe in quotation marks."""
    title, _, text = contents.partition("\n")
    return Passage(title.strip().strip('"'), text)


@contextmanager
def create_folder_atomically(path: str | Path, advice: str = "") -> Iterator[Path]:
    """Yield a temporary folder next to `path`; rename it to `path` if the block succeeds.

    Args:
        path: a folder that does not exist yet.
        advice: what to do if it does.

    Raises:
        FileExistsError: the path exists.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} exists{advice}")
    temporary = path.with_name(f"{path.name}.making-{os.getpid()}")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


class _OpenIndex:
    """An index as opened by one process."""

    def __init__(self, path: Path) -> None:
        import tantivy

        self._path = path
        try:
            info = json.loads((path / _INFO_FILE).read_text())
            if info.get("format") != _FORMAT:
                raise ToolUnavailable(f"{path} has another version of the format; build it again")
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
        any_word = tantivy.Query.boolean_query(
            [(should, term(self._schema, "terms", word, "freq")) for word in words]
        )
        try:
            return [self._hit(score, address) for score, address in self._best(any_word, k)]
        except (OSError, ValueError) as error:
            raise ToolUnavailable(f"cannot read the index {self._path}: {error}") from error

    def _best(self, query: tantivy.Query, k: int) -> list[tuple[float, tantivy.DocAddress]]:
        hits = self.searcher.search(query, k + 1, count=False).hits
        if len({score for score, _ in hits}) == len(hits):
            return hits[:k]
        hits = self.searcher.search(query, k + _TIE_HITS, count=False).hits
        numbers = self.searcher.fast_field_values("number", [address for _, address in hits])
        order = sorted(range(len(hits)), key=lambda i: (-hits[i][0], numbers[i]))
        return [hits[i] for i in order[:k]]

    def _hit(self, score: float, address: tantivy.DocAddress) -> Hit:
        title, text = json.loads(self.searcher.doc(address)["page"][0])
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
    """Write passages, numbered after the `first` that are there, in one transaction."""
    import tantivy

    writer = index.writer(heap_bytes, 1)
    number = first
    try:
        for number, passage in enumerate(passages, start=first + 1):
            words = passage_terms(passage.title, passage.text)
            document = tantivy.Document()
            document.add_text("terms", " ".join(w for w in words if len(w) <= _MAX_TERM_CHARACTERS))
            # As JSON bytes, because tantivy's text has no lone surrogates.
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
    """Run the command line."""
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
    options = parser.parse_args(arguments)
    if options.command == "search":
        for hit in LocalRetriever(options.index).search(options.query, options.k):
            sys.stdout.write(f"{hit.score:.3f}\t{hit.title}\t{hit.text}\n")
        return
    write = build if options.command == "build" else add
    count = write(read_passages(options.passages), options.index, options.heap_mb << 20)
    sys.stdout.write(f"{count} passages written to {options.index}\n")

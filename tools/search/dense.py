"""Passages by meaning: exact nearest neighbours among vectors on disk, memory-mapped.

Time and memory grow with the corpus: 384 numbers of 4 bytes a passage with the model it is tested
with. `python -m tools.dense --help` builds an index.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tools.extras import require
from tools.per_process import PerProcess
from tools.search.local_index import read_passages, whole_folder
from tools.search.retrievers import Hit, PassageLike
from tools.tool import ToolUnavailable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


Encode = Callable[[Sequence[str]], "NDArray[np.float32]"]
"""Texts to vectors of length 1, (N, D)."""


_NOTE = "appo-dense.json"


_FORMAT = 1


_BATCH = 256


_ROWS_AT_ONCE = 1 << 17


class _Note(NamedTuple):
    """What a folder says of itself."""

    format: int
    model: str
    query_prefix: str
    passages: int
    dimensions: int


class DenseRetriever:
    """Searches vectors on disk. Thread-safe.

    Each process opens model and index at its first search.
    """

    def __init__(self, path: str | Path, encode: Encode | None = None) -> None:
        """A retriever; nothing is opened yet.

        Args:
            path: a folder made by `build`.
            encode: of queries; None: the model that the folder names.

        Raises:
            FileNotFoundError: there is no index.
            ModuleNotFoundError: the model needs a package that is not installed.
        """
        self.path = Path(path)
        if not is_dense(self.path):
            command = f"python -m tools.dense build passages.jsonl {path} --model NAME"
            raise FileNotFoundError(f"{path} holds no index of vectors; make one with `{command}`")
        if encode is None:
            require("dense", "sentence_transformers")
        self._opened = PerProcess(partial(_Opened, self.path, encode))

    def search(self, query: str, k: int) -> list[Hit]:
        """The `k` passages nearest to the query; the score is the cosine.

        Raises:
            ToolUnavailable: the index cannot be read.
        """
        return self._opened.get().search(query, k) if query.strip() and k > 0 else []

    def close(self) -> None:
        """Forget model and index; the next search opens them again."""
        self._opened.pop()


def is_dense(path: Path) -> bool:
    """Whether a folder holds an index of vectors."""
    return (path / _NOTE).is_file()


def sentence_encoder(model: str, prefix: str = "", device: str | None = None) -> Encode:
    """A model of sentence-transformers as an encoder.

    Args:
        model: a name on the hub, or a folder.
        prefix: put before every text; E5 wants "query: " and "passage: ".
        device: as torch names it.
    """
    require("dense", "sentence_transformers")
    # By name, because type checkers do not find what is not installed.
    network = import_module("sentence_transformers").SentenceTransformer(model, device=device)

    def encode(texts: Sequence[str]) -> NDArray[np.float32]:
        vectors: NDArray[np.float32] = network.encode(
            [prefix + text.encode("utf-8", "replace").decode() for text in texts],
            batch_size=32,
            normalize_embeddings=True,
            show_progress_bar=False,
        )
        return vectors

    return encode


def build(
    passages: Iterable[PassageLike],
    path: str | Path,
    encode: Encode,
    model: str = "",
    query_prefix: str = "",
) -> int:
    """Make an index; it appears under its name when it is whole.

    Args:
        passages: read once.
        path: a folder that does not exist.
        encode: of passages.
        model: what `DenseRetriever` encodes queries with.
        query_prefix: put before each query.

    Returns:
        The number of passages.

    Raises:
        FileExistsError: there is something already.
    """
    with whole_folder(path) as folder:
        count, dimensions = _write(passages, folder, encode)
        note = _Note(_FORMAT, model, query_prefix, count, dimensions)
        (folder / _NOTE).write_text(json.dumps(note._asdict()) + "\n")
    return count


class _Opened:
    """Model and index as one process sees them."""

    def __init__(self, path: Path, encode: Encode | None) -> None:
        import numpy as np

        try:
            note = _Note(**json.loads((path / _NOTE).read_text()))
            if note.format != _FORMAT:
                raise ToolUnavailable(f"{path} is of another version; build it anew")
            size = note.passages
            self._starts = np.memmap(path / "starts", np.int64, "r", shape=(size + 1,))
            self._pages = np.memmap(path / "pages", np.uint8, "r", shape=(int(self._starts[-1]),))
            self._vectors = np.memmap(
                path / "vectors", np.float32, "r", shape=(size, note.dimensions)
            )
        except (OSError, ValueError, TypeError) as error:
            raise ToolUnavailable(f"cannot open the vectors in {path}: {error}") from error
        self._encode = encode or sentence_encoder(note.model, note.query_prefix)

    def search(self, query: str, k: int) -> list[Hit]:
        import numpy as np

        wanted = self._encode([query])[0]
        if wanted.shape != self._vectors.shape[1:]:
            sizes = f"{len(wanted)} numbers a text, the index {self._vectors.shape[1]}"
            raise ValueError(f"the encoder gives {sizes}")
        scores = np.concatenate(
            [
                self._vectors[first : first + _ROWS_AT_ONCE] @ wanted
                for first in range(0, len(self._vectors), _ROWS_AT_ONCE)
            ]
        )
        k = min(k, len(scores))
        least = np.partition(scores, len(scores) - k)[len(scores) - k]
        nearest = np.flatnonzero(scores >= least)
        best = nearest[np.lexsort((nearest, -scores[nearest]))][:k]
        return [Hit(*self._page(int(i)), float(scores[i])) for i in best]

    def _page(self, number: int) -> tuple[str, str]:
        start, end = self._starts[number], self._starts[number + 1]
        title, text = json.loads(self._pages[start:end].tobytes())
        return title, text


def _write(passages: Iterable[PassageLike], folder: Path, encode: Encode) -> tuple[int, int]:
    import numpy as np

    count, dimensions, end, rest = 0, 0, 0, iter(passages)
    with (
        (folder / "pages").open("wb") as pages,
        (folder / "vectors").open("wb") as vectors,
        (folder / "starts").open("wb") as starts,
    ):
        starts.write(np.int64(0).tobytes())
        while batch := list(islice(rest, _BATCH)):
            rows = encode([f"{passage.title}\n{passage.text}" for passage in batch])
            vectors.write(np.ascontiguousarray(rows, np.float32).tobytes())
            count, dimensions = count + len(batch), rows.shape[1]
            for passage in batch:
                end += pages.write(json.dumps([passage.title, passage.text]).encode())
                starts.write(np.int64(end).tobytes())
    if not count:
        raise ValueError("there is no passage to index")
    return count, dimensions


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.dense", description=__doc__)
    command = parser.add_subparsers(dest="command", required=True).add_parser("build")
    command.add_argument("passages", help="JSON lines, maybe in .gz")
    command.add_argument("index", help="the folder")
    command.add_argument("--model", required=True, help="of sentence-transformers, or a folder")
    command.add_argument("--query-prefix", default="", help='E5 wants "query: "')
    command.add_argument("--passage-prefix", default="", help='E5 wants "passage: "')
    given = parser.parse_args(arguments)
    encode = sentence_encoder(given.model, given.passage_prefix)
    passages = read_passages(given.passages)
    count = build(passages, given.index, encode, given.model, given.query_prefix)
    sys.stdout.write(f"{count} passages written to {given.index}\n")

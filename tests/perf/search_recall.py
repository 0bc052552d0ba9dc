"""Which gold passages are found for the corpus questions, by words, by meaning and by both.

    python -m tests.perf.search_recall
    python -m tests.perf.search_recall --size 6000 --model FOLDER    with vectors, which take time

The corpus is read from $APPO_DATA/corpus, ../shared/data by default. With --size it is cut to all
gold passages and as many of the others, drawn by a seed: easier than the whole corpus, and equally
so for every engine.
"""

import argparse
import itertools
import json
import random
import statistics
import tempfile
from pathlib import Path

from tests.perf.search import CORPUS, SETS, questions
from tools.search.dense import DenseRetriever, sentence_encoder
from tools.search.dense import build as build_vectors
from tools.search.local_index import LocalRetriever, Passage, build
from tools.search.retrievers import HybridRetriever, MemoryRetriever


def passages(size, asked):
    """(id, passage) of the corpus, or of so many among them."""
    with (CORPUS / "passages.jsonl").open() as file:
        pages = [(row["id"], Passage(row["title"], row["text"])) for row in map(json.loads, file)]
    gold = {i for rows in asked.values() for row in rows for i in row["gold_ids"]}
    needed = [(i, page) for i, page in pages if i in gold]
    others = [(i, page) for i, page in pages if i not in gold]
    more = len(others) if size is None else max(0, size - len(needed))
    return needed + random.Random(0).sample(others, more)


def recalls(found):
    """Mean share of gold passages in the first 3, 5, 10, 20 hits; of questions with all of them."""
    shares = [
        statistics.fmean(len(gold & set(hits[:k])) / len(gold) for gold, hits in found)
        for k in (3, 5, 10, 20)
    ]
    every = [statistics.fmean(gold <= set(hits[:k]) for gold, hits in found) for k in (10, 20)]
    return shares + every


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--size", type=int, help="passages; all by default")
    parser.add_argument("--questions", type=int, default=10_000, help="most of each set")
    parser.add_argument("--model", help="of sentence-transformers, or a folder")
    given = parser.parse_args()
    asked = {name: questions(name)[: given.questions] for name in SETS}
    kept = passages(given.size, asked)
    ids = {(page.title, page.text): i for i, page in kept}
    pages = [page for _, page in kept]
    print(f"{len(pages)} passages; " + ", ".join(f"{n}: {len(rows)}" for n, rows in asked.items()))
    print("| engine | set | recall@3 | @5 | @10 | @20 | all gold in top 10 | top 20 |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        build(pages, Path(folder) / "words")
        words = LocalRetriever(Path(folder) / "words")
        engines = {"memory": MemoryRetriever(pages), "disk": words}
        if given.model:
            encode = sentence_encoder(given.model)
            build_vectors(pages, Path(folder) / "vectors", encode)
            vectors = DenseRetriever(Path(folder) / "vectors", encode)
            engines |= {"dense": vectors, "hybrid": HybridRetriever([words, vectors])}
        for (engine, retriever), name in itertools.product(engines.items(), SETS):
            found = []
            for row in asked[name]:
                hits = [ids[hit[:2]] for hit in retriever.search(row["question"], 20)]
                found.append((set(row["gold_ids"]), hits))
            numbers = " | ".join(f"{share:.3f}" for share in recalls(found))
            print(f"| {engine} | {name} | {numbers} |", flush=True)


if __name__ == "__main__":
    main()

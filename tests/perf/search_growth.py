"""How an index on disk grows: build time, size, speed and memory by the number of passages.

    python -m tests.perf.search_growth measure

Every size is built in one process and served in another, so that memory is told apart.
"""

import argparse
import collections
import json
import math
import multiprocessing
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.perf.search import CORPUS, ROOT, SETS, per_second, questions
from tools.search.local_index import LocalRetriever, Passage, build, read_passages

WIKIPEDIA = 21_015_324
"""Passages of 100 words in the index of December 2018 that papers use."""


def grown(size, seed=0):
    """Passages of the corpus's length from its sentences, shuffled, each with a name of its own."""
    pages = list(read_passages(CORPUS / "passages.jsonl"))
    sentences = [s for page in pages for s in re.split(r"(?<=[.!?]) ", page.text) if s]
    draw = random.Random(seed)
    for number in range(size):
        page = pages[number % len(pages)]
        if number < len(pages):
            yield page
            continue
        want, text = len(page.text), f"N{number}"
        while len(text) < want:
            text += " " + sentences[draw.randrange(len(sentences))]
        yield Passage(f"{page.title} {number}", text)


def memory_kb(name):
    with open("/proc/self/smaps_rollup") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name + ":"))


def grow_one(size, folder):
    """Runs in a process of its own, so that its memory is its own."""
    start, cpu = time.perf_counter(), time.process_time()
    collections.deque(grown(size), maxlen=0)
    generate, generate_cpu = time.perf_counter() - start, time.process_time() - cpu
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, cpu = time.perf_counter(), time.process_time()
    assert build(grown(size), Path(folder) / "i", 1 << 30) == size
    built = time.perf_counter() - start - generate
    built_cpu = time.process_time() - cpu - generate_cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    disk = sum(file.stat().st_size for file in (Path(folder) / "i").iterdir())
    serve = [sys.executable, "-m", "tests.perf.search_growth", "serve", str(Path(folder) / "i")]
    done = subprocess.run(serve, cwd=ROOT, capture_output=True, text=True, check=True)
    return {
        "build_s": built,
        "build_cpu_s": built_cpu,
        "build_peak_mb": peak / 1024,
        "index_mb": disk / 1e6,
    } | json.loads(done.stdout)


def serve_one(given):
    queries = [row["question"] for name in SETS for row in questions(name)]
    start = time.perf_counter()
    retriever = LocalRetriever(given.index)
    retriever.search("volcano", 3)
    opened = time.perf_counter() - start
    for query in queries[:100]:
        retriever.search(query, 3)
    rate, cpu_rate = (
        per_second(retriever.search, queries, clock)
        for clock in (time.perf_counter, time.process_time)
    )
    found = {
        "first_query_ms": opened * 1e3,
        "queries_per_s": rate,
        "queries_per_cpu_s": cpu_rate,
        "rss_mb": memory_kb("Rss") / 1024,
        "private_mb": (memory_kb("Private_Clean") + memory_kb("Private_Dirty")) / 1024,
        "anonymous_mb": memory_kb("Anonymous") / 1024,
    }
    print(json.dumps(found))


def growth(given):
    rows = {}
    for size in given.sizes:
        alone = multiprocessing.get_context("spawn").Pool(1)
        with tempfile.TemporaryDirectory(dir=given.folder) as folder, alone as pool:
            rows[size] = pool.apply(grow_one, (size, folder))
        print(size, json.dumps(rows[size]), flush=True)
    names = list(next(iter(rows.values())))
    print("| passages |", " | ".join(names), "|")
    print("|---" * (len(names) + 1) + "|")
    for size, row in rows.items():
        print(f"| {size:,} |", " | ".join(f"{row[name]:,.1f}" for name in names), "|")
    if len(rows) > 1:
        (small, low), (large, high) = list(rows.items())[-2:]
        print("Extrapolated to Wikipedia by the slope between the last two, not measured:")
        for name in ("build_cpu_s", "index_mb", "queries_per_cpu_s"):
            slope = math.log(high[name] / low[name]) / math.log(large / small)
            print(
                f"  {name}: {high[name] * (WIKIPEDIA / large) ** slope:,.0f} (exponent {slope:.2f})"
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("measure")
    command.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    command.add_argument("--folder", help="where the indexes are put for a while")
    commands.add_parser("serve").add_argument("index")
    given = parser.parse_args()
    {"measure": growth, "serve": serve_one}[given.command](given)


if __name__ == "__main__":
    main()

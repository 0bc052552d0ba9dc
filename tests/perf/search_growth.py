"""Measures an index on disk by its number of passages: build time, size, speed and memory.

    python -m tests.perf.search_growth measure

Every size is built in one process and served in another, so that their memory is measured apart.
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

from tests.perf.search import CORPUS, ROOT, SETS, measure_rate, read_questions
from tools.search.local_index import LocalRetriever, Passage, build, read_passages

WIKIPEDIA = 21_015_324
"""Passages of 100 words in the index of December 2018 that papers use."""


def generate_passages(size, seed=0):
    """Yield the corpus, then passages of like length from its shuffled sentences, each named."""
    pages = list(read_passages(CORPUS / "passages.jsonl"))
    sentences = [s for page in pages for s in re.split(r"(?<=[.!?]) ", page.text) if s]
    rng = random.Random(seed)
    for number in range(size):
        page = pages[number % len(pages)]
        if number < len(pages):
            yield page
            continue
        length, text = len(page.text), f"N{number}"
        while len(text) < length:
            text += " " + sentences[rng.randrange(len(sentences))]
        yield Passage(f"{page.title} {number}", text)


def read_memory_kb(name):
    with open("/proc/self/smaps_rollup") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name + ":"))


def measure_size(size, folder):
    """Build and measure one index; run it in a new process, so that the peak memory is its own."""
    start, cpu = time.perf_counter(), time.process_time()
    collections.deque(generate_passages(size), maxlen=0)
    generating, generating_cpu = time.perf_counter() - start, time.process_time() - cpu
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, cpu = time.perf_counter(), time.process_time()
    assert build(generate_passages(size), Path(folder) / "i", 1 << 30) == size
    built = time.perf_counter() - start - generating
    built_cpu = time.process_time() - cpu - generating_cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    disk = sum(file.stat().st_size for file in (Path(folder) / "i").iterdir())
    serve = [sys.executable, "-m", "tests.perf.search_growth", "serve", str(Path(folder) / "i")]
    result = subprocess.run(serve, cwd=ROOT, capture_output=True, text=True, check=True)
    return {
        "build_s": built,
        "build_cpu_s": built_cpu,
        "build_peak_mb": peak / 1024,
        "index_mb": disk / 1e6,
    } | json.loads(result.stdout)


def measure_serving(options):
    queries = [row["question"] for name in SETS for row in read_questions(name)]
    start = time.perf_counter()
    retriever = LocalRetriever(options.index)
    retriever.search("volcano", 3)
    opened = time.perf_counter() - start
    for query in queries[:100]:
        retriever.search(query, 3)
    rate, cpu_rate = (
        measure_rate(retriever.search, queries, clock)
        for clock in (time.perf_counter, time.process_time)
    )
    numbers = {
        "first_query_ms": opened * 1e3,
        "queries_per_s": rate,
        "queries_per_cpu_s": cpu_rate,
        "rss_mb": read_memory_kb("Rss") / 1024,
        "private_mb": (read_memory_kb("Private_Clean") + read_memory_kb("Private_Dirty")) / 1024,
        "anonymous_mb": read_memory_kb("Anonymous") / 1024,
    }
    print(json.dumps(numbers))


def measure_growth(options):
    rows = {}
    for size in options.sizes:
        process = multiprocessing.get_context("spawn").Pool(1)
        with tempfile.TemporaryDirectory(dir=options.folder) as folder, process as pool:
            rows[size] = pool.apply(measure_size, (size, folder))
        print(size, json.dumps(rows[size]), flush=True)
    names = list(next(iter(rows.values())))
    print("| passages |", " | ".join(names), "|")
    print("|---" * (len(names) + 1) + "|")
    for size, row in rows.items():
        print(f"| {size:,} |", " | ".join(f"{row[name]:,.1f}" for name in names), "|")
    if len(rows) > 1:
        (small, low), (large, high) = list(rows.items())[-2:]
        print("Extrapolated to Wikipedia by the slope between the last two (not measured):")
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
    command.add_argument("--folder", help="for the indexes, while they are measured")
    commands.add_parser("serve").add_argument("index")
    options = parser.parse_args()
    {"measure": measure_growth, "serve": measure_serving}[options.command](options)


if __name__ == "__main__":
    main()

"""Measures the speed of searching, side by side with the alternatives.

    python -m tests.perf.search speed           queries per second against the libraries themselves
    python -m tests.perf.search overlap         64 episodes against a retriever that takes 200 ms
    python -m tests.perf.search service         queries per second through the retrieval server

`tests.perf.search_recall` measures what is found; `tests.perf.search_growth` measures build time,
size, speed and memory by corpus size.
The corpus is read from $APPO_DATA/corpus, ../shared/data by default.
"""

import argparse
import asyncio
import collections
import importlib.util
import itertools
import json
import math
import multiprocessing
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tools.search.local_index import LocalRetriever, build, read_passages
from tools.search.remote import RemoteRetriever
from tools.search.retrievers import MemoryRetriever, passage_terms, query_terms
from tools.search.tool import SearchTool

ROOT = Path(__file__).parent.parent.parent
CORPUS = Path(os.environ.get("APPO_DATA", ROOT.parent / "shared" / "data")) / "corpus"
SETS = ("hotpotqa", "musique", "2wiki")


def read_questions(name):
    with (CORPUS / f"questions_{name}.jsonl").open() as file:
        return [json.loads(line) for line in file]


class PlainBM25:
    """BM25 as it fits on a page: postings in dictionaries, scores added up in a dictionary."""

    def __init__(self, documents):
        self.postings, self.lengths = collections.defaultdict(list), list(map(len, documents))
        for number, document in enumerate(documents):
            for term, count in collections.Counter(document).items():
                self.postings[term].append((number, count))
        self.mean = statistics.fmean(self.lengths)

    def search(self, words, k):
        scores, size = collections.defaultdict(float), len(self.lengths)
        for word in words:
            postings = self.postings.get(word, ())
            idf = math.log(1 + (size - len(postings) + 0.5) / (len(postings) + 0.5))
            for number, count in postings:
                norm = 1.2 * (0.25 + 0.75 * self.lengths[number] / self.mean)
                scores[number] += idf * count / (count + norm)
        return sorted(scores, key=lambda number: (-scores[number], number))[:k]


def call_tantivy_directly(path):
    """A search by the library's own calls, for the same query and the same stored text."""
    import tantivy

    index = tantivy.Index.open(str(path))
    searcher, schema = index.searcher(), index.schema

    def search(query, k):
        clauses = [
            (tantivy.Occur.Should, tantivy.Query.term_query(schema, "terms", word, "freq"))
            for word in query_terms(query)
        ]
        query = tantivy.Query.boolean_query(clauses)
        hits = searcher.search(query, k, count=False).hits
        return [json.loads(searcher.doc(address)["page"][0]) for _, address in hits]

    return search


def call_bm25s_directly(pages, backend="numpy"):
    import bm25s

    index = bm25s.BM25(method="lucene", k1=1.2, b=0.75, backend=backend)
    documents = [passage_terms(page.title, page.text) for page in pages]
    index.index(documents, show_progress=False)

    def search(query, k):
        numbers = index.retrieve([query_terms(query)], k=k, show_progress=False).documents[0]
        return [pages[number] for number in numbers]

    return search


def measure_rate(search, queries, clock=time.process_time, k=3):
    """Queries per second of processor time, so that other work on the machine does not count."""
    start = clock()
    for query in queries:
        search(query, k)
    return len(queries) / (clock() - start)


def measure_speed(options):
    pages = list(itertools.islice(read_passages(CORPUS / "passages.jsonl"), options.size))
    queries = [row["question"] for name in SETS for row in read_questions(name)][: options.queries]
    documents = [passage_terms(page.title, page.text) for page in pages]
    plain = PlainBM25(documents)
    with tempfile.TemporaryDirectory() as folder:
        build(pages, Path(folder) / "i")
        engines = {
            "LocalRetriever (disk)": LocalRetriever(Path(folder) / "i").search,
            "tantivy called directly": call_tantivy_directly(Path(folder) / "i"),
            "MemoryRetriever": MemoryRetriever(pages).search,
            "bm25s called directly": call_bm25s_directly(pages),
            "dictionaries in Python": lambda query, k: plain.search(query_terms(query), k),
        }
        if importlib.util.find_spec("numba"):
            engines["bm25s with numba"] = call_bm25s_directly(pages, "numba")
        if not options.skip_rank_bm25:
            from rank_bm25 import BM25Okapi

            okapi = BM25Okapi(documents)
            engines["rank-bm25"] = lambda query, k: okapi.get_top_n(query_terms(query), pages, k)
        sampling = {"dictionaries in Python": 10, "rank-bm25": 30}  # every n-th query
        rates = {name: [] for name in engines}
        for _ in range(options.rounds):
            for name, search in engines.items():
                sample = queries[:: sampling.get(name, 1)]
                measure_rate(search, sample[:5])
                rates[name].append(measure_rate(search, sample))
        print(f"{len(pages)} passages, {len(queries)} questions, median of {options.rounds} rounds")
        print(
            "| engine | queries per CPU second | LocalRetriever is faster by | MemoryRetriever by |"
        )
        print("|---|---|---|---|")
        medians = {name: statistics.median(values) for name, values in rates.items()}
        for name, rate in medians.items():
            ratios = (medians[ours] / rate for ours in ("LocalRetriever (disk)", "MemoryRetriever"))
            print(f"| {name} | {rate:,.0f} |", " | ".join(f"{ratio:.2f}x" for ratio in ratios), "|")


def serve_slowly(pipe, seconds):
    """Serve /retrieve so that each answer takes `seconds` and no processor time."""
    body = json.dumps({"result": [[{"document": {"title": "T", "text": "x"}, "score": 1.0}]]})
    answer = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()

    async def serve(reader, writer):
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = re.search(rb"content-length: (\d+)", head.lower())
            await reader.readexactly(int(length[1]))
            await asyncio.sleep(seconds)
            writer.write(answer)

    async def client(reader, writer):
        try:
            await serve(reader, writer)
        except (asyncio.IncompleteReadError, OSError):
            writer.close()

    async def main():
        server = await asyncio.start_server(client, "127.0.0.1", 0)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(main())


def measure_overlap(options):
    receiver, sender = multiprocessing.Pipe()
    arguments = (sender, options.seconds)
    service = multiprocessing.get_context("spawn").Process(target=serve_slowly, args=arguments)
    service.start()
    try:
        tool = SearchTool(RemoteRetriever(f"http://127.0.0.1:{receiver.recv()}"))

        def play(number):
            for call in range(options.calls):
                assert tool.run(None, f"question {number} {call}")[1].ok

        ideal, shares, busy = options.calls * options.seconds, [], []
        for round_ in range(options.rounds + 1):
            episodes = [threading.Thread(target=play, args=(n,)) for n in range(options.episodes)]
            start, cpu = time.perf_counter(), time.process_time()
            for thread in episodes:
                thread.start()
            for thread in episodes:
                thread.join()
            if round_:  # the first one opens the connections
                shares.append(ideal / (time.perf_counter() - start))
                busy.append(time.process_time() - cpu)
        print(
            f"{options.episodes} episodes of {options.calls} calls at {options.seconds} s:"
            f" {statistics.median(shares):.3f} of the ideal overlap"
            f" (rounds: {', '.join(f'{share:.3f}' for share in shares)}); the interpreter takes"
            f" {statistics.median(busy):.3f} s of the ideal {ideal:.1f} s: with a core of its own"
            f" at least {ideal / (ideal + statistics.median(busy)):.3f}"
        )
        tool.close()
    finally:
        service.terminate()
        service.join()


def measure_service(options):
    queries = [row["question"] for name in SETS for row in read_questions(name)]
    with tempfile.TemporaryDirectory() as folder:
        build(read_passages(CORPUS / "passages.jsonl"), Path(folder) / "i")
        command = [sys.executable, "-m", "tools.retrieval_server", f"{folder}/i", "--port", "0"]
        server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        url = server.stdout.readline().strip()
        try:
            remote = RemoteRetriever(url)
            measure_rate(remote.search, queries[:50])
            rate = measure_rate(remote.search, queries, time.perf_counter)
            print(f"one query a request, one client: {rate:,.0f}/s")
            remote.close()
            with multiprocessing.get_context("spawn").Pool(options.clients) as pool:
                pool.map(ask_service, [(url, queries[:20], 4)] * options.clients)
                start = time.perf_counter()
                pool.map(ask_service, [(url, queries, 4)] * options.clients)
                rate = options.clients * len(queries) / (time.perf_counter() - start)
            print(f"one query a request, {options.clients} clients of 4 threads: {rate:,.0f}/s")
            body = json.dumps({"queries": queries[:1000], "topk": 3}).encode()
            start = time.perf_counter()
            urllib.request.urlopen(urllib.request.Request(url, body)).read()
            print(f"1,000 queries in a request: {1000 / (time.perf_counter() - start):,.0f}/s")
        finally:
            server.terminate()
            server.wait()


def ask_service(arguments):
    url, queries, threads = arguments
    remote = RemoteRetriever(url)
    parts = [queries[n::threads] for n in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda part: measure_rate(remote.search, part), parts))
    remote.close()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("speed")
    command.add_argument("--size", type=int, default=37_131)
    command.add_argument("--queries", type=int, default=1771)
    command.add_argument("--rounds", type=int, default=5)
    command.add_argument("--skip-rank-bm25", action="store_true")
    command = commands.add_parser("overlap")
    command.add_argument("--episodes", type=int, default=64)
    command.add_argument("--calls", type=int, default=5)
    command.add_argument("--seconds", type=float, default=0.2)
    command.add_argument("--rounds", type=int, default=5)
    commands.add_parser("service").add_argument("--clients", type=int, default=2)
    options = parser.parse_args()
    run = {"speed": measure_speed, "overlap": measure_overlap, "service": measure_service}
    run[options.command](options)


if __name__ == "__main__":
    main()

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest

from tests import needs
from tests.conftest import ROOT
from tools.search.local_index import Passage, build
from tools.search.remote import RemoteRetriever
from tools.search.retrievers import MemoryRetriever
from tools.search.server import build_app, listen
from tools.tool import ToolUnavailable
from tools.web.rate_limits import RequestLimits

needs.packages("starlette", "uvicorn")

PAGES = [
    Passage('"Heroes"', 'An album.\nBy "David Bowie".'),
    Passage("Etna", "A volcano on Sicily."),
    Passage("Odd", "Lone \ud800 surrogate."),
]


class BlockingRetriever:
    """Answers once it is released."""

    def __init__(self):
        self.release, self.entered = threading.Event(), threading.Semaphore(0)

    def search(self, query, k):
        if query == "broken":
            raise ToolUnavailable("the disk is gone")
        self.entered.release()
        self.release.wait(20)
        return []

    def close(self):
        self.release.set()


@contextmanager
def serve(retriever, **options):
    import uvicorn

    config = uvicorn.Config(build_app(retriever, **options), log_level="critical")
    listener, server = listen("127.0.0.1", 0), uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def post(port, path, body, method="POST"):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request(method, path, body if isinstance(body, bytes) else json.dumps(body))
    response = connection.getresponse()
    status, answer, headers = response.status, response.read(), response.headers
    connection.close()
    return status, json.loads(answer) if answer[:1] in (b"{", b"[") else answer, headers


@pytest.fixture(scope="module")
def port():
    with serve(MemoryRetriever(PAGES)) as port:
        yield port


def test_retrieve_answers_every_query_in_order(port):
    body = {"queries": ["volcano", "album", "zzz", ""], "topk": 2, "return_scores": True}
    status, answer, _ = post(port, "/retrieve", body)
    assert status == 200
    titles = [[item["document"]["title"] for item in items] for items in answer["result"]]
    assert titles == [["Etna"], ['"Heroes"'], [], []]
    assert answer["result"][0][0]["document"]["contents"] == '"Etna"\nA volcano on Sicily.'
    assert answer["result"][0][0]["score"] > 0


def test_without_scores_the_documents_are_bare(port):
    _, answer, _ = post(port, "/retrieve", {"queries": ["volcano"]})
    assert [document["title"] for document in answer["result"][0]] == ["Etna"]


def test_the_schema_of_flashrag_works_too(port):
    _, documents, _ = post(port, "/search", {"query": "volcano", "top_n": 1})
    assert documents[0]["title"] == "Etna"
    _, answer, _ = post(port, "/batch_search", {"query": ["volcano", "x"], "return_score": True})
    assert ([len(hits) for hits in answer[0]], [len(scores) for scores in answer[1]]) == (
        [1, 0],
    ) * 2


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/retrieve", b"garbage"),
        ("/retrieve", b"[" * 100_000),
        ("/retrieve", []),
        ("/retrieve", {}),
        ("/retrieve", {"queries": "volcano"}),
        ("/retrieve", {"queries": [1]}),
        ("/retrieve", {"queries": ["x"] * 1025}),
        ("/retrieve", {"queries": ["x"], "topk": -1}),
        ("/retrieve", {"queries": ["x"], "topk": 10**9}),
        ("/retrieve", {"queries": ["x"], "topk": "3"}),
        ("/search", {"query": ""}),
        ("/batch_search", {"query": "x"}),
        ("/retrieve", b"x" * (9 << 20)),
    ],
)
def test_a_bad_request_is_answered_with_400(port, path, body):
    status, answer, _ = post(port, path, body)
    assert status == 400
    assert answer["error"]


def test_health_is_reported(port):
    assert post(port, "/health", b"", "GET")[:2] == (200, {"status": "ok"})


def test_a_remote_retriever_returns_what_the_served_one_returns(port):
    remote, local = RemoteRetriever(f"http://127.0.0.1:{port}"), MemoryRetriever(PAGES)
    for query in ["volcano", "david album", "lone", "zzz"]:
        assert remote.search(query, 2) == local.search(query, 2)
    remote.close()


def test_a_broken_retriever_is_a_503_and_unavailable_to_the_client():
    with serve(BlockingRetriever()) as port:
        status, answer, headers = post(port, "/retrieve", {"queries": ["broken"]})
        assert (status, answer["error"], headers["Retry-After"]) == (503, "the disk is gone", "5")
        remote = RemoteRetriever(f"http://127.0.0.1:{port}", RequestLimits(max_attempts=1))
        with pytest.raises(ToolUnavailable, match="503"):
            remote.search("broken", 1)
        remote.close()


def test_requests_beyond_the_bound_are_asked_to_come_again():
    retriever, body, answers = BlockingRetriever(), {"queries": ["slow"]}, []
    with serve(retriever, max_requests=1) as port:
        first = threading.Thread(target=lambda: answers.append(post(port, "/retrieve", body)[0]))
        first.start()
        assert retriever.entered.acquire(timeout=10)
        status, _, headers = post(port, "/retrieve", body)
        assert (status, headers["Retry-After"]) == (503, "1")
        retriever.release.set()
        first.join()
        assert answers == [200]
        assert post(port, "/retrieve", body)[0] == 200


def test_the_command_serves_an_index_until_it_is_stopped(tmp_path):
    build(PAGES[:2], tmp_path / "i", 20 << 20)
    process = subprocess.Popen(
        [sys.executable, "-m", "tools.retrieval_server", str(tmp_path / "i"), "--port", "0"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    try:
        url = process.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:")
        remote = RemoteRetriever(url)
        assert [hit.title for hit in remote.search("volcano", 3)] == ["Etna"]
        remote.close()
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)

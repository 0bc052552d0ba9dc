import json
import pickle
import resource
import time
from dataclasses import replace

import pytest

from tests.misbehaving_server import RESPONSES, MisbehavingServer
from tools.cache import Cache
from tools.search.remote import RecordedRetriever, RemoteRetriever
from tools.search.retrievers import Hit
from tools.tool import ToolUnavailable
from tools.web.rate_limits import RequestLimits

CALM = RequestLimits(max_attempts=2, deadline_s=20.0, backoff_s=0.01)
QUICK = replace(CALM, attempt_timeout_s=0.5)
ETNA = [Hit("Etna", "A volcano.", 2.5)]
FAULTS = sorted(
    {*RESPONSES} - {"ok", "good gzip"}
    | {"hang", "drip headers", "drip body", "ten gigabytes", "ten gigabytes in chunks"}
    | {"reset", "reset half-way"}
)
LASTING = {"hang", "drip headers", "drip body"}
ONE_ATTEMPT = {"rate limit a minute", "password", "brotli"}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_lasting_fault_is_given_up_before_its_end_and_in_bounded_memory(fault):
    """The server would hang for 5 minutes, drip for 20, send 10 GB, or 256 MB decompressed."""
    with MisbehavingServer(fault) as server:
        limits = QUICK if fault in LASTING else CALM
        retriever = RemoteRetriever(server.url, limits, max_bytes=100_000)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(ToolUnavailable, match=r"127\.0\.0\.1"):
            retriever.search("volcano", 3)
        assert server.outlasted == []
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB
        attempts = 1 if fault in ONE_ATTEMPT else 2
        assert len(server.requests) == attempts
        assert retriever.traffic() == (1, attempts, attempts, 1)
        retriever.close()


@pytest.mark.parametrize("fault", sorted({*FAULTS} - ONE_ATTEMPT))
def test_a_passing_fault_is_not_noticed(fault):
    with MisbehavingServer(fault, "ok") as server:
        limits = replace(CALM, attempt_timeout_s=2.0) if fault in LASTING else CALM
        retriever = RemoteRetriever(server.url, limits, max_bytes=100_000)
        assert retriever.search("volcano", 3) == ETNA
        retriever.close()


def test_a_server_that_dies_half_way_is_unavailable_and_a_new_one_is_found():
    with MisbehavingServer("die half-way") as server:
        retriever = RemoteRetriever(server.url, CALM)
        with pytest.raises(ToolUnavailable):
            retriever.search("volcano", 3)
    retriever.close()


def test_a_port_where_nothing_listens_is_a_fault():
    with MisbehavingServer("ok") as server:
        pass
    with pytest.raises(ToolUnavailable, match="refused"):
        RemoteRetriever(server.url, CALM).search("volcano", 3)


def test_the_request_is_that_of_the_schema():
    with MisbehavingServer("good gzip") as server:
        retriever = RemoteRetriever(server.url, CALM)
        assert retriever.search('a "quoted" 东京 \ud800', 3) == ETNA
        head, _, body = server.requests[0].partition(b"\r\n\r\n")
        assert head.startswith(b"POST /retrieve HTTP/1.1\r\n")
        assert json.loads(body) == {
            "queries": ['a "quoted" 东京 \ud800'],
            "topk": 3,
            "return_scores": True,
        }
        retriever.close()


@pytest.mark.parametrize(
    ("item", "hit"),
    [
        ({"document": {"title": "T", "text": "x"}, "score": 1}, Hit("T", "x", 1.0)),
        ({"id": "1", "contents": "T\nx\ny"}, Hit("T", "x\ny", 0.0)),
        ({"document": {"contents": "T"}, "score": 0.5}, Hit("T", "", 0.5)),
    ],
)
def test_every_spelling_of_a_document_is_read(item, hit):
    body = json.dumps({"result": [[item] * 5]}).encode()
    response = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    with MisbehavingServer(response) as server:
        retriever = RemoteRetriever(server.url + "/retrieve", CALM)
        assert retriever.search("q", 2) == [hit, hit]
        retriever.close()


@pytest.mark.parametrize("url", ["", "host:8000", "ftp://host/", "http://"])
def test_an_invalid_url_is_refused(url):
    with pytest.raises(ValueError, match="retrieval service"):
        RemoteRetriever(url)


def test_a_connection_is_used_again_and_a_fork_opens_its_own():
    with MisbehavingServer("ok") as server:
        retriever = pickle.loads(pickle.dumps(RemoteRetriever(server.url, CALM)))
        for _ in range(3):
            retriever.search("q", 1)
        assert len(server.threads) == 2
        retriever.close()


def test_a_connection_that_was_hung_up_meanwhile_is_no_fault():
    with MisbehavingServer("good gzip", "ok") as server:
        retriever = RemoteRetriever(server.url, CALM)
        assert retriever.search("volcano", 3) == ETNA
        time.sleep(0.1)
        assert retriever.search("volcano", 3) == ETNA
        assert retriever.traffic() == (2, 2, 0, 0)
        retriever.close()


def test_faults_are_never_recorded_and_answers_are(tmp_path):
    with MisbehavingServer("error 500", "error 500", "ok") as server:
        retriever = RemoteRetriever(server.url, CALM)
        recorded = RecordedRetriever(retriever, Cache(tmp_path / "c.sqlite"), "test")
        with pytest.raises(ToolUnavailable):
            recorded.search("volcano", 3)
        assert [recorded.search("volcano", 3) for _ in range(3)] == [ETNA] * 3
        assert len(server.requests) == 3
        recorded.close()
    replayed = RecordedRetriever(retriever, Cache(tmp_path / "c.sqlite", "replay"), "test")
    assert replayed.search(" volcano ", 3) == ETNA
    frozen = RecordedRetriever(retriever, Cache(tmp_path / "c.sqlite", "frozen"), "test")
    assert frozen.search("unknown", 3) == []
    replayed.close()
    frozen.close()

import threading

import pytest

from tests import needs
from tests.misbehaving_server import MisbehavingServer
from tools.cache import Cache
from tools.search.remote import RecordedRetriever
from tools.search.retrievers import Hit
from tools.search.web import EMPTY_TTL_S, WebRetriever
from tools.tool import ToolUnavailable
from tools.web.rate_limits import AttemptFailed, RequestLimits

QUICK = RequestLimits(max_attempts=2, deadline_s=5, backoff_s=0.01, max_wait_s=5)
PAGE = Hit("Etna", "A volcano.", 1.0)


class Engine:
    """Answers queries from its pages: k times the page, or the error in its place; else nothing."""

    def __init__(self, **pages):
        self.pages, self.requests = pages, []

    def __call__(self, request):
        self.requests.append(request)
        page = self.pages.get(request.query)
        if isinstance(page, Exception):
            raise page
        return [] if page is None else [page] * request.k


def open_web(engine, **options):
    return WebRetriever(ask=engine, limits=QUICK, **options)


def test_the_engine_gets_every_setting():
    engine = Engine(volcano=PAGE)
    retriever = open_web(
        engine, region="de-de", safesearch="off", timelimit="w", proxy="http://p:1"
    )
    assert retriever.search("volcano", 2) == [PAGE, PAGE]
    assert engine.requests == [("volcano", 2, "duckduckgo", "de-de", "off", "w", "http://p:1")]
    assert retriever.source == "web duckduckgo de-de off w"


def test_no_hit_is_a_result_if_the_engine_finds_other_things():
    engine = Engine(Wikipedia=PAGE)
    assert open_web(engine).search("zzzz", 3) == []
    assert [request.query for request in engine.requests] == ["zzzz", "Wikipedia"]


def test_no_hit_is_a_block_if_the_engine_finds_nothing_at_all():
    with pytest.raises(ToolUnavailable, match="blocked, it seems"):
        open_web(Engine()).search("zzzz", 3)


def test_an_engine_that_fails_once_is_asked_again():
    engine = Engine(volcano=AttemptFailed("timed out"))
    with pytest.raises(ToolUnavailable, match="timed out"):
        open_web(engine).search("volcano", 3)
    assert len(engine.requests) == 2


def test_an_engine_that_never_answers_is_left_behind_and_bounded():
    stay = threading.Event()

    def hang(request):
        stay.wait(30)
        return []

    limits = RequestLimits(max_attempts=1, deadline_s=0.02, failure_threshold=99)
    retriever = WebRetriever(ask=hang, limits=limits)
    for _ in range(16):
        with pytest.raises(ToolUnavailable, match="no answer within"):
            retriever.search("a", 1)
    with pytest.raises(ToolUnavailable, match="16 requests are stuck"):
        retriever.search("a", 1)
    stay.set()


def test_the_web_is_recorded_and_replayed(tmp_path):
    engine = Engine(volcano=PAGE, Wikipedia=PAGE)
    live = open_web(engine)
    recorded = RecordedRetriever(live, Cache(tmp_path / "c"), live.source, EMPTY_TTL_S)
    first = [recorded.search("volcano", 1), recorded.search("zzzz", 1)]
    assert [recorded.search("volcano", 1), recorded.search("zzzz", 1)] == first == [[PAGE], []]
    assert len(engine.requests) == 3
    recorded.close()


@pytest.mark.parametrize(
    "options", [{"region": "wt"}, {"region": "us_en"}, {"backend": "auto"}, {"backend": "a,b"}]
)
def test_settings_that_cannot_be_repeated_are_refused(options):
    with pytest.raises(ValueError, match=r"not of the form|not the name"):
        WebRetriever(**options)


def test_an_engine_that_ddgs_does_not_know_is_named():
    needs.packages("ddgs")
    with pytest.raises(ValueError, match=r"none of ddgs: .*wikipedia"):
        WebRetriever(backend="altavista").search("x", 1)


@pytest.mark.parametrize("backend", ["duckduckgo", "wikipedia"])
@pytest.mark.parametrize("fault", ["error 500", "reset", "garbage", "rate limit", "empty"])
def test_a_network_that_is_broken_makes_ddgs_unavailable(backend, fault):
    """All traffic of ddgs goes to a proxy on this machine, which misbehaves."""
    needs.packages("ddgs")
    with MisbehavingServer(fault) as server:
        retriever = WebRetriever(backend=backend, proxy=server.url, limits=QUICK)
        with pytest.raises(ToolUnavailable, match=backend):
            retriever.search("volcano", 3)
        assert server.requests
        assert all(request.startswith(b"CONNECT ") for request in server.requests)

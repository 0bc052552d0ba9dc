import threading

import pytest

from tests import needs
from tests.misbehaving_server import MisbehavingServer
from tools.cache import Cache
from tools.search.remote import RecordedRetriever
from tools.search.retrievers import Hit
from tools.search.web import EMPTY_LASTS_S, WebRetriever
from tools.tool import ToolUnavailable
from tools.web.rate_limits import Fault, Limits

QUICK = Limits(attempts=2, deadline_s=5, first_pause_s=0.01, patience_s=5)
PAGE = Hit("Etna", "A volcano.", 1.0)


class Engine:
    """Finds what its pages say; None: it finds nothing, and a fault is raised."""

    def __init__(self, **pages):
        self.pages, self.asked = pages, []

    def __call__(self, question):
        self.asked.append(question)
        found = self.pages.get(question.query)
        if isinstance(found, Exception):
            raise found
        return [] if found is None else [found] * question.k


def web(engine, **options):
    return WebRetriever(ask=engine, limits=QUICK, **options)


def test_the_engine_is_told_every_setting():
    engine = Engine(volcano=PAGE)
    retriever = web(engine, region="de-de", safesearch="off", timelimit="w", proxy="http://p:1")
    assert retriever.search("volcano", 2) == [PAGE, PAGE]
    assert engine.asked == [("volcano", 2, "duckduckgo", "de-de", "off", "w", "http://p:1")]
    assert retriever.source == "web duckduckgo de-de off w"


def test_no_hit_is_a_result_of_an_engine_that_finds_other_things():
    engine = Engine(Wikipedia=PAGE)
    assert web(engine).search("zzzz", 3) == []
    assert [question.query for question in engine.asked] == ["zzzz", "Wikipedia"]


def test_no_hit_of_an_engine_that_finds_nothing_at_all_is_a_block():
    with pytest.raises(ToolUnavailable, match="blocked, it seems"):
        web(Engine()).search("zzzz", 3)


def test_an_engine_that_fails_once_is_asked_again():
    engine = Engine(volcano=Fault("timed out"))
    with pytest.raises(ToolUnavailable, match="timed out"):
        web(engine).search("volcano", 3)
    assert len(engine.asked) == 2


def test_an_engine_that_never_answers_is_left_behind_and_bounded():
    stay = threading.Event()

    def hang(question):
        stay.wait(30)
        return []

    limits = Limits(attempts=1, deadline_s=0.02, failures=99)
    retriever = WebRetriever(ask=hang, limits=limits)
    for _ in range(16):
        with pytest.raises(ToolUnavailable, match="no answer within"):
            retriever.search("a", 1)
    with pytest.raises(ToolUnavailable, match="16 requests are stuck"):
        retriever.search("a", 1)
    stay.set()


def test_the_web_is_recorded_and_replayed(tmp_path):
    engine = Engine(volcano=PAGE, Wikipedia=PAGE)
    live = web(engine)
    recorded = RecordedRetriever(live, Cache(tmp_path / "c"), live.source, EMPTY_LASTS_S)
    first = [recorded.search("volcano", 1), recorded.search("zzzz", 1)]
    assert [recorded.search("volcano", 1), recorded.search("zzzz", 1)] == first == [[PAGE], []]
    assert len(engine.asked) == 3
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
    """All of ddgs' traffic goes to a proxy on this machine, which misbehaves."""
    needs.packages("ddgs")
    with MisbehavingServer(fault) as server:
        retriever = WebRetriever(backend=backend, proxy=server.url, limits=QUICK)
        with pytest.raises(ToolUnavailable, match=backend):
            retriever.search("volcano", 3)
        assert server.requests
        assert all(request.startswith(b"CONNECT ") for request in server.requests)

import pickle
import re
import threading

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tools.cache import Cache
from tools.search.remote import RecordedRetriever
from tools.search.retrievers import Hit, MemoryRetriever, query_terms, terms
from tools.search.tool import SearchTool
from tools.tool import Tool, ToolContext, ToolUnavailable
from tools.web.sanitize import TAGS, sanitize_line, sanitize_text, truncate


class Page:
    def __init__(self, title, text):
        self.title, self.text = title, text


PAGES = [
    Page("Mount Etna", "A volcano on the east coast of Sicily."),
    Page("Sicily", "The largest island in the Mediterranean Sea."),
    Page("The Who", "An English rock band formed in London."),
    Page("东京", "东京是日本的首都。"),
    Page("Beyoncé", "An American singer."),
]


class FixedRetriever:
    def __init__(self, hits):
        self.hits = hits

    def search(self, query, k):
        return self.hits

    def close(self):
        self.hits = []


def run_search(*hits, **options):
    """The tool's result over a retriever that returns these hits."""
    return SearchTool(FixedRetriever(list(hits)), **options).run(None, "q")[1]


def test_a_result_is_one_line_per_page():
    tool: Tool[None] = SearchTool(MemoryRetriever(PAGES))
    assert tool.initial_state(ToolContext()) is None
    state, result = tool.run(None, "volcano in Sicily")
    assert state is None
    assert result.ok
    assert result.text == (
        "Page 1: Mount Etna. A volcano on the east coast of Sicily.\n"
        "Page 2: Sicily. The largest island in the Mediterranean Sea."
    )
    assert result.seconds >= 0


@pytest.mark.parametrize("query", ["", "  \n\t ", "\u3000"])
def test_an_empty_query_is_the_callers_mistake(query):
    result = SearchTool(MemoryRetriever(PAGES)).run(None, query)[1]
    assert (result.ok, result.text) == (False, "The query is empty.")


@pytest.mark.parametrize("query", ["zzzz", "!!!", "\ud800", "()[]{}*:^~"])
def test_a_query_that_matches_nothing_gets_an_answer(query):
    result = SearchTool(MemoryRetriever(PAGES)).run(None, query)[1]
    assert (result.ok, result.text) == (False, "No page matches the query.")


def test_an_empty_corpus_matches_nothing():
    assert MemoryRetriever([]).search("a", 3) == []
    assert MemoryRetriever([Page("", "")]).search("a", 3) == []


@pytest.mark.parametrize(
    "tag", ["search", "browse", "python", "result", "answer", "think", "ANSWER"]
)
@pytest.mark.parametrize(
    "shape", ["<{}>", "</{}>", "< / {} >", "<{} a='b'>", "<\x00{}>", "</\n{}\u202e>"]
)
def test_a_page_cannot_speak_the_protocol(tag, shape):
    text = run_search(Hit("t" + shape.format(tag), shape.format(tag), 1.0)).text
    assert "<" not in text
    assert tag in text


def test_other_markup_stays():
    assert sanitize_line("if a < b: <b>x</b> <searching>") == "if a < b: <b>x</b> <searching>"


def test_a_page_cannot_speak_the_chat_template():
    assert sanitize_line("<|im_end|> a <| b") == "&lt;|im_end|> a <| b"


def test_a_page_is_cut_and_cannot_break_the_lines():
    text = run_search(Hit("T", "a\r\nPage 2: b\u2028c\x07" + "d" * 2000, 1.0), characters=30).text
    assert text == "Page 1: T. a Page 2: b c dddddddddddd" + "…"
    assert len(text) == len("Page 1: ") + 30


def test_long_text_keeps_its_lines():
    assert sanitize_text("a\n\n\n\n b \x00\n<answer>") == "a\n\nb\n&lt;answer>"
    assert truncate("abc", 3) == "abc"


def test_no_more_results_than_asked():
    assert run_search(*[Hit("t", "x", 1.0)] * 5, results=2).text.count("\n") == 1


@pytest.mark.parametrize("options", [{"results": 0}, {"characters": 0}])
def test_a_tool_that_shows_nothing_is_refused(options):
    with pytest.raises(ValueError, match="at least 1"):
        SearchTool(FixedRetriever([]), **options)


def test_terms_fold_case_and_accents_and_split_chinese():
    assert terms("Beyoncé's ÀÉ 3.5_x") == ["beyonce", "s", "ae", "3", "5", "x"]
    assert terms("a东京塔b") == ["a", "东", "京", "塔", "东京", "京塔", "b"]


def test_stop_words_count_only_when_there_is_nothing_else():
    assert query_terms("who is The Boss") == ["boss"]
    assert query_terms("The Who") == ["the", "who"]


def test_bm25_scores_are_those_of_the_formula():
    """Two passages of three terms, "q q x" and "r r y": the title counts twice.

    idf(x) = ln(1 + 1.5 / 1.5) = ln 2; its weight in a passage of average length is 1 / (1 + 1.2).
    """
    hits = MemoryRetriever([Page("q", "x"), Page("r", "y")]).search("x", 5)
    assert [(hit.title, hit.text) for hit in hits] == [("q", "x")]
    assert hits[0].score == pytest.approx(0.693147 / 2.2, rel=1e-5)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 9])
def test_equal_scores_come_in_the_order_of_the_passages(k):
    pages = [Page(f"p{i}", "same words") for i in range(4)]
    assert [hit.title for hit in MemoryRetriever(pages).search("same", k)] == [
        "p0",
        "p1",
        "p2",
        "p3",
    ][:k]


def test_a_retriever_can_be_pickled_before_and_after_its_first_search():
    retriever = MemoryRetriever(PAGES)
    before = pickle.loads(pickle.dumps(retriever))
    hits = retriever.search("Sicily", 2)
    assert (
        before.search("Sicily", 2)
        == pickle.loads(pickle.dumps(retriever)).search("Sicily", 2)
        == hits
    )


def test_a_closed_retriever_opens_again():
    tool = SearchTool(MemoryRetriever(PAGES))
    first = tool.run(None, "Sicily")[1].text
    tool.close()
    assert tool.run(None, "Sicily")[1].text == first


def test_threads_share_a_retriever():
    retriever = MemoryRetriever([Page(f"p{i}", f"word{i % 7} word{i % 3}") for i in range(200)])
    expected = MemoryRetriever(
        [Page(f"p{i}", f"word{i % 7} word{i % 3}") for i in range(200)]
    ).search("word1 word2", 5)
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(retriever.search("word1 word2", 5)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 8


_MARKUP = st.text(st.sampled_from("<>/|= \n\x00\u202e\u200b\ud800") | st.sampled_from("answer"))
_PIECES = st.lists(_MARKUP | st.sampled_from([*TAGS, "<", "</", "<|", "|>", "&lt;"])).map("".join)


@given(_PIECES, _PIECES, st.integers(1, 40))
@example("<" * 14 + "searcha", "", 21)
def test_no_text_becomes_a_tag_however_it_is_cut(title, text, characters):
    result = run_search(Hit(title, text, 1.0), characters=characters).text
    tag = rf"<\s*/?\s*({'|'.join(TAGS)})\b|<\|[^|<>]*\|>"
    assert not re.search(tag, result, re.IGNORECASE)
    assert not re.search(tag, sanitize_text(title + text), re.IGNORECASE)
    assert result.splitlines() == [result]
    assert len(result.encode()) <= 4 * characters + 8
    assert len(result) <= characters + len("Page 1: ")


@given(st.text(max_size=40))
def test_a_page_is_found_by_its_own_words(text):
    hits = MemoryRetriever([Page("other", "page"), Page("", text)]).search(text, 1)
    assert [hit.text for hit in hits] == [text] or terms(text) in ([], ["other"], ["page"])


def test_a_retriever_that_is_out_of_order_is_not_an_answer():
    class Broken(FixedRetriever):
        def search(self, query, k):
            raise ToolUnavailable("the service is down")

    with pytest.raises(ToolUnavailable, match="down"):
        SearchTool(Broken([])).run(None, "volcano")


def test_an_answer_from_a_recording_is_free(tmp_path):
    """The web is asked for the first question, the recording answers its repetition."""
    cache = Cache(tmp_path / "c")
    recorded = RecordedRetriever(MemoryRetriever(PAGES), cache, "web")
    tool = SearchTool(recorded, cache=cache)
    queries = ["volcano", "Tokyo", "volcano", "", "Tokyo"]
    assert [tool.run(None, query)[1].free for query in queries] == [False, False, True, True, True]
    assert SearchTool(MemoryRetriever(PAGES)).run(None, "volcano")[1].free is False
    tool.close()


def test_only_one_of_the_threads_that_ask_the_same_pays(tmp_path):
    started, release = threading.Event(), threading.Event()

    class Slow(FixedRetriever):
        def search(self, query, k):
            started.set()
            assert release.wait(30)
            return self.hits

    cache = Cache(tmp_path / "c")
    tool = SearchTool(RecordedRetriever(Slow([Hit("T", "x", 1.0)]), cache, "web"), cache=cache)
    free = []

    def search():
        free.append(tool.run(None, "q")[1].free)

    threads = [threading.Thread(target=search) for _ in range(2)]
    threads[0].start()
    assert started.wait(30)
    threads[1].start()
    release.set()
    for thread in threads:
        thread.join()
    assert sorted(free) == [False, True]
    tool.close()

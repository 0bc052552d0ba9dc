import gzip
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests import needs
from tests.conftest import ROOT
from tools.cache import Cache
from tools.search.local_index import LocalRetriever, Passage, add, build, main, read_passages
from tools.search.opening import open_retriever
from tools.search.retrievers import MemoryRetriever
from tools.search.tool import SearchTool
from tools.tool import ToolUnavailable

CORPUS = Path(os.environ.get("APPO_DATA", ROOT.parent / "shared" / "data")) / "corpus"
PAGES = [
    Passage("Mount Etna", "A volcano on the east coast of Sicily."),
    Passage("Sicily", "The largest island in the Mediterranean Sea."),
    Passage("东京", "东京是日本的首都。"),
    Passage("Odd \ud800", "nul \x00 and <answer> " + "long" * 30_000),
    Passage("", ""),
]
HEAP = 20 << 20


@pytest.fixture
def index(tmp_path):
    assert build(PAGES, tmp_path / "index", HEAP) == len(PAGES)
    return tmp_path / "index"


def test_an_index_finds_what_was_put_in(index):
    retriever = LocalRetriever(index)
    assert [(hit.title, hit.text) for hit in retriever.search("volcano in Sicily", 5)] == PAGES[:2]
    assert retriever.search("东京", 1)[0][:2] == PAGES[2]
    assert retriever.search("odd", 1)[0][:2] == PAGES[3]
    assert retriever.search("nothing like it", 3) == retriever.search("", 3) == []
    assert retriever.search("sicily", 0) == []
    assert retriever.search("* AND (title: [", 3) == retriever.search("x" * 100_000, 3) == []
    assert len(retriever) == len(PAGES)


def test_a_search_tool_works_over_an_index(index):
    text = SearchTool(LocalRetriever(index)).run(None, "volcano")[1].text
    assert text == "Page 1: Mount Etna. A volcano on the east coast of Sicily."


def test_passages_can_be_added_later(index):
    before = LocalRetriever(index)
    assert before.search("Stromboli", 3) == []
    assert add([Passage("Stromboli", "Another volcano.")], index, HEAP) == 1
    assert before.search("Stromboli", 3) == []
    before.close()
    assert before.search("Stromboli", 3)[0].title == "Stromboli"
    assert len(before) == len(PAGES) + 1


def test_equal_scores_keep_the_order_of_the_passages_across_additions(tmp_path):
    pages = [Passage(f"p{i}", "same words") for i in range(12)]
    build(pages[:5], tmp_path / "i", HEAP)
    add(pages[5:9], tmp_path / "i", HEAP)
    add(pages[9:], tmp_path / "i", HEAP)
    hits = LocalRetriever(tmp_path / "i").search("same words", 12)
    assert [hit.title for hit in hits] == [page.title for page in pages]
    assert [hit.title for hit in LocalRetriever(tmp_path / "i").search("same", 3)] == [
        "p0",
        "p1",
        "p2",
    ]


def test_an_addition_that_fails_adds_nothing(index):
    def broken():
        yield Passage("Vulcano", "An island.")
        raise KeyError("half-way")

    with pytest.raises(KeyError, match="half-way"):
        add(broken(), index, HEAP)
    assert LocalRetriever(index).search("Vulcano", 1) == []
    assert add([Passage("Vulcano", "An island.")], index, HEAP) == 1


def test_concurrent_additions_are_refused(index):
    def nested():
        with pytest.raises(ToolUnavailable, match="another process"):
            add([], index, HEAP)
        yield Passage("Vulcano", "An island.")

    assert add(nested(), index, HEAP) == 1


def test_a_build_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError):
        build((Passage("a", str(1 // 0)) for _ in range(1)), tmp_path / "i", HEAP)
    assert list(tmp_path.iterdir()) == []


def test_an_index_is_not_overwritten(index):
    with pytest.raises(FileExistsError, match="`add`"):
        build(PAGES, index)


def test_a_missing_index_names_the_command(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"tools\.local_index build"):
        LocalRetriever(tmp_path)


@pytest.mark.parametrize("damage", ["version", "note", "meta"])
def test_a_damaged_index_is_a_fault(index, damage):
    retriever = LocalRetriever(index)
    if damage == "version":
        (index / "appo.json").write_text('{"format": 0}')
    elif damage == "note":
        (index / "appo.json").write_text("garbage")
    else:
        (index / "meta.json").write_text("garbage")
    with pytest.raises(ToolUnavailable, match=r"index|version"):
        retriever.search("Sicily", 1)


def test_both_spellings_of_a_corpus_are_read(tmp_path):
    lines = [
        '{"title": "T", "text": "x"}',
        '{"id": 1, "contents": "\\"T\\"\\nx\\ny"}',
        '{"text": "z"}',
    ]
    with gzip.open(tmp_path / "c.jsonl.gz", "wt") as file:
        file.write("\n".join(lines))
    assert list(read_passages(tmp_path / "c.jsonl.gz")) == [("T", "x"), ("T", "x\ny"), ("", "z")]


@pytest.mark.parametrize("line", ["", "[]", "{}", "3", '"x"', "{"])
def test_a_line_that_is_no_passage_is_named(tmp_path, line):
    (tmp_path / "c.jsonl").write_text('{"title": "T", "text": "x"}\n' + line + "\n")
    with pytest.raises(ValueError, match=r"c\.jsonl:2: not"):
        list(read_passages(tmp_path / "c.jsonl"))


def test_the_command_line_builds_adds_and_searches(tmp_path, capsys):
    (tmp_path / "c.jsonl").write_text(json.dumps({"title": "Etna", "text": "A volcano."}) + "\n")
    corpus, index = str(tmp_path / "c.jsonl"), str(tmp_path / "deep" / "i")
    main(["build", corpus, index, "--heap-mb", "20"])
    main(["add", corpus, index, "--heap-mb", "20"])
    main(["search", index, "volcano", "-k", "1"])
    assert capsys.readouterr().out.splitlines()[-1].endswith("\tEtna\tA volcano.")


def _put_titles(retriever, queue):
    queue.put([hit.title for hit in retriever.search("Sicily", 2)])


@pytest.mark.parametrize("start", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_processes_and_threads_share_an_index(index, start):
    retriever, context = LocalRetriever(index), multiprocessing.get_context(start)
    expected = [hit.title for hit in retriever.search("Sicily", 2)]
    queue = context.Queue()
    workers = [context.Process(target=_put_titles, args=(retriever, queue)) for _ in range(2)]
    workers += [threading.Thread(target=_put_titles, args=(retriever, queue)) for _ in range(4)]
    for worker in workers:
        worker.start()
    assert [queue.get(timeout=60) for _ in workers] == [expected] * 6
    for worker in workers:
        worker.join()
    assert len(pickle.loads(pickle.dumps(retriever))) == len(PAGES)


def test_importing_the_retrievers_imports_nothing_heavy():
    code = (
        "import sys, tools.search.tool, tools.search.retrievers, tools.search.local_index;"
        "import tools.search.remote, tools.cache, tools.search.opening, tools.search.dense;"
        "print([m for m in ('numpy', 'bm25s', 'tantivy', 'httpx', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


@needs.unless(CORPUS.is_dir(), *needs.ROWS)
def test_disk_and_memory_agree_on_the_corpus(tmp_path):
    """Lengths are rounded on disk, so near-equal scores may swap; the best page rarely changes."""
    pages = []
    for page, _ in zip(read_passages(CORPUS / "passages.jsonl"), range(4000), strict=False):
        pages.append(page)
    build(pages, tmp_path / "i", HEAP)
    disk, memory = LocalRetriever(tmp_path / "i"), MemoryRetriever(pages)
    with (CORPUS / "questions_hotpotqa.jsonl").open() as file:
        questions = [json.loads(line)["question"] for line in file][:100]
    same = [disk.search(q, 1)[0].title == memory.search(q, 1)[0].title for q in questions]
    assert sum(same) >= 95
    for question in questions[:20]:
        ours = {hit[:2]: hit.score for hit in disk.search(question, 5)}
        theirs = {hit[:2]: hit.score for hit in memory.search(question, 10)}
        for page in ours.keys() & theirs.keys():
            assert ours[page] == pytest.approx(2.2 * theirs[page], rel=0.05)


def test_words_open_a_retriever(index, tmp_path):
    assert open_retriever("local", index).search("volcano", 1)[0].title == "Mount Etna"
    (tmp_path / "p.jsonl").write_text('{"title": "Etna", "text": "A volcano."}')
    assert open_retriever("local", tmp_path / "p.jsonl").search("volcano", 1)[0].title == "Etna"
    replayed = open_retriever("web", cache=Cache(tmp_path / "c", "frozen"))
    with pytest.raises(ToolUnavailable, match="out of order"):
        replayed.search("volcano", 1)
    cache = Cache(tmp_path / "c")
    for words in [("local",), ("remote",), ("altavista",), ("local", index, cache)]:
        with pytest.raises(ValueError, match="search="):
            open_retriever(*words)
    open_retriever("remote", "http://127.0.0.1:1", cache).close()
    open_retriever("remote", "http://127.0.0.1:1").close()
    open_retriever("web", "wikipedia").close()
    assert not (tmp_path / "c").exists()


_ADDER = """
import itertools, sys
from tools.search.local_index import Passage, add
def pages():
    for number in itertools.count():
        if number == 2000:
            print("writing", flush=True)
        yield Passage(f"killed {number}", "never committed " * 50)
add(pages(), sys.argv[1], 20 << 20)
"""


def test_an_addition_that_is_killed_adds_nothing_and_locks_nothing(index):
    adder = subprocess.Popen(
        [sys.executable, "-c", _ADDER, str(index)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert adder.stdout.readline() == "writing\n"
    adder.kill()
    adder.communicate()
    retriever = LocalRetriever(index)
    assert len(retriever) == len(PAGES)
    assert retriever.search("killed", 3) == []
    assert add([Passage("Vulcano", "An island.")], index, HEAP) == 1
    retriever.close()
    assert retriever.search("Vulcano", 1)[0].title == "Vulcano"

import json
import multiprocessing
import os
import pickle
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing

import pytest

from tests.conftest import ROOT
from tools.cache import (
    Answer,
    Cache,
    ReplayMiss,
    canonicalize,
    export_answers,
    import_answers,
    main,
)
from tools.tool import ToolUnavailable


def never():
    raise AssertionError("fetched although the store has the answer")


def record(path, **answers):
    cache = Cache(path)
    for query, text in answers.items():
        cache.answer({"query": query}, lambda text=text: Answer(text))
    cache.close()


def test_a_recorded_answer_is_not_fetched_again(tmp_path):
    cache = Cache(tmp_path / "deep" / "c.sqlite")
    assert cache.answer({"query": "a"}, lambda: Answer("one")) == "one"
    assert cache.answer({"query": "a"}, never) == "one"
    cache.close()
    assert cache.answer({"query": "a"}, never) == "one"
    cache.close()


def test_live_fetches_every_time_and_opens_no_file(tmp_path):
    cache = Cache(tmp_path / "c.sqlite", "live")
    assert [cache.answer({"q": 1}, lambda i=i: Answer(str(i))) for i in range(2)] == ["0", "1"]
    assert list(tmp_path.iterdir()) == []


def test_a_miss_is_an_error_in_replay_and_empty_when_frozen(tmp_path):
    record(tmp_path / "c.sqlite", a="one")
    replay, frozen = Cache(tmp_path / "c.sqlite", "replay"), Cache(tmp_path / "c.sqlite", "frozen")
    assert replay.answer({"query": "a"}, never) == frozen.answer({"query": "a"}, never) == "one"
    assert frozen.answer({"query": "b"}, never) is None
    with pytest.raises(ReplayMiss, match='"query":"b"'):
        replay.answer({"query": "b"}, never)
    replay.close()
    frozen.close()


def test_replaying_a_recording_that_is_not_there_is_a_fault(tmp_path):
    with pytest.raises(ToolUnavailable, match="nowhere"):
        Cache(tmp_path / "nowhere.sqlite", "replay").answer({}, never)


def test_a_file_that_is_no_cache_is_a_fault(tmp_path):
    (tmp_path / "c.sqlite").write_bytes(b"garbage" * 1000)
    for mode in ("record", "replay"):
        with pytest.raises(ToolUnavailable, match="out of order"):
            Cache(tmp_path / "c.sqlite", mode).answer({}, never)


def test_an_unknown_mode_is_refused(tmp_path):
    with pytest.raises(ValueError, match="live, record, replay, frozen"):
        Cache(tmp_path / "c.sqlite", "online")


def test_an_expired_answer_is_fetched_again_but_still_replays(tmp_path):
    cache = Cache(tmp_path / "c.sqlite")
    assert cache.answer({"q": 1}, lambda: Answer("", ttl_s=-1)) == ""
    replay = Cache(tmp_path / "c.sqlite", "replay")
    assert replay.answer({"q": 1}, never) == ""
    replay.close()
    assert cache.answer({"q": 1}, lambda: Answer("later", ttl_s=1000)) == "later"
    assert cache.answer({"q": 1}, never) == "later"
    cache.close()


def test_a_failure_is_not_stored(tmp_path):
    cache = Cache(tmp_path / "c.sqlite")
    with pytest.raises(ToolUnavailable):
        cache.answer({"q": 1}, lambda: (_ for _ in ()).throw(ToolUnavailable("broken")))
    assert cache.answer({"q": 1}, lambda: Answer("well")) == "well"
    cache.close()


def test_requests_are_equal_up_to_blanks_and_unicode_form_only():
    assert canonicalize({"q": " e\u0301  x\n", "k": 3}) == canonicalize({"k": 3, "q": "\u00e9 x"})
    different = ["C++", "C#", "c#", "1.5", "15", "\ud800"]
    assert len({canonicalize({"q": q}) for q in different}) == len(different)


def test_any_text_survives(tmp_path):
    text = "\x00\ud800 <answer> 东京 \U0001f600\r\n"
    record(tmp_path / "c.sqlite", **{text: text})
    cache = Cache(tmp_path / "c.sqlite", "replay")
    assert cache.answer({"query": text}, never) == text
    cache.close()


def test_threads_that_ask_the_same_wait_for_the_first(tmp_path):
    cache, fetches, release = Cache(tmp_path / "c.sqlite"), [], threading.Event()

    def fetch():
        fetches.append(1)
        release.wait(10)
        return Answer("once")

    answers = []
    threads = [
        threading.Thread(target=lambda: answers.append(cache.answer({"q": 1}, fetch)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    release.set()
    for thread in threads:
        thread.join()
    assert (answers, fetches) == (["once"] * 8, [1])
    cache.close()


def test_threads_that_ask_the_same_share_its_failure(tmp_path):
    cache, fetches, release = Cache(tmp_path / "c.sqlite"), [], threading.Event()

    def fetch():
        fetches.append(1)
        release.wait(10)
        raise ToolUnavailable("broken")

    def answer():
        try:
            cache.answer({"q": 1}, fetch)
        except ToolUnavailable as error:
            failed.append(str(error))

    failed, threads = [], [threading.Thread(target=answer) for _ in range(8)]
    for thread in threads:
        thread.start()
    while len(cache._store.get()._flights) == 0:
        time.sleep(0.001)
    time.sleep(0.05)
    release.set()
    for thread in threads:
        thread.join()
    assert failed == ["broken"] * 8
    assert len(fetches) < 8
    assert cache.answer({"q": 1}, lambda: Answer("well again")) == "well again"
    cache.close()


def test_the_oldest_answers_are_deleted_when_the_file_is_full(tmp_path):
    cache, limit = Cache(tmp_path / "c.sqlite", max_bytes=1 << 20), 1 << 20
    noise = random.Random(0)
    for i in range(600):
        cache.answer({"q": i}, lambda: Answer(noise.randbytes(8_000).hex()))
    assert cache.answer({"q": 0}, lambda: Answer("asked again")) == "asked again"
    cache.answer({"q": 599}, never)
    cache.close()
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 2 * limit


def test_an_answer_larger_than_the_limit_is_returned_but_not_stored(tmp_path):
    cache, text = Cache(tmp_path / "c.sqlite", max_bytes=100_000), os.urandom(200_000).hex()
    assert cache.answer({"q": 1}, lambda: Answer(text)) == text
    assert cache.answer({"q": 1}, lambda: Answer("again")) == "again"
    cache.close()


def test_an_export_depends_on_the_answers_alone_and_can_be_imported(tmp_path):
    record(tmp_path / "one.sqlite", a="1", b="2")
    record(tmp_path / "two.sqlite", b="2", a="1")
    for name in ("one", "two"):
        assert export_answers(tmp_path / f"{name}.sqlite", tmp_path / f"{name}.gz") == 2
    assert (tmp_path / "one.gz").read_bytes() == (tmp_path / "two.gz").read_bytes()
    record(tmp_path / "three.sqlite", a="kept")
    assert import_answers(tmp_path / "one.gz", tmp_path / "three.sqlite") == 2
    cache = Cache(tmp_path / "three.sqlite", "replay")
    assert [cache.answer({"query": q}, never) for q in "ab"] == ["kept", "2"]
    cache.close()


@pytest.mark.parametrize(
    "line", ["", "[]", "{}", '{"request": "x", "answer": "", "expires": null}']
)
def test_an_import_names_the_line_that_is_wrong(tmp_path, line):
    import gzip

    with gzip.open(tmp_path / "a.gz", "wt") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=r"a\.gz:1"):
        import_answers(tmp_path / "a.gz", tmp_path / "c.sqlite")


def test_the_command_line_exports_imports_and_counts(tmp_path, capsys):
    record(tmp_path / "one.sqlite", a="1")
    main(["export", str(tmp_path / "one.sqlite"), str(tmp_path / "a.gz")])
    main(["import", str(tmp_path / "a.gz"), str(tmp_path / "two.sqlite")])
    main(["count", str(tmp_path / "two.sqlite")])
    assert capsys.readouterr().out.splitlines()[-1] == "1 answers"


def test_a_cache_can_be_pickled(tmp_path):
    record(tmp_path / "c.sqlite", a="1")
    cache = Cache(tmp_path / "c.sqlite", "replay")
    cache.answer({"query": "a"}, never)
    copy = pickle.loads(pickle.dumps(cache))
    assert copy.answer({"query": "a"}, never) == "1"
    copy.close()
    cache.close()


def _answer_all(cache, worker, queue):
    queue.put([cache.answer({"q": i}, lambda i=i: Answer(f"{worker}:{i}")) for i in range(200)])
    cache.close()


@pytest.mark.parametrize("start", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_processes_that_ask_the_same_agree(tmp_path, start):
    context = multiprocessing.get_context(start)
    cache, queue = Cache(tmp_path / "c.sqlite"), context.Queue()
    cache.answer({"q": -1}, lambda: Answer("opened before the fork"))
    workers = [
        context.Process(target=_answer_all, args=(cache, number, queue)) for number in range(4)
    ]
    for worker in workers:
        worker.start()
    answers = [queue.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    assert answers == answers[:1] * 4
    assert cache.answer({"q": 0}, never) == answers[0][0]
    cache.close()


_WRITER = """
import sys
from tools.cache import Answer, Cache
cache = Cache(sys.argv[1], max_bytes=int(sys.argv[3]))
i = int(sys.argv[2])
while True:
    cache.answer({"q": i}, lambda: Answer(str(i) * 500))
    print(i, flush=True)
    i += 1
"""


@pytest.mark.parametrize("max_bytes", [4 << 30, 300_000])
def test_sigkill_at_any_moment_loses_no_answer_that_was_returned(tmp_path, max_bytes):
    """Two writers a round are killed after a random time; the last answer of each must be there.

    A small file deletes old answers all the while, so that one writer may have deleted the other's
    last one; then every answer that is left must be intact.
    """
    path, noise = tmp_path / "c.sqlite", random.Random(1)
    for round_ in range(6):
        writers = [
            _start_writer(path, (2 * round_ + number) * 1_000_000, max_bytes) for number in (0, 1)
        ]
        firsts = [int(writer.stdout.readline()) for writer in writers]
        time.sleep(noise.random() * 0.2)
        for writer in writers:
            writer.send_signal(signal.SIGKILL)
        printed = [writer.communicate()[0].split() for writer in writers]
        lasts = [
            int(lines[-2]) if len(lines) > 1 else first
            for lines, first in zip(printed, firsts, strict=True)
        ]
        with closing(Cache(path, "replay" if max_bytes > 1 << 30 else "frozen")) as cache:
            for last in lasts:
                assert cache.answer({"q": last}, never) in (str(last) * 500, None)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("SELECT count(*) FROM answers").fetchone()[0] > 20


def _start_writer(path, first, max_bytes):
    command = [sys.executable, "-c", _WRITER, str(path), str(first), str(max_bytes)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, text=True)


def test_two_processes_can_create_a_file_concurrently(tmp_path):
    """SQLite does not wait if two processes switch a new file to its log at the same moment."""
    for round_ in range(12):
        path = tmp_path / f"{round_}.sqlite"
        writers = [_start_writer(path, number * 1_000_000, 4 << 30) for number in (0, 1)]
        firsts = [writer.stdout.readline() for writer in writers]
        for writer in writers:
            writer.kill()
            writer.communicate()
        assert firsts == [f"{number * 1_000_000}\n" for number in (0, 1)]


def test_requests_are_readable_in_the_file(tmp_path):
    record(tmp_path / "c.sqlite", a="1")
    connection = sqlite3.connect(tmp_path / "c.sqlite")
    assert json.loads(connection.execute("SELECT request FROM answers").fetchone()[0]) == {
        "query": "a"
    }
    connection.close()

import itertools
import os
import struct
import threading
import time

import pytest

from tools.tool import ToolUnavailable
from tools.web.rate_limits import AttemptFailed, RequestLimits
from tools.web.retries import Retrier, call_with_timeout


class Clock:
    """A clock that advances only in `sleep`."""

    def __init__(self):
        self.now, self.slept = 0.0, []

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.slept.append(round(seconds, 6))
        self.now += seconds


def make_retrier(**limits):
    clock = Clock()
    return Retrier(RequestLimits(**limits), 0, clock, clock.sleep), clock


def make_attempt(*outcomes):
    """An attempt that raises or returns each outcome in turn, the last one for ever."""
    left = list(outcomes)

    def attempt(seconds):
        outcome = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return attempt


def test_pauses_double_with_full_jitter_and_honour_retry_after():
    """Ranges 1, 2, 4, then 4 by the bound; the third failure asks for 9 s."""
    retrier, clock = make_retrier(
        max_attempts=5, deadline_s=100, max_backoff_s=4, failure_threshold=99
    )
    failed, slow_down = AttemptFailed("x"), AttemptFailed("x", retry_after_s=9.0)
    assert retrier.call("h", make_attempt(failed, failed, slow_down, failed, "well")) == "well"
    assert clock.slept[2] == 9.0
    assert all(0 <= s <= bound for s, bound in zip(clock.slept, [1, 2, 9, 4], strict=True))
    assert len(set(clock.slept)) == 4
    assert retrier.traffic() == (1, 5, 4, 0)


@pytest.mark.parametrize(
    "name", ["max_attempts", "max_in_flight", "failure_threshold", "burst", "per_second"]
)
def test_limits_that_allow_nothing_are_refused(name):
    with pytest.raises(ValueError, match="must be"):
        RequestLimits(**{name: 0})


def test_a_deadline_ends_the_attempts():
    retrier, clock = make_retrier(max_attempts=99, deadline_s=5, failure_threshold=999)

    def slow(seconds):
        clock.now += 2
        raise AttemptFailed("slow")

    with pytest.raises(ToolUnavailable, match=r"h: slow \(attempt [23]\)"):
        retrier.call("h", slow)
    assert clock.now <= 5


def test_an_error_in_our_own_code_is_not_retried():
    retrier, _ = make_retrier()
    with pytest.raises(ZeroDivisionError):
        retrier.call("h", make_attempt(ZeroDivisionError()))
    assert retrier.call("h", make_attempt("well")) == "well"


def test_a_bucket_paces_each_host():
    """2 a second, burst 3: at 0, 0, 0, then every half second; another host starts afresh."""
    retrier, clock = make_retrier(per_second=2, burst=3)
    times = []
    for _ in range(6):
        retrier.call("a", lambda _: times.append(clock.now))
    assert times == pytest.approx([0, 0, 0, 0.5, 1.0, 1.5])
    retrier.call("b", lambda _: times.append(clock.now))
    assert times[-1] == pytest.approx(1.5)


def test_processes_that_share_a_folder_share_one_rate_limit(tmp_path):
    """Two retriers stand for two processes; torn files and those of an earlier boot are ignored."""
    clock, times = Clock(), []
    retriers = [
        Retrier(RequestLimits(per_second=2), 0, clock, clock.sleep, tmp_path / "pace")
        for _ in range(2)
    ]
    for _ in range(2):
        for retrier in retriers:
            retrier.call("a", lambda _: times.append(clock.now))
    assert times == pytest.approx([0, 0.5, 1.0, 1.5])
    (file,) = (tmp_path / "pace").iterdir()
    for content in (b"", b"abc", struct.pack("<d", 1e9)):
        file.write_bytes(content)
        retriers[0].call("a", lambda _: times.append(clock.now))
    assert times[-1] == pytest.approx(1.5)


def test_calls_that_wait_for_the_rate_limit_are_served_in_turn():
    retrier, served = Retrier(RequestLimits(per_second=20)), []

    def one(number):
        retrier.call("a", lambda _: served.append(number))

    threads = [threading.Thread(target=one, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
        time.sleep(0.005)
    for thread in threads:
        thread.join()
    assert served == list(range(6))


def test_a_call_that_would_wait_too_long_for_a_turn_fails_immediately():
    retrier, clock = make_retrier(per_second=0.1, max_wait_s=5)
    retrier.call("a", make_attempt("well"))
    with pytest.raises(ToolUnavailable, match="too busy: no turn within 5 s"):
        retrier.call("a", make_attempt("well"))
    assert clock.now == 0


def test_a_host_that_keeps_failing_cools_down_and_one_probe_decides():
    """Three failures: 5 s; the probe at 5 fails: 10 s; the probe at 15 succeeds."""
    retrier, clock = make_retrier(max_attempts=1, failure_threshold=3, cooldown_s=5, max_wait_s=60)
    times = []

    def succeed(_):
        times.append(clock.now)

    def fail(_):
        times.append(clock.now)
        raise AttemptFailed("x")

    for _ in range(4):
        with pytest.raises(ToolUnavailable):
            retrier.call("a", fail)
    retrier.call("a", succeed)
    retrier.call("a", succeed)
    assert times == pytest.approx([0, 0, 0, 5, 15, 15])
    retrier.call("b", succeed)
    assert times[-1] == pytest.approx(15)


def test_a_host_that_cools_down_too_long_is_unavailable():
    retrier, clock = make_retrier(max_attempts=1, failure_threshold=1, cooldown_s=50, max_wait_s=10)
    with pytest.raises(ToolUnavailable, match="a: x"):
        retrier.call("a", make_attempt(AttemptFailed("x")))
    with pytest.raises(ToolUnavailable, match="cooling down"):
        retrier.call("a", make_attempt("well"))
    assert clock.now == 0


def test_only_one_call_probes_a_host_after_its_cooldown():
    retrier = Retrier(
        RequestLimits(max_attempts=1, failure_threshold=1, cooldown_s=0.05, max_wait_s=5)
    )
    with pytest.raises(ToolUnavailable):
        retrier.call("a", make_attempt(AttemptFailed("x")))
    number, concurrency, never = itertools.count(), [], threading.Event()
    lock, running = threading.Lock(), [0]

    def attempt(_):
        with lock:
            running[0] += 1
            concurrency.append(running[0])
        if next(number) == 0:
            never.wait(0.3)
            assert running[0] == 1, "another call was admitted during the probe"
        with lock:
            running[0] -= 1

    threads = [threading.Thread(target=retrier.call, args=("a", attempt)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(concurrency) == 8


def test_no_more_calls_are_in_flight_than_allowed():
    retrier, lock = Retrier(RequestLimits(max_in_flight=3)), threading.Lock()
    running, peak = [0], [0]

    def attempt(_):
        with lock:
            running[0] += 1
            peak[0] = max(peak[0], running[0])
        time.sleep(0.02)
        with lock:
            running[0] -= 1

    threads = [threading.Thread(target=retrier.call, args=("a", attempt)) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert peak == [3]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_in_the_middle_of_calls_does_not_inherit_their_locks():
    retrier, stay = Retrier(RequestLimits(max_in_flight=1)), threading.Event()
    inside = threading.Event()
    holder = threading.Thread(
        target=retrier.call, args=("a", lambda _: (inside.set(), stay.wait(20)))
    )
    holder.start()
    inside.wait(10)
    child = os.fork()
    if child == 0:
        os._exit(retrier.call("a", lambda _: 7))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    stay.set()
    holder.join()


def test_a_task_that_takes_too_long_is_abandoned():
    stay, abandoned = threading.Event(), []
    with pytest.raises(AttemptFailed, match=r"no answer within 0\.0 s"):
        call_with_timeout(0.02, stay.wait, lambda: abandoned.append(stay.set()))
    assert abandoned == [None]
    assert call_with_timeout(5, lambda: 3, lambda: None) == 3
    with pytest.raises(KeyError):
        call_with_timeout(5, lambda: {}["x"], lambda: None)

import itertools
import os
import struct
import threading
import time

import pytest

from tools.tool import ToolUnavailable
from tools.web.rate_limits import Fault, Limits
from tools.web.retries import Guard, within


class Clock:
    """Time that passes only in sleep."""

    def __init__(self):
        self.now, self.slept = 0.0, []

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.slept.append(round(seconds, 6))
        self.now += seconds


def guard(**limits):
    clock = Clock()
    return Guard(Limits(**limits), 0, clock, clock.sleep), clock


def failing(*outcomes):
    """An `ask` that raises or returns each outcome in turn, the last one for ever."""
    left = list(outcomes)

    def ask(seconds):
        outcome = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return ask


def test_pauses_double_with_full_jitter_and_honour_retry_after():
    """Ranges 1, 2, 4, then 4 by the bound; the third fault asks for 9 s."""
    pacer, clock = guard(attempts=5, deadline_s=100, longest_pause_s=4, failures=99)
    faults = [Fault("x"), Fault("x"), Fault("x", retry_after_s=9.0), Fault("x"), "well"]
    assert pacer.call("h", failing(*faults)) == "well"
    assert clock.slept[2] == 9.0
    assert all(0 <= s <= bound for s, bound in zip(clock.slept, [1, 2, 9, 4], strict=True))
    assert len(set(clock.slept)) == 4
    assert pacer.traffic() == (1, 5, 4, 0)


@pytest.mark.parametrize(
    "limits", [{"attempts": 0}, {"at_once": 0}, {"failures": 0}, {"burst": 0}, {"per_second": 0}]
)
def test_limits_that_allow_nothing_are_refused(limits):
    with pytest.raises(ValueError, match="must be"):
        Limits(**limits)


def test_a_deadline_ends_the_attempts():
    pacer, clock = guard(attempts=99, deadline_s=5, failures=999)

    def slow(seconds):
        clock.now += 2
        raise Fault("slow")

    with pytest.raises(ToolUnavailable, match=r"h: slow \(attempt [23]\)"):
        pacer.call("h", slow)
    assert clock.now <= 5


def test_an_error_of_our_own_is_not_retried():
    pacer, _ = guard()
    with pytest.raises(ZeroDivisionError):
        pacer.call("h", failing(ZeroDivisionError()))
    assert pacer.call("h", failing("well")) == "well"


def test_a_bucket_paces_each_host():
    """2 a second, burst 3: at 0, 0, 0, then every half second; another host starts fresh."""
    pacer, clock = guard(per_second=2, burst=3)
    times = []
    for _ in range(6):
        pacer.call("a", lambda _: times.append(clock.now))
    assert times == pytest.approx([0, 0, 0, 0.5, 1.0, 1.5])
    pacer.call("b", lambda _: times.append(clock.now))
    assert times[-1] == pytest.approx(1.5)


def test_processes_that_share_a_folder_keep_one_pace(tmp_path):
    """Two guards stand for two processes; a torn file and one of an earlier boot are ignored."""
    clock, times = Clock(), []
    pacers = [
        Guard(Limits(per_second=2), 0, clock, clock.sleep, tmp_path / "pace") for _ in range(2)
    ]
    for _ in range(2):
        for pacer in pacers:
            pacer.call("a", lambda _: times.append(clock.now))
    assert times == pytest.approx([0, 0.5, 1.0, 1.5])
    (file,) = (tmp_path / "pace").iterdir()
    for torn in (b"", b"abc", struct.pack("<d", 1e9)):
        file.write_bytes(torn)
        pacers[0].call("a", lambda _: times.append(clock.now))
    assert times[-1] == pytest.approx(1.5)


def test_who_waits_for_the_pace_is_served_in_turn():
    pacer, served = Guard(Limits(per_second=20)), []

    def one(number):
        pacer.call("a", lambda _: served.append(number))

    threads = [threading.Thread(target=one, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
        time.sleep(0.005)
    for thread in threads:
        thread.join()
    assert served == list(range(6))


def test_who_would_wait_too_long_for_a_turn_is_told_at_once():
    pacer, clock = guard(per_second=0.1, patience_s=5)
    pacer.call("a", failing("well"))
    with pytest.raises(ToolUnavailable, match="too busy for 5 s"):
        pacer.call("a", failing("well"))
    assert clock.now == 0


def test_a_host_that_keeps_failing_rests_and_one_probe_decides():
    """Three failures: rest 5; the probe at 5 fails: rest 10; the probe at 15 succeeds."""
    pacer, clock = guard(attempts=1, failures=3, rest_s=5, patience_s=60)
    times = []

    def ask(outcome):
        def asked(_):
            times.append(clock.now)
            if outcome is not None:
                raise outcome

        return asked

    for outcome in [Fault("x")] * 4:
        with pytest.raises(ToolUnavailable):
            pacer.call("a", ask(outcome))
    pacer.call("a", ask(None))
    pacer.call("a", ask(None))
    assert times == pytest.approx([0, 0, 0, 5, 15, 15])
    pacer.call("b", ask(None))
    assert times[-1] == pytest.approx(15)


def test_a_resting_host_is_unavailable_to_the_impatient():
    pacer, clock = guard(attempts=1, failures=1, rest_s=50, patience_s=10)
    with pytest.raises(ToolUnavailable, match="a: x"):
        pacer.call("a", failing(Fault("x")))
    with pytest.raises(ToolUnavailable, match="rests"):
        pacer.call("a", failing("well"))
    assert clock.now == 0


def test_only_one_call_probes_a_host_that_rested():
    pacer = Guard(Limits(attempts=1, failures=1, rest_s=0.05, patience_s=5))
    with pytest.raises(ToolUnavailable):
        pacer.call("a", failing(Fault("x")))
    inside, most, gate = itertools.count(), [], threading.Event()
    lock, now = threading.Lock(), [0]

    def ask(_):
        with lock:
            now[0] += 1
            most.append(now[0])
        if next(inside) == 0:
            gate.wait(0.3)
            assert now[0] == 1, "others came in while the probe was out"
        with lock:
            now[0] -= 1

    threads = [threading.Thread(target=pacer.call, args=("a", ask)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 8


def test_no_more_calls_are_in_flight_than_allowed():
    pacer, lock = Guard(Limits(at_once=3)), threading.Lock()
    inside, most = [0], [0]

    def ask(_):
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        time.sleep(0.02)
        with lock:
            inside[0] -= 1

    threads = [threading.Thread(target=pacer.call, args=("a", ask)) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [3]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_in_the_middle_of_calls_does_not_inherit_their_locks():
    pacer, stay = Guard(Limits(at_once=1)), threading.Event()
    inside = threading.Event()
    holder = threading.Thread(
        target=pacer.call, args=("a", lambda _: (inside.set(), stay.wait(20)))
    )
    holder.start()
    inside.wait(10)
    child = os.fork()
    if child == 0:
        os._exit(pacer.call("a", lambda _: 7))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    stay.set()
    holder.join()


def test_what_takes_too_long_is_abandoned():
    stay, abandoned = threading.Event(), []
    with pytest.raises(Fault, match=r"no answer within 0\.0 s"):
        within(0.02, stay.wait, lambda: abandoned.append(stay.set()))
    assert abandoned == [None]
    assert within(5, lambda: 3, lambda: None) == 3
    with pytest.raises(KeyError):
        within(5, lambda: {}["x"], lambda: None)

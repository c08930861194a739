"""Requests and tokens in any 60 seconds, with time that passes only in sleep."""

import threading

import pytest

from sae_lib.llm.pace import Pace


def test_a_burst_may_be_as_large_as_the_limit_and_no_larger(fake_clock):
    pace = Pace(2, None, fake_clock.clock)
    times = [pace.enter(0)[0] for _ in range(5)]
    assert times == [1000, 1000, 1060, 1060, 1120]


def test_tokens_are_counted_as_they_turn_out_to_be(fake_clock):
    pace = Pace(None, 100, fake_clock.clock)
    first = pace.enter(60)
    pace.settle(first, 90)
    fake_clock.time = 1020.0
    assert pace.enter(10)[0] == 1020  # 100 in all
    assert pace.enter(5)[0] == 1060  # when the 90 are a minute old
    assert pace.enter(95)[0] == 1080  # when the 10 are as well: 95 + 5


def test_a_request_larger_than_the_limit_goes_out_alone(fake_clock):
    pace = Pace(None, 100, fake_clock.clock)
    assert pace.enter(50)[0] == 1000
    assert pace.enter(500)[0] == 1060
    assert pace.enter(1)[0] == 1120


def test_without_limits_nothing_waits_and_nothing_is_remembered(fake_clock):
    pace = Pace(None, None, fake_clock.clock)
    for _ in range(100):
        pace.enter(10**6)
    assert not fake_clock.slept
    assert not pace._sent


def test_a_hold_is_never_shortened(fake_clock):
    pace = Pace(None, None, fake_clock.clock)
    pace.hold(30.0)
    pace.hold(5.0)
    assert pace.enter(0)[0] == 1030


def test_threads_share_one_pace(fake_clock):
    pace, times = Pace(5, None, fake_clock.clock), []

    def work():
        for _ in range(5):
            times.append(pace.enter(0)[0])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    times.sort()
    assert len(times) == 20
    assert all(late - early >= 60 for early, late in zip(times, times[5:], strict=False))


@pytest.mark.parametrize("num", [1, 7])
def test_a_limit_of_requests_over_a_long_time(fake_clock, num):
    pace = Pace(num, None, fake_clock.clock)
    times = [pace.enter(0)[0] for _ in range(10 * num)]
    assert times[-1] == 1000 + 9 * 60

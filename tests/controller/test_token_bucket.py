"""controller.token_bucket: a burst, then so many a second."""

from __future__ import annotations

from controller.token_bucket import TokenBucket


def test_a_burst_then_a_steady_rate() -> None:
    """After the burst, each further one waits its turn."""
    bucket = TokenBucket(10, 3, clock=lambda: 0.0)

    assert [round(bucket.reserve(), 3) for _ in range(6)] == [0, 0, 0, 0.1, 0.2, 0.3]


def test_a_pause_fills_it_up_to_the_burst() -> None:
    """Never beyond: an idle hour does not allow a flood."""
    now_s = 0.0
    bucket = TokenBucket(10, 3, clock=lambda: now_s)
    for _ in range(3):
        bucket.reserve()
    now_s = 3600.0

    assert [round(bucket.reserve(), 3) for _ in range(4)] == [0, 0, 0, 0.1]

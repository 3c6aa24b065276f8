"""cli.interrupts: signals counted and waits ended, whatever they interrupt."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from cli.interrupts import Interrupts

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)


@pytest.fixture
def interrupts() -> Iterator[Interrupts]:
    """Handlers installed for the test, and the earlier ones put back after it."""
    before = [signal.getsignal(number) for number in SIGNALS]
    with Interrupts() as entered:
        yield entered
    for number, handler in zip(SIGNALS, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.timeout(30, method="thread")  # the test needs SIGALRM itself
def test_a_storm_of_signals_never_locks_up_the_wait(interrupts: Interrupts) -> None:
    """Handlers run between any two lines of the wait itself; tens of thousands of signals into it leave no lock behind."""
    num_waits, ends_at = 0, time.monotonic() + 1
    signal.signal(signal.SIGALRM, signal.getsignal(signal.SIGCHLD))
    signal.setitimer(signal.ITIMER_REAL, 1e-5, 1e-5)
    while time.monotonic() < ends_at:
        interrupts.wait(0.001)
        num_waits += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    # A last one may still be on its way, through a thread that has yet to run: it must never meet the default.
    signal.signal(signal.SIGALRM, lambda *_: None)

    assert num_waits > 0
    assert interrupts.count == 0


def test_a_signal_ends_the_wait_and_is_not_lost_when_it_comes_before(interrupts: Interrupts) -> None:
    """A signal between two waits ends the next at once, and only that one."""
    os.kill(os.getpid(), signal.SIGTERM)
    started = time.monotonic()
    interrupts.wait(20)
    waited_s = time.monotonic() - started
    interrupts.wait(0.05)

    assert waited_s < 10
    assert interrupts.count == 1
    assert time.monotonic() - started - waited_s >= 0.05


def test_the_third_interrupt_has_its_default_effect(interrupts: Interrupts) -> None:
    """After two there is nothing left to ask for: Ctrl-C ends even a process that hangs."""
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)
    interrupts.wait(1)

    assert interrupts.count == 2
    assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL

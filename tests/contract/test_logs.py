"""Log lines: one JSON object each, a constant phrase and keys."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

from contract.logs import JsonFormatter


def line(message: str, *args: object, exc_info: object = None, **extra: object) -> dict[str, object]:
    """A log record as formatted in a pod."""
    record = logging.getLogger("worker").makeRecord(
        "worker", logging.INFO, "file.py", 1, message, args, exc_info, extra=extra
    )
    return json.loads(JsonFormatter(run="swissprot").format(record))


def test_a_line_holds_the_phrase_the_keys_and_what_every_line_holds() -> None:
    """Nothing of Python's own bookkeeping is among the keys."""
    found = line("committed", shard=3, num_records=100)

    assert found.pop("time")
    assert found == {"level": "info", "message": "committed", "run": "swissprot", "shard": 3, "num_records": 100}


def test_a_traceback_and_values_that_json_does_not_know_stay_one_line() -> None:
    """Errors are written in full, other values by their text."""
    try:
        int("no\nnumber")
    except ValueError:
        found = line("worker ends", exc_info=sys.exc_info(), where=Path("here"))

    assert "ValueError: invalid literal" in str(found["traceback"])
    assert found["where"] == "here"


def test_only_our_own_words_are_in_the_log_of_a_pod() -> None:
    """The store's client says at each start where it found its endpoint, among the lines that somebody looks for."""
    program = (
        "import logging; from contract import logs; logs.configure(run='x'); "
        "logging.getLogger('botocore.regions').info('Found endpoint'); logging.getLogger('worker').info('claimed')"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert [json.loads(text)["message"] for text in done.stderr.splitlines()] == ["claimed"]

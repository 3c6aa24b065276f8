"""Logging of workers and controller: one JSON object a line. Configured by their __main__ only."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

STORE_SILENT = "the store does not answer"
"""Phrase of a worker's warning, with `store`, `endpoint`, `silent_s` and `detail`; `doctor` looks for it."""
STORE_BACK = "the store answers again"
"""Phrase of the line that ends such warnings."""

_BUILT_IN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """A constant phrase plus the keys given as `extra`."""

    def __init__(self, **always: object) -> None:
        super().__init__()
        self._always = always

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **self._always,
            **extras(record),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str)


def extras(record: logging.LogRecord) -> dict[str, object]:
    """The keys given as `extra`."""
    return {key: value for key, value in vars(record).items() if key not in _BUILT_IN}


def configure(**always: object) -> None:
    """Log to standard error, as JSON; `always` goes into each line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(**always))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for chatty in ("botocore", "boto3"):  # at each new client they say where they found its endpoint
        logging.getLogger(chatty).setLevel(logging.WARNING)

"""Readers: from a byte range of an input object to its records. `worker.records.open` is the way in."""

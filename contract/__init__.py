"""What one side writes and the other reads: names, formats and the store protocol.

Nothing here imports `controller`, `worker` or `cli`; apart from `contract.store`, nothing does I/O or reads a clock.
"""

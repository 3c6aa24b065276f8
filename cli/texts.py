"""Values as people read them. Pure."""

from __future__ import annotations


def printable(value: object) -> str:
    """Text that cannot act on a terminal: control characters become escapes; `-` for None."""
    if value is None:
        return "-"
    text = str(value)
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def size_text(num_bytes: int) -> str:
    """Bytes in binary units: 67108864 is `64.0 MiB`."""
    units = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
    power = 0
    while power < len(units) - 1 and num_bytes >= 1024 ** (power + 1):
        power += 1
    return f"{num_bytes} B" if power == 0 else f"{num_bytes / 1024**power:.1f} {units[power]}"


def duration_text(seconds: float | None) -> str:
    """Seconds as `1 h 02 min`, `3 min 05 s` or `7 s`; `-` for None."""
    if seconds is None:
        return "-"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"

"""The charts of a report, as inline SVG with its labels in HTML. Pure.

A chart's drawing is stretched to the width there is, so it holds no text: what can be read stands beside it in HTML, which
wraps on a phone. Coordinates are whole numbers on a grid of WIDTH x HEIGHT, which bounds the size of the page.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from datetime import datetime

from cli.report_content import Bin, Ending, Holding, Lane, Point, ReportContent, ShardState, SizeBin
from cli.texts import duration_text, printable

WIDTH = 1000
HEIGHT = 200
MAX_LANES = 48
MAX_TITLED_HOLDINGS = 600
"""Beyond it, holdings are drawn without a tooltip of their own."""
MAX_MARKS_PER_LANE = 40
MAX_CELLS = 600
CELL_COLUMNS = 40
_CELL = 10
_STEPS = (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)
_TEXT_LENGTH = 300

MARKS = {
    Ending.EVICTED: "spot eviction",
    Ending.NODE: "node lost or refused",
    Ending.FAILED: "failure",
    Ending.STOPPED: "stopped on request",
}
"""Endings that get a mark, and what the legend calls them."""


def text(value: object) -> str:
    """Text that can neither leave its place in the page nor act on it: escaped, cut, without control characters."""
    shown = printable(value)
    return html.escape(shown if len(shown) <= _TEXT_LENGTH else shown[: _TEXT_LENGTH - 1] + "…")


def number_text(value: float) -> str:
    """`1,234,567`, `12.3`, `0.045`."""
    if value == int(value) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def axis_text(value: float) -> str:
    """The same, short enough for the side of a chart on a phone: `250`, `80 k`, `12 M`, `1.5 G`."""
    for unit, least, size in (("G", 1e9, 1e9), ("M", 1e6, 1e6), ("k", 1e4, 1e3)):
        if abs(value) >= least:
            return f"{value / size:.3g} {unit}"
    return number_text(value)


def figure(*, name: str, title: str, description: str, drawing: str, top: str, bottom: Sequence[str]) -> str:
    """A drawing with its highest value, and labels from left to right below it.

    Args:
        name: unique on the page; the accessible title hangs on it.
        title: what is drawn.
        description: what there is to see, for those who cannot.
        drawing: SVG elements on the grid.
        top: label of the upper edge; the lower one is 0.
        bottom: labels below, spread over the width.
    """
    grid = "".join(f'<path class="grid" d="M0 {y}H{WIDTH}"/>' for y in (0, HEIGHT // 2, HEIGHT))
    labels = "".join(f"<span>{text(label)}</span>" for label in bottom)
    return (
        f'<figure class="chart"><div class="y" aria-hidden="true"><span>{text(top)}</span><span>0</span></div>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-labelledby="{name}-title {name}-desc"><title id="{name}-title">{text(title)}</title>'
        f'<desc id="{name}-desc">{text(description)}</desc>{grid}{drawing}</svg>'
        f'<div class="x" aria-hidden="true">{labels}</div></figure>'
    )


def time_labels(content: ReportContent) -> tuple[str, ...]:
    """Start, middle and end of the run, as time since its start."""
    return ("start", duration_text(content.elapsed_s / 2), duration_text(content.elapsed_s))


def ceiling(value: float) -> float:
    """The next number not below `value` that reads well on an axis."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in _STEPS if step * power >= value * 0.999_999)


def progress_drawing(points: Sequence[Point], *, started_at: datetime, elapsed_s: float, top: float) -> str:
    """The curve of records over time, with the area below it."""
    steps: list[str] = []
    y = HEIGHT
    for point in points:
        x = _scaled((point.at - started_at).total_seconds(), elapsed_s, WIDTH)
        steps.append(f"H{x}")
        y_next = HEIGHT - _scaled(point.records, top, HEIGHT)
        if y_next != y:
            steps.append(f"V{y_next}")
        y = y_next
    line = f"M0 {HEIGHT}" + "".join(steps)
    return f'<path class="area" d="{line}V{HEIGHT}Z"/><path class="line" d="{line}"/>'


def bars_drawing(values: Sequence[float], *, top: float, style: str) -> str:
    """Bars side by side, as one path."""
    path = "".join(
        f"M{round(at * WIDTH / len(values))} {HEIGHT}V{HEIGHT - height}H{round((at + 1) * WIDTH / len(values))}V{HEIGHT}Z"
        for at, value in enumerate(values)
        if (height := max(_scaled(value, top, HEIGHT), 1 if value > 0 else 0))
    )
    return f'<path class="{style}" d="{path}"/>'


def bad_ends_drawing(bins: Sequence[Bin]) -> str:
    """A tick at the upper edge of each slice in which workers ended badly, longer for more of them."""
    most = max((item.num_bad_ends for item in bins), default=0)
    path = "".join(
        f"M{round((at + 0.5) * WIDTH / len(bins))} 0V{8 + 24 * item.num_bad_ends // most}"
        for at, item in enumerate(bins)
        if item.num_bad_ends
    )
    return f'<path class="ticks" d="{path}"/>'


def sizes_values(sizes: Sequence[SizeBin]) -> list[float]:
    """Heights of the size distribution."""
    return [float(item.records) for item in sizes]


def shown_lanes(lanes: Sequence[Lane]) -> tuple[Lane, ...]:
    """All lanes, or the MAX_LANES that ended badly most often, in their order."""
    if len(lanes) <= MAX_LANES:
        return tuple(lanes)
    order = sorted(range(len(lanes)), key=lambda at: (-lanes[at].num_bad_ends, at))[:MAX_LANES]
    return tuple(lanes[at] for at in sorted(order))


def lanes_block(content: ReportContent) -> str:
    """One row for each lane: what it held, what of it was lost, and how each worker ended."""
    lanes = shown_lanes(content.lanes)
    is_titled = sum(len(lane.holdings) for lane in lanes) <= MAX_TITLED_HOLDINGS
    rows = "".join(
        f'<div class="lane"><span class="lane-name" title="{text(lane.name)}">{text(lane.name)}</span>'
        f'<div class="track"><svg viewBox="0 0 {WIDTH} 20" preserveAspectRatio="none" aria-hidden="true">'
        f"{_titled(lane, content) if is_titled else _untitled(lane, content)}</svg>{_marks(lane, content)}</div></div>"
        for lane in lanes
    )
    labels = "".join(f"<span>{text(label)}</span>" for label in time_labels(content))
    axis = f'<div class="lane"><span></span><div class="x">{labels}</div></div>'
    return f'<div class="lanes" aria-hidden="true">{rows}{axis}</div>'


def holding_title(item: Holding, started_at: datetime) -> str:
    """What a holding was, in a line."""
    since = duration_text((item.started_at - started_at).total_seconds())
    what = f"{item.failure_class}: {item.evidence}" if item.failure_class else item.ending.value
    return (
        f"shard {item.shard}, epoch {item.epoch}, {item.pod} on {item.node or 'an unknown node'}: "
        f"from {since} for {duration_text(item.held_s)}, {item.records:,} records; {what}"
    )


def _titled(lane: Lane, content: ReportContent) -> str:
    parts: list[str] = []
    for item in lane.holdings:
        start, committed, end = _edges(item, content)
        shapes = f'<path class="kept" d="{_box(start, committed)}"/>' if committed > start else ""
        if end > committed:
            shapes += f'<path class="{_tail_style(item)}" d="{_box(committed, end)}"/>'
        parts.append(f"<g><title>{text(holding_title(item, content.started_at))}</title>{shapes}</g>")
    return "".join(parts)


def _untitled(lane: Lane, content: ReportContent) -> str:
    spans: dict[str, list[tuple[int, int]]] = {"kept": [], "open": [], "lost": []}
    for item in lane.holdings:
        start, committed, end = _edges(item, content)
        _append(spans["kept"], start, committed)
        _append(spans[_tail_style(item)], committed, end)
    return "".join(
        f'<path class="{style}" d="{"".join(_box(start, end) for start, end in found)}"/>'
        for style, found in spans.items()
        if found
    )


def _append(spans: list[tuple[int, int]], start: int, end: int) -> None:
    """Add a span, merged into the last one when they touch: so a lane has no more spans than the grid has steps."""
    if end <= start:
        return
    if spans and start <= spans[-1][1] + 1:
        spans[-1] = (spans[-1][0], max(end, spans[-1][1]))
    else:
        spans.append((start, end))


def _edges(item: Holding, content: ReportContent) -> tuple[int, int, int]:
    """Start, last commit and end on the grid; something short is drawn one step wide."""
    start, committed, end = (
        _scaled((instant - content.started_at).total_seconds(), content.elapsed_s, WIDTH)
        for instant in (item.started_at, item.committed_at, item.ended_at)
    )
    if item.ending in {Ending.COMPLETE, Ending.UNKNOWN}:
        committed = end
    end = max(end, min(start + 1, WIDTH))
    return start, min(max(committed, start), end), end


def _tail_style(item: Holding) -> str:
    """How time since the last commit is drawn: it may still be committed, or it is lost."""
    return "open" if item.ending is Ending.HELD else "lost"


def _box(start: int, end: int) -> str:
    # A step is left free where there is room, so that one can see where a shard ends and the next begins.
    width = end - start - 1 if end - start > 4 else end - start
    return f"M{start} 2h{width}v16h-{width}z"


def _marks(lane: Lane, content: ReportContent) -> str:
    marked = [item for item in lane.holdings if item.ending in MARKS]
    return "".join(
        f'<i class="mark {item.ending.value}" style="left:{_percent(item, content)}%" '
        f'title="{text(holding_title(item, content.started_at))}"></i>'
        for item in marked[-MAX_MARKS_PER_LANE:]
    )


def _percent(item: Holding, content: ReportContent) -> str:
    share = (item.ended_at - content.started_at).total_seconds() / content.elapsed_s if content.elapsed_s else 1.0
    return f"{100 * min(max(share, 0.0), 1.0):.1f}"


def shard_map(shards: Sequence[ShardState]) -> str:
    """A cell for each shard, or for each few of them, filled as far as they are done."""
    per_cell = max(1, -(-len(shards) // MAX_CELLS))
    cells = [shards[at : at + per_cell] for at in range(0, len(shards), per_cell)]
    height = _CELL * -(-len(cells) // CELL_COLUMNS)
    drawn = "".join(_cell(cell, at) for at, cell in enumerate(cells))
    summary = f"{sum(item.status == 'complete' for item in shards):,} of {len(shards):,} shards are complete"
    return (
        f'<svg class="map" viewBox="0 0 {CELL_COLUMNS * _CELL} {height}" role="img" aria-labelledby="map-title map-desc">'
        f'<title id="map-title">Shards in the order of the input</title><desc id="map-desc">{summary}</desc>{drawn}</svg>'
    )


def _cell(cell: Sequence[ShardState], at: int) -> str:
    statuses = {item.status for item in cell}
    style = next((name for name in ("failed", "unreadable", "running") if name in statuses), "done")
    share = sum(item.share for item in cell) / len(cell)
    x, y = _CELL * (at % CELL_COLUMNS), _CELL * (at // CELL_COLUMNS)
    size = _CELL - 2
    filled = round(size * share, 1)
    name = f"shard {cell[0].shard}" if len(cell) == 1 else f"shards {cell[0].shard} to {cell[-1].shard}"
    how = cell[0].status if len(cell) == 1 else f"{sum(item.status == 'complete' for item in cell)} complete"
    fill = f'<path d="M{x} {y + size}h{size}v-{filled}h-{size}z"/>' if filled else ""
    return (
        f'<g class="cell {style}"><title>{name}: {how}, {100 * share:.0f} %</title>'
        f'<path class="empty" d="M{x} {y}h{size}v{size}h-{size}z"/>{fill}</g>'
    )


def shares(parts: Iterable[tuple[str, str, float]]) -> str:
    """A stacked bar: (style, name, amount) each."""
    found = [part for part in parts if part[2] > 0]
    total = sum(amount for _, _, amount in found)
    x, drawn = 0.0, ""
    for style, name, amount in found:
        width = WIDTH * amount / total
        drawn += (
            f"<g><title>{text(name)}: {100 * amount / total:.1f} %</title>"
            f'<path class="use-{style}" d="M{x:.1f} 0h{width:.1f}v20h-{width:.1f}z"/></g>'
        )
        x += width
    return f'<svg class="shares" viewBox="0 0 {WIDTH} 20" preserveAspectRatio="none" aria-hidden="true">{drawn}</svg>'


def _scaled(value: float, top: float, size: int) -> int:
    return round(size * min(max(value / top, 0.0), 1.0)) if top > 0 else 0

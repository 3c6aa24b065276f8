"""The page in a real browser: what it shows, on a phone and a desktop, in light and in dark, and that it runs nothing.

Needs Debian's `chromium` and `fonts-dejavu-core`; without them these tests fail and say so.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli.report_page import build_page
from contract import process_identity
from contract.manifest import Owner
from tests.cli.local_run import LocalRun, wait_until
from tests.report.browser import Chromium, new_page, pixels
from tests.report.runs import START, Story, hostile

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

STYLE = (Path(__file__).parents[2] / "cli" / "report.css").read_text()
PHONE, DESKTOP = 360, 1280
LETTERS = "ACDEFGHIKLMNPQRSTVWY"
STORIES = {
    "finished": Story(num_shards=60, num_workers=6),
    "running": Story(num_shards=60, num_workers=6, stop_at=START + timedelta(minutes=18)),
    "large": Story(num_shards=10_000, num_workers=128),
    "hostile": hostile(),
}

HEADINGS = "[...document.querySelectorAll('h2')].map(item => item.textContent)"
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
BOX = "(({x, y, width, height}) => [x, y + scrollY, width, height])(document.querySelector(%r).getBoundingClientRect())"
LOW_CONTRAST = """(() => {
  const channels = color => color.match(/[\\d.]+/g).map(Number);
  const luminance = color => {
    const [r, g, b] = channels(color).map(c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = item => {
    for (; item; item = item.parentElement) {
      const found = getComputedStyle(item).backgroundColor;
      if ((channels(found)[3] ?? 1) > 0) return found;
    }
    return 'rgb(255, 255, 255)';
  };
  const low = [];
  for (const item of document.querySelectorAll('body *')) {
    const own = [...item.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
    if (!own || item.closest('svg')) continue;
    const [a, b] = [luminance(getComputedStyle(item).color), luminance(ground(item))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) low.push(item.textContent.slice(0, 40));
  }
  return low;
})()"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Chromium]:
    """One browser for all tests; each has a tab of its own."""
    with Chromium() as browser:
        yield browser


def seen(
    chromium: Chromium, path: Path, *, width: int = DESKTOP, is_dark: bool = False, **expressions: str
) -> dict[str, Any]:
    """The page at this width: values of the expressions, its log, its requests, and its picture as `shot`."""

    async def look() -> dict[str, Any]:
        async with new_page(chromium) as page:
            await page.open(path.as_uri(), width=width, is_dark=is_dark)
            found = {name: await page.evaluate(expression) for name, expression in expressions.items()}
            shot = pixels(await page.screenshot())
            return {**found, "logged": page.logged, "requested": page.requested, "shot": shot}

    return asyncio.run(look())


def written(story: Story, directory: Path) -> Path:
    """The page about a story, as a file."""
    path = directory / "report.html"
    path.write_text(build_page(story.content, style=STYLE))
    return path


def share_of(area: np.ndarray[Any, Any], *colour: int) -> float:
    """Share of the pixels that have this colour, nearly."""
    return float((np.abs(area.astype(int) - np.array(colour)).max(axis=2) < 12).mean())


def cut_out(shot: np.ndarray[Any, Any], box: list[float]) -> np.ndarray[Any, Any]:
    """The part of a picture within [x, y, width, height]."""
    x, y, width, height = (round(value) for value in box)
    return shot[y : y + height, x : x + width]


@pytest.mark.parametrize("is_dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, DESKTOP], ids=["phone", "desktop"])
@pytest.mark.parametrize("name", STORIES)
def test_the_page_is_drawn_whole(chromium: Chromium, tmp_path: Path, name: str, width: int, *, is_dark: bool) -> None:
    """Nothing is logged, fetched or run; nothing overflows sideways; text is legible; curve, bars and lanes have ink."""
    found = seen(
        chromium,
        written(STORIES[name], tmp_path),
        width=width,
        is_dark=is_dark,
        headings=HEADINGS,
        overflow=OVERFLOW,
        low_contrast=LOW_CONTRAST,
        scripts="document.scripts.length",
        chart=BOX % ".chart svg",
        track=BOX % ".track",
        wide="Math.max(...[...document.querySelectorAll('section')].map(item => item.scrollWidth - item.clientWidth))",
    )
    shot = found["shot"]
    accent, page, card = (
        ((110, 166, 255), (14, 18, 23), (22, 28, 37)) if is_dark else ((37, 99, 201), (245, 246, 248), (255, 255, 255))
    )

    assert (found["logged"], found["scripts"]) == ([], 0)
    assert [url for url in found["requested"] if not url.startswith(("file://", "data:"))] == []
    assert (found["overflow"], found["wide"], found["low_contrast"]) == (0, 0, [])
    assert found["headings"][:3] == ["Progress", "Workers", "Where worker time went"]
    assert {"Interruptions", "Quarantine", "Record sizes", "Identity"} < set(found["headings"])
    assert shot.shape[1] <= width
    assert share_of(shot, *page) > 0.02
    assert share_of(shot, *card) > 0.2
    assert share_of(cut_out(shot, found["track"]), *accent) > 0.3
    assert share_of(cut_out(shot, found["chart"]), *accent) > 0.005


def test_hostile_text_does_nothing(chromium: Chromium, tmp_path: Path) -> None:
    """A run's name that is a script is a title to read, and has not run."""
    found = seen(
        chromium,
        written(STORIES["hostile"], tmp_path),
        title="document.title",
        heading="document.querySelector('h1').textContent",
        evidence="[...document.querySelectorAll('td')].some(item => item.textContent.startsWith('<script>'))",
    )

    assert found["title"] != "owned"
    assert found["heading"].startswith("run<script>document.title='owned'</script>")
    assert found["evidence"]


def test_the_policy_of_the_page_forbids_scripts(chromium: Chromium, tmp_path: Path) -> None:
    """Were the escaping ever to fail, the browser would refuse: a script put into the page by hand does not run."""
    path = written(STORIES["finished"], tmp_path)
    path.write_text(path.read_text().replace("<main>", "<main><script>document.title='owned'</script>"))

    found = seen(chromium, path, title="document.title", scripts="document.scripts.length")

    assert found["scripts"] == 1
    assert found["title"] != "owned"
    assert any("Content Security Policy" in line for line in found["logged"])


def owners_at_gates(run: LocalRun) -> list[Owner]:
    """Both workers' owners once they wait at gates 9 and 39, in the first and the last shard; else nothing."""
    held = {found.shard: found.owner for found in run.manifests() if found.owner is not None}
    return list(held.values()) if set(held) == {0, 3} and run.num_done() >= 5 else []


def test_a_real_run_is_shown_while_it_goes_on_and_when_it_is_done(chromium: Chromium, tmp_path: Path) -> None:
    """Two workers at work, one of them killed: it is seen in its lane, and by name in the list of interruptions."""
    sequences = [
        ("GATE" if at in {9, 39} else "") + LETTERS[at % 20] * (1 + at % 7) + "MKVA" * (at % 5) + "A"
        for at in range(40)
    ]
    run = LocalRun(
        directory=tmp_path,
        sequences=sequences,
        model={
            "name": "torch",
            "source": "tests.gated_model:build",
            "parameters": {"gate": str(tmp_path / "gate")},
            "maxTokensPerBatch": 40,
        },
    )
    path = tmp_path / "report.html"
    expressions = {
        "phase": "document.querySelector('.phase').textContent",
        "lanes": "[...document.querySelectorAll('.lane-name')].map(item => item.textContent)",
        "marks": "[...document.querySelectorAll('.track .mark')].map(item => item.className)",
        "text": "document.body.textContent",
        "overflow": OVERFLOW,
    }
    process = run.start()
    owners = wait_until(lambda: owners_at_gates(run))
    reported = run.call("report", run.output, "--html", str(path))
    live = seen(chromium, path, width=PHONE, **expressions)
    victim = process_identity.parse(owners[0].uid)
    assert victim is not None
    os.kill(victim.pid, signal.SIGKILL)
    (tmp_path / "gate").touch()

    ended = run.finish(process)
    reported_again = run.call("report", run.output, "--html", str(path))
    done = seen(chromium, path, width=PHONE, **expressions)

    assert (reported.code, ended.code, reported_again.code) == (0, 0, 0), ended.errors
    assert (live["phase"], live["logged"], live["overflow"]) == ("Running", [], 0)
    assert (done["phase"], done["logged"], done["overflow"]) == ("Succeeded", [], 0)
    assert set(done["lanes"]) == {"worker 0", "worker 1"}
    assert (live["marks"], done["marks"]) == ([], ["mark node"])
    assert owners[0].pod in done["text"]

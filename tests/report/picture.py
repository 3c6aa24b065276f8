"""docs/report.png: the upper part of the report page, for the README.

python -m tests.report.picture
"""

from __future__ import annotations

import asyncio
import base64
import tempfile
from datetime import timedelta
from pathlib import Path

from cli.report_page import build_page
from tests.report.browser import Chromium, new_page
from tests.report.runs import START, Story

ROOT = Path(__file__).parents[2]
WIDTH, HEIGHT = 1080, 1375


async def take(page_file: Path) -> bytes:
    """The upper part of the page, as PNG."""
    with Chromium() as chromium:
        async with new_page(chromium) as page:
            await page.call("Emulation.setScrollbarsHidden", hidden=True)
            await page.open(page_file.as_uri(), width=WIDTH, height=HEIGHT)
            return base64.b64decode((await page.call("Page.captureScreenshot", format="png"))["data"])


if __name__ == "__main__":
    story = Story(num_shards=60, num_workers=6, stop_at=START + timedelta(minutes=24))
    with tempfile.TemporaryDirectory() as scratch:
        written = Path(scratch) / "report.html"
        written.write_text(build_page(story.content, style=(ROOT / "cli" / "report.css").read_text()))
        (ROOT / "docs" / "report.png").write_bytes(asyncio.run(take(written)))

"""A headless Chromium, driven over its DevTools protocol: pages at a given width and colour scheme, and what they log.

It needs the Debian packages `chromium` and `fonts-dejavu-core`; a test that finds no browser fails and says so.
"""

from __future__ import annotations

import base64
import shutil
import struct
import subprocess
import tempfile
import threading
import time
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import aiohttp
import numpy as np

START_TIMEOUT_S = 60.0
CALL_TIMEOUT_S = 60.0
FLAGS = (
    "--headless",
    "--no-sandbox",  # tests run as root
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
)


class NoBrowserError(Exception):
    """There is no Chromium. Install it: `apt-get install chromium fonts-dejavu-core`."""


def find_browser() -> str:
    """Path of the browser; raises NoBrowserError."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        raise NoBrowserError("no Chromium: run 'apt-get install chromium fonts-dejavu-core'")
    return found


@dataclass
class Chromium:
    """A browser process with an empty profile; `with` ends it."""

    process: subprocess.Popen[bytes] = field(init=False)
    profile: tempfile.TemporaryDirectory[str] = field(init=False)

    def __enter__(self) -> Self:
        self.profile = tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        command = (find_browser(), *FLAGS, f"--user-data-dir={self.profile.name}", "about:blank")
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.profile.cleanup()

    def address(self) -> str:
        """Where its DevTools listen, once they do."""
        path, deadline, never = (
            Path(self.profile.name) / "DevToolsActivePort",
            time.monotonic() + START_TIMEOUT_S,
            threading.Event(),
        )
        while not (path.exists() and len(lines := path.read_text().splitlines()) == 2):
            assert self.process.poll() is None, f"chromium ended with {self.process.returncode}"
            assert time.monotonic() < deadline, "chromium did not open its DevTools port"
            never.wait(0.05)
        return f"http://127.0.0.1:{lines[0]}"


@dataclass
class Page:
    """One tab."""

    socket: aiohttp.ClientWebSocketResponse
    logged: list[str] = field(default_factory=list)
    """Errors and warnings of scripts, of the console and of the browser, requests refused by the page's policy included."""
    requested: list[str] = field(default_factory=list)
    """URLs of all requests."""
    _last_id: int = 0
    _events: list[str] = field(default_factory=list)

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a DevTools method; what happens meanwhile is kept."""
        self._last_id += 1
        await self.socket.send_json({"id": self._last_id, "method": method, "params": parameters})
        while True:
            message = await self.socket.receive_json(timeout=CALL_TIMEOUT_S)
            if message.get("id") == self._last_id:
                assert "error" not in message, message
                result: dict[str, Any] = message["result"]
                return result
            self._note(message)

    async def open(self, url: str, *, width: int, height: int = 800, is_dark: bool = False) -> None:
        """Load a page at this width (CSS pixels), and wait until it is loaded."""
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.call(f"{domain}.enable")
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])
        self._events.clear()
        await self.call("Page.navigate", url=url)
        while "Page.loadEventFired" not in self._events:
            self._note(await self.socket.receive_json(timeout=CALL_TIMEOUT_S))

    async def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression on the page (DevTools may, where the page's own policy forbids scripts)."""
        found = await self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    async def screenshot(self) -> bytes:
        """The whole page as PNG."""
        found = await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        return base64.b64decode(found["data"])

    def _note(self, message: dict[str, Any]) -> None:
        method, parameters = message.get("method", ""), message.get("params", {})
        self._events.append(method)
        if method == "Runtime.exceptionThrown":
            self.logged.append(str(parameters["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and parameters["type"] in {"error", "warning", "assert"}:
            self.logged.append(str(parameters["args"]))
        elif method == "Log.entryAdded":
            self.logged.append(parameters["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requested.append(parameters["request"]["url"])


@asynccontextmanager
async def new_page(chromium: Chromium) -> AsyncIterator[Page]:
    """A fresh tab."""
    address = chromium.address()
    async with aiohttp.ClientSession() as session:
        async with session.put(f"{address}/json/new?about:blank") as answer:
            target = await answer.json()
        async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
            yield Page(socket=socket)
        async with session.get(f"{address}/json/close/{target['id']}"):
            pass


def pixels(png: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A browser's PNG (8 bits, RGB or RGBA, not interlaced) as [height, width, 3]."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    at, body, shape = 8, b"", (0, 0, 0)
    while at < len(png):
        length, kind = struct.unpack(">I4s", png[at : at + 8])
        content = png[at + 8 : at + 8 + length]
        if kind == b"IHDR":
            width, height, depth, colour = struct.unpack(">IIBB", content[:10])
            assert (depth, colour in {2, 6}) == (8, True)
            shape = (height, width, 3 if colour == 2 else 4)
        elif kind == b"IDAT":
            body += content
        at += 12 + length
    height, width, channels = shape
    lines = np.frombuffer(zlib.decompress(body), dtype=np.uint8).reshape(height, 1 + width * channels)
    out = np.zeros((height, width * channels), dtype=np.uint8)
    for row in range(height):
        out[row] = _unfiltered(
            int(lines[row, 0]), lines[row, 1:], out[row - 1] if row else np.zeros_like(out[0]), channels
        )
    return out.reshape(shape)[:, :, :3]


def _unfiltered(
    kind: int, line: np.ndarray[Any, Any], above: np.ndarray[Any, Any], channels: int
) -> np.ndarray[Any, Any]:
    if kind == 0:
        return line
    if kind == 1:
        return np.cumsum(line.reshape(-1, channels), axis=0, dtype=np.uint8).reshape(-1)
    if kind == 2:
        return line + above
    done, left, corner = bytearray(len(line)), 0, 0
    for at, value in enumerate(line.tolist()):
        left = done[at - channels] if at >= channels else 0
        up = int(above[at])
        corner = int(above[at - channels]) if at >= channels else 0
        if kind == 3:
            guess = (left + up) // 2
        else:
            distances = (abs(up - corner), abs(left - corner), abs(left + up - 2 * corner))
            guess = (left, up, corner)[distances.index(min(distances))]
        done[at] = (value + guess) & 255
    return np.frombuffer(bytes(done), dtype=np.uint8)

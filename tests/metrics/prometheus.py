"""A real Prometheus on loopback, and its `promtool`: Debian's package `prometheus`, installed when it is missing."""

from __future__ import annotations

import json
import math
import subprocess
import time
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from tests.cluster.packages import ensure
from tests.servers import LOOPBACK, free_port

PACKAGES = {"prometheus": "/usr/bin/promtool"}
SCRAPE_S = 1
READY_S = 60.0


def promtool(*arguments: str) -> str:
    """What promtool says; an AssertionError with its words when it is not content."""
    ensure(PACKAGES)
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@dataclass(frozen=True)
class Target:
    """A process to be scraped, with the labels that a cluster's Prometheus would add."""

    job: str
    port: int
    labels: dict[str, str]


class Prometheus:
    """Scrapes its targets once a second and evaluates the alerts; a context manager."""

    def __init__(self, directory: Path, *, rules: Path) -> None:
        """`directory` is for its files, `rules` is a rules file."""
        ensure(PACKAGES)
        self._directory = directory
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._targets: list[Target] = []
        (directory / "prometheus.yml").write_text(
            yaml.safe_dump(
                {
                    "global": {"scrape_interval": f"{SCRAPE_S}s", "evaluation_interval": f"{SCRAPE_S}s"},
                    "rule_files": [str(rules)],
                    "scrape_configs": [
                        # As in the chart: what a series says of itself wins.
                        {"job_name": job, "honor_labels": True, "file_sd_configs": [{"files": [str(self._file(job))]}]}
                        for job in ("controller", "worker")
                    ],
                }
            )
        )

    def __enter__(self) -> Self:
        self._write_targets()
        command = ["prometheus", "--config.file", str(self._directory / "prometheus.yml")]
        command += ["--storage.tsdb.path", str(self._directory / "tsdb")]
        command += ["--web.listen-address", f"{LOOPBACK}:{self._port}"]
        with (self._directory / "prometheus.log").open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline_s = time.monotonic() + READY_S
        while not self._is_ready():
            log_text = (self._directory / "prometheus.log").read_text()
            assert self._process.poll() is None, log_text
            assert time.monotonic() < deadline_s, log_text
            time.sleep(0.1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def scrape(self, target: Target) -> None:
        """Scrape this one, too; it is noticed within a moment."""
        self._targets.append(target)
        self._write_targets()

    def values(self, query: str) -> list[float]:
        """The numbers that a query gives now; NaN is none."""
        series = self._ask("query", query=query)["result"]
        found = [float(item["value"][1]) for item in series]
        return [value for value in found if not math.isnan(value)]

    def rules(self) -> dict[str, dict[str, Any]]:
        """Each alert by its name, with health and state."""
        groups = self._ask("rules")["groups"]
        return {rule["name"]: rule for group in groups for rule in group["rules"]}

    def _ask(self, what: str, **parameters: str) -> dict[str, Any]:
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"http://{LOOPBACK}:{self._port}/api/v1/{what}?{query}", timeout=30) as reply:
            answer = json.loads(reply.read())
        assert answer["status"] == "success", answer
        data: dict[str, Any] = answer["data"]
        return data

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{LOOPBACK}:{self._port}/-/ready", timeout=5) as reply:
                return bool(reply.status == 200)
        except OSError:
            return False

    def _file(self, job: str) -> Path:
        return self._directory / f"{job}.json"

    def _write_targets(self) -> None:
        for job in ("controller", "worker"):
            found = [
                {"targets": [f"{LOOPBACK}:{target.port}"], "labels": target.labels}
                for target in self._targets
                if target.job == job
            ]
            partial = self._file(job).with_suffix(".new")
            partial.write_text(json.dumps(found))
            partial.replace(self._file(job))

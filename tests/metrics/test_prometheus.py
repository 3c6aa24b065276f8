"""A real Prometheus scrapes a real controller and real workers at work: every query of ours is answered.

The cluster is an API server without nodes, and `tests.metrics.kubelet` runs the workers of its pods. So this needs root
and Debian, like all end-to-end tests; the package `prometheus` is installed when it is missing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from contract.store.s3 import S3Store
from tests.cluster.cluster import Cluster
from tests.e2e.operator import (
    CHECKPOINT_OFTEN,
    SLOW_MODEL,
    Api,
    ControllerProcess,
    controller_environment,
    end,
    resource,
)
from tests.metrics.kubelet import Kubelet
from tests.metrics.prometheus import Prometheus, Target, promtool
from tests.metrics.test_alerts_and_dashboard import ALERTS, FILES, QUERIES
from tests.servers import ministack

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(420)]

PROJECT = Path(__file__).resolve().parents[2]
RUN = "observed"
PATIENCE_S = 240.0
RATE_WINDOW = "1m"


@dataclass
class AtWork:
    """A run that goes on while Prometheus looks."""

    prometheus: Prometheus
    kubelet: Kubelet
    api: Api
    controller: ControllerProcess

    def look(self) -> None:
        """What happens by itself on a cluster: pods run, and Prometheus finds them."""
        for pod in self.kubelet.look():
            target = Target("worker", pod.metrics_port, {"namespace": "default", "pod": pod.name})
            self.prometheus.scrape(target)

    def values(self, query: str, *, patience_s: float = PATIENCE_S) -> list[float]:
        """What a query gives, once it gives something; empty when it never does."""
        deadline_s = time.monotonic() + patience_s
        while not (found := self.prometheus.values(query)) and time.monotonic() < deadline_s:
            self.look()
            time.sleep(0.5)
        return found


@pytest.fixture(scope="module")
def at_work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AtWork]:
    """A run with two workers, of which one has been evicted and replaced."""
    directory = tmp_path_factory.mktemp("metrics")
    with (
        pytest.MonkeyPatch.context() as patch,
        ministack(directory) as server,
        Cluster(directory / "cluster", nodes=0) as cluster,
    ):
        server.use(patch)
        bucket = server.new_bucket()
        for copy in range(8):
            proteins = (PROJECT / "examples/data/proteins.fasta").read_bytes()
            S3Store(bucket, "").put_create(f"in/{copy}.fasta", proteins)
        api = Api(cluster.kubeconfig)
        api.install_crd(PROJECT / "deploy/crd.yaml")
        environment = controller_environment(cluster.kubeconfig, server.environment, lease_namespace="default")
        controller = ControllerProcess(environment, directory / "controller.log")
        kubelet = Kubelet(api, RUN, directory)
        controller.start()
        try:
            with Prometheus(directory, rules=FILES / "alerts.yaml") as prometheus:
                found = AtWork(prometheus, kubelet, api, controller)
                prometheus.scrape(Target("controller", health_port(controller), {"namespace": "inferencerun"}))
                api.apply(
                    resource(
                        RUN,
                        [f"s3://{bucket}/in/*.fasta"],
                        f"s3://{bucket}/out",
                        server.endpoint_url,
                        model=SLOW_MODEL,
                        checkpoint=CHECKPOINT_OFTEN,
                        workers={
                            "template": {"spec": {"hostNetwork": False, "containers": [worker(server.environment)]}}
                        },
                    )
                )
                evict_one(found)
                yield found
        finally:
            kubelet.end()
            assert controller.process is not None
            end(controller.process)


def worker(environment: dict[str, str]) -> dict[str, object]:
    """The worker's container, with the way to the store."""
    variables = {**environment, "OMP_NUM_THREADS": "1"}
    return {"name": "worker", "env": [{"name": name, "value": value} for name, value in variables.items()]}


def health_port(controller: ControllerProcess) -> int:
    """Where it serves probes and metrics, as its log says."""
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s:
        for line in controller.lines():
            if line["message"] == "probes":
                return int(line["addresses"][0].split(",")[1].strip(" )"))
        time.sleep(0.1)
    raise AssertionError(controller.log.read_text())


def evict_one(found: AtWork) -> None:
    """Evict a worker that has committed something, and wait for the one in its place."""
    assert found.values('inferencerun_worker_records_total{run="observed"} > 0'), found.controller.log.read_text()[
        -3000:
    ]
    pod = next(pod for pod in found.kubelet.pods.values() if pod.process.poll() is None)
    found.kubelet.evict(pod)
    assert found.values('inferencerun_controller_replacement_seconds_count{stage="running"} > 0')


def test_every_panel_has_data(at_work: AtWork) -> None:
    """Each query of the dashboard gives a number, for all runs and for this one."""
    empty = []
    for title, query in QUERIES:
        asked = query.replace("$__rate_interval", RATE_WINDOW).replace("$namespace", "default|.*").replace("$run", RUN)
        if not at_work.values(asked, patience_s=20):
            empty.append(f"{title}: {asked}")

    assert len(QUERIES) > 40
    assert empty == []


def test_every_alert_is_evaluated_and_none_fires(at_work: AtWork) -> None:
    """A run that goes on, with a leader and a store that answers, wakes nobody."""
    found = at_work.prometheus.rules()

    assert set(found) == {rule["alert"] for rule in ALERTS}
    assert {rule["health"] for rule in found.values()} == {"ok"}
    assert {name: rule["state"] for name, rule in found.items() if rule["state"] == "firing"} == {}


def test_an_eviction_shows_as_one(at_work: AtWork) -> None:
    """Counted by class, never charged; and the worker in its place is scraped."""
    evictions = at_work.values(f'inferencerun_run_restarts_total{{run="{RUN}", class="SpotEviction"}} > 0')

    assert evictions == [1.0]
    assert at_work.values(f'inferencerun_run_counted_restarts_total{{run="{RUN}"}}') == [0.0]
    assert at_work.values(f'count(inferencerun_worker_claims_total{{run="{RUN}"}} > 0) > 1')


def test_all_that_runs_is_scraped(at_work: AtWork) -> None:
    """The controller, and a worker for each pod that lives."""
    at_work.look()
    num_alive = sum(pod.process.poll() is None for pod in at_work.kubelet.pods.values())

    assert at_work.values('count(up{job="controller"} == 1)') == [1.0]
    assert at_work.values(f'count(up{{job="worker"}} == 1) == {num_alive}') == [num_alive]


def test_a_run_that_is_gone_takes_its_series_along(at_work: AtWork) -> None:
    """Deleted on the server: no series of it is scraped any more. Runs last: it ends what the others look at."""
    at_work.kubelet.end()
    at_work.api.delete(RUN)

    assert at_work.values("absent(inferencerun_run_phase) == 1") == [1.0]


def test_promtool_takes_the_rules() -> None:
    """As a Prometheus of the user's would."""
    assert "8 rules found" in promtool("check", "rules", str(FILES / "alerts.yaml"))


def test_alerts_fire_when_they_ought_to() -> None:
    """Each on series made for it, and beside it on series that are no reason to wake anybody."""
    assert "SUCCESS" in promtool("test", "rules", str(PROJECT / "tests/metrics/alerts.yaml"))

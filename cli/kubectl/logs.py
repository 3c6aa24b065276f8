"""`kubectl inferencerun logs`: what the workers of a run say."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator

import click

from cli.kubectl.api import ApiUnreachable, Object, core_path
from cli.kubectl.change import OVER, phase_of
from cli.kubectl.log_lines import readable
from cli.kubectl.on_store import explained, own_generation
from cli.kubectl.options import Access, cluster_options, run_argument
from cli.kubectl.runs import find_run, output_uri, pods_of
from cli.output import open_output
from cli.texts import printable
from contract.errors import InferenceRunError, SpecError
from contract.layout import build_logs_prefix, parse_log_key
from contract.names import CONTAINER_WORKER
from controller.pods import PodFacts, read_pod

PREVIOUS_SHOWN = 10
"""Workers whose last words are shown; --worker and --slot choose others."""
FOLLOW_S = 2.0
"""Between two looks for workers that have come."""

Say = Callable[[str], None]


@click.command(name="logs")
@run_argument
@click.option("--worker", "pod_name", help="Only this worker pod.")
@click.option("--slot", type=click.IntRange(min=0), help="Only the worker in this slot.")
@click.option("-f", "--follow", is_flag=True, help="Go on as lines come, also of workers that start later.")
@click.option("--previous", is_flag=True, help="The last words of workers that failed and are gone, from the store.")
@click.option(
    "--tail", type=click.IntRange(min=-1), default=100, show_default=True, help="Last lines of each worker; -1 = all."
)
@click.option("--raw", is_flag=True, help="Lines as the workers write them.")
@cluster_options
def command(
    run_name: str,
    *,
    pod_name: str | None,
    slot: int | None,
    follow: bool,
    previous: bool,
    tail: int,
    raw: bool,
    access: Access,
) -> None:
    """What the workers of a run say, their JSON made readable.

    Lines begin with the worker's slot where there may be several. -f goes on until the run is over, or Ctrl-C.
    """
    if follow and previous:
        raise click.UsageError("workers that are gone say nothing more: take --follow or --previous")
    run = find_run(access, run_name)
    if previous:
        tails = kept_tails(run, pod_name=pod_name, slot=slot)
        if not tails:
            raise SpecError(f"{run_name}: no such worker has left a log; {_kept_text(run)}")
        for worker, lines in tails:
            click.echo(f"== {printable(worker)}")
            for line in lines if tail < 0 else lines[len(lines) - min(tail, len(lines)) :]:
                click.echo(printable(line) if raw else readable(line))
        return
    is_prefixed = pod_name is None and slot is None

    def chosen() -> list[PodFacts]:
        pods = [read_pod(item) for item in pods_of(access, run)]
        wanted = [pod for pod in pods if pod_name in {None, pod.name} and slot in {None, pod.slot}]
        return sorted(wanted, key=lambda pod: (pod.slot, pod.attempt))

    def saying(pod: PodFacts) -> Say:
        prefix = f"[{pod.slot}] " if is_prefixed else ""
        return lambda line: click.echo(f"{prefix}{line if raw else readable(line)}")

    if follow:
        _follow(access, run_name, chosen, saying, tail=tail)
        return
    started = [pod for pod in chosen() if pod.started_at is not None]
    if not started:
        if phase_of(run) in OVER:
            raise SpecError(_over_text(access, run))
        raise SpecError(
            f"{run_name}: no such worker has started; '{access.command('status', run_name)}' lists those there are, "
            f"'{access.command('logs', run_name)} --previous' shows those that failed and are gone"
        )
    for pod in started:
        _say_all(lines_of(access, pod, tail=tail), saying(pod))


def _over_text(access: Access, run: Object) -> str:
    """Why a run that is over says nothing more, and what is left of what its workers said."""
    name = run["metadata"]["name"]
    return (
        f"{name}: it is over ({phase_of(run)}), and the pods of its workers are gone with their logs; {_kept_text(run)}. "
        f"'{access.command('logs', name)} --previous' shows those"
    )


def _kept_text(run: Object) -> str:
    generation = own_generation(run)
    where = f", below {output_uri(run)}/{build_logs_prefix(generation)}" if generation is not None else ""
    return f"only of workers that fail the end is kept: 64 KiB in the store{where}"


def kept_tails(run: Object, *, pod_name: str | None, slot: int | None) -> list[tuple[str, list[str]]]:
    """(worker, lines) of the latest PREVIOUS_SHOWN logs kept in the store, the newest at the end.

    Args:
        run: whose output to read.
        pod_name: only this worker; None = all.
        slot: only workers of this slot; None = all.
    """
    found = []
    with explained(run):
        output = open_output(output_uri(run))
        listed = sorted(output.committer.list(build_logs_prefix(output.generation)), key=lambda item: item.modified_at)
        wanted = [
            (parsed[1], item.key)
            for item in listed
            if (parsed := parse_log_key(item.key)) is not None
            and pod_name in {None, parsed[1]}
            and slot in {None, _slot_of(parsed[1])}
        ]
        for worker, key in wanted[-PREVIOUS_SHOWN:]:
            body = output.committer.read(key).body
            found.append((worker, body.decode(errors="replace").splitlines()))
    return found


def _slot_of(worker: str) -> int | None:
    """The slot in a worker's name, `<run>-<slot>-<attempt>`."""
    match = re.search(r"-(\d+)-\d+$", worker)
    return None if match is None else int(match[1])


def lines_of(access: Access, pod: PodFacts, *, tail: int, is_following: bool = False) -> Iterator[str]:
    """Lines of a worker, as it wrote them.

    Args:
        access: the cluster.
        pod: its pod; must have started.
        tail: how many of the last lines; -1 = all.
        is_following: go on until the worker ends.
    """
    query = {"container": CONTAINER_WORKER} | ({"tailLines": str(tail)} if tail >= 0 else {})
    if is_following:
        query["follow"] = "true"
    path = core_path(pod.namespace, "pods", pod.name, "log")
    for line in access.api.lines(path, is_endless=is_following, **query):
        yield line.decode(errors="replace").rstrip("\r")


def _say_all(lines: Iterable[str], say: Say) -> None:
    for line in lines:
        say(line)


def _follow(
    access: Access,
    run_name: str,
    chosen: Callable[[], list[PodFacts]],
    saying: Callable[[PodFacts], Say],
    *,
    tail: int,
) -> None:
    """A thread for each worker, until the run is over and all of them have said their last."""
    threads: dict[str, threading.Thread] = {}
    while True:
        try:
            run = find_run(access, run_name)
            is_over = phase_of(run) in OVER
            pods = chosen()
        except ApiUnreachable as error:  # it outlives an API server that restarts
            click.echo(str(error), err=True)
        else:
            for pod in pods:
                if pod.uid not in threads and pod.started_at is not None:
                    reader = threading.Thread(target=_read, args=(access, pod, saying(pod), tail), daemon=True)
                    threads[pod.uid] = reader
                    reader.start()
            if is_over:
                for thread in threads.values():
                    thread.join()
                if not threads:
                    raise SpecError(_over_text(access, run))
                return
        time.sleep(FOLLOW_S)


def _read(access: Access, pod: PodFacts, say: Say, tail: int) -> None:
    try:
        _say_all(lines_of(access, pod, tail=tail, is_following=True), say)
    except InferenceRunError as error:
        click.echo(f"{pod.name}: its lines end here ({error})", err=True)

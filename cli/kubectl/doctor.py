"""`kubectl inferencerun doctor`: why a run does not progress, in plain sentences, with the command that mends it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import click

from cli.kubectl.diagnosis.diagnose import diagnose
from cli.kubectl.diagnosis.finding import Finding, Severity
from cli.kubectl.facts import Facts
from cli.kubectl.gathering import gather
from cli.kubectl.options import Access, cluster_options, optional_run_argument
from cli.present import json_option, print_json
from cli.texts import duration_text, printable


@click.command(name="doctor")
@optional_run_argument
@click.option(
    "--operator-namespace", help="Where the controllers are; looked for if not given, as far as you may look."
)
@click.option("--no-store", is_flag=True, help="Leave the store alone; it is probed with scratch objects otherwise.")
@json_option
@cluster_options
def command(
    run_name: str | None, *, operator_namespace: str | None, no_store: bool, as_json: bool, access: Access
) -> None:
    """Why does a run not progress? Each finding with what was seen and the command that mends it, causes first.

    Without NAME: is the operator itself well? Exits 0 when nothing is wrong, 1 when something is; notes are no wrongs.
    """
    facts = gather(access, run_name, operator_namespace=operator_namespace, with_store=not no_store)
    findings = diagnose(facts)
    is_well = all(item.severity is Severity.NOTE for item in findings)
    if as_json:
        print_json(
            {
                "run": run_name,
                "namespace": access.namespace,
                "ok": is_well,
                "findings": [asdict(item) for item in findings],
                "unseen": list(facts.unseen),
            }
        )
    else:
        for line in report_lines(facts, findings):
            click.echo(printable(line))
    if not is_well:
        raise click.exceptions.Exit(1)


def report_lines(facts: Facts, findings: Sequence[Finding]) -> list[str]:
    """What is printed. Pure."""
    lines = [headline(facts)]
    if all(item.severity is Severity.NOTE for item in findings):
        lines.append("Nothing is wrong, as far as can be seen.")
    for number, item in enumerate(findings, start=1):
        lines += ["", f"{number}. [{item.severity}] {item.summary}"]
        lines += _indented("   seen: ", item.evidence) + _indented("   do:   ", item.fix)
    if facts.unseen:
        lines += ["", "Not looked at:", *(f"   {item}" for item in facts.unseen)]
    return lines


def _indented(label: str, text: str) -> list[str]:
    """Text of any number of lines below each other, behind a label; nothing for nothing."""
    return [f"{' ' * len(label) if number else label}{line}" for number, line in enumerate(text.splitlines())]


def headline(facts: Facts) -> str:
    """How it stands, in a line. Pure."""
    run = facts.run
    if run is not None:
        rate = f", {run.records_per_second} records/s, ETA {duration_text(run.eta_s)}" if run.ready else ""
        return (
            f"{run.namespace}/{run.name}: {run.phase or 'no status'}, {run.percent} %{rate}; "
            f"{run.ready} of {run.desired} workers ready"
        )
    leaders = [item for item in facts.leases or () if item.is_alive(facts.now)]
    if leaders:
        return f"Controller {leaders[0].holder} leads (Lease {leaders[0].namespace}/{leaders[0].name})."
    return "The operator:"

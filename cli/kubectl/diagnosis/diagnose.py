"""Why does a run not progress? From facts to findings. Pure.

A finding is a sentence, the evidence for it, and what mends it. The order is that of cause and effect: what stands in the
way of everything comes first, so whoever mends from the top down never mends in vain.
"""

from __future__ import annotations

from cli.kubectl.diagnosis.acceptance import acceptance, ended, store, suspended
from cli.kubectl.diagnosis.finding import Finding, Severity
from cli.kubectl.diagnosis.installation import installation, not_installed
from cli.kubectl.diagnosis.placement import queue, unplaced
from cli.kubectl.diagnosis.pods import refused, starting, stuck, waiting
from cli.kubectl.diagnosis.trouble import breaker, failures, idle, shards, silence, waste
from cli.kubectl.facts import Facts


def diagnose(facts: Facts) -> tuple[Finding, ...]:
    """All findings, causes first."""
    if facts.definition is not None and not facts.definition.is_served:
        return (not_installed(),)
    found = [*installation(facts)]
    run = facts.run
    if run is None:
        return tuple(found)
    if run.is_over:
        return tuple(ended(run))
    if not run.is_suspended:
        for look in (acceptance, store, queue, refused, unplaced, waiting, stuck, breaker):
            found.extend(look(facts, run))
        found.extend(idle(facts, run))
        found.extend(failures(facts, run))
        found.extend(silence(facts, run))
        found.extend(shards(facts, run))
        found.extend(waste(run))
        found.extend(starting(facts, run, is_explained=any(item.severity is Severity.STOPS for item in found)))
    else:
        found.extend(acceptance(facts, run))
        found.append(suspended(run))
    return tuple(found)

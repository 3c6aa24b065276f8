"""How long the place of a worker stays empty: from seeing its end to seeing its replacement. Pure.

Counted are ends that ask for a replacement: not those that we or the user meant, and not that of a worker that found
nothing left to do.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from contract.names import ExitCode
from controller.pods import STRANGER, PodFacts

ENDS_KEPT = 10_000
"""Ends whose replacement is awaited, the latest: a run that was scaled down or given up never replaces its own."""


class Stage(StrEnum):
    """How far a replacement is."""

    CREATED = "created"
    RUNNING = "running"


@dataclass(slots=True)
class _End:
    attempt: int
    at_s: float
    is_created: bool = False


class Replacements:
    """Fed with each change of a worker pod, says what follows for the time of replacements."""

    def __init__(self) -> None:
        self._ends: dict[tuple[str, int], _End] = {}
        """By uid of the run and slot."""

    def saw(self, pod: PodFacts, *, at_s: float) -> list[tuple[Stage, float]]:
        """Stages that this change completes, with the seconds since the end of the worker before.

        Args:
            pod: as it is now.
            at_s: of a clock that never goes back.
        """
        if pod.slot == STRANGER:
            return []
        place = (pod.run_uid, pod.slot)
        end = self._ends.get(place)
        if pod.has_ended or pod.is_deleted:
            if _asks_for_another(pod) and (end is None or end.attempt < pod.attempt):
                self._ends.pop(place, None)  # the order of the mapping is that of the ends
                self._ends[place] = _End(pod.attempt, at_s)
                while len(self._ends) > ENDS_KEPT:
                    del self._ends[next(iter(self._ends))]
            return []
        if end is None or pod.attempt <= end.attempt:
            return []
        stages = [] if end.is_created else [(Stage.CREATED, at_s - end.at_s)]
        end.is_created = True
        if pod.is_running:
            stages.append((Stage.RUNNING, at_s - end.at_s))
            del self._ends[place]
        return stages


def _asks_for_another(pod: PodFacts) -> bool:
    evidence = pod.evidence
    is_meant = evidence.intent is not None or evidence.has_termination_target
    return not is_meant and evidence.exit_code != ExitCode.NO_WORK_LEFT

"""Texts about a run for whoever has it in a cluster: the same messages, with the commands that work there. Pure.

What decides, and what reads the store, knows no cluster and names the commands of `inferencerun`, which take an output's
URI. Where a text reaches a reader who has the run by name (its status, its Events, the plug-in) it passes through
`reworded`, once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

PLUG_IN_COMMANDS = ("export", "failures", "quarantine", "report", "retry", "shards", "status", "verify")
"""Commands that the plug-in has under the same name; the others are called with the output's URI on a cluster, too."""

_CALL = re.compile(
    rf"(?<!kubectl )(?<![\w/.-])inferencerun ({'|'.join(PLUG_IN_COMMANDS)})\b(?: OUTPUT_URI| (?:s3|gs|file)://[^\s'<]+)?"
)
_PHRASES = (
    ("give the run's output.uri", "nothing has been opened there yet: {doctor} says what keeps the controller from it"),
    ("start the run again and it will be planned", "{doctor} says what keeps the controller from planning it"),
    ("then start the run again", "then {wake}"),
    ("start the run again", "{wake} lets them run"),
    ("stop the run, then repeat", "{suspend}, repeat, then {resume}"),
    ("with --restart", "with spec.resume: Restart"),
    ("OUTPUT_URI", "{uri}"),
)
"""What is said without a cluster, and what instead. What holds another comes before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedRun:
    """A run as its reader calls it."""

    name: str
    namespace: str
    output_uri: str

    def command(self, name: str, *options: str) -> str:
        """A command of the plug-in, for copying."""
        return " ".join((f"kubectl inferencerun {name} {self.name} -n {self.namespace}", *options))


def reworded(text: str, run: NamedRun) -> str:
    """The text with the plug-in's commands and the spec's fields in the place of what `inferencerun` has."""
    text = _CALL.sub(lambda match: run.command(match[1]), text)
    for phrase, instead in _PHRASES:
        if phrase in text:
            other = instead.format(
                doctor=f"'{run.command('doctor')}'",
                wake=f"'{run.command('retry', '--only-wake')}'",
                suspend=f"'{run.command('suspend', '--wait')}'",
                resume=f"'{run.command('resume')}'",
                uri=run.output_uri,
            )
            text = text.replace(phrase, other)
    return text

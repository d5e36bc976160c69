"""Answers that a regular expression must match."""

from __future__ import annotations

import re
from typing import Literal

from sharpen.errors import SettingsError
from sharpen.records import Task, Trajectory, Verdict
from sharpen.verifiers.base import Properties, name_of, says, shown
from sharpen.verifiers.function import answer_of
from sharpen.verifiers.part import Reading, check_pattern, read
from sharpen.verifiers.workers import pool


class Regex(Reading, frozen=True, kw_only=True, tag_field="verifier", tag="regex"):
    """``pattern`` (Python's ``re``), or the reference where it is "", matches the answer: all of it (``full``), or somewhere in it (``search``).

    One that matches an empty answer is refused. Matching that takes longer than ``timeout_s`` is an error: the pattern's fault, not the policy's.
    """

    pattern: str = ""
    match: Literal["full", "search"] = "full"
    ignore_case: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pattern:
            _check(self.pattern)


class RegexVerifier:
    """See ``Regex``."""

    properties = Properties(
        needs="reference: a pattern; none where the settings give it",
        cost="cpu",
        gameable="with `search`, by listing many answers; whatever the pattern lets through",
        fails="no match",
        errors="matching takes longer than `timeout_s`",
    )

    def __init__(self, settings: Regex) -> None:
        self.name, self.exact, self._settings = name_of(settings), settings.exact, settings

    def problem(self, task: Task) -> str:
        if self._settings.pattern:
            return ""
        if not isinstance(task.reference, str) or not task.reference:
            what = "no reference" if task.reference is None else f"the reference {shown(task.reference)}"
            return f"has {what}, but regex needs a pattern; write it there, or into the settings"
        try:
            _check(task.reference)
        except SettingsError as error:
            return f"has a reference that cannot be used: {error}"
        return ""

    def cheats(self, task: Task) -> dict[str, str]:
        return {"all that can be typed": "".join(map(chr, range(32, 127)))}

    def verify(self, task: Task, trajectory: Trajectory) -> Verdict:
        if problem := self.problem(task):
            raise SettingsError(f"task {task.key!r} {problem}")
        said, missing = read(self._settings, answer_of(trajectory))
        if missing:
            return says(self.name, trajectory, False, missing)
        settings = self._settings
        arguments = (settings.pattern or task.reference, said, settings.match == "full", settings.ignore_case)
        matched = pool().call("sharpen.verifiers.pattern_side:matches", *arguments, timeout_s=settings.timeout_s)
        return says(self.name, trajectory, matched, "the pattern does not match")


def _check(pattern: str) -> None:
    check_pattern("pattern", pattern)
    if re.fullmatch(pattern, ""):
        raise SettingsError(f"pattern is {pattern[:80]!r}, which an empty answer matches; ask for something")

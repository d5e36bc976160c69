"""Which part of an answer counts."""

from __future__ import annotations

import re
from typing import Literal

from sharpen.errors import SettingsError
from sharpen.records import Task
from sharpen.verifiers.base import Common, Seconds, texts
from sharpen.verifiers.workers import pool


class Reading(Common, frozen=True, kw_only=True):
    """Which part of the answer counts, outer white space never.

    ``after``: a pattern (Python's ``re``), and only what follows its last match counts: the rest of that line, or the next line that is not empty.
    Then ``part``: the ``whole`` of it, its ``last_line`` that is not empty, the content of its last ``\\boxed{}``, or its last fenced ``code`` block
    (the whole where there is none). An answer without that part fails. ``timeout_s`` is for patterns, in a process that is then killed: an error.
    """

    part: Literal["whole", "last_line", "boxed", "code"] = "whole"
    after: str = ""
    timeout_s: Seconds = 5.0

    def __post_init__(self) -> None:
        check_pattern("after", self.after)


def check_pattern(field: str, pattern: str) -> None:
    """SettingsError where Python's ``re`` cannot read ``pattern``."""
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise SettingsError(f"{field} is {pattern[:80]!r}, which is no regular expression: {error}") from None


def read(settings: Reading, text: str) -> tuple[str, str]:
    """The part of ``text`` that counts, and ""; or "" and why there is none."""
    if settings.after:
        found = pool().call("sharpen.verifiers.pattern_side:rest", settings.after, text, timeout_s=settings.timeout_s)
        if found is None:
            return "", f"nothing in the answer matches {settings.after[:80]!r}"
        text = found
    text = text.strip()
    match settings.part:
        case "last_line":
            text = text.rpartition("\n")[2].strip()
        case "code":
            text = _code(text).strip()
        case "boxed":
            content = boxed(text)
            if content is None:
                return "", "the answer has no \\boxed{}"
            text = content.strip()
    return (text, "") if text else ("", "the answer is empty")


DENIAL, BOXED, TAKEN_BACK = "the reference in a denial", "several boxed answers", "an answer taken back"
HEDGES = (DENIAL, BOXED, TAKEN_BACK)


def hedges(task: Task) -> dict[str, str]:
    """Cheats for verifiers of short answers: wrong answers that quote the right one, where a verifier may look for it. Whoever gives them knows the answer."""
    try:
        right = texts(task)[0]
    except SettingsError:
        return {}
    return {
        DENIAL: f"It is certainly not {right}.",
        BOXED: f"\\boxed{{-98765}} \\boxed{{{right}}} \\boxed{{-56789}}",
        TAKEN_BACK: f"{right}\nNo, that is wrong. The answer is -98765.",
    }


def boxed(text: str) -> str | None:
    """What the last ``\\boxed{...}`` holds, braces within it paired; None where there is none, or it does not end."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth = 0
    for brace in re.finditer(r"\\[{}]|[{}]", text[start:]):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if not depth and brace[0] == "}":
            return text[start + len("\\boxed{") : start + brace.start()]
    return None


def _code(text: str) -> str:
    fences = [found.end() for found in re.finditer(r"^[ \t]*```[^\n`]*$", text, flags=re.MULTILINE)]
    if len(fences) < 2:
        return text
    block = text[fences[len(fences) // 2 * 2 - 2] : fences[len(fences) // 2 * 2 - 1]]
    return block.rpartition("```")[0]

"""Regular expressions, in a process that can be killed: one pattern in a thousand takes years on the right answer."""

from __future__ import annotations

import re


def rest(pattern: str, text: str) -> str | None:
    """What follows the last match of ``pattern``: the rest of its line, or the next line that is not empty. None without a match."""
    ends = [found.end() for found in re.finditer(pattern, text)]
    if not ends:
        return None
    line, _, below = text[ends[-1] :].partition("\n")
    return line if line.strip() else below.lstrip().partition("\n")[0]


def matches(pattern: str, text: str, full: bool, ignore_case: bool) -> bool:
    """Whether ``pattern`` is found in ``text``, or, ``full``, is all of it."""
    compiled = re.compile(pattern, re.IGNORECASE if ignore_case else 0)
    return (compiled.fullmatch if full else compiled.search)(text) is not None

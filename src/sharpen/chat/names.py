"""The names of control tokens, where they stand in text that nobody vouches for: held apart from the tokens that a template writes.

A tool may answer ``<|im_end|>``, and a tokenizer makes the real token of it. So before a template sees a message, a mark goes into every such name
(``<MARK|im_end|>``); what is a whole name in the rendering was written by the template. ``ChatTemplate.encode`` takes the marks out again.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

# Digits come through strip, upper, lower and JSON unchanged; drawn for each process, so that no text can hold them beforehand.
MARK = "".join(secrets.choice("0123456789") for _ in range(32))


def unmarked(text: str) -> str:
    """``text`` as the model reads it."""
    return text.replace(MARK, "")


class Names:
    """A set of names, two characters and longer."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = sorted({name for name in names if len(name) > 1}, key=len, reverse=True)
        either = "|".join(map(re.escape, self._names)) or "(?!)"
        self._whole = re.compile(either)
        self._first = re.compile(f"(?={either})(.)", re.DOTALL)  # of names that overlap, too
        # A name may also come about where text meets text. Parts that are plain words are none: "object" must stay what templates look for.
        cuts = [(name[:at], name[at:]) for name in self._names for at in range(1, len(name))]
        self._heads = {head for head, _ in cuts if not head.isalnum()}
        self._tails = {tail for _, tail in cuts if not tail.isalnum()}
        self._longest = len(self._names[0]) if self._names else 0
        self._joins = lru_cache(4096)(self._may_join)

    def found(self, text: str) -> list[str]:
        """The names in ``text``, in order, the longest where several begin at one place."""
        return self._whole.findall(text)

    def mark(self, text: str) -> str:
        """``text`` with every name given the mark in front: those that are meant to be tokens."""
        return self._whole.sub(lambda name: MARK + name[0], text)

    def held(self, value: Any) -> Any:
        """JSON data with the mark inside every name, and around text that could make one with what it is put beside. Keys included."""
        if isinstance(value, dict):
            return {self.held(key): self.held(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self.held(inner) for inner in value]
        if not isinstance(value, str):
            return value
        text = self._first.sub(rf"\g<1>{MARK}", value)
        bare = text.strip()
        if self._joins(bare[: self._longest], bare[-self._longest :]):
            at = text.index(bare)
            text = f"{text[:at]}{MARK}{bare}{MARK}{text[at + len(bare) :]}"
        return text

    def _may_join(self, start: str, end: str) -> bool:
        if start == end and start and not start.isidentifier() and any(start in name for name in self._names):
            return True
        lengths = range(1, len(start) + 1)
        return any(start[:size] in self._tails or end[-size:] in self._heads for size in lengths)

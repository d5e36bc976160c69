"""What the checks share: how a broken property is told, and how async parts are run."""

from __future__ import annotations

from collections.abc import Coroutine, Iterable, Sequence
from typing import Any, TypeVar

import msgspec

from sharpen import loop
from sharpen.chat.base import said
from sharpen.records import Message, Task

T = TypeVar("T")

MOST = 20  # tasks that are looked at, spread over those given


def broken(where: str, what: str, example: str) -> AssertionError:
    """The part, the property and the counterexample, on one line."""
    return AssertionError(f"{where}: {what}: {' '.join(example.split())[:800]}")


def short(value: object) -> str:
    """A value in one line, its beginning where it is long."""
    text = value if isinstance(value, str) else str(value)
    return repr(text) if len(text) <= 200 else f"{text[:100]!r}... ({len(text)} characters)"


def turns_text(turns: Sequence[str | Message]) -> str:
    """Assistant turns in one line."""
    return short(" | ".join(said(turn) for turn in turns))


def some(tasks: Iterable[Task]) -> tuple[Task, ...]:
    """Up to ``MOST`` tasks, spread over those given."""
    tasks = tuple(tasks)
    return tuple(tasks[index * len(tasks) // MOST] for index in range(MOST)) if len(tasks) > MOST else tasks


def survives(value: Any, kind: Any = None) -> bool:
    """Whether a value comes back from JSON as it was."""
    try:
        return bool(msgspec.json.decode(msgspec.json.encode(value), type=kind or type(value)) == value)
    except (TypeError, ValueError, OverflowError, RecursionError):
        return False


def run(work: Coroutine[Any, Any, T], seconds: float | None, what: str) -> T:
    """``work`` on the library's own event loop, as in a run. AssertionError where it is not back in time."""
    future = loop.submit(work)
    try:
        return future.result(seconds)
    except TimeoutError:
        if future.done():
            raise
        future.cancel()
        raise AssertionError(f"{what}: not back after {seconds:g} s") from None


def assistant(text: str) -> Message:
    """A text as an assistant turn."""
    return Message(role="assistant", content=text)

"""Any Python function as a verifier."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from sharpen.errors import SettingsError
from sharpen.records import Task, Trajectory, Verdict


class FunctionVerifier:
    """Asks ``fn(answer, reference)`` or ``fn(task, trajectory)``; the parameters' names say which.

    ``answer`` is what an outside program gave as its answer, else the last assistant message's text, "" where there is none. ``fn``
    returns a bool, a Verdict, or a number that passes at ``threshold`` or over. A number without a threshold is an error: 0.1 is true to
    Python and no pass. ``exact`` says that ``fn`` *is* the definition of success. ``verify`` lets through what ``fn`` raises; ``judge``
    makes an error verdict of it and holds the time limit.
    """

    def __init__(self, fn: Callable[..., Any], name: str | None = None, *, threshold: float | None = None, exact: bool = False) -> None:
        self.name: str = name or getattr(fn, "__qualname__", "") or type(fn).__name__
        self.exact = exact
        self._fn, self._threshold = fn, threshold
        try:
            names = tuple(inspect.signature(fn).parameters)[:2]
        except (TypeError, ValueError) as error:
            raise SettingsError(f"verifier {self.name!r} cannot be called: {error}") from None
        if names not in (("answer", "reference"), ("task", "trajectory")):
            raise SettingsError(
                f"verifier {self.name!r} takes ({', '.join(names)}); name its parameters (answer, reference) or (task, trajectory)"
            )
        self.wants_reference = names[0] == "answer"

    def verify(self, task: Task, trajectory: Trajectory) -> Verdict:
        given = self._fn(answer_of(trajectory), task.reference) if self.wants_reference else self._fn(task, trajectory)
        if isinstance(given, Verdict):
            return replace(given, key=trajectory.key, verifier=given.verifier or self.name)
        if isinstance(given, bool):
            return Verdict(key=trajectory.key, outcome="pass" if given else "fail", score=float(given), verifier=self.name)
        if not isinstance(given, int | float):
            raise TypeError(f"returned {type(given).__name__}, but must return a bool, a number with a threshold, or a Verdict")
        if self._threshold is None:
            raise TypeError(f"returned the number {given!r}, but no threshold says from where on it is a pass")
        if math.isnan(given):
            raise ValueError("returned NaN")
        passed = given >= self._threshold
        reason = "" if passed else f"score {given:g} is under {self._threshold:g}"
        return Verdict(key=trajectory.key, outcome="pass" if passed else "fail", score=float(given), reason=reason, verifier=self.name)


def answer_of(trajectory: Trajectory) -> str:
    """The answer in the outcome, where the agent was an outside program; else the last assistant message's text, "" where there is none."""
    if isinstance(said := trajectory.outcome.get("answer"), str):
        return said
    return next((message.content for message in reversed(trajectory.messages) if message.role == "assistant"), "")

"""Any Python function as a verifier."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec.structs import replace

from sharpen import plugins
from sharpen.errors import SettingsError
from sharpen.records import Task, Trajectory, Verdict
from sharpen.store.files import digest
from sharpen.verifiers.base import Common, Properties, Seconds
from sharpen.verifiers.workers import pool


class Function(Common, frozen=True, kw_only=True, tag_field="verifier", tag="function"):
    """A function of one's own: ``module:name``, ``file.py:name`` or an entry point. See ``FunctionVerifier``.

    A number that it returns passes at ``threshold`` or over. ``isolated`` calls it in a process of its own kind, that is killed with what it started
    after ``timeout_s`` seconds: what it prints goes nowhere, and it can neither hang the run nor change its state. Not a sandbox. Without, it runs
    in this process, and the run's own limit holds.
    """

    function: str
    threshold: float | None = None
    isolated: bool = False
    timeout_s: Seconds = 60.0


class FunctionVerifier:
    """Asks ``fn(answer, reference)`` or ``fn(task, trajectory)``; the parameters' names say which.

    ``answer`` is what an outside program gave as its answer, else the last assistant message's text, "" where there is none. ``fn``
    returns a bool, a Verdict, or a number that passes at ``threshold`` or over. A number without a threshold is an error: 0.1 is true to
    Python and no pass. ``exact`` says that ``fn`` *is* the definition of success. ``verify`` lets through what ``fn`` raises; ``judge``
    makes an error verdict of it and holds the time limit. ``call`` is called in the place of ``fn``, whose parameters still say with what.
    """

    properties = Properties(
        needs="what the function needs",
        deterministic=False,
        cost="cpu",
        own_limit=False,
        gameable="as the function is",
        fails="false, or a number under `threshold`",
        errors="it raises, is not back in time, or returns NaN or what is no verdict",
    )

    def __init__(
        self,
        fn: Callable[..., Any],
        name: str | None = None,
        *,
        threshold: float | None = None,
        exact: bool = False,
        call: Callable[..., Any] | None = None,
    ) -> None:
        self.name: str = name or getattr(fn, "__qualname__", "") or type(fn).__name__
        self.exact = exact
        self._call, self._threshold = call or fn, threshold
        try:
            names = tuple(inspect.signature(fn).parameters)[:2]
        except (TypeError, ValueError) as error:
            raise SettingsError(f"verifier {self.name!r} cannot be called: {error}") from None
        if names not in (("answer", "reference"), ("task", "trajectory")):
            raise SettingsError(
                f"verifier {self.name!r} takes ({', '.join(names)}); name its parameters (answer, reference) or (task, trajectory)"
            )
        self.wants_reference = names[0] == "answer"

    def problem(self, task: Task) -> str:
        """Nothing: only the function knows what it needs."""
        return ""

    def verify(self, task: Task, trajectory: Trajectory) -> Verdict:
        given = self._call(answer_of(trajectory), task.reference) if self.wants_reference else self._call(task, trajectory)
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


def function_verifier(settings: Function) -> FunctionVerifier:
    """The verifier that ``settings`` describe. SettingsError where the function cannot be found or takes something else."""
    fn = plugins.load(settings.function, "verifier")
    name = settings.function if settings.threshold is None else f"{settings.function}-{digest(settings.threshold)[:8]}"
    if not settings.isolated:
        return FunctionVerifier(fn, name, threshold=settings.threshold, exact=settings.exact)

    def call(*given: Any) -> Any:
        plain = [msgspec.to_builtins(thing) for thing in given]
        function, path = "sharpen.verifiers.function_side:ask", [folder for folder in sys.path if folder]
        kind, said = pool().call(function, settings.function, path, plain, made.wants_reference, timeout_s=settings.timeout_s)
        if kind == "other":
            raise TypeError(f"returned {said}, but must return a bool, a number with a threshold, or a Verdict")
        return msgspec.convert(said, Verdict) if kind == "verdict" else said

    made = FunctionVerifier(fn, name, threshold=settings.threshold, exact=settings.exact, call=call)
    made.properties = replace(made.properties, own_limit=True)
    return made


def answer_of(trajectory: Trajectory) -> str:
    """The answer in the outcome, where the agent was an outside program; else the last assistant message's text, "" where there is none."""
    if isinstance(said := trajectory.outcome.get("answer"), str):
        return said
    return next((message.content for message in reversed(trajectory.messages) if message.role == "assistant"), "")

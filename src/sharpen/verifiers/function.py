"""Any Python function as a verifier."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from sharpen.errors import SettingsError, nearest
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
        self._wants_answer = names[0] == "answer"

    def verify(self, task: Task, trajectory: Trajectory) -> Verdict:
        given = self._fn(answer_of(trajectory), task.reference) if self._wants_answer else self._fn(task, trajectory)
        if isinstance(given, Verdict):
            return given if given.verifier else replace(given, verifier=self.name)
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


def load_function(spec: str) -> Callable[..., Any]:
    """The function that ``module:function`` or ``path/to/file.py:function`` names. Its module is imported, so its code runs.

    SettingsError where the module, the file or the function is missing or does not import.
    """
    where, colon, name = spec.rpartition(":")
    if not colon or not where or not name:
        raise SettingsError(f"verifier {spec!r} is not module:function or file.py:function")
    try:
        module = _load_file(Path(where)) if where.endswith(".py") else importlib.import_module(where)
    except Exception as error:
        raise SettingsError(f"verifier {spec!r} cannot be imported: {type(error).__name__}: {error}") from error
    found = getattr(module, name, None)
    if not callable(found):
        functions = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        raise SettingsError(f"verifier {spec!r}: {where} has no function {name!r}{nearest(name, functions)}")
    return found  # type: ignore[no-any-return]  # callable() narrows to an object that can be called


def _load_file(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"no file {str(path)!r}")
    name = f"_sharpen_verifier_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling look their module up by name
    spec.loader.exec_module(module)
    return module

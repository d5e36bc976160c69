"""Mathematics, by math-verify (Hugging Face): answers that are equal as expressions."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from typing import Annotated

import msgspec

from sharpen.errors import SettingsError
from sharpen.records import Task, Trajectory, Verdict
from sharpen.verifiers.base import Properties, name_of, says, texts
from sharpen.verifiers.function import answer_of
from sharpen.verifiers.part import Reading, hedges, read
from sharpen.verifiers.workers import pool


class Math(Reading, frozen=True, kw_only=True, tag_field="verifier", tag="math"):
    """The answer equals the reference, LaTeX or plain, as an expression, equation, set, interval or matrix; the reference comes first, since
    math-verify is not symmetric.

    math-verify takes the last expression of the part that counts, one in ``\\boxed{}`` before others. Only the last ``tail`` characters of it are
    read. Runs in a process that is killed after ``timeout_s`` seconds or over 2 GB: an error, since another machine might have settled it.
    """

    tail: Annotated[int, msgspec.Meta(ge=100, le=1_000_000)] = 5_000


class MathVerifier:
    """See ``Math``. SettingsError where math-verify is not installed."""

    properties = Properties(
        needs="reference: an expression or number, or a list of right ones",
        cost="cpu",
        gameable="the last expression counts, whatever is said around it; numbers are compared to 6 decimals, so tiny ones are alike",
        fails="another value; no mathematics in the answer",
        errors="not settled within `timeout_s` or the memory; a reference that is no mathematics",
    )

    def __init__(self, settings: Math) -> None:
        if importlib.util.find_spec("math_verify") is None:
            raise SettingsError("verifier math needs math-verify; pip install 'sharpen[verifiers]'")
        self.name = name_of(settings, importlib.metadata.version("math-verify"))
        self.exact, self._settings = settings.exact, settings

    def problem(self, task: Task) -> str:
        try:
            texts(task)
        except SettingsError as error:
            return str(error)
        return ""

    def cheats(self, task: Task) -> dict[str, str]:
        return hedges(task)

    def verify(self, task: Task, trajectory: Trajectory) -> Verdict:
        right = texts(task)
        said, missing = read(self._settings, answer_of(trajectory))
        if missing:
            return says(self.name, trajectory, False, missing)
        settings = self._settings
        wrong = pool().call("sharpen.verifiers.math_side:wrong", list(right), said[-settings.tail :], timeout_s=settings.timeout_s)
        return says(self.name, trajectory, not wrong, wrong)

"""What a verifier is: it looks at a task and a finished trajectory, and says pass, fail or error."""

from __future__ import annotations

from typing import Protocol

from sharpen.records import Task, Trajectory, Verdict


class Verifier(Protocol):
    """``name`` is written on every verdict. ``exact`` says that the verifier *is* the definition of success
    (an environment's own state, a set's own scorer), so that it needs no labels, only gold and no-op checks.

    Two things a verifier may have beside: ``timeout_s``, the seconds that one verdict may take where that is longer than usual (an engine has to start),
    and ``close()``, which gives engines back; the next verdict opens them again.
    """

    @property
    def name(self) -> str: ...

    @property
    def exact(self) -> bool: ...

    def verify(self, task: Task, trajectory: Trajectory) -> Verdict:
        """Never raises for a bad trajectory: that is a fail. Raising means that the verifier is broken: an error."""
        ...


def close(verifier: Verifier | None) -> None:
    """Give back what the verifier holds, where it holds anything."""
    if (give_back := getattr(verifier, "close", None)) is not None:
        give_back()

"""The environment's own word on whether the task was solved."""

from __future__ import annotations

from sharpen.records import Task, Trajectory, Verdict
from sharpen.verifiers.base import Properties


class EnvironmentOutcome:
    """Passes a trajectory that the environment ended (``stop == "done"``) and calls ``won`` or ``success``.

    Exact: the environment's state is what success means. A trajectory whose outcome has neither key is a fail; the score is the
    environment's ``score`` where it gives a number.
    """

    name = "environment_outcome"
    exact = True
    properties = Properties(
        needs="an environment that says `won` or `success`",
        exact="always",
        cost="free",
        gameable="where the environment's own rules are",
        fails="not won, lost, out of turns",
        errors="none of its own",
    )

    def problem(self, task: Task) -> str:
        """Nothing: the environment knows."""
        return ""

    def verify(self, task: Task, trajectory: Trajectory) -> Verdict:
        outcome = trajectory.outcome
        # ``is True``: an environment that says "no" in a string must not pass for being non-empty.
        solved = outcome.get("won") is True or outcome.get("success") is True
        passed = solved and trajectory.stop == "done"
        score = outcome.get("score")
        return Verdict(
            key=trajectory.key,
            outcome="pass" if passed else "fail",
            score=float(score) if isinstance(score, int | float) else None,
            reason="" if passed else _why(trajectory),
            verifier=self.name,
        )


def _why(trajectory: Trajectory) -> str:
    if trajectory.stop != "done":
        return f"the episode ended by {trajectory.stop}"
    if trajectory.outcome.get("lost") is True:
        return "lost"
    if trajectory.outcome.get("out_of_turns") is True:
        return "out of turns"
    return "not solved"

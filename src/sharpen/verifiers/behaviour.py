"""Tries that were made well, whatever came of them: rules on what a policy did, to leave known faults out of what it learns from."""

from __future__ import annotations

from typing import Annotated

import msgspec

from sharpen.environments.acts import RULES, acts, says_nothing, turns
from sharpen.errors import SettingsError
from sharpen.records import Record, Task, Trajectory, Verdict
from sharpen.verifiers.base import Properties, name_of, says

AtMost = Annotated[int, msgspec.Meta(ge=0)] | None


class Rules(Record, frozen=True, kw_only=True):
    """How often a try may do what: 0 is never, None (the default) any number of times.

    ``failed_again``: an act that failed before in the same state, and fails again. ``repeats``: an act done before in the same state with the same result.
    ``empty``: a turn that says nothing and calls nothing. ``malformed``: an act that cannot be read, or calls a tool that is not there. ``errors``: any
    act that went wrong: malformed, refused, or ended in a tool's error. ``turns``: turns at all. See ``environments/acts.py`` for how each is told.
    """

    failed_again: AtMost = None
    repeats: AtMost = None
    empty: AtMost = None
    malformed: AtMost = None
    errors: AtMost = None
    turns: AtMost = None

    def broken(self, trajectory: Trajectory) -> str:
        """The first rule that the try breaks, in words that can be counted; "" where it keeps to all."""
        return next((rule for rule, broken in self.each(trajectory).items() if broken), "")

    def each(self, trajectory: Trajectory) -> dict[str, bool]:
        """Whether the try breaks each rule that is set, by the rule in words."""
        done = acts(trajectory)
        said = turns(trajectory)
        rules = (
            ("an act that failed before fails again", self.failed_again, sum(act.failed_again for act in done)),
            ("the same act in the same state", self.repeats, sum(act.repeated for act in done)),
            ("a turn that says nothing", self.empty, sum(map(says_nothing, said))),
            ("an act that cannot be read", self.malformed, sum(act.trouble == "malformed" for act in done)),
            ("an act that went wrong", self.errors, sum(bool(act.trouble) for act in done)),
            ("a turn", self.turns, len(said)),
        )
        return {f"{what}, more than {most} times": many > most for what, most, many in rules if most is not None}


class Behaved(Rules, frozen=True, kw_only=True, tag_field="verifier", tag="behaviour"):
    """Passes a try that keeps to the rules, wrong answers too: put it beside a verifier of the answer, under ``all``. At least one rule is set.

    ``exact: true`` says that keeping to them is part of what success means in these tasks, so that ``all`` of it and an exact verifier is exact.
    """

    exact: bool = False

    def __post_init__(self) -> None:
        if all(getattr(self, field) is None for field in Rules.__struct_fields__):
            raise SettingsError(f"behaviour sets no rule; set one of {', '.join(Rules.__struct_fields__)}, such as failed_again: 0")


class BehaviourVerifier:
    """See ``Behaved``."""

    properties = Properties(
        needs="nothing",
        cost="free",
        gameable="by any wrong answer that is made well: put it under `all`, beside a verifier of the answer",
        fails="a rule is broken; nothing was done at all",
        errors="none of its own",
    )

    def __init__(self, settings: Behaved) -> None:
        self.name, self.exact, self._settings = name_of(settings, RULES), settings.exact, settings

    def problem(self, task: Task) -> str:
        """Nothing: what was done is in every try."""
        return ""

    def verify(self, task: Task, trajectory: Trajectory) -> Verdict:
        broken = self._settings.broken(trajectory) if turns(trajectory) else "nothing was done"
        return says(self.name, trajectory, not broken, broken)

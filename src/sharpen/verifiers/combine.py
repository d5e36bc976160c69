"""Several verifiers as one: all of them, any, or k."""

from __future__ import annotations

from typing import Any

from sharpen.records import Task, Trajectory, Verdict
from sharpen.store.files import digest
from sharpen.verifiers.base import COSTS, Described, Properties
from sharpen.verifiers.run import judge


class Combination:
    """Passes where at least ``k`` of ``members`` pass, fails where so many fail that ``k`` cannot, and is an error where errors leave it open.

    So ``all`` (k is their number) fails where one fails, even beside an error, and ``any`` (k is 1) passes where one passes: an error never counts
    as a fail or a pass. The cheap are asked before the dear (free, cpu, model, money; else as listed), and nobody once it is settled.

    It is declared gameable where ``k`` members are: then a cheat needs nobody else's pass. So ``any`` is by one, ``all`` only by all. With fewer a cheat must
    still pass others, which never ran it beside their tests: what passes then rests on them alone, which ``in_part`` says. Code that runs outside a sandbox is
    no matter of counting: it can reach whoever judges it, the other members and what they say too, so one such member is enough.
    """

    def __init__(self, kind: str, members: tuple[Described, ...], k: int) -> None:
        self.members = sorted(members, key=lambda member: COSTS.index(member.properties.cost))
        self._k = k
        self.name = f"{kind}-{digest([k, sorted(member.name for member in members)])[:8]}"
        self.exact = all(member.exact for member in members)
        self.timeout_s = sum(getattr(member, "timeout_s", 0.0) for member in members)
        self.at_once = max(getattr(member, "at_once", 0) for member in members)
        said = [member.properties for member in members]
        open_ = [f"{member.name}: {member.properties.declared}" for member in members if member.properties.declared]
        part = [*open_, *(f"{member.name}: {member.properties.in_part}" for member in members if member.properties.in_part)]
        boxed = [one.sandboxed for one in said if one.sandboxed is not None]
        gameable = len(open_) >= k or not all(boxed)
        self.properties = Properties(
            needs="; ".join(f"{member.name}: {member.properties.needs}" for member in members),
            exact="always" if self.exact else "never",
            deterministic=all(one.deterministic for one in said),
            cost=max((one.cost for one in said), key=COSTS.index),
            own_limit=all(one.own_limit for one in said),
            gameable="; ".join(f"{member.name}: {member.properties.gameable}" for member in members),
            fails=f"fewer than {k} of {len(members)} can pass",
            errors="errors leave it open",
            declared="; ".join(open_) if gameable else "",
            in_part="; ".join(part) if not gameable else "",
            sandboxed=all(boxed) if boxed else None,
        )

    def problem(self, task: Task) -> str:
        """What the first member lacks that lacks something."""
        return next((f"{problem} (for {member.name})" for member in self.members if (problem := member.problem(task))), "")

    def cheats(self, task: Task) -> dict[str, Any]:
        """Those of all members."""
        return {kind: answer for member in self.members for kind, answer in getattr(member, "cheats", lambda task: {})(task).items()}

    def verify(self, task: Task, trajectory: Trajectory) -> Verdict:
        passed: list[str] = []
        failed: list[str] = []
        broken: list[str] = []
        for member in self.members:
            verdict = judge(task, trajectory, member)
            said = f"{member.name}: {verdict.reason or verdict.outcome}"
            {"pass": passed, "fail": failed, "error": broken}[verdict.outcome].append(said)
            if len(passed) >= self._k:
                return Verdict(key=trajectory.key, outcome="pass", verifier=self.name)
            if len(failed) > len(self.members) - self._k:
                return Verdict(key=trajectory.key, outcome="fail", reason="; ".join(failed), verifier=self.name)
        return Verdict(key=trajectory.key, outcome="error", reason="; ".join(broken), verifier=self.name)


# What the kinds are, for the table: a combination's own properties are its members'.
KINDS = Properties(
    needs="what its members need",
    cost="free",
    gameable="`all`: where all members are; `any`: where one is; `k_of`: where k are; all three: where one runs code outside a sandbox",
    fails="so many members fail that it cannot pass",
    errors="errors of members leave it open; an error never counts as a fail",
)

"""Several models at the same tasks: in turn, or all of them and one is chosen, which is best-of-N over the turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sharpen.agents.base import Agent
from sharpen.agents.best_of_n import Choosing
from sharpen.errors import SettingsError
from sharpen.policies.choose import Auto, Engine
from sharpen.records import Record, SampleKey, Task, Trajectory


class Member(Record, frozen=True, kw_only=True):
    """Another model of an ensemble: ``model``, ``template`` and ``engine`` as for the run's own."""

    model: str
    template: str = ""
    engine: Engine = Auto()


class Ensemble(Choosing, frozen=True, kw_only=True, tag_field="agent", tag="ensemble"):
    """The run's own model, which is the one that trains, and ``members`` beside it, with the same prompts and sampling settings.

    Each makes ``n`` tries, and one of all is chosen; or, ``by: rotation``, they take turns and nothing is chosen: try i is made by member i mod m, so let
    ``sampling.n`` be a multiple of m. All members are open at once while they play: two local models must fit into memory together (share it out in
    their engines, with ``gpu_memory`` or ``cache_gb``), else serve one elsewhere and name it by its URL.
    """

    members: tuple[Member, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.members:
            raise SettingsError("members is empty, and one model is no ensemble; name another, or set agent: best-of-n")
        if self.by == "rotation" and self.n > 1:
            raise SettingsError(f"n is {self.n}, but by: rotation chooses nothing; sampling.n and evaluation.n say how many tries are made")

    @property
    def _words(self) -> tuple[str, ...]:
        return ("verifier", "majority", "rotation")

    @property
    def tries(self) -> int:
        return 1 if self.by == "rotation" else self.n * (1 + len(self.members))


@dataclass(frozen=True)
class InTurn:
    """A mixture: try i is member i mod m's own try i, under that member's own key and name. So tries that a member made alone are not made again."""

    members: Sequence[Agent]

    @property
    def name(self) -> str:
        return " + ".join(member.name for member in self.members)

    def key(self, task: Task, index: int) -> SampleKey:
        return self._member(index).key(task, index)

    async def run(self, task: Task, index: int) -> Trajectory:
        return await self._member(index).run(task, index)

    def _member(self, index: int) -> Agent:
        return self.members[index % len(self.members)]

"""N finished tries of any agent, of which one is chosen: by the tasks' verifier, by another one, or by majority vote."""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import entry_points
from typing import Any, Literal, NamedTuple

from msgspec.structs import replace

from sharpen import plugins
from sharpen.agents.base import Agent
from sharpen.errors import EnvironmentFault, PolicyError, SettingsError, nearest
from sharpen.records import Choice, Considered, Cost, Record, SampleKey, Task, Trajectory
from sharpen.store.files import digest
from sharpen.store.segments import Segments
from sharpen.verifiers.base import Verifier
from sharpen.verifiers.function import FunctionVerifier, answer_of
from sharpen.verifiers.run import judge

STRIDE = 1 << 16  # try i chooses from the inner tries i * STRIDE, i * STRIDE + 1, ...: a larger n adds tries and renumbers none
SHOWN = 200  # characters of a vote that are kept in the record


class Choosing(Record, frozen=True, kw_only=True):
    """How one of several finished tries is chosen, and where that is done.

    ``by``:

    - ``verifier``: the tasks' own. The best score among the passes, else among the fails; the first among equals. As it also grades what it
      chose, pass@1 of best-of-n is pass@n of single tries: what a perfect judge would reach.
    - ``majority``: the answer that most tries give, case and spacing aside (self-consistency, Wang et al. 2022, 2203.11171); the first among equals.
      The answer is what a verifier sees as one: what an outside program gave, else the last message; of that the last match of the regular expression
      ``answer``, its group where it has one. Without ``answer``, tries of several turns without tools, as games are, vote with their actions. A try that
      was cut or says nothing casts no vote; where none does, the first is taken.
    - ``file.py:function``, ``module:function`` or an entry point of ``sharpen.verifiers``: any other verifier, asked as the tasks' own would be.
      ``threshold`` is from where on a number that it returns is a pass.

    ``stop_at_pass`` makes the tries one after the other and takes the first that the tasks' verifier passes: the same choice for fewer tokens,
    where its scores are 0 or 1. ``plays`` says where: ``sampling`` alone distils the choice into single tries, which are then what is evaluated.
    """

    by: str = "verifier"
    threshold: float | None = None
    answer: str = ""
    stop_at_pass: bool = False
    plays: Literal["everything", "sampling", "evaluation"] = "everything"
    n: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.n <= STRIDE:
            raise SettingsError(f"n is {self.n}, but must be at least 1" if self.n < 1 else f"n is {self.n}, but can be at most {STRIDE}")
        if ":" not in self.by and self.by not in self._words:
            installed = {point.name for point in entry_points(group=plugins.GROUPS["verifier"])}
            if self.by not in installed:
                hint = nearest(self.by, {*self._words, *installed})
                raise SettingsError(f"by is {self.by!r}{hint}{'' if hint.endswith('?') else ';'} any other verifier is file.py:function")
        if self.stop_at_pass and self.by != "verifier":
            raise SettingsError(f"stop_at_pass is for by: verifier, whose pass is final; by is {self.by!r}")
        if self.answer and self.by != "majority":
            raise SettingsError(f"answer says what is voted for, so it is for by: majority; by is {self.by!r}")
        if self.threshold is not None and self.by in self._words:
            raise SettingsError(f"threshold is for a verifier of its own; by is {self.by!r}")
        try:
            re.compile(self.answer)
        except re.error as error:
            raise SettingsError(f"answer {self.answer!r} is no regular expression: {error}") from None

    @property
    def _words(self) -> tuple[str, ...]:
        return ("verifier", "majority")

    @property
    def tries(self) -> int:
        """How many tries of models, at most, one try is."""
        return self.n


class BestOfN(Choosing, frozen=True, kw_only=True, tag_field="agent", tag="best-of-n"):
    """``n`` tries of the model, of which one is chosen."""

    n: int = 8


# ---------------------------------------------------------------- choosers


class Opinion(NamedTuple):
    """What a chooser says of one try."""

    verdict: Literal["pass", "fail", "error"] | None = None
    score: float | None = None
    vote: str | None = None
    why: str = ""


@dataclass(frozen=True)
class ByVerifier:
    """Chooses as ``verifier`` judges: passes before fails, then by score, then the first.

    ``grader``: it is also what grades the choice. ``threshold`` is the verifier's, which its name does not say.
    """

    verifier: Verifier
    grader: bool = False
    timeout_s: float = 60.0
    threshold: float | None = None

    @property
    def name(self) -> str:
        return f"the grader itself ({self.verifier.name})" if self.grader else self.verifier.name

    @property
    def identity(self) -> list[Any]:
        """What changes the choice."""
        return ["verifier", self.verifier.name, self.threshold]

    def opinion(self, task: Task, trajectory: Trajectory) -> Opinion:
        """Never raises; may take as long as the verifier does."""
        verdict = judge(task, trajectory, self.verifier, self.timeout_s)
        score = verdict.score if verdict.score is not None and math.isfinite(verdict.score) else None
        return Opinion(verdict.outcome, score, why=verdict.reason)

    def pick(self, opinions: Sequence[Opinion]) -> int | None:
        """The best one's place; None where all are errors: of those none can be told from another."""
        judged = [at for at, one in enumerate(opinions) if one.verdict != "error"]

        def rank(at: int) -> tuple[bool, float]:
            score = opinions[at].score
            return opinions[at].verdict == "pass", -math.inf if score is None else score

        return max(judged, key=rank, default=None)  # max takes the first among equals


@dataclass(frozen=True)
class ByMajority:
    """Chooses the first try that says what most of them say. ``answer`` as in ``Choosing``."""

    answer: str = ""
    grader = False

    @property
    def name(self) -> str:
        return "majority vote"

    @property
    def identity(self) -> list[Any]:
        return ["majority", self.answer]

    def opinion(self, task: Task, trajectory: Trajectory) -> Opinion:
        if trajectory.stop != "done":
            return Opinion()
        last = next((message for message in reversed(trajectory.messages) if message.role == "assistant"), None)
        said = "" if last is not None and last.tool_calls and "answer" not in trajectory.outcome else answer_of(trajectory)
        if self.answer:
            found = list(re.finditer(self.answer, said))
            said = (found[-1][1] or "" if found[-1].re.groups else found[-1][0]) if found else ""
        elif "answer" not in trajectory.outcome and not trajectory.tools and len(trajectory.actions) > 1:
            said = "\n".join(trajectory.actions)  # a game's last command is no answer
        else:
            said = said or "\n".join(trajectory.actions)
        return Opinion(vote=" ".join(said.split()).casefold() or None)

    def pick(self, opinions: Sequence[Opinion]) -> int | None:
        """The place of the first try with the most frequent vote, of the vote that came first among equals; the first try where nobody votes."""
        counts = Counter(one.vote for one in opinions if one.vote is not None)
        if not counts:
            return 0 if opinions else None
        (vote, _), *_ = counts.most_common(1)  # in order of their first coming where equal
        return [one.vote for one in opinions].index(vote)


Chooser = ByVerifier | ByMajority


def make_chooser(settings: Choosing, grader: Verifier | None, timeout_s: float = 60.0) -> Chooser:
    """The chooser that ``settings`` name. ``grader`` is the tasks' verifier; SettingsError where they have none and it is to choose."""
    if settings.by == "majority":
        return ByMajority(settings.answer)
    if settings.by == "verifier":
        if grader is None:
            raise SettingsError("agent.by is 'verifier', but the tasks have none; give them one, or set agent.by: majority")
        return ByVerifier(grader, True, timeout_s)
    other = FunctionVerifier(plugins.load(settings.by, "verifier"), settings.by, threshold=settings.threshold)
    return ByVerifier(other, grader is not None and grader.name == other.name, timeout_s, settings.threshold)


# ---------------------------------------------------------------- the agent


class _Made(NamedTuple):
    """One inner try: its trajectory and what was said of it, or why it broke."""

    key: SampleKey
    trajectory: Trajectory | None = None
    opinion: Opinion = Opinion()
    error: PolicyError | EnvironmentFault | None = None


@dataclass(frozen=True)
class BestOfNAgent:
    """Makes ``n`` tries of ``inner`` side by side and gives the one that ``chooser`` picks, under its own key and name.

    Its token ids are as they were sampled, ``cost`` counts the tokens and turns of all tries that ended (``seconds`` is wall time), ``choice`` says what
    became of each. Tries that break, or take longer than ``timeout_s``, are left out and counted; where all do, the first error is raised.
    EnvironmentFault where the chooser breaks on all of them: a try picked blindly would be no best of anything.

    ``kept`` is where finished inner tries lie, so that none is made again: after a kill, for a larger ``n``, or for another chooser.
    At most ``concurrency`` inner tries run at once over all tries of this agent. ``stop_at_pass``: one after the other, up to the first pass.
    """

    inner: Agent
    n: int
    chooser: Chooser
    stop_at_pass: bool = False
    kept: Segments[Trajectory] | None = None
    timeout_s: float | None = None
    concurrency: int | None = None

    @property
    def name(self) -> str:
        return f"{self.inner.name}, best of {self.n} by {self.chooser.name}"

    def key(self, task: Task, index: int) -> SampleKey:
        """The model is the inner agent's, or a digest of all its models; ``sampling`` names what the inner tries are made with, n and the chooser."""
        keys = [self.inner.key(task, at) for at in range(self.n)]
        models = list(dict.fromkeys(key.model for key in keys))
        made = [[key.model, key.environment, key.sampling] for key in keys]
        settings = digest([made, self.chooser.identity, self.stop_at_pass])
        return replace(keys[0], model=models[0] if len(models) == 1 else digest(models), sampling=settings, index=index)

    async def run(self, task: Task, index: int) -> Trajectory:
        """One choice of ``n`` tries. Cancelling it cancels them."""
        started = time.monotonic()
        made: list[_Made] = []
        if self.stop_at_pass:
            while len(made) < self.n and not (made and made[-1].opinion.verdict == "pass"):
                made.append(await self._one(task, index * STRIDE + len(made)))
        else:
            jobs = [asyncio.create_task(self._one(task, index * STRIDE + at)) for at in range(self.n)]
            try:
                made = await asyncio.gather(*jobs)
            finally:
                for job in jobs:
                    job.cancel()
                await asyncio.gather(*jobs, return_exceptions=True)
        whole = [(at, one.trajectory, one.opinion) for at, one in enumerate(made) if one.trajectory is not None]
        if not whole:
            raise next(one.error for one in made if one.error is not None)
        picked = self.chooser.pick([opinion for _, _, opinion in whole])
        if picked is None:
            raise EnvironmentFault(f"task {task.key}: {self.chooser.name} could judge none of {len(whole)} tries: {whole[0][2].why}")
        chosen, trajectory, _ = whole[picked]
        costs = [one.cost for _, one, _ in whole]
        return replace(
            trajectory,
            key=self.key(task, index),
            agent=self.name,
            cost=Cost(
                prompt_tokens=sum(cost.prompt_tokens for cost in costs),
                sampled_tokens=sum(cost.sampled_tokens for cost in costs),
                seconds=round(time.monotonic() - started, 3),
                turns=sum(cost.turns for cost in costs),
            ),
            choice=Choice(
                by=self.chooser.name,
                wanted=self.n,
                chosen=chosen,
                tries=tuple(self._considered(one) for one in made),
                grader=self.chooser.grader,
            ),
        )

    @cached_property
    def _slots(self) -> contextlib.AbstractAsyncContextManager[Any]:
        return contextlib.nullcontext() if self.concurrency is None else asyncio.Semaphore(self.concurrency)

    async def _one(self, task: Task, index: int) -> _Made:
        """One inner try, from disk where it lies there, and what the chooser says of it."""
        key = self.inner.key(task, index)
        trajectory = self.kept.records.get(key) if self.kept is not None else None
        if trajectory is None:
            try:
                async with self._slots, asyncio.timeout(self.timeout_s):
                    with contextlib.nullcontext() if self.kept is None else self.kept.coming:
                        trajectory = await self.inner.run(task, index)
            except (PolicyError, EnvironmentFault) as error:
                return _Made(key, error=error)
            except TimeoutError:
                return _Made(key, error=EnvironmentFault(f"task {task.key}: no end after {self.timeout_s or 0:g} s"))
            if trajectory.stop in ("error", "cancelled"):
                return _Made(key, error=EnvironmentFault(trajectory.error or f"task {task.key}: a try ended by {trajectory.stop}"))
            if self.kept is not None:
                await self.kept.add(trajectory)
        return _Made(key, trajectory, await asyncio.to_thread(self.chooser.opinion, task, trajectory))

    def _considered(self, made: _Made) -> Considered:
        verdict, score, vote, why = made.opinion
        if made.trajectory is None:
            return Considered(agent=self.inner.name, model=made.key.model, index=made.key.index, stop="error", error=str(made.error))
        return Considered(
            agent=made.trajectory.agent,
            model=made.key.model,
            index=made.key.index,
            stop=made.trajectory.stop,
            verdict=verdict,
            score=score,
            vote=vote[:SHOWN] if vote is not None else None,
            error=why if verdict == "error" else None,
        )

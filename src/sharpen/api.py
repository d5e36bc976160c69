"""The essay's verbs: ``sample``, ``sample_many``, ``verify``, ``filter``, ``sft``. Sync over the async core; each call's work is on disk before it is seen."""

from __future__ import annotations

import asyncio
import atexit
import builtins
import itertools
import shutil
import tempfile
import warnings
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from sharpen import advisor, loop
from sharpen.agents.base import PolicyAgent
from sharpen.agents.choose import check_turns
from sharpen.audit import fooled
from sharpen.budget import Uniform
from sharpen.chat.load import load_template
from sharpen.errors import Refused, SettingsError
from sharpen.labels import BAR, content, measure, read_labels
from sharpen.methods.base import inherit
from sharpen.models import load_model
from sharpen.policies.base import Policy
from sharpen.policies.choose import Auto, Engine, open_policy
from sharpen.policies.meter import SPENT, Meter, Metered, Spending
from sharpen.policies.prices import price_of
from sharpen.records import Measurements, Model, SampleKey, Selection, Trajectory, Verdict
from sharpen.sampling import SamplingSettings, collect
from sharpen.selection import build_rows
from sharpen.store.segments import Segments
from sharpen.tasks.base import BoundTask, TaskSet
from sharpen.terms import TermsSettings, maker_of, with_terms
from sharpen.training.base import Training
from sharpen.training.load import trainer_for
from sharpen.verifiers.base import charge, risks, stands
from sharpen.verifiers.run import judge


@dataclass(frozen=True)
class Candidate:
    """One try at a task, perhaps still being made. Reading ``trajectory`` (or verifying it) waits for its end."""

    bound: BoundTask
    _future: Future[Trajectory] = field(repr=False)

    @property
    def trajectory(self) -> Trajectory:
        return self._future.result()

    @property
    def done(self) -> bool:
        return self._future.done()


class Session:
    """Where the verbs keep their work: trajectories, verdicts and trained models under ``folder`` (default: a temporary one, gone at exit).

    Tries of one model on one task are numbered on, so that calling ``sample`` N times makes N different tries; a session opened again on
    the same folder starts its numbers anew and finds what it has already made.

    What models and verifiers are asked is counted in ``spent.json`` there, ``spending`` caps it: a verb raises Stopped where what it would begin does
    not fit, and what was made and judged before is kept.
    """

    def __init__(self, folder: str | Path | None = None, *, sampling: SamplingSettings | None = None, training: Training | None = None,
                 engine: Engine | None = None, seed: int = 0, spending: Spending | None = None) -> None:  # fmt: skip
        self.sampling = (sampling or SamplingSettings()).waiting_for(engine or Auto())
        if not isinstance(self.sampling.budget, Uniform):
            raise SettingsError(
                "a session makes the tries it is asked for, so sampling.budget must be uniform; sharpen sample plans them itself"
            )
        self.training = training or Training()
        self.engine = engine or Auto()
        self.seed = seed
        self._lasting = folder is not None
        if folder is None:
            folder = tempfile.mkdtemp(prefix="sharpen-")
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
        self.folder = Path(folder)
        self.meter = Meter(spending, self.folder / SPENT)
        self._trajectories = Segments(self.folder / "trajectories", Trajectory)
        self._verdicts = Segments(self.folder / "verdicts", Verdict)
        for said in (self._trajectories.mend(), self._verdicts.mend()):
            if said:
                warnings.warn(said, stacklevel=2)
        self._counters: dict[tuple[str, str], itertools.count[int]] = defaultdict(itertools.count)
        self._policies: dict[str, Policy] = {}
        self._slots: asyncio.Semaphore | None = None
        self._trained = itertools.count(1)

    def sample(self, model: Model | str, task: BoundTask) -> Candidate:
        """Start one more try of ``model`` at ``task`` and return at once."""
        model = _model(model)
        agent = self._agent(model, task)
        index = next(self._counters[agent.fingerprint, task.key])
        return Candidate(task, loop.submit(self._one(agent, task, index)))

    def sample_many(self, model: Model | str, tasks: Iterable[BoundTask], n: int | None = None) -> Iterator[Candidate]:
        """``n`` tries (default: the session's) of every task, yielded as they finish. Leaving the loop cancels what is in flight."""
        model = _model(model)
        bound = {task.key: task for task in tasks}
        if not bound:
            return
        agent = self._agent(model, next(iter(bound.values())))
        rounds = [
            [(task.task, next(self._counters[agent.fingerprint, task.key])) for task in bound.values()] for _ in range(n or self.sampling.n)
        ]
        for trajectory in loop.stream(self._many(agent, [pair for pairs in rounds for pair in pairs])):
            future: Future[Trajectory] = Future()
            future.set_result(trajectory)
            yield Candidate(bound[trajectory.key.task], future)

    def verify(self, candidate: Candidate) -> Verdict:
        """What the task set's own verifier says. True for a pass only. Refused where the set has no verifier."""
        verifier = candidate.bound.tasks.verifier
        if verifier is None:
            raise Refused(f"task set {candidate.bound.tasks.name!r} has no verifier: without filtering this is SFT on average behaviour")
        trajectory = candidate.trajectory
        known = self._verdicts.records.get(trajectory.key)
        if stands(known, verifier):
            return known
        charge(verifier, self.meter, "verify")
        verdict = judge(candidate.bound.task, trajectory, verifier, self.sampling.verifier_timeout_s)
        self._verdicts.append(verdict)
        return verdict

    def sft(
        self,
        model: Model | str,
        good: Iterable[Candidate],
        terms: Sequence[TermsSettings] = (),
        *,
        trust_unaudited_verifier: bool = False,
        labels: str | Path | None = None,
    ) -> Model:
        """Train ``model`` on the trajectories in ``good`` with exact masks, and return the new model. Refused where there is nothing to train on.

        Whatever chose them, their own task set's verifier must vouch for them: it is exact and passes each, or ``labels`` (a file or folder that ``sharpen
        label`` wrote; default: where it writes those of this session's folder) show that they are pure. Else it is refused, unless ``trust_unaudited_verifier``
        says to go on, and then the new model's lineage, and all that is trained from it, carry the banner.

        ``terms`` settle whose words outside the model's own lineage may train it; Unsettled where one is missing.
        """
        model, good = _model(model), builtins.list(good)
        banners = self._vouched(good, trust_unaudited_verifier, Path(labels or f"labels/{self.folder.resolve().name}.jsonl"))
        chosen = [("sampled", candidate.trajectory) for candidate in good]
        keys: tuple[SampleKey, ...] = tuple(trajectory.key for _, trajectory in chosen)
        rows, selection = build_rows(Selection(kept=keys, left_out=(), counts={}), chosen, load_template(model), self.training.max_length)
        if not rows:
            reasons = ", ".join(sorted({item.reason for item in selection.left_out})) or "no candidate passed"
            raise Refused(f"nothing to train on: {reasons}")
        rows = with_terms(rows, terms)
        self.close()  # the engine's memory is free for the trainer
        out = self.folder / "models" / f"{next(self._trained):03d}"
        trained, _ = trainer_for(model)(rows, model, self.training, out)
        return inherit(trained, model, banners)

    def _vouched(self, good: Sequence[Candidate], trust: bool, place: Path) -> tuple[str, ...]:
        """The banners for what is trained on ``good``. Refused where nobody vouches for it."""
        banners: list[str] = []
        by_set: dict[int, list[Candidate]] = defaultdict(list)
        for candidate in good:
            by_set[id(candidate.bound.tasks)].append(candidate)
        for chosen in by_set.values():
            tasks = chosen[0].bound.tasks
            verifier = tasks.verifier
            if verifier is not None and verifier.exact:
                if not (bad := sum(not self.verify(candidate) for candidate in chosen)):
                    banners += risks(verifier)
                    continue
                problem = f"{bad} of {len(chosen)} candidates do not pass the verifier {verifier.name}, which is exact; leave them out"
                banner = f"it was trained on {bad} tries that do not pass the verifier {verifier.name}"
            elif verifier is None:
                problem = f"task set {tasks.name!r} has no verifier: without filtering this is SFT on average behaviour; give the tasks one"
                banner = "no verifier vouches for the tries it was trained on"
            else:
                purity = measure({one.trajectory.key: content(one.trajectory) for one in chosen}, read_labels(place), BAR)
                charge(verifier, self.meter, "checks")
                cheat = fooled(tasks, timeout_s=self.sampling.verifier_timeout_s) if purity.outcome == "clears" and not trust else ""
                seen = Measurements(verifier=verifier.name, purity=purity, cheat=cheat, risks=risks(verifier), trusted_unaudited=trust)
                where = (
                    f"sharpen label {self.folder} --among passed"
                    if self._lasting
                    else "a Session(FOLDER), and sharpen label FOLDER --among passed,"
                )
                decision = advisor.gate("rejection-sampling", seen, where, "trust_unaudited_verifier=True")
                if decision.outcome == "refuse":
                    raise Refused(decision.reasons[0])
                banners += decision.banners
                continue
            if not trust:
                raise Refused(f"{problem}, or say trust_unaudited_verifier=True")
            banners.append(banner)
        return tuple(dict.fromkeys(banners))

    def close(self) -> None:
        """Give the engines back. What is on disk stays; the next call opens them again."""
        for policy in self._policies.values():
            loop.run(policy.close())
        self._policies.clear()
        if self.meter.bill.stages:
            self.meter.write()

    def _agent(self, model: Model, task: BoundTask) -> PolicyAgent:
        check_turns(self.engine, task.tasks.environment, None)
        if model.fingerprint not in self._policies:
            self._policies[model.fingerprint], _ = open_policy(model, self.engine, self.folder)
        price, _ = price_of(model, self.engine, self.meter.caps.prices)
        opened = self._policies[model.fingerprint]
        policy = Metered(model.name, lambda: opened, self.meter.account("sample"), price)
        sampling, maker = self.sampling.turn(self.seed), maker_of(model)
        return PolicyAgent(model.name, policy, model.fingerprint, task.tasks.environment, sampling, maker=maker)

    async def _one(self, agent: PolicyAgent, task: BoundTask, index: int) -> Trajectory:
        if self._slots is None:
            self._slots = asyncio.Semaphore(self.sampling.concurrency)
        async with self._slots:
            async for trajectory in self._many(agent, [(task.task, index)]):
                return trajectory
        raise AssertionError("a try ends in a trajectory or raises")

    async def _many(self, agent: PolicyAgent, wanted: list[tuple]) -> AsyncIterator[Trajectory]:  # type: ignore[type-arg]
        settings = self.sampling
        async for trajectory, _ in collect(
            agent, wanted, None, self._trajectories, self._verdicts, concurrency=settings.concurrency, episode_timeout_s=settings.episode_timeout_s,
            account=self.meter.account("sample"),
        ):  # fmt: skip
            yield trajectory


@cache
def _ephemeral() -> Session:
    session = Session()
    atexit.register(session.close)
    return session


def sample(model: Model | str, task: BoundTask) -> Candidate:
    """Start one try of ``model`` at ``task``; several calls run side by side. See Session.sample."""
    return _ephemeral().sample(model, task)


def sample_many(model: Model | str, tasks: TaskSet | Iterable[BoundTask], n: int | None = None) -> Iterator[Candidate]:
    """``n`` tries of every task, streamed as they finish. See Session.sample_many."""
    return _ephemeral().sample_many(model, tasks, n)


def verify(candidate: Candidate) -> Verdict:
    """Pass, fail or error, by the verifier of the task's own set. See Session.verify."""
    return _ephemeral().verify(candidate)


def filter(candidates: Iterable[Candidate], verify: Callable[[Candidate], Verdict]) -> list[Candidate]:
    """The candidates that ``verify`` passes. An error is no pass, and neither is a low score.

    ``verify`` may be any function: what it says chooses, and vouches for nothing. ``sft`` asks the tasks' own verifier.
    """
    return [candidate for candidate in builtins.list(candidates) if verify(candidate)]


def sft(
    model: Model | str,
    good: Iterable[Candidate],
    terms: Sequence[TermsSettings] = (),
    *,
    trust_unaudited_verifier: bool = False,
    labels: str | Path | None = None,
) -> Model:
    """A new model: ``model`` trained on ``good``, which an exact verifier passes or labels show to be pure. See Session.sft."""
    return _ephemeral().sft(model, good, terms, trust_unaudited_verifier=trust_unaudited_verifier, labels=labels)


@cache
def _named(name: str) -> Model:
    return load_model(name)


def _model(model: Model | str) -> Model:
    return _named(model) if isinstance(model, str) else model

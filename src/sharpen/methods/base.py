"""The bench that every method works at: sample, judge, train and evaluate, each as a stage that is done once."""

from __future__ import annotations

import shutil
from collections import ChainMap, Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from dataclasses import replace as replace_fields
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import msgspec
from msgspec.structs import replace

from sharpen import loop, placeholders
from sharpen.agents.base import Agent
from sharpen.agents.choose import CONSIDERED, Several, check_turns, load_members, make_agent, make_several, most_turns, playing
from sharpen.agents.harness import Harness
from sharpen.agents.recorded import RecordedAgent, replay, said
from sharpen.agents.teacher import Teacher
from sharpen.budget import Adaptive, Uniform, terms
from sharpen.budget import Terms as Bound
from sharpen.environments.base import Environment
from sharpen.errors import EnvironmentFault, Refused, SettingsError
from sharpen.evaluation import EvaluationSettings, evaluate
from sharpen.formats.base import RECORDED
from sharpen.labels import content
from sharpen.models import load_model, save_lineage
from sharpen.policies.base import Lasting, Policy, Sampling
from sharpen.policies.choose import Auto, Engine, open_policy
from sharpen.policies.meter import Account, Meter, Metered, total
from sharpen.policies.prices import price_of
from sharpen.records import (
    Evaluation,
    Lineage,
    Maker,
    Message,
    Model,
    Pairing,
    PreferencePair,
    Record,
    Row,
    SampleKey,
    Selection,
    Task,
    Terms,
    TrainingReport,
    Trajectory,
    Verdict,
)
from sharpen.sampling import WAVES, Goal, Listener, Pool, Progress, SamplingSettings, Waves, broken, fill_adaptively, fill_these, silent
from sharpen.selection import SelectionSettings
from sharpen.store.files import digest, write_atomic, write_blob, write_json
from sharpen.store.run import Run, Stage
from sharpen.store.segments import Segments
from sharpen.tasks.base import Recorded, TaskSet
from sharpen.tasks.recorded import recorded
from sharpen.terms import EXPERT, TermsSettings, gate, maker_of, settled, vouch, whose, with_terms
from sharpen.training.base import Progress as TrainingProgress
from sharpen.training.base import Training, unmarked
from sharpen.training.load import preference_trainer_for, trainer_for
from sharpen.training.on_policy import OnPolicy, Prompt, train_on_policy
from sharpen.training.preference import Preference
from sharpen.verifiers.base import Verifier, asking, charge, close, risks
from sharpen.verifiers.outcome import EnvironmentOutcome
from sharpen.verifiers.remembered import OPINIONS, remembered
from sharpen.verifiers.run import judge

CHECKS = "checks"  # under which is counted what a verifier asks of made-up answers
Sourced = tuple[str, Trajectory]  # where it came from, as in Row
S = TypeVar("S", SamplingSettings, EvaluationSettings)


@dataclass(frozen=True)
class Prompted:
    """A model with the few-shot examples it is asked with: what a rung proposes and what ships."""

    model: Model
    shots: tuple[Message, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.model.name} with a few-shot prompt" if self.shots else self.model.name

    @property
    def fingerprint(self) -> str:
        return digest([self.model.fingerprint, self.shots])


@dataclass(frozen=True)
class Cast:
    """Who plays beside the model that is asked, and how: the program in the environment's place, what is made of several tries, ``others`` at them.

    ``engine`` runs the model, where that is not the run's own (None). ``recorded`` takes the place of all of it. ``hints`` are shown behind tasks, by key.
    """

    harness: Harness | None = None
    several: Several | None = None
    others: tuple[tuple[Model, Engine], ...] = ()
    engine: Engine | None = None
    recorded: Recorded | None = None
    hints: Mapping[str, str] = field(default_factory=dict)

    @property
    def identity(self) -> list[Any]:
        """What changes its tries, beside the model that is asked."""
        played: list[Any] = [self.harness] if self.harness else []
        played += [self.several, *(model.fingerprint for model, _ in self.others)] if self.several else []
        played += [digest(self.hints)] if self.hints else []
        return played + ([[self.recorded.trajectories, self.recorded.replay]] if self.recorded else [])


@dataclass(frozen=True)
class Attempt:
    """What a method made of one rung. ``pool`` is what there was to choose from, ``trains`` what went into rows where their masks could be proved."""

    proposal: Prompted
    selection: Selection | None = None
    training: TrainingReport | None = None
    pool: Pool | None = None
    survivors: tuple[Sourced, ...] = ()
    control: Attempt | None = None
    trains: tuple[Sourced, ...] = ()


class FewShot(Record, frozen=True, kw_only=True):
    """``shots`` demonstrations go before the task, the shortest first among a random draw."""

    shots: int = 2


class Distillation(Record, frozen=True, kw_only=True):
    """How the ``teacher`` is copied.

    ``way: trajectories``: it makes ``n`` tries of every training task, those that pass are selected (``selection``) and imitated (``training``).
    ``on_policy``: the student answers, and a teacher whose weights are here scores its tokens (``on_policy``).
    """

    way: Literal["trajectories", "on_policy"] = "trajectories"
    n: int = 1
    on_policy: OnPolicy = OnPolicy()

    def __post_init__(self) -> None:
        if self.n < 1:
            raise SettingsError(f"n is {self.n}, but must be at least 1")


HERE = "reference"


class Hints(Record, frozen=True, kw_only=True):
    """How tasks that were never solved are tried with a hint.

    ``n`` tries of each (4; ours: fewer than without a hint, since the solution is in view), of which at most one trains. ``share``, in [0, 1], bounds the
    hinted ones among all tries that train, demonstrations aside (0.2, ours: twice STaR's, whose last set on CommonsenseQA solved 78.2 % of the questions
    without and another 8.5 % with a hint); 1 is no bound, nor is there one where nothing else trains. ``wording`` is what stands behind the task, with
    ``{reference}`` for the solution; ``{{`` and ``}}`` are plain braces.
    """

    n: int = 4
    share: float = 0.2
    wording: str = (
        "For this try only, here is a solution that is known to be right:\n"
        "{reference}\n"
        "Now do the task in the form that it asks for, as if you had not seen that solution."
    )

    def __post_init__(self) -> None:
        if self.n < 1:
            raise SettingsError(f"n is {self.n}, but must be at least 1")
        if not 0 <= self.share <= 1:
            raise SettingsError(f"share is {self.share}, but is a share of the tries that train: 0 to 1")
        placeholders.check("wording", self.wording, [HERE])


@dataclass
class Bench(AbstractContextManager["Bench"]):
    """One run's tasks, base model and settings, and the stages that methods are made of.

    ``banners`` go on all that is selected and trained from here on. ``permissions`` are what is settled of those outside the base's lineage.

    One policy is open at a time; it is closed before training, or rests, so that a GPU's or the machine's memory is free for it.
    """

    run: Run
    tasks: TaskSet
    base: Model
    seed: int = 0
    engine: Engine = field(default_factory=Auto)
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    selection: SelectionSettings = field(default_factory=SelectionSettings)
    training: Training = field(default_factory=Training)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    few_shot: FewShot = field(default_factory=FewShot)
    harness: Harness | None = None
    meter: Meter = field(default_factory=Meter)
    several: Several | None = None
    listen: Listener = silent
    say: Callable[[str], None] = lambda line: None
    banners: tuple[str, ...] = ()
    permissions: tuple[TermsSettings, ...] = ()
    teacher: Teacher | None = None
    distillation: Distillation = field(default_factory=Distillation)
    hints: Hints = field(default_factory=Hints)
    preference: Preference = field(default_factory=Preference)
    _taught: tuple[Model | None, Cast] = (None, Cast())
    _policy: tuple[str, Policy] | None = None
    _engine: str = ""
    _others: tuple[tuple[Model, Engine], ...] = ()
    _others_open: dict[str, Policy] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._others = tuple(load_members(self.several))
        if self.teacher is not None:
            self._taught = cast_of(self.teacher, self.tasks, self.harness)
        own = risks(self.tasks.verifier) if self.tasks.verifier is not None else ()
        self.banners = tuple(dict.fromkeys((*self.base.lineage.banners, *self.banners, *own)))
        # What cannot be kept to is said before anything is paid for.
        charge(self.tasks.verifier, self.meter, CHECKS)
        self._engines(self.cast(self.sampling), self.tasks)
        self._engines(self._taught[1], self.tasks)
        self._terms(self.tasks.split("train").tasks, self.tasks, self.sampling, self.cast(self.sampling))

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __enter__(self) -> Self:
        return self

    @property
    def verifier(self) -> Verifier:
        """The task set's verifier. Refused where it has none: nothing could be measured, so nothing could be kept."""
        return required(self.tasks)

    def checking(self) -> TaskSet:
        """The tasks, with their verifier as it is asked about made-up answers: counted under ``CHECKS``, and never paid twice for one."""
        charge(self.verifier, self.meter, CHECKS)
        return replace_fields(self.tasks, verifier=self._remembered(self.verifier))

    def _remembered(self, verifier: Verifier) -> Verifier:
        return remembered(verifier, self.run.folder / OPINIONS, content)

    def close(self) -> None:
        """Give the memory of policies and verifier back."""
        if asking(self.tasks.verifier):
            self.meter.write()  # what it was asked about made-up answers
        close(self.tasks.verifier)
        self._close_own()
        while self._others_open:
            loop.run(self._others_open.popitem()[1].close())

    def _close_own(self) -> None:
        if self._policy is not None:
            loop.run(self._policy[1].close())
            self._policy = None

    def _rest(self) -> None:
        """Give the memory of policies and verifier back for a while."""
        close(self.tasks.verifier)
        self._rest_own()
        self._rest_others()

    def _rest_own(self) -> None:
        if self._policy is not None and isinstance(self._policy[1], Lasting):
            loop.run(self._policy[1].rest())
        else:
            self._close_own()

    def _rest_others(self) -> None:
        for name, other in list(self._others_open.items()):
            loop.run(other.rest() if isinstance(other, Lasting) else self._others_open.pop(name).close())

    def _turn_to(self, model: Model) -> None:
        """Whatever is open is open for ``model`` from here on, or closed."""
        if self._policy is None or self._policy[0] == model.fingerprint:
            return
        if isinstance(policy := self._policy[1], Lasting):
            policy.take_up(model)
            self._policy = (model.fingerprint, policy)
        else:
            self._close_own()

    def _open(self, model: Model) -> Policy:
        if self._policy is None:
            policy, why = open_policy(model, self.engine, self.run.folder)
            self._policy = (model.fingerprint, policy)
            if why != self._engine:
                self._engine = why
                self.run.note({"event": "engine", "engine": why})
                self.say(f"engine {why}")
        return self._policy[1]

    def _metered(self, name: str, model: Model, engine: Engine, open_: Callable[[Model], Policy], account: Account) -> Metered:
        price, _ = price_of(model, engine, self.meter.caps.prices)
        return Metered(name, lambda: open_(model), account, price)

    def _open_other(self, engine: Engine, model: Model) -> Policy:
        """Another member of the ensemble: open until the run ends, or its memory is needed."""
        if (name := digest([model.fingerprint, engine])) not in self._others_open:
            self._others_open[name], why = open_policy(model, engine)
            self.say(f"{model.name}: engine {why}")
        return self._others_open[name]

    def cast(self, settings: SamplingSettings | EvaluationSettings) -> Cast:
        """How the run's own agent plays."""
        several = playing(self.several, "sampling" if isinstance(settings, SamplingSettings) else "evaluation")
        return Cast(self.harness, several, self._others)

    @property
    def grader_chooses(self) -> bool:
        """Whether the tries that may train were chosen by the verifier already."""
        several = playing(self.several, "sampling")
        return several is not None and several.by in ("verifier", self.verifier.name)

    def permitted(self) -> None:
        """Unsettled where what is known beforehand of whoever's words will train the base does not let them: to be asked before the first token.

        Those are who made the recorded demonstrations, and the members of an ensemble that makes the tries.
        """
        recorded = self.tasks.recorded.trajectories if self.tasks.recorded is not None else ()
        shown = Counter(map(whose, recorded))
        if recorded:
            self._permitted((maker, f"{count} recorded demonstrations") for maker, count in shown.items())
        else:
            self._permitted([(EXPERT, "the demonstrations")])
        self.may_teach()
        if playing(self.several, "sampling") is not None:
            self._permitted((maker_of(model), f"tries by the member {model.name}") for model, _ in self._others)

    def may_teach(self) -> None:
        """Unsettled where what is known beforehand of the teacher does not let its words train the base. Its own model's always may."""
        model, cast = self._taught
        speak = [model] if model is not None and cast.recorded is None else []
        self._permitted((maker_of(one), f"what the teacher {one.name} says") for one in [*speak, *(other for other, _ in cast.others)])
        theirs = Counter(map(whose, cast.recorded.trajectories if cast.recorded is not None else ()))
        self._permitted((maker, f"{count} recorded tries of the teacher") for maker, count in theirs.items())

    def _permitted(self, makers: Iterable[tuple[Maker, str]]) -> None:
        for maker, what in makers:
            vouch(settled(maker, self.permissions), self.base, what)

    # ------------------------------------------------------------ teaching

    def teacher_of(self, standing: Prompted) -> tuple[Prompted, Cast]:
        """The teacher, and how it plays; where it is the student itself, as it stands. SettingsError where there is none."""
        if self.teacher is None:
            raise SettingsError("there is no teacher to distil; set teacher: best-of-8, a model, a harness or recorded trajectories")
        model, cast = self._taught
        return (standing if model is None else Prompted(model)), cast

    @property
    def teaching(self) -> SamplingSettings:
        """How the teacher makes its tries at training tasks."""
        return self.as_taught(replace(self.sampling, n=self.distillation.n, budget=Uniform()))

    def as_taught(self, settings: S) -> S:
        """``settings`` with as many tokens a turn as the teacher may have."""
        most = self.teacher.max_tokens if self.teacher is not None else None
        return settings if most is None else replace(settings, max_tokens=most)

    # ------------------------------------------------------------ sampling

    def sample(
        self,
        name: str,
        agent: Prompted,
        tasks: Sequence[Task],
        settings: SamplingSettings | EvaluationSettings,
        indices: range | None = None,
        of: TaskSet | None = None,
        known: Collection[tuple[str, tuple[str, ...]]] = (),
        first: int | None = None,
        cast: Cast | None = None,
        had: Pool | None = None,
        judged: bool = True,
    ) -> Pool:
        """Judged tries of each task (``indices``, default the settings' n): the stage ``name``. Tries already on disk are not made again.

        ``of`` is the set that the tasks belong to, where it is not the run's own. ``known`` are (task, actions) that train already: an adaptive
        budget, which is for the bench's own ``sampling`` only, buys no more of them. ``first`` makes only so many of the tries, and leaves the stage undone.
        ``cast`` plays in the place of the run's own agent. Tries that another stage ``had`` already are taken over, and not paid for again; one
        that ended in an error is made again. Its waves are taken over too, where this stage's terms are no narrower.
        Unless ``judged`` the tries that are made have no verdicts yet.
        """
        of, cast = of or self.tasks, cast or self.cast(settings)
        patient = self.sampling.waiting_for(*self._engines(cast, of))
        verifier, several, recorded = required(of), cast.several, cast.recorded
        if several is not None and several.by == "verifier":  # it chooses, and then grades what it chose
            verifier = self._remembered(verifier)
        indices = range(settings.n) if indices is None else indices
        turn = settings.turn(self.seed)
        bound = self._terms(tasks, of, settings, cast)
        goal = Goal(cap=self.selection.limit, dedup=self.selection.dedup, known=frozenset(known))
        how_many = [indices.start, indices.stop] if bound is None else [settings.budget, bound, goal.dedup, sorted(goal.known)]  # type: ignore[union-attr]
        inputs = {"agent": agent.fingerprint, "tasks": digest([task.key for task in tasks]), "environment": of.environment.name}
        stage = self.run.stage(name, inputs, [turn, *how_many, verifier.name, *cast.identity])
        trajectories = Segments(stage.folder / "trajectories", Trajectory)
        verdicts = Segments(stage.folder / "verdicts", Verdict)
        account, judging = self.meter.account(name), charge(verifier, self.meter, name)
        done = stage.done()
        considered = Segments(stage.folder / CONSIDERED, Trajectory) if several and not done else None
        player = self._player(agent, of.environment, turn, cast, verifier, considered, account, patient)
        wanted = tries_of(tasks, indices, recorded)
        if done:
            by_key = {task.key: task for task in tasks}
            waves = stage.read(WAVES, Waves) if bound is not None else None
            tries = [(task.key, index) for task, index in wanted] if waves is None else waves.tries
            keys = tuple(player.key(by_key[task], index) for task, index in tries)
            return Pool(by_key, keys, trajectories.records, verdicts.records, waves)
        stage.begin()
        for place in (trajectories, verdicts, considered):
            if place is not None and (said := place.mend()):
                self.run.note({"event": "repaired", "what": said})
                self.say(said)
        taken = {key for key in had.wanted if had.trajectories[key].stop != "error"} if had is not None else set[SampleKey]()
        if recorded is None and self.meter.begun(name):  # else whatever lies here was brought by somebody, who paid
            price, _ = price_of(agent.model, cast.engine or self.engine, self.meter.caps.prices)
            account.at_least((one.cost for key, one in trajectories.records.items() if key not in taken), price)
        if had is not None:
            mine = [key for key in had.wanted if key in taken]
            trajectories.extend(had.trajectories[key] for key in mine if key not in trajectories.records)
            verdicts.extend(had.verdicts[key] for key in mine if key not in verdicts.records)  # by itself: a kill may come between the two
            if bound is not None and had.waves is not None and not (stage.folder / WAVES).exists():
                write_blob(stage.folder / WAVES, had.waves)  # what it bought decides as it did, and wider terms go on from there
        if cast.engine is not None:
            self._rest_own()  # two local models at once may be more than the memory holds
        elif recorded is None:
            self._turn_to(agent.model)
        limits = patient.limits_of(several.tries if several else 1)
        options: dict[str, Any] = {**limits, "what": name.removeprefix("rungs/"), "listen": self.listen, "account": account}
        options["judging"] = judging
        try:
            if bound is None:
                asked = verifier if judged else None
                pool = loop.run(fill_these(player, tasks, wanted[:first], asked, trajectories, verdicts, **options))
            else:
                assert isinstance(settings, SamplingSettings) and isinstance(settings.budget, Adaptive)
                places = trajectories, verdicts, stage.folder / WAVES
                pool = loop.run(fill_adaptively(player, tasks, settings.budget, bound, goal, self.seed, verifier, *places, **options))
        finally:
            trajectories.close()
            verdicts.close()
            if considered is not None:
                considered.close()
            self.meter.write()
            if cast.engine is not None:
                self._rest_others()
        if first is not None:
            return pool
        sealed = [trajectories.seal(pool.wanted), verdicts.seal(pool.wanted)]
        sealed += [stage.folder / WAVES] if bound is not None else []
        sealed += [considered.seal(considered.records)] if considered is not None and considered.records else []
        spent = total(account.spent, self.meter.machine(stage.seconds))
        made = [key for key in pool.wanted if key not in taken]
        tokens = sum(pool.trajectories[key].cost.sampled_tokens for key in made)
        paid = judging.spent if judging is not None else None
        stage.commit(sealed, sampled_tokens=tokens, spent=spent, judging=paid, inside_s=account.busy_s, taken=len(pool.wanted) - len(made))
        return pool

    def _player(
        self,
        agent: Prompted,
        environment: Environment,
        turn: Sampling,
        cast: Cast,
        verifier: Verifier,
        considered: Segments[Trajectory] | None,
        account: Account,
        patient: SamplingSettings,
    ) -> Agent:
        """The agent that ``cast`` describes, with ``agent`` as the model that is asked."""
        if cast.recorded is not None:
            return RecordedAgent(agent.name, cast.recorded, environment)

        def member(one: Prompted, engine: Engine, open_: Callable[[Model], Policy]) -> Agent:
            policy = self._metered(one.name, one.model, engine, open_, account)
            return make_agent(one.name, one.model, policy, environment, turn, cast.harness, one.shots, cast.hints)

        engine = cast.engine
        first = member(agent, self.engine, self._open) if engine is None else member(agent, engine, partial(self._open_other, engine))
        if cast.several is None:
            return first
        others = [member(Prompted(model, agent.shots), engine, partial(self._open_other, engine)) for model, engine in cast.others]
        return make_several(cast.several, [first, *others], verifier, considered, **patient.limits)

    def _engines(self, cast: Cast, of: TaskSet) -> list[Engine]:
        """Those that are asked where ``cast`` plays. SettingsError where one asks in batches and a try takes several turns."""
        engines = [] if cast.recorded is not None else [cast.engine or self.engine, *(engine for _, engine in cast.others)]
        for engine in engines:
            check_turns(engine, of.environment, cast.harness)
        return engines

    def _terms(self, tasks: Sequence[Task], of: TaskSet, settings: SamplingSettings | EvaluationSettings, cast: Cast) -> Bound | None:
        """What an adaptive budget is held to on ``tasks``; None where the budget is uniform. SettingsError where it cannot be kept to."""
        if not isinstance(settings, SamplingSettings) or not isinstance(settings.budget, Adaptive):
            return None
        most = settings.max_tokens * most_turns(of.environment, cast.harness, cast.several)
        return terms(settings.budget, settings.n, len(tasks), self.selection.limit, most)

    def evaluate(self, name: str, agent: Prompted, split: str, n: int | None = None) -> Evaluation:
        """pass@k of ``agent`` on a split with ``n`` tries a task (default: the first look)."""
        pool = self.tries(name, agent, split, n)
        evaluation = evaluate(pool, tuple(pool.tasks.values()), agent.name, split, self.evaluation, self.seed)
        write_json(self.run.folder / name / ("evaluation.json" if split == "dev" else f"evaluation-{split}.json"), evaluation)
        return evaluation

    def tries(self, name: str, agent: Prompted, split: str, n: int | None = None) -> Pool:
        """What ``evaluate`` counts: ``n`` judged tries of each task of a split, made where they are not there. A later look adds tries to the earlier ones.

        Where ``n`` is no look it is the next one that is made, and past the last look ``n`` itself.
        """
        tasks = self.tasks.split(split).tasks
        n = self.evaluation.n if n is None else n
        pool = Pool({task.key: task for task in tasks}, ())
        made = 0
        for look in dict.fromkeys((*self.evaluation.looks, n)):
            if made >= n:
                break
            stage = f"{name}/{split}" if made == 0 else f"{name}/{split}-{look}"
            more = self.sample(stage, agent, tasks, self.evaluation, range(made, look))
            trajectories: Mapping[SampleKey, Trajectory] = ChainMap(more.trajectories, pool.trajectories)  # type: ignore[arg-type]
            verdicts: Mapping[SampleKey, Verdict] = ChainMap(more.verdicts, pool.verdicts)  # type: ignore[arg-type]
            pool = Pool(pool.tasks, (*pool.wanted, *more.wanted), trajectories, verdicts)
            made = look
        return pool

    def look_aside(self, name: str, agent: Prompted, panel: TaskSet) -> Evaluation:
        """pass@1 of ``agent`` on all tasks of a panel that has nothing to do with the run's, so that forgetting is seen."""
        pool = self.sample(f"{name}/panel", agent, panel.tasks, self.evaluation, of=panel)
        evaluation = evaluate(pool, panel.tasks, agent.name, "panel", self.evaluation, self.seed)
        write_json(self.run.folder / name / "evaluation-panel.json", evaluation)
        return evaluation

    # ------------------------------------------------------------ demonstrations

    def demonstrations(self) -> Pool:
        """Demonstrations of the demo tasks, judged like any try: those recorded that came with the tasks, else the expert's, replayed in the environment."""
        tasks = {task.key: task for task in self.tasks.split("demo").tasks}
        environment, verifier, recorded = self.tasks.environment, self.verifier, self.tasks.recorded
        if recorded is not None and not recorded.replay and isinstance(verifier, EnvironmentOutcome):
            raise SettingsError("the environment can only vouch for what is played in it; take replay: false out of the demonstrations")
        inputs = {"tasks": digest(list(tasks)), "environment": environment.name}
        inputs |= {"recorded": digest([recorded.trajectories, recorded.replay])} if recorded is not None else {}
        stage = self.run.stage("demonstrations", inputs, verifier.name)
        folders = stage.folder / "trajectories", stage.folder / "verdicts"
        if fresh := not stage.done():
            stage.begin()
            for folder in folders:  # cheap to make again, and what a file says now may differ from what it said under the same keys
                shutil.rmtree(folder, ignore_errors=True)
        trajectories, verdicts = Segments(folders[0], Trajectory), Segments(folders[1], Verdict)
        if fresh:
            charge(verifier, self.meter, stage.name)
            verifier = self._remembered(verifier)
            for number, task in enumerate(tasks.values(), 1):
                for trajectory in self._demonstrated(task, recorded):
                    trajectories.append(trajectory)
                    verdicts.append(judge(task, trajectory, verifier, self.sampling.verifier_timeout_s))
                self.listen(Progress(what="demonstrations", done=number, total=len(tasks)))
            stage.commit([trajectories.seal(trajectories.records), verdicts.seal(verdicts.records)])
        return Pool(tasks, tuple(trajectories.records), trajectories.records, verdicts.records)

    def _demonstrated(self, task: Task, recorded: Recorded | None) -> Iterator[Trajectory]:
        """What was done at one task, played again unless it is to be taken as it was recorded. A broken environment is an error, and data."""
        environment = self.tasks.environment
        if recorded is None:
            actions = environment.expert(task)
            ways = [] if actions is None else [(EXPERT, EXPERT.name, 0, actions)]
        elif recorded.replay:
            ways = [(whose(theirs), theirs.agent, theirs.key.index, said(task, theirs)) for theirs in recorded.of(task)]
        else:
            yield from recorded.of(task)
            return
        for maker, agent, index, turns in ways:
            try:
                yield loop.run(replay(task, environment, turns, agent=agent, index=index, maker=maker))
            except EnvironmentFault as fault:
                key = SampleKey(model=agent, task=task.key, environment=environment.name, sampling=RECORDED, index=index)
                yield broken(key, agent, task, fault)

    # ------------------------------------------------------------ training

    def train(
        self,
        name: str,
        start: Model,
        rows: Sequence[Row],
        selection: Selection,
        *,
        token_budget: int | None = None,
        teacher: str = "",
    ) -> tuple[Model, TrainingReport]:
        """Train ``start`` on ``rows``: the stage ``name``. ``token_budget`` counts trained tokens, for a control; ``teacher`` goes into the lineage."""
        if not rows:
            raise Refused(f"{name}: nothing was selected, so there is nothing to train on; see {name}/selection.json for the reasons")
        # Where to start is said by ``start``, the model, so the setting of that name changes nothing from here on.
        inputs = {"model": start.fingerprint, "rows": digest(unmarked(rows))}
        stage = self.run.stage(name, inputs, [self._how, token_budget])
        if stage.done():
            return _made(stage)
        self.meter.check()
        rows = with_terms(rows, self.permissions)
        terms = gate(rows, start)
        stage.begin()
        files = [self._write_selection(stage.folder, selection, terms), write_rows(stage.folder, rows)]
        train = partial(trainer_for(start), rows, start, self._how, token_budget=token_budget)
        return self._train(stage, start, train, files, teacher)

    def train_on_policy(self, name: str, start: Model, teacher: Model, prompts: Sequence[Prompt]) -> tuple[Model, TrainingReport]:
        """Train ``start`` on its own answers to ``prompts``, scored by ``teacher``: the stage ``name``."""
        inputs = {"model": start.fingerprint, "teacher": teacher.fingerprint, "prompts": digest(prompts)}
        stage = self.run.stage(name, inputs, [self._how, self.distillation.on_policy])
        if stage.done():
            return _made(stage)
        self.meter.check()
        stage.begin()
        train = partial(train_on_policy, start, teacher, prompts, self.distillation.on_policy, training=self._how, terms=self.permissions)
        return self._train(stage, start, train)

    def prefer(
        self, name: str, start: Model, pairs: Sequence[PreferencePair], pairing: Pairing, selection: Selection
    ) -> tuple[Model, TrainingReport]:
        """Train ``start`` to prefer the chosen of ``pairs`` to the rejected: the stage ``name``. ``pairing.json`` says which they are."""
        rows = [row for one in pairs for row in (one.chosen, one.rejected)]
        inputs = {"model": start.fingerprint, "pairs": digest(unmarked(rows))}
        stage = self.run.stage(name, inputs, [self._how, self.preference])
        if stage.done():
            return _made(stage)
        self.meter.check()
        mine = with_terms(rows, self.permissions)
        terms = gate(mine, start)
        stage.begin()
        write_json(stage.folder / "pairing.json", pairing)
        files = [self._write_selection(stage.folder, selection, terms), stage.folder / "pairing.json", write_rows(stage.folder, mine[::2])]
        vouched = [PreferencePair(chosen=good, rejected=bad) for good, bad in zip(mine[::2], mine[1::2], strict=True)]
        train = partial(preference_trainer_for(start), vouched, start, self.preference, training=self._how)
        return self._train(stage, start, train, files)

    @property
    def _how(self) -> Training:
        # Where to start is said by the model that is trained, so the setting of that name changes nothing from here on.
        return replace(self.training, seed=self.training.seed + self.seed, start="base")

    def _write_selection(self, folder: Path, selection: Selection, terms: tuple[Terms, ...]) -> Path:
        banners = tuple(dict.fromkeys((*self.banners, *selection.banners)))
        write_json(folder / "selection.json", replace(selection, banners=banners, terms=terms))
        return folder / "selection.json"

    def _train(
        self, stage: Stage, start: Model, train: Callable[..., tuple[Model, TrainingReport]], made: Sequence[Path] = (), teacher: str = ""
    ) -> tuple[Model, TrainingReport]:
        """Give memory back, train, and commit the stage with ``made``, the files that say on what."""
        self._rest()
        model, report = train(stage.folder / "model", on_progress=heard(self.listen, f"{stage.name.removeprefix('rungs/')}/training"))
        model = inherit(model, start, self.banners, teacher)
        write_blob(stage.folder / "training.json", report)
        self._commit_model(stage, report, made)
        return model, report

    def _commit_model(self, stage: Stage, report: TrainingReport, made: Sequence[Path]) -> None:
        # Weights are named by their fingerprint in whatever is made from them; dotfiles are caches and may change.
        cards = [path for path in sorted((stage.folder / "model").glob("*.json")) if not path.name.startswith(".")]
        stage.commit([*made, stage.folder / "training.json", *cards], trained_tokens=report.trained_tokens, inside_s=report.seconds)


def cast_of(teacher: Teacher, tasks: TaskSet, harness: Harness | None) -> tuple[Model | None, Cast]:
    """The model that a teacher asks (None: the student's own) and how it plays, with all that it names found and checked."""
    if (settings := teacher.recorded) is not None:
        found = recorded(settings, tasks.tasks, ("train", "dev"))
        made = digest([found.trajectories, found.replay])
        name = ", ".join(dict.fromkeys(one.agent for one in found.trajectories))
        return Model(name=name, path=settings.path, fingerprint=made, kind="endpoint", lineage=Lineage(base=name)), Cast(recorded=found)
    cast = Cast(teacher.harness or harness, teacher.agent, tuple(load_members(teacher.agent)), teacher.engine if teacher.model else None)
    return (load_model(teacher.model, teacher.template) if teacher.model else None), cast


def tries_of(tasks: Sequence[Task], indices: range, recorded: Recorded | None = None) -> list[tuple[Task, int]]:
    """(task, index) of every try, in launch order; of ``recorded`` ones, as many as lie there."""
    if recorded is not None:
        return [(task, index) for task in tasks for index in range(len(recorded.of(task)))]
    return [(task, index) for index in indices for task in tasks]


def inherit(model: Model, start: Model, banners: Sequence[str], teacher: str = "") -> Model:
    """``model`` with the banners of the model it was trained from, and ``banners``, in its lineage; and whom it was taught by."""
    said = tuple(dict.fromkeys((*start.lineage.banners, *banners)))
    if not said and not teacher:
        return model
    lineage = replace(model.lineage, banners=said, settings=model.lineage.settings | ({"teacher": teacher} if teacher else {}))
    save_lineage(model.path, lineage, model.name)
    return replace(model, lineage=lineage)


def write_rows(folder: Path, rows: Sequence[Row]) -> Path:
    """The training set, one row a line, beside the selection it comes from."""
    path = folder / "training_set" / "rows.jsonl"
    write_atomic(path, b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    return path


def _made(stage: Stage) -> tuple[Model, TrainingReport]:
    return load_model(str(stage.folder / "model")), stage.read("training.json", TrainingReport)


def heard(listen: Listener, what: str) -> Callable[[TrainingProgress], None]:
    """A trainer's progress for whoever listens to the stage ``what``."""
    return lambda at: listen(Progress(what=what, done=at.step, total=at.steps, rate=at.tokens_per_second, note=f"loss {at.loss:.3f}"))


def required(tasks: TaskSet) -> Verifier:
    """The verifier of a task set. Refused where it has none."""
    if tasks.verifier is None:
        raise Refused(
            f"task set {tasks.name!r} has no verifier: success cannot be told from failure, so nothing can be measured or kept, "
            "and training on unfiltered tries is SFT on average behaviour; give the tasks a verifier"
        )
    return tasks.verifier


def shots_of(trajectories: Sequence[Trajectory]) -> tuple[Message, ...]:
    """Whole trajectories as few-shot examples: their messages without the system message, up to the last answer."""
    shots: list[Message] = []
    for trajectory in trajectories:
        messages = [message for message in trajectory.messages if message.role != "system"]
        while messages and messages[-1].role != "assistant":
            messages.pop()
        shots += messages
    return tuple(shots)

"""The bench that every method works at: sample, judge, train and evaluate, each as a stage that is done once."""

from __future__ import annotations

import shutil
from collections import ChainMap
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
from msgspec.structs import replace

from sharpen import loop
from sharpen.agents.choose import CONSIDERED, Several, check_turns, load_members, make_agent, make_several, most_turns, playing
from sharpen.agents.harness import Harness
from sharpen.agents.recorded import replay
from sharpen.budget import Adaptive, Terms, terms
from sharpen.errors import EnvironmentFault, Refused, SettingsError
from sharpen.evaluation import EvaluationSettings, evaluate
from sharpen.formats.base import RECORDED
from sharpen.models import load_model, save_lineage
from sharpen.policies.base import Lasting, Policy
from sharpen.policies.choose import Auto, Engine, open_policy
from sharpen.policies.meter import Account, Meter, Metered, total
from sharpen.policies.prices import price_of
from sharpen.records import Evaluation, Message, Model, Record, Row, SampleKey, Selection, Task, TrainingReport, Trajectory, Verdict
from sharpen.sampling import WAVES, Goal, Listener, Pool, Progress, SamplingSettings, Waves, broken, fill, fill_adaptively, silent
from sharpen.selection import SelectionSettings
from sharpen.store.files import digest, write_atomic, write_blob, write_json
from sharpen.store.run import Run
from sharpen.store.segments import Segments
from sharpen.tasks.base import Recorded, TaskSet
from sharpen.training.base import Progress as TrainingProgress
from sharpen.training.base import Training
from sharpen.training.load import trainer_for
from sharpen.verifiers.base import Verifier, close
from sharpen.verifiers.outcome import EnvironmentOutcome
from sharpen.verifiers.run import judge


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
class Attempt:
    """What a method made of one rung."""

    proposal: Prompted
    selection: Selection | None = None
    training: TrainingReport | None = None
    pool: Pool | None = None
    survivors: tuple[tuple[str, Trajectory], ...] = ()
    control: Attempt | None = None


class FewShot(Record, frozen=True, kw_only=True):
    """``shots`` demonstrations go before the task, the shortest first among a random draw."""

    shots: int = 2


@dataclass
class Bench(AbstractContextManager["Bench"]):
    """One run's tasks, base model and settings, and the stages that methods are made of.

    ``banners`` go on all that is selected and trained from here on.

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
    _policy: tuple[str, Policy] | None = None
    _engine: str = ""
    _others: list[tuple[Model, Engine]] = field(default_factory=list)
    _others_open: dict[str, Policy] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._others = load_members(self.several)
        self.banners = tuple(dict.fromkeys((*self.base.lineage.banners, *self.banners)))
        self._check_turns(self.tasks)
        self._terms(self.tasks.split("train").tasks, self.tasks)  # what cannot be kept to is said before anything is paid for

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __enter__(self) -> Self:
        return self

    @property
    def verifier(self) -> Verifier:
        """The task set's verifier. Refused where it has none: nothing could be measured, so nothing could be kept."""
        return required(self.tasks)

    def close(self) -> None:
        """Give the memory of policies and verifier back."""
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
        if self._policy is not None and isinstance(self._policy[1], Lasting):
            loop.run(self._policy[1].rest())
        else:
            self._close_own()
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

    def _several(self, settings: SamplingSettings | EvaluationSettings) -> Several | None:
        """The settings of the agent that makes several tries of each, where one does."""
        return playing(self.several, "sampling" if isinstance(settings, SamplingSettings) else "evaluation")

    @property
    def grader_chooses(self) -> bool:
        """Whether the tries that may train were chosen by the verifier already."""
        several = playing(self.several, "sampling")
        return several is not None and several.by in ("verifier", self.verifier.name)

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
    ) -> Pool:
        """Judged tries of each task (``indices``, default the settings' n): the stage ``name``. Tries already on disk are not made again.

        ``of`` is the set that the tasks belong to, where it is not the run's own. ``known`` are (task, actions) that train already: an adaptive
        budget, which is for the bench's own ``sampling`` only, buys no more of them. ``first`` makes only so many of the tries, and leaves the stage undone.
        """
        of = of or self.tasks
        self._check_turns(of)
        patient = self.sampling.waiting_for(self.engine, *(engine for _, engine in self._others))
        verifier = required(of)
        indices = range(settings.n) if indices is None else indices
        turn = settings.turn(self.seed)
        bound = self._terms(tasks, of) if isinstance(settings, SamplingSettings) else None
        goal = Goal(cap=self.selection.limit, dedup=self.selection.dedup, known=frozenset(known))
        how_many = [indices.start, indices.stop] if bound is None else [self.sampling.budget, bound, goal.dedup, sorted(goal.known)]
        inputs = {"agent": agent.fingerprint, "tasks": digest([task.key for task in tasks]), "environment": of.environment.name}
        several = self._several(settings)
        played: list[Any] = [self.harness] if self.harness else []
        played += [several, *(model.fingerprint for model, _ in self._others)] if several else []
        stage = self.run.stage(name, inputs, [turn, *how_many, verifier.name, *played])
        trajectories = Segments(stage.folder / "trajectories", Trajectory)
        verdicts = Segments(stage.folder / "verdicts", Verdict)
        account = self.meter.account(name)
        policy = self._metered(agent.name, agent.model, self.engine, self._open, account)
        player = make_agent(agent.name, agent.model, policy, of.environment, turn, self.harness, agent.shots)
        done = stage.done()
        considered = Segments(stage.folder / CONSIDERED, Trajectory) if several and not done else None
        if several:
            others = [
                (model, self._metered(model.name, model, engine, partial(self._open_other, engine), account))
                for model, engine in self._others
            ]
            makers = [make_agent(m.name, m, p, of.environment, turn, self.harness, agent.shots) for m, p in others]
            player = make_several(several, [player, *makers], verifier, considered, **patient.limits)
        if done:
            by_key = {task.key: task for task in tasks}
            waves = stage.read(WAVES, Waves) if bound is not None else None
            tries = [(task.key, index) for index in indices for task in tasks] if waves is None else waves.tries
            wanted = tuple(player.key(by_key[task], index) for task, index in tries)
            return Pool(by_key, wanted, trajectories.records, verdicts.records, waves)
        stage.begin()
        for place in (trajectories, verdicts, considered):
            if place is not None and (said := place.mend()):
                self.run.note({"event": "repaired", "what": said})
                self.say(said)
        self._turn_to(agent.model)
        limits = patient.limits_of(several.tries if several else 1)
        options: dict[str, Any] = {**limits, "what": name.removeprefix("rungs/"), "listen": self.listen, "account": account}
        try:
            if bound is None:
                pool = loop.run(fill(player, tasks, indices, verifier, trajectories, verdicts, first=first, **options))
            else:
                assert isinstance(self.sampling.budget, Adaptive)
                places = trajectories, verdicts, stage.folder / WAVES
                pool = loop.run(fill_adaptively(player, tasks, self.sampling.budget, bound, goal, self.seed, verifier, *places, **options))
        finally:
            trajectories.close()
            verdicts.close()
            if considered is not None:
                considered.close()
            self.meter.write()
        if first is not None:
            return pool
        sealed = [trajectories.seal(pool.wanted), verdicts.seal(pool.wanted)]
        sealed += [stage.folder / WAVES] if bound is not None else []
        sealed += [considered.seal(considered.records)] if considered is not None and considered.records else []
        spent = total(account.spent, self.meter.machine(stage.seconds))
        stage.commit(sealed, sampled_tokens=pool.sampled_tokens, spent=spent, inside_s=account.busy_s)
        return pool

    def _check_turns(self, of: TaskSet) -> None:
        for engine in (self.engine, *(engine for _, engine in self._others)):
            check_turns(engine, of.environment, self.harness)

    def _terms(self, tasks: Sequence[Task], of: TaskSet) -> Terms | None:
        """What an adaptive budget is held to on ``tasks``; None where the budget is uniform. SettingsError where it cannot be kept to."""
        settings = self.sampling
        if not isinstance(settings.budget, Adaptive):
            return None
        most = settings.max_tokens * most_turns(of.environment, self.harness, self._several(settings))
        return terms(settings.budget, settings.n, len(tasks), self.selection.limit, most)

    def evaluate(self, name: str, agent: Prompted, split: str, n: int | None = None) -> Evaluation:
        """pass@k of ``agent`` on a split with ``n`` tries a task (default: the first look). A later look adds tries to the earlier ones."""
        tasks = self.tasks.split(split).tasks
        n = self.evaluation.n if n is None else n
        pool = Pool({task.key: task for task in tasks}, ())
        made = 0
        for look in [look for look in self.evaluation.looks if look <= n]:
            stage = f"{name}/{split}" if made == 0 else f"{name}/{split}-{look}"
            more = self.sample(stage, agent, tasks, self.evaluation, range(made, look))
            trajectories: Mapping[SampleKey, Trajectory] = ChainMap(more.trajectories, pool.trajectories)  # type: ignore[arg-type]
            verdicts: Mapping[SampleKey, Verdict] = ChainMap(more.verdicts, pool.verdicts)  # type: ignore[arg-type]
            pool = Pool(pool.tasks, (*pool.wanted, *more.wanted), trajectories, verdicts)
            made = look
        evaluation = evaluate(pool, tasks, agent.name, split, self.evaluation, self.seed)
        write_json(self.run.folder / name / ("evaluation.json" if split == "dev" else f"evaluation-{split}.json"), evaluation)
        return evaluation

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
            ways = [] if actions is None else [("expert", 0, actions)]
        elif recorded.replay:
            asked = sum(message.role == "assistant" for message in task.prompt)
            ways = [(theirs.agent, theirs.key.index, _turns(theirs)[asked:]) for theirs in recorded.of(task)]
        else:
            yield from recorded.of(task)
            return
        for agent, index, turns in ways:
            try:
                yield loop.run(replay(task, environment, turns, agent=agent, index=index))
            except EnvironmentFault as fault:
                key = SampleKey(model=agent, task=task.key, environment=environment.name, sampling=RECORDED, index=index)
                yield broken(key, agent, task, fault)

    # ------------------------------------------------------------ training

    def train(
        self, name: str, start: Model, rows: Sequence[Row], selection: Selection, *, token_budget: int | None = None
    ) -> tuple[Model, TrainingReport]:
        """Train ``start`` on ``rows``: the stage ``name``. ``token_budget`` counts trained tokens, for a control."""
        if not rows:
            raise Refused(f"{name}: nothing was selected, so there is nothing to train on; see {name}/selection.json for the reasons")
        # Where to start is said by ``start``, the model, so the setting of that name changes nothing from here on.
        settings = replace(self.training, seed=self.training.seed + self.seed, start="base")
        inputs = {"model": start.fingerprint, "rows": digest(rows)}
        stage = self.run.stage(name, inputs, [settings, token_budget])
        folder = stage.folder
        if stage.done():
            return load_model(str(folder / "model")), stage.read("training.json", TrainingReport)
        self.meter.check()
        stage.begin()
        write_json(folder / "selection.json", replace(selection, banners=tuple(dict.fromkeys((*self.banners, *selection.banners)))))
        write_rows(folder, rows)
        self._rest()
        train, short = trainer_for(start), name.removeprefix("rungs/")
        model, report = train(
            rows,
            start,
            settings,
            folder / "model",
            token_budget=token_budget,
            on_progress=heard(self.listen, f"{short}/training"),
        )
        model = inherit(model, start, self.banners)
        write_blob(folder / "training.json", report)
        outputs = [folder / "selection.json", folder / "training_set" / "rows.jsonl", folder / "training.json"]
        # Weights are named by their fingerprint in whatever is made from them; dotfiles are caches and may change.
        outputs += [path for path in sorted((folder / "model").glob("*.json")) if not path.name.startswith(".")]
        stage.commit(outputs, trained_tokens=report.trained_tokens, inside_s=report.seconds)
        return model, report


def inherit(model: Model, start: Model, banners: Sequence[str]) -> Model:
    """``model`` with the banners of the model it was trained from, and ``banners``, in its lineage."""
    if not (said := tuple(dict.fromkeys((*start.lineage.banners, *banners)))):
        return model
    lineage = replace(model.lineage, banners=said)
    save_lineage(model.path, lineage, model.name)
    return replace(model, lineage=lineage)


def write_rows(folder: Path, rows: Sequence[Row]) -> None:
    """The training set, one row a line, beside the selection it comes from."""
    write_atomic(folder / "training_set" / "rows.jsonl", b"".join(msgspec.json.encode(row) + b"\n" for row in rows))


def _turns(trajectory: Trajectory) -> tuple[Message, ...]:
    return tuple(message for message in trajectory.messages if message.role == "assistant")


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

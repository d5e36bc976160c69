"""The bench that every method works at: sample, judge, train and evaluate, each as a stage that is done once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
from msgspec.structs import replace

from sharpen import loop
from sharpen.agents.choose import make_agent
from sharpen.agents.harness import Harness
from sharpen.agents.recorded import replay
from sharpen.errors import Refused
from sharpen.evaluation import EvaluationSettings, evaluate
from sharpen.models import load_model
from sharpen.policies.base import Conversation, Lasting, Policy, Sampling, Turn
from sharpen.policies.choose import Auto, Engine, open_policy
from sharpen.records import Evaluation, Message, Model, Record, Row, Selection, Task, TrainingReport, Trajectory, Verdict
from sharpen.sampling import Listener, Pool, Progress, SamplingSettings, fill, silent
from sharpen.selection import SelectionSettings
from sharpen.store.files import digest, write_atomic, write_blob, write_json
from sharpen.store.run import Run
from sharpen.store.segments import Segments
from sharpen.tasks.base import TaskSet
from sharpen.training.base import Progress as TrainingProgress
from sharpen.training.base import Training
from sharpen.training.load import trainer_for
from sharpen.verifiers.base import Verifier
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
    listen: Listener = silent
    say: Callable[[str], None] = lambda line: None
    _policy: tuple[str, Policy] | None = None
    _engine: str = ""

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __enter__(self) -> Self:
        return self

    @property
    def verifier(self) -> Verifier:
        """The task set's verifier. Refused where it has none: nothing could be measured, so nothing could be kept."""
        return required(self.tasks)

    def close(self) -> None:
        """Give the policy's memory back."""
        if self._policy is not None:
            loop.run(self._policy[1].close())
            self._policy = None

    def _rest(self) -> None:
        """Give the policy's memory back for a while."""
        if self._policy is not None and isinstance(self._policy[1], Lasting):
            loop.run(self._policy[1].rest())
        else:
            self.close()

    def _turn_to(self, model: Model) -> None:
        """Whatever is open is open for ``model`` from here on, or closed."""
        if self._policy is None or self._policy[0] == model.fingerprint:
            return
        if isinstance(policy := self._policy[1], Lasting):
            policy.take_up(model)
            self._policy = (model.fingerprint, policy)
        else:
            self.close()

    def _open(self, model: Model) -> Policy:
        if self._policy is None:
            policy, why = open_policy(model, self.engine, self.run.folder)
            self._policy = (model.fingerprint, policy)
            if why != self._engine:
                self._engine = why
                self.run.note({"event": "engine", "engine": why})
                self.say(f"engine {why}")
        return self._policy[1]

    # ------------------------------------------------------------ sampling

    def sample(
        self,
        name: str,
        agent: Prompted,
        tasks: Sequence[Task],
        settings: SamplingSettings | EvaluationSettings,
        indices: range | None = None,
        of: TaskSet | None = None,
    ) -> Pool:
        """Judged tries of each task (``indices``, default the settings' n): the stage ``name``. Tries already on disk are not made again.

        ``of`` is the set that the tasks belong to, where it is not the run's own.
        """
        of = of or self.tasks
        verifier = required(of)
        indices = range(settings.n) if indices is None else indices
        turn = settings.turn(self.seed)
        inputs = {"agent": agent.fingerprint, "tasks": digest([task.key for task in tasks]), "environment": of.environment.name}
        stage = self.run.stage(name, inputs, [turn, indices.start, indices.stop, verifier.name, *((self.harness,) if self.harness else ())])
        trajectories = Segments(stage.folder / "trajectories", Trajectory)
        verdicts = Segments(stage.folder / "verdicts", Verdict)
        policy = _Lazy(agent.name, lambda: self._open(agent.model))
        player = make_agent(agent.name, agent.model, policy, of.environment, turn, self.harness, agent.shots)
        if stage.done():
            wanted = tuple(player.key(task, index) for index in indices for task in tasks)
            return Pool({task.key: task for task in tasks}, wanted, trajectories.records, verdicts.records)
        stage.begin()
        self._turn_to(agent.model)
        started = time.monotonic()
        try:
            pool = loop.run(
                fill(
                    player,
                    tasks,
                    indices,
                    verifier,
                    trajectories,
                    verdicts,
                    concurrency=self.sampling.concurrency,
                    verifier_timeout_s=self.sampling.verifier_timeout_s,
                    episode_timeout_s=self.sampling.episode_timeout_s,
                    what=name.removeprefix("rungs/"),
                    listen=self.listen,
                )
            )
        finally:
            trajectories.close()
            verdicts.close()
        sealed = [trajectories.seal(pool.wanted), verdicts.seal(pool.verdicts)]
        stage.commit(sealed, sampled_tokens=pool.sampled_tokens, seconds=time.monotonic() - started, inside_s=policy.busy_s)
        return pool

    def evaluate(self, name: str, agent: Prompted, split: str, n: int | None = None) -> Evaluation:
        """pass@k of ``agent`` on a split with ``n`` tries a task (default: the first look). A later look adds tries to the earlier ones."""
        tasks = self.tasks.split(split).tasks
        n = self.evaluation.n if n is None else n
        pool = Pool({task.key: task for task in tasks}, ())
        made = 0
        for look in [look for look in self.evaluation.looks if look <= n]:
            stage = f"{name}/{split}" if made == 0 else f"{name}/{split}-{look}"
            more = self.sample(stage, agent, tasks, self.evaluation, range(made, look))
            pool = Pool(
                pool.tasks, (*pool.wanted, *more.wanted), {**pool.trajectories, **more.trajectories}, {**pool.verdicts, **more.verdicts}
            )
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
        """The expert's solutions of the demo tasks, replayed in the environment and judged like any try."""
        tasks = self.tasks.split("demo").tasks
        environment, verifier = self.tasks.environment, self.verifier
        inputs = {"tasks": digest([task.key for task in tasks]), "environment": environment.name}
        stage = self.run.stage("demonstrations", inputs, verifier.name)
        trajectories = Segments(stage.folder / "trajectories", Trajectory)
        verdicts = Segments(stage.folder / "verdicts", Verdict)
        if not stage.done():
            stage.begin()
            for number, task in enumerate(tasks, 1):
                actions = environment.expert(task)
                if actions is None:
                    continue
                trajectory = loop.run(replay(task, environment, actions))
                if trajectory.key not in trajectories.records:
                    trajectories.append(trajectory)
                if trajectory.key not in verdicts.records:
                    verdicts.append(judge(task, trajectory, verifier, self.sampling.verifier_timeout_s))
                self.listen(Progress(what="demonstrations", done=number, total=len(tasks)))
            stage.commit([trajectories.seal(list(trajectories.records)), verdicts.seal(list(verdicts.records))])
        keys = tuple(trajectories.records)
        return Pool({task.key: task for task in tasks}, keys, trajectories.records, verdicts.records)

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
        stage.begin()
        write_json(folder / "selection.json", selection)
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
        write_blob(folder / "training.json", report)
        outputs = [folder / "selection.json", folder / "training_set" / "rows.jsonl", folder / "training.json"]
        # Weights are named by their fingerprint in whatever is made from them; dotfiles are caches and may change.
        outputs += [path for path in sorted((folder / "model").glob("*.json")) if not path.name.startswith(".")]
        stage.commit(outputs, trained_tokens=report.trained_tokens, inside_s=report.seconds)
        return model, report


def write_rows(folder: Path, rows: Sequence[Row]) -> None:
    """The training set, one row a line, beside the selection it comes from."""
    write_atomic(folder / "training_set" / "rows.jsonl", b"".join(msgspec.json.encode(row) + b"\n" for row in rows))


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


class _Lazy:
    """A policy that is opened by its first turn: a stage whose tries are all on disk needs no engine. Counts the seconds with work in it."""

    gives_token_ids = True

    def __init__(self, name: str, open_: Callable[[], Policy]) -> None:
        self.name = name
        self.busy_s = 0.0
        self._open = open_
        self._inside = 0
        self._since = 0.0

    async def complete(self, conversation: Conversation, sampling: Sampling) -> Turn:
        policy = self._open()
        if self._inside == 0:
            self._since = time.monotonic()
        self._inside += 1
        try:
            return await policy.complete(conversation, sampling)
        finally:
            self._inside -= 1
            if self._inside == 0:
                self.busy_s += time.monotonic() - self._since

    async def close(self) -> None:
        """The bench closes what was opened."""


def shots_of(trajectories: Sequence[Trajectory]) -> tuple[Message, ...]:
    """Whole trajectories as few-shot examples: their messages without the system message, up to the last answer."""
    shots: list[Message] = []
    for trajectory in trajectories:
        messages = [message for message in trajectory.messages if message.role != "system"]
        while messages and messages[-1].role != "assistant":
            messages.pop()
        shots += messages
    return tuple(shots)

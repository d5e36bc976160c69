"""What the emitted ``train_grpo.py`` is made of: a run's tasks, environment and verifier in the forms that TRL's GRPOTrainer takes.

A try is played and judged here as it was in the run: the verifier's pass is 1, its fail is 0, and an error is None, which TRL leaves out of the
group. Which form (TRL 1.16, ``trl/trainer/grpo_trainer.py``):

- ``reward``: one prompt, one answer. TRL samples, and ``reward_funcs`` asks the verifier.
- ``environment_factory``: tools that are Python functions, or objects with methods. TRL calls them and reads the calls.
- ``rollout_func``: everything else, and everything where it is asked for. The episode is sharpen's own (its prompts, limits and wording of errors),
  sampled by TRL's generation, and what the environment says is masked (``env_mask``).

What it does not do: LoRA, checkpoints, evaluation while it trains. Measure what comes of it with ``sharpen eval --model``.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import queue
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from sharpen import loop
from sharpen.agents.base import PolicyAgent, with_shots
from sharpen.chat.masks import rows
from sharpen.chat.template import ChatTemplate
from sharpen.environments.object import Object
from sharpen.environments.single_turn import SingleTurn
from sharpen.environments.tools import Functions, ToolEpisode, opening
from sharpen.errors import EnvironmentFault, ModelError, PolicyError, Refused, SettingsError, TooManyErrors
from sharpen.handoff.folder import Counted, Given, given, templates
from sharpen.models import save_pretrained
from sharpen.plugins import load
from sharpen.policies.base import Conversation, Sampling, Turn
from sharpen.policies.futures import settle
from sharpen.policies.meter import SPENT, Meter
from sharpen.policies.tokens import prompt_of, turn_of
from sharpen.records import Interval, Message, Record, SampleKey, Stop, Task, ToolCall, Trajectory, Verdict
from sharpen.sampling import broken
from sharpen.stats import cluster_bootstrap_mean
from sharpen.store.files import digest, write_atomic, write_json
from sharpen.verifiers.base import charge
from sharpen.verifiers.run import judge_many

Form = Literal["reward", "environment_factory", "rollout_func"]
Pay = Literal["pass", "score"]
ANY = 1 << 40  # tokens: no limit


class Point(Record, frozen=True, kw_only=True):
    """One step of the reward curve: ``tries`` of it that were judged, their mean reward by family, and how many ``groups`` had two rewards."""

    step: int
    reward: Interval
    tries: int
    groups: int
    mixed: int


@dataclass
class Scores:
    """Every try's reward as it is given, and the curve of their means: ``episodes.jsonl``, ``curve.json`` and ``curve.svg`` in ``out``."""

    out: Path
    given: list[tuple[int, str, str, float | None]] = field(default_factory=list)

    def add(self, step: int, tried: Sequence[tuple[Task, float | None]], *, write: bool) -> None:
        """The rewards of the tries that update number ``step``, from 0, learns from."""
        self.given += [(step + 1, task.key, task.family, reward) for task, reward in tried]
        if write:
            lines = ({"step": s, "task": task, "family": family, "reward": reward} for s, task, family, reward in self.given)
            write_atomic(self.out / "episodes.jsonl", b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
            write_json(self.out / "curve.json", self.points)
            write_atomic(self.out / "curve.svg", draw(self.points).encode())

    @property
    def points(self) -> list[Point]:
        by_step: dict[int, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        by_task: dict[int, dict[str, set[float]]] = defaultdict(lambda: defaultdict(set))
        for step, task, family, reward in self.given:
            if reward is not None:
                by_step[step][family].append(reward)
                by_task[step][task].add(reward)
        return [
            Point(
                step=step,
                reward=cluster_bootstrap_mean(families, span=_span(families)),
                tries=sum(map(len, families.values())),
                groups=len(by_task[step]),
                mixed=sum(len(rewards) > 1 for rewards in by_task[step].values()),
            )
            for step, families in sorted(by_step.items())
        ]


@dataclass
class Parts:
    """Everything that GRPOTrainer is given, and what is needed afterwards."""

    model: Any
    tokenizer: Any
    dataset: Any
    reward: Callable[..., list[float | None]]
    form: Form
    scores: Scores
    rollout_func: Callable[..., dict[str, Any]] | None = None
    environment_factory: Callable[[], Any] | None = None
    max_tokens: int = 256
    """What one turn may sample."""
    most_tokens: int = 256
    """What TRL lets a try hold after its prompt. Where it calls tools that is all turns and results, and a result that does not fit ends the try."""
    turns: int | None = None
    """How often TRL may call tools and go on."""
    temperature: float = 1.0
    _played: _Played | None = None

    def save(self, trainer: Any) -> Path:
        """Save the trained weights to ``out/model``, with the lineage of what they were trained from, and what TRL logged to ``out/log.json``."""
        assert self._played is not None
        write_json(self.scores.out / "log.json", trainer.state.log_history)
        start = self._played.prompted.model
        settings = {"method": "grpo", "steps": trainer.state.global_step, "learning_rate": trainer.args.learning_rate}
        lineage = replace(
            start.lineage, parent=start.fingerprint, training_set=digest([line.task for line in self._played.lines]), settings=settings
        )
        path = self.scores.out / "model"
        save_pretrained(trainer.accelerator.unwrap_model(trainer.model), self.tokenizer, path, lineage, f"{start.name}-grpo")
        return path


def parts(place: Path, *, kinds: Sequence[str] = ("mixed",), pay: Pay = "pass", form: Form | None = None, out: Path | None = None) -> Parts:
    """The hand-over in ``place``, ready for GRPOTrainer, on its tasks of some ``kinds``.

    Refused where there is no such task. ModelError where the model cannot be trained here. SettingsError where the environment has not the ``form``.
    """
    out = (out or place / "out").resolve()  # before the working directory changes
    hand = given(place)
    lines = hand.lines(kinds)
    if any(line.split != "train" for line in lines):
        raise Refused("dev decides which model is kept, so its tasks must not train; choose mixed, never-solved, unmeasured or all")
    if not lines:
        why = (
            "so no try is better than another, and GRPO would change nothing"
            if tuple(kinds) == ("mixed",)
            else "so there is nothing to train on"
        )
        raise Refused(
            f"{hand.place} has no {', '.join(kinds)} tasks, {why}; choose others with --tasks, or read {hand.place / 'README.md'}"
        )
    prompted = hand.prompted
    if prompted.model.kind != "pretrained":
        raise ModelError(
            f"{prompted.model.name} is a {prompted.model.kind} model, whose weights cannot be trained here; hand over a local model folder"
        )
    template = ChatTemplate.load(prompted.model.path)
    played = _Played(hand, lines, template, pay, Meter(hand.settings.spending, out / SPENT))
    chosen = form or played.form
    scores = Scores(out)

    def reward(
        completions: list[Any], completion_ids: list[list[int]], task: list[str], trainer_state: Any, **rest: Any
    ) -> list[float | None]:
        """What TRL calls, with one item for each try. A rollout has judged already."""
        tasks = [played.tasks[key] for key in task]
        if (judged := rest.get("verdict")) is not None:
            verdicts = [msgspec.convert(one, Verdict) for one in judged]
        else:
            environments = rest.get("environments") or [None] * len(tasks)
            made = zip(tasks, completions, completion_ids, environments, strict=True)
            verdicts = played.judged(tasks, [played.as_trajectory(*one) for one in made])
        rewards = _rewards(verdicts, pay, first=not scores.given)
        scores.add(trainer_state.global_step, list(zip(tasks, rewards, strict=True)), write=trainer_state.is_world_process_zero)
        return rewards

    import datasets
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(prompted.model.path, dtype=torch.float32)
    model.generation_config = transformers.GenerationConfig(eos_token_id=sorted(template.end_ids))  # type: ignore[no-untyped-call]
    sampling = hand.settings.sampling
    made = Parts(
        model=model,
        tokenizer=template.tokenizer,
        dataset=datasets.Dataset.from_list([{"prompt": played.prompt(line), "task": line.task} for line in lines]),
        reward=reward,
        form=chosen,
        scores=scores,
        max_tokens=sampling.max_tokens,
        most_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        _played=played,
    )
    template.tokenizer.padding_side = "left"
    if chosen == "rollout_func":
        made.rollout_func = played.rollout
    elif chosen == "environment_factory":
        made.environment_factory = played.factory()
        made.turns = hand.tasks.environment.max_turns - 1
        made.most_tokens = model.config.max_position_embeddings  # so that a long result, which nobody samples, is no overflow
        if getattr(template.tokenizer, "response_template", None) is None:  # else TRL knows only the templates of its list
            template.tokenizer.response_template = {"defaults": {"role": "assistant"}, **(template.calls or {})}
    elif not isinstance(hand.tasks.environment, SingleTurn):
        raise SettingsError(f"the form reward is for one prompt and one answer; {hand.tasks.environment.name} takes rollout_func")
    return made


def _rewards(verdicts: Sequence[Verdict], pay: Pay, *, first: bool) -> list[float | None]:
    """The reward of each try. TooManyErrors where none of the ``first`` tries can be judged: no later one would be."""
    rewards = [_reward(one, pay) for one in verdicts]
    if first and all(one is None for one in rewards):
        raise TooManyErrors(
            f"none of the first {len(rewards)} tries could be judged, so there is nothing to learn from: {verdicts[0].reason}"
        )
    return rewards


def _reward(verdict: Verdict, pay: Pay) -> float | None:
    """1 for a pass, 0 for a fail, None for an error, which says nothing of the policy. ``score``: the verifier's score, where it gives one."""
    if verdict.outcome == "error":
        return None
    return verdict.score if pay == "score" and verdict.score is not None else float(verdict.outcome == "pass")


@dataclass
class _Played:
    """The tasks as they are played: what they open with, and what became of a try."""

    hand: Given
    lines: list[Counted]
    template: ChatTemplate
    pay: Pay
    meter: Meter = field(default_factory=Meter)
    """What a verifier asks policies and servers is counted in it, and kept under its caps."""

    def __post_init__(self) -> None:
        taskset = self.hand.tasks
        assert taskset.verifier is not None
        self.verifier, self.environment = taskset.verifier, taskset.environment
        self.paid = charge(self.verifier, self.meter, "grpo")
        self.timeout_s = self.hand.settings.sampling.verifier_timeout_s
        self.prompted = self.hand.prompted
        self.tasks = {task.key: task for task in taskset.tasks}
        if gone := [line.task for line in self.lines if line.task not in self.tasks]:
            raise SettingsError(
                f"the run's tasks have no {gone[0]!r} any more ({len(gone)} are gone); give sharpen handoff {self.hand.place.parent} again"
            )

        self.openings = {line.task: self._opening(line) for line in self.lines}

    def _opening(self, line: Counted) -> tuple[Message, ...]:
        """How a task opens, but for what its tools say first: TRL puts that at the end of its last message."""
        source, task = self._source, self.tasks[line.task]
        if not isinstance(source, Functions | Object):
            return self.hand.opening(line) or (Message(role="user", content=line.task),)
        last = () if task.prompt and task.prompt[-1].role == "user" else (Message(role="user", content=""),)
        return with_shots(opening(replace(task, prompt=(*task.prompt, *last)), source.system, ""), self.prompted.shots)

    @property
    def form(self) -> Form:
        """The form that fits the environment."""
        if isinstance(self.environment, SingleTurn):
            return "reward"
        shots_call = any(message.tool_calls for message in self.prompted.shots)
        return "environment_factory" if self._tools and all(map(_free, self._tools)) and not shots_call else "rollout_func"

    @property
    def _source(self) -> Any:
        return getattr(self.hand.settings.tasks, "environment", None)

    def prompt(self, line: Counted) -> list[dict[str, str]]:
        """The prompt as TRL takes it. ``task`` in its messages is how a rollout, which is given prompts alone, knows the task."""
        return [{"role": message.role, "content": message.content, "task": line.task} for message in self.openings[line.task]]

    def judged(self, tasks: Sequence[Task], tries: Sequence[Trajectory]) -> list[Verdict]:
        """Stopped where a cap is reached."""
        try:
            return [one for _, one in judge_many(zip(tasks, tries, strict=True), self.verifier, self.timeout_s)]
        finally:
            if self.paid is not None:
                self.meter.write()

    # ------------------------------------------------------------ tries that TRL makes

    def as_trajectory(self, task: Task, completion: Sequence[dict[str, Any]], ids: Sequence[int], environment: Any) -> Trajectory:
        """What TRL sampled, as the verifier is to see it. A turn that was cut, or calls that had no turn left, are the policy's failure."""
        messages = tuple(_message(one) for one in completion)
        last = messages[-1] if messages else None
        ended = bool(ids) and ids[-1] in self.template.end_ids
        stop: Stop = "token_limit" if not ended else "turn_limit" if last is None or last.role == "tool" or last.tool_calls else "done"
        opened, outcome, error = self.openings[task.key], {}, ""
        if environment is not None:
            opened = (*opened[:-1], replace(opened[-1], content=f"{opened[-1].content}{environment._said}"))
            outcome, error = environment._came_of_it()
        elif last is not None:  # TRL decodes without special tokens, and strips
            messages = (*messages[:-1], replace(last, content=self.template.answer(ids)))
        return Trajectory(
            key=self._key(task, 0),
            agent=self.prompted.name,
            messages=(*opened, *messages),
            actions=tuple(message.content.strip() for message in messages if message.role == "assistant"),
            stop="error" if error else stop,
            error=error or None,
            outcome=outcome,
        )

    def _key(self, task: Task, index: int) -> SampleKey:
        return SampleKey(
            model=self.prompted.model.fingerprint, task=task.key, environment=self.environment.name, sampling="grpo", index=index
        )

    # ------------------------------------------------------------ tools that TRL calls

    def factory(self) -> Callable[[], type[_Tools]]:
        """A class for ``environment_factory``: its public methods are the tools, as the run calls them.

        It has no ``get_reward``, since TRL would add that to what the verifier says. SettingsError where the tools are no Python functions, or
        TRL would take one of them for something else.
        """
        if not (tools := self._tools):
            raise SettingsError(f"the form environment_factory is for tools that are Python; {self.environment.name} takes rollout_func")
        if taken := sorted(name for name in tools if not _free(name)):
            raise SettingsError(f"TRL does not show the model a tool called {taken[0]}; rename it, or give --form rollout_func")
        members: dict[str, Any] = {name: _method(name, *described) for name, described in tools.items()}
        return type("Tools", (_Tools,), {**members, "_played": self})

    @cached_property
    def _tools(self) -> dict[str, tuple[Callable[..., Any], bool]]:
        """The tools that are Python, by name, and whether they are methods."""
        match self._source:
            case Functions(functions=functions):
                return {tool.__name__: (tool, False) for tool in (load(spec, "tool") for spec in functions)}
            case Object(factory=factory):
                methods = inspect.getmembers(load(factory, "environment"), inspect.isfunction)
                return {
                    name: (method, True)
                    for name, method in methods
                    if not name.startswith("_") and name not in ("reset", "get_reward", "close")
                }
        return {}

    # ------------------------------------------------------------ episodes of our own

    def rollout(self, prompts: Sequence[list[dict[str, str]]], trainer: Any) -> dict[str, Any]:
        """TRL's ``rollout_func``: one episode for each prompt, all at once. Sampled tokens are the policy's, all others are masked."""
        tasks = [self.tasks[prompt[-1]["task"]] for prompt in prompts]
        sampling = Sampling(temperature=trainer.temperature, top_p=trainer.top_p, max_tokens=trainer.max_completion_length)
        engine = _Engine(self.template, sampling, trainer.model.config.max_position_embeddings, len(tasks))
        seats = [_Seat(engine) for _ in tasks]
        playing = loop.submit(self._play(tasks, seats, sampling))
        playing.add_done_callback(lambda _: engine.batches.put([]))
        try:
            while batch := engine.batches.get():  # here, since a trainer may generate in its own thread only
                ids, logprobs = trainer._generate_single_turn([job.prompt for job in batch], None, {}, num_generations=1)
                for at, job in enumerate(batch):
                    job.seat.logprobs += logprobs[at] if logprobs is not None else []
                    settle(job.future, list(ids[at]))
        finally:
            playing.cancel()  # which does nothing to what has ended
        tries = playing.result()
        verdicts = self.judged(tasks, tries)
        found: dict[str, Any] = defaultdict(list)
        for one, seat in zip(tries, seats, strict=True):
            prompt, completion, mask = self._tokens(one)
            found["prompt_ids"].append(prompt)
            found["completion_ids"].append(completion)
            found["env_mask"].append(mask)
            left = iter(seat.logprobs)
            found["logprobs"].append([next(left, 0.0) if sampled else 0.0 for sampled in mask])
        if not any(seat.logprobs for seat in seats):
            found["logprobs"] = None  # transformers gives none, and TRL computes them itself
        return {**found, "verdict": [msgspec.to_builtins(one) for one in verdicts]}

    async def _play(self, tasks: Sequence[Task], seats: Sequence[_Seat], sampling: Sampling) -> list[Trajectory]:
        model, shots = self.prompted.model, self.prompted.shots

        async def one(index: int, task: Task, seat: _Seat) -> Trajectory:
            agent = PolicyAgent(model.name, seat, model.fingerprint, self.environment, sampling, shots)
            try:
                return await asyncio.wait_for(agent.run(task, index), self.hand.settings.sampling.episode_timeout_s)
            except (PolicyError, EnvironmentFault, TimeoutError) as fault:
                error = fault if isinstance(fault, PolicyError | EnvironmentFault) else EnvironmentFault("the episode took too long")
                return broken(self._key(task, index), model.name, task, error)
            finally:
                seat.engine.leave()

        return list(await asyncio.gather(*(one(index, *pair) for index, pair in enumerate(zip(tasks, seats, strict=True)))))

    def _tokens(self, trajectory: Trajectory) -> tuple[list[int], list[int], list[int]]:
        """(prompt, completion, mask) of an episode, the mask 1 where the policy sampled. SettingsError where its turns are no one sequence."""
        if not trajectory.turns:  # nothing was sampled: one masked token, since TRL needs one
            end = min(self.template.end_ids)
            return [end], [end], [0]
        made, why = rows(trajectory, self.template, "grpo", ANY)
        if len(made) != 1:
            raise SettingsError(
                f"the chat template of {self.prompted.model.name} rewrites what was said before ({why or f'{len(made)} sequences'}), and TRL takes one "
                "sequence an episode; set a template that keeps it, such as template: hermes"
            )
        start = len(trajectory.turns[0].prompt or ())
        ids, labels = made[0].input_ids, made[0].labels
        return list(ids[:start]), list(ids[start:]), [int(label != -100) for label in labels[start:]]


@dataclass
class _Job:
    prompt: list[int]
    future: Any
    seat: _Seat


class _Engine:
    """Gathers what the episodes ask for: once every episode that is not over waits for its turn, they are one batch for the trainer's thread."""

    def __init__(self, template: ChatTemplate, sampling: Sampling, context: int, episodes: int) -> None:
        self.template, self.sampling, self.context, self.playing = template, sampling, context, episodes
        self.waiting: list[_Job] = []
        self.batches: queue.SimpleQueue[list[_Job]] = queue.SimpleQueue()

    def ask(self, job: _Job) -> None:
        self.waiting.append(job)
        self._go()

    def leave(self) -> None:
        """One episode less."""
        self.playing -= 1
        self._go()

    def _go(self) -> None:
        self.waiting = [job for job in self.waiting if not job.future.cancelled()]
        if self.waiting and len(self.waiting) >= self.playing:
            self.batches.put(self.waiting)
            self.waiting = []


class _Seat:
    """The policy of one episode. ``logprobs`` are those of every token that it sampled, where the engine gives them."""

    name = "grpo"
    gives_token_ids = True

    def __init__(self, engine: _Engine) -> None:
        self.engine = engine
        self.logprobs: list[float] = []

    async def complete(self, conversation: Conversation, sampling: Sampling) -> Turn:
        prompt = prompt_of(self.engine.template, conversation, sampling, self.engine.context)
        job = _Job(prompt, asyncio.get_running_loop().create_future(), self)
        self.engine.ask(job)
        return turn_of(self.engine.template, conversation, prompt, await job.future)

    async def close(self) -> None:
        """Nothing to give back: the weights are the trainer's."""


class _Tools:
    """The episode of one try, as TRL wants it: ``reset`` begins it, and the tools of a class made from this are methods (``_Played.factory``).

    What breaks in it is kept: that try is then an error, and the others go on.
    """

    _played: _Played
    _episode: ToolEpisode | None = None
    _said = _broken = ""

    def reset(self, *, task: str, **_: Any) -> str | None:
        self._leave()
        self._said = self._broken = ""
        environment = self._played.environment
        try:
            self._episode, _opened = loop.run(environment.start(self._played.tasks[task]))  # type: ignore[assignment]
        except EnvironmentFault as fault:
            self._broken = str(fault)
            return None
        self._said = self._episode.said  # type: ignore[union-attr]
        return self._said or None

    def _ask(self, name: str, arguments: dict[str, Any]) -> str:
        if self._episode is None:
            raise EnvironmentFault(self._broken)
        try:
            return loop.run(self._episode.call(ToolCall(name=name, arguments=json.dumps(arguments))))
        except EnvironmentFault as fault:
            self._broken = str(fault)
            raise

    def _came_of_it(self) -> tuple[dict[str, Any], str]:
        """What the environment says of the episode, which is then over, and what broke in it."""
        outcome: dict[str, Any] = {}
        try:
            if self._episode is not None and not self._broken:
                outcome = loop.run(self._episode.outcome())
        except Exception as fault:  # whatever a user's get_reward raises
            self._broken = f"{type(fault).__name__}: {fault}"
        self._leave()
        return outcome, self._broken

    def _leave(self) -> None:
        episode, self._episode = self._episode, None
        try:
            if episode is not None:
                loop.run(episode.close())
        except EnvironmentFault as fault:
            self._broken = str(fault)


def _free(name: str) -> bool:
    """Whether TRL takes a method of this name for a tool."""
    return not name.startswith("_") and name not in ("reset", "get_reward")


def _method(name: str, tool: Callable[..., Any], bound: bool) -> Callable[..., Any]:
    """A tool as a method with its signature and docstring, from which TRL makes the schema."""

    @functools.wraps(tool)
    def call(self: _Tools, **arguments: Any) -> str:
        return self._ask(name, arguments)

    signature = inspect.signature(tool)
    this = [] if bound else [inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)]
    call.__signature__ = signature.replace(parameters=[*this, *signature.parameters.values()])  # type: ignore[attr-defined]
    return call


def _message(plain: dict[str, Any]) -> Message:
    """A message of TRL's, whose tool calls hold their arguments as mappings; what a response template of ours reads has no role."""
    calls = tuple(
        ToolCall(name=call["function"]["name"], arguments=json.dumps(call["function"]["arguments"]))
        for call in plain.get("tool_calls") or ()
    )
    content = plain.get("content")
    return Message(
        role=plain.get("role", "assistant"), content=content if isinstance(content, str) else "", tool_calls=calls, name=plain.get("name")
    )


# ---------------------------------------------------------------- the curve


def _span(families: dict[str, list[float]]) -> tuple[float, float]:
    """The range of the rewards: 0 to 1, or wider where scores are."""
    rewards = [reward for given in families.values() for reward in given]
    return min(0.0, *rewards), max(1.0, *rewards)


def draw(points: Sequence[Point]) -> str:
    """The curve as one SVG."""
    width, height, low = 640.0, 240.0, min([0.0, *(point.reward.low for point in points if point.reward.low == point.reward.low)])
    high = max([1.0, *(point.reward.value for point in points)])
    last = max((point.step for point in points), default=1)

    def place(point: Point, value: float) -> tuple[float, float]:
        return round(width * point.step / last, 1), round(height * (high - min(max(value, low), high)) / (high - low), 1)

    marks = [
        {
            "at": place(point, point.reward.value),
            "low": place(point, point.reward.low)[1] if point.reward.low == point.reward.low else None,
            "high": place(point, point.reward.high)[1] if point.reward.high == point.reward.high else None,
            "says": f"step {point.step}: {point.reward.value:.3f} over {point.tries} tries, {point.mixed} of {point.groups} tasks mixed",
        }
        for point in points
    ]
    return templates().get_template("curve.svg.j2").render(width=width, height=height, marks=marks, last=last, low=low, high=high)

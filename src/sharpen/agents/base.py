"""An agent plays a task to its end. The plain one here is a policy in its environment: the rollout loop."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

from msgspec.structs import replace

from sharpen.environments.base import Environment
from sharpen.errors import ContentFiltered, ContextOverflow
from sharpen.policies.base import Conversation, Policy, Sampling, turn_seed
from sharpen.records import Cost, Maker, Message, SampleKey, Stop, Task, Trajectory, TurnTokens
from sharpen.store.files import digest


class Agent(Protocol):
    """Plays tasks. Best-of-N, ensembles, outside harnesses and recorded trajectories are agents too."""

    @property
    def name(self) -> str: ...

    def key(self, task: Task, index: int) -> SampleKey:
        """The identity of one try, known before it is made."""
        ...

    async def run(self, task: Task, index: int) -> Trajectory:
        """One try. PolicyError or EnvironmentFault where infrastructure broke; the policy's own failures are trajectories."""
        ...


@dataclass(frozen=True)
class PolicyAgent:
    """A policy in an environment, with ``shots`` (few-shot examples) put between the system message and the task.

    ``fingerprint`` is the model's, ``maker`` says whose words they are. Each try has a seed of its own, from the sampling seed, the task and the index.
    ``hints`` are shown behind the task that they are for, by its key; the trajectory is as if they had not been. A try with one has a key of its own.
    """

    name: str
    policy: Policy
    fingerprint: str
    environment: Environment
    sampling: Sampling
    shots: tuple[Message, ...] = ()
    maker: Maker | None = None
    hints: Mapping[str, str] = field(default_factory=dict)

    def key(self, task: Task, index: int) -> SampleKey:
        settings = self._digest(self.hints[task.key]) if task.key in self.hints else self._settings
        return SampleKey(model=self.fingerprint, task=task.key, environment=self.environment.name, sampling=settings, index=index)

    @cached_property
    def _settings(self) -> str:
        return self._digest()

    def _digest(self, *hint: str) -> str:
        return digest([self.sampling, self.shots, self.environment.max_turns, *hint])

    async def run(self, task: Task, index: int) -> Trajectory:
        started = time.monotonic()
        key = self.key(task, index)
        sampling = replace(self.sampling, seed=turn_seed(self.sampling.seed, (task.key, index)))
        episode, opening = await self.environment.start(task)
        messages = with_shots(opening, self.shots)
        hint, asked = self.hints.get(task.key), len(messages)
        turns: list[TurnTokens] = []
        actions: list[str] = []
        outcome: dict[str, object] = {}
        prompt_tokens = sampled_tokens = 0
        stop: Stop = "turn_limit"
        try:
            for _ in range(self.environment.max_turns):
                try:
                    shown = messages if hint is None else (*with_hint(messages[:asked], hint), *messages[asked:])
                    turn = await self.policy.complete(Conversation(messages=shown, turns=tuple(turns), tools=episode.tools), sampling)
                except (ContextOverflow, ContentFiltered) as error:
                    stop = "overflow" if isinstance(error, ContextOverflow) else "filtered"
                    break
                messages = (*messages, turn.message)
                turns.append(turn.tokens)
                prompt_tokens += turn.prompt_tokens
                sampled_tokens += turn.sampled_tokens
                if turn.tokens.stop == "length":
                    # A turn that was cut is not what the policy meant to say; taking it as an action would train on half a thought.
                    stop = "token_limit"
                    break
                step = await episode.step(turn.message)
                messages = (*messages, *step.messages)
                actions.append(step.action)
                outcome = step.outcome
                if step.done:
                    stop = "done"
                    break
        finally:
            await episode.close()
        cost = Cost(
            prompt_tokens=prompt_tokens, sampled_tokens=sampled_tokens, seconds=round(time.monotonic() - started, 3), turns=len(turns)
        )
        return Trajectory(
            key=key,
            agent=self.name,
            messages=messages,
            tools=episode.tools,
            turns=tuple(turns if hint is None else (TurnTokens(stop=one.stop) for one in turns)),
            actions=tuple(actions),
            stop=stop,
            outcome=outcome,
            cost=cost,
            maker=self.maker,
            hint=hint,
        )


def with_hint(opening: Sequence[Message], hint: str) -> tuple[Message, ...]:
    """The opening with ``hint`` at the end of its last message: no template minds, where many mind a message more."""
    *before, last = opening
    return (*before, replace(last, content=f"{last.content}\n\n{hint}"))


def with_shots(opening: Sequence[Message], shots: Sequence[Message]) -> tuple[Message, ...]:
    """The opening with the few-shot examples after its system message, where it has one."""
    lead = 1 if opening and opening[0].role == "system" else 0
    return (*opening[:lead], *shots, *opening[lead:])


def without_shots(trajectory: Trajectory, shots: Sequence[Message]) -> Trajectory:
    """The trajectory as if it had been made without the few-shot examples, so that training folds the prompt into the weights.

    Its token ids belong to the longer prompt, so they go; rows are then rendered from the text.
    """
    if not shots:
        return trajectory
    lead = 1 if trajectory.messages[0].role == "system" else 0
    messages = (*trajectory.messages[:lead], *trajectory.messages[lead + len(shots) :])
    return replace(trajectory, messages=messages, turns=())

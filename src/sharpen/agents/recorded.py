"""Recorded turns as an agent: an expert's walkthrough, played once more to see that it still wins; and whatever a teacher left in files."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from sharpen.environments.base import Environment
from sharpen.formats.base import RECORDED
from sharpen.records import Cost, Maker, Message, SampleKey, Stop, Task, Trajectory
from sharpen.tasks.base import Recorded
from sharpen.terms import EXPERT, whose

TAUGHT = "recorded by a teacher"  # stands for sampling settings in the keys of its tries: those of demonstrations are ``RECORDED``


async def replay(
    task: Task,
    environment: Environment,
    actions: Sequence[str | Message],
    *,
    agent: str = EXPERT.name,
    index: int = 0,
    maker: Maker = EXPERT,
) -> Trajectory:
    """Play ``actions``, one an assistant turn, and record what happened.

    Ends with ``done`` when the environment says so and leaves the remaining actions unplayed; with ``turn_limit`` when the actions
    or the environment's turns are used up before. ``turns`` stays empty: there are no sampled tokens. EnvironmentFault passes through.
    ``maker`` says whose turns they are, where they are not the task source's own.
    """
    started = time.monotonic()
    episode, opening = await environment.start(task)
    messages = list(opening)
    understood: list[str] = []
    stop: Stop = "turn_limit"
    outcome: dict[str, object] = {}
    try:
        for action in actions[: environment.max_turns]:
            turn = action if isinstance(action, Message) else Message(role="assistant", content=action)
            step = await episode.step(turn)
            messages += [turn, *step.messages]
            understood.append(step.action)
            outcome = step.outcome
            if step.done:
                stop = "done"
                break
    finally:
        await episode.close()
    return Trajectory(
        key=SampleKey(model=agent, task=task.key, environment=environment.name, sampling=RECORDED, index=index),
        agent=agent,
        messages=tuple(messages),
        tools=episode.tools,
        actions=tuple(understood),
        stop=stop,
        outcome=outcome,
        cost=Cost(seconds=time.monotonic() - started, turns=len(understood)),
        maker=maker,
    )


def said(task: Task, trajectory: Trajectory) -> tuple[Message, ...]:
    """The assistant's turns of ``trajectory``, without those that the task's prompt holds."""
    asked = sum(message.role == "assistant" for message in task.prompt)
    return tuple(message for message in trajectory.messages if message.role == "assistant")[asked:]


@dataclass(frozen=True)
class RecordedAgent:
    """Whoever made the trajectories in ``recorded``: try i of a task is the i-th that lies there.

    Played again in ``environment``, so that the student's own environment vouches for it and its tools are the student's, unless ``recorded.replay``
    is false. The cost is what was recorded of it, where something was.
    """

    name: str
    recorded: Recorded
    environment: Environment

    def key(self, task: Task, index: int) -> SampleKey:
        made = self.recorded.of(task)[index]
        return SampleKey(model=made.agent, task=task.key, environment=self.environment.name, sampling=TAUGHT, index=index)

    async def run(self, task: Task, index: int) -> Trajectory:
        """EnvironmentFault passes through."""
        made = self.recorded.of(task)[index]
        maker = whose(made)
        if not self.recorded.replay:
            return replace(made, key=self.key(task, index), maker=maker)
        again = await replay(task, self.environment, said(task, made), agent=made.agent, index=index, maker=maker)
        return replace(again, key=self.key(task, index), cost=made.cost if made.cost.turns else again.cost)

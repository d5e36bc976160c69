"""Recorded turns as an agent: an expert's walkthrough, played once more to see that it still wins."""

from __future__ import annotations

import time
from collections.abc import Sequence

from sharpen.environments.base import Environment
from sharpen.formats.base import RECORDED
from sharpen.records import Cost, Maker, Message, SampleKey, Stop, Task, Trajectory
from sharpen.terms import EXPERT


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

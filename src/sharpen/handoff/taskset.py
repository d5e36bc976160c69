"""The part of the emitted taskset that knows sharpen: rows for verifiers (0.4), and an episode whose player is an interaction of verifiers'.

It imports nothing of verifiers: an interaction is whatever has ``turn``. Tasks with tools are refused: verifiers serves tools by its own servers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from sharpen import loop
from sharpen.agents.base import with_shots
from sharpen.errors import Refused, RunError, SettingsError
from sharpen.handoff.folder import Given
from sharpen.records import Message, SampleKey, Stop, Task, Trajectory, Verdict
from sharpen.verifiers.run import judge


class Segment(Protocol):
    """One reply of the player. ``terminated``: the rollout ended instead, by a limit of verifiers' own."""

    terminated: bool

    @property
    def last_reply(self) -> str: ...


class Trace(Protocol):
    """verifiers' record of the rollout: what broke in it, and whether a limit cut it, or its last reply, short."""

    errors: Sequence[Any]
    is_timeout: bool

    @property
    def is_truncated(self) -> bool: ...


class Interaction(Protocol):
    """verifiers' ``Interaction``: the first turn is the reply to the task's prompt, each later one to what is said."""

    @property
    def trace(self) -> Trace: ...

    async def turn(self, message: Any = None) -> Segment: ...


def rows(hand: Given, kinds: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The fields of each task of some ``kinds``. The system message, where there is one, goes where verifiers wants it."""
    known, lines = _known(hand), hand.lines(kinds)
    if not lines:
        raise Refused(
            f"{hand.place} has no {', '.join(kinds)} tasks; choose others with --env.taskset.kinds, or read {hand.place / 'README.md'}"
        )
    for line in lines:
        opening = hand.opening(line) if line.prompt else with_shots(loop.run(_opens(hand, known[line.task])), hand.handoff.start.shots)
        system = opening[0].content if opening[0].role == "system" else None
        yield {
            "id": line.task,
            "name": line.task,
            "system_prompt": system,
            "prompt": [{"role": message.role, "content": message.content} for message in (opening[1:] if system is not None else opening)],
            "family": line.family,
            "kind": line.kind,
            "tries": line.tries,
            "passes": line.passes,
            "reference": line.reference,
        }


async def play(hand: Given, key: str | None, interaction: Interaction) -> Verdict:
    """Play a task to its end and judge it. RunError where the player broke or the verdict is an error: then nothing is known of the try."""
    tasks = hand.tasks
    task, environment, verifier = _known(hand)[key or ""], tasks.environment, tasks.verifier
    assert verifier is not None
    episode, opening = await environment.start(task)
    messages: list[Message] = list(opening)
    actions: list[str] = []
    outcome: dict[str, Any] = {}
    stop: Stop = "turn_limit"
    heard: Any = None
    try:
        if episode.tools:
            raise SettingsError(f"task {task.key!r} has tools, which this taskset cannot serve; train on it with train_grpo.py")
        for _ in range(environment.max_turns):
            segment = await interaction.turn(heard)
            if interaction.trace.errors or interaction.trace.is_timeout:
                said = getattr(interaction.trace.errors[-1], "message", "") if interaction.trace.errors else "it took too long"
                raise RunError(f"task {task.key!r} was not played to its end: {said}")
            if interaction.trace.is_truncated:
                stop = "token_limit"
            if segment.terminated or interaction.trace.is_truncated:
                break
            reply = Message(role="assistant", content=segment.last_reply)
            step = await episode.step(reply)
            messages += [reply, *step.messages]
            actions.append(step.action)
            outcome = step.outcome
            if step.done:
                stop = "done"
                break
            heard = [{"role": message.role, "content": message.content} for message in step.messages]
    finally:
        await episode.close()
    trajectory = Trajectory(
        key=SampleKey(model="player", task=task.key, environment=environment.name, sampling="verifiers", index=0),
        agent="player",
        messages=tuple(messages),
        actions=tuple(actions),
        stop=stop,
        outcome=outcome,
    )
    verdict = await asyncio.to_thread(judge, task, trajectory, verifier, hand.settings.sampling.verifier_timeout_s)
    if verdict.outcome == "error":
        raise RunError(f"task {task.key!r} could not be judged: {verdict.reason}")
    return verdict


def _known(hand: Given) -> dict[str, Task]:
    return {task.key: task for task in hand.tasks.tasks}


async def _opens(hand: Given, task: Task) -> tuple[Message, ...]:
    episode, opening = await hand.tasks.environment.start(task)
    await episode.close()
    return opening

"""What environments are held to."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from hypothesis import strategies as st

from sharpen import plugins
from sharpen.environments.base import Environment, Episode, Step
from sharpen.errors import EnvironmentFault
from sharpen.records import Message, Task
from sharpen.tasks.base import TaskSet
from sharpen.testing.base import assistant, broken, run, short, some, survives, turns_text
from sharpen.testing.generate import HOSTILE, for_all, texts, turns_of


def check_environment(environment: Environment, tasks: TaskSet | Iterable[Task], *, examples: int = 50, timeout_s: float = 60.0) -> None:
    """Hold an environment to this, on up to ``MOST`` of ``tasks``:

    - it has a ``name``, and ``max_turns`` of 1 or more
    - every task starts, twice with the same opening, which does not end with an assistant message
    - the schemas of tools are JSON in OpenAI's form, each of another name
    - the expert, where it knows one, gives the same turns twice and reaches an end within ``max_turns``
    - no turns, also malformed calls, up to ``max_turns`` of them, raise anything but EnvironmentFault or take over ``timeout_s`` seconds
    - a step that does not end the episode says something, and every step survives a JSON round trip
    - the same turns give the same steps twice
    - two episodes played in turns do not disturb each other, nor does one that is closed early
    - closing twice is harmless, before the first turn and after the last
    - tasks are left as they were

    ``examples`` pairs of episodes are generated from hostile texts, calls of the environment's own tools and the experts' turns. An environment need not end
    an episode by itself: after ``max_turns`` the agent does.
    """
    if missing := plugins.missing(environment, Environment):
        raise broken(f"environment {type(environment).__name__}", "it is an Environment", f"it has no {missing}")
    where = f"environment {environment.name!r}"
    named = isinstance(environment.name, str) and environment.name
    if not named or not isinstance(environment.max_turns, int) or environment.max_turns < 1:
        raise broken(where, "it has a name, and max_turns of 1 or more", f"max_turns {environment.max_turns!r}")
    chosen = some(tasks.tasks if isinstance(tasks, TaskSet) else tasks)
    if not chosen:
        raise broken(where, "every task starts", "no tasks were given")

    def played(*plays: tuple[Task, Sequence[Message]]) -> list[list[Any]]:
        shown = "; ".join(f"task {task.key!r}, turns {turns_text(turns)}" for task, turns in plays)
        return run(_play(environment, plays, where), timeout_s, f"{where}: {shown}")

    as_given = [msgspec.json.encode(task) for task in chosen]
    tools: dict[str, dict[str, Any]] = {}
    known: list[Message] = []
    for task in chosen:
        tools |= run(_check_opening(environment, task, where), timeout_s, f"{where}: starting task {task.key!r}")
        if turns := _expert(environment, task, where):
            [steps] = played((task, turns))
            if not (steps and isinstance(steps[-1], Step) and steps[-1].done):
                example = f"task {task.key!r}: no end after {turns_text(turns)}, max_turns {environment.max_turns}"
                raise broken(where, "the expert reaches an end", example)
        known += turns

    def check(pair: tuple[tuple[Task, list[Message]], tuple[Task, list[Message]]]) -> None:
        alone = [played(play)[0] for play in pair]
        for what, again in (
            ("the same turns give the same steps twice", [played(play)[0] for play in pair]),
            ("two episodes played in turns do not disturb each other", played(*pair)),
        ):
            for (task, turns), before, now in zip(pair, alone, again, strict=True):
                if before != now:
                    raise broken(where, what, _differ(task, turns, before, now))

    for text in HOSTILE:
        played((chosen[0], [assistant(text)] * environment.max_turns))
    turn = turns_of(tuple(tools.values()), texts) | (st.sampled_from(known) if known else st.nothing())
    play = st.tuples(st.sampled_from(chosen), st.lists(turn, max_size=min(environment.max_turns, 8)))
    for_all(st.tuples(play, play), check, examples)
    for task, before in zip(chosen, as_given, strict=True):
        if (now := msgspec.json.encode(task)) != before:
            raise broken(where, "tasks are left as they were", f"task {task.key!r}: {short(before.decode())}, then {short(now.decode())}")


async def _check_opening(environment: Environment, task: Task, where: str) -> dict[str, dict[str, Any]]:
    seen = []
    tools: dict[str, dict[str, Any]] = {}
    for _ in range(2):
        episode, opening = await _start(environment, task, where)
        seen.append(opening)
        if not isinstance(opening, tuple) or not opening or not all(isinstance(m, Message) for m in opening):
            raise broken(where, "an opening is a tuple of messages", f"task {task.key!r}: {opening!r}")
        if opening[-1].role == "assistant":
            raise broken(where, "an opening does not end with an assistant message", f"task {task.key!r}: {opening[-1].content!r}")
        for schema in episode.tools:
            name = schema.get("function", {}).get("name") if isinstance(schema, dict) and schema.get("type") == "function" else None
            if not isinstance(name, str) or not survives(schema, dict):
                raise broken(where, "the schemas of tools are JSON in OpenAI's form", f"task {task.key!r}: {schema!r}")
            tools[name] = schema
        if len({schema["function"]["name"] for schema in episode.tools}) < len(episode.tools):
            raise broken(where, "each tool has a name of its own", f"task {task.key!r}: {sorted(tools)}")
        await _close(episode, task, where)
    if seen[0] != seen[1]:
        raise broken(where, "a task starts twice with the same opening", f"task {task.key!r}: {seen[0][-1]}, then {seen[1][-1]}")
    return tools


def _expert(environment: Environment, task: Task, where: str) -> list[Message]:
    try:
        expert, again = environment.expert(task), environment.expert(task)
    except Exception as error:
        raise broken(where, "the expert does not raise", f"task {task.key!r}: {type(error).__name__}: {error}") from None
    if expert != again:
        raise broken(where, "the expert gives the same turns twice", f"task {task.key!r}: {expert}, then {again}")
    if expert is None:
        return []
    if (
        not isinstance(expert, tuple)
        or not expert
        or not all(isinstance(t, str) or (isinstance(t, Message) and t.role == "assistant") for t in expert)
    ):
        raise broken(where, "the expert gives a tuple of texts and assistant messages", f"task {task.key!r}: {expert!r}")
    return [turn if isinstance(turn, Message) else assistant(turn) for turn in expert]


async def _play(environment: Environment, plays: Sequence[tuple[Task, Sequence[Message]]], where: str) -> list[list[Any]]:
    """The steps of each play, strictly in turns, each in an asyncio task of its own, as agents play them. A fault ends its play."""
    rounds = min(environment.max_turns, max(len(turns) for _, turns in plays))
    everybody = asyncio.Barrier(len(plays))

    async def one(mine: int) -> list[Any]:
        task, turns = plays[mine]
        seen: list[Any] = []
        try:
            episode, _ = await _start(environment, task, where)
            playing = True
            for at, whose in itertools.product(range(rounds), range(len(plays))):
                await everybody.wait()
                if whose == mine and playing:
                    if at < len(turns):
                        seen.append(await _step(episode, task, turns[: at + 1], where))
                    playing = at < len(turns) and isinstance(seen[-1], Step) and not seen[-1].done
                    if not playing:
                        await _close(episode, task, where)
            await _close(episode, task, where)
        except BaseException:
            await everybody.abort()
            raise
        return seen

    return await asyncio.gather(*(one(mine) for mine in range(len(plays))))


async def _start(environment: Environment, task: Task, where: str) -> tuple[Episode, tuple[Message, ...]]:
    try:
        return await environment.start(task)
    except Exception as error:
        raise broken(where, "every task starts", f"task {task.key!r}: {type(error).__name__}: {error}") from None


async def _step(episode: Episode, task: Task, turns: Sequence[Message], where: str) -> Step | str:
    shown = f"task {task.key!r}, turns {turns_text(turns)}"
    try:
        step = await episode.step(turns[-1])
    except EnvironmentFault:
        return "EnvironmentFault"
    except Exception as error:
        raise broken(where, "no turn raises anything but EnvironmentFault", f"{shown}: {type(error).__name__}: {error}") from None
    if not isinstance(step, Step):
        raise broken(where, "a step is a Step", f"{shown}: {step!r}")
    if not survives(step):
        raise broken(where, "a step survives a JSON round trip", f"{shown}: {step}")
    if not step.done and (not step.messages or step.messages[-1].role == "assistant"):
        raise broken(where, "a step that does not end the episode says something", f"{shown}: {step}")
    return step


async def _close(episode: Episode, task: Task, where: str) -> None:
    for _ in range(2):
        try:
            await episode.close()
        except Exception as error:
            raise broken(where, "closing twice is harmless", f"task {task.key!r}: {type(error).__name__}: {error}") from None


def _differ(task: Task, turns: Sequence[Message], one: Sequence[Any], other: Sequence[Any]) -> str:
    """Where two plays of the same turns part."""
    at = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    first, second = (short(str(steps[at])) if at < len(steps) else "no step" for steps in (one, other))
    return f"task {task.key!r}, turns {turns_text(turns[: at + 1])}: {first}, then {second}"

"""What verifiers are held to."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
from hypothesis import strategies as st

from sharpen import plugins
from sharpen.agents.checks import gold_and_noop
from sharpen.agents.recorded import replay
from sharpen.chat.base import said
from sharpen.environments.single_turn import SingleTurn
from sharpen.records import Message, SampleKey, Task, Trajectory, Verdict
from sharpen.store.files import digest
from sharpen.tasks.base import TaskSet
from sharpen.testing.base import MOST, assistant, broken, run, short, some, survives, turns_text
from sharpen.testing.generate import HOSTILE, for_all, json_values, texts, turns_of
from sharpen.verifiers.base import Verifier
from sharpen.verifiers.function import FunctionVerifier
from sharpen.verifiers.run import judge


def check_verifier(
    verifier: Verifier | Callable[..., Any],
    tasks: TaskSet | Iterable[Task],
    *,
    one_answer: bool = True,
    examples: int = 50,
    timeout_s: float = 10.0,
) -> None:
    """Hold a verifier, or a function as ``FunctionVerifier`` takes it, to this:

    - it has a ``name``, and says by a bool whether it is ``exact``
    - gold solutions pass; an empty answer and one off the task fail
    - no answer makes it raise, hang (``timeout_s`` seconds) or give an error: empty, huge, in any script, nested JSON, tool calls, none at all
    - a conversation without an answer does not pass
    - the same input gives the same verdict twice, whatever was judged before, and in many threads at once
    - a verdict carries its trajectory's key and survives a JSON round trip
    - task and trajectory are left as they were
    - another task's gold solution fails where the references differ; not asked with ``one_answer=False``, for tasks with many right answers

    Bare ``tasks`` are answered in one turn; a TaskSet's in its own environment (its verifier is not asked). Up to ``MOST`` are looked at,
    none of the split ``test``, with ``examples`` generated answers. At least one needs a gold solution.
    """
    held = _Verifier(_verifier(verifier), timeout_s)
    environment = tasks.environment if isinstance(tasks, TaskSet) else SingleTurn()
    taskset = TaskSet("checked", tasks.tasks if isinstance(tasks, TaskSet) else tuple(tasks), environment, held.verifier)
    if not isinstance(held.verifier.name, str) or not held.verifier.name or not isinstance(held.verifier.exact, bool):
        raise held.broken("it has a name, and exact is a bool", f"name {held.verifier.name!r}, exact {held.verifier.exact!r}")
    checks = run(gold_and_noop(taskset, MOST, timeout_s), None, held.where)
    if not checks.gold_passes or not checks.noop_fails:
        none = "no task outside the split test has a gold solution" if checks.gold_passes is None else checks.example
        raise held.broken("gold solutions pass, empty and off-task answers fail", none)

    chosen = some(task for task in taskset.tasks if task.split != "test")
    golds = {task.key: gold for task in chosen if (gold := taskset.environment.expert(task))}
    plays = [(task, run(replay(task, taskset.environment, golds[task.key]), None, held.where)) for task in chosen if task.key in golds]
    words = [said(turn) for gold in golds.values() for turn in gold]
    for task, text in itertools.product(chosen[:2], HOSTILE):
        held.outcome(task, _tried(task, (assistant(text),)))
    for task in chosen:
        if held.outcome(task, _tried(task, ())) == "pass":
            raise held.broken("a conversation without an answer does not pass", f"task {task.key!r}")
    answers = texts | st.tuples(texts, st.sampled_from(words), texts).map("".join)
    outcomes = st.dictionaries(st.sampled_from(["answer", "won", "success", "score"]), json_values, max_size=2)
    tries = st.builds(_tried, st.sampled_from(chosen), st.lists(turns_of((), answers), max_size=2).map(tuple), outcomes)
    by_key = {task.key: task for task in chosen}
    for_all(tries, lambda trajectory: held.outcome(by_key[trajectory.key.task], trajectory), examples)

    if one_answer:
        for one, other in zip(chosen, (*chosen[1:], *chosen[:1]), strict=True):
            if other.key in golds and one.reference != other.reference:
                played = run(replay(one, taskset.environment, golds[other.key]), None, held.where)
                if judge(one, played, held.verifier, timeout_s):
                    what = "another task's gold solution fails where the references differ"
                    raise held.broken(what, f"task {one.key!r} passes {turns_text(golds[other.key])}, the gold solution of {other.key!r}")
    for task, played in plays:
        if (now := held.outcome(task, played)) != "pass":
            raise held.broken("the same input gives the same verdict, whatever was judged before", f"task {task.key!r}: pass, then {now}")
    mixed = [*plays, *((task, _tried(task, (assistant(""),))) for task in chosen)]
    alone = [judge(task, played, held.verifier, timeout_s).outcome for task, played in mixed]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda pair: judge(pair[0], pair[1], held.verifier, timeout_s).outcome, mixed))
    for (task, _), before, now in zip(mixed, alone, together, strict=True):
        if before != now:
            raise held.broken(
                "many threads at once get the verdicts that one gets", f"task {task.key!r}: {before} alone, {now} beside others"
            )


def _verifier(given: Verifier | Callable[..., Any]) -> Verifier:
    missing = plugins.missing(given, Verifier)
    if missing and callable(given):
        return FunctionVerifier(given)
    if missing:
        raise broken(f"verifier {type(given).__name__}", "it is a Verifier or a function", f"it has no {missing}")
    return given  # type: ignore[return-value]  # it has every part of one


class _Verifier:
    """A verifier under test."""

    def __init__(self, verifier: Verifier, timeout_s: float) -> None:
        self.verifier, self._timeout_s = verifier, timeout_s
        self.where = f"verifier {verifier.name!r}"

    def broken(self, what: str, example: str) -> AssertionError:
        return broken(self.where, what, example)

    def outcome(self, task: Task, trajectory: Trajectory) -> str:
        """What is said of ``trajectory``, after the properties that hold for every one."""
        shown = f"task {task.key!r}, answer {short(' | '.join(said(m) for m in trajectory.messages if m.role == 'assistant'))}"
        shown += f", outcome {trajectory.outcome}" if trajectory.outcome else ""
        before = msgspec.json.encode([task, trajectory])
        first = judge(task, trajectory, self.verifier, self._timeout_s)
        if first.outcome == "error":
            raise self.broken("no answer makes it raise, hang or give an error", f"{shown}: {first.reason}")
        again: Verdict | None = None
        try:
            again = self.verifier.verify(task, trajectory)
            then = f"{again.outcome} ({again.score})"
        except Exception as error:
            then = f"raised {type(error).__name__}: {error}"
        if again is not None and not survives(again):
            raise self.broken("a verdict survives a JSON round trip", f"{shown}: {again}")
        if again is None or (again.outcome, again.score) != (first.outcome, first.score):
            raise self.broken("the same input gives the same verdict twice", f"{shown}: {first.outcome} ({first.score}), then {then}")
        if again.key != trajectory.key:
            raise self.broken("a verdict carries its trajectory's key", f"{shown}: {again.key}")
        if msgspec.json.encode([task, trajectory]) != before:
            raise self.broken("task and trajectory are left as they were", shown)
        return first.outcome


def _tried(task: Task, turns: tuple[Message, ...], outcome: dict[str, Any] | None = None) -> Trajectory:
    index = int(digest([turns, outcome])[:8], 16)  # other tries have other keys, so that a verifier may remember them
    key = SampleKey(model="checked", task=task.key, environment="checked", sampling="checked", index=index)
    return Trajectory(key=key, agent="checked", messages=(*task.prompt, *turns), stop="done", outcome=outcome or {})

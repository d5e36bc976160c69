"""How long prompts get, before a token is sampled: some tasks are opened as a try opens them, and what a model would read of them is counted."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from sharpen import loop
from sharpen.agents.checks import spread
from sharpen.agents.harness import Harness
from sharpen.chat.base import said
from sharpen.chat.load import load_template
from sharpen.environments.base import Environment
from sharpen.environments.tools import ToolEnvironment
from sharpen.models import read_config
from sharpen.policies.base import Conversation
from sharpen.policies.meter import CHARACTERS, guessed
from sharpen.records import Message, Model, Task, Trajectory
from sharpen.tasks.base import TaskSet

SPREAD, LONGEST = 12, 4  # tasks that are opened: spread over the set, and those with the longest prompts
OPENING_S, CLOSING_S = 60.0, 10.0  # for all of them, and to put away what is open then
AROUND = 16  # tokens around a message, in any template
# Of a tool's longest answer, what one is expected to have where none was seen: ours, between a calculator's and a search's.
SHARE = 0.25
CALL = 3  # tokens of a call of a tool, at least, in any template: ``f(),``


@dataclass(frozen=True)
class Lengths:
    """Tokens, as expected and at most.

    ``opening`` and ``longest``: of a first prompt, tools included. ``answer`` and ``answered``: of what the environment says to a turn, where another turn
    follows. ``demonstration``: of a few-shot example, at most; 0 where none is known. ``window``: no prompt is longer. ``said`` is what that rests on.
    """

    opening: float
    longest: int
    answer: float
    answered: int
    demonstration: int
    window: float
    said: tuple[str, ...] = ()


def measure(tasks: TaskSet, model: Model, harness: Harness | None, turn: int, made: Sequence[Trajectory] = ()) -> Lengths:
    """Opens up to 16 tasks and closes them again: no model is asked and no tool is called. ``turn`` is the most tokens that a turn may have, ``made`` are
    tries that are there. What does not open, or not in time, is said and done without."""
    environment, (count, tokens) = tasks.environment, _counting(model)
    evenly = spread(tasks, SPREAD)
    chosen = {task.key: task for task in evenly}
    others = (task for task in tasks.tasks if task.key not in chosen)
    chosen |= {task.key: task for task in heapq.nlargest(LONGEST, others, key=_characters)}
    opened: dict[str, Conversation] = {}
    failed: list[str] = []
    if harness is not None:  # it writes its prompts itself
        opened = {key: Conversation(messages=task.prompt) for key, task in chosen.items()}
    else:
        try:
            loop.run(_open(environment, chosen.values(), opened, failed), timeout_s=OPENING_S + CLOSING_S)
        except TimeoutError:
            opened = dict(opened)  # where start blocks the loop, it may yet come back
            failed.append(f"all had to open within {OPENING_S:g} s")
    asked = {key: task.prompt for key, task in chosen.items() if any(message.role == "user" for message in task.prompt)}
    words = {key: Conversation(messages=prompt) for key, prompt in asked.items()}
    known = {key: conversation for key in chosen if (conversation := opened.get(key) or words.get(key)) is not None}
    counted = {key: count(conversation) for key, conversation in known.items()}
    means = [counted[task.key] for task in evenly if task.key in counted] or list(counted.values())
    texts = ["".join(message.content for message in conversation.messages)[:10_000] for conversation in known.values()]
    dense = max((tokens(text) / len(text) for text in texts if text), default=0.0)
    by_character = max(dense, 1 / CHARACTERS)

    several = environment.max_turns > 1 and harness is None
    recorded = tasks.recorded.trajectories if tasks.recorded is not None else ()
    heard = [text for one in (*recorded, *made) for text in _heard(one)]
    first = [len(conversation.messages[-1].content) for conversation in known.values()]
    trusted = max([*map(len, heard), *first], default=0)
    if heard:
        usual = sum(map(len, heard)) / len(heard)
    elif isinstance(environment, ToolEnvironment):
        usual = SHARE * environment.limits.max_chars
    else:
        usual = sum(first) / max(len(first), 1)

    def answers(calls: int) -> float:
        """To a turn with so many calls, and around both, at most."""
        if isinstance(environment, ToolEnvironment):
            return environment.most_answered(calls) * by_character + (1 + calls) * AROUND
        return trusted * by_character + 2 * AROUND

    def demonstrated(key: str) -> float:
        turns = _expert(environment, chosen[key])
        between = sum(answers(max(len(one.tool_calls), 1) if isinstance(one, Message) else 1) for one in turns[:-1])
        return counted[key] + sum(tokens(said(one)) + AROUND for one in turns) + between if turns else 0.0

    shown = [sum(len(message.content) * by_character + AROUND for message in one.messages) for one in recorded]
    if not recorded and harness is None:
        shown = [demonstrated(key) for key in counted]
    answered = round(answers(max(turn // CALL, 1))) if several else 0
    found = Lengths(
        opening=sum(means) / len(means) if means else 0.0,
        longest=max(counted.values(), default=0),
        answer=min(usual * by_character + AROUND, answered) if several else 0.0,
        answered=answered,
        demonstration=round(max(shown, default=0.0)),
        window=_window(model),
    )
    lines = _said(found, tasks, model, harness, (len(opened), len(chosen)), failed, "tries" if made else "demonstrations" if heard else "")
    return replace(found, said=tuple(lines))


def _said(
    found: Lengths, tasks: TaskSet, model: Model, harness: Harness | None, opened: tuple[int, int], failed: Sequence[str], heard: str
) -> Iterator[str]:
    how = f"{CHARACTERS:g} characters taken for a token" if model.kind == "endpoint" else "by the model's own template"
    rest = "" if opened[0] == len(tasks.tasks) else "; the others are trusted to open with no more"
    amount = f"a first prompt takes {found.opening:.0f} tokens, {found.longest} at most, tools included ({how}){rest}"
    if harness is not None:
        yield (
            f"not opened: the program {harness.command[0]} writes the prompts, and what it adds to a task's own words is in no figure, so at most is "
            "no bound"
        )
    elif opened[0]:
        yield f"opened: {opened[0]} of {len(tasks.tasks)} tasks, as a try opens them, without asking a model: {amount}"
    if failed:
        yield (
            f"not opened: {opened[1] - opened[0]} of {opened[1]} tasks tried ({failed[0]}); of those only the task's own words are counted, so at most "
            "is no bound"
        )
    if found.window < float("inf"):
        yield f"bounded: no prompt is longer than the model's window, {found.window:.0f} tokens"
    if not found.answered:
        return
    environment = tasks.environment
    guess = f"one answer of {SHARE:.0%} of that length" if isinstance(environment, ToolEnvironment) else "as much as a task opens with"
    usual = "" if heard == "tries" else f"; expected, {found.answer:.0f}, {'the mean in demonstrations' if heard else guess}"
    if isinstance(environment, ToolEnvironment):
        yield (
            f"bounded: what tools answer to a turn, {found.answered} tokens: as many calls as fit into a turn, each answered with max_chars "
            f"({environment.limits.max_chars}) characters{usual}"
        )
    else:
        seen = f"openings and {heard}" if heard else "openings"
        yield f"trusted: what the environment answers to a turn, at most {found.answered} tokens, the longest in {seen}, for it states no limit{usual}"


async def _open(environment: Environment, tasks: Iterable[Task], opened: dict[str, Conversation], failed: list[str]) -> None:
    """Fills ``opened`` with what a first turn is asked, by task, and ``failed`` with why there is none. TimeoutError after ``OPENING_S``."""
    async with asyncio.timeout(OPENING_S):
        for task in tasks:
            try:
                episode, messages = await environment.start(task)
                try:
                    opened[task.key] = Conversation(messages=messages, tools=episode.tools)
                finally:
                    await episode.close()
            except Exception as error:  # an environment of somebody's own may raise anything, and a plan goes on
                failed.append(" ".join(f"{type(error).__name__}: {error}".split())[:200])


def _counting(model: Model) -> tuple[Callable[[Conversation], int], Callable[[str], float]]:
    """What counts the tokens of a prompt and of a text, as ``model`` does where its template is here."""
    if model.kind == "endpoint":
        return guessed, lambda text: len(text) / CHARACTERS
    template = load_template(model)
    return (lambda asked: len(template.prompt(asked.messages, (), asked.tools))), (lambda text: len(template.encode(text)))


def _window(model: Model) -> float:
    """Tokens of the longest prompt that an engine of ours reads; a longer one ends the try, unasked."""
    return float(read_config(model.path).get("max_position_embeddings") or "inf") if model.kind == "pretrained" else float("inf")


def _heard(trajectory: Trajectory) -> Iterator[str]:
    """What was answered to each turn, where another turn followed."""
    so_far: list[str] | None = None
    for message in trajectory.messages:
        if message.role == "assistant":
            if so_far:
                yield "".join(so_far)
            so_far = []
        elif so_far is not None:
            so_far.append(message.content)


def _expert(environment: Environment, task: Task) -> tuple[str | Message, ...]:
    try:
        return environment.expert(task) or ()
    except Exception:  # the run says so, where it needs it
        return ()


def _characters(task: Task) -> int:
    return sum(len(message.content) for message in task.prompt)

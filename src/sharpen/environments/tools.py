"""Plain Python functions as tools: the policy calls them until it answers without a call."""

from __future__ import annotations

import asyncio
import inspect
import json
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec

from sharpen.environments.base import Episode, Step, assistant_turns
from sharpen.environments.single_turn import gold_turns
from sharpen.errors import EnvironmentFault, SettingsError, nearest
from sharpen.plugins import load
from sharpen.policies.futures import settle
from sharpen.records import Message, Record, Task, ToolCall
from sharpen.store.files import digest

WORDING = 1  # raise it when what the policy is told changes: samples of other words are other samples
MOST_CALLS = 16  # of one turn
TOO_MANY = f"only {MOST_CALLS} calls in one turn are made"
CUT = "\n[{} more characters cut]"
STUCK = 8  # calls that never came back before the tools are called broken: each holds a thread for good

Caller = Callable[[dict[str, Any]], Awaitable[Any]]


class Limits(Record, frozen=True, kw_only=True):
    """What holds for tools of every kind.

    ``max_turns`` (1 or more) assistant turns; a call that takes over ``timeout_s`` seconds is answered with an error, a result of more than
    ``max_chars`` characters is cut and says so. ``system`` is a system message, put before the task's prompt where that has none.
    ``expert`` names a function of a task that gives the assistant turns which solve it (see ``assistant_turns``); without one the gold
    turns that came with the task are used.
    """

    max_turns: int = 8
    timeout_s: float = 30.0
    max_chars: int = 4000
    system: str = ""
    expert: str | None = None

    def __post_init__(self) -> None:
        for name in ("max_turns", "timeout_s", "max_chars"):
            if getattr(self, name) <= 0:
                raise SettingsError(f"{name} is {getattr(self, name)}, but must be over 0")


class Functions(Limits, frozen=True, kw_only=True, tag_field="environment", tag="tools"):
    """``functions`` are ``file.py:name`` or ``module:name``, with type hints and a Google-style docstring, from which the schema is made."""

    functions: tuple[str, ...]


@dataclass(frozen=True)
class Toolbox:
    """The tools of one episode: schemas in OpenAI's form, how each is called, what to say first, and what came of it all."""

    schemas: tuple[dict[str, Any], ...]
    callers: Mapping[str, Caller]
    opening: str = ""
    outcome: Callable[[], dict[str, Any]] = dict


class ToolEnvironment:
    """Episodes in which tools may be called. ``open_`` gives the toolbox of a task, for as long as its episode lasts."""

    def __init__(self, name: str, open_: Callable[[Task], AbstractAsyncContextManager[Toolbox]], limits: Limits) -> None:
        self.name = f"{name}-{digest([WORDING, limits])[:8]}"
        self.max_turns = limits.max_turns
        self.limits = limits
        self._open = open_
        self._expert = load(limits.expert, "expert") if limits.expert is not None else None

    async def start(self, task: Task) -> tuple[Episode, tuple[Message, ...]]:
        """The prompt of the task, and what the tools have to say first. EnvironmentFault where neither says anything, or the tools do not start."""
        stack = AsyncExitStack()
        try:
            box = await stack.enter_async_context(self._open(task))
            messages = opening(task, self.limits.system, box.opening)
        except EnvironmentFault:
            await stack.aclose()
            raise
        except Exception as error:
            await stack.aclose()
            raise EnvironmentFault(f"task {task.key!r}: the tools did not start: {_what(error)}") from error
        return ToolEpisode(box, self.limits, stack), messages

    def most_answered(self, calls: int) -> int:
        """Characters, at most, of what a turn with so many calls is answered with."""
        whole = min(calls, MOST_CALLS) * (self.limits.max_chars + len(CUT) + 20)  # whatever number stands in it
        return whole + max(calls - MOST_CALLS, 0) * len(f"error: {TOO_MANY}")

    def expert(self, task: Task) -> tuple[str | Message, ...] | None:
        if self._expert is None:
            return gold_turns(task)
        try:
            turns = self._expert(task)
        except Exception as error:
            raise EnvironmentFault(
                f"the expert {self.limits.expert} raised on task {task.key!r}: {type(error).__name__}: {error}"
            ) from error
        return None if turns is None else assistant_turns(turns, f"what {self.limits.expert} gives for task {task.key!r}")


class ToolEpisode:
    """A turn with calls is answered with their results, a call that is wrong with an error; a turn without a call is the answer, and ends it."""

    def __init__(self, box: Toolbox, limits: Limits, stack: AsyncExitStack) -> None:
        self.tools = box.schemas
        self._box, self._limits, self._stack = box, limits, stack
        self._calls = self._errors = 0

    async def step(self, message: Message) -> Step:
        if message.problem is not None:
            self._errors += 1
            return Step(
                messages=(Message(role="user", content=f"error: {message.problem}"),), action=message.content, outcome=self._outcome()
            )
        if not message.tool_calls:
            return Step(action=message.content.strip(), done=True, outcome=await self.outcome())
        results = [await self._answer(call, at) for at, call in enumerate(message.tool_calls)]
        action = json.dumps([[call.name, _canonical(call.arguments)] for call in message.tool_calls], sort_keys=True)
        return Step(messages=tuple(results), action=action, outcome=self._outcome())

    async def close(self) -> None:
        """EnvironmentFault where the tools had broken: what a server's connection died of comes out here."""
        try:
            await self._stack.aclose()
        except EnvironmentFault:
            raise
        except Exception as error:
            raise EnvironmentFault(f"the tools broke: {_what(error)}") from error

    @property
    def said(self) -> str:
        """What the tools had to say first, which stands at the end of the task's last user message."""
        return self._box.opening

    async def outcome(self) -> dict[str, Any]:
        """What came of it all, asked once, after the answer."""
        return {**self._outcome(), **await _resolve(self._box.outcome)}

    async def call(self, call: ToolCall, at: int = 0) -> str:
        """The result of the call with index ``at`` of a turn, as the policy reads it. ToolProblem where it has none: what the policy is told instead."""
        self._calls += 1
        try:
            return as_text(await self._call(call, at), self._limits.max_chars)
        except ToolProblem:
            self._errors += 1
            raise

    def _outcome(self) -> dict[str, Any]:
        return {"tool_calls": self._calls, "tool_errors": self._errors}

    async def _answer(self, call: ToolCall, at: int) -> Message:
        try:
            text = await self.call(call, at)
        except ToolProblem as wrong:
            text = as_text(f"error: {wrong}", self._limits.max_chars)
        return Message(role="tool", content=text, tool_call_id=call.id or None, name=call.name)

    async def _call(self, call: ToolCall, at: int) -> Any:
        if at >= MOST_CALLS:
            raise ToolProblem(TOO_MANY)
        caller = self._box.callers.get(call.name)
        if caller is None:
            raise ToolProblem(f"there is no tool {call.name!r}{nearest(call.name, self._box.callers)}")
        try:
            arguments = json.loads(call.arguments)
        except ValueError as error:
            raise ToolProblem(f"the arguments of {call.name} are not JSON: {error}") from None
        if not isinstance(arguments, dict):
            raise ToolProblem(f"the arguments of {call.name} must be an object")
        try:
            return await asyncio.wait_for(caller(arguments), self._limits.timeout_s)
        except TimeoutError:
            raise ToolProblem(f"{call.name} gave no result within {self._limits.timeout_s:g} s") from None
        except (EnvironmentFault, ToolProblem):
            raise
        except Exception as error:  # whatever a tool raises is for the policy to read
            raise ToolProblem(f"{type(error).__name__}: {error}") from None


class ToolProblem(Exception):
    """What the policy is told instead of a result, word for word. A tool that raises anything else is told with its kind."""


def function_tools(functions: Sequence[Callable[..., Any]]) -> Toolbox:
    """Schemas and callers of ``functions``, each run in a thread. SettingsError where two share a name, or hints or docstring are missing."""
    from transformers.utils.chat_template_utils import get_json_schema

    schemas: dict[str, dict[str, Any]] = {}
    callers: dict[str, Caller] = {}
    for function in functions:
        name = getattr(function, "__name__", type(function).__name__)
        if name in schemas:
            raise SettingsError(f"two tools are called {name!r}; rename one")
        try:
            schemas[name] = get_json_schema(function)
        except Exception as error:  # transformers raises its own kinds for hints and docstrings it cannot read
            raise SettingsError(f"tool {name!r} cannot be described: {' '.join(str(error).split())}") from None
        callers[name] = _caller(function)
    return Toolbox(tuple(schemas.values()), callers)


def function_environment(settings: Functions) -> ToolEnvironment:
    """The environment of ``tools`` settings. The functions' source is part of its name: other code gives other samples."""
    functions = [load(spec, "tool") for spec in settings.functions]
    if not functions:
        raise SettingsError("functions is empty: name at least one tool, as file.py:name")
    box = function_tools(functions)

    @asynccontextmanager
    async def open_(task: Task) -> Any:
        yield box

    return ToolEnvironment(f"tools-{digest([_source(function) for function in functions])[:8]}", open_, settings)


@dataclass
class _Threads:
    """How many calls have not come back."""

    running: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


_threads = _Threads()


def _caller(function: Callable[..., Any]) -> Caller:
    signature = inspect.signature(function)

    async def call(arguments: dict[str, Any]) -> Any:
        try:
            bound = signature.bind(**arguments)
        except TypeError as error:
            raise ToolProblem(f"{function.__name__}: {error}; it takes {', '.join(signature.parameters) or 'nothing'}") from None
        if inspect.iscoroutinefunction(function):
            return await function(*bound.args, **bound.kwargs)
        return await in_thread(lambda: function(*bound.args, **bound.kwargs))

    return call


async def in_thread(work: Callable[[], Any]) -> Any:
    """``work()`` in a thread of its own that does not keep the process alive: a tool that hangs cannot be ended, only left behind.

    EnvironmentFault once ``STUCK`` such threads are left behind by callers that gave up.
    """
    if _threads.running >= STUCK:
        raise EnvironmentFault(f"{STUCK} tool calls hang; mend the tool, or run it in a process that can be ended")
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def run() -> None:
        try:
            answer = work()
        except BaseException as error:  # a tool may call sys.exit
            answer = error if isinstance(error, Exception) else RuntimeError(f"{type(error).__name__}: {error}")
        settle(future, answer)

    thread = threading.Thread(target=run, name="sharpen tool", daemon=True)
    thread.start()
    try:
        return await future
    except asyncio.CancelledError:
        with _threads.lock:
            _threads.running += 1
        threading.Thread(target=_release, args=(thread,), daemon=True).start()
        raise


def _release(thread: threading.Thread) -> None:
    thread.join()
    with _threads.lock:
        _threads.running -= 1


def _what(error: Exception) -> str:
    """One line for ``error``, or for the first that a group of anyio's is around."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


async def _resolve(work: Callable[[], Any]) -> dict[str, Any]:
    result = work()
    return dict(await result if inspect.isawaitable(result) else result)


def as_text(result: Any, limit: int) -> str:
    """A result as the policy reads it: text as it is, other values as JSON, at most ``limit`` characters and a word on what was cut."""
    if isinstance(result, bytes | bytearray):
        try:
            result = bytes(result).decode()
        except UnicodeDecodeError:
            return f"error: the result is {len(result)} bytes that are not text"
    if not isinstance(result, str):
        try:
            result = msgspec.json.encode(result).decode()
        except (TypeError, ValueError):
            result = str(result)
    return result if len(result) <= limit else f"{result[:limit]}{CUT.format(len(result) - limit)}"


def opening(task: Task, system: str, said: str) -> tuple[Message, ...]:
    """How a task opens: the system message where its prompt has none, and what the tools say first at the end of its last user message."""
    messages = list(task.prompt)
    if system and not (messages and messages[0].role == "system"):
        messages.insert(0, Message(role="system", content=system))
    if said and messages and messages[-1].role == "user":
        messages[-1] = Message(role="user", content=f"{messages[-1].content}{said}")
    elif said:
        messages.append(Message(role="user", content=said))
    if not any(message.role == "user" for message in messages):
        raise EnvironmentFault(f"task {task.key!r} has no prompt, and its environment says nothing first")
    return tuple(messages)


def _canonical(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


def _source(function: Callable[..., Any]) -> str:
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        return getattr(function, "__qualname__", repr(function))

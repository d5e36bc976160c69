"""Any program that talks to an OpenAI-compatible URL, as the agent. Its calls go through a recording proxy to the policy."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec.structs import replace

from sharpen import placeholders
from sharpen.agents.proxy import Call, Calls, conversations, serve
from sharpen.errors import ContentFiltered, EnvironmentFault, ModelError, SettingsError
from sharpen.policies.base import Policy, Sampling, turn_seed
from sharpen.records import Cost, Maker, Message, Record, SampleKey, Stop, Task, Thread, Trajectory
from sharpen.store.files import digest

TAIL = 16 << 10  # bytes kept of what a program prints, the last ones
PLACEHOLDERS = ("prompt", "prompt_file", "base_url", "api_key", "model", "here")
_PLACEHOLDER = re.compile(rf"\{{({'|'.join(PLACEHOLDERS)})\}}")


class Harness(Record, frozen=True, kw_only=True):
    """The program and how it is run.

    ``command`` and the values of ``env`` may hold ``{prompt}``, ``{prompt_file}``, ``{base_url}``, ``{api_key}``, ``{model}`` and ``{here}``
    (the folder that sharpen runs in; the program itself runs in a fresh one, gone afterwards). ``prompt_by`` says how the task reaches it.
    ``timeout_s`` is for the whole try; the run's ``episode_timeout_s`` should be longer. After ``max_calls`` calls it gets refusals.

    The program sees no environment variable but PATH, LANG, a HOME and TMPDIR of its own, OPENAI_BASE_URL, OPENAI_API_KEY, OPENAI_MODEL
    and those in ``env``, which win.
    """

    command: tuple[str, ...]
    prompt_by: Literal["argument", "stdin", "file"] = "argument"
    timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 300.0
    max_calls: Annotated[int, msgspec.Meta(ge=1)] = 50
    env: dict[str, str] = {}

    def __post_init__(self) -> None:
        if not self.command:
            raise SettingsError("harness.command is empty; name the program and its arguments, one item each")
        for part in self.command:
            placeholders.check_spelling("harness.command", part, PLACEHOLDERS)
        for name, value in self.env.items():
            placeholders.check_spelling(f"harness.env.{name}", value, PLACEHOLDERS)
        needed = {"argument": "{prompt}", "file": "{prompt_file}"}.get(self.prompt_by, "")
        if not any(needed in part for part in (*self.command, *self.env.values())):
            raise SettingsError(f"harness.prompt_by is {self.prompt_by}, but neither command nor env has {needed} in it")


@dataclass(frozen=True)
class _Ended:
    """How a program ended. ``code`` is None where its time ran out, ``waiting`` whether the engine owed it an answer then."""

    code: int | None
    waiting: bool
    stdout: str
    stderr: str


@dataclass(frozen=True)
class HarnessAgent:
    """A program driven by ``policy``. ``fingerprint`` is the model's.

    How a try ends:

    - the program exits with 0: ``done``. ``outcome["answer"]`` is the end of what it printed to stdout.
    - it exits with anything else after the model has answered: ``crashed``, the policy's failure. It drove the program there.
    - ``max_calls`` used up: ``turn_limit``. Time used up while the program was busy by itself: ``turn_limit``.
    - a conversation outgrew the context, and no later call was answered: ``overflow``. A content filter stopped what the policy said: ``filtered``.
    - EnvironmentFault where the policy had no say: the program could not start, ended before the model answered once, was killed by a
      signal, or ran out of time while the engine owed it an answer. PolicyError where the engine broke: the program is ended at once.

    Where the program rewrites its history or runs sub-agents, ``messages`` and ``turns`` are the longest conversation, and the others
    are ``threads``; answers that it asked for again and left unused are in ``outcome["unused"]`` and train nothing.
    Whatever it leaves running in its process group is killed; a daemon that opens a session of its own gets away.
    """

    name: str
    policy: Policy
    fingerprint: str
    harness: Harness
    sampling: Sampling
    maker: Maker | None = None

    def __post_init__(self) -> None:
        program = _fill(self.harness.command[0], {"here": str(Path.cwd())})
        if "{" not in program and shutil.which(program) is None:
            raise SettingsError(f"harness.command: no program {program!r} on PATH; a path of your own begins with {{here}}/")

    def key(self, task: Task, index: int) -> SampleKey:
        environment = f"harness-{digest(self.harness)}"
        return SampleKey(model=self.fingerprint, task=task.key, environment=environment, sampling=digest(self.sampling), index=index)

    async def run(self, task: Task, index: int) -> Trajectory:
        started = time.monotonic()
        sampling = replace(self.sampling, seed=turn_seed(self.sampling.seed, (task.key, index)))
        calls = Calls(self.policy, sampling, self.harness.max_calls)
        prompt = "\n\n".join(message.content for message in task.prompt)
        if not prompt:
            raise EnvironmentFault(f"task {task.key!r} has no prompt; a harness needs one")
        folder = Path(tempfile.mkdtemp(prefix="sharpen-harness-"))
        try:
            async with serve(calls) as base_url:
                ended = await self._play(folder, prompt, base_url, calls)
        except EnvironmentFault as fault:
            raise EnvironmentFault(f"task {task.key}: {fault}") from fault
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        if calls.broken.done():
            error = calls.broken.result()
            # A template that cannot render what the program sent: its tries say nothing about the policy.
            if isinstance(error, ModelError):
                raise EnvironmentFault(f"task {task.key}: {error}") from error
            if not isinstance(error, ContentFiltered):
                raise error
        stop = "filtered" if calls.broken.done() else self._stop(task, ended, calls)
        return _trajectory(self, task, index, calls, stop, ended, round(time.monotonic() - started, 3))

    async def _play(self, folder: Path, prompt: str, base_url: str, calls: Calls) -> _Ended:
        """Run the program to its end, to the end of its time, or until the engine breaks. Leaves no process of its group behind."""
        for name in ("work", "home", "tmp"):
            (folder / name).mkdir()
        asked = folder / "prompt.txt"
        asked.write_text(prompt, encoding="utf-8")
        values = {"prompt": prompt, "prompt_file": str(asked), "base_url": base_url, "here": str(Path.cwd())}
        values |= {"api_key": "sharpen", "model": self.policy.name}
        environment = {"PATH": os.environ.get("PATH", os.defpath), "LANG": os.environ.get("LANG", "C.UTF-8")}
        environment |= {"HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp")}
        environment |= {"OPENAI_BASE_URL": base_url, "OPENAI_API_KEY": values["api_key"], "OPENAI_MODEL": values["model"]}
        environment |= {name: _fill(value, values) for name, value in self.harness.env.items()}
        command = [_fill(part, values) for part in self.harness.command]
        with (asked if self.harness.prompt_by == "stdin" else Path(os.devnull)).open("rb") as stdin:
            async with _captured() as (out, stdout), _captured() as (err, stderr):
                try:
                    process = await asyncio.create_subprocess_exec(
                        *command, cwd=folder / "work", env=environment, stdin=stdin, stdout=out, stderr=err, start_new_session=True
                    )
                except (OSError, ValueError) as error:
                    hint = "; give the prompt by stdin or file" if self.harness.prompt_by == "argument" else ""
                    raise EnvironmentFault(f"{self.harness.command[0]} cannot be started: {error}{hint}") from error
                finally:
                    os.close(out)
                    os.close(err)
                exited = asyncio.ensure_future(process.wait())
                events: set[asyncio.Future[Any]] = {exited, calls.broken}
                try:
                    await asyncio.wait(events, timeout=self.harness.timeout_s, return_when=asyncio.FIRST_COMPLETED)
                    code = exited.result() if exited.done() else None
                    waiting = calls.in_flight > 0
                finally:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                    await exited
                await asyncio.wait({stdout.closed, stderr.closed}, timeout=1.0)  # a daemon that got away may hold them open
                return _Ended(code, waiting, stdout.text(), stderr.text())

    def _stop(self, task: Task, ended: _Ended, calls: Calls) -> Stop:
        """Why the try ended. EnvironmentFault where that says nothing about the policy."""
        program = Path(self.harness.command[0]).name
        last = (ended.stderr.strip() or ended.stdout.strip() or "it printed nothing").splitlines()[-1][:300]
        if ended.code is None and ended.waiting:
            raise EnvironmentFault(f"task {task.key}: {program} waited for the engine when its {self.harness.timeout_s:g} s ran out")
        if not calls.answered and not calls.overflowed:
            how = "ran out of time" if ended.code is None else f"exited with {ended.code}"
            raise EnvironmentFault(f"task {task.key}: {program} {how} before the model answered once: {last}")
        if ended.code is None or calls.refused:
            return "turn_limit"
        if calls.overflowed:
            return "overflow"
        if ended.code < 0:
            raise EnvironmentFault(f"task {task.key}: {program} was killed by {signal.Signals(-ended.code).name}: {last}")
        return "crashed" if ended.code else "done"


def _trajectory(agent: HarnessAgent, task: Task, index: int, calls: Calls, stop: Stop, ended: _Ended, seconds: float) -> Trajectory:
    found, unused = conversations(calls.answered) if calls.answered else ([], [])
    outcome: dict[str, Any] = {"exit": ended.code, "answer": ended.stdout.strip() if stop == "done" else ""}
    if stop != "done":
        outcome |= {"stdout": ended.stdout, "stderr": ended.stderr}
    if calls.wished:
        outcome["wished"] = calls.wished
    if unused:
        outcome["unused"] = [call.messages[-1].content for call in unused]
    threads = [Thread(messages=leaf.messages, tools=leaf.tools, turns=tuple(call.turns[-1] for call in own)) for leaf, own in found]
    main, others = (threads[0], tuple(threads[1:])) if threads else (Thread(messages=task.prompt), ())
    return Trajectory(
        key=agent.key(task, index),
        agent=agent.name,
        messages=main.messages,
        tools=main.tools,
        turns=main.turns,
        threads=others,
        actions=tuple(_action(call) for call in calls.answered if call not in unused),
        stop=stop,
        outcome=outcome,
        cost=Cost(prompt_tokens=calls.prompt_tokens, sampled_tokens=calls.sampled_tokens, seconds=seconds, turns=len(calls.answered)),
        maker=agent.maker,
    )


def _action(call: Call) -> str:
    """What the program was told: the calls of its tools, or the text."""
    answer: Message = call.messages[-1]
    return "; ".join(f"{one.name}({one.arguments})" for one in answer.tool_calls) or answer.content.strip()


def _fill(text: str, values: Mapping[str, str]) -> str:
    """``text`` with its placeholders replaced, in one pass: a prompt that holds a placeholder stays as it is."""
    return _PLACEHOLDER.sub(lambda found: values.get(found[1], found[0]), text)


class _Tail(asyncio.Protocol):
    """The last ``TAIL`` bytes that come through a pipe, however many do."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.data += data
        if len(self.data) > 4 * TAIL:
            del self.data[:-TAIL]

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)

    def text(self) -> str:
        return self.data[-TAIL:].decode(errors="replace")


@asynccontextmanager
async def _captured() -> AsyncIterator[tuple[int, _Tail]]:
    """A pipe: the end to print to, for the caller to close, and what comes out. Not asyncio's own: its wait() hangs while a daemon holds one."""
    end, begin = os.pipe()
    transport, tail = await asyncio.get_running_loop().connect_read_pipe(_Tail, os.fdopen(end, "rb", 0))
    try:
        yield begin, tail
    finally:
        transport.close()

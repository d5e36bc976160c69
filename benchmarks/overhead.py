"""What each kind of indirection costs a call, against the same call made directly.

    python benchmarks/overhead.py --tries 40 --turns 20

Two kinds of calls. A policy asked through the recording proxy, against the same scripted policy asked directly; and a tool called in an episode as a
plain Python function, through an MCP server over its standard streams, and through one over HTTP on loopback, against calling that function.

Each try is one conversation of ``turns`` calls; the arms take turns, so that another load on the machine hits all. Prints one JSON object. For each
arm, over tries: the median and its 95 % interval of the wall time that a call takes longer (a try's own figure is its median over calls) and of the CPU
time of this process and, where there is one, of the server's (counted in
steps of 10 ms: give it many turns); and the milliseconds that starting and stopping took. Client and proxy share one
process, so that the client's own time is in the proxy's figures: an upper bound. Wall time says little on a machine that does other work.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from statistics import median

import aiohttp
import msgspec
import numpy as np
import psutil
from scipy import stats

from sharpen.agents.proxy import Calls, serve
from sharpen.environments.mcp import Mcp, mcp_environment
from sharpen.environments.tools import Functions, ToolEnvironment, function_environment
from sharpen.policies.base import Conversation, Sampling
from sharpen.policies.scripted import ScriptedPolicy
from sharpen.records import Message, Task, ToolCall, TurnTokens

OBSERVATION = "You see a door, a key and a long corridor. " * 10
TASK = Task(key="t", family="t", prompt=(Message(role="user", content="Look around."),))
Ask = Callable[[int], Awaitable[object]]


def look(at: int) -> str:
    """Look at something.

    Args:
        at: What to look at.
    """
    return f"{at} {OBSERVATION}"[:400]


def run_server(port: int | None) -> None:
    """This file as an MCP server: over HTTP on ``port``, else over its standard streams."""
    from mcp.server import MCPServer

    server = MCPServer("looks", log_level="CRITICAL")
    server.tool()(look)
    if port is None:
        server.run("stdio")
    else:
        server.run("streamable-http", port=port)


# ---------------------------------------------------------------- the arms: each opens once a try, and gives what makes its call number n


@asynccontextmanager
async def policy_directly() -> AsyncIterator[Ask]:
    policy = scripted()
    messages: list[Message] = []
    ids: list[TurnTokens] = []

    async def ask(at: int) -> None:
        messages.append(Message(role="user", content=look(at)))
        turn = await policy.complete(Conversation(messages=tuple(messages), turns=tuple(ids)), Sampling())
        messages.append(turn.message)
        ids.append(turn.tokens)

    yield ask


@asynccontextmanager
async def policy_by_proxy(turns: int) -> AsyncIterator[Ask]:
    messages: list[dict[str, str]] = []
    async with aiohttp.ClientSession() as session, serve(Calls(scripted(), Sampling(), turns)) as url:

        async def ask(at: int) -> None:
            messages.append({"role": "user", "content": look(at)})
            async with session.post(f"{url}/chat/completions", data=msgspec.json.encode({"messages": messages})) as response:
                said = msgspec.json.decode(await response.read())["choices"][0]["message"]
            messages.append({"role": "assistant", "content": said["content"]})

        yield ask
        await session.close()


@asynccontextmanager
async def function_directly() -> AsyncIterator[Ask]:
    async def ask(at: int) -> str:
        return look(at)

    yield ask


@asynccontextmanager
async def tool(environment: ToolEnvironment) -> AsyncIterator[Ask]:
    episode, _ = await environment.start(TASK)

    async def ask(at: int) -> None:
        call = ToolCall(name="look", arguments=f'{{"at": {at}}}')
        step = await episode.step(Message(role="assistant", content="", tool_calls=(call,)))
        assert step.messages[0].content == look(at), step

    yield ask
    await episode.close()


def scripted() -> ScriptedPolicy:
    return ScriptedPolicy(lambda conversation, rng: f"go {rng.choice(('north', 'south'))}")


@contextmanager
def http_server() -> Iterator[tuple[str, psutil.Process]]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, __file__, "--serve", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/mcp", psutil.Process(process.pid)
    finally:
        process.kill()
        process.wait()


# ---------------------------------------------------------------- measuring


class Spent(msgspec.Struct):
    """One try of one arm, in seconds: of each call, of CPU a call here and in the servers, of starting and stopping."""

    calls: list[float]
    cpu: float
    server_cpu: float | None
    around: float


async def one(open_: Callable[[], object], turns: int, server: psutil.Process | None) -> Spent:
    """``server`` is the process to watch beside this one; a server that the arm itself starts is found among the children."""
    began = time.perf_counter()
    calls = []
    async with open_() as ask:  # type: ignore[attr-defined]
        watched = [server] if server else [p for p in psutil.Process().children() if p.cmdline()[-1:] == ["--serve"]]
        before, mark = sum(map(_cpu, watched)), time.process_time()
        for at in range(turns):
            asked = time.perf_counter()
            await ask(at)
            calls.append(time.perf_counter() - asked)
        cpu, after = time.process_time() - mark, sum(map(_cpu, watched))
    return Spent(calls, cpu / turns, (after - before) / turns if watched else None, time.perf_counter() - began - sum(calls))


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def middle(values: list[float], scale: float) -> dict[str, float]:
    """The median with its 95 % interval between order statistics (binomial, distribution-free); the whole range under six values."""
    ordered = np.sort(np.asarray(values) * scale)
    low = int(stats.binom.ppf(0.025, len(ordered), 0.5))
    low = max(0, low - 1)
    return {"median": round(median(ordered), 2), "low": round(ordered[low], 2), "high": round(ordered[-1 - low], 2), "n": len(ordered)}


def difference(arm: list[Spent], base: list[Spent]) -> dict[str, object]:
    found: dict[str, object] = {
        "extra_wall_us_a_call": middle([median(a.calls) - median(b.calls) for a, b in zip(arm, base, strict=True)], 1e6),
        "extra_cpu_us_a_call": middle([a.cpu - b.cpu for a, b in zip(arm, base, strict=True)], 1e6),
    }
    servers = [a.server_cpu for a in arm if a.server_cpu is not None]
    if servers:
        found["server_cpu_us_a_call"] = middle(servers, 1e6)
    return found | {"start_and_stop_ms_a_try": middle([a.around for a in arm], 1e3)}


async def measure(tries: int, turns: int) -> dict[str, object]:
    with http_server() as (url, process):
        functions = function_environment(Functions(functions=(f"{__file__}:look",)))
        stdio = mcp_environment(Mcp(command=(sys.executable, __file__, "--serve")))
        http = mcp_environment(Mcp(url=url))
        arms: dict[str, tuple[Callable[[], object], psutil.Process | None]] = {
            "policy": (policy_directly, None),
            "proxy": (lambda: policy_by_proxy(turns), None),
            "call": (function_directly, None),
            "function": (lambda: tool(functions), None),
            "mcp_stdio": (lambda: tool(stdio), None),
            "mcp_http": (lambda: tool(http), process),
        }
        spent: dict[str, list[Spent]] = {name: [] for name in arms}
        for at in range(tries + 1):
            for name, (open_, server) in arms.items():
                found = await one(open_, turns, server)
                if at:  # the first: imports and first connections
                    spent[name].append(found)
        began = time.perf_counter()
        await asyncio.gather(*(one(arms["proxy"][0], turns, None) for _ in range(tries)))
        rate = round(tries * turns / (time.perf_counter() - began))
    return {
        "proxy": difference(spent["proxy"], spent["policy"]) | {"calls_a_second_all_at_once": rate},
        **{name: difference(spent[name], spent["call"]) for name in ("function", "mcp_stdio", "mcp_http")},
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=40)
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--serve", nargs="?", type=int, const=0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve is not None:
        run_server(given.serve or None)
        sys.exit()
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip()
    where = {"commit": commit, "machine": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
    results = asyncio.run(measure(given.tries, given.turns))
    print(json.dumps({**where, "tries": given.tries, "turns": given.turns, **results}, indent=1))

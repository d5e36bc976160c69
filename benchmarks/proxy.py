"""What the recording proxy costs a call: a scripted policy asked through it, against the same calls made directly.

    python benchmarks/proxy.py --tries 20 --turns 20

Each try is a conversation of ``turns`` calls, its observations of 400 characters. Client and proxy share one process, so that the client's own time is
in the difference: an upper bound. Prints one JSON object; intervals are 95 %, over tries. CPU time is the process's, the rest wall time, which
says little on a machine that does other work.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import platform
import subprocess
import time
from pathlib import Path
from statistics import median

import aiohttp
import msgspec

from sharpen.agents.proxy import Calls, serve
from sharpen.policies.base import Conversation, Sampling
from sharpen.policies.scripted import ScriptedPolicy
from sharpen.records import Message, TurnTokens
from sharpen.stats import cluster_bootstrap_mean

OBSERVATION = "You see a door, a key and a long corridor. " * 10


async def direct(policy: ScriptedPolicy, turns: int) -> list[float]:
    """Seconds of each call."""
    messages: tuple[Message, ...] = ()
    ids: list[TurnTokens] = []
    spent = []
    for at in range(turns):
        messages = (*messages, Message(role="user", content=f"{at} {OBSERVATION}"[:400]))
        began = time.perf_counter()
        turn = await policy.complete(Conversation(messages=messages, turns=tuple(ids)), Sampling())
        spent.append(time.perf_counter() - began)
        messages = (*messages, turn.message)
        ids.append(turn.tokens)
    return spent


async def proxied(policy: ScriptedPolicy, turns: int) -> tuple[list[float], float]:
    """Seconds of each call, and of starting and stopping the server."""
    messages: list[dict[str, str]] = []
    spent = []
    began = time.perf_counter()
    async with aiohttp.ClientSession() as session:
        async with serve(Calls(policy, Sampling(), turns)) as url:
            for at in range(turns):
                messages.append({"role": "user", "content": f"{at} {OBSERVATION}"[:400]})
                asked = time.perf_counter()
                async with session.post(f"{url}/chat/completions", data=msgspec.json.encode({"messages": messages})) as response:
                    said = msgspec.json.decode(await response.read())["choices"][0]["message"]
                spent.append(time.perf_counter() - asked)
                messages.append({"role": "assistant", "content": said["content"]})
            await session.close()
        return spent, time.perf_counter() - began - sum(spent)


async def together(policy: ScriptedPolicy, tries: int, turns: int) -> float:
    """Calls a second of ``tries`` tries at once."""
    began = time.perf_counter()
    await asyncio.gather(*(proxied(policy, turns) for _ in range(tries)))
    return tries * turns / (time.perf_counter() - began)


def interval(values: list[float], scale: float) -> dict[str, float]:
    found = cluster_bootstrap_mean({str(at): [value * scale] for at, value in enumerate(values)}, span=(-math.inf, math.inf))
    return {"mean": round(found.value, 1), "low": round(found.low, 1), "high": round(found.high, 1), "n": len(values)}


async def measure(tries: int, turns: int) -> dict[str, object]:
    policy = ScriptedPolicy(lambda conversation, rng: f"go {rng.choice(('north', 'south'))}")
    await direct(policy, 2), await proxied(policy, 2)  # imports and first connections
    differences, around, cpu = [], [], []
    for _ in range(tries):  # the arms take turns, so that another load on the machine hits both
        marks = [time.process_time()]
        bare = await direct(policy, turns)
        marks.append(time.process_time())
        through, rest = await proxied(policy, turns)
        marks.append(time.process_time())
        cpu.append((marks[2] - 2 * marks[1] + marks[0]) / turns)
        extra = [b - a for a, b in zip(bare, through, strict=True)]
        differences.append(median(extra))
        around.append(rest)
    return {
        "extra_cpu_us_a_call": interval(cpu, 1e6),
        "extra_us_a_call": interval(differences, 1e6),
        "server_ms_a_try": interval(around, 1e3),
        "calls_a_second_all_at_once": round(await together(policy, tries, turns)),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=50)
    parser.add_argument("--turns", type=int, default=20)
    given = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip()
    where = {"commit": commit, "machine": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
    found = asyncio.run(measure(given.tries, given.turns))
    print(json.dumps({**where, "tries": given.tries, "turns": given.turns, **found}, indent=1))

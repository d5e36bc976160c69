"""How fast verdicts come, and what a hanging answer costs: ``python benchmarks/verdicts.py --answers 2000``.

Three parts. (1) Mathematics: the same answers through ``judge`` and the pool, and through math-verify called directly in as many plain processes, in
turns; prints verdicts/s, processor time (which a busy machine distorts less) and the ratios. (2) A hanging answer, alone and among others: what it
costs beside its time limit. (3) ``--many`` verdicts of cheap kinds, in this process (numeric) and in the pool (regex): memory, processes and
open files after a tenth of them and after all.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import msgspec
import psutil

from sharpen.records import Message, SampleKey, Task, Trajectory
from sharpen.verifiers.load import VerifierSettings, load_verifier
from sharpen.verifiers.run import judge
from sharpen.verifiers.workers import CPUS

HANGS = r"\boxed{\dfrac{5^{\left(5^{\left(5^{\left(5^5\right)}\right)} - 4\right)} - 5}{16}}"  # math-verify's issue 65

# What is measured against: parse and verify, and nothing else. The first line says when it is ready, each later one how long its lot took.
PLAIN = """
import sys, time, logging, msgspec
logging.disable(logging.CRITICAL)
from math_verify import parse, verify
def lot(pairs):
    return [verify(parse("$" + gold + "$"), parse(answer)) for gold, answer in pairs]
lot([("1", "$1$")]); print(flush=True)
for line in sys.stdin:
    started = time.perf_counter(); passed = sum(lot(msgspec.json.decode(line)))
    print(msgspec.json.encode([time.perf_counter() - started, passed]).decode(), flush=True)
"""


def pairs(number: int, seed: int) -> list[tuple[str, str]]:
    """References and answers, all different, half of them right."""
    rng = random.Random(seed)
    made = []
    for _ in range(number):
        a, b, c = rng.randrange(2, 999), rng.randrange(2, 99), rng.randrange(1, 99)
        right = rng.random() < 0.5
        gold, answer = rng.choice(
            [
                (str(a), f"So the total is $\\boxed{{{a if right else a + 1}}}$."),
                (f"\\frac{{{a}}}{{{b}}}", f"We get $x = \\frac{{{a * 2}}}{{{b * 2 if right else b * 2 + 1}}}$."),
                (f"{a}x + {b}", f"Therefore it is ${b} + {a if right else a + 1}x$."),
                (f"\\sqrt{{{a}}} + {c}", f"The answer is \\boxed{{{c}+\\sqrt{{{a if right else a + 1}}}}}"),
                (f"({a}, {b})", f"The point is $({a}, {b if right else c + 100})$."),
            ]
        )
        made.append((gold, answer))
    return made


def tried(answer: str) -> Trajectory:
    key = SampleKey(model="m", task="t", environment="e", sampling="s", index=0)
    return Trajectory(key=key, agent="m", messages=(Message(role="assistant", content=answer),), stop="done")


def verifier(**settings: object) -> object:
    return load_verifier(msgspec.convert(settings, VerifierSettings))


def pooled(judged: object, lot: list[tuple[str, str]], threads: ThreadPoolExecutor) -> tuple[float, list[str]]:
    started = time.perf_counter()
    said = list(threads.map(lambda pair: judge(Task(key="t", family="t", reference=pair[0]), tried(pair[1]), judged).outcome, lot))
    return time.perf_counter() - started, said


def used(processes: list[psutil.Process]) -> float:
    """Processor seconds that these have taken so far."""
    return sum(sum(one.cpu_times()[:2]) for one in processes)


def mathematics(answers: int, lots: int) -> None:
    judged = verifier(verifier="math")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "start_new_session": True}  # as the pool starts its own
    plain = [subprocess.Popen([sys.executable, "-c", PLAIN], **pipes) for _ in range(CPUS)]
    ours, theirs, ratios, cpu = 0.0, 0.0, [], {"ours": 0.0, "theirs": 0.0}
    them = [psutil.Process(one.pid) for one in plain]
    with ThreadPoolExecutor(4 * CPUS) as threads:
        pooled(judged, pairs(8 * CPUS, -1), threads)  # everything is imported
        for one in plain:
            one.stdout.readline()
        for number in range(lots):
            lot = pairs(answers // lots, number)
            us = [one for one in [psutil.Process(), *psutil.Process().children()] if one not in them]
            parts = [lot[at::CPUS] for at in range(CPUS)]
            for turn in ("ours", "theirs") if number % 2 else ("theirs", "ours"):
                before = used(us if turn == "ours" else them)
                if turn == "ours":
                    mine, said = pooled(judged, lot, threads)
                else:
                    started = time.perf_counter()
                    for one, part in zip(plain, parts, strict=True):
                        one.stdin.write(msgspec.json.encode(part).decode() + "\n")
                        one.stdin.flush()
                    passed = sum(msgspec.json.decode(one.stdout.readline())[1] for one in plain)
                    other = time.perf_counter() - started
                cpu[turn] += used(us if turn == "ours" else them) - before
            ours, theirs, ratios = ours + mine, theirs + other, [*ratios, other / mine]
            if said.count("pass") != passed or "error" in said:
                print(f"lot {number}: {said.count('pass')} pass here and {passed} there, {said.count('error')} errors")
    for one in plain:
        one.stdin.close()
        one.wait()
    total = answers // lots * lots
    print(
        f"mathematics, {CPUS} processes, {total} answers in {lots} lots: {total / ours:.0f} verdicts/s, math-verify alone {total / theirs:.0f}/s,"
    )
    each = {turn: seconds / total * 1000 for turn, seconds in cpu.items()}
    print(
        f"  processor time a verdict {each['ours']:.1f} ms, math-verify alone {each['theirs']:.1f} ms, ratio {each['theirs'] / each['ours']:.2f};"
    )
    print(
        f"  by the clock: ratio {theirs / ours:.2f} (median of lots {sorted(ratios)[lots // 2]:.2f}, {min(ratios):.2f} to {max(ratios):.2f})"
    )


def hanging(limit: float) -> None:
    judged = verifier(verifier="math", timeout_s=limit)
    with ThreadPoolExecutor(4) as threads:
        lot = pairs(100, 77)
        pooled(judged, lot, threads)
        alone, _ = pooled(judged, lot, threads)
        started = time.perf_counter()
        one = judge(Task(key="t", family="t", reference="4"), tried(HANGS), judged)
        print(f"a hanging answer, limit {limit:g} s: {one.outcome} after {time.perf_counter() - started:.2f} s ({one.reason})")
        mixed, said = pooled(judged, [*lot[:50], ("4", HANGS), *lot[50:]], threads)
    print(f"  100 answers take {alone:.2f} s alone and {mixed:.2f} s with one that hangs among them; errors {said.count('error')}")


def many(number: int) -> None:
    me = psutil.Process()

    def held() -> str:
        children = [child for child in me.children(recursive=True) if child.is_running()]
        memory = sum(child.memory_info().rss for child in children) / 2**20
        return f"{me.memory_info().rss / 2**20:.0f} MB here, {memory:.0f} MB in {len(children)} processes, {me.num_fds()} files"

    with ThreadPoolExecutor(4 * CPUS) as threads:
        for name, judged, reference in (
            ("numeric", verifier(verifier="numeric"), "7"),
            ("regex", verifier(verifier="regex", match="search"), "[0-9]+ is 7"),
        ):
            for part in (number // 10, number - number // 10):
                started, passed = time.perf_counter(), 0
                for begin in range(0, part, 1000):
                    _, said = pooled(judged, [(reference, f"{n} is {n % 10}") for n in range(begin, min(part, begin + 1000))], threads)
                    passed += said.count("pass")
                seconds = time.perf_counter() - started
                print(f"{name}: {part} verdicts, {part / seconds:.0f}/s, {passed} pass: {held()}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--answers", type=int, default=2000)
    parser.add_argument("--lots", type=int, default=10)
    parser.add_argument("--limit", type=float, default=5.0)
    parser.add_argument("--many", type=int, default=100_000)
    asked = parser.parse_args()
    print(f"{platform.machine()}, {CPUS} CPUs, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}")
    mathematics(asked.answers, asked.lots)
    hanging(asked.limit)
    many(asked.many)


if __name__ == "__main__":
    main()

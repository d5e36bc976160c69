"""What a try costs, teacher against student: tokens, seconds and money, with what the student has of its teacher's gain.

    python benchmarks/distillation.py runs/quickstart-best-of-8 --out distillation.json     # reads a finished run, a second
    python benchmarks/distillation.py --smoke                                               # makes a small one on the scripted fake, no model

Of each distilled rung: for teacher, student before and student after pass@1 on dev with its 95 % interval, and means over tries of turns, prompt tokens,
sampled tokens, seconds in which an engine was at work, and dollars; the ratios student after over teacher (tokens by family, with Fieller's interval);
and how many tries of the student pay back what the teacher's tries for training took, in tokens.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from sharpen.policies.scripted import scripted_model
from sharpen.records import Distilled, Interval
from sharpen.report.read import read_run
from sharpen.run import climb
from sharpen.settings import convert

SMOKE = {
    "name": "smoke", "seed": 1, "teacher": "best-of-8", "ladder": {"rungs": ["distillation"]}, "sampling": {"max_tokens": 32},
    "tasks": {
        "source": "reasoning_gym", "dataset": "chain_sum", "config": {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 2},
        "splits": {"demo": 4, "train": 24, "dev": 24},
    },
    "evaluation": {"n": 2, "k": [1, 2], "max_tokens": 32},
}  # fmt: skip


def bounds(interval: Interval) -> list[float]:
    return [round(x, 4) for x in (interval.value, interval.low, interval.high)]


def costs(made: Distilled) -> dict[str, Any]:
    def share(after: float, teacher: float) -> float:
        return round(after / teacher, 4) if teacher else math.nan

    taught, student = made.teacher, made.after
    saved = taught.prompt_tokens + taught.sampled_tokens - student.prompt_tokens - student.sampled_tokens
    return {
        "each try": {who: msgspec.to_builtins(one) | {"rate": bounds(one.rate)} for who, one in
                     (("teacher", taught), ("before", made.before), ("after", student))},
        "share of the gain kept": bounds(made.kept),
        "share of tokens": bounds(made.tokens),
        "share of seconds": share(student.seconds, taught.seconds),
        "share of dollars": share(student.dollars, taught.dollars),
        "over its teacher": bounds(made.over.printed),
        "tries that pay back the teaching, in tokens": math.ceil(made.teaching.tokens / saved) if saved > 0 else math.inf,
    }  # fmt: skip


def measure(run: Path) -> dict[str, Any]:
    view = read_run(run, samples=0)
    found = {rung.name: costs(rung.distilled) for rung in view.rungs if rung.distilled is not None}
    if not found:
        raise SystemExit(f"{run} holds no distilled rung; make one with sharpen distil")
    return {"run": view.name, "hardware": view.hardware, "commit": view.commit, "engine": view.engine, "seed": view.seed, "rungs": found}


def smoke(folder: Path) -> Path:
    scripted_model(folder / "model", skill=0.2)
    climb(convert({**SMOKE, "model": str(folder / "model")}, "smoke"), folder)
    return folder / "smoke"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.smoke == (arguments.run is not None):
        parser.error("name a run, or give --smoke")
    with tempfile.TemporaryDirectory() as work:
        results = measure(smoke(Path(work)) if arguments.smoke else arguments.run)
    print(json.dumps(results, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=1))

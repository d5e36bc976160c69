"""What a task costs, teacher against student: tokens, seconds and money, with what the student has of its teacher's gain.

    python benchmarks/distillation.py runs/quickstart-best-of-8 --out distillation.json     # reads a finished run, a second
    python benchmarks/distillation.py runs/quickstart-best-of-8 --dollars-per-hour 0.10     # and prices the seconds of a machine of one's own
    python benchmarks/distillation.py --smoke                                               # makes a small one on the scripted fake, no model

Of each distilled rung, for teacher, student before and student after: pass@1 on dev, and the mean of one try at a task, prompts and whatever it was chosen
from included, of tokens, seconds and dollars, every task counting once, with a 95 % interval over families; and the shares student after over teacher
(Fieller's interval, by family), with how many tries of the student pay back, in tokens, what the teacher's tries for training took.

Engines answer many tries at once, so the seconds in which one was at work and the dollars are known of a stage as a whole. Each is shared out among the
stage's tries by their tokens, prompt and sampled alike: the interval says how tasks differ and not how the clock does. Seconds that nobody counted (of
recorded tries) and dollars of unknown price are undefined. Without prices and ``--dollars-per-hour`` a model on one's own machine costs no dollars.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sharpen.policies.scripted import scripted_model
from sharpen.records import Distilled, Interval, Trajectory
from sharpen.report.page import RungView, points, rate
from sharpen.report.read import read_run
from sharpen.run import climb
from sharpen.settings import convert
from sharpen.stats import cluster_bootstrap_mean, ratio_of_means
from sharpen.store.files import read_json
from sharpen.store.run import MANIFEST, Manifest
from sharpen.store.segments import Segments

SMOKE = {
    "name": "smoke", "seed": 1, "teacher": "best-of-8", "ladder": {"rungs": ["distillation"]}, "sampling": {"max_tokens": 32},
    "tasks": {
        "source": "reasoning_gym", "dataset": "chain_sum", "config": {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 2},
        "splits": {"demo": 4, "train": 24, "dev": 24},
    },
    "evaluation": {"n": 2, "k": [1, 2], "max_tokens": 32},
}  # fmt: skip

UNITS = ("tokens", "seconds", "dollars")
ByTask = dict[str, list[float]]  # what each try at a task took


@dataclass(frozen=True)
class Side:
    """One agent's tries at the dev tasks: what each took, by unit and task."""

    took: Mapping[str, ByTask]
    families: Mapping[str, str]

    def means(self, unit: str) -> dict[str, float]:
        return {task: sum(values) / len(values) for task, values in self.took[unit].items()}

    def each(self, unit: str) -> Interval:
        values = defaultdict(list)
        for task, mean in self.means(unit).items():
            values[self.families[task]].append(mean)
        most = max((value for means in values.values() for value in means), default=1.0)
        if any(math.isnan(value) for means in values.values() for value in means):
            return Interval(value=math.nan, low=math.nan, high=math.nan, n=len(values), level=0.95, method="undefined")
        return cluster_bootstrap_mean(dict(sorted(values.items())), 0.95, 0, span=(0.0, most or 1.0))


def side(stages: list[Path], families: Mapping[str, str], per_hour: float) -> Side:
    """What the tries in the folders ``stages`` took."""
    took: dict[str, ByTask] = {unit: defaultdict(list) for unit in UNITS}
    for folder in stages:
        manifest = read_json(folder / MANIFEST, Manifest)
        tries = [one for one in Segments(folder / "trajectories", Trajectory).records.values() if one.stop != "error"]
        tokens = [one.cost.prompt_tokens + one.cost.sampled_tokens for one in tries]
        seconds = manifest.inside_s or math.nan
        machine = per_hour * seconds / 3600 if per_hour else 0.0
        dollars = math.nan if manifest.spent.unpriced else manifest.spent.dollars + machine
        for one, many in zip(tries, tokens, strict=True):
            share = many / sum(tokens) if sum(tokens) else math.nan
            for unit, amount in zip(UNITS, (many, share * seconds, share * dollars), strict=True):
                took[unit][one.key.task].append(amount)
    return Side(took, families)


def share(after: Side, teacher: Side, unit: str) -> Interval:
    """What one try of the student takes over what one of the teacher's does, on the tasks that both played."""
    mine, its = after.means(unit), teacher.means(unit)
    pairs = defaultdict(list)
    for task in sorted(mine.keys() & its.keys()):
        pairs[after.families[task]].append((its[task], mine[task]))
    if any(math.isnan(value) for those in pairs.values() for pair in those for value in pair):
        pairs.clear()
    return ratio_of_means(dict(sorted(pairs.items())))


def costs(run: Path, rung: RungView, made: Distilled, per_hour: float) -> dict[str, Any]:
    assert rung.dev is not None
    families = {one.task: one.family for one in rung.dev.tasks}
    rungs = run / "rungs"
    before = rungs / made.gained.base.removeprefix("rungs/")

    def looks(folder: Path) -> list[Path]:
        return sorted(path.parent for path in folder.glob(f"dev*/{MANIFEST}"))

    sides = {
        "teacher": side([rungs / rung.name / "teacher/dev"], families, per_hour),
        "student before": side(looks(before), families, per_hour),
        "student after": side(looks(rungs / rung.name), families, per_hour),
    }
    worked = {"teacher": made.teacher, "student before": made.before, "student after": made.after}
    saved = sides["teacher"].each("tokens").value - sides["student after"].each("tokens").value
    return {
        "a task": {
            who: {"agent": worked[who].who, "tries": worked[who].tries, "pass@1": worked[who].rate} | {unit: one.each(unit) for unit in UNITS}
            for who, one in sides.items()
        },
        "share of the gain kept": made.kept,
        "share of": {unit: share(sides["student after"], sides["teacher"], unit) for unit in UNITS},
        "over its teacher": made.over.printed,
        "tries that pay back the teaching, in tokens": None if not made.teaching.tokens else math.ceil(made.teaching.tokens / saved) if saved > 0 else math.inf,
    }  # fmt: skip


def measure(run: Path, per_hour: float = 0.0) -> dict[str, Any]:
    view = read_run(run, samples=0)
    found = {rung.name: costs(run, rung, rung.distilled, per_hour) for rung in view.rungs if rung.distilled is not None}
    if not found:
        raise SystemExit(f"{run} holds no distilled rung; make one with sharpen distil")
    return {"run": view.name, "hardware": view.hardware, "commit": view.commit, "engine": view.engine, "seed": view.seed, "rungs": found}


def number(of: Interval, times: int = 1) -> str:
    if math.isnan(of.value):
        return "-"
    bounds = "undefined" if math.isnan(of.low) else f"{times * of.low:.3g}, {times * of.high:.3g}"
    return f"{times * of.value:.3g} [{bounds}]" if of.value else "0"


def show(found: dict[str, Any]) -> str:
    lines = [f"{found['run']}: {found['hardware']}; engine {found['engine']}; commit {found['commit']}; seed {found['seed']}"]
    for name, rung in found["rungs"].items():
        lines += ["", f"| {name} | pass@1, dev | tokens a task | seconds a task | dollars for 1,000 |", "| --- | --- | --- | --- | --- |"]
        for who, one in rung["a task"].items():
            lines.append(
                f"| {who}: {one['agent']} | {rate(one['pass@1'])} | "
                + " | ".join(number(one[unit], 1000 if unit == "dollars" else 1) for unit in UNITS)
                + " |"
            )
        shares = " | ".join(rate(rung["share of"][unit]) if rung["share of"][unit].value >= 0 else "-" for unit in UNITS)
        lines.append(f"| student after, as a share of its teacher | {rate(rung['share of the gain kept'])} of the gain | {shares} |")
        paid = rung["tries that pay back the teaching, in tokens"]
        back = (
            "no try of the teacher was asked for to learn from"
            if paid is None
            else f"the teaching is paid back, in tokens, after {paid:,} tries"
        )
        lines.append(f"\nover its teacher: {points(rung['over its teacher'])} points; {back}")
    return "\n".join(lines)


def plain(found: Any) -> Any:
    """For JSON: an interval is value, low, high and n."""
    if isinstance(found, Interval):
        return [found.value, found.low, found.high, found.n]
    return {key: plain(value) for key, value in found.items()} if isinstance(found, dict) else found


def smoke(folder: Path) -> Path:
    scripted_model(folder / "model", skill=0.2)
    climb(convert({**SMOKE, "model": str(folder / "model")}, "smoke"), folder)
    return folder / "smoke"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument(
        "--dollars-per-hour", type=float, default=0.0, help="what the machine that the run was made on costs, where it was not told"
    )
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.smoke == (arguments.run is not None):
        parser.error("name a run, or give --smoke")
    with tempfile.TemporaryDirectory() as work:
        results = measure(smoke(Path(work)) if arguments.smoke else arguments.run, arguments.dollars_per_hour)
    print(show(results))
    if arguments.out:
        arguments.out.write_text(json.dumps(plain(results), indent=1))

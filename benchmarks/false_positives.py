"""What a verifier that passes failures does to what is kept, and to what two rounds of training on it gain, where the truth is known.

    python benchmarks/false_positives.py --plan                              # what it will take; nothing is run
    python benchmarks/false_positives.py WORK --out false_positives.json     # 40 to 60 minutes on 2 cores, 6 GB in WORK
    python benchmarks/false_positives.py WORK --smoke                        # sums, a scripted model, seconds: shows that it works, nothing else

The quickstart's task on fewer games. Each seed draws its own games, tries, training order and false positives. SFT on demonstrations comes first and
is shared by all arms of a seed, as are round 1's tries, which are bought once and judged once for each arm. An arm is a rate at which failed tries of
training games pass: which ones is decided by a hash of the try's key and the seed, so what slips through at 5 % also does at 20 %. Two
rounds, rejection sampling and then expert iteration from what it gave, are done in every arm, whatever they gain and whatever the gate says, and are
evaluated by the truth on the same dev games.

For each arm and round: the purity forecast from the injected rates and the observed pass rate, beside that of all passes; the purity of the rows that
are selected, by as many labels (of the truth) as the gate asks for at first, with its one-sided 95 % lower bound (``stats.purity_bound``), what the gate
makes of it, and the labels until it is settled; the true purity of those rows, and of all sampled rows that train. Gains are paired differences in
pass@1 on dev, over SFT and over the arm without false positives: 95 % intervals over families (all seeds' games together, so training noise that a
seed's games share is not in them), and over seeds (Student's t), which hold it but are wide.

False positives here are independent of what was done. A real verifier's come again with the same mistake, and may teach it better.

A kill or Ctrl-C loses what is under way at most; the same command goes on. Seeds come one after the other, and what is done is in ``--out`` after each arm.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from human_eval import circumstances
from msgspec.structs import replace

from sharpen import advisor, loop
from sharpen.errors import SharpenError
from sharpen.labels import BAR, Labels, content, copy_of, draw, measure, shuffled
from sharpen.measurements import open_bench
from sharpen.methods.base import Attempt, Bench, Prompted
from sharpen.methods.expert_iteration import expert_iteration
from sharpen.methods.rejection_sampling import rejection_sampling
from sharpen.methods.sft import sft
from sharpen.models import load_model
from sharpen.policies.scripted import scripted_model
from sharpen.records import Interval, Label, Measurements, Purity, SampleKey, Task, TaskResult, Trajectory, Verdict
from sharpen.report.live import Live
from sharpen.settings import RunSettings, load_settings, to_yaml
from sharpen.stats import cluster_bootstrap_mean, paired_gain, purity_forecast
from sharpen.store.files import digest, write_atomic, write_json
from sharpen.store.run import Run
from sharpen.tasks.base import TaskSet
from sharpen.tasks.load import load_tasks
from sharpen.verifiers.base import Verifier, close
from sharpen.verifiers.run import judge

QUICKSTART = Path(__file__).parents[1] / "examples" / "textworld" / "quickstart.yaml"
SMOKE = {
    "tasks": {
        "source": "reasoning_gym",
        "dataset": "chain_sum",
        "config": {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 2},
        "seed": 7,
    },
    "sampling": {"n": 4, "max_tokens": 32},
    "evaluation": {"n": 4, "k": [1, 4], "max_tokens": 32},
}
FIRST = "round-1"


class Leaky:
    """``truth``, but of the fails on training tasks the share ``rate`` passes. What judges, dev, is judged by the truth, and so are demonstrations."""

    exact = False

    def __init__(self, truth: Verifier, rate: float, seed: int) -> None:
        self.truth, self.rate, self.seed = truth, rate, seed
        self.name = f"{truth.name}, {rate:g} of fails pass, seed {seed}"

    def verify(self, task: Task, trajectory: Trajectory) -> Verdict:
        verdict = replace(self.truth.verify(task, trajectory), verifier=self.name)
        if task.split == "train" and verdict.outcome == "fail" and self._draw(trajectory.key) < self.rate:
            return replace(verdict, outcome="pass", reason="a false positive")
        return verdict

    def _draw(self, key: SampleKey) -> float:
        """In [0, 1): the same for the same try, whatever the rate."""
        return int(digest([self.seed, key]), 16) / 16**16

    def close(self) -> None:
        close(self.truth)


# ---------------------------------------------------------------- one seed


@dataclass(frozen=True)
class Round:
    """What one round of one arm kept and gave. ``good`` counts what the truth passes."""

    seed: int
    rate: float
    number: int
    tries: int
    passes: int
    good_passes: int
    forecast: float
    kept: int
    good_kept: int
    trained: int
    good_trained: int
    asked: Purity
    settled: Purity
    gate: str
    dev: tuple[TaskResult, ...]


@dataclass
class Seed:
    """One seed's games and its prior, SFT, in a run of their own; and a run for each arm."""

    work: Path
    settings: RunSettings
    live: Live
    asked: Any
    runs: list[Run] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tasks = load_tasks(self.settings.tasks)
        self.base = load_model(self.settings.model, self.settings.template)
        with self._bench("prior", self.tasks) as bench:
            self.prior = sft(bench, "sft", Prompted(self.base)).proposal
            self.before = bench.evaluate("sft", self.prior, "dev").tasks
            bench.sample(f"{FIRST}/sampling", self.prior, self.tasks.split("train").tasks, bench.sampling)
        self.shared = bench.run.folder / FIRST / "sampling" / "trajectories"

    def _bench(self, name: str, tasks: TaskSet) -> Bench:
        run = Run.open(self.work / f"seed-{self.settings.seed}" / name, to_yaml(self.settings))
        self.runs.append(run)
        return open_bench(self.settings, run, tasks, self.base, self.live, self.asked)

    def arm(self, rate: float) -> Iterator[Round]:
        """Both rounds with false positives at ``rate``."""
        assert self.tasks.verifier is not None
        truth, leaky = self.tasks.verifier, Leaky(self.tasks.verifier, rate, self.settings.seed)
        tasks = TaskSet(self.tasks.name, self.tasks.tasks, self.tasks.environment, leaky)
        good: dict[SampleKey, bool] = {}
        with self._bench(f"rate-{100 * rate:g}", tasks) as bench:
            place = bench.run.folder / FIRST / "sampling" / "trajectories"
            for path in self.shared.glob("*.jsonl"):  # tries that lie there are not made again, only judged
                if not (place / path.name).exists():
                    write_atomic(place / path.name, path.read_bytes())
            first = rejection_sampling(bench, FIRST, self.prior)
            yield self._round(bench, 1, leaky, truth, first, good)
            second = expert_iteration(bench, "round-2", first.proposal, first.survivors)
            yield self._round(bench, 2, leaky, truth, second, good)

    def _round(self, bench: Bench, number: int, leaky: Leaky, truth: Verifier, attempt: Attempt, good: dict[SampleKey, bool]) -> Round:
        dev = bench.evaluate(f"round-{number}", attempt.proposal, "dev").tasks
        pool = attempt.pool
        assert pool is not None
        good.update((key, bool(judge(pool.tasks[key.task], pool.trajectories[key], truth))) for key in pool.wanted)
        judged = [key for key in pool.wanted if pool.verdicts[key].outcome != "error"]
        passes = [key for key in judged if pool.verdicts[key]]
        trained = [trajectory.key for _, trajectory in attempt.survivors]
        kept = [key for key in trained if key in pool.verdicts]
        asked, settled = labelled({key: pool.trajectories[key] for key in kept}, good)
        method: advisor.Method = "rejection-sampling" if number == 1 else "expert-iteration"
        gate = advisor.gate(method, Measurements(verifier=leaky.name, purity=asked), "sharpen label")
        return Round(
            seed=self.settings.seed, rate=leaky.rate, number=number, tries=len(judged), passes=len(passes),
            good_passes=sum(good[key] for key in passes), forecast=purity_forecast(1.0, leaky.rate, len(passes) / max(len(judged), 1)),
            kept=len(kept), good_kept=sum(good[key] for key in kept), trained=len(trained), good_trained=sum(good[key] for key in trained),
            asked=asked, settled=settled, gate=gate.outcome, dev=dev,
        )  # fmt: skip

    def close(self) -> float:
        """Seconds that the stages took, in all commands."""
        for run in self.runs:
            run.close()
        return sum(line["seconds"] for run in self.runs for line in run.ledger() if "stage" in line)


def labelled(rows: Mapping[SampleKey, Trajectory], good: Mapping[SampleKey, bool]) -> tuple[Purity, Purity]:
    """The purity of ``rows`` by as many labels, drawn at random, as the gate asks for when there are none; and when labelling on has settled it."""
    texts = {key: content(trajectory) for key, trajectory in rows.items()}
    shown, labels = draw(shuffled(rows), len(rows)), Labels()
    looks = [measure(texts, labels, BAR)]
    while looks[-1].outcome == "open" and looks[-1].missing:
        for one in shown[len(labels.lines) : len(labels.lines) + looks[-1].missing]:
            label = Label(
                key=one.key, digest=texts[one.key], label="good" if good[one.key] else "bad", labeller="the truth", at="", seconds=0.0,
                of=one.of, inclusion=one.inclusion, population=one.population, trajectory=copy_of(rows[one.key]),
            )  # fmt: skip
            labels.lines.append(label)
        looks.append(measure(texts, labels, BAR))
    return looks[min(1, len(looks) - 1)], looks[-1]


# ---------------------------------------------------------------- all seeds


def told(one: Round) -> dict[str, Any]:
    """A round as it is written and printed."""

    def share(part: int, of: int) -> float:
        return part / of if of else math.nan

    return {
        "seed": one.seed, "rate": one.rate, "round": one.number, "tries": one.tries, "passes": one.passes,
        "forecast purity": one.forecast, "true purity of passes": share(one.good_passes, one.passes),
        "selected": one.kept, "labels": one.asked.share.n, "good": one.asked.good, "measured purity": one.asked.share.value,
        "lower bound": one.asked.share.low, "gate": one.gate, "settled": one.settled.outcome, "labels until settled": one.settled.share.n,
        "true purity of selected": share(one.good_kept, one.kept), "sampled rows that train": one.trained,
        "true purity of those": share(one.good_trained, one.trained),
        "pass@1": share(sum(task.passes for task in one.dev), sum(task.samples - task.errors for task in one.dev)),
    }  # fmt: skip


Devs = Mapping[int, Sequence[TaskResult]]


def gain(base: Devs, other: Devs) -> dict[str, Any]:
    """Of the seeds that both have: the paired gain with its intervals over families, over seeds, and each seed's."""
    seeds = sorted(base.keys() & other.keys())
    flat = [[replace(task, task=f"{seed}/{task.task}") for seed in seeds for task in side[seed]] for side in (base, other)]
    each = {str(seed): paired_gain(base[seed], other[seed]).printed.value for seed in seeds}
    over_seeds = cluster_bootstrap_mean({seed: [value] for seed, value in each.items()}, span=(-1.0, 1.0))
    return {"families": numbers(paired_gain(*flat).printed), "seeds": numbers(over_seeds), "each": each}


def numbers(interval: Interval) -> dict[str, Any]:
    return {"gain": interval.value, "low": interval.low, "high": interval.high, "n": interval.n, "method": interval.method}


def gains(rounds: Sequence[Round], before: Devs) -> list[dict[str, Any]]:
    """For each rate and round, the gain over SFT and over the same round without false positives."""
    devs: dict[tuple[float, int], dict[int, Sequence[TaskResult]]] = {}
    for one in rounds:
        devs.setdefault((one.rate, one.number), {})[one.seed] = one.dev
    return [
        {"rate": rate, "round": number, "over SFT": gain(before, found)}
        | ({"over no false positives": gain(devs[0.0, number], found)} if rate and (0.0, number) in devs else {})
        for (rate, number), found in sorted(devs.items())
    ]


def show(rounds: Sequence[dict[str, Any]], found: Sequence[dict[str, Any]]) -> None:
    print(
        "\npurity in %: of what passes (forecast, true), and of what is selected (by labels: good of labels, bound; true; of all that trains)"
    )
    print(f"{'seed':>4} {'rate':>5} {'round':>5} {'passes':>9} {'forecast':>9} {'true':>6}   {'rows':>4} {'labels':>13} {'bound':>6} "
          f"{'gate':>8} {'settled after':>14} {'true':>6} {'trains':>7} {'pass@1':>7}")  # fmt: skip
    for one in rounds:
        labels = f"{one['good']}/{one['labels']} {100 * one['measured purity']:.1f}"
        print(f"{one['seed']:4} {100 * one['rate']:5g} {one['round']:5} {one['passes']:4}/{one['tries']:<4} {100 * one['forecast purity']:9.1f} "
              f"{100 * one['true purity of passes']:6.1f}   {one['selected']:4} {labels:>13} {100 * one['lower bound']:6.1f} {one['gate']:>8} "
              f"{one['settled'] + ' ' + str(one['labels until settled']):>14} {100 * one['true purity of selected']:6.1f} "
              f"{100 * one['true purity of those']:7.1f} {100 * one['pass@1']:7.1f}")  # fmt: skip

    def span(of: dict[str, Any]) -> str:
        return f"{100 * of['gain']:+.1f} [{100 * of['low']:+.1f}, {100 * of['high']:+.1f}]"

    print("\ngains in points of pass@1 on dev, [95 %] over families and over seeds")
    print(f"{'rate':>5} {'round':>5} {'over SFT, families':>24} {'seeds':>24} {'over rate 0, families':>24} {'seeds':>24}")
    for one in found:
        cells = [span(one[over][way]) for over in ("over SFT", "over no false positives") if over in one for way in ("families", "seeds")]
        print(f"{100 * one['rate']:5g} {one['round']:5}" + "".join(f" {cell:>24}" for cell in cells))


# ---------------------------------------------------------------- what is asked for


def settings_of(given: argparse.Namespace, seed: int) -> RunSettings:
    """The quickstart's, or the scripted sums', with this seed's games and the sizes asked for."""
    path = QUICKSTART
    if given.smoke:
        scripted_model(given.work / "base", skill=0.2)
        path = given.work / "smoke.yaml"
        path.write_text(yaml.safe_dump({**SMOKE, "name": "smoke", "model": str(given.work / "base")}))
    games = yaml.safe_load(path.read_text())["tasks"]["seed"]
    splits = {"demo": given.demo, "train": given.train, "dev": given.dev}
    changed = {"name": f"seed-{seed}", "seed": seed, "tasks.seed": games + seed, "tasks.splits": splits, "sampling.n": given.samples}
    return load_settings(path, {key: json.dumps(value) for key, value in changed.items()})


def estimate(given: argparse.Namespace) -> str:
    """Minutes on 2 cores with AVX2 alone, from the quickstart's own stages: 7 tries/s, 8 s to open a model, 25 s to start and end a training, 200 to 350
    tokens/s in it, 110 tokens a row; of each training game 0.8 rows are kept in round 1 and 0.4 more in round 2."""
    evals, tries = given.dev * 4 / 7 + 8, given.train * given.samples / 7 + 8

    def minutes(rate: float) -> float:
        def train(kept: float) -> float:
            return 25 + 2 * 110 * (given.demo + kept * given.train) / rate

        arm = train(0.8) + evals + tries + train(1.2) + evals
        return given.seeds * (train(0) + evals + tries + len(given.rates) * arm) / 60

    arms = given.seeds * len(given.rates)
    return f"{given.seeds} seeds, {arms} arms of two rounds, {2 * arms + given.seeds} trainings: about {minutes(350):.0f} to {minutes(200):.0f} minutes"


def measured(given: argparse.Namespace) -> dict[str, Any]:
    """Every seed and arm, with what is done so far written after each."""
    rounds: list[Round] = []
    before: dict[int, Sequence[TaskResult]] = {}
    report: dict[str, Any] = {}
    spent, longest, arms = 0.0, 0.0, given.seeds * len(given.rates)
    with Live() as live, loop.interruptible(live.say) as asked:
        for seed in range(given.seeds):
            games = Seed(given.work, settings_of(given, seed), live, asked)
            before[seed] = games.before
            for rate in given.rates:
                began = time.monotonic()
                rounds += games.arm(rate / 100)
                done, longest = len(rounds) // 2, max(longest, time.monotonic() - began)  # of those done before, the time is not known
                live.say(f"seed {seed}, {rate:g} %: arm {done} of {arms} is done; about {longest * (arms - done) / 60:.0f} minutes to go")
                report = circumstances() | {
                    "model": games.base.name, "seeds": seed + 1, "rates": given.rates, "demo": given.demo, "train": given.train,
                    "dev": given.dev, "tries": given.samples, "arms": done, "of arms": arms, "bar": BAR,
                    "SFT": {one: sum(task.passes for task in found) / sum(task.samples - task.errors for task in found)
                            for one, found in before.items()},
                    "rounds": [told(one) for one in rounds], "gains": gains(rounds, before),
                }  # fmt: skip
                write_json(given.out, report)
            spent += games.close()
    report["minutes in stages"] = round(spent / 60, 1)
    write_json(given.out, report)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, nargs="?", default=Path("runs/false-positives"), help="where the runs lie, to go on from")
    parser.add_argument("--seeds", type=int, default=3, help="how many: 0, 1, ...")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.0, 5.0, 20.0], help="of false positives, in percent")
    parser.add_argument("--demo", type=int, default=24, help="games with a demonstration")
    parser.add_argument("--train", type=int, default=56, help="games to sample")
    parser.add_argument("--dev", type=int, default=48, help="games to evaluate on")
    parser.add_argument("--samples", type=int, default=4, help="tries of each training game in a round")
    parser.add_argument("--out", type=Path, default=Path("false_positives.json"))
    parser.add_argument("--plan", action="store_true", help="only say how long it will take")
    parser.add_argument("--smoke", action="store_true", help="a scripted model on sums")
    given = parser.parse_args()
    if not given.smoke:
        print(estimate(given))
    if given.plan:
        return
    given.work.mkdir(parents=True, exist_ok=True)
    try:
        report = measured(given)
    except SharpenError as error:
        sys.exit(str(error))
    show(report["rounds"], report["gains"])
    print(f"\n{report['minutes in stages']} minutes in all stages; {given.out}")


if __name__ == "__main__":
    main()

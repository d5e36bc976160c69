"""Benchmarks run for minutes or hours, and no other test runs them all: at least each can be loaded against the package as it is."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from conftest import BENCHMARKS, FEW, Ended, benchmark
from sharpen.advice import advise
from sharpen.ladder import LadderSettings
from sharpen.records import Decision, Evaluation
from sharpen.run import climb
from sharpen.settings import RunSettings, load_settings
from sharpen.store.files import read_json
from sharpen.store.run import ENDED, Run


@pytest.mark.parametrize("name", sorted(path.stem for path in BENCHMARKS.glob("*.py")))
def test_a_benchmark_loads(name: str) -> None:
    loaded = benchmark(name)
    assert loaded.__file__ is not None and Path(loaded.__file__).parent == BENCHMARKS


# ---------------------------------------------------------------- the ladder of sharpen run in a made-up world


def made_up(ability: float = 0.0, **others: Any) -> Any:
    """A world of forty tasks alike, in which whatever is tried gains much, or what ``others`` say."""
    worlds = benchmark("worlds")
    split = worlds.Split(np.arange(40), np.full(40, ability), np.zeros(40))
    usual: dict[str, Any] = {
        "mean": ability, "sd": 0.1, "never": 0.0, "dev": split, "train": split, "demos": 40, "gain": 2.0, "spread": 0.0, "luck": 0.0,
        "breaks": 0.0, "prompted": 1.0, "demonstrated": 2.0, "tpr": 1.0, "fpr": 0.0, "hack": 0.0, "exact": True, "tries": 4, "evaluation": 4,
        "budget": 1e9,
    }  # fmt: skip
    return dataclasses.replace(worlds.draw(0), **{**usual, **others})


def took(folder: Path) -> list[tuple[str, str, float | None]]:
    """(rung, outcome, the level that it was judged at) of a real ladder, in the order of its ledger."""
    run = Run.open(folder, (folder / "run.yaml").read_text())
    names = next(line["rungs"] for line in run.ledger() if line.get("event") == ENDED)
    run.close()
    made = {name: read_json(folder / "rungs" / name / "decision.json", Decision) for name in names}
    return [(name, one.outcome, one.gain and one.gain.deciding.level) for name, one in made.items()]


def told(folder: Path, settings: RunSettings) -> list[tuple[str, str, float | None]]:
    """The same of the simulated one, where it measures what the real one did."""
    seen = advise(settings, folder.parent).seen
    sampled = {name: getattr(seen, name) for name in ("samples_per_task", "tasks_sampled", "tasks_solved", "tasks_mixed", "pass_n")}

    class Told(benchmark("advisor").AsRun):  # type: ignore[misc]
        def _succeeded(self, _: Any) -> Any:
            return msgspec.structs.replace(self.seen, **sampled, solved_later=seen.solved_later)

    ladder = Told(made_up(tries=settings.sampling.n), settings.ladder)
    ladder.at.evaluate = lambda name, *_: read_json(folder / name / "evaluation.json", Evaluation)
    ladder.outcome()
    return [
        (one.name.removeprefix("rungs/"), one.decision.outcome, one.decision.gain and one.decision.gain.deciding.level)
        for one in ladder.rungs
    ]


def test_the_simulated_ladder_climbs_as_a_real_one(climbed: Ended, ended: Ended) -> None:
    steps = took(ended.folder)
    assert [name for name, outcome, _ in steps if outcome == "keep"] and len(steps) > 3
    assert told(ended.folder, load_settings(ended.settings, {})) == steps


def test_the_simulated_ladder_makes_rounds_again_as_a_real_one(scripted: Path, tmp_path: Path) -> None:
    """Up to the round of expert iteration that would train the same again."""
    hopeless = {
        "ladder.rungs": "[rejection-sampling, expert-iteration]",
        "ladder.ways": "[more-samples, temperature]",
        "ladder.alpha": "0.0000001",
        "ladder.control": "false",
        "sampling.n": "2",
        "tasks.splits": FEW,
    }
    settings = load_settings(scripted, hopeless)
    climb(settings, tmp_path / "runs")
    steps = took(tmp_path / "runs/ladder")
    assert [name for name, _, _ in steps if "retry" in name] and steps[-1][:2] == ("002-expert-iteration", "refuse")
    assert told(tmp_path / "runs/ladder", settings) == steps


def test_what_a_cheated_verifier_keeps_counts_as_an_error() -> None:
    as_run = benchmark("advisor").AsRun
    cheated = as_run(made_up(-3.0, fpr=0.3, hack=1.0, demos=0)).outcome()
    assert ["003-rejection-sampling", "keep"] in cheated["rungs"] and 1 <= cheated["bad"] == cheated["kept"]
    honest = as_run(made_up()).outcome()
    assert honest["kept"] > honest["bad"] == 0 and honest["truth"] > 0.7


@pytest.mark.parametrize(
    ("taught", "terms", "became"), [(3.0, "allowed", ["keep"]), (-30.0, "allowed", ["refuse"]), (3.0, "unknown", []), (None, "allowed", [])]
)
def test_a_teacher_is_copied_where_it_may_be_and_has_something(taught: float | None, terms: str, became: list[str]) -> None:
    world = made_up(-0.5, taught=taught, terms=terms, demos=0, gain=0.0, copied=(1.0, 1.0))
    rungs = benchmark("advisor").AsRun(world).outcome()["rungs"]
    assert [outcome for name, outcome in rungs if name == "003-distillation"] == became


def test_a_plateau_is_called_where_nothing_is_gained() -> None:
    """And labels that stay open, or a spent budget, end the ladder without a word about it."""
    as_run, only = benchmark("advisor").AsRun, LadderSettings(rungs=("rejection-sampling",), delta=0.3)
    still = made_up(gain=0.0)
    flat = as_run(still, only).outcome()
    assert flat["called"] == "plateau" and flat["left_gain"] == 0 and [name for name, _ in flat["rungs"][2:]] == [
        "001-rejection-sampling-retry-1-more-samples"
    ]  # fmt: skip
    poor = as_run(dataclasses.replace(still, budget=40 * 4 + 39 * 4), only).outcome()
    assert poor["stopped"] and poor["called"] == "" and poor["rungs"] == [["000-base", "baseline"]]
    many = benchmark("worlds").Split(np.arange(400), np.zeros(400), np.zeros(400))  # else a person has soon labelled all that is kept
    unsure = as_run(made_up(gain=0.0, exact=False, fpr=0.11, train=many), only).outcome()
    assert unsure["waiting"] and unsure["called"] == "" and unsure["rungs"][1:] == [["001-rejection-sampling", "refuse"]]


def test_its_errors_are_printed() -> None:
    advisor = benchmark("advisor")
    row = msgspec.json.decode(msgspec.json.encode(advisor.run(0)))  # a tuning seed: nothing is claimed of it
    assert row["rules"]["sharpen run"] == row["run"]["truth"]
    bad = row | row["run"] | {"bad": 1, "called": "plateau", "left_gain": 0.5}
    said = "\n".join(advisor.as_run([bad, bad | {"bad": 0, "left_gain": 0.0}]))
    assert (
        "sharpen run (few-shot, sft, rejection-sampling, expert-iteration, and distillation where there is a teacher, at most 2 retries)"
        in said
    )
    assert "whose true gain is not positive: 50.0% [1.3%, 98.7%] (1 of 2)" in said
    assert "plateaus called while the next round would gain over 3%: 50.0%" in said and "Not modelled: what hints, negatives" in said

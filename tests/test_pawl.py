"""The pawl: a round that is rolled back is made again in other ways, under the ladder's one alpha, before a plateau is called."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from sharpen.advice import advise
from sharpen.audit import tries_in
from sharpen.budget import Adaptive
from sharpen.handoff.folder import hand_over
from sharpen.ladder import LadderSettings
from sharpen.methods.base import Bench, Prompted
from sharpen.methods.rejection_sampling import more_samples
from sharpen.models import load_model
from sharpen.pairs import REJECTED
from sharpen.plan import plan
from sharpen.policies.meter import Bill
from sharpen.policies.scripted import scripted_model
from sharpen.records import Decision, Pairing, SampleKey, Selection, Task, TrainingReport, Trajectory, Verdict
from sharpen.report.page import bought
from sharpen.report.read import read_run, write_page
from sharpen.run import climb
from sharpen.sampling import Pool, SamplingSettings
from sharpen.selection import SelectionSettings
from sharpen.settings import load_settings
from sharpen.store.files import read_json
from sharpen.store.run import MANIFEST, Manifest, Run
from sharpen.store.segments import Segments
from sharpen.tasks.load import load_tasks
from sharpen.verifiers.base import Verifier

# One round is not proved at this alpha, one of twice as many tries is.
HARD = {
    "ladder.rungs": "[rejection-sampling]",
    "ladder.alpha": "0.01",
    "ladder.control": "false",
    "ladder.ways": "[more-samples, temperature, continue]",
    "sampling.n": "2",
    "tasks.splits": "{demo: 1, train: 24, dev: 20}",
}
AGAIN = "001-rejection-sampling-retry-1-more-samples"


def rungs(folder: Path) -> dict[str, Decision]:
    return {path.parent.name: read_json(path, Decision) for path in sorted((folder / "rungs").glob("*/decision.json"))}


def test_a_round_that_is_rolled_back_is_made_again_and_no_try_is_paid_for_twice(scripted: Path, tmp_path: Path) -> None:
    settings = load_settings(scripted, HARD)
    shipped = climb(settings, tmp_path / "runs")
    folder = tmp_path / "runs/ladder"
    made = rungs(folder)
    assert {name: (one.outcome, one.variant) for name, one in made.items()} == {
        "000-base": ("baseline", ""),
        "001-rejection-sampling": ("undecided", ""),
        AGAIN: ("keep", "more-samples"),
    }
    assert shipped.name == f"rungs/{AGAIN}"
    calls = {name: spent.calls for name, spent in read_json(folder / "spent.json", Bill).stages.items()}
    assert calls["rungs/001-rejection-sampling/sampling"] == calls[f"rungs/{AGAIN}/sampling"] == 24 * 2
    first, more = (read_json(folder / f"rungs/{name}/sampling" / MANIFEST, Manifest) for name in ("001-rejection-sampling", AGAIN))
    assert 0.5 < more.sampled_tokens / first.sampled_tokens < 2
    assert more.taken == 24 * 2
    each = hand_over(folder).headroom  # a try of the scripted fake takes one call
    bill = read_json(folder / "spent.json", Bill).stages[f"rungs/{AGAIN}/sampling"]
    assert (each.prompt_tokens, each.sampled_tokens) == (bill.prompt_tokens / 48, bill.sampled_tokens / 48)
    selected = [read_json(folder / f"rungs/{name}/selection.json", Selection) for name in ("001-rejection-sampling", AGAIN)]
    assert set(selected[0].kept) < set(selected[1].kept)

    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.jsonl") if path.name != "ledger.jsonl"}
    climb(settings, tmp_path / "runs")
    assert before == {path: path.stat().st_mtime_ns for path in before} and rungs(folder) == made
    shown = {rung.name: rung for rung in read_run(folder).rungs}
    assert shown[AGAIN].shipped and shown[AGAIN].sampled_tokens == sum(
        read_json(path, Manifest).sampled_tokens for path in (folder / "rungs" / AGAIN).rglob(MANIFEST)
    )


def test_what_advises_afterwards_knows_what_was_tried_and_how(scripted: Path, tmp_path: Path) -> None:
    settings = load_settings(scripted, HARD)
    climb(settings, tmp_path / "runs")
    told = advise(settings, tmp_path / "runs")
    assert [(one.method, one.outcome, one.variant) for one in told.seen.tried] == [
        ("rejection-sampling", "undecided", ""),
        ("rejection-sampling", "keep", "more-samples"),
    ]
    assert told.seen.tasks_sampled == 24


def test_it_ends(scripted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    climb(load_settings(scripted, {**HARD, "ladder.alpha": "0.0000001"}), tmp_path / "runs")
    made = rungs(tmp_path / "runs/ladder")
    ways = [one.variant for one in made.values() if one.variant]
    assert ways and len(ways) == len(set(ways)) <= 2 and "keep" not in {one.outcome for one in made.values()}
    assert "self-training ends undecided: 2 rounds were rolled back" in capsys.readouterr().err
    assert [rung.name for rung in read_run(tmp_path / "runs/ladder").rungs if rung.shipped] == ["000-base"]


def test_it_can_be_left_out(scripted: Path, tmp_path: Path) -> None:
    climb(load_settings(scripted, {**HARD, "ladder.retries": "0"}), tmp_path / "runs")
    assert list(rungs(tmp_path / "runs/ladder")) == ["000-base", "001-rejection-sampling"]


def test_a_round_that_was_refused_is_not_made_again(scripted: Path, tmp_path: Path) -> None:
    scripted_model(tmp_path / "base", skill=0.0)
    climb(load_settings(scripted, HARD), tmp_path / "runs")
    made = rungs(tmp_path / "runs/ladder")
    assert list(made) == ["000-base", "001-rejection-sampling"] and made["001-rejection-sampling"].outcome == "refuse"


def test_hints_add_what_nothing_solved(scripted: Path, tmp_path: Path) -> None:
    climb(load_settings(scripted, {**HARD, "ladder.ways": "[hints]", "ladder.alpha": "0.0001"}), tmp_path / "runs")
    folder = tmp_path / "runs/ladder/rungs"
    again = "001-rejection-sampling-retry-1-hints"
    before, after = (read_json(folder / name / "selection.json", Selection) for name in ("001-rejection-sampling", again))
    assert (
        set(before.kept) < set(after.kept) and after.rows is not None and after.rows.sources["hinted"] == len(after.kept) - len(before.kept)
    )
    more = {key.task for key in after.kept} - {key.task for key in before.kept}
    assert more and not more & {key.task for key in before.kept}
    bill = read_json(tmp_path / "runs/ladder/spent.json", Bill).stages
    assert bill[f"rungs/{again}/hints"].calls > 0 == bill[f"rungs/{again}/sampling"].calls
    paid = bill["rungs/001-rejection-sampling/sampling"]
    assert hand_over(folder.parent).headroom.sampled_tokens == paid.sampled_tokens / 48 > 0
    shown = next(rung for rung in read_run(folder.parent).rungs if rung.name == again)
    assert f"{shown.kept} kept of these and of 48 tries that were made and paid before" in bought(shown)


def test_negatives_teach_the_standing_model_from_both(scripted: Path, tmp_path: Path) -> None:
    settings = load_settings(scripted, {**HARD, "ladder.ways": "[negatives]", "ladder.alpha": "0.0001", "sampling.n": "4"})
    planned = plan(settings, tmp_path / "runs")
    climb(settings, tmp_path / "runs")
    folder = tmp_path / "runs/ladder/rungs/001-rejection-sampling-retry-1-negatives"
    selection, pairing = read_json(folder / "selection.json", Selection), read_json(folder / "pairing.json", Pairing)
    assert pairing.pairs and {good for good, _ in pairing.pairs} == set(selection.kept)
    (again,) = (stage for stage, _, _ in planned.stages if stage.more_rows)
    assert again.more_rows * settings.training.epochs >= 2 * len(pairing.pairs) * settings.preference.epochs
    trained = [read_json(path, TrainingReport).tokens for path in folder.parent.glob("*/training.json")]
    assert sum(tokens for _, _, tokens in planned.stages) < sum(trained) <= planned.most_trained
    assert {item.key for item in selection.left_out if item.reason == REJECTED} == {bad for _, bad in pairing.pairs}
    write_page(folder.parents[1])
    assert f"in {len(pairing.pairs)} pairs of" in (folder.parents[1] / "report.html").read_text()
    tries = set(read_json(folder.with_name("001-rejection-sampling") / "selection.json", Selection).kept)
    assert set(selection.kept) < tries
    said = [why for rung in read_run(folder.parents[1], samples=1000).rungs for why in (one.why for one in rung.samples)]
    assert any(why.startswith("left out: rejected") for why in said)


def test_going_on_trains_what_stands_on_the_tries_there_are(scripted: Path, tmp_path: Path) -> None:
    """Where tries are alike and another temperature is none, going on is what is left."""
    hard = {
        "ladder.rungs": "[sft, rejection-sampling]",
        "ladder.alpha": "0.01",
        "ladder.retry_temperature": "1.0",
        "advice.headroom": "0.9",
        "sampling.n": "2",
        "tasks.splits": "{demo: 30, train: 6, dev: 20}",
        "ladder.control": "false",
    }
    climb(load_settings(scripted, hard), tmp_path / "runs")
    folder = tmp_path / "runs/ladder"
    made = rungs(folder)
    again = "002-rejection-sampling-retry-1-continue"
    assert made["001-sft"].outcome == "keep" and made["002-rejection-sampling"].outcome != "keep" and again in made
    lineage = [
        read_json(folder / f"rungs/{name}/model/sharpen.json", dict)["lineage"] for name in ("001-sft", "002-rejection-sampling", again)
    ]
    assert lineage[1]["parent"] == lineage[0]["parent"] != lineage[2]["parent"]
    calls = {name: spent.calls for name, spent in read_json(folder / "spent.json", Bill).stages.items()}
    assert calls["rungs/002-rejection-sampling/sampling"] == 12 and not calls.get(f"rungs/{again}/sampling")


def test_the_alpha_of_what_is_kept_passes_on(scripted: Path, tmp_path: Path) -> None:
    """The online fallback procedure: alpha_i = alpha / judged, and that of the one before where it was kept."""
    climb(load_settings(scripted, {"ladder.control": "true"}), tmp_path / "runs")
    found = rungs(tmp_path / "runs/ladder")
    share, before = 0.05 / 7, 0.0  # four methods, expert iteration twice, and two rounds made again
    level = 0.0
    for one in (one for one in found.values() if one.gain is not None):
        if one.outcome != "baseline":  # a control, which is judged as the arm that it stands beside
            level = 1 - share - before
            before = share + before if one.outcome == "keep" else 0.0
        assert one.gain is not None and one.gain.deciding.level == pytest.approx(level)
    assert {one.outcome for one in found.values()} >= {"keep"}


def test_tries_at_another_temperature_take_no_place_of_those_at_the_usual_one(scripted: Path, tmp_path: Path) -> None:
    """The round after it takes the usual tries over from the round before it, and pays for none again."""
    settings = {**HARD, "ladder.ways": "[temperature, negatives]", "ladder.alpha": "0.0001", "sampling.n": "4", "advice.headroom": "0.9"}
    climb(load_settings(scripted, settings), tmp_path / "runs")
    folder = tmp_path / "runs/ladder"
    again = "001-rejection-sampling-retry-2-negatives"
    assert list(rungs(folder))[2:] == ["001-rejection-sampling-retry-1-temperature", again]
    calls = {name: spent.calls for name, spent in read_json(folder / "spent.json", Bill).stages.items()}
    assert calls["rungs/001-rejection-sampling-retry-1-temperature/sampling"] == 24 * 4
    assert not calls.get(f"rungs/{again}/sampling")


class _Counting:
    """A verifier with a list of what it was asked."""

    def __init__(self, inner: Verifier) -> None:
        self.inner, self.name, self.exact = inner, inner.name, inner.exact
        self.judged: list[SampleKey] = []

    def verify(self, task: Task, trajectory: Trajectory) -> Verdict:
        self.judged.append(trajectory.key)
        return self.inner.verify(task, trajectory)


def test_what_is_taken_over_outlives_a_kill_and_what_broke_is_made_again(scripted: Path, tmp_path: Path) -> None:
    """Killed between a try and its verdict; and one try of the round before had ended in an error, which is no try to take over."""
    settings = load_settings(scripted, {"tasks.splits": "{demo: 1, train: 3, dev: 4}"})
    tasks, run = load_tasks(settings.tasks), Run.open(tmp_path / "run", "x: 1")
    with Bench(run, tasks, load_model(settings.model), sampling=SamplingSettings(n=2, max_tokens=32)) as bench:
        base, train = Prompted(bench.base), tasks.split("train").tasks
        made = bench.sample("first/sampling", base, train, bench.sampling)
        broke, killed, *_ = made.wanted
        error = replace(made.trajectories[broke], stop="error", error="gone", fault="environment")
        had = Pool(made.tasks, made.wanted, {**made.trajectories, broke: error}, made.verdicts)
        left = Segments(run.folder / "again/sampling/trajectories", Trajectory)
        left.append(made.trajectories[killed])
        left.close()

        bench.tasks = dataclasses.replace(tasks, verifier=(counting := _Counting(bench.verifier)))
        again = bench.sample("again/sampling", base, train, bench.sampling, had=had)
        manifest = read_json(run.folder / "again/sampling" / MANIFEST, Manifest)
    run.close()
    assert again.wanted == made.wanted and again.trajectories[broke].stop != "error"
    assert counting.judged == [broke]
    assert manifest.spent.calls == 1 and manifest.sampled_tokens == again.trajectories[broke].cost.sampled_tokens > 0


def test_more_samples_of_an_adaptive_budget_go_on_from_its_waves(scripted: Path, tmp_path: Path) -> None:
    """Also where one of its tries had broken, and says something else now; and a round as set, after it, makes the tries of the first."""
    settings = load_settings(scripted, {"tasks.splits": "{demo: 1, train: 8, dev: 4}"})
    tasks, run = load_tasks(settings.tasks), Run.open(tmp_path / "run", "x: 1")
    usual = SamplingSettings(
        n=2, max_tokens=32, budget=Adaptive(first=1, wave=4, max_tries=3)
    )  # by these bounds it would have gone elsewhere
    every = SelectionSettings(cap=8, dedup=False)

    def calls(stage: str) -> int:
        return read_json(run.folder / stage / MANIFEST, Manifest).spent.calls

    with Bench(run, tasks, load_model(settings.model), sampling=usual, selection=every) as bench:
        base, train = Prompted(bench.base), tasks.split("train").tasks
        had = bench.sample("first/sampling", base, train, usual)
        more = more_samples(bench, had).sampling
        wider = bench.sample("more/sampling", base, train, more, had=had)
        assert wider.wanted[: len(had.wanted)] == had.wanted
        assert 0 < calls("more/sampling") == len(wider.wanted) - len(had.wanted)

        broke = next(key for key in had.wanted if had.verdicts[key])
        error = replace(had.trajectories[broke], stop="error", error="gone", fault="environment")
        torn = dataclasses.replace(had, trajectories={**had.trajectories, broke: error})
        mended = bench.sample("mended/sampling", base, train, more, had=torn)
        assert mended.wanted == wider.wanted and calls("mended/sampling") == calls("more/sampling") + 1

        again = bench.sample("again/sampling", base, train, usual, had=wider)
        assert again.wanted == had.wanted and again.waves == had.waves and not calls("again/sampling")
    run.close()


@pytest.mark.parametrize(
    ("settings", "again"),
    [
        ({"ways": ()}, 0),
        ({"ways": ("hints",)}, 1),
        ({"ways": ("hints",), "rungs": ("rejection-sampling", "expert-iteration")}, 2),
        ({"retries": 9}, 5),
        ({"rungs": ("few-shot", "sft")}, 0),
    ],
)
def test_alpha_is_kept_only_for_rounds_that_can_be_made_again(settings: dict[str, Any], again: int) -> None:
    ladder = LadderSettings(**{"rungs": ("rejection-sampling",), **settings})
    assert ladder.again == again and ladder.judged == len(ladder.climbs) + again


def test_a_rung_that_is_called_by_its_name_is_not_its_retry(scripted: Path, tmp_path: Path) -> None:
    climb(load_settings(scripted, HARD), tmp_path / "runs")
    folder = tmp_path / "runs/ladder"
    first, again, last = (set(tries_in(folder, name).kept or ()) for name in ("001-rejection-sampling", AGAIN, "rejection"))
    kept = read_json(folder / "rungs/001-rejection-sampling/selection.json", Selection).kept
    assert first == {key for key in kept if key.model != "expert"}
    assert again == last and again and not again & first  # what is new to it


def test_advice_after_another_temperature_is_of_the_usual_tries(scripted: Path, tmp_path: Path) -> None:
    settings = load_settings(scripted, {**HARD, "ladder.ways": "[temperature]", "ladder.alpha": "0.0001", "advice.headroom": "0.9"})
    climb(settings, tmp_path / "runs")
    folder = tmp_path / "runs/ladder/rungs"
    again = folder / "001-rejection-sampling-retry-1-temperature"
    (again / "decision.json").unlink()  # as a kill leaves it
    for path in (again / "sampling/verdicts").glob("*.jsonl"):
        path.write_text(path.read_text().replace('"pass"', '"fail"'))
    seen = advise(settings, tmp_path / "runs").seen
    assert [one.variant for one in seen.tried] == ["", "temperature"]
    passed = {key.task for key, one in Segments(folder / "001-rejection-sampling/sampling/verdicts", Verdict).records.items() if one}
    assert seen.tasks_solved == len(passed) > 0


def test_a_round_that_would_train_the_same_again_is_refused_and_the_next_way_is_tried(
    scripted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Hints of which none may train add nothing. Nor does a round of expert iteration from the prior of one that was rolled back, which makes no try twice."""
    rungs_ = "[rejection-sampling, expert-iteration, distillation]"
    settings = {
        **HARD,
        "ladder.rungs": rungs_,
        "ladder.ways": "[hints, more-samples]",
        "ladder.alpha": "0.0000001",
        "hints.share": "0.0001",
    }
    climb(load_settings(scripted, {**settings, "teacher": "{model: " + str(tmp_path / "base") + "}"}), tmp_path / "runs")
    folder = tmp_path / "runs/ladder"
    made, first = rungs(folder), "001-rejection-sampling"
    assert [made[name].outcome for name in (first, f"{first}-retry-1-hints", f"{first}-retry-2-more-samples", "002-expert-iteration")] == [
        "undecided", "refuse", "undecided", "refuse",
    ]  # fmt: skip
    assert "the same tries would train the same model again" in made[f"{first}-retry-1-hints"].reasons[0]
    assert not (folder / "rungs" / f"{first}-retry-1-hints/model").exists()
    calls = {name: spent.calls for name, spent in read_json(folder / "spent.json", Bill).stages.items()}
    assert not calls["rungs/002-expert-iteration/sampling"]
    said = capsys.readouterr().err
    assert said.count("with it") == 1 and said.count("self-training ends") == 2

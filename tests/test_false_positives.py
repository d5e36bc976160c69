"""``benchmarks/false_positives.py`` in small, on the scripted fake: what it injects, what it counts, and that it goes on where it was stopped."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from conftest import benchmark
from sharpen.records import SampleKey, Task, Trajectory, Verdict
from sharpen.store.run import LEDGER
from sharpen.store.segments import Segments
from sharpen.verifiers.outcome import EnvironmentOutcome
from sharpen.verifiers.run import judge

false_positives = benchmark("false_positives")
TASK = Task(key="t", family="t", split="train")


def tried(index: int, won: bool = False, stop: Any = "done") -> Trajectory:
    key = SampleKey(model="m", task="t", environment="e", sampling="s", index=index)
    return Trajectory(key=key, agent="a", messages=(), stop=stop, outcome={"won": won})


def passing(rate: float, task: Task = TASK, seed: int = 0, **how: Any) -> set[int]:
    leaky = false_positives.Leaky(EnvironmentOutcome(), rate, seed)
    return {index for index in range(2000) if leaky.verify(task, tried(index, **how))}


def test_fails_of_training_tasks_alone_pass_at_the_rate_and_always_the_same() -> None:
    few, many = passing(0.05), passing(0.2)
    assert few == passing(0.05) and few < many and few != passing(0.05, seed=1)
    assert 70 < len(few) < 130 and 340 < len(many) < 460  # 3.3 and 3.4 standard deviations
    assert not passing(0.0) and len(passing(0.2, won=True)) == 2000
    assert not passing(0.2, replace(TASK, split="dev")) and not passing(0.2, replace(TASK, split="demo"))
    assert judge(TASK, tried(0, stop="error"), false_positives.Leaky(EnvironmentOutcome(), 1.0, 0)).outcome == "error"


def smoke(work: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    sizes = {"--seeds": "1", "--demo": "8", "--train": "24", "--dev": "10"}
    flags = [word for pair in sizes.items() for word in pair]
    monkeypatch.setattr(
        sys, "argv", ["false_positives", str(work), "--smoke", "--rates", "0", "40", *flags, "--out", str(work / "found.json")]
    )
    false_positives.main()
    found: dict[str, Any] = json.loads((work / "found.json").read_text())
    return found


def test_two_rounds_an_arm_beside_the_truth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = smoke(tmp_path, monkeypatch)
    assert found["arms"] == 2 and "over rate 0" in capsys.readouterr().out
    pure, leaky = ([one for one in found["rounds"] if one["rate"] == rate] for rate in (0.0, 0.4))
    assert [one["round"] for one in pure] == [one["round"] for one in leaky] == [1, 2]
    for one in pure:
        assert one["true purity of passes"] == one["true purity of those"] == one["forecast purity"] == 1
    first = leaky[0]
    assert first["passes"] > pure[0]["passes"] and first["true purity of selected"] < 0.9 and first["gate"] == "refuse"
    assert first["lower bound"] < first["true purity of selected"] and abs(first["forecast purity"] - first["true purity of passes"]) < 0.2
    assert [set(one) for one in found["gains"]] == [{"rate", "round", "over SFT"}] * 2 + [
        {"rate", "round", "over SFT", "over no false positives"}
    ] * 2

    # What round 1 rests on was bought once, and dev was judged by the truth.
    seed = tmp_path / "seed-0"
    bought = {
        place: json.loads((seed / place / "round-1/sampling/stage.json").read_text())["spent"]["calls"]
        for place in ("prior", "rate-0", "rate-40")
    }
    assert bought == {"prior": 96, "rate-0": 0, "rate-40": 0}
    for dev in ("sft/dev", "round-1/dev"):
        place = seed / ("prior" if dev == "sft/dev" else "rate-40") / dev
        judged = Segments(place / "verdicts", Verdict).records
        assert len(judged) == 40 and not any(verdict.reason == "a false positive" for verdict in judged.values())
    kept = Segments(seed / "rate-40/round-1/sampling/verdicts", Verdict).records
    assert any(verdict.reason == "a false positive" for verdict in kept.values())

    # Given again it does nothing; with a part gone it does that part.
    ledgers = {path: path.read_bytes() for path in seed.rglob(LEDGER)}
    assert smoke(tmp_path, monkeypatch) == found and {path: path.read_bytes() for path in ledgers} == ledgers
    shutil.rmtree(seed / "rate-40/round-2")
    again = smoke(tmp_path, monkeypatch)
    assert again["rounds"] == found["rounds"] and again["gains"] == found["gains"]
    assert (seed / "rate-0" / LEDGER).read_bytes() == ledgers[seed / "rate-0" / LEDGER]

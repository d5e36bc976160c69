"""``benchmarks/audits.py`` in small, on the scripted fake: three audits beside the truth, and what the gate says of each."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from conftest import benchmark


def test_a_good_and_a_weak_verifier_and_a_judge_that_cannot_judge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--smoke", "--limit", "2", "--tries", "40", "--out", str(tmp_path / "found.json")]
    monkeypatch.setattr(sys, "argv", ["audits", str(tmp_path / "work"), *flags])
    benchmark("audits").main()
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())["verifiers"]
    assert list(found) == ["math", "regex", "judge"] and all(one["tries"] == 40 for one in found.values())
    for name in ("math", "regex"):
        one = found[name]
        assert one["gate"]["without labels"].startswith("refuse: the verifier") and "no row is labelled" in one["gate"]["without labels"]
        assert one["audit"]["purity"]["missing"] == one["labelled"][0]["share"]["n"] and one["audit"]["confusions"][0]["n"] == 40
        assert one["gate"]["settled"].startswith("proceed" if one["labelled"][1]["outcome"] == "clears" else "refuse")
    wrong = {name: {probe["kind"] for probe in one["audit"]["probes"] if probe["right"] < probe["tried"]} for name, one in found.items()}
    assert "one answer after the other" in wrong["regex"] and "one answer after the other" not in wrong["math"]
    assert (
        found["judge"]["errors"] == 40 and not found["judge"]["kept"] and not found["judge"]["gate"]
    )  # the fake says nothing that is a vote
    assert "by the verifier reasoning_gym" in said and "gate, settled" in said

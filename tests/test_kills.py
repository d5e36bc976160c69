"""``kill -9`` at random moments, in small: ``benchmarks/kills.py`` with five kills. The store's claims are in its summary."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import BENCHMARKS, benchmark

pytestmark = pytest.mark.real  # processes of its own, killed and timed


def test_killed_five_times_nothing_is_lost_or_made_twice(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "kills.py"), "--kills", "5", "--seed", "4", "--out", str(tmp_path / "kills.json")]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = json.loads((tmp_path / "kills.json").read_text())
    assert found["kills"] == 5 and found["tries_at_the_end"] > 1000
    assert found["finished_tries_or_verdicts_lost"] == found["changed_by_a_byte"] == found["made_or_kept_twice"] == 0
    assert found["tables_equal"] == found["tables"] > 10 and not found["tables_different"]
    assert found["torn"] > 0


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        ("lost", "finished_tries_or_verdicts_lost"),
        ("changed", "changed_by_a_byte"),
        ("twice", "made_or_kept_twice"),
    ],
)
def test_the_check_sees_what_it_looks_for(harm: str, told: str, tmp_path: Path) -> None:
    """A check that finds nothing is worth something only if it would find something."""
    kills = benchmark("kills")
    place = tmp_path / "w" / "rough" / "run" / "rungs" / "000-base" / "dev" / "trajectories"
    place.mkdir(parents=True)
    key = {"model": "m", "task": "t", "environment": "e", "sampling": "s", "index": 0}
    line = json.dumps({"key": key, "agent": "a"}).encode() + b"\n"
    (place / "journal.jsonl").write_bytes(line)
    (tmp_path / "w" / "rough.announced").write_text(json.dumps([str(place), key]) + "\n")
    settings = tmp_path / "run.yaml"
    settings.write_text("name: run\n")
    killer = kills.Killer(sys.executable, settings, tmp_path / "w")
    folder = tmp_path / "w" / "rough" / "run"
    before = killer.check(folder, "rough", {})
    assert not (killer.lost or killer.changed or killer.twice)
    harmed = {"lost": b"", "changed": line.replace(b'"a"', b'"b"'), "twice": line + line.replace(b'"a"', b'"b"')}[harm]
    (place / "journal.jsonl").write_bytes(harmed)
    killer.check(folder, "rough", before)
    counts = {
        "finished_tries_or_verdicts_lost": killer.lost,
        "changed_by_a_byte": killer.changed,
        "made_or_kept_twice": killer.twice,
    }
    assert counts[told] > 0

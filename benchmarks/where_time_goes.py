"""Where a run's wall time went: ``python benchmarks/where_time_goes.py runs/quickstart``. The aim is 85 % inside the engine or the trainer.

Reads the ledger's last session: from the last start to the end. What an earlier session did, or a fork brought along, does not count.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path


def main(folder: Path) -> None:
    notes = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    began = max(at for at, note in enumerate(notes) if note.get("event") == "started")
    notes = notes[began:]
    total = sum(note["seconds"] for note in notes if note.get("event") == "stopped")
    inside: dict[str, float] = defaultdict(float)
    around: dict[str, float] = defaultdict(float)
    for note in notes:
        if "stage" in note:
            kind = "training" if note["trained_tokens"] else "sampling"
            inside[kind] += note["inside_s"]
            around[f"around {kind}: starting engines or the trainer, environments, verdicts, writing"] += note["seconds"] - note["inside_s"]
    rest = total - sum(inside.values()) - sum(around.values())
    print(f"{folder.name}: {total:.0f} s, {sum(inside.values()) / total:.1%} inside the engine or the trainer")
    for what, seconds in [
        *((f"inside the {k}", s) for k, s in inside.items()),
        *around.items(),
        ("games, checks, statistics, imports", rest),
    ]:
        print(f"  {seconds:7.1f} s  {seconds / total:6.1%}  {what}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

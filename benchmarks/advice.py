"""What ``sharpen advise`` says of six real set-ups: ``python benchmarks/advice.py WORK --plateaued RUN``.

The tasks are examples/reasoning_gym/sums.yaml and the model is the small one, so all of it is measured; each takes a minute or two on two cores. RUN is
the folder of a finished run of those tasks whose last round was not kept; what it ships is also the stronger teacher. Prints what a user would see.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from sharpen.settings import load_settings
from sharpen.tasks.load import load_tasks

EXAMPLE = Path(__file__).parents[1] / "examples/reasoning_gym/sums.yaml"


def without_verifier(work: Path, *, gold: bool) -> dict[str, Any]:
    """The sums as somebody's own file of questions, with worked answers or without."""
    path = work / f"questions{'-answered' * gold}.jsonl"
    tasks = load_tasks(load_settings(EXAMPLE, {}).tasks)
    lines = []
    for task in tasks.tasks:
        shown = tasks.environment.expert(task) if gold and task.split == "demo" else None
        answer = {"gold": shown[-1]} if shown else {}
        lines.append(json.dumps({"prompt": task.prompt[-1].content, "split": task.split, "family": task.family, **answer}))
    path.write_text("\n".join(lines) + "\n")
    return {"tasks": {"source": "jsonl", "path": str(path)}}


def set_ups(work: Path, plateaued: Path) -> dict[str, tuple[dict[str, Any], Path]]:
    """By name: what the settings say other than the example's, and where its runs lie."""
    unseen = {"demo": 0, "train": 64, "dev": 48, "test": 48}
    example = yaml.safe_load(EXAMPLE.read_text())
    taught = {
        "teacher": {"model": str(shipped(plateaued))},
        "ladder": {"rungs": ["sft", "rejection-sampling", "distillation"], "control": False},
    }
    own = work / "runs"
    return {
        "demonstrations only": (without_verifier(work, gold=True), own),
        "verifier only": ({"tasks": {**example["tasks"], "splits": unseen}}, own),
        "both": ({}, own),
        "none": (without_verifier(work, gold=False), own),
        "stronger teacher": (taught, own),
        "plateaued run": (yaml.safe_load((plateaued / "run.yaml").read_text()), plateaued.parent),
    }


def shipped(run: Path) -> Path:
    from sharpen.models import shipped as ships

    return Path(ships(run).path).resolve()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--plateaued", type=Path, required=True, metavar="RUN")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    for name, (changed, runs) in set_ups(args.work, args.plateaued.resolve()).items():
        settings = yaml.safe_load(EXAMPLE.read_text()) | {"name": name.replace(" ", "-")} | changed
        path = args.work / f"{name.replace(' ', '-')}.yaml"
        path.write_text(yaml.safe_dump(settings, sort_keys=False))
        print(f"\n## {name}\n", flush=True)
        done = subprocess.run(
            [sys.executable, "-m", "sharpen", "advise", str(path), "--runs", str(runs)], stdout=subprocess.PIPE, text=True
        )
        print(done.stdout or f"(exit status {done.returncode})", flush=True)


if __name__ == "__main__":
    main()

"""Three verifiers of one set of tries, audited where the truth is known: a good one, a weak one, and the small model as a judge.

    python benchmarks/audits.py WORK --out audits.json     # 3 minutes for the run, then the judge's
    python benchmarks/audits.py WORK --smoke               # a scripted model, seconds: shows that it works, nothing else

The tries are those of `examples/reasoning_gym/sums.yaml`'s rejection sampling (the run is made in WORK, or gone on with): sums answered by SmolLM2-135M
after SFT. The truth, as second verifier, is reasoning-gym's own scorer. `math` compares with math-verify; `regex` finds the reference anywhere in the
answer, as many do who want to be lenient; `judge` asks the untrained model with sharpen's rubric and the reference.

Each audit is printed as `sharpen audit` prints it, then the true purity of what the verifier would keep, and what the gate says: without labels, with
labels on as many rows, drawn at random, as it then asks for (the truth labels them), and when labelling on has settled it.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from false_positives import SMOKE, labelled
from human_eval import circumstances
from rich.console import Console

from sharpen import advisor
from sharpen.audit import Tries, audit, tries_in
from sharpen.errors import SharpenError
from sharpen.labels import BAR, Labels
from sharpen.policies.scripted import scripted_model
from sharpen.records import Measurements, Purity
from sharpen.report.terminal import audit_text
from sharpen.run import climb
from sharpen.sampling import Pool
from sharpen.selection import select
from sharpen.settings import RunSettings, load_settings
from sharpen.store.files import write_json
from sharpen.store.segments import order
from sharpen.tasks.base import TaskSet
from sharpen.tasks.load import load_tasks
from sharpen.verifiers.base import Verifier, close
from sharpen.verifiers.judge import Judge
from sharpen.verifiers.load import load_verifier
from sharpen.verifiers.math import Math
from sharpen.verifiers.regex import Regex
from sharpen.verifiers.run import judge_many

SUMS = Path(__file__).parents[1] / "examples" / "reasoning_gym" / "sums.yaml"


def audited(tasks: TaskSet, verifier: Verifier, tries: Tries, settings: RunSettings, limit: int) -> dict[str, Any]:
    """One verifier's audit, and what the gate makes of what it would keep."""
    truth = tasks.verifier
    assert truth is not None
    known = {task.key: task for task in tasks.tasks}
    keys = tuple(sorted(tries.trajectories, key=order))
    pairs = [(known[key.task], tries.trajectories[key]) for key in keys]
    good = {one.key: bool(verdict) for one, verdict in judge_many(pairs, truth)}
    began = time.monotonic()
    verdicts = {one.key: verdict for one, verdict in judge_many(pairs, verifier)}
    per_verdict = (time.monotonic() - began) / max(len(keys), 1)
    kept = select(Pool(known, keys, tries.trajectories, verdicts), settings.selection, settings.seed).kept
    looks = labelled({key: tries.trajectories[key] for key in kept}, good)
    found = audit(
        TaskSet(tasks.name, tasks.tasks, tasks.environment, verifier),
        Tries(tries.trajectories, verdicts, kept),
        Labels(),
        second=truth,
        limit=limit,
    )
    assert found.purity is not None or not kept

    def gate(purity: Purity | None) -> str:
        decision = advisor.gate(
            "rejection-sampling",
            Measurements(verifier=verifier.name, verifier_exact=verifier.exact, purity=purity),
            f"sharpen label {settings.name}",
        )
        return f"{decision.outcome}: {decision.reasons[0]}"

    gates = {} if found.purity is None else {
        "without labels": gate(found.purity), "with the labels it asks for": gate(looks[0]), "settled": gate(looks[1]),
    }  # fmt: skip
    Console(width=None if sys.stdout.isatty() else 140).print(audit_text(found), soft_wrap=True)
    true = sum(good[key] for key in kept) / len(kept) if kept else float("nan")
    errors = sum(verdict.outcome == "error" for verdict in verdicts.values())
    lines = [f"true purity of the {len(kept)} rows it would keep: {true:.1%}", *(f"gate, {when}: {said}" for when, said in gates.items())]
    print("\n".join([*lines, f"{len(keys)} tries, {errors} errors, {1000 * per_verdict:.3g} ms a verdict", ""]))
    return {"audit": found, "kept": len(kept), "true purity of kept": true, "labelled": looks, "gate": gates, "tries": len(keys),
            "errors": errors, "seconds a verdict": per_verdict}  # fmt: skip


def settings_of(given: argparse.Namespace) -> RunSettings:
    if not given.smoke:
        return load_settings(SUMS, {"ladder.retries": "0"})  # the first try of rejection sampling is what is audited
    scripted_model(given.work / "base", skill=0.4)
    path = given.work / "smoke.yaml"
    tasks = {**SMOKE["tasks"], "splits": {"demo": 4, "train": 24, "dev": 8}}
    path.write_text(
        yaml.safe_dump(
            {**SMOKE, "tasks": tasks, "model": str(given.work / "base"), "ladder": {"rungs": ["rejection-sampling"], "control": False}}
        )
    )
    return load_settings(path, {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, nargs="?", default=Path("runs/audits"), help="where the run lies, to go on from")
    parser.add_argument("--tries", type=int, default=256, help="of the run's; the first by task and index")
    parser.add_argument("--limit", type=int, default=5, help="tasks on which made-up answers are tried")
    parser.add_argument("--votes", type=int, default=3, help="of the judge")
    parser.add_argument("--max-tokens", type=int, default=64, help="of a vote")
    parser.add_argument("--verifiers", nargs="+", choices=("math", "regex", "judge"), default=["math", "regex", "judge"])
    parser.add_argument("--out", type=Path, default=Path("audits.json"))
    parser.add_argument("--smoke", action="store_true", help="a scripted model")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = circumstances() | {"bar": BAR, "verifiers": {}}
    try:
        settings = settings_of(given)
        climb(settings, given.work)
        tries, tasks = tries_in(given.work / settings.name), load_tasks(settings.tasks)
        first = sorted(tries.trajectories, key=order)[: given.tries]
        tries = Tries({key: tries.trajectories[key] for key in first})
        kinds: dict[str, Any] = {
            "math": Math(),
            "regex": Regex(match="search"),
            "judge": Judge(model=settings.model, votes=given.votes, max_tokens=given.max_tokens, shows="answer"),
        }
        for name in given.verifiers:
            verifier = load_verifier(kinds[name])
            print(f"\n{name}")
            try:
                report["verifiers"][name] = audited(tasks, verifier, tries, settings, given.limit)
            finally:
                close(verifier)
            write_json(given.out, report | {"model": settings.model, "seed": settings.seed})
    except SharpenError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()

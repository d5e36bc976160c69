"""The scripted fake's trainer: rows in, a scripted model out, in milliseconds. It keeps the protocol of the real one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from sharpen.chat.scripted import ScriptedTemplate
from sharpen.models import load_model, save_lineage
from sharpen.policies.scripted import learn
from sharpen.records import Model, Row, TrainingReport
from sharpen.training.base import Progress, Training, descend, plan_rows


def train(
    rows: Sequence[Row],
    model: Model,
    settings: Training,
    out: Path,
    *,
    token_budget: int | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> tuple[Model, TrainingReport]:
    """Learn the last question and the answer of every row. See Trainer."""
    started = time.monotonic()
    plan = plan_rows(rows, settings.epochs, settings.seed, token_budget, batch_size=settings.batch_size)
    lineage = descend(model, rows, plan, settings)
    template = ScriptedTemplate()
    pairs = []
    for row in plan.rows:
        taught = [place for place, label in enumerate(row.labels) if label != -100]
        before = template.decode(row.input_ids[: taught[0]])
        question = before.rsplit("<|user|>\n", 1)[-1].split("<|end|>", 1)[0]
        pairs.append((question, template.answer([row.input_ids[place] for place in taught])))
    learn(Path(model.path), pairs, out)
    name = f"{model.lineage.base}-{out.parent.name}"
    save_lineage(out, lineage, name)
    if on_progress is not None:
        on_progress(Progress(step=len(plan.steps), steps=len(plan.steps), loss=0.0, tokens_per_second=0.0))
    seconds = time.monotonic() - started
    report = TrainingReport(
        steps=len(plan.steps), tokens=plan.tokens, trained_tokens=plan.trained_tokens, seconds=seconds, precision="none"
    )
    return load_model(str(out)), report

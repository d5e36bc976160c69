"""The scripted fake's trainers: rows or pairs in, a scripted model out, in milliseconds. They keep the protocol of the real ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from sharpen.chat.scripted import ScriptedTemplate
from sharpen.models import load_model, save_lineage
from sharpen.policies.scripted import learn
from sharpen.records import Lineage, Model, PreferencePair, Row, TrainingReport
from sharpen.training.base import Line, Progress, Training, descend, plan_rows
from sharpen.training.preference import Preference, prepare
from sharpen.training.process import reported


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
    told = _learn(plan.rows, model, lineage, out, len(plan.steps), on_progress)
    return load_model(str(out)), reported(told, started, steps=len(plan.steps), tokens=plan.tokens, trained_tokens=plan.trained_tokens)


def prefer(
    pairs: Sequence[PreferencePair],
    model: Model,
    settings: Preference,
    out: Path,
    *,
    training: Training | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> tuple[Model, TrainingReport]:
    """Learn what is chosen; of what is rejected the fake keeps nothing. See ``train_preference``."""
    started = time.monotonic()
    job = prepare(pairs, model, settings, out, training or Training())
    plan = job.plan
    told = _learn([one.chosen for one in plan.pairs], model, job.lineage, out, plan.steps, on_progress)
    return load_model(str(out)), reported(told, started, steps=plan.steps, tokens=plan.tokens, trained_tokens=plan.trained_tokens)


def _learn(
    rows: Sequence[Row], model: Model, lineage: Lineage, out: Path, steps: int, on_progress: Callable[[Progress], None] | None
) -> tuple[Line, ...]:
    """Write the model that learnt ``rows`` to ``out``; what a training process would have told."""
    template = ScriptedTemplate()
    pairs = []
    for row in rows:
        taught = [place for place, label in enumerate(row.labels) if label != -100]
        before = template.decode(row.input_ids[: taught[0]])
        question = before.rsplit("<|user|>\n", 1)[-1].split("<|end|>", 1)[0]
        pairs.append((question, template.answer([row.input_ids[place] for place in taught])))
    learn(Path(model.path), pairs, out)
    save_lineage(out, lineage, f"{model.lineage.base}-{out.parent.name}")
    if on_progress is not None:
        on_progress(Progress(step=steps, steps=steps, loss=0.0, tokens_per_second=0.0))
    return (Line(precision="none"),)

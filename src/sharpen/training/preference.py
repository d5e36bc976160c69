"""Learning from passes and fails: DPO with an NLL term on what passed (Iterative RPO, Pang et al., 2404.19733). TRL's DPOTrainer, in a process of its own.

SFT on passes pulls up what is right and leaves the rest to itself; a pair also pushes down what the same model did wrong at the same task. Without the NLL
term both may fall, as long as what failed falls faster: on GSM8K one round gave Llama-2-70B-Chat 73.1 % with it and 61.8 % without, from 55.6 %.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from msgspec.structs import replace

from sharpen.errors import Refused, SettingsError
from sharpen.models import open_folder
from sharpen.pairs import PairSettings
from sharpen.records import Model, PreferencePair, Record, Row, TrainingReport
from sharpen.training.base import Progress, Training, Work, descend, trained, unmarked
from sharpen.training.process import name_of, reported, work_in_process

# Far under those of SFT, since DPO has no label to arrive at: 1e-6 is what SmolLM2 of 135M to 1.7B were trained with (alignment-handbook) and TRL's default,
# and LoRA takes ten times the rate of full training (Schulman et al., 2025; so do TRL's own examples of DPO). Not tuned here.
DEFAULT_RATES = {"lora": 1e-5, "full": 1e-6}


class Preference(Record, frozen=True, kw_only=True):
    """How a model learns to prefer. How its weights change (LoRA or full, precision, schedule, seed) is said by ``training``.

    The loss of a pair is ``-log sigmoid(beta * margin)``, where the margin is by how much more, against the model at the start, the log-probability of the
    chosen try has risen than that of the rejected one; plus ``nll`` times the mean negative log-likelihood of the chosen one's tokens, 0 or more (0: plain
    DPO). Iterative RPO's are beta 0.1 and 1. Only what the policy said counts, in both: of environments' words nothing is learnt (as ETO, 2403.02502).

    ``batch_size`` is pairs per optimiser step over all processes, computed one pair at a time, so that the NLL is a mean over each try, as published, and
    memory is that of two rows. ``learning_rate`` is the peak (None: by method, see ``DEFAULT_RATES``). ``pairs`` says which are made.
    """

    beta: float = 0.1
    nll: float = 1.0
    learning_rate: float | None = None
    epochs: int = 1
    batch_size: int = 8
    pairs: PairSettings = PairSettings()

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} is {getattr(self, name)}, but must be at least 1")
        if self.beta <= 0:
            raise SettingsError(f"beta is {self.beta}, but must be over 0: at 0 nothing is preferred")
        if self.nll < 0:
            raise SettingsError(f"nll is {self.nll}, but must be 0 or more")
        if self.learning_rate is not None and self.learning_rate <= 0:
            raise SettingsError(f"learning_rate is {self.learning_rate}, but must be over 0")


class PairPlan(Record, frozen=True, kw_only=True):
    """What is trained on: ``pairs`` in an order that does not depend on theirs, each once. ``trained_tokens`` counts labels, ``tokens`` whole rows, both of
    all epochs and both sides."""

    pairs: tuple[PreferencePair, ...]
    steps: int
    trained_tokens: int
    tokens: int


class Preferring(Work, frozen=True, kw_only=True):
    """What the training process is asked to do."""

    plan: PairPlan
    preference: Preference
    rate: float


def train_preference(
    pairs: Sequence[PreferencePair],
    model: Model,
    settings: Preference,
    out: Path,
    *,
    training: Training | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> tuple[Model, TrainingReport]:
    """Train ``model`` to prefer the chosen of ``pairs`` into the folder ``out``: merged weights, tokenizer, template, lineage.

    ``model`` is to be the one that made the tries: it is also the reference that margins are taken against, which is right only where the pairs are
    likely under it. So in Iterative RPO, where a round starts at the model that sampled it, and one that was first trained on the chosen tries
    came out no better (60.3 % against 61.8 % on GSM8K, both without NLL); and ETO explores with, and starts from, one model that was taught by SFT. The NLL
    term is the SFT on the survivors.

    Of ``training``, epochs, batch size, learning rate and micro-batches are not used. In the report, ``tokens`` and ``trained_tokens`` count both sides, and
    ``losses`` are in nats, log 2 plus the NLL at the start. The log, with margins, is ``train.log`` beside ``out``. Refused where there is no pair; Unsettled
    where terms do not let a row train, rejected ones too; TrainingError and StorageError as in ``sft.train``; ``out`` is then as it was before.
    """
    started = time.monotonic()
    job = prepare(pairs, model, settings, out, training or Training())
    lines = work_in_process("sharpen.training.preference_worker", job, on_progress)
    plan = job.plan
    return open_folder(out), reported(lines, started, steps=plan.steps, tokens=plan.tokens, trained_tokens=plan.trained_tokens)


def prepare(pairs: Sequence[PreferencePair], model: Model, settings: Preference, out: Path, training: Training) -> Preferring:
    """The job for the process, once the gate is passed."""
    plan = plan_pairs(pairs, settings.epochs, settings.batch_size)
    lineage = descend(model, [row for one in pairs for row in (one.chosen, one.rejected)], plan, training)
    how = {**lineage.settings, "preference": {**msgspec.to_builtins(settings), "trained_on": len(plan.pairs)}}
    return Preferring(
        model=model.path,
        start=model.name,
        out=str(out),
        name=name_of(out),
        lineage=replace(lineage, settings=how),
        settings=training,
        plan=plan,
        preference=settings,
        rate=DEFAULT_RATES[training.method] if settings.learning_rate is None else settings.learning_rate,
    )


def plan_pairs(pairs: Sequence[PreferencePair], epochs: int, batch_size: int) -> PairPlan:
    """``pairs`` without who made them, sorted. Refused where there are none, SettingsError where a row of one has no label to learn."""
    if not pairs:
        raise Refused(
            "there is no pair to learn from: no task has both a pass that is kept and a fail to compare it with; make more tries of each task"
        )
    bare = {PreferencePair(chosen=good, rejected=bad) for good, bad in (unmarked((one.chosen, one.rejected)) for one in pairs)}
    rows = [row for one in bare for row in (one.chosen, one.rejected)]
    if not all(map(trained, rows)):
        raise SettingsError("there is nothing to compare: a row of a pair has no token with a label")
    return PairPlan(
        pairs=tuple(sorted(bare, key=lambda one: (_place(one.chosen), _place(one.rejected)))),
        steps=epochs * -(-len(bare) // batch_size),
        trained_tokens=epochs * sum(map(trained, rows)),
        tokens=epochs * sum(len(row.input_ids) for row in rows),
    )


def _place(row: Row) -> tuple[bytes, tuple[int, ...], tuple[int, ...]]:
    return msgspec.json.encode(row.key), row.input_ids, row.labels

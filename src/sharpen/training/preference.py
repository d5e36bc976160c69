"""Learning from passes and fails: DPO with an NLL term on what passed (Iterative RPO, Pang et al., 2404.19733). TRL's DPOTrainer, in a process of its own.

SFT on passes makes fails of the same task likelier too; a pair pushes them down. Without the NLL term what passed becomes less likely as well, only more
slowly. There, on GSM8K, one round took Llama-2-70B-Chat from 55.6 % to 73.1 %, to 61.8 % without NLL, and to 65.2 % with SFT on the same passes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import msgspec
from msgspec.structs import replace

from sharpen.errors import Refused, SettingsError
from sharpen.models import open_folder
from sharpen.pairs import NO_PAIR, PairSettings
from sharpen.records import Model, PreferencePair, Record, Row, TrainingReport
from sharpen.training.base import DEFAULT_RATES as SFT_RATES
from sharpen.training.base import Progress, Training, Work, descend, trained, unmarked
from sharpen.training.process import name_of, reported, work_in_process

# A twentieth of those of SFT: published recipes take a tenth (Tülu 3: 5e-6, then 5e-7) to a fortieth (Zephyr: 2e-5, then 5e-7) for DPO.
# Not tuned here. Iterative RPO's 7e-7 is for 70B and thousands of steps; a round here has dozens.
DEFAULT_RATES = {method: rate / 20 for method, rate in SFT_RATES.items()}


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


class PreferenceTrainer(Protocol):
    """Pairs and a model to a new model, as ``train_preference`` does it."""

    def __call__(
        self,
        pairs: Sequence[PreferencePair],
        model: Model,
        settings: Preference,
        out: Path,
        *,
        training: Training | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> tuple[Model, TrainingReport]: ...


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

    ``model`` is to be the one that stands and made the tries, not one trained on the survivors first: it is also the reference that margins are taken
    against. So does Iterative RPO, where a round that began at SFT on the chosen tries came out the same (73.1 % both; without NLL 60.3 % against
    61.8 %), at the price of another training: the NLL term is the SFT on the survivors.

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
        raise Refused(NO_PAIR)
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

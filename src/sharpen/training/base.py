"""What training is: its settings, its order of rows, and the protocol. Pure: knows no torch."""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, Protocol

import msgspec

from sharpen.errors import SettingsError
from sharpen.records import Lineage, Model, Record, Row, TrainingReport
from sharpen.terms import gate, merged, root_of

# Tuned on SmolLM2-135M (see benchmarks/training.py); LoRA wants about ten times the rate of full training whatever the model
# (Schulman et al., "LoRA Without Regret", 2025), and larger models want less of both.
DEFAULT_RATES = {"lora": 1e-3, "full": 1e-4}


class Training(Record, frozen=True, kw_only=True):
    """How a model is trained.

    ``learning_rate`` is the peak (None: by method, see ``DEFAULT_RATES``), ``warmup`` a share of the steps in [0, 1). ``lora_targets`` names
    modules (None: every linear layer but the head). ``max_length`` is in tokens. ``start`` says whether a round begins at the base or at the
    current model. ``precision`` "auto" is bf16 where the hardware computes in it, else f32. ``accelerate_config`` is a file made by
    ``accelerate config``, for many GPUs or machines.

    ``batch_size`` is rows per optimiser step over all processes. A step is computed in micro-batches of at most ``micro_tokens`` tokens, padding
    included (None: 8192 on a GPU, 1024 on a CPU, whose caches like small ones), so memory is bounded by tokens, not rows; a longer row goes alone.
    """

    method: Literal["lora", "full"] = "lora"
    lora_rank: int = 16
    lora_alpha: int = 32
    lora_targets: tuple[str, ...] | None = None
    learning_rate: float | None = None
    epochs: int = 2
    batch_size: int = 8
    micro_tokens: int | None = None
    warmup: float = 0.05
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    weight_decay: float = 0.0
    max_length: int = 2048
    precision: Literal["auto", "f32", "bf16"] = "auto"
    start: Literal["base", "current"] = "base"
    report_to: tuple[str, ...] = ()
    seed: int = 0
    accelerate_config: str | None = None
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        whole = {name: getattr(self, name) for name in ("lora_rank", "lora_alpha", "epochs", "batch_size", "micro_tokens")}
        for name, value in whole.items():
            if value is not None and value < 1:
                raise SettingsError(f"{name} is {value}, but must be at least 1")
        if self.max_length < 2:
            raise SettingsError(f"max_length is {self.max_length} tokens, but a row needs at least 2: one to read and one to learn")
        if self.learning_rate is not None and self.learning_rate <= 0:
            raise SettingsError(f"learning_rate is {self.learning_rate}, but must be over 0")
        if not 0 <= self.warmup < 1:
            raise SettingsError(f"warmup is {self.warmup}, but is a share of the steps: 0 or more and under 1")
        if self.weight_decay < 0:
            raise SettingsError(f"weight_decay is {self.weight_decay}, but must be 0 or more")
        if self.lora_targets == ():
            raise SettingsError("lora_targets is empty: nothing would be trained; leave it out for every linear layer")
        if self.accelerate_config is not None and not Path(self.accelerate_config).is_file():
            raise SettingsError(
                f"accelerate_config {self.accelerate_config} is not a file; `accelerate config --config_file PATH` makes one"
            )

    @property
    def rate(self) -> float:
        """The peak learning rate in use."""
        return DEFAULT_RATES[self.method] if self.learning_rate is None else self.learning_rate


class Progress(Record, frozen=True, kw_only=True):
    """How far a training is. ``loss`` is the mean over the step's labels, ``tokens_per_second`` counts the tokens of rows without padding."""

    step: int
    steps: int
    loss: float
    tokens_per_second: float


class Trainer(Protocol):
    """Training rows and a model to a new model, in a process of its own."""

    def __call__(
        self,
        rows: Sequence[Row],
        model: Model,
        settings: Training,
        out: Path,
        *,
        token_budget: int | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> tuple[Model, TrainingReport]:
        """The trained model in the folder ``out``. TrainingError where it failed; then ``out`` does not exist.

        First of all it asks ``descend``: Unsettled where the terms of whoever made a row do not let it train.
        """
        ...


class Plan(Record, frozen=True, kw_only=True):
    """What is trained on, in which order: ``steps`` hold indices into ``rows``. ``trained_tokens`` counts labels, ``tokens`` whole rows."""

    rows: tuple[Row, ...]
    steps: tuple[tuple[int, ...], ...]
    trained_tokens: int
    tokens: int


class Work(Record, frozen=True, kw_only=True):
    """What a training process is asked to do, whatever it learns from. ``model`` and ``out`` are folders, ``start`` is the name of the first, ``name``
    and ``lineage`` are the new model's; ``watched``: stdin closes when the parent dies."""

    model: str
    start: str
    out: str
    name: str
    lineage: Lineage
    settings: Training
    watched: bool = False


class Job(Work, frozen=True, kw_only=True):
    """Training on rows, in the order of ``plan``."""

    plan: Plan


class Line(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A line to the parent, in ``progress.jsonl``: how far it is, or how it ended. ``refused``: it was no failure, but would have been useless.

    ``tokens`` and ``trained_tokens`` are told at the end by a training that samples what it learns from.
    """

    progress: Progress | None = None
    precision: str = ""
    failed: str = ""
    disk: bool = False
    refused: bool = False
    tokens: int = 0
    trained_tokens: int = 0


def descend(model: Model, rows: Sequence[Row], plan: Record, settings: Training) -> Lineage:
    """The lineage of what is to be trained from ``model`` on ``rows``, as planned, and the gate that every training passes.

    Unsettled, before anything is made, where the terms of whoever made a row do not let it train; those that do are inherited, beside the model's own.
    """
    return Lineage(
        base=model.lineage.base,
        root=root_of(model),
        parent=model.fingerprint,
        training_set=hashlib.sha256(msgspec.json.encode(plan)).hexdigest(),
        settings=msgspec.to_builtins(settings),
        terms=merged(model.lineage.terms, gate(rows, model)),
    )


def unmarked(rows: Sequence[Row]) -> list[Row]:
    """``rows`` without who made them: what is learnt, and what names a training set. Terms that are renewed make no other set."""
    return [msgspec.structs.replace(row, maker=None) for row in rows]


def trained(row: Row) -> int:
    """How many tokens of ``row`` are learnt. A label on the first token counts for nothing: nothing predicts it."""
    return sum(label != -100 for label in row.labels[1:])


def plan_rows(rows: Sequence[Row], epochs: int, seed: int, token_budget: int | None = None, *, batch_size: int = 8) -> Plan:
    """The order in which ``rows`` are trained: the same for the same rows, whatever order they arrived in.

    Each epoch is shuffled anew. With a ``token_budget`` (labels; a control gets as many as the arm it is compared with) ``epochs`` is ignored:
    epochs go on until the budget is reached, the last row included, so the count overshoots by less than one row.
    Batches hold rows of like length, which is what keeps padding small; their order is random.
    """
    ordered = sorted(unmarked(rows), key=lambda row: (msgspec.json.encode(row.key), row.input_ids, row.labels))
    counts = [trained(row) for row in ordered]
    if not any(counts):
        raise SettingsError("there is nothing to train on: no row has a token with a label")
    if token_budget is not None and token_budget < 1:
        raise SettingsError(f"token_budget is {token_budget}, but must be at least 1 trained token")
    draw = random.Random(seed)
    steps: list[tuple[int, ...]] = []
    done = epoch = 0
    while done < token_budget if token_budget is not None else epoch < epochs:
        order = [index for index in range(len(ordered)) if counts[index]]
        draw.shuffle(order)
        taken: list[int] = []
        for index in order:
            taken.append(index)
            done += counts[index]
            if token_budget is not None and done >= token_budget:
                break
        steps += _batches(taken, [len(row.input_ids) for row in ordered], batch_size, draw)
        epoch += 1
    tokens = sum(len(ordered[index].input_ids) for step in steps for index in step)
    return Plan(rows=tuple(ordered), steps=tuple(steps), trained_tokens=done, tokens=tokens)


def _batches(taken: list[int], lengths: list[int], batch_size: int, draw: random.Random) -> list[tuple[int, ...]]:
    """Batches of like length in random order. ``taken`` comes shuffled, so rows of equal length meet others each epoch."""
    by_length = sorted(taken, key=lambda index: lengths[index])
    batches = [tuple(by_length[at : at + batch_size]) for at in range(0, len(by_length), batch_size)]
    draw.shuffle(batches)
    return batches


def micro_batches(step: Sequence[int], lengths: Sequence[int], micro_tokens: int, processes: int = 1) -> list[list[list[int]]]:
    """A step's rows dealt to ``processes``: for each, the same number of micro-batches of at most ``micro_tokens`` padded tokens.

    The same number everywhere, because processes that share weights must run in step; some may be empty. A row over the limit goes alone.
    """
    rows = sorted(step, key=lambda index: lengths[index])
    for each in range(1, -(-len(rows) // processes) + 1):
        parts = each * processes
        cuts = [round(part * len(rows) / parts) for part in range(parts + 1)]
        chunks = [rows[start:stop] for start, stop in itertools.pairwise(cuts)]
        if all(len(chunk) <= 1 or len(chunk) * lengths[chunk[-1]] <= micro_tokens for chunk in chunks):
            break
    return [chunks[process::processes] for process in range(processes)]

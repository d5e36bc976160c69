"""DPO with its NLL term: TRL's trainer on a tiny model, held against the definition; and the process it runs in."""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

import test_training
from sharpen.errors import TrainingError
from sharpen.models import open_folder
from sharpen.pairs import said
from sharpen.records import Model, PreferencePair, Row, SampleKey
from sharpen.terms import EXPERT
from sharpen.training.base import Line, Training
from sharpen.training.preference import Preference, prepare, train_preference
from test_training import weights, worker_of

pytestmark = pytest.mark.real

tiny = test_training.tiny  # the fixture: a model of two layers and 97 words

FULL = Training(method="full", precision="f32", warmup=0.0, schedule="constant")
LORA = replace(FULL, method="lora", lora_rank=4)
QUICK = Preference(learning_rate=1e-2, batch_size=3)


def row(task: int, index: int, opening: Sequence[int], *turns: tuple[Sequence[int], Sequence[int]]) -> Row:
    """A row that opens with ``opening``, and in turns says the one and is shown the other."""
    ids, labels = [*opening], [-100] * len(opening)
    for spoken, shown in turns:
        ids += [*spoken, *shown]
        labels += [*spoken, *[-100] * len(shown)]
    key = SampleKey(model="m", task=f"t{task}", environment="e", sampling="s", index=index)
    return Row(input_ids=tuple(ids), labels=tuple(labels), key=key, source="sampled", origin="sampled", maker=EXPERT)


def some_pairs(count: int, seed: int = 0) -> list[PreferencePair]:
    """Of two turns each, of several lengths, with much that the environment said between and behind them."""
    draw = random.Random(seed)

    def tokens(least: int, most: int) -> list[int]:
        return [draw.randrange(3, 97) for _ in range(draw.randint(least, most))]

    made = []
    for task in range(count):
        opening = tokens(3, 8)
        good, bad = (row(task, index, opening, (tokens(2, 6), tokens(4, 9)), (tokens(2, 6), tokens(0, 5))) for index in range(2))
        made.append(PreferencePair(chosen=good, rejected=bad))
    return made


def in_process(tiny: Model, pairs: Sequence[PreferencePair], settings: Preference, training: Training, out: Path) -> list[float]:
    """Train as the worker does, without a process; returns the losses."""
    from sharpen.training import preference_worker

    out.mkdir()
    preference_worker.train(prepare(pairs, tiny, settings, out / "model", training), out / "progress.jsonl")
    lines = [msgspec.json.decode(line, type=Line) for line in (out / "progress.jsonl").read_bytes().splitlines()]
    return [line.progress.loss for line in lines if line.progress is not None]


def log_probabilities(path: str | Path, rows: Sequence[Row], masked: bool = True) -> list[float]:
    """Sums over the labelled tokens of each row (over all but the first, where not ``masked``), one row at a time, from the definition."""
    import torch
    from transformers import AutoModelForCausalLM

    model, sums = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval(), []
    for one in rows:
        with torch.no_grad():
            logs = model(torch.tensor([one.input_ids])).logits[0].log_softmax(-1)
        labels = one.labels if masked else one.input_ids
        sums.append(sum(float(logs[at, label]) for at, label in enumerate(labels[1:]) if label != -100))
    return sums


def by_hand(policy: str | Path, reference: str | Path, pairs: Sequence[PreferencePair], settings: Preference, masked: bool = True) -> float:
    """The mean over ``pairs`` of the loss that ``Preference`` gives in words."""
    good, bad = [one.chosen for one in pairs], [one.rejected for one in pairs]
    now, before = ([log_probabilities(path, rows, masked) for rows in (good, bad)] for path in (policy, reference))
    total = 0.0
    for at, one in enumerate(pairs):
        margin = (now[0][at] - before[0][at]) - (now[1][at] - before[1][at])
        length = len(said(one.chosen)) if masked else len(one.chosen.input_ids) - 1
        total += -math.log(1 / (1 + math.exp(-settings.beta * margin))) - settings.nll * now[0][at] / length
    return total / len(pairs)


@pytest.mark.parametrize("training", [FULL, LORA], ids=["full", "lora"])
def test_the_loss_is_that_of_what_the_policy_said_and_nothing_else(tiny: Model, training: Training, tmp_path: Path) -> None:
    """The second step's loss, since at the first the policy is the reference, and the rejected rows count for nothing."""
    pairs, settings = some_pairs(3), replace(QUICK, nll=0.5, beta=0.3, learning_rate=3e-2)
    in_process(tiny, pairs, settings, training, tmp_path / "one")
    first, second = in_process(tiny, pairs, replace(settings, epochs=2), training, tmp_path / "two")
    moved = tmp_path / "one" / "model"
    assert first == pytest.approx(by_hand(tiny.path, tiny.path, pairs, settings), abs=2e-4)  # Trainer logs four digits
    expected = by_hand(moved, tiny.path, pairs, settings)
    assert second == pytest.approx(expected, abs=2e-4)
    assert abs(expected - by_hand(moved, tiny.path, pairs, settings, masked=False)) > 0.02
    assert abs(expected - first) > 0.02


@pytest.mark.parametrize("training", [FULL, LORA], ids=["full", "lora"])
def test_the_margin_rises_and_what_was_chosen_does_not_fall(tiny: Model, training: Training, tmp_path: Path) -> None:
    pairs = some_pairs(6)
    losses = in_process(tiny, pairs, replace(QUICK, epochs=15), training, tmp_path / "a")
    assert len(losses) == 30 and losses[-1] < losses[0]
    good, bad = [one.chosen for one in pairs], [one.rejected for one in pairs]
    new = tmp_path / "a" / "model"
    rise, fall = (
        [after - before for after, before in zip(log_probabilities(new, rows), log_probabilities(tiny.path, rows), strict=True)]
        for rows in (good, bad)
    )
    assert min(rise) > 0 and min(up - down for up, down in zip(rise, fall, strict=True)) > 1
    assert (new / "adapter").is_dir() == (training.method == "lora")
    assert not (new / "adapter_config.json").exists()
    assert (new / "tokenizer.json").read_text() == (Path(tiny.path) / "tokenizer.json").read_text()


def test_without_nll_what_was_chosen_falls_and_with_it_it_rises(tiny: Model, tmp_path: Path) -> None:
    """Both say the same words, the rejected one twice: pushed down there they fall everywhere, as long as the margin grows."""
    pairs = []
    for task, one in enumerate(some_pairs(4)):
        words = said(one.chosen)
        good, bad = (row(task, index, one.chosen.input_ids[:3], (words * times, ())) for index, times in ((0, 1), (1, 3)))
        pairs.append(PreferencePair(chosen=good, rejected=bad))
    good = [one.chosen for one in pairs]
    before = sum(log_probabilities(tiny.path, good))
    for nll in (0.0, 1.0):
        in_process(tiny, pairs, replace(QUICK, nll=nll, epochs=4, learning_rate=3e-3), FULL, tmp_path / str(nll))
        after = sum(log_probabilities(tmp_path / str(nll) / "model", good))
        assert after < before if nll == 0 else after > before


def test_the_same_seed_gives_the_same_weights_whatever_order_pairs_came_in(tiny: Model, tmp_path: Path) -> None:
    pairs = some_pairs(5)
    for name, seed, given in (("a", 0, pairs), ("b", 0, pairs[::-1]), ("c", 1, pairs)):
        losses = in_process(tiny, given, replace(QUICK, batch_size=2), replace(LORA, seed=seed), tmp_path / name)
        assert len(losses) == 3
    assert weights(tmp_path / "a") == weights(tmp_path / "b") != weights(tmp_path / "c")


def test_in_a_process_of_its_own(tiny: Model, tmp_path: Path) -> None:
    seen: list[int] = []
    out = tmp_path / "005-rejection-sampling" / "model"
    model, report = train_preference(
        some_pairs(5), tiny, replace(QUICK, batch_size=2, epochs=2), out, training=LORA, on_progress=lambda at: seen.append(at.step)
    )
    assert seen == list(range(1, 7)) and report.steps == 6 and len(report.losses) == 6 and report.precision == "f32: as set"
    assert report.tokens == 2 * sum(len(side.input_ids) for one in some_pairs(5) for side in (one.chosen, one.rejected))
    assert model.name == "005-rejection-sampling" and model.lineage.parent == tiny.fingerprint != model.fingerprint
    assert model.lineage.settings["preference"]["nll"] == 1.0 and model.lineage.training_set
    assert sorted(path.name for path in out.parent.iterdir()) == ["model", "train.log"]
    assert "rewards/margins" in (out.parent / "train.log").read_text()


def test_weights_that_give_no_numbers_are_said_and_what_was_there_stays(tiny: Model, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny.path, tmp_path / "nan")
    path = tmp_path / "nan" / "model.safetensors"
    save_file({name: torch.full_like(tensor, float("nan")) for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    out = tmp_path / "new" / "model"
    out.mkdir(parents=True)
    (out / "old").touch()
    with pytest.raises(TrainingError, match=r"the loss is nan at step 1 of 1; nothing was learnt yet") as caught:
        train_preference(some_pairs(2), open_folder(tmp_path / "nan", "nan"), QUICK, out, training=LORA)
    assert "\n" not in str(caught.value)
    assert [path.name for path in out.iterdir()] == ["old"]


RUN = """
import json, msgspec, os
from pathlib import Path
from sharpen.models import open_folder
from sharpen.records import PreferencePair
from sharpen.training.base import Training
from sharpen.training.preference import Preference, train_preference

given = json.loads(os.environ["GIVEN"])
train_preference(
    msgspec.json.decode(given["pairs"], type=list[PreferencePair]),
    open_folder(Path(given["model"]), "tiny"),
    Preference(epochs=100_000),
    Path(given["out"]),
    training=Training(method="full", precision="f32"),
    on_progress=lambda at: print(at.step, flush=True),
)
"""


def test_a_killed_parent_takes_its_worker_along(tiny: Model, tmp_path: Path) -> None:
    given = {"pairs": msgspec.json.encode(some_pairs(2)).decode(), "model": tiny.path, "out": str(tmp_path / "model")}
    # In the environment, so that of all command lines only the worker's names the folder.
    with subprocess.Popen([sys.executable, "-c", RUN], stdout=subprocess.PIPE, env={**os.environ, "GIVEN": json.dumps(given)}) as parent:
        assert parent.stdout is not None and int(parent.stdout.readline()) == 1
        worker = os.pidfd_open(worker_of(tmp_path))
        parent.kill()
        try:
            assert select.select([worker], [], [], 300)[0], "the worker lives on"
        finally:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(worker, signal.SIGKILL)
            os.close(worker)
    assert not (tmp_path / "model").exists()

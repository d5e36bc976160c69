"""Training: the order of rows, budgets and settings (fast); and the real trainer on a tiny model (``real``)."""

from __future__ import annotations

import itertools
import os
import random
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from conftest import runs
from sharpen.errors import ModelError, SettingsError, StorageError, TrainingError
from sharpen.models import Model, load_model, open_folder
from sharpen.records import Lineage, Row, SampleKey
from sharpen.terms import EXPERT
from sharpen.training import process, sft
from sharpen.training.base import Job, Line, Plan, Progress, Training, micro_batches, plan_rows, trained


def row(task: str, ids: Sequence[int], learnt: int) -> Row:
    """A row of ``ids`` whose last ``learnt`` tokens are trained."""
    key = SampleKey(model="m", task=task, environment="e", sampling="s", index=0)
    labels = [-100] * (len(ids) - learnt) + list(ids[len(ids) - learnt :])
    return Row(input_ids=tuple(ids), labels=tuple(labels), key=key, source="sampled", origin="sampled", maker=EXPERT)


def some_rows(count: int, seed: int = 0, vocabulary: int = 90) -> list[Row]:
    draw = random.Random(seed)
    return [row(f"t{i:02}", [draw.randrange(3, vocabulary) for _ in range(draw.randint(8, 24))], draw.randint(2, 5)) for i in range(count)]


# ---------------------------------------------------------------- fast: what is trained on, in which order


def test_order_of_arrival_changes_nothing() -> None:
    rows = some_rows(20)
    assert plan_rows(rows, 3, 1) == plan_rows(rows[::-1], 3, 1)
    assert plan_rows(rows, 3, 1) != plan_rows(rows, 3, 2)


def test_each_epoch_has_each_row_once_and_batches_are_of_like_length() -> None:
    rows = some_rows(20)
    plan = plan_rows(rows, 2, 0, batch_size=4)
    assert len(plan.steps) == 10 and {len(step) for step in plan.steps} == {4}
    for epoch in (plan.steps[:5], plan.steps[5:]):
        assert sorted(index for step in epoch for index in step) == list(range(20))
        lengths = sorted(sorted(len(plan.rows[index].input_ids) for index in step) for step in epoch)
        assert all(shorter[-1] <= longer[0] for shorter, longer in itertools.pairwise(lengths))
    assert plan.trained_tokens == 2 * sum(trained(each) for each in rows)
    assert plan.tokens == 2 * sum(len(each.input_ids) for each in rows)


@pytest.mark.parametrize("budget", [1, 7, 50, 500])
def test_a_budget_is_reached_and_overshot_by_less_than_a_row(budget: int) -> None:
    rows = some_rows(10)
    plan = plan_rows(rows, 1, 0, budget)
    assert budget <= plan.trained_tokens < budget + max(trained(each) for each in rows)
    assert plan.trained_tokens == sum(trained(plan.rows[index]) for step in plan.steps for index in step)
    assert plan == plan_rows(rows[::-1], 9, 0, budget)


def test_a_label_on_the_first_token_is_not_counted() -> None:
    assert trained(row("t", [5, 6, 7], 3)) == 2
    with pytest.raises(SettingsError, match="nothing to train on"):
        plan_rows([row("t", [5, 6], 0)], 1, 0)
    with pytest.raises(SettingsError, match="token_budget"):
        plan_rows(some_rows(2), 1, 0, 0)


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("limit", [1, 20, 60, 10_000])
def test_micro_batches_hold_every_row_once_within_the_limit(processes: int, limit: int) -> None:
    lengths = [len(each.input_ids) for each in some_rows(11)]
    dealt = micro_batches(range(11), lengths, limit, processes)
    assert len(dealt) == processes and len({len(share) for share in dealt}) == 1
    chunks = [chunk for share in dealt for chunk in share]
    assert sorted(index for chunk in chunks for index in chunk) == list(range(11))
    assert all(len(chunk) <= 1 or len(chunk) * max(lengths[index] for index in chunk) <= limit for chunk in chunks)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"lora_rank": 0}, "lora_rank is 0"),
        ({"epochs": 0}, "epochs is 0"),
        ({"micro_tokens": 0}, "micro_tokens is 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0"),
        ({"warmup": 1.0}, "warmup is 1"),
        ({"weight_decay": -1.0}, "weight_decay is -1"),
        ({"max_length": 1}, "max_length is 1"),
        ({"lora_targets": ()}, "lora_targets is empty"),
        ({"accelerate_config": "/nowhere.yaml"}, "is not a file"),
    ],
)
def test_settings_out_of_range_are_one_line(given: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsError, match=says) as caught:
        Training(**given)
    assert "\n" not in str(caught.value)


def test_the_rate_is_the_methods_unless_set() -> None:
    assert Training().rate > Training(method="full").rate
    assert Training(learning_rate=0.5).rate == 0.5


def test_deaths_are_one_line_with_the_reason(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    log.write_text("Traceback\nsubprocess.CalledProcessError: Command '[...]' died with <Signals.SIGKILL: 9>.\n")
    assert "want of memory" in str(process.death(1, log)) and str(log) in str(process.death(1, log))
    log.write_text("OSError: [Errno 28] No space left on device\n")
    assert isinstance(process.death(1, log), StorageError)
    assert isinstance(process.told(Line(failed="x", disk=True), log), StorageError)
    log.write_text("something\nlast words\n\n")
    assert "last words" in str(process.death(2, log))


# ---------------------------------------------------------------- real: TRL on a tiny model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A two-layer Llama with a tokenizer of 97 words: everything of a real model but its size."""
    torch, transformers, tokenizers = (pytest.importorskip(name) for name in ("torch", "transformers", "tokenizers"))
    torch.manual_seed(0)
    words = {"<pad>": 0, "<eos>": 1, **{f"w{i}": i for i in range(2, 97)}}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w2")), eos_token="<eos>", pad_token="<pad>"
    )
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = transformers.LlamaConfig(vocab_size=97, max_position_embeddings=256, eos_token_id=1, pad_token_id=0, bos_token_id=1, **shape)
    folder = tmp_path_factory.mktemp("tiny")
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return open_folder(folder, "tiny")


FULL = Training(method="full", learning_rate=1e-2, epochs=40, batch_size=4, warmup=0.0, precision="f32")


def job(tiny: Model, rows: Sequence[Row], settings: Training, out: Path) -> Job:
    plan = plan_rows(rows, settings.epochs, settings.seed, batch_size=settings.batch_size)
    lineage = Lineage(base="tiny", training_set="some rows")
    return Job(model=tiny.path, start="tiny", out=str(out / "model"), name="new", lineage=lineage, settings=settings, plan=plan)


def in_process(tiny: Model, rows: Sequence[Row], settings: Training, out: Path) -> list[float]:
    """Train as the worker does, without a process; returns the losses."""
    from sharpen.training import worker

    out.mkdir()
    worker.train(job(tiny, rows, settings, out), out / "progress.jsonl")
    lines = [msgspec.json.decode(line, type=Line) for line in (out / "progress.jsonl").read_bytes().splitlines()]
    return [line.progress.loss for line in lines if line.progress is not None]


def by_hand(tiny: Model, plan: Plan, step: Sequence[int]) -> float:
    """The step's mean cross-entropy over its labels, one row at a time, from the definition."""
    import torch
    from transformers import AutoModelForCausalLM

    model, total, count = AutoModelForCausalLM.from_pretrained(tiny.path, dtype=torch.float32).eval(), 0.0, 0
    for index in step:
        each = plan.rows[index]
        with torch.no_grad():
            logs = model(torch.tensor([each.input_ids])).logits[0].log_softmax(-1)
        for at, label in enumerate(each.labels[1:]):
            if label != -100:
                total, count = total - float(logs[at, label]), count + 1
    return total / count


@pytest.mark.real
def test_overfits_in_a_process_of_its_own(tiny: Model, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    rows = some_rows(4)
    seen: list[int] = []
    model, report = sft.train(rows, tiny, FULL, tmp_path / "001-sft" / "model", on_progress=lambda at: seen.append(at.step))
    assert seen == list(range(1, 41)) and report.steps == 40
    assert report.losses[-1] < 0.1 < report.losses[0]
    assert report.precision == "f32: as set"
    assert model.name == "001-sft" and model.lineage.parent == tiny.fingerprint and model.lineage.base == "tiny"
    assert model.fingerprint == load_model(model.path).fingerprint != tiny.fingerprint
    assert sorted(path.name for path in (tmp_path / "001-sft").iterdir()) == ["model", "train.log"]
    learnt = AutoModelForCausalLM.from_pretrained(model.path)
    for each in rows:
        start = next(at for at, label in enumerate(each.labels) if label != -100)
        given = torch.tensor([each.input_ids[:start]])
        said = learnt.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=len(each.input_ids) - start, do_sample=False)
        assert tuple(said[0, start:].tolist()) == each.input_ids[start:]


@pytest.mark.real
def test_the_loss_is_the_labels_cross_entropy_and_nothing_else(tiny: Model, tmp_path: Path) -> None:
    rows = some_rows(6)
    settings = msgspec.structs.replace(FULL, batch_size=3, epochs=1, learning_rate=1e-30)  # so small that the weights stand still
    plan = plan_rows(rows, 1, 0, batch_size=3)
    expected = [by_hand(tiny, plan, step) for step in plan.steps]
    assert in_process(tiny, rows, settings, tmp_path / "whole") == pytest.approx(expected, abs=2e-4)  # Trainer logs four digits
    alone = msgspec.structs.replace(settings, micro_tokens=1)
    assert in_process(tiny, rows, alone, tmp_path / "alone") == pytest.approx(expected, abs=2e-4)


@pytest.mark.real
def test_only_labelled_positions_have_gradients(tiny: Model, tmp_path: Path) -> None:
    """Of the tokens after the last label, nothing is learnt: other tokens there give the same weights."""
    first = some_rows(1)[0]
    tails = [
        msgspec.structs.replace(first, input_ids=(*first.input_ids, *tail), labels=(*first.labels, -100, -100)) for tail in ((4, 5), (6, 7))
    ]
    few = msgspec.structs.replace(FULL, epochs=2)
    for name, each in zip("ab", tails, strict=True):
        in_process(tiny, [each], few, tmp_path / name)
    assert weights(tmp_path / "a") == weights(tmp_path / "b")


@pytest.mark.real
def test_lora_is_merged_and_the_same_seed_gives_the_same_weights(tiny: Model, tmp_path: Path) -> None:
    settings = Training(learning_rate=1e-2, epochs=4, batch_size=2, precision="f32")
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        losses = in_process(tiny, some_rows(4), msgspec.structs.replace(settings, seed=seed), tmp_path / name)
        assert losses[-1] < losses[0]
    assert weights(tmp_path / "a") == weights(tmp_path / "b") != weights(tmp_path / "c")
    assert not (tmp_path / "a" / "model" / "adapter_config.json").exists()
    assert open_folder(tmp_path / "a" / "model").lineage.base == "tiny"


@pytest.mark.real
def test_an_exported_model_and_an_exported_adapter_are_the_trained_one(tiny: Model, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from sharpen.verbs import export_weights

    def logits(model: Any) -> Any:
        with torch.no_grad():
            return model.eval()(torch.tensor([[5, 6, 7, 8]])).logits

    in_process(tiny, some_rows(4), Training(learning_rate=1e-2, epochs=4, batch_size=2, precision="f32"), tmp_path / "a")
    trained = tmp_path / "a" / "model"
    whole, alone = tmp_path / "whole", tmp_path / "alone"
    export_weights(trained, whole, "model")
    export_weights(trained, alone, "adapter")
    assert not any("/tmp" in path.read_text() for path in (*whole.glob("*.json"), *alone.glob("*.json")))  # no path of this machine travels
    assert not (alone / "model.safetensors").exists() and len(AutoTokenizer.from_pretrained(alone)) == 97
    before = AutoModelForCausalLM.from_pretrained(tiny.path, dtype=torch.float32)
    wanted = logits(AutoModelForCausalLM.from_pretrained(trained, dtype=torch.float32))
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(whole, dtype=torch.float32)), wanted)
    assert not torch.allclose(logits(before), wanted, atol=1e-2)
    assert torch.allclose(logits(PeftModel.from_pretrained(before, alone)), wanted, atol=2e-3)  # float16 once
    for folder, library in ((whole, "transformers"), (alone, "peft")):
        card = (folder / "README.md").read_text()
        assert f"library_name: {library}" in card and "`tiny`" in card and "It comes from no run" in card
    with pytest.raises(ModelError, match="is not empty; name a new folder"):
        export_weights(trained, whole, "model")
    with pytest.raises(ModelError, match="has no adapter"):
        export_weights(whole, tmp_path / "none", "adapter")
    assert open_folder(whole).fingerprint == open_folder(trained).fingerprint


def weights(out: Path) -> bytes:
    return (out / "model" / "model.safetensors").read_bytes()


@pytest.mark.real
def test_a_killed_worker_is_one_line_and_leaves_nothing(tiny: Model, tmp_path: Path) -> None:
    def kill(at: Progress) -> None:
        if at.step == 1:
            os.kill(worker_of(tmp_path), signal.SIGKILL)

    with pytest.raises(TrainingError, match="killed") as caught:
        sft.train(some_rows(4), tiny, msgspec.structs.replace(FULL, epochs=20_000), tmp_path / "model", on_progress=kill)
    assert "\n" not in str(caught.value) and str(tmp_path / "train.log") in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["train.log"]


@pytest.mark.real
def test_an_interrupt_ends_the_whole_group(tiny: Model, tmp_path: Path) -> None:
    found: list[int] = []

    def interrupt(_: object) -> None:
        found.append(worker_of(tmp_path))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sft.train(some_rows(4), tiny, msgspec.structs.replace(FULL, epochs=20_000), tmp_path / "model", on_progress=interrupt)
    assert not runs(found[0])
    assert [path.name for path in tmp_path.iterdir()] == ["train.log"]


@pytest.mark.real
def test_a_loss_that_is_no_number_is_said(tiny: Model, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) at step \d+ of 40; lower learning_rate"):
        sft.train(some_rows(4), tiny, msgspec.structs.replace(FULL, learning_rate=1e30), tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["train.log"]


def worker_of(folder: Path) -> int:
    """The process id of the worker whose job is in ``folder``."""
    (found,) = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit() and str(folder) in command(path)]
    return found


def command(process: Path) -> str:
    try:
        return (process / "cmdline").read_text()
    except OSError:
        return ""

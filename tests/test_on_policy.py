"""On-policy distillation: its conditions, and (``real``) both of TRL's trainers on tiny random models, as a process and with the real model."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from sharpen.chat.template import ChatTemplate
from sharpen.environments.single_turn import SingleTurn
from sharpen.errors import ModelError, Refused, SettingsError, TrainingError
from sharpen.models import load_model, open_folder
from sharpen.policies.scripted import scripted_model
from sharpen.records import Lineage, Message, Model, Task
from sharpen.tasks.base import TaskSet
from sharpen.terms import EXPERT, TermsSettings
from sharpen.training.base import Line, Progress, Training
from sharpen.training.on_policy import OnPolicy, Prompt, fit, openings, plan_prompts, prepare, train_on_policy

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = ["what is one and two", "one and two is three", "the sum of one and three is four", "count from one to four"]
QUIET = Training(method="full", precision="f32", warmup=0.0)
FEW = OnPolicy(steps=2, batch_size=4, max_new_tokens=6, learning_rate=1e-3)


def ask(text: str, answer: str = "") -> Prompt:
    return Prompt(key=text, messages=(Message(role="user", content=text),), answer=answer)


PROMPTS = tuple(ask(text, answer) for text, answer in zip(TEXT, TEXT[::-1], strict=True))


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Model]:
    """Makes tiny models with random weights, far enough from uniform to differ, and byte-level tokenizers of their own."""
    torch, transformers, tokenizers = (pytest.importorskip(name) for name in ("torch", "transformers", "tokenizers"))

    def build(
        name: str,
        seed: int,
        *,
        words: int = 290,
        added: tuple[str, ...] = (),
        template: str = CHATML,
        rows: int | None = None,
        byte_level: bool = True,
        positions: int = 128,
        texts: Sequence[str] = TEXT,
        width: int = 32,
    ) -> Model:
        backend = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token=None if byte_level else "<unk>"))
        alphabet = []
        if byte_level:
            backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
            backend.decoder = tokenizers.decoders.ByteLevel()
            alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
        special = ["<|im_start|>", "<|im_end|>", *([] if byte_level else ["<unk>"])]
        backend.train_from_iterator(
            texts, tokenizers.trainers.BpeTrainer(vocab_size=words, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
        )
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=backend,
            eos_token="<|im_end|>",
            pad_token="<|im_end|>",
            additional_special_tokens=special[:1],
            unk_token=None if byte_level else "<unk>",
        )
        tokenizer.add_tokens(list(added))
        tokenizer.chat_template = template
        torch.manual_seed(seed)
        shape = {
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
        }
        end = tokenizer.eos_token_id
        config = transformers.LlamaConfig(
            vocab_size=rows or len(tokenizer),
            max_position_embeddings=positions,
            eos_token_id=end,
            pad_token_id=end,
            bos_token_id=None,
            **shape,
        )
        model = transformers.LlamaForCausalLM(config)
        model.lm_head.weight.data.normal_(0, 0.3)
        folder = tmp_path_factory.mktemp(name)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return open_folder(folder, name)

    return build


@pytest.fixture(scope="module")
def student(make: Callable[..., Model]) -> Model:
    return make("student", 0)


@pytest.fixture(scope="module")
def teacher(make: Callable[..., Model]) -> Model:
    return make("teacher", 1)


@pytest.fixture(scope="module")
def stranger(make: Callable[..., Model]) -> Model:
    """A teacher with fewer merges: it cuts words into other tokens."""
    return make("stranger", 1, words=270)


# ---------------------------------------------------------------- settings, order and prompts


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0"),
        ({"temperature": 0.0}, "temperature is 0"),
        ({"beta": 1.5}, "beta is 1.5"),
        ({"lmbda": 0.0}, "way: trajectories"),
        ({"lmbda": 1.1}, "lmbda is 1.1"),
        ({"lmbda": 0.5, "trainer": "distillation"}, "trainer: gold"),
    ],
)
def test_settings_out_of_range_are_one_line(given: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsError, match=says) as caught:
        OnPolicy(**given)
    assert "\n" not in str(caught.value)


def test_prompts_are_planned_by_epochs_and_few_fill_a_large_batch() -> None:
    order = plan_prompts(3, steps=2, batch_size=6, seed=1)
    assert len(order) == 12 and all(sorted(order[at : at + 3]) == [0, 1, 2] for at in range(0, 12, 3))
    assert order == plan_prompts(3, steps=2, batch_size=6, seed=1) != plan_prompts(3, steps=2, batch_size=6, seed=2)
    assert len(plan_prompts(100, steps=2, batch_size=6, seed=1)) == len(set(plan_prompts(100, steps=2, batch_size=6, seed=1))) == 12


class Long(SingleTurn):
    max_turns = 7


def test_a_task_opens_as_its_environment_opens_it_and_several_turns_are_refused() -> None:
    tasks = tuple(Task(key=one.key, family=one.key, prompt=one.messages) for one in PROMPTS)
    opened = openings(TaskSet("sums", tasks, SingleTurn(), None))
    assert opened == tuple(replace(one, answer="") for one in PROMPTS)
    with pytest.raises(Refused, match=r"'games' take up to 7 turns; use way: trajectories"):
        openings(TaskSet("games", tasks, Long(), None))


# ---------------------------------------------------------------- conditions


def test_one_vocabulary_takes_the_one_and_one_added_token_the_other(make: Callable[..., Model], student: Model, teacher: Model) -> None:
    pair = fit(student, teacher, PROMPTS, FEW, QUIET)
    assert (pair.way, pair.left_out, len(pair.asked)) == ("distillation", {}, 4) and "one vocabulary" in pair.why
    more = make("more", 1, added=("<tool>",))
    pair = fit(student, more, PROMPTS, FEW, QUIET)
    assert pair.way == "gold" and pair.why == "1 tokens of student and more differ, '<tool>' first"
    assert fit(more, teacher, PROMPTS, FEW, QUIET).way == "gold"
    with pytest.raises(Refused, match=r"needs one vocabulary, but 1 tokens .* '<tool>' first; set trainer: gold, or use way: trajectories"):
        fit(student, more, PROMPTS, replace(FEW, trainer="distillation"), QUIET)


def test_rows_without_tokens_may_be_the_teachers_only(make: Callable[..., Model], student: Model) -> None:
    padded = make("padded", 1, rows=320)
    assert fit(student, padded, PROMPTS, FEW, QUIET).way == "distillation"
    pair = fit(padded, student, PROMPTS, FEW, QUIET)
    assert pair.way == "gold" and "320 rows of embeddings" in pair.why


def test_alike_vocabularies_that_cut_differently_are_two(student: Model, teacher: Model, tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    shutil.copytree(teacher.path, cut)
    settings = json.loads((cut / "tokenizer.json").read_text())
    settings["model"]["merges"] = settings["model"]["merges"][::-1]
    (cut / "tokenizer.json").write_text(json.dumps(settings))
    pair = fit(student, open_folder(cut, "cut"), PROMPTS, FEW, QUIET)
    assert pair.way == "gold" and "cut the same text into other tokens" in pair.why


def refused(student: Model, teacher: Model, says: str, prompts: tuple[Prompt, ...] = PROMPTS, **changes: Any) -> None:
    with pytest.raises(Refused, match=says) as caught:
        fit(student, teacher, prompts, replace(FEW, **changes), QUIET)
    assert "\n" not in str(caught.value)


def test_teachers_that_cannot_score_are_refused(make: Callable[..., Model], student: Model, teacher: Model, tmp_path: Path) -> None:
    endpoint = Model(name="big", path="https://host/v1#big", fingerprint="x", kind="endpoint", lineage=Lineage(base="big"))
    refused(student, endpoint, "the endpoint big does not give; name the teacher's weights .* or use way: trajectories")
    scripted_model(tmp_path / "scripted", skill=0.5)
    refused(student, load_model(str(tmp_path / "scripted")), "scripted teacher .* use way: trajectories")
    refused(student, student, "the same weights .* way: trajectories")
    with pytest.raises(ModelError, match="cannot be trained here"):
        fit(endpoint, teacher, PROMPTS, FEW, QUIET)
    words = make("words", 1, byte_level=False)
    refused(student, words, "aligns byte-level tokenizers only, and that of words is none; use way: trajectories")


def test_another_template_is_refused(make: Callable[..., Model], student: Model) -> None:
    shouting = make("shouting", 1, template=CHATML.replace("assistant\n", "assistant:\n"))
    refused(
        student,
        shouting,
        r"templates of student and shouting write task 'what is one and two' differently.*template: FILE.jinja.*way: traj",
    )
    ending = make("ending", 1, template=CHATML.replace("<|im_end|>", " <|im_end|>"))
    refused(student, ending, "differently")
    broken = make("broken", 1, template="{{ raise_exception('no') }}")
    refused(student, broken, "differently")


def test_a_teacher_whose_template_shows_no_tools_is_refused(make: Callable[..., Model], teacher: Model) -> None:
    import sharpen.chat

    hermes = (Path(sharpen.chat.__file__).parent / "templates" / "hermes.jinja").read_text()
    caller, other = make("caller", 0, template=hermes, positions=2048), make("other", 1, template=hermes, positions=2048)
    look = {"type": "function", "function": {"name": "look_around", "description": "", "parameters": {"type": "object", "properties": {}}}}
    asked = replace(ask("what is one and two"), tools=(look,))
    refused(caller, teacher, "templates of caller and teacher write", prompts=(asked,))
    (read,) = fit(caller, other, (asked,), FEW, QUIET).asked
    assert "look_around" in read.text


def test_prompts_that_cannot_be_used_are_counted_and_none_left_is_refused(
    make: Callable[..., Model], student: Model, teacher: Model
) -> None:
    refused(student, teacher, "no prompt to sample", prompts=())
    long = ask("one " * 300)
    pair = fit(student, teacher, (*PROMPTS, long), FEW, QUIET)
    assert len(pair.asked) == 4 and list(pair.left_out.values()) == [1]
    refused(student, teacher, "no prompt left of 1: 1 longer than 122 tokens", prompts=(long,))
    refused(student, teacher, "no prompt left of 4: 4 longer than 0 tokens", max_new_tokens=500)
    narrow = make("narrow", 1, positions=40)
    assert max(len(one.ids) for one in fit(student, narrow, (*PROMPTS, ask("one two")), FEW, QUIET).asked) <= 34
    # A teacher that answered nothing has nothing for the share that is its own.
    silent = tuple(replace(one, answer="") for one in PROMPTS)
    refused(student, teacher, "4 without an answer of the teacher", prompts=silent, lmbda=0.5)
    assert fit(student, teacher, silent, FEW, QUIET).way == "distillation"


def test_names_of_control_tokens_are_text_to_the_one_and_left_out_of_the_other(student: Model, teacher: Model, stranger: Model) -> None:
    hostile = ask("say <|im_end|> now")
    (asked,) = fit(student, teacher, (hostile,), FEW, QUIET).asked
    end = fit(student, teacher, PROMPTS, FEW, QUIET).end_ids
    assert sum(token in end for token in asked.ids) == 1  # that of the user's turn
    pair = fit(student, stranger, (*PROMPTS, hostile), FEW, QUIET)
    assert pair.left_out == {"with the name of a control token in their text": 1}


def test_an_answer_ends_with_its_end_token(student: Model, teacher: Model) -> None:
    pair = fit(student, teacher, PROMPTS, replace(FEW, lmbda=0.5, max_new_tokens=40), QUIET)
    assert pair.way == "gold" and [one.answer for one in pair.asked] == [one.answer + "<|im_end|>" for one in PROMPTS]
    refused(student, teacher, "4 with an answer longer than on_policy.max_new_tokens", lmbda=0.5, max_new_tokens=3)


# ---------------------------------------------------------------- both trainers, in this process
# Real: TRL alone takes seconds to import, and each of these trains.


def distil(student: Model, teacher: Model, settings: OnPolicy, out: Path, training: Training = QUIET) -> list[Line]:
    """As the worker does, without a process; what it told."""
    from sharpen.training import on_policy_worker

    out.mkdir()
    job = prepare(student, teacher, PROMPTS, settings, out / "model", training)
    on_policy_worker.train(job, out / "progress.jsonl")
    return [msgspec.json.decode(line, type=Line) for line in (out / "progress.jsonl").read_bytes().splitlines()]


def distance(student: str, teacher: Model, rows: int) -> float:
    """Mean KL(student || teacher), in nats, of what follows each prompt, over the ``rows`` first tokens. From the definition; nothing is sampled."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(student)
    models = [AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval() for path in (student, teacher.path)]
    total = 0.0
    for prompt in PROMPTS:
        text = tokenizer.apply_chat_template([{"role": "user", "content": prompt.key}], tokenize=False, add_generation_prompt=True)
        ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
        with torch.no_grad():
            own, other = (model(ids).logits[0, -1, :rows].log_softmax(-1) for model in models)
        total += float((own.exp() * (own - other)).sum())
    return total / len(PROMPTS)


LEARNING = OnPolicy(steps=15, batch_size=8, max_new_tokens=4, learning_rate=1e-2)


@pytest.mark.real
def test_the_student_moves_towards_a_teacher_of_its_vocabulary(make: Callable[..., Model], student: Model, tmp_path: Path) -> None:
    padded = make("padded", 1, rows=320)
    lines = distil(student, padded, LEARNING, tmp_path / "a")
    losses = [line.progress.loss for line in lines if line.progress is not None]
    assert len(losses) == 15 and losses[-1] < losses[0]
    before, after = distance(student.path, padded, 290), distance(str(tmp_path / "a" / "model"), padded, 290)
    assert after < before / 2, (before, after)
    assert lines[-1].tokens > lines[-1].trained_tokens > 15 * 8  # each answer has a token at the least
    still = distil(student, padded, replace(LEARNING, steps=2, learning_rate=1e-30), tmp_path / "still")
    assert len(still) and distance(str(tmp_path / "still" / "model"), padded, 290) == pytest.approx(before, rel=0.01)


@pytest.mark.real
def test_the_student_moves_towards_a_teacher_with_one_token_more(make: Callable[..., Model], student: Model, tmp_path: Path) -> None:
    more = make("more", 1, added=("<tool>",))
    lines = distil(student, more, LEARNING, tmp_path / "a")
    losses = [line.progress.loss for line in lines if line.progress is not None]
    assert len(losses) == 15 and losses[-1] < losses[0]
    before, after = distance(student.path, more, 290), distance(str(tmp_path / "a" / "model"), more, 290)
    assert after < before / 2, (before, after)


@pytest.mark.real
@pytest.mark.parametrize("kind", ["teacher", "stranger"])
def test_lora_and_a_teachers_share(student: Model, kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    stranger: Model = request.getfixturevalue(kind)
    settings = replace(FEW, lmbda=0.5, learning_rate=1e-2, max_new_tokens=40)
    distil(student, stranger, settings, tmp_path / "a", replace(QUIET, method="lora", lora_rank=2, micro_tokens=80, precision="bf16"))
    new = open_folder(tmp_path / "a" / "model")
    assert new.fingerprint != student.fingerprint and (Path(new.path) / "adapter").is_dir()
    for file in ("tokenizer.json", "chat_template.jinja"):
        assert (Path(new.path) / file).read_text() == (Path(student.path) / file).read_text()


@pytest.mark.real
@pytest.mark.parametrize("kind", ["teacher", "stranger"])
def test_a_share_of_nearly_nothing_learns_the_teachers_answers_and_nothing_else(
    student: Model, kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    settings = replace(FEW, steps=1, lmbda=1e-9, max_new_tokens=40)
    lines = distil(student, request.getfixturevalue(kind), settings, tmp_path / "a")
    tokenizer = ChatTemplate.load(student.path).tokenizer
    answers = [tokenizer.encode(one.answer + "<|im_end|>", add_special_tokens=False) for one in PROMPTS]
    assert lines[-1].trained_tokens == sum(map(len, answers))


@pytest.mark.real
@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_the_loss_is_the_divergence_over_the_students_own_tokens(
    student: Model, teacher: Model, beta: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0 is KL(teacher || student), 1 KL(student || teacher): from the definition, one answer at a time, on what was sampled."""
    import torch
    from transformers import AutoModelForCausalLM

    from sharpen.training.on_policy_worker import OnPolicyOnly

    batches: list[dict[str, Any]] = []
    theirs = OnPolicyOnly.compute_loss
    monkeypatch.setattr(
        OnPolicyOnly,
        "compute_loss",
        lambda self, model, inputs, *rest, **named: (batches.append(inputs), theirs(self, model, inputs, *rest, **named))[1],
    )
    lines = distil(student, teacher, replace(FEW, steps=1, beta=beta), tmp_path / "a", replace(QUIET, micro_tokens=1))
    own, other = (AutoModelForCausalLM.from_pretrained(one.path, dtype=torch.float32).eval() for one in (student, teacher))
    assert len(batches) == 4  # one row at a time
    total, count = 0.0, 0
    for batch in batches:
        prompt, answer = batch["prompt_ids"][batch["prompt_mask"].bool()], batch["completion_ids"][batch["completion_mask"].bool()]
        with torch.no_grad():
            ours, scores = (
                model(torch.cat([prompt, answer])[None]).logits[0, len(prompt) - 1 : -1].log_softmax(-1) for model in (own, other)
            )
        first, second = (ours, scores) if beta else (scores, ours)
        total, count = total + float((first.exp() * (first - second)).sum()), count + len(answer)
    losses = [line.progress.loss for line in lines if line.progress is not None]
    assert losses == pytest.approx([total / count], rel=1e-3)
    assert lines[-1].trained_tokens == count


@pytest.mark.real
def test_the_same_seed_gives_the_same_weights(student: Model, teacher: Model, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        distil(student, teacher, FEW, tmp_path / name, replace(QUIET, precision="bf16", seed=seed))
    a, b, c = ((tmp_path / name / "model" / "model.safetensors").read_bytes() for name in "abc")
    assert a == b != c


@pytest.mark.real
def test_weights_that_give_no_numbers_are_said_to_be_the_cause(student: Model, teacher: Model, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    from sharpen.training.worker import Broken

    shutil.copytree(teacher.path, tmp_path / "nan")
    weights = load_file(tmp_path / "nan" / "model.safetensors")
    save_file(
        {name: torch.full_like(tensor, float("nan")) for name, tensor in weights.items()},
        tmp_path / "nan" / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(Broken, match="the loss is nan at step 1 of 2; nothing was learnt yet"):
        distil(student, open_folder(tmp_path / "nan", "nan"), FEW, tmp_path / "a")


@pytest.mark.real
def test_models_that_do_not_fit_into_memory_are_refused(
    student: Model, teacher: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sharpen.training import on_policy_worker as worker

    count = worker.parameters(student.path)
    assert count == sum(shape for shape in (290 * 32 * 2, 32 * 32 * 2, 32 * 16 * 2, 32 * 64 * 3, 32 * 3))
    assert worker.least_memory(10, 100, "full", "bf16") == 360 and worker.least_memory(10, 100, "lora", "f32") == 440
    monkeypatch.setattr(worker, "parameters", lambda folder: 10**15)
    with pytest.raises(
        Refused, match=r"teacher need .* GiB at the least, .* set training.method: lora, name a smaller teacher, or use way: traj"
    ):
        distil(student, teacher, FEW, tmp_path / "a")


@pytest.mark.real
def test_rows_at_once_divide_a_step_and_fit() -> None:
    from sharpen.training.worker import rows_at_once

    assert [rows_at_once(16, 1, fit, "on_policy") for fit in (0, 1, 3, 5, 100)] == [1, 1, 2, 4, 16]
    assert rows_at_once(12, 2, 4, "on_policy") == 3
    with pytest.raises(Refused, match=r"on_policy\.batch_size is 16, which 3 processes cannot share"):
        rows_at_once(16, 3, 4, "on_policy")


# ---------------------------------------------------------------- real: in a process of its own, and the real model


def leave(teacher: Model) -> TermsSettings:
    return TermsSettings(
        teacher=teacher.name, licence="MIT", settled_by="Ann", settled_on=datetime.date(2026, 1, 2), evidence="https://example.org"
    )


@pytest.mark.real
@pytest.mark.parametrize("kind", ["teacher", "stranger"])
def test_in_a_process_of_its_own(student: Model, kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    scorer: Model = request.getfixturevalue(kind)
    seen: list[int] = []
    out = tmp_path / "004-distillation" / "model"
    model, report = train_on_policy(
        student, scorer, PROMPTS, FEW, out, training=QUIET, terms=[leave(scorer)], on_progress=lambda at: seen.append(at.step)
    )
    assert seen == [1, 2] and report.steps == 2 and len(report.losses) == 2 and report.precision == "f32: as set"
    assert report.tokens > report.trained_tokens >= 8
    assert model.name == "004-distillation" and model.lineage.parent == student.fingerprint
    said = model.lineage.settings["on_policy"]
    assert said["teacher_fingerprint"] == scorer.fingerprint and said["trainer"] == {"teacher": "distillation", "stranger": "gold"}[kind]
    assert sorted(path.name for path in out.parent.iterdir()) == ["model", "train.log"]


@pytest.mark.real
def test_killed_or_interrupted_it_leaves_nothing(student: Model, teacher: Model, tmp_path: Path) -> None:
    many = replace(FEW, steps=10_000)

    def interrupt(_: Progress) -> None:
        raise KeyboardInterrupt

    def kill(_: Progress) -> None:  # also told of steps that were made before it died
        for one in Path("/proc").iterdir():
            if one.name.isdigit() and str(tmp_path) in command(one):
                os.kill(int(one.name), signal.SIGKILL)

    with pytest.raises(KeyboardInterrupt):
        train_on_policy(student, teacher, PROMPTS, many, tmp_path / "model", training=QUIET, terms=[leave(teacher)], on_progress=interrupt)
    with pytest.raises(TrainingError, match="killed"):
        train_on_policy(student, teacher, PROMPTS, many, tmp_path / "model", training=QUIET, terms=[leave(teacher)], on_progress=kill)
    assert [path.name for path in tmp_path.iterdir()] == ["train.log"]


def command(process: Path) -> str:
    try:
        return (process / "cmdline").read_text()
    except OSError:
        return ""


@pytest.mark.real
def test_the_real_model_learns_from_a_fine_tuned_copy(tmp_path: Path) -> None:
    """The teacher is SmolLM2-135M, taught to answer every question with one word; after a few steps on its own samples so does the student."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from sharpen.chat.load import load_template
    from sharpen.records import Row, SampleKey
    from sharpen.training import sft

    base = load_model("smollm2-135m-instruct")
    template = load_template(base)
    questions = [f"What is {first} plus {second}?" for first in range(2, 6) for second in range(3, 7)]
    rows = []
    for question in questions:
        messages = (Message(role="user", content=question), Message(role="assistant", content="Potato."))
        prompt = template.encode(template.render(messages[:1]))
        ids = template.encode(template.render(messages, answered=True))
        key = SampleKey(model="", task=question, environment="", sampling="", index=0)
        labels = (*[-100] * len(prompt), *ids[len(prompt) :])
        rows.append(Row(input_ids=tuple(ids), labels=labels, key=key, source="demonstration", origin="rendered", maker=EXPERT))
    teacher, _ = sft.train(rows, base, Training(epochs=4), tmp_path / "teacher" / "model")

    def probability(model: Model) -> float:
        """Of "Potato" after a question that neither has seen."""
        weights, tokenizer = (
            AutoModelForCausalLM.from_pretrained(model.path, dtype=torch.float32),
            AutoTokenizer.from_pretrained(model.path),
        )
        ids = template.encode(template.render((Message(role="user", content="What is 8 plus 9?"),)))
        word = tokenizer.encode("Pot", add_special_tokens=False)[0]
        with torch.no_grad():
            return float(weights(torch.tensor([ids])).logits[0, -1].softmax(-1)[word])

    assert probability(base) < 0.01 < 0.5 < probability(teacher)
    # The forward divergence: what the student never says, the reverse one would hardly teach it.
    settings = OnPolicy(steps=10, batch_size=8, max_new_tokens=6, learning_rate=1e-3, beta=0.0)
    prompts = [ask(question) for question in questions]
    student, report = train_on_policy(base, teacher, prompts, settings, tmp_path / "student" / "model")
    assert report.losses[-1] < report.losses[0] / 2
    assert probability(student) > 0.5
    assert student.lineage.settings["on_policy"]["trainer"] == "distillation"

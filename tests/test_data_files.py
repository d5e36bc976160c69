"""Other people's data, as it comes: three kinds of file, other names, nulls, lies about encoding; and what nearly leaks."""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sharpen.agents.recorded import replay
from sharpen.errors import SettingsError, SharpenError, TaskError
from sharpen.records import Message, Task
from sharpen.settings import load_settings
from sharpen.tasks import reasoning_gym
from sharpen.tasks.base import Splits
from sharpen.tasks.data_file import Dataset, Jsonl, Parquet
from sharpen.tasks.load import TaskSource, load_tasks
from sharpen.tasks.overlap import check_overlap, near_duplicates
from sharpen.tasks.reasoning_gym import ReasoningGym
from sharpen.verifiers.run import judge

Source = Jsonl | Parquet | Dataset
ALL = Splits(train=2)
EXAMPLES = Path(__file__).parents[1] / "examples"


def jsonl(folder: Path, rows: list[Any]) -> Jsonl:
    path = folder / "tasks.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return Jsonl(path=str(path))


def parquet(folder: Path, rows: list[Any]) -> Parquet:
    pq.write_table(pa.Table.from_pylist(rows), folder / "tasks.parquet")
    return Parquet(path=str(folder / "tasks.parquet"))


def dataset_folder(folder: Path, rows: list[Any]) -> Dataset:
    (folder / "data").mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "data" / "train.parquet")
    return Dataset(id=str(folder / "data"))


def saved(folder: Path, rows: list[Any]) -> Dataset:
    import datasets

    datasets.Dataset.from_list(rows).save_to_disk(folder / "saved")
    return Dataset(id=str(folder / "saved"))


def saved_parts(folder: Path, rows: list[Any]) -> Dataset:
    import datasets

    datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)}).save_to_disk(folder / "parts")
    return Dataset(id=str(folder / "parts"))


KINDS: list[Callable[[Path, list[Any]], Source]] = [jsonl, parquet, dataset_folder, saved, saved_parts]


@pytest.fixture(autouse=True)
def quiet_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_DATASETS_OFFLINE", True, raising=False)


@pytest.fixture
def verifier(tmp_path: Path) -> str:
    (tmp_path / "judge.py").write_text("def same(answer, reference):\n    return answer.strip() == reference\n")
    return f"{tmp_path / 'judge.py'}:same"


def change(source: Source, **settings: Any) -> Source:
    return msgspec.structs.replace(source, **settings)


# ---------------------------------------------------------------- one reader, three kinds


@pytest.mark.parametrize("write", KINDS)
async def test_every_kind_gives_the_same_tasks(write: Callable[[Path, list[Any]], Source], tmp_path: Path, verifier: str) -> None:
    rows = [{"question": f"What comes after {n}?", "answer": str(n + 1), "topic": "sums"} for n in range(6)]
    settings = {"columns": {"prompt": "question", "reference": "answer"}, "verifier": verifier, "splits": Splits(train=4, dev=2)}
    tasks = load_tasks(change(write(tmp_path, rows), **settings))
    plain = load_tasks(
        change(jsonl(tmp_path, [{"prompt": r["question"], "reference": r["answer"]} for r in rows]), splits=settings["splits"])
    )
    assert tasks.tasks == plain.tasks
    task = tasks.tasks[0]
    assert tasks.verifier
    assert judge(task, await replay(task, tasks.environment, tasks.environment.expert(task) or ()), tasks.verifier).outcome == "pass"
    again = load_tasks(change(write(tmp_path, rows[::-1]), **settings))
    assert {t.key for t in again.tasks} == {t.key for t in tasks.tasks}


@pytest.mark.parametrize("write", KINDS)
def test_messages_padded_with_nulls(write: Callable[[Path, list[Any]], Source], tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi?", "name": "ann"}]
    call = [
        {"role": "user", "content": "Look."},
        {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "name": "look", "arguments": "{}"}]},
        {"role": "tool", "content": "A door.", "tool_call_id": "1"},
    ]
    rows = [{"key": "a", "messages": chat, "split": "demo", "gold": "Hi."}, {"key": "b", "messages": call, "split": "dev", "gold": None}]
    tasks = load_tasks(write(tmp_path, rows)).tasks
    assert [task.key for task in tasks] == ["a", "b"]
    assert tasks[0].prompt == (Message(role="system", content="Be brief."), Message(role="user", content="Hi?", name="ann"))
    assert tasks[1].prompt[1].tool_calls[0].name == "look"
    assert tasks[1].params == {}


def test_what_arrow_holds_and_json_does_not(tmp_path: Path) -> None:
    rows = [{"key": 17, "family": 3, "prompt": "When?", "reference": datetime.date(2020, 5, 17), "split": "train"}]
    tasks = load_tasks(parquet(tmp_path, rows)).tasks
    assert (tasks[0].key, tasks[0].family, tasks[0].reference) == ("17", "3", "2020-05-17")
    assert msgspec.json.decode(msgspec.json.encode(tasks), type=tuple[Task, ...]) == tasks


def test_another_part_of_a_dataset(tmp_path: Path) -> None:
    source = dataset_folder(tmp_path, [{"prompt": "x", "split": "train"}])
    pq.write_table(pa.Table.from_pylist([{"prompt": "y", "split": "dev"}]), tmp_path / "data" / "test.parquet")
    assert load_tasks(change(source, part="test")).tasks[0].prompt[0].content == "y"
    with pytest.raises(SettingsError, match=r"no part 'tset'; did you mean 'test'"):
        load_tasks(change(source, part="tset"))


def test_a_mark_at_the_start_and_a_giant_line(tmp_path: Path) -> None:
    path = tmp_path / "tasks.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps({"prompt": "word " * 400_000, "split": "train"}).encode() + b"\r\n")
    started = time.process_time()
    assert len(load_tasks(Jsonl(path=str(path))).tasks[0].prompt[0].content) == 2_000_000
    assert time.process_time() - started < 20


# ---------------------------------------------------------------- what cannot be used


@pytest.mark.parametrize("write", KINDS)
@pytest.mark.parametrize(
    ("rows", "settings", "says"),
    [
        ([{"question": "x"}], {}, r"unknown field 'question'.*columns"),
        ([{"question": "x"}], {"columns": {"prompt": "qestion"}}, "needs either prompt or messages"),
        ([{"question": "x"}], {"columns": {"prompt": "question", "reference": "anser"}}, "no column 'anser'"),
        ([{"prompt": None, "reference": None}], {}, "needs either prompt or messages"),
        ([{"prompt": "x"}, {"prompt": None}], {}, r"(:2| row 2) needs either prompt or messages"),
        ([{"prompt": " \n"}], {}, "asks nothing: its prompt is empty"),
        ([{"prompt": "x"}, {"prompt": "x"}], {"splits": ALL}, r"(:2| row 2) has the key '\w+' of (line|row) 1"),
        ([{"key": "a", "prompt": "x"}, {"key": "a", "prompt": "y"}], {"splits": ALL}, "has the key 'a' of"),
        ([{"prompt": 3}], {}, r"(:1| row 1): Expected `str \| null`, got `int`"),
        ([{"messages": "x"}], {}, r"(:1| row 1): Expected `array`"),
        ([{"messages": [{"role": "human", "content": "x"}]}], {}, r"(:1| row 1): Invalid enum value 'human'"),
        ([{"prompt": "x", "reference": "1"}, {"prompt": "y", "reference": None}], {"splits": ALL}, r"(:2| row 2) has no reference, but"),
    ],
)
def test_bad_rows(
    write: Callable[..., Source], rows: list[Any], settings: dict[str, Any], says: str, tmp_path: Path, verifier: str
) -> None:
    with pytest.raises(SharpenError, match=says) as caught:
        load_tasks(change(write(tmp_path, rows), verifier=verifier, **settings))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [Jsonl, Parquet])
@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", r"holds no tasks|cannot be read as Parquet"),
        (b"\n\n  \n", r"holds no tasks|cannot be read as Parquet"),
        ('{"prompt": "h\u00e9"}'.encode("latin-1"), r":1 is not JSON in UTF-8|cannot be read as Parquet"),
        ('{"prompt": "x"}'.encode("utf-16"), r":1 is not JSON in UTF-8|cannot be read as Parquet"),
        (b"PAR1" + bytes(200) + b"PAR1", r":1 is not JSON in UTF-8|cannot be read as Parquet"),
        (b"[" * 200_000, r":1 is not JSON in UTF-8|cannot be read as Parquet"),
        (None, r"cannot be read"),
    ],
)
def test_files_that_are_not_what_they_say(kind: type[Jsonl] | type[Parquet], data: bytes | None, says: str, tmp_path: Path) -> None:
    path = tmp_path / "tasks"
    path.write_bytes(data) if data is not None else path.mkdir()
    with pytest.raises(TaskError, match=says) as caught:
        load_tasks(kind(path=str(path), splits=ALL))
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_a_parquet_file_damaged_in_the_middle(tmp_path: Path) -> None:
    rows = [{"prompt": f"{n} " + "x" * 200, "split": "train"} for n in range(5000)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet", compression="zstd", use_dictionary=False, row_group_size=1000)
    data = bytearray((tmp_path / "t.parquet").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 200] = bytes(200)
    (tmp_path / "t.parquet").write_bytes(data)
    with pytest.raises(TaskError, match="cannot be read as Parquet after row"):
        load_tasks(Parquet(path=str(tmp_path / "t.parquet")))


@pytest.mark.parametrize("name", ["mixed.jsonl", "broken.jsonl", "empty.jsonl", "", "none"])
def test_datasets_that_do_not_load(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    if name != "none":
        folder.mkdir()
    text = {"mixed.jsonl": '{"prompt": "x"}\n{"prompt": {"a": 3}}\n', "broken.jsonl": '{"prompt": "x"\n{{', "empty.jsonl": ""}
    if name in text:
        (folder / name).write_text(text[name])
    with pytest.raises(TaskError, match=r"data' cannot be loaded|data holds no tasks|data row 2: Expected") as caught:
        load_tasks(Dataset(id=str(folder), splits=ALL))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrong", [{"columns": {"promt": "q"}}, {"max_overlap": 0}, {"max_overlap": 1.5}])
def test_settings_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        Jsonl(path="x", **wrong)


@pytest.mark.parametrize(
    "text", ["source: parquet\n  path: x", "source: dataset\n  id: x\n  columns: {prompt: question}", "source: jsonl\n  path: x"]
)
def test_the_sources_in_yaml(text: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(f"tasks:\n  {text}\n")
    source: TaskSource = load_settings(tmp_path / "run.yaml", {}).tasks
    assert msgspec.json.decode(msgspec.json.encode(source), type=TaskSource) == source  # type: ignore[arg-type]


# ---------------------------------------------------------------- near duplicates

STORY = (
    "A farmer has a field that is twice as long as it is wide, and he walks around its fence once every morning before breakfast, "
    "which takes him twenty minutes at his usual pace of four kilometres an hour. How long is the field in metres?"
)


def asked(*questions: tuple[str, str]) -> list[dict[str, Any]]:
    return [{"key": f"k{n}", "prompt": text, "split": split} for n, (split, text) in enumerate(questions)]


@pytest.mark.parametrize(
    "other",
    [
        STORY.replace("breakfast", "lunch"),
        STORY.replace("farmer", "peasant").replace("in metres", "in feet"),
        STORY.upper().replace(",", ";"),
        "Think step by step. " * 10 + STORY,
        STORY.replace(" ", "  \n"),
    ],
)
@pytest.mark.parametrize(("teaching", "judging"), [("train", "dev"), ("demo", "test"), ("dev", "test")])
def test_a_near_duplicate_is_refused(other: str, teaching: str, judging: str, tmp_path: Path) -> None:
    source = jsonl(tmp_path, asked((teaching, other), (judging, STORY), ("train", "What is the capital of France?")))
    with pytest.raises(TaskError, match=rf"'k0' \({teaching}\) and 'k1' \({judging}\) share") as caught:
        load_tasks(source)
    assert "\n" not in str(caught.value)
    if "the question" not in str(caught.value):  # what is equal but for case and spacing is refused as equal
        assert "he walks around its fence once every morning" in str(caught.value)
        assert "1 judging questions" in str(caught.value) and "raise max_overlap (now 0.7)" in str(caught.value)


def test_three_pairs_are_shown_and_all_counted(tmp_path: Path) -> None:
    texts = [" ".join(f"w{n}x{k}" for k in range(40)) for n in range(5)]
    rows = asked(*(pair for text in texts for pair in (("train", text), ("dev", text + " please"))))
    with pytest.raises(TaskError, match=r"5 judging questions.*and 2 more") as caught:
        load_tasks(jsonl(tmp_path, rows))
    assert str(caught.value).count("(train) and") == 3


def test_one_family_or_a_higher_limit_lets_them_through(tmp_path: Path) -> None:
    rows = asked(("train", STORY), ("dev", STORY.replace("breakfast", "lunch")))
    assert len(load_tasks(change(jsonl(tmp_path, rows), max_overlap=0.9))) == 2
    assert len(load_tasks(change(jsonl(tmp_path, rows), max_overlap=1.0))) == 2
    drawn = [{"prompt": row["prompt"], "family": "field"} for row in rows] + [{"prompt": "Why?"}]
    assert len(load_tasks(change(jsonl(tmp_path, drawn), splits=Splits(train=1, dev=1)))) == 3
    exact = asked(("train", STORY), ("dev", STORY.upper()))
    with pytest.raises(TaskError, match="share the question"):
        load_tasks(change(jsonl(tmp_path, exact), max_overlap=1.0))


def test_a_short_question_is_near_only_to_itself(tmp_path: Path) -> None:
    assert len(load_tasks(jsonl(tmp_path, asked(("train", "What is 2 + 3?"), ("dev", "What is 2 * 3?"), ("dev", "What is 2 + 4?"))))) == 3
    with pytest.raises(TaskError, match=r"share 100%: 'what is 2 \+ 3'"):
        load_tasks(jsonl(tmp_path, asked(("train", "What is 2 + 3?"), ("dev", "What is 2 + 3"))))


def test_a_shared_system_message_is_no_overlap(tmp_path: Path) -> None:
    system = {"role": "system", "content": STORY}
    rows = [
        {
            "key": split,
            "split": split,
            "messages": [system, {"role": "user", "content": f"Now, and take your time, what comes after {split}?"}],
        }
        for split in ("train", "dev")
    ]
    assert len(load_tasks(jsonl(tmp_path, rows))) == 2


def test_a_leak_among_templated_questions_is_found(tmp_path: Path) -> None:
    template = "Read the text below with care and answer in one sentence, in your own words, without quoting from it at all: "
    bodies = [" ".join(f"n{n}w{k}" for k in range(50)) for n in range(60)]
    rows = asked(*((("train", "dev")[n % 2], template + body) for n, body in enumerate(bodies)), ("dev", template + bodies[0] + " indeed"))
    assert len(near_duplicates(load_tasks(change(jsonl(tmp_path, rows[:-1]))).tasks)) == 0
    with pytest.raises(TaskError, match=r"1 judging questions.*'k0' \(train\) and 'k60' \(dev\)"):
        load_tasks(jsonl(tmp_path, rows))


@pytest.mark.parametrize("size", [3, 10, 40, 200])
@pytest.mark.parametrize(
    "dataset", ["chain_sum", "basic_arithmetic", "leg_counting", "word_sorting", "spell_backward", "gcd", "syllogism", "maze"]
)
def test_templates_are_not_refused(dataset: str, size: int, tmp_path: Path) -> None:
    made = reasoning_gym.load(ReasoningGym(dataset=dataset, splits=Splits(train=size, dev=size)))
    rows = [{"key": t.key, "prompt": t.prompt[-1].content, "split": t.split} for t in made.tasks]
    assert len(load_tasks(jsonl(tmp_path, rows))) == 2 * size


def examples() -> list[object]:
    """The quickstart's games take long to make, and the climb plays the same."""
    paths = sorted({*EXAMPLES.glob("*/*.yaml")} - {EXAMPLES / "textworld/climb.yaml"})
    return [pytest.param(path, id=path.stem, marks=pytest.mark.real if path.stem == "quickstart" else ()) for path in paths]


@pytest.mark.parametrize("path", examples())
def test_the_examples_hold_no_near_duplicates(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARPEN_CACHE", str(tmp_path))
    source = load_settings(path, {}).tasks
    if source.__struct_config__.tag == "babyai":
        pytest.importorskip("minigrid")
    check_overlap(load_tasks(source), 0.7)


def test_ten_thousand_tasks_in_seconds() -> None:
    def task(n: int, split: str) -> Task:
        text = "Answer the question in full, and show each step that you take on the way. " + " ".join(f"{n}x{k}" for k in range(60))
        return Task(key=f"{split}{n}", family=f"{split}{n}", split=split, prompt=(Message(role="user", content=text),))

    tasks = [*(task(n, "train") for n in range(10_000)), *(task(n + 9_990, "dev") for n in range(1_000))]
    started = time.process_time()
    found = near_duplicates(tasks)
    assert {(near.teaching.key, near.judging.key) for near in found} >= {(f"train{n}", f"dev{n}") for n in range(9_990, 10_000)}
    assert time.process_time() - started < 20

"""The store: what is written survives a kill, a full disk and a second process; what is damaged is named in one line."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import json
import math
import os
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import msgspec
import pytest

from conftest import FEW
from sharpen.errors import RunError, StorageError
from sharpen.records import Decision, Gain, Interval, Message, SampleKey, Trajectory, Verdict
from sharpen.run import climb
from sharpen.settings import load_settings
from sharpen.store.files import digest, read_json, write_atomic, write_json
from sharpen.store.run import Run, fork
from sharpen.store.segments import JOURNAL, Segments, _Index


def trajectory(index: int, task: str = "t") -> Trajectory:
    key = SampleKey(model="m", task=task, environment="e", sampling="s", index=index)
    return Trajectory(key=key, agent="a", messages=(Message(role="user", content="\u2028 é 🎲"),), stop="done")


def test_a_torn_last_line_is_cut_off_and_the_next_append_is_whole(tmp_path: Path) -> None:
    segments = Segments(tmp_path, Trajectory)
    segments.append(trajectory(0))
    segments.append(trajectory(1))
    segments.close()
    journal = tmp_path / JOURNAL
    journal.write_bytes(journal.read_bytes()[:-7])
    again = Segments(tmp_path, Trajectory)
    assert [key.index for key in again.records] == [0]
    again.append(trajectory(2))
    again.close()
    assert [key.index for key in Segments(tmp_path, Trajectory).records] == [0, 2]


def test_what_was_torn_is_said_once_and_only_by_who_writes(tmp_path: Path) -> None:
    """A reader that comes while a record is being written sees half a line too, and must leave it alone."""
    segments = Segments(tmp_path, Trajectory)
    segments.append(trajectory(0))
    segments.close()
    whole = (tmp_path / JOURNAL).read_bytes()
    (tmp_path / JOURNAL).write_bytes(whole + b'{"key"')
    reader = Segments(tmp_path, Trajectory)
    assert len(reader.records) == 1 and reader.torn == 6
    assert (tmp_path / JOURNAL).read_bytes() == whole + b'{"key"'
    said = reader.mend()
    assert said == f"{tmp_path / JOURNAL}: the last record was torn by a kill and is cut off (6 bytes); that try is made again"
    assert (tmp_path / JOURNAL).read_bytes() == whole and reader.mend() == "" == Segments(tmp_path, Trajectory).mend()


def test_a_run_says_what_a_kill_tore_and_goes_on(scripted: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Of tries, of verdicts and of the ledger; what was torn is made again and nothing else is."""
    settings = load_settings(scripted, {"ladder.rungs": "[]", "tasks.splits": FEW})
    climb(settings, tmp_path)
    stage = tmp_path / "ladder/rungs/000-base/dev"
    tries, verdicts = stage / "trajectories", stage / "verdicts"
    before = {path: path.read_bytes() for place in (tries, verdicts) for path in place.iterdir()}
    (stage / "stage.json").unlink()
    for path in before:
        path.rename(path.with_name(JOURNAL)).write_bytes(before[path][:-9])
    with (tmp_path / "ladder/ledger.jsonl").open("ab") as file:
        file.write(b'{"event":"st')
    capfd.readouterr()
    climb(settings, tmp_path)
    said = [line for line in capfd.readouterr().err.splitlines() if "torn" in line]
    assert len(said) == 3
    assert "ladder/ledger.jsonl: the last line was torn by a kill and is cut off (12 bytes)" in said[0]
    assert "dev/trajectories/journal.jsonl: the last record was torn" in said[1] and said[1].endswith("that try is made again")
    assert "dev/verdicts/journal.jsonl: the last record was torn" in said[2] and said[2].endswith("that try is judged again")
    run = Run(tmp_path / "ladder")
    assert [line["what"] for line in run.ledger() if line.get("event") == "repaired"] == said
    assert len(run.ledger()) == len((tmp_path / "ladder/ledger.jsonl").read_bytes().splitlines())
    for path, data in before.items():
        (again,) = path.parent.iterdir()
        assert again.read_bytes().splitlines()[:-1] == data.splitlines()[:-1]


def test_a_full_disk_leaves_no_half_line_in_the_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.open(tmp_path / "r", "")
    run.note({"event": "a"})
    real = os.write
    room = [5]

    def full(handle: int, data: bytes) -> int:
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(handle, data[: room.pop()])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StorageError, match="no space left"):
        run.note({"event": "b"})
    monkeypatch.undo()
    run.note({"event": "c"})
    assert [line["event"] for line in run.ledger()] == ["a", "c"]
    assert len((run.folder / "ledger.jsonl").read_bytes().splitlines()) == 2
    run.close()


def test_records_are_read_from_disk_while_others_are_written_and_after_they_are_sealed(tmp_path: Path) -> None:
    segments = Segments(tmp_path, Trajectory)
    view = segments.records
    for index in (3, 1, 2):
        segments.append(trajectory(index))
        assert view[trajectory(index).key] == trajectory(index)
    assert [key.index for key in view] == [3, 1, 2] and len(view) == 3
    assert view.get(trajectory(9).key) is None and trajectory(9).key not in view
    with pytest.raises(KeyError):
        view[trajectory(9).key]
    segments.append(msgspec.structs.replace(trajectory(1), agent="another"))  # the last written is what counts
    assert view[trajectory(1).key].agent == "another" and len(view) == 3
    with pytest.raises(KeyError):
        segments.seal([trajectory(9).key])
    assert len(view) == 3 and sorted(record.agent for record in view.values()) == ["a", "a", "another"]
    sealed = segments.seal([trajectory(2).key, trajectory(1).key, trajectory(2).key])
    assert [key.index for key in view] == [1, 2] and len(sealed.read_bytes().splitlines()) == 2
    segments.append(trajectory(0))
    segments.close()
    assert [key.index for key in view] == [1, 2, 0]
    assert dict(Segments(tmp_path, Trajectory).records) == dict(view)


@pytest.mark.parametrize("hashes", [1, 2, 50, 2**32])
def test_keys_that_hash_alike_stay_apart(hashes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when there are so many that the table of hashes has grown; 2**32 - 1 probes from its end to its beginning."""
    monkeypatch.setattr("sharpen.store.segments._hash", lambda key: -(key.index % hashes) % 2**32)
    segments = Segments(tmp_path, Verdict)
    said = {index: Verdict(key=trajectory(index).key, outcome="fail") for index in range(100)}
    for index in (*said, 7):
        segments.append(said[index])
    for found in (segments, Segments(tmp_path, Verdict)):
        assert [key.index for key in found.records] == list(said) and len(found.records) == 100
        assert [found.records[verdict.key] for verdict in said.values()] == list(said.values())
        assert trajectory(100).key not in found.records


def test_where_a_record_lies_takes_little_memory() -> None:
    tracemalloc.start()
    try:
        index = _Index()
        for row in range(5000):
            index.put(hash((row,)) % 2**32, (0, 2**33 + row, 2**33), lambda same: False)  # past 4 GiB
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken < 60 * len(index) and index[4999] == (0, 2**33 + 4999, 2**33)
    assert index.rows(hash((5,)) % 2**32) == [5]


@pytest.mark.parametrize("steps", range(6))
def test_a_kill_while_a_segment_takes_the_place_of_others_keeps_what_was_written_last(
    steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between any two steps of sealing the folder says the same, and what a kill leaves behind goes with the next seal."""
    keys = [trajectory(index).key for index in range(4)]
    for agent, name in (("x", "ff.jsonl"), ("y", "00.jsonl"), ("z", JOURNAL)):  # segments of earlier seals, and then a journal
        segments = Segments(tmp_path / agent, Trajectory)
        for key in keys:
            segments.append(msgspec.structs.replace(trajectory(key.index), agent=agent))
        segments.close()
        (tmp_path / agent / JOURNAL).rename(tmp_path / name)
    left = [steps]

    def counted(real: Any) -> Any:
        def step(path: Path, *given: Any, **more: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return real(path, *given, **more)

        return step

    segments = Segments(tmp_path, Trajectory)
    for name in ("unlink", "replace"):
        monkeypatch.setattr(Path, name, counted(getattr(Path, name)))
    with contextlib.suppress(KeyboardInterrupt):
        segments.seal(keys)
    monkeypatch.undo()
    (tmp_path / ".sealing.1234").write_bytes(b"{")
    again = Segments(tmp_path, Trajectory)
    assert {record.agent for record in again.records.values()} == {"z"} and len(again.records) == 4
    sealed = again.seal(keys)
    assert [path for path in tmp_path.iterdir() if path.is_file()] == [sealed]


def test_a_file_where_a_folder_should_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    for folder in (tmp_path / "runs", tmp_path / "runs" / "a" / "b"):
        with pytest.raises(StorageError, match=f"cannot write {folder}: "):
            Run.open(folder, "")


def test_what_was_written_is_not_held_in_memory(tmp_path: Path) -> None:
    def held() -> int:
        gc.collect()
        return sum(type(one) is Trajectory for one in gc.get_objects())

    before = held()
    made = [trajectory(index) for index in range(50)]
    assert held() == before + 50  # it would be seen
    segments = Segments(tmp_path, Trajectory)
    while made:
        segments.append(made.pop())
    assert len(segments.records) == 50 and held() == before
    segments.seal(list(segments.records))
    assert len(Segments(tmp_path, Trajectory).records) == 50 and held() == before


def test_no_descriptor_stays_open_behind_segments(tmp_path: Path) -> None:
    segments = Segments(tmp_path, Trajectory)
    segments.append(trajectory(0))
    segments.seal(list(segments.records))
    segments.append(trajectory(1))
    segments.close()
    del segments
    gc.collect()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        assert len(Segments(tmp_path, Trajectory).records) == 2
    held = Segments(tmp_path, Trajectory)
    for index in range(20):
        held.append(trajectory(index))
        held.seal([trajectory(index).key])
    del held
    gc.collect()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    segments = Segments(tmp_path, Trajectory)
    segments.append(trajectory(0))
    segments.append(trajectory(1))
    segments.close()
    journal = tmp_path / JOURNAL
    journal.write_bytes(journal.read_bytes().replace(b"agent", b"agenT", 1))
    with pytest.raises(RunError, match=r"journal\.jsonl:1 cannot be read"):
        Segments(tmp_path, Trajectory)


def test_sealing_sorts_by_key_so_that_order_of_arrival_changes_nothing(tmp_path: Path) -> None:
    names = []
    for place, order in (("a", (2, 0, 1)), ("b", (1, 2, 0))):
        segments = Segments(tmp_path / place, Trajectory)
        for index in order:
            segments.append(trajectory(index))
        sealed = segments.seal(list(segments.records))
        names.append(sealed.name)
        assert [key.index for key in Segments(tmp_path / place, Trajectory).records] == [0, 1, 2]
        assert list((tmp_path / place).glob("*.jsonl")) == [sealed]
    assert names[0] == names[1]


def test_a_full_disk_leaves_whole_records_and_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segments = Segments(tmp_path, Trajectory)
    segments.append(trajectory(0))
    real = os.write

    def full(handle: int, data: bytes) -> int:
        if len(data) > 20 and data.startswith(b'{"key"'):
            real(handle, data[:20])
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(handle, data)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StorageError, match="no space left"):
        segments.append(trajectory(1))
    monkeypatch.undo()
    segments.append(trajectory(2))
    segments.close()
    assert [key.index for key in Segments(tmp_path, Trajectory).records] == [0, 2]


def test_a_second_process_is_refused_in_one_line(tmp_path: Path) -> None:
    run = Run.open(tmp_path / "r", "a: 1\n")
    code = f"from pathlib import Path; from sharpen.store.run import Run; Run.open(Path({str(tmp_path / 'r')!r}), 'a: 1\\n')"
    tried = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert tried.returncode != 0
    assert f"is in use by process {os.getpid()}" in tried.stderr
    run.close()
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_changed_settings_are_refused_with_the_diff(tmp_path: Path) -> None:
    run = Run.open(tmp_path / "r", "a: 1\nb: 2\n")
    run.stage("s", {}, {}).begin()
    run.close()
    Run.open(tmp_path / "r", "a: 1\nb: 1\n").close()  # nothing was finished with the others, so nothing rests on them
    run = Run.open(tmp_path / "r", "a: 1\nb: 2\n")
    run.stage("s", {}, {}).commit([])
    run.close()
    with pytest.raises(RunError, match="--fork") as caught:
        Run.open(tmp_path / "r", "a: 1\nb: 3\n")
    assert "-b: 2" in str(caught.value)
    assert "+b: 3" in str(caught.value)
    Run.open(tmp_path / "r", "a: 1\nb: 2\n").close()  # and the refusal gave the lock back


def test_a_run_without_its_settings_is_named(tmp_path: Path) -> None:
    run = Run.open(tmp_path / "r", "a: 1\n")
    (tmp_path / "r" / "rungs").mkdir()
    run.close()
    (tmp_path / "r" / "run.yaml").unlink()
    with pytest.raises(RunError, match=r"no run\.yaml"):
        Run.open(tmp_path / "r", "a: 1\n")


def test_a_stage_is_done_only_with_its_inputs_settings_and_outputs(tmp_path: Path) -> None:
    run = Run.open(tmp_path / "r", "")
    stage = run.stage("s", {"x": "1"}, {"n": 1})
    assert not stage.done()
    stage.begin()
    output = stage.folder / "out.json"
    write_atomic(output, b"1")
    stage.commit([output])
    assert run.stage("s", {"x": "1"}, {"n": 1}).done()
    assert not run.stage("s", {"x": "2"}, {"n": 1}).done()
    assert not run.stage("s", {"x": "1"}, {"n": 2}).done()
    output.write_bytes(b"2")
    with pytest.raises(RunError, match=r"out\.json is not what stage s wrote"):
        run.stage("s", {"x": "1"}, {"n": 1}).done()
    output.unlink()
    assert not run.stage("s", {"x": "1"}, {"n": 1}).done()
    assert len(run.ledger()) == 1
    run.close()


def test_fork_keeps_finished_stages_and_refuses_an_existing_name(tmp_path: Path) -> None:
    run = Run.open(tmp_path / "old", "a: 1\n")
    stage = run.stage("s", {}, 1)
    stage.begin()
    stage.commit([])
    run.close()
    fork(tmp_path / "old", tmp_path / "new", "a: 2\n")
    new = Run.open(tmp_path / "new", "a: 2\n")
    assert new.stage("s", {}, 1).done()
    new.close()
    with pytest.raises(RunError, match="exists already"):
        fork(tmp_path / "old", tmp_path / "new", "a: 2\n")
    with pytest.raises(RunError, match="no run"):
        fork(tmp_path / "nowhere", tmp_path / "newer", "")


def test_digest_does_not_depend_on_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})


def test_an_undefined_number_survives_the_disk(tmp_path: Path) -> None:
    nan = float("nan")
    interval = Interval(value=0.0, low=nan, high=nan, n=1)
    decision = Decision(
        outcome="undecided",
        action="",
        reasons=(),
        gain=Gain(base="a", other="b", printed=interval, deciding=interval, smallest_visible=nan),
    )
    write_json(tmp_path / "decision.json", decision)
    back = read_json(tmp_path / "decision.json", Decision)
    assert (
        back.gain is not None
        and math.isnan(back.gain.smallest_visible)
        and math.isnan(back.gain.printed.low)
        and back.gain.printed.value == 0.0
    )
    write_json(
        tmp_path / "verdict.json", Verdict(key=SampleKey(model="m", task="t", environment="e", sampling="s", index=0), outcome="fail")
    )
    assert read_json(tmp_path / "verdict.json", Verdict).score is None  # not measured is not undefined


class Held:
    """``os.fdatasync`` that waits until it is let go. ``sizes`` are what each journal held when its sync began, once it is done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.go = threading.Event(), threading.Event()
        self.sizes: list[int] = []
        real = os.fdatasync

        def fdatasync(journal: int) -> None:
            size = os.fstat(journal).st_size
            self.begun.set()
            self.go.wait()
            real(journal)
            self.sizes.append(size)

        monkeypatch.setattr(os, "fdatasync", fdatasync)


async def test_added_at_once_are_synced_together_and_all_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``add`` returned for was synced after it was written; what is added during a sync shares the next."""
    segments, held = Segments(tmp_path, Trajectory), Held(monkeypatch)

    async def add(index: int) -> None:
        await segments.add(trajectory(index))
        synced = (tmp_path / JOURNAL).read_bytes()[: held.sizes[-1]]
        assert synced.endswith(b"\n") and index in [json.loads(line)["key"]["index"] for line in synced.splitlines()]

    adding = [asyncio.create_task(add(0))]
    await asyncio.to_thread(held.begun.wait)
    adding += [asyncio.create_task(add(index)) for index in range(1, 100)]
    await asyncio.sleep(0)
    assert not segments.records and not any(task.done() for task in adding)
    held.go.set()
    await asyncio.gather(*adding)
    assert len(held.sizes) == 2 and len(segments.records) == 100
    segments.close()
    assert len((tmp_path / JOURNAL).read_bytes().splitlines()) == len(Segments(tmp_path, Trajectory).records) == 100


async def test_what_nobody_waits_for_any_more_is_written_before_the_journal_closes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt cancels those who wait; the tries they had ended are not lost."""
    segments, held = Segments(tmp_path, Trajectory), Held(monkeypatch)
    first = asyncio.create_task(segments.add(trajectory(0)))
    await asyncio.to_thread(held.begun.wait)
    others = [asyncio.create_task(segments.add(trajectory(index))) for index in (1, 2)]
    await asyncio.sleep(0)
    for task in (first, *others):
        task.cancel()
    assert all(isinstance(end, asyncio.CancelledError) for end in await asyncio.gather(first, *others, return_exceptions=True))
    held.go.set()
    segments.close()
    assert sorted(key.index for key in Segments(tmp_path, Trajectory).records) == [0, 1, 2]


async def test_what_ends_while_more_is_coming_waits_and_is_synced_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no longer: with the last that was coming the clock no longer counts."""
    monkeypatch.setattr("sharpen.store.segments.TOGETHER_S", 3600.0)
    segments, held, waited = Segments(tmp_path, Trajectory), Held(monkeypatch), threading.Event()
    held.go.set()

    class Hurry(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waited.set()
            return super().wait(timeout)

    segments._hurry = Hurry()
    with segments.coming:
        await segments.add(trajectory(0))  # the first after a rest is on disk at once
        waited.clear()
        with segments.coming:
            first = asyncio.create_task(segments.add(trajectory(1)))
            await asyncio.sleep(0)
        second = asyncio.create_task(segments.add(trajectory(2)))
        await asyncio.to_thread(waited.wait)
        assert len(held.sizes) == 1 and not first.done() and not second.done()
    await asyncio.gather(first, second, segments.add(trajectory(3)))
    assert len(held.sizes) == 2 and [key.index for key in segments.records] == [0, 1, 2, 3]
    await segments.add(trajectory(4))  # nothing is coming: nothing to wait for
    assert len(held.sizes) == 3


async def test_what_never_comes_is_not_waited_for(tmp_path: Path) -> None:
    segments = Segments(tmp_path, Trajectory)
    with segments.coming:
        for index in range(3):
            await asyncio.gather(segments.add(trajectory(index)), segments.add(trajectory(index, "u")))
    assert len(Segments(tmp_path, Trajectory).records) == 6


async def test_closing_does_not_wait_for_what_is_coming(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sharpen.store.segments.TOGETHER_S", 3600.0)
    segments = Segments(tmp_path, Trajectory)
    with segments.coming:
        await segments.add(trajectory(0))
        waiting = asyncio.create_task(segments.add(trajectory(1)))
        await asyncio.sleep(0)
        segments.close()
        assert len(Segments(tmp_path, Trajectory).records) == 2
        await waiting
    await segments.add(trajectory(2))  # and it opens again
    assert len(Segments(tmp_path, Trajectory).records) == 3


def test_a_loop_that_ended_leaves_what_was_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segments, held = Segments(tmp_path, Trajectory), Held(monkeypatch)

    async def interrupted() -> None:
        adding = asyncio.create_task(segments.add(trajectory(0)))
        await asyncio.to_thread(held.begun.wait)
        adding.cancel()
        asyncio.get_running_loop().call_soon(held.go.set)

    asyncio.run(interrupted())
    asyncio.run(segments.add(trajectory(1)))  # and another loop goes on
    assert [key.index for key in segments.records] == [0, 1]


async def test_a_full_disk_takes_back_all_that_was_written_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segments, held = Segments(tmp_path, Trajectory), Held(monkeypatch)
    first = asyncio.create_task(segments.add(trajectory(0)))
    await asyncio.to_thread(held.begun.wait)
    whole = (tmp_path / JOURNAL).read_bytes()
    real = os.write
    room = [len(whole) + 20]

    def full(handle: int, data: bytes) -> int:
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(handle, data[: room.pop()])

    monkeypatch.setattr(os, "write", full)
    others = [asyncio.create_task(segments.add(trajectory(index))) for index in (1, 2, 3)]
    await asyncio.sleep(0)
    held.go.set()
    ended = await asyncio.gather(first, *others, return_exceptions=True)
    assert ended[0] is None and all(isinstance(error, StorageError) for error in ended[1:])
    assert (tmp_path / JOURNAL).read_bytes() == whole and [key.index for key in segments.records] == [0]
    monkeypatch.undo()
    await segments.add(trajectory(1))
    segments.close()
    assert [key.index for key in Segments(tmp_path, Trajectory).records] == [0, 1]


async def test_threads_and_a_loop_write_at_once(tmp_path: Path) -> None:
    segments = Segments(tmp_path, Trajectory)

    def some(thread: int) -> None:
        for index in range(20):
            segments.append(trajectory(index, f"thread {thread}"))
            assert segments.records[trajectory(index, f"thread {thread}").key].key.index == index

    await asyncio.gather(
        *(asyncio.to_thread(some, thread) for thread in range(4)), *(segments.add(trajectory(index)) for index in range(50))
    )
    segments.close()
    again = Segments(tmp_path, Trajectory).records
    assert dict(again) == dict(segments.records)
    assert len((tmp_path / JOURNAL).read_bytes().splitlines()) == len(again) == 130


async def test_a_sync_that_fails_ends_all_who_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segments = Segments(tmp_path, Trajectory)

    def full(journal: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fdatasync", full)
    ended = await asyncio.gather(*(segments.add(trajectory(index)) for index in range(5)), return_exceptions=True)
    assert all(isinstance(error, StorageError) for error in ended) and not segments.records
    monkeypatch.undo()
    await segments.add(trajectory(9))
    segments.close()

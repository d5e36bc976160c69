"""Money, tokens, calls and minutes: counted as they are asked for, capped, and never paid twice. The user's wish to stop is one more cap."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from conftest import FEW
from sharpen.cli import main
from sharpen.errors import RunError, SettingsError, Stopped
from sharpen.policies.base import Conversation, Sampling, Turn
from sharpen.policies.endpoint import Endpoint
from sharpen.policies.meter import Account, Bill, Meter, Metered, Spending
from sharpen.policies.plugin import PolicyPlugin
from sharpen.policies.prices import FREE, Price, price_of
from sharpen.policies.scripted import Scripted, ScriptedPolicy, scripted_model
from sharpen.records import Lineage, Model, Spent, Trajectory, Verdict
from sharpen.run import climb
from sharpen.sampling import Pool, fill
from sharpen.settings import load_settings
from sharpen.store.files import read_json, write_json
from sharpen.store.segments import Segments
from test_sampling import TASKS, Exact, agent, right

DEAR = Price(prompt=1e3, sampled=1e6)  # a dollar a sampled token


class Slow:
    """Answers rightly after ``seconds``; counts how many are inside at once."""

    name, gives_token_ids = "slow", True

    def __init__(self, seconds: float = 0.01) -> None:
        self.seconds, self.calls, self.well = seconds, 0, ScriptedPolicy(right)

    async def complete(self, conversation: Conversation, sampling: Sampling) -> Turn:
        self.calls += 1
        await asyncio.sleep(self.seconds)
        return await self.well.complete(conversation, sampling)

    async def close(self) -> None: ...


async def run_under(
    caps: Spending, folder: Path, policy: Slow, price: Price | None = FREE, n: int = 4, concurrency: int = 4
) -> tuple[Pool, Account]:
    meter = Meter(caps, folder / "spent.json")
    account = meter.account("stage")
    player = agent(Metered("slow", lambda: policy, account, price), max_tokens=8)
    stores = Segments(folder / "t", Trajectory), Segments(folder / "v", Verdict)
    try:
        return await fill(player, TASKS, range(n), Exact(), *stores, concurrency=concurrency, account=account), account
    finally:
        meter.write()


def made(folder: Path) -> int:
    return len(Segments(folder / "t", Trajectory).records)


@pytest.mark.parametrize(
    "caps, within",
    [
        ({"max_calls": 10}, lambda spent: 8 <= spent.calls <= 10),
        ({"max_tokens": 600}, lambda spent: 300 <= spent.tokens <= 600),
        ({"max_dollars": 20.0}, lambda spent: 10 <= spent.dollars <= 20),
    ],
)
async def test_a_cap_is_kept_to_with_nothing_under_way_thrown_away_and_the_rest_is_bought_later(caps: dict, within, tmp_path: Path) -> None:
    policy = Slow()
    with pytest.raises(Stopped, match=r"spending\.max_.*the same command goes on once the cap is raised") as stopped:
        await run_under(Spending(**caps), tmp_path, policy, DEAR)
    assert not stopped.value.asked
    spent = read_json(tmp_path / "spent.json", Bill).total
    assert within(spent), spent
    assert made(tmp_path) == spent.calls == policy.calls  # one call a try here: every call that was paid for is a try on disk
    before = policy.calls
    with pytest.raises(Stopped):
        await run_under(Spending(**caps), tmp_path, policy, DEAR)
    assert policy.calls - before <= 2  # the count goes on across commands
    pool, account = await run_under(Spending(), tmp_path, policy, DEAR)
    assert len(pool.wanted) == 48 == policy.calls == account.spent.calls


class Ticking(Slow):
    """Each answer takes a second of what the meter takes for the time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(0.0)
        monkeypatch.setattr("sharpen.policies.meter.time", SimpleNamespace(monotonic=lambda: float(self.calls)))


async def test_the_minutes_of_earlier_commands_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = Ticking(monkeypatch)
    with pytest.raises(Stopped, match="minutes"):
        await run_under(Spending(max_minutes=5 / 60), tmp_path, policy)
    assert 6 <= made(tmp_path) <= 10  # those under way end
    so_far = made(tmp_path)
    with pytest.raises(Stopped):
        await run_under(Spending(max_minutes=5 / 60), tmp_path, policy)
    assert made(tmp_path) == so_far


async def test_the_machines_hours_are_dollars_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Stopped, match="max_dollars"):
        await run_under(Spending(max_dollars=5, dollars_per_hour=3600), tmp_path, Ticking(monkeypatch))
    bill = read_json(tmp_path / "spent.json", Bill)
    assert bill.machine == pytest.approx(bill.seconds) and 5 <= bill.total.dollars <= 10


@pytest.mark.parametrize("caps", [{"max_tokens": 5}, {"max_dollars": 0.5}])
async def test_a_cap_lower_than_one_call_is_an_error_before_the_first(caps: dict, tmp_path: Path) -> None:
    policy = Slow()
    with pytest.raises(SettingsError, match=r"one call may take \d+ tokens and .* dollars; raise it"):
        await run_under(Spending(**caps), tmp_path, policy, DEAR)
    assert policy.calls == 0


def test_caps_that_are_no_caps_are_errors(scripted: Path) -> None:
    for key, value in (
        ("max_calls", "0"),
        ("max_tokens", "-1"),
        ("max_dollars", "0"),
        ("max_minutes", "-3"),
        ("dollars_per_hour", "-1"),
        ("max_cals", "3"),
    ):
        with pytest.raises(SettingsError, match="spending"):
            load_settings(scripted, {f"spending.{key}": value})


async def test_an_unknown_price_is_counted_as_unknown_and_cannot_be_capped(tmp_path: Path) -> None:
    _, account = await run_under(Spending(), tmp_path, Slow(), price=None)
    assert account.spent.unpriced == account.spent.calls == 48 and account.spent.dollars == 0
    with pytest.raises(SettingsError, match=r"what slow costs is unknown; give its price in spending\.prices"):
        await run_under(Spending(max_dollars=1), tmp_path, Slow(), price=None)


async def test_episodes_of_many_turns_may_stop_within_but_never_pass_the_cap(tmp_path: Path) -> None:
    meter = Meter(Spending(max_calls=7))
    account = meter.account("stage")
    policy = Slow(0.001)
    metered = Metered("slow", lambda: policy, account, FREE)

    async def episode() -> None:
        for _ in range(5):
            await metered.complete(Conversation(messages=TASKS[0].prompt), Sampling(max_tokens=4))

    ended = await asyncio.gather(*(episode() for _ in range(4)), return_exceptions=True)
    assert policy.calls == account.spent.calls == 7
    assert any(isinstance(one, Stopped) for one in ended)


def test_a_bill_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "spent.json").write_text('{"stages": 3')
    with pytest.raises(RunError, match=r"spent\.json cannot be read .* the caps then count from nothing"):
        Meter(Spending(), tmp_path / "spent.json")


# ---------------------------------------------------------------- prices


def model(name: str, path: str, kind: str = "endpoint") -> Model:
    return Model(name=name, path=path, fingerprint="f", kind=kind, lineage=Lineage(base=name))  # type: ignore[arg-type]


def test_where_prices_come_from() -> None:
    pytest.importorskip("genai_prices")
    hosted = model("gpt-4o-mini", "https://api.openai.com/v1")
    price, why = price_of(hosted, Endpoint(base_url=hosted.path, model=hosted.name), {})
    assert price is not None and 0 < price.prompt < price.sampled and "openai's list price" in why
    own = Price(prompt=7, sampled=8)
    assert price_of(hosted, Endpoint(base_url=hosted.path, model=hosted.name), {"gpt-4o-mini": own}) == (own, "as set in spending.prices")
    assert price_of(model("nobody-knows", "https://llm.example.com/v1"), Endpoint(), {})[0] is None
    assert "set spending.prices.nobody-knows" in price_of(model("nobody-knows", "https://llm.example.com/v1"), Endpoint(), {})[1]
    assert price_of(model("nobody-knows", "http://127.0.0.1:8000/v1"), Endpoint(), {})[0] == FREE
    assert price_of(model("base", "/models/base", "scripted"), Scripted(), {})[0] == FREE
    assert price_of(model("base", "/models/base", "pretrained"), PolicyPlugin(name="x.py:open"), {})[0] is None


# ---------------------------------------------------------------- a whole ladder


def test_a_capped_run_stops_with_its_table_and_goes_on_when_the_cap_is_raised(
    scripted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*flags: str) -> int:
        size = ["--ladder.rungs", "[few-shot, rejection-sampling]", "--tasks.splits", FEW]
        return main(["run", str(scripted), "--runs", str(tmp_path / "runs"), *size, *flags])

    assert run("--spending.max_calls", "120") == 3
    said = capsys.readouterr()
    assert said.err.splitlines()[-1].startswith("sharpen: spending.max_calls is 120, and ") and "Traceback" not in said.err
    assert "000-base" in said.out and "page:" in said.out
    assert read_json(tmp_path / "runs/ladder/spent.json", Bill).total.calls <= 120
    assert run() == 0
    said = capsys.readouterr()
    assert "newly solved" in said.out and "kept" in said.out
    bill = read_json(tmp_path / "runs/ladder/spent.json", Bill)
    assert run("--name", "other") == 0
    whole = read_json(tmp_path / "runs/other/spent.json", Bill)
    assert {name: spent.calls for name, spent in bill.stages.items()} == {name: spent.calls for name, spent in whole.stages.items()}
    page = (tmp_path / "runs/ladder/report.html").read_text()
    assert "tasks newly solved" in page


def test_raising_n_buys_only_the_difference_and_a_new_verifier_nothing(scripted: Path, tmp_path: Path) -> None:
    def calls(n: int) -> int:
        assert main(["sample", str(scripted), str(tmp_path / "work"), "--sampling.n", str(n)]) == 0
        return read_json(tmp_path / "work/spent.json", Bill).total.calls

    assert calls(4) == 4 * 40
    assert calls(6) == 6 * 40
    assert main(["verify", str(scripted), str(tmp_path / "work")]) == 0
    assert read_json(tmp_path / "work/spent.json", Bill).total.calls == 6 * 40


# ---------------------------------------------------------------- Ctrl-C


SIGNALLED = """
import asyncio, os, sys
from sharpen.cli import main
from sharpen.policies.scripted import ScriptedPolicy

numbers, pause, answer, asked = [int(number) for number in sys.argv[1].split(",")], float(sys.argv[2]), ScriptedPolicy.complete, 0

async def complete(self, conversation, sampling):
    global asked
    asked += 1
    if asked == 400:
        for number in numbers:
            os.kill(os.getpid(), number)
            await asyncio.sleep(pause)
    return await answer(self, conversation, sampling)

ScriptedPolicy.complete = complete
sys.exit(main(sys.argv[3:]))
"""  # in the midst of its four hundredth call, however fast the machine is


def signalled(scripted: Path, tmp_path: Path, signals: list[int], pause: float = 0.0) -> tuple[int, str, list[str]]:
    """What a run that gets these signals while it samples gives and says, and the command that goes on with it."""
    command = ["run", str(scripted), "--runs", str(tmp_path), "--ladder.rungs", "[]", "--evaluation.n", "24"]
    sent = [sys.executable, "-c", SIGNALLED, ",".join(str(int(number)) for number in signals), str(pause), *command]
    done = subprocess.run(sent, capture_output=True, text=True)
    return done.returncode, done.stderr, command


@pytest.mark.real  # processes of its own, and what is synced
@pytest.mark.parametrize("times", [1, 2, 5])
def test_the_first_interrupt_finishes_what_is_under_way_the_second_stops_now_and_both_lose_nothing(
    times: int, scripted: Path, tmp_path: Path
) -> None:
    code, said, command = signalled(scripted, tmp_path, [signal.SIGINT] * times, 0.05 if times == 2 else 0.0)
    assert code == 130, said
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith("sharpen: interrupted") and "the same command goes on" in said.splitlines()[-1]
    tries = tmp_path / "ladder/rungs/000-base/dev/trajectories"
    on_disk = [json.loads(line)["key"] for line in (tries / "journal.jsonl").read_bytes().splitlines()]
    if times == 1:  # every call that was answered is a try on disk, and one line said what happens
        assert read_json(tmp_path / "ladder/spent.json", Bill).stages["rungs/000-base/dev"].calls == len(on_disk) >= 400
        assert "what is under way is finished" in said
    assert main(command) == 0
    sealed = next(tries.glob("*.jsonl")).read_bytes().splitlines()
    keys = [json.dumps(json.loads(line)["key"], sort_keys=True) for line in sealed]
    assert len(keys) == len(set(keys)) == 40 * 24
    assert {json.dumps(key, sort_keys=True) for key in on_disk} <= set(keys)


def test_a_terminate_stops_now(scripted: Path, tmp_path: Path) -> None:
    code, said, _ = signalled(scripted, tmp_path, [signal.SIGTERM])
    assert code == 130 and "Traceback" not in said


def test_totals_add_up() -> None:
    bill = Bill(stages={"a": Spent(calls=2, dollars=1.5), "b": Spent(calls=3, prompt_tokens=7)}, seconds=9, machine=0.5)
    assert bill.total == Spent(calls=5, prompt_tokens=7, dollars=2.0, seconds=9)
    assert bill.total.tokens == 7


def test_a_scripted_run_costs_nothing_and_says_so(scripted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scripted_model(tmp_path / "able", skill=0.5)
    assert main(["run", str(scripted), "--runs", str(tmp_path / "r"), "--model", str(tmp_path / "able"), "--ladder.rungs", "[]"]) == 0
    out = capsys.readouterr().out
    assert "all:   " in out and "$" not in out and "unknown" not in out


def test_what_kills_made_the_count_forget_is_counted_from_the_tries_on_disk(scripted: Path, tmp_path: Path) -> None:
    settings = load_settings(
        scripted, {"ladder.rungs": "[]", "tasks.splits": FEW, "spending.prices": json.dumps({"base": {"prompt": 1e3, "sampled": 1e3}})}
    )
    climb(settings, tmp_path / "runs")
    folder, whole = tmp_path / "runs/ladder", read_json(tmp_path / "runs/ladder/spent.json", Bill)
    (folder / "rungs/000-base/dev/stage.json").unlink()
    write_json(folder / "spent.json", Bill(stages={"rungs/000-base/dev": Spent()}))  # as where a kill came before the second writing
    climb(settings, tmp_path / "runs")
    again = read_json(folder / "spent.json", Bill)
    stage = "rungs/000-base/dev"
    assert again.stages[stage] == whole.stages[stage] and whole.stages[stage].calls > 0

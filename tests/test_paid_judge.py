"""What a judge asks is in the plan, in the bill and under every cap; a cap that it meets is no verdict, and nothing is bought twice."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from msgspec.structs import replace

from sharpen.api import Session, filter
from sharpen.cli import main
from sharpen.environments.single_turn import SingleTurn
from sharpen.errors import CapError, PolicyError, SettingsError, Stopped
from sharpen.policies.base import Sampling
from sharpen.policies.endpoint import EndpointPolicy
from sharpen.policies.meter import Bill, Meter, Metered, Spending
from sharpen.policies.prices import FREE, Price
from sharpen.policies.scripted import scripted_model
from sharpen.records import Message, Spent, Task, Verdict
from sharpen.report.page import count, paid
from sharpen.store.files import read_json
from sharpen.store.segments import Segments
from sharpen.tasks.base import TaskSet
from sharpen.verifiers.base import asking, charge
from sharpen.verifiers.combine import Combination
from sharpen.verifiers.judge import Judge, LLMJudge
from sharpen.verifiers.pooling import Pooling
from sharpen.verifiers.remembered import remembered
from sharpen.verifiers.reward_model import RewardModel, RewardModelVerifier
from sharpen.verifiers.run import judge, judge_many
from test_endpoints import Fake, ask, completion, refusal, settings
from test_judge import PASS, TASK, answering, tried

SAMPLING = Sampling(max_tokens=4)
THREE = Judge(model="fake")
PRICES = {"fake": Price(prompt=0.0, sampled=1e6)}  # two dollars a vote


def under(caps: Spending, *answers: str | Exception, path: Path | None = None) -> tuple[LLMJudge, Any, Meter]:
    """A judge of three votes whose calls are counted under ``caps``, the policy that it asks, and the meter."""
    policy = answering(*(answers or (PASS,)))
    verifier, meter = LLMJudge(THREE, policy), Meter(caps, path)
    charge(verifier, meter, "stage")
    return verifier, policy, meter


@pytest.mark.parametrize(
    "caps", [{"max_calls": 14}, {"max_tokens": 20_000}, {"max_dollars": 4_000.0, "prices": PRICES}], ids=lambda caps: next(iter(caps))
)
def test_a_cap_that_a_judge_meets_is_no_verdict_and_cuts_none_short(caps: dict[str, Any]) -> None:
    verifier, policy, meter = under(Spending(**{"prices": PRICES, **caps}))
    with pytest.raises(Stopped, match=r"spending\.max_"):
        for index in range(1000):
            assert judge(TASK, tried(index=index), Combination("all", (verifier,), 1)).outcome == "pass"  # type: ignore[arg-type]
    spent = meter.bill.stages["stage/judge"]
    assert spent.calls == len(policy.asked) == meter.bill.judging.calls and spent.calls % 3 == 0 and spent.calls
    assert spent.tokens == 12 * spent.calls and spent.dollars == pytest.approx(2 * spent.calls)
    assert spent.calls <= caps.get("max_calls", 10**9) and spent.tokens <= caps.get("max_tokens", 10**9) and not spent.unpriced


def test_votes_asked_again_fit_under_the_cap_too() -> None:
    verifier, policy, _ = under(Spending(max_calls=6, prices=PRICES), "I cannot say.")
    assert judge(TASK, tried(), verifier).reason.startswith("unparsable")
    assert len(policy.asked) == 6
    for caps, what in (({"max_calls": 5}, "max_calls"), ({"max_tokens": 300}, "max_tokens")):
        lower, nobody, _ = under(Spending(**caps, prices=PRICES))  # type: ignore[arg-type]
        with pytest.raises(CapError, match=f"{what} is .* a verdict of 3 votes.* may take 6 calls, .*; raise it"):
            judge(TASK, tried(), lower)
        assert not nobody.asked


def test_dollars_are_not_capped_where_nobody_knows_what_the_judge_costs() -> None:
    with pytest.raises(CapError, match=r"what the judge's fake costs is unknown; give its price in spending\.prices"):
        under(Spending(max_dollars=1))


def test_verdicts_under_way_are_given_before_the_cap_is_said() -> None:
    verifier, policy, meter = under(Spending(max_calls=20, prices=PRICES))
    given: list[Verdict] = []
    with pytest.raises(Stopped):
        for _, verdict in judge_many(((TASK, tried(index=index)) for index in range(50)), verifier, at_once=8):
            given.append(verdict)
    assert {one.outcome for one in given} == {"pass"}
    assert 3 * len(given) == len(policy.asked) == meter.bill.total.calls <= 20


async def test_a_judge_waits_for_room_that_calls_on_another_loop_hold() -> None:
    """The cap leaves room for the judge's six calls only once the policy's own, under way on this loop, has ended."""
    verifier, policy, meter = under(Spending(max_calls=7, prices=PRICES))
    inside, go = asyncio.Event(), asyncio.Event()

    class Slow:
        name, gives_token_ids = "slow", True

        async def complete(self, conversation: Any, sampling: Any) -> Any:
            inside.set()
            await go.wait()
            raise PolicyError("it broke, and was not answered")

    metered = Metered("slow", Slow, meter.account("stage"), FREE)  # type: ignore[arg-type]
    under_way = [asyncio.create_task(metered.complete(ask(), SAMPLING)) for _ in range(2)]
    await inside.wait()
    judging = asyncio.create_task(asyncio.to_thread(judge, TASK, tried(), verifier))
    while not meter._waiting:  # the judge asks for room, and there is none
        await asyncio.sleep(0)
    assert not policy.asked
    go.set()
    assert (await judging).outcome == "pass"
    assert [type(one) for one in await asyncio.gather(*under_way, return_exceptions=True)] == [PolicyError] * 2


def test_nothing_is_lost_where_many_threads_count() -> None:
    meter = Meter(Spending())
    threads = [threading.Thread(target=lambda: [meter.account("a").count(1, 2, None) for _ in range(500)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert meter.bill.stages["a"] == Spent(calls=4000, prompt_tokens=4000, sampled_tokens=8000, unpriced=4000)


def test_a_remembered_verdict_is_not_bought_again_and_an_error_is(tmp_path: Path) -> None:
    policy = answering(PASS)
    for _ in range(2):
        held = remembered(LLMJudge(THREE, policy), tmp_path, lambda trajectory: trajectory.messages[-1].content)
        verdicts = [judge(TASK, tried("4", index), held) for index in (1, 2)]
        assert [verdict.key.index for verdict in verdicts] == [1, 2] and all(verdicts)
        assert not judge(replace(TASK, prompt=(Message(role="user", content="another"),)), tried(" "), held)
    assert len(policy.asked) == 3 and asking(held)
    broken = answering(PolicyError("gone", "dead"))
    for _ in range(2):
        assert judge(TASK, tried("5"), remembered(LLMJudge(THREE, broken), tmp_path, str)).outcome == "error"
    assert len(broken.asked) == 6


async def test_a_reward_model_on_a_server_is_counted_and_capped() -> None:
    answer: dict[str, Any] = {"data": [{"data": [0.9]}], "usage": {"prompt_tokens": 40}}
    asked: list[int] = []

    async def pooling(_: web.Request) -> web.Response:
        asked.append(1)
        return web.json_response(answer)

    app = web.Application()
    app.router.add_post("/pooling", pooling)
    async with TestServer(app) as server:
        engine = Pooling(base_url=str(server.make_url("")), retries=0)
        verifier = RewardModelVerifier(RewardModel(model="fake", engine=engine, threshold=0.5))
        meter = Meter(Spending(max_calls=2, max_tokens=10**6, prices={"fake": Price(prompt=1e6, sampled=0)}))
        charge(verifier, meter, "stage")
        for _ in range(2):
            assert await asyncio.to_thread(judge, TASK, tried(), verifier)
        with pytest.raises(Stopped, match="max_calls"):
            await asyncio.to_thread(judge, TASK, tried(), verifier)
        assert meter.bill.judging == Spent(calls=2, prompt_tokens=80, dollars=80.0) and len(asked) == 2
        del answer["usage"]
        charge(verifier, Meter(Spending(max_tokens=10**6)), "stage")
        with pytest.raises(CapError, match="does not say how many tokens"):
            await asyncio.to_thread(judge, TASK, tried(), verifier)
        await asyncio.to_thread(verifier.close)


@pytest.mark.parametrize("status", [401, 403])
async def test_a_reward_model_whose_key_is_refused_says_whose_it_is(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "sk-secret")

    async def pooling(request: web.Request) -> web.Response:
        assert request.headers["Authorization"] == "Bearer sk-secret"
        return web.json_response({"error": {"message": "the key sk-secret was revoked"}}, status=status)

    app = web.Application()
    app.router.add_post("/pooling", pooling)
    async with TestServer(app) as server:
        engine = Pooling(base_url=str(server.make_url("")), api_key_env="SOME_KEY", retries=0)
        verifier = RewardModelVerifier(RewardModel(model="fake", engine=engine, threshold=0.5))
        verdict = await asyncio.to_thread(judge, TASK, tried(), verifier)
        await asyncio.to_thread(verifier.close)
    assert verdict.outcome == "error" and f"refuses the key in SOME_KEY (it answered {status}: the key *** was revoked" in verdict.reason


def test_a_session_keeps_to_its_caps_and_finds_what_it_bought(tmp_path: Path) -> None:
    scripted_model(tmp_path / "base", skill=1.0)
    policy = answering(PASS)
    task = Task(key="t", family="t", prompt=(Message(role="user", content="1+1="),), reference="2")
    tasks = TaskSet("one", (task,), SingleTurn(), LLMJudge(THREE, policy))
    for cap, done in ((14, 2), (100, 4)):
        session = Session(tmp_path / "s", spending=Spending(max_calls=cap))
        tries = list(session.sample_many(str(tmp_path / "base"), tasks, 4))
        with contextlib.suppress(Stopped):
            filter(tries, session.verify)
        session.close()
        assert len(policy.asked) == 3 * done
        assert read_json(tmp_path / "s/spent.json", Bill).total.calls == 4 + 3 * done


# ---------------------------------------------------------------- a whole run


@pytest.fixture
def judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Callable[..., int], list[int]]:
    """A command on tasks that a judge behind a server judges, at a price; and how many calls the server answered."""
    calls = [0]

    async def complete(self: EndpointPolicy, conversation: Any, sampling: Any) -> Any:
        calls[0] += 1
        return await answering(PASS).complete(conversation, sampling)

    monkeypatch.setattr(EndpointPolicy, "complete", complete)
    scripted_model(tmp_path / "base", skill=0.5)
    rows = [
        {"prompt": f"{number}+{more}=", "reference": str(number + more), "gold": str(number + more), "split": split}
        for more, (split, numbers) in enumerate({"train": range(2), "dev": range(2, 6), "demo": range(6, 8)}.items())
        for number in numbers
    ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    verifier = {"verifier": "judge", "model": "https://judge.example.invalid/v1#fake", "max_tokens": 16}
    (tmp_path / "run.yaml").write_text(
        json.dumps(
            {
                "model": str(tmp_path / "base"),
                "tasks": {"source": "jsonl", "path": str(tmp_path / "t.jsonl"), "verifier": verifier},
                "sampling": {"n": 2, "max_tokens": 32},
                "evaluation": {"n": 2, "k": [1], "max_tokens": 32},
                "ladder": {"rungs": ["few-shot"]},
                "spending": {"prices": {"fake": {"prompt": 1000, "sampled": 1000}}},
            }
        )
    )

    def command(verb: str, *flags: str) -> int:
        place = ["--runs", str(tmp_path / "runs")] if verb == "run" else [str(tmp_path / "work")]
        return main([verb, str(tmp_path / "run.yaml"), *place, *flags])

    return command, calls


def test_a_judge_is_planned_without_being_asked_capped_and_never_paid_twice(
    judged: tuple[Callable[..., int], list[int]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, calls = judged
    assert run("run", "--plan") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert calls[0] == 0
    assert re.search(r"000-base/dev/judge 0 24 ", out) and "ahead, expected" in out and "was not asked for this plan" in out
    planned = int(re.search(r"ahead, expected \S+ (\d+) ", out)[1])  # type: ignore[index]
    bill, stops = tmp_path / "runs/run/spent.json", 0
    for cap in range(20, 400, 20):
        if (code := run("run", "--spending.max_calls", str(cap))) == 0:
            break
        assert code == 3
        assert calls[0] == read_json(bill, Bill).judging.calls <= read_json(bill, Bill).total.calls <= cap
        stops += 1
    said = capsys.readouterr().out
    whole = read_json(bill, Bill)
    assert stops > 3 and calls[0] == whole.judging.calls  # each call that was answered is in the bill
    assert whole.total.calls == planned  # and none was asked twice, however often the cap was met
    assert whole.judging.dollars == whole.total.dollars == pytest.approx(0.012 * calls[0])
    assert f"all: {planned} calls" in " ".join(said.split()) and f"its verifiers asked {calls[0]} calls" in said
    assert f"planned before it began: {planned} calls" in said
    verdicts = [one for place in (tmp_path / "runs/run/rungs").glob("*/dev/verdicts") for one in Segments(place, Verdict).records.values()]
    assert len(verdicts) == 16 and {one.outcome for one in verdicts} == {"pass"}


def test_verify_keeps_to_the_caps_and_goes_on(judged: tuple[Callable[..., int], list[int]], tmp_path: Path) -> None:
    command, calls = judged
    assert command("sample", "--split", "dev") == 0 and calls[0] == 0
    assert command("verify", "--spending.max_calls", "20") == 3  # 8 tries were made of it
    assert calls[0] == 9
    assert command("verify") == 0 and calls[0] == 24
    assert command("verify") == 0 and calls[0] == 24
    assert read_json(tmp_path / "work/spent.json", Bill).stages["verify/judge"].calls == 24
    assert command("audit", "--spending.max_calls", "62") == 3
    before = calls[0]
    assert before <= 54 and command("audit") == 0 and calls[0] > before
    once = calls[0]
    assert command("audit") == 0 and calls[0] == once  # what it said is kept


# ---------------------------------------------------------------- how many tokens, and a key that is taken back


@pytest.mark.parametrize(
    "usage",
    [None, {}, {"prompt_tokens": None, "completion_tokens": None}, {"prompt_tokens": 0, "completion_tokens": 0}, {"prompt_tokens": 7}],
)
async def test_a_server_that_does_not_count_is_an_error_where_tokens_are_capped_and_unknown_elsewhere(usage: Any) -> None:
    async with Fake(completion(usage=usage)) as server:
        server.on_probe = lambda body: completion(usage=usage)
        for caps, price in ((Spending(max_tokens=10**6), FREE), (Spending(max_dollars=10), Price(prompt=1, sampled=1))):
            policy = EndpointPolicy(settings(server))
            metered = Metered("m", lambda policy=policy: policy, Meter(caps).account("stage"), price)  # type: ignore[misc]
            with pytest.raises(CapError, match=r"does not say how many tokens .* spending\.max_\w+ cannot be kept to; .*max_calls"):
                await metered.complete(ask(), SAMPLING)
            await policy.close()
        assert not server.bodies  # at the start, for the price of one token
        unchecked, meter = EndpointPolicy(settings(server, check=False)), Meter(Spending(max_tokens=10**6))
        with pytest.raises(CapError):
            await Metered("m", lambda: unchecked, meter.account("stage"), FREE).complete(ask(), SAMPLING)
        assert meter.bill.total.calls == meter.bill.total.unsized == 1  # which was answered, and is in the bill
        free = Meter(Spending(max_calls=10, max_dollars=1))
        await Metered("m", lambda: unchecked, free.account("stage"), FREE).complete(ask(), SAMPLING)
        assert free.bill.total.unsized == 1 and "1 calls whose tokens nobody counted" in paid(free.bill.total, Spent(), None)
        await unchecked.close()


async def test_ids_that_came_are_counted_where_usage_did_not() -> None:
    counted = completion(usage=None, prompt_token_ids=[1, 2, 3, 4], choice={"token_ids": [5, 6]})
    async with Fake(counted) as server:
        policy, meter = EndpointPolicy(settings(server, check=False)), Meter(Spending(max_tokens=10**6))
        await Metered("m", lambda: policy, meter.account("stage"), FREE).complete(ask(), SAMPLING)
        await policy.close()
    assert (meter.bill.total.prompt_tokens, meter.bill.total.sampled_tokens, meter.bill.total.unsized) == (4, 2, 0)


@pytest.mark.parametrize(("status", "kind"), [(401, SettingsError), (403, PolicyError)])
async def test_a_key_refused_in_the_middle_is_the_line_of_the_start(
    status: int, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_KEY", "sk-secret")
    async with Fake(completion(), completion(), refusal(status, "the key sk-secret was revoked")) as server:
        policy = EndpointPolicy(settings(server, api_key_env="SOME_KEY"))
        for _ in range(2):
            await policy.complete(ask(), SAMPLING)
        with pytest.raises(kind, match=rf"refuses the key in SOME_KEY \(it answered {status}: the key \*\*\* was revoked") as caught:
            await policy.complete(ask(), SAMPLING)
        assert type(caught.value) is kind and "sk-secret" not in str(caught.value)
        await policy.close()


def test_whole_counts_up_to_9999() -> None:
    assert [count(n) for n in (0, 950, 1024, 9999, 10_000, 999_499, 4_500_000)] == ["0", "950", "1,024", "9,999", "10k", "999k", "4.5M"]
    said = paid(Spent(calls=1024, dollars=12.0), Spent(calls=1000, dollars=12.0), Spent(calls=1100, dollars=13.5))
    assert "1,024 calls" in said and "$12.00" in said and "planned before it began: 1,100 calls" in said and "$13.50" in said

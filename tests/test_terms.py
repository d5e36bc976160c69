"""Permission first: who outside a model's lineage may teach it, what the gate refuses, and what rides on rows, models and their cards."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from msgspec.structs import replace

from sharpen.api import Session
from sharpen.cli import main
from sharpen.errors import Refused, SettingsError, Unsettled
from sharpen.formats.load import read, write
from sharpen.models import load_model, open_folder, save_lineage
from sharpen.policies.scripted import scripted_model
from sharpen.records import Lineage, Maker, Model, Row, SampleKey, Terms
from sharpen.report.card import misnamed, model_card
from sharpen.report.page import RunView
from sharpen.settings import convert, load_settings, load_terms, to_yaml
from sharpen.tasks.load import load_tasks
from sharpen.terms import (
    EXPERT,
    TASK_SOURCE,
    TermsSettings,
    find,
    gate,
    licences,
    maker_of,
    merged,
    root_of,
    settle,
    settled,
    with_terms,
    written,
)
from sharpen.training import scripted as trainer
from sharpen.training.base import Training

TODAY = datetime.date(2026, 6, 1)
URL = "https://example.org/licence"
GIVEN = TermsSettings(teacher="owl", licence="Apache-2.0", settled_by="Ann", settled_on=datetime.date(2026, 5, 1), evidence=URL)
OWL = Terms(teacher="owl", licence="Apache-2.0", training="allowed", settled_by="Ann", settled_on="2026-05-01", evidence=URL)


def model(name: str, fingerprint: str, **lineage: Any) -> Model:
    return Model(name=name, path="", fingerprint=fingerprint, lineage=Lineage(**{"base": name, **lineage}))


TRAINEE = model("small", "f-small")


def row(by: Maker | None, key: str = "somebody", at: int = 0) -> Row:
    sample = SampleKey(model=key, task=f"t{at}", environment="e", sampling="s", index=0)
    return Row(input_ids=(1, 2), labels=(-100, 2), key=sample, source="sampled", origin="sampled", maker=by)


def one_line(error: BaseException) -> str:
    assert "\n" not in str(error)
    return str(error)


# ---------------------------------------------------------------- settling


def test_what_the_table_knows_needs_only_who_when_and_on_what_evidence() -> None:
    assert settle(GIVEN, TODAY) == OWL
    llama = settle(replace(GIVEN, licence="llama 3.1 community license"), TODAY)
    assert llama.licence == "Llama-3.1" and llama.conditions[0].startswith("naming: ")
    both = settle(replace(GIVEN, licence="CC-BY-4.0", conditions=("not for weapons",)), TODAY)
    assert (
        both.conditions[0].startswith("attribution: ") and both.conditions[-1] == "not for weapons"
    )  # what is given adds, and never takes away


UNSETTLED: list[tuple[str, dict[str, Any], str]] = [
    ("no licence", {"licence": " "}, "licence is missing"),
    ("a licence nobody knows", {"licence": "Owl Community 7"}, "the table has no licence 'Owl Community 7'; `sharpen terms` lists"),
    ("a licence misspelled", {"licence": "Apach-2.0"}, "did you mean 'Apache-2.0'?"),
    ("unknown to the table, conditions left open", {"licence": "Owl", "training": "allowed"}, "on which conditions? write conditions"),
    ("forbidden by the table", {"licence": "llama2"}, "Llama-2 forbids it: 1.b.v"),
    ("allowed by wish, forbidden by the table", {"licence": "Llama-3", "training": "allowed", "conditions": ()}, "Llama-3 forbids it"),
    ("forbidden", {"training": "forbidden"}, "Apache-2.0 forbid training on its words; choose another teacher"),
    ("unknown after reading", {"training": "unknown"}, "are not known to allow training on its words"),
    ("a hosted service", {"licence": "OpenAI"}, "OpenAI-Terms is not known to allow it"),
    ("a hosted service, conditions left open", {"licence": "openai", "training": "allowed"}, "on which conditions?"),
    ("nobody settled it", {"settled_by": ""}, "they lack settled_by (the person who read them)"),
    ("nobody but blanks", {"settled_by": "  "}, "they lack settled_by"),
    ("no date, no evidence", {"settled_on": None, "evidence": ""}, "they lack settled_on (a date, YYYY-MM-DD), evidence (a URL or a file)"),
    ("evidence that is not there", {"evidence": "/no/such/letter.pdf"}, "is neither a URL nor a file that is there"),
    ("settled in the future", {"settled_on": datetime.date(2026, 6, 2)}, "settled_on 2026-06-02 is in the future; today is 2026-06-01"),
    ("expired", {"expires": datetime.date(2026, 5, 31)}, "they expired on 2026-05-31; settle them anew"),
]


@pytest.mark.parametrize(("name", "given", "says"), UNSETTLED, ids=[name for name, _, _ in UNSETTLED])
def test_terms_that_do_not_let_words_train_are_refused_in_one_line(name: str, given: dict[str, Any], says: str) -> None:
    with pytest.raises(Unsettled) as caught:
        settle(replace(GIVEN, **given), TODAY)
    assert says in one_line(caught.value) and "'owl'" in str(caught.value)


def test_a_service_or_a_licence_of_ones_own_can_be_settled_by_a_person(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("You may.")
    given = replace(GIVEN, licence="letter of 1 May", training="allowed", conditions=(), evidence=str(tmp_path / "letter.txt"))
    assert settle(given, TODAY).licence == "letter of 1 May"
    service = settle(replace(GIVEN, licence="OpenAI-Terms", training="allowed", conditions=("no model that competes",)), TODAY)
    assert service.training == "allowed" and service.conditions == ("no model that competes",)
    assert settle(replace(GIVEN, expires=TODAY), TODAY).expires == "2026-06-01"  # the last day counts


def test_every_line_of_the_table_has_a_source_and_services_are_never_assumed_to_allow() -> None:
    table = licences()
    assert len({one.id for one in table}) == len(table) > 30
    assert all(find(name) == one for one in table for name in (one.id, one.name, *one.also))  # no name means two of them
    for one in table:
        assert one.source.startswith("https://") and one.says and one.checked.year >= 2026, one.id
        assert one.training == "unknown" or one.read != "no", one.id  # what was not read is not guessed
        assert one.covers != "service" or one.training == "unknown", one.id
        assert one.training == "allowed" or not one.conditions, one.id
    assert find("no such thing") is None


# ---------------------------------------------------------------- the gate


def test_a_models_own_lineage_needs_nobodys_leave() -> None:
    child = model("small-2", "f-2", base="small", root="f-small", parent="f-small")
    cousin = model("small-3", "f-3", base="small", root="f-small", parent="f-2")
    assert root_of(TRAINEE) == root_of(child) == root_of(cousin) == "f-small"
    assert gate([row(maker_of(TRAINEE)), row(maker_of(child)), row(maker_of(cousin))], TRAINEE, TODAY) == ()
    assert gate([row(maker_of(TRAINEE)), row(maker_of(child))], cousin, TODAY) == ()
    assert gate([row(None, key="f-small")], TRAINEE, TODAY) == ()  # from before makers were recorded
    with pytest.raises(Unsettled, match="1 rows would train small and are the words of 'f-2'"):
        gate([row(None, key="f-2")], TRAINEE, TODAY)


OUTSIDE: list[tuple[str, Maker | None, str]] = [
    ("another model", Maker(name="owl", root="f-owl"), "1 rows would train small and are the words of 'owl', outside its own lineage"),
    ("its namesake", Maker(name="small"), "the words of 'small', outside its own lineage"),
    ("nobody named", Maker(name="imported"), "words of nobody knows whom"),
    ("nothing recorded", None, "the words of 'somebody'"),
    ("terms of another teacher", Maker(name="owl", terms=(replace(OWL, teacher="hawk"),)), "the words of 'owl'"),
    ("forbidden", Maker(name="owl", terms=(replace(OWL, training="forbidden"),)), "forbid training on its words"),
    ("unknown", Maker(name="owl", terms=(replace(OWL, training="unknown"),)), "are not known to allow"),
    ("expired", Maker(name="owl", terms=(replace(OWL, expires="2026-05-31"),)), "they expired on 2026-05-31"),
    ("settled tomorrow", Maker(name="owl", terms=(replace(OWL, settled_on="2026-06-02"),)), "is in the future"),
    ("by nobody", Maker(name="owl", terms=(replace(OWL, settled_by=""),)), "they lack settled_by"),
    ("without evidence", Maker(name="owl", terms=(replace(OWL, evidence=" "),)), "they lack evidence"),
    ("no date", Maker(name="owl", terms=(replace(OWL, settled_on="May 1st"),)), "settled_on 'May 1st' is no date"),
    ("what it learnt from has expired", Maker(name="owl", terms=(OWL, replace(OWL, teacher="hawk", expires="2026-01-01"))), "'hawk'"),
    ("an expert of one's own making", replace(EXPERT, terms=(replace(TASK_SOURCE, settled_by="me"),)), "they lack settled_on"),
]


@pytest.mark.parametrize(("name", "maker", "says"), OUTSIDE, ids=[name for name, _, _ in OUTSIDE])
def test_the_gate_refuses_words_from_outside_without_terms_in_force(name: str, maker: Maker | None, says: str) -> None:
    good = [row(maker_of(TRAINEE), at=1), row(EXPERT, at=2)]
    assert gate(good, TRAINEE, TODAY) == (TASK_SOURCE,)
    with pytest.raises(Unsettled) as caught:
        gate([*good, row(maker)], TRAINEE, TODAY)
    assert says in one_line(caught.value) and "docs/terms.md" in str(caught.value)
    assert isinstance(caught.value, Refused)


def test_given_terms_cover_their_teacher_under_all_its_names_and_nobody_else() -> None:
    rows = [row(Maker(name="owl")), row(Maker(name="owl-2026"), at=1), row(maker_of(TRAINEE), at=2)]
    with pytest.raises(Unsettled, match="the words of 'owl-2026'"):
        gate(with_terms(rows, [GIVEN], TODAY), TRAINEE, TODAY)
    covered = with_terms(rows, [replace(GIVEN, known_as=("owl-2026",))], TODAY)
    assert gate(covered, TRAINEE, TODAY) == (OWL,)
    assert [one.maker.name for one in covered if one.maker] == ["owl", "owl", "small"]
    assert with_terms(rows, [replace(GIVEN, teacher="hawk")], TODAY) == tuple(rows)
    renewed = settled(Maker(name="owl", terms=(replace(OWL, expires="2026-01-01"),)), [GIVEN], TODAY)
    assert renewed.terms == (OWL,)
    # A data set whose answers a model wrote: who chose the tasks can no longer vouch for them.
    with pytest.raises(Unsettled, match="Llama-2 forbids it"):
        with_terms([row(EXPERT)], [replace(GIVEN, teacher="expert", licence="Llama-2")], TODAY)
    written_by = replace(GIVEN, known_as=("expert",))
    assert gate(with_terms([row(EXPERT)], [written_by], TODAY), TRAINEE, TODAY) == (OWL,)


def test_a_teacher_passes_on_the_terms_of_those_it_learnt_from() -> None:
    """owl taught hawk, hawk teaches small: small has the terms of both, and nobody gets round owl's by way of hawk."""
    hawk = model("hawk", "f-hawk", root="f-hawk-base", terms=(OWL,))
    with pytest.raises(Unsettled, match="the words of 'hawk'"):  # owl's leave is not hawk's
        gate([row(maker_of(hawk))], TRAINEE, TODAY)
    own = replace(GIVEN, teacher="hawk", licence="MIT")
    passed = gate(with_terms([row(maker_of(hawk))], [own], TODAY), TRAINEE, TODAY)
    assert [(one.teacher, one.licence) for one in passed] == [("owl", "Apache-2.0"), ("hawk", "MIT")]
    late = model("hawk", "f-hawk", terms=(replace(OWL, expires="2026-05-31"),))
    with pytest.raises(Unsettled, match=r"'owl': they expired"):
        gate(with_terms([row(maker_of(late))], [own], TODAY), TRAINEE, TODAY)
    anew = gate(with_terms([row(maker_of(late))], [own, GIVEN], TODAY), TRAINEE, TODAY)
    assert {one.teacher for one in anew} == {"owl", "hawk"}


def test_a_child_that_learnt_from_a_teacher_passes_that_on_to_its_own_base() -> None:
    child = model("small-2", "f-2", base="small", root="f-small", parent="f-small", terms=(OWL,))
    assert gate([row(maker_of(child))], TRAINEE, TODAY) == (OWL,)


def test_terms_add_up_and_the_later_of_two_that_say_the_same_stays() -> None:
    later, other = replace(OWL, settled_on="2026-05-30"), replace(OWL, licence="MIT")
    assert merged((OWL,), (later, other)) == (later, other)


# ---------------------------------------------------------------- training, by whatever verb


def asked(folder: Path, skill: float = 0.3) -> dict[str, Any]:
    """Settings over sums in a file, with a scripted model."""
    (folder / "verifier.py").write_text("def verify(answer, reference):\n    return answer.strip() == reference\n")
    sums = [(split, 10 * at, b) for at, split in enumerate(("demo", "train", "dev", "test")) for b in range(1, 5)]
    rows = [{"prompt": f"{a} + {b} = ?", "reference": str(a + b), "split": split} for split, a, b in sums]
    (folder / "tasks.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    scripted_model(folder / "base", skill=skill, name="small")
    return {
        "model": str(folder / "base"),
        "tasks": {"source": "jsonl", "path": str(folder / "tasks.jsonl"), "verifier": f"{folder / 'verifier.py'}:verify", "exact": True},
        "evaluation": {"n": 1, "k": [1], "max_tokens": 16},
        "sampling": {"n": 2, "max_tokens": 16},
        "ladder": {"rungs": ["sft"]},
    }


def saved(folder: Path, settings: dict[str, Any], name: str = "s.yaml") -> str:
    (folder / name).write_text(yaml.safe_dump(settings))
    return str(folder / name)


def traces(folder: Path, tens: int = 10, **more: Any) -> str:
    """Right answers to the sums from ``tens`` on, in chat rows that name nobody."""
    said = [
        {"messages": [{"role": "user", "content": f"{tens} + {b} = ?"}, {"role": "assistant", "content": str(tens + b)}], **more}
        for b in range(1, 5)
    ]
    (folder / "traces.jsonl").write_text("".join(json.dumps(one) + "\n" for one in said))
    return str(folder / "traces.jsonl")


TERMS = {"teacher": "owl", "licence": "CC-BY-4.0", "settled_by": "Ann", "settled_on": datetime.date(2026, 1, 2), "evidence": URL}


def test_imported_words_train_once_somebody_settled_it_and_their_terms_go_all_the_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, work, out = saved(tmp_path, asked(tmp_path)), str(tmp_path / "w"), tmp_path / "model"

    def imported(*flags: str) -> int:
        return main(["import", traces(tmp_path), work, "--tasks", settings, *flags])

    assert imported() == 0
    assert main(["verify", settings, work]) == main(["select", settings, work]) == 0
    capsys.readouterr()
    assert main(["train", settings, work, "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert "4 rows would train small and are words of nobody knows whom" in error and "known_as: [imported]" in error
    assert error.count("\n") == 1 and not out.exists()

    # In the settings of the training, under the name that the rows have ...
    assert main(["train", saved(tmp_path, {**asked(tmp_path), "terms": [TERMS]}, "t.yaml"), work, "--out", str(out)]) == 2
    known = {**TERMS, "known_as": ["imported"]}
    assert main(["train", saved(tmp_path, {**asked(tmp_path), "terms": [known]}, "t.yaml"), work, "--out", str(out)]) == 0
    (first,) = open_folder(out).lineage.terms
    assert (first.teacher, first.licence, first.settled_on) == ("owl", "CC-BY-4.0", "2026-01-02")

    # ... or with the file, which then is the teacher's.
    assert imported("--terms", saved(tmp_path, TERMS, "owl.yaml")) == 0
    assert main(["verify", settings, work]) == main(["select", settings, work]) == 0
    assert main(["train", settings, work, "--out", str(tmp_path / "again")]) == 0
    trained = open_folder(tmp_path / "again")
    assert trained.lineage.terms == (first,) and trained.lineage.root == load_model(str(tmp_path / "base")).fingerprint
    rows = [json.loads(line) for line in (Path(work) / "training_set/rows.jsonl").read_text().splitlines()]
    assert {one["maker"]["name"] for one in rows} == {"owl"} and rows[0]["maker"]["terms"][0]["evidence"] == URL
    selection = json.loads((Path(work) / "selection.json").read_text())
    assert selection["terms"][0]["teacher"] == "owl" and selection["rows"]["by"] == {"owl": 4}

    # Out of the house: formats with room for it hold them, and beside any of them lies what `import --terms` reads.
    capsys.readouterr()
    for format, name in (("trl", "out.jsonl"), ("atif", "out-atif.jsonl")):
        assert main(["export", work, str(tmp_path / name), "--format", format]) == 0
        assert f"their terms: {tmp_path / name}.terms.yaml" in capsys.readouterr().out
    assert [one.maker for one in read(tmp_path / "out-atif.jsonl")] == [Maker(name="owl", terms=(first,))] * 4
    assert [settle(one) for one in load_terms(tmp_path / "out.jsonl.terms.yaml")] == [first]
    assert main(["import", str(tmp_path / "out.jsonl"), str(tmp_path / "w2"), "--terms", str(tmp_path / "out.jsonl.terms.yaml")]) == 0

    # A second model, taught by the first, has owl's terms too.
    scripted_model(tmp_path / "other", skill=0.1, name="other")
    student, teacher, task = load_model(str(tmp_path / "other")), trained, next(iter(load_tasks(load_settings(Path(settings), {}).tasks)))
    with Session_(tmp_path / "session") as session:
        good = [session.sample(teacher, task)]
        with pytest.raises(Unsettled, match=f"the words of '{teacher.name}'"):
            session.sft(student, good, trust_unaudited_verifier=True)
        leave = replace(GIVEN, teacher=teacher.name, settled_on=datetime.date(2026, 1, 1))
        taught = session.sft(student, good, terms=[leave], trust_unaudited_verifier=True)
    assert [one.teacher for one in taught.lineage.terms] == ["owl", teacher.name]
    card = model_card(taught, "other-2")
    assert f"**owl**: CC-BY-4.0. Training on it is allowed; settled by Ann on 2026-01-02; evidence: {URL}" in card
    assert "attribution: name the authors" in card and "distillation" in card.split("---")[1]
    with Session_(tmp_path / "session-2") as session:  # and the third generation, from its own tries, still has
        third = session.sft(taught, [session.sample(taught, task)], trust_unaudited_verifier=True)
    assert [one.teacher for one in third.lineage.terms] == ["owl", teacher.name]


class Session_(Session):
    def __enter__(self) -> Session_:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def test_terms_of_one_teacher_are_not_taken_for_anothers_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "t.jsonl"
    trajectory = next(iter(read(traces(tmp_path), agent="hawk")))
    write([trajectory], source, "atif")
    for terms, says in (
        (TERMS, "holds words of 'hawk', and the terms are for 'owl'"),
        ([TERMS, {**TERMS, "teacher": "hawk", "expires": datetime.date(2020, 1, 1)}], "'hawk': they expired on 2020-01-01"),
        ({**TERMS, "teacher": "hawk", "settled_on": datetime.date(2999, 1, 1)}, "2999-01-01 is in the future"),
        ({**TERMS, "teecher": "hawk"}, "unknown setting 'terms[0].teecher'; did you mean 'teacher'?"),
        ({**TERMS, "settled_on": "soon"}, "terms.yaml: [0].settled_on: Invalid"),
        ({**TERMS, "teacher": " "}, "teacher is empty"),
        ([], "holds no terms"),
    ):
        flags = ["--terms", saved(tmp_path, terms, "terms.yaml")]
        assert main(["import", str(source), str(tmp_path / "w"), *flags]) == 2, says
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1
        assert not list((tmp_path / "w").rglob("*.jsonl"))
    both = ["--terms", saved(tmp_path, [TERMS, {**TERMS, "teacher": "hawk"}], "terms.yaml")]
    assert main(["import", str(source), str(tmp_path / "w"), *both]) == 0
    assert main(["import", traces(tmp_path), str(tmp_path / "w"), *both]) == 2  # names nobody: whose of the two?
    assert "does not say who made them" in capsys.readouterr().err


def test_recorded_demonstrations_without_provenance_stop_a_run_before_the_first_token(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {**asked(tmp_path), "demonstrations": {"path": traces(tmp_path, 0)}}
    command = ["run", saved(tmp_path, settings, "r.yaml"), "--runs", str(tmp_path / "runs")]
    assert main(command) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "4 recorded demonstrations would train small and are words of nobody knows whom" in error
    assert not list((tmp_path / "runs").rglob("*.jsonl")) or not list((tmp_path / "runs").rglob("trajectories"))
    # A file that calls itself the expert is not the task source.
    named = {**settings, "demonstrations": {"path": str(tmp_path / "e.jsonl")}}
    write(read(traces(tmp_path, 0), agent="expert"), tmp_path / "e.jsonl", "atif")
    assert main(["run", saved(tmp_path, named, "r.yaml"), "--runs", str(tmp_path / "runs")]) == 2
    assert "are the words of 'expert', outside its own lineage" in capsys.readouterr().err
    # Prompting with them trains nothing.
    assert main([*command, "--ladder.rungs", "[few-shot]", "--name", "shown"]) == 0
    # The same run goes on once it is settled, and again once that is renewed: terms are no part of what a run is.
    for expires, code in ((datetime.date(2020, 1, 1), 2), (datetime.date(2999, 1, 1), 0), (datetime.date(2999, 1, 2), 0)):
        terms = {**TERMS, "known_as": ["imported"], "expires": expires}
        assert main(["run", saved(tmp_path, {**settings, "terms": [terms]}, "r.yaml"), "--runs", str(tmp_path / "runs")]) == code
    rung = tmp_path / "runs/r/rungs/001-sft"
    assert [one.teacher for one in open_folder(rung / "model").lineage.terms] == ["owl"]
    assert open_folder(rung / "model").lineage.terms[0].expires == "2999-01-01"  # renewed terms train nothing anew
    assert "owl" in (tmp_path / "runs/r/report.html").read_text()


def test_the_tasks_own_expert_needs_nothing_and_the_card_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path, asked(tmp_path), "r.yaml")
    assert main(["run", path, "--runs", str(tmp_path / "runs")]) == 0
    trained = open_folder(tmp_path / "runs/r/rungs/001-sft/model")
    assert trained.lineage.terms == (TASK_SOURCE,)
    card = model_card(trained, "x")
    assert "settled by the task source; evidence: the task source's own expert, no model" in card and "distillation" not in card
    # Whoever knows that a model wrote the data set's answers says so.
    terms = [{**TERMS, "known_as": ["expert"], "licence": "Llama-2"}]
    assert main(["run", saved(tmp_path, {**asked(tmp_path), "terms": terms}, "r2.yaml"), "--runs", str(tmp_path / "runs")]) == 2
    assert "Llama-2 forbids it" in capsys.readouterr().err


def test_the_trainer_itself_asks_whoever_calls_it(tmp_path: Path) -> None:
    """No caller gets round the gate: it is the trainer's first act."""
    scripted_model(tmp_path / "base", skill=0.1)
    base = load_model(str(tmp_path / "base"))
    with pytest.raises(Unsettled, match="the words of 'owl'"):
        trainer.train([row(Maker(name="owl"))], base, Training(), tmp_path / "out" / "model")
    assert not (tmp_path / "out").exists()
    from sharpen.training import sft

    with pytest.raises(Unsettled, match="the words of 'owl'"):
        sft.train([row(Maker(name="owl"))], base, Training(), tmp_path / "out" / "model")


def test_a_card_says_when_a_name_breaks_the_terms(tmp_path: Path) -> None:
    terms = settle(replace(GIVEN, licence="Llama-3.1"), TODAY)
    assert misnamed("my-model", [terms]) == [
        "the terms of owl (Llama-3.1) ask for a name that begins with \"Llama\", and this one is 'my-model'"
    ]
    assert misnamed("Llama-mine", [terms]) == misnamed("my-model", [OWL]) == []
    scripted_model(tmp_path / "m", skill=0.1)
    save_lineage(tmp_path / "m", Lineage(base="b/c", training_set="x", terms=(terms,)), "m")
    view = RunView(name="r", settings_yaml="tasks: {source: dataset, id: some/sums}", rungs=())
    card = model_card(open_folder(tmp_path / "m"), "my-model", view, licence="llama3.1")
    front = yaml.safe_load(card.split("---")[1])
    assert front["base_model"] == "b/c" and front["license"] == "llama3.1" and front["datasets"] == ["some/sums"]
    assert front["tags"] == ["sharpen", "distillation"]
    assert "It is given the licence `llama3.1`" in card and "> **Warning:** the terms of owl" in card and "Built with Llama" in card


def test_terms_in_the_settings_are_read_strictly_and_are_no_part_of_a_run() -> None:
    plain = {"name": "x", "tasks": {"source": "jsonl", "path": "x"}}
    given = convert({**plain, "terms": [TERMS]}, "s.yaml")
    assert given.terms[0].settled_on == datetime.date(2026, 1, 2)
    assert to_yaml(given) == to_yaml(convert(plain, "s.yaml"))
    with pytest.raises(SettingsError, match=r"unknown setting 'terms\[0\]\.license'; did you mean 'licence'\?"):
        convert({**plain, "terms": [{**TERMS, "license": "MIT"}]}, "s.yaml")


def test_terms_written_to_a_file_are_read_back() -> None:
    (one,) = written([replace(OWL, conditions=("a", "b"))])
    assert yaml.safe_load(yaml.safe_dump(one)) == one
    assert settle(convert({"name": "x", "tasks": {"source": "jsonl", "path": "x"}, "terms": [one]}, "f").terms[0], TODAY) == replace(
        OWL, conditions=("a", "b")
    )


def test_the_table_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["terms"]) == 0
    assert "Llama-3.1" in capsys.readouterr().out
    assert main(["terms", "llama 3.1"]) == 0
    out = capsys.readouterr().out
    assert "training on outputs: allowed" in out and "its text was read on" in out and "no legal advice" in out
    assert main(["terms", "lama-3.1"]) == 2
    assert "did you mean 'Llama-3.1'?" in capsys.readouterr().err

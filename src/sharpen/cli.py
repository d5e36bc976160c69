"""The command line. Each verb is a thin call into the library."""

from __future__ import annotations

import argparse
import itertools
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sharpen.errors import Refused, SettingsError, SharpenError, Stopped, nearest

if TYPE_CHECKING:
    from sharpen.run import Planned
    from sharpen.settings import RunSettings
    from sharpen.verbs import Watcher

EXIT_ERROR, EXIT_CAP, EXIT_REFUSED, EXIT_INTERRUPT = 2, 3, 4, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Returns 0, or with one line on stderr 2 for an error, 3 where a cap on spending was reached, 130 when interrupted.

    And 4 where ``sharpen distil`` is refused, which is no error: nothing can be copied.
    """
    parser = make_parser()
    try:
        arguments, rest = parser.parse_known_args(argv)
        if rest and not arguments.takes_settings:
            raise SettingsError(f"unknown argument {rest[0]!r}; see sharpen {arguments.verb} --help")
        arguments.overrides = _overrides(rest)
        arguments.do(arguments)
    except _Listed:
        return 0
    except SharpenError as error:
        print(f"sharpen: {error}", file=sys.stderr)
        if isinstance(error, Stopped):
            return EXIT_INTERRUPT if error.asked else EXIT_CAP
        return EXIT_REFUSED if isinstance(error, Refused) and arguments.verb == "distil" else EXIT_ERROR
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the impatient press it once more
        print("sharpen: interrupted; what is finished is kept, the same command goes on from there", file=sys.stderr)
        return EXIT_INTERRUPT
    except BrokenPipeError:  # `sharpen show ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def entry() -> None:
    """The console script. Leaves at once: engines' threads would otherwise hold the exit up."""
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code) if code == EXIT_INTERRUPT else sys.exit(code)


def make_parser() -> argparse.ArgumentParser:
    """Every verb with its help; docs/cli.md is written from it."""
    parser = argparse.ArgumentParser(
        prog="sharpen",
        description="Get out of supervision all that supervision can give, measured and proved, before anyone reaches for RL.",
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(
        name: str, do: Callable[[argparse.Namespace], None], help: str, description: str, example: str, *, settings: bool
    ) -> argparse.ArgumentParser:
        made = verbs.add_parser(
            name, help=help, description=description, epilog=f"Example: {example}", formatter_class=argparse.RawDescriptionHelpFormatter
        )
        made.set_defaults(do=do, takes_settings=settings)
        if settings:
            made.add_argument(
                "--keys",
                action=_Keys,
                nargs="?",
                metavar="SECTION",
                help="list the settings of SECTION (default: all) with their defaults, and stop",
            )
        return made

    def on_files(name: str, do: Callable[[argparse.Namespace], None], help: str, description: str, example: str) -> argparse.ArgumentParser:
        made = verb(name, do, help, f"{description}\nSettings are also flags: --sampling.n 16, --model PATH.", example, settings=True)
        made.add_argument(
            "settings", type=Path, metavar="SETTINGS", help="a YAML file, as for sharpen run: tasks, model, sampling and so on"
        )
        made.add_argument("work", type=Path, metavar="WORK", help="the folder to work in")
        return made

    init = verb(
        "init", _init, "write a project to start from", "Write a small project that runs as it is, to be edited into your own.",
        "sharpen init tools my-agent && cd my-agent && sharpen run run.yaml", settings=False,
    )  # fmt: skip
    init.add_argument("kind", metavar="KIND", help="single-turn, tools, text-game or traces")
    init.add_argument("folder", type=Path, metavar="FOLDER", help="a new folder")

    run = verb(
        "run", _run, "climb the ladder: measure, train, keep only what held-out tasks prove",
        "Climb the ladder that SETTINGS describes. Given again after a kill, it goes on where it stopped.\n"
        "Every setting is also a flag: --sampling.n 16, --training.method full. `sharpen run --keys` lists them with their defaults,\n"
        "`sharpen run --keys sampling` those of one section.",
        "sharpen run examples/textworld/quickstart.yaml --name mine --sampling.n 16", settings=True,
    )  # fmt: skip
    run.add_argument("settings", type=Path, nargs="?", metavar="SETTINGS", help="a YAML file, such as examples/textworld/quickstart.yaml")
    run.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="where run folders lie (default: runs)")
    run.add_argument("--fork", metavar="NEW", help="copy the run under a new name and go on with the settings given now")
    run.add_argument("--plan", action="store_true", help="print what the run will cost, and stop")
    run.add_argument(
        "--measure",
        type=int,
        metavar="N",
        help="with --plan: make N of the run's first tries, kept for it, to go by (default: 16 where a token has no price, else 0)",
    )
    run.add_argument(
        "--trust-unaudited-verifier",
        action="store_true",
        help="train on what a verifier keeps that is neither exact nor audited; all that is made says so",
    )

    distil = verb(
        "distil", _distil, "copy a stronger agent into a model: best-of-8 into a single try",
        "Copy a teacher into what the run in the folder FROM ships, or into the model of the settings file FROM, and print what it brought at what cost.\n"
        "The teacher is measured on the same dev tasks first; where it has nothing that the student lacks, this is refused (exit status 4).\n"
        "The result is a run of its own.\n"
        "Settings are also flags: --distillation.n 2, --teacher.max_tokens 512, --name mine.",
        "sharpen distil runs/quickstart --teacher best-of-8", settings=True,
    )  # fmt: skip
    distil.add_argument("source", type=Path, metavar="FROM", help="a run folder, such as runs/quickstart, or a settings file")
    distil.add_argument(
        "--teacher", metavar="WHO",
        help="best-of-8 (of the student itself), best-of-8 of MODEL, a model (name, folder, run, hub id, URL#name) or a file of its trajectories; "
        "more by --teacher.KEY (default: as the settings say)",
    )  # fmt: skip
    distil.add_argument("--runs", type=Path, metavar="DIR", help="where run folders lie (default: where FROM lies, else runs)")
    distil.add_argument("--plan", action="store_true", help="print what it will cost, and stop")
    distil.add_argument("--measure", type=int, metavar="N", help="with --plan: as for sharpen run")
    distil.add_argument("--trust-unaudited-verifier", action="store_true", help="as for sharpen run")

    advised = verb(
        "advise", _advise, "say which method to try next, if any, and why",
        "Measure a little (advice.budget, 2 % of what the run is planned to take), read what is there, and print one recommendation, the runner-up,\n"
        "what each would probably gain and cost, and what measurement would change it. What is made is kept, and the run finds it made.",
        "sharpen advise run.yaml --goal.value 0.8", settings=True,
    )  # fmt: skip
    advised.add_argument("settings", type=Path, metavar="SETTINGS", help="a YAML file, as for sharpen run")
    advised.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="where run folders lie (default: runs)")

    sample = on_files(
        "sample", _sample, "make tries of a model at tasks", "Make sampling.n tries of every task of a split. Those in WORK already are not made again.\n"
        "With --sampling.budget adaptive as many in all, but more where they bring something; WORK/waves.json says what was decided.",
        "sharpen sample run.yaml work/tries --split train --sampling.n 8",
    )  # fmt: skip
    sample.add_argument("--split", default="train", metavar="NAME", help="demo, train, dev or test (default: train)")
    on_files(
        "verify",
        _verify,
        "judge tries",
        "Judge every try in WORK with the tasks' verifier: pass, fail or error.",
        "sharpen verify run.yaml work/tries",
    )
    on_files(
        "select", _select, "choose which tries train", "Keep what passed, without duplicates, up to the cap; count the rest by reason in selection.json.",
        "sharpen select run.yaml work/tries --selection.cap 4",
    )  # fmt: skip
    train = on_files(
        "train",
        _train,
        "train on what was selected",
        "Train the model on what WORK/selection.json keeps.",
        "sharpen train run.yaml work/tries --out work/model",
    )
    train.add_argument("--out", type=Path, required=True, metavar="MODEL", help="the new model's folder")
    evaluate = on_files(
        "eval", _eval, "measure a model on a split", "Print pass@k with 95 % intervals over families; the tries stay in WORK.\n"
        "With --agent best-of-n (or ensemble) every try is chosen from several, and it says by what.",
        "sharpen eval run.yaml work/after --split dev --model work/model",
    )  # fmt: skip
    evaluate.add_argument("--split", default="dev", metavar="NAME", help="demo, train, dev or test (default: dev)")

    audited = on_files(
        "audit", _audit, "find out what a verifier is worth",
        "Try the tasks' verifier on gold solutions, empty, broken-off and cheating answers, ask everything twice, and hold it against labels\n"
        "(--labels FILE, from sharpen label) and a second verifier. What is found lies in WORK/audit.json; of a run its page shows it.\n"
        "WORK may be an empty folder, for an audit before there are tries.",
        "sharpen audit run.yaml runs/mine",
    )  # fmt: skip
    audited.add_argument("--second", metavar="NAME", help="another verifier to hold it against: file.py:function, or environment")
    audited.add_argument(
        "--limit", type=int, default=20, metavar="N", help="how many tasks, and tries, it is asked about twice (default: 20)"
    )

    label = verb(
        "label", _label, "say of trajectories whether they are good",
        "Show tries one at a time, task and reference beside each, and append what you say of them to a labels file, which outlives the run.\n"
        "Keys: g good, b bad, u unsure, s skip, z undo, q quit; over a pipe, one a line. What the verifier said is shown after the answer. It asks\n"
        "until the purity of what is kept is settled; given again it goes on where you stopped, and another labeller's agreement is reported.",
        "sharpen label runs/mine --labeller ann", settings=False,
    )  # fmt: skip
    label.add_argument("folder", type=Path, metavar="FOLDER", help="a run, or a work folder with tries")
    label.add_argument(
        "--labels", type=Path, metavar="FILE", help="a file, or a folder of them (default: as the settings say, labels/NAME.jsonl)"
    )
    label.add_argument("--labeller", metavar="NAME", help="who says so (default: your user name)")
    label.add_argument("--settings", type=Path, metavar="SETTINGS", help="of a work folder: the settings, to show references")
    label.add_argument("--rung", metavar="NAME", help="of a run: which rung's tries (default: the last that sampled)")
    label.add_argument("--among", choices=["kept", "passed", "failed", "all"], default="kept", help="which tries (default: kept)")
    label.add_argument(
        "--by", choices=["random", "disagreement"], default="random",
        help="how they are drawn: at random, or first where --second says otherwise (without it: where scores are low), with weights that undo it",
    )  # fmt: skip
    label.add_argument("--second", metavar="NAME", help="another verifier, for --by disagreement: file.py:function, or environment")
    label.add_argument("--limit", type=int, metavar="N", help="ask for N labels, whatever is settled")

    imported = verb(
        "import", _import, "bring trajectories from files", "Bring chat files and agent logs into WORK: TRL, OpenAI, ShareGPT, ATIF, Inspect, verifiers.",
        "sharpen import traces.jsonl work/traces --tasks run.yaml", settings=False,
    )  # fmt: skip
    imported.add_argument("source", type=Path, metavar="FILE", help="a file, or a folder of files")
    imported.add_argument("work", type=Path, metavar="WORK", help="the folder to bring them into")
    imported.add_argument("--format", metavar="NAME", help="the file's format (default: found out)")
    imported.add_argument(
        "--tasks", type=Path, metavar="SETTINGS", help="put each under the task of these settings that asks the same question"
    )
    imported.add_argument(
        "--terms", type=Path, metavar="FILE", help="YAML: who made them, and on which terms they may train (docs/terms.md)"
    )
    imported.add_argument("--max-bytes", type=int, metavar="N", help="the longest line or document that is read (default: 64 MiB)")
    imported.add_argument("--lenient", action="store_true", help="count what cannot be read by reason, instead of stopping at the first")
    exported = verb(
        "export", _export, "write a model, or trajectories for other libraries",
        "Write what WORK keeps to a file that other libraries train on or show; or a model with its card to a plain folder.",
        "sharpen export runs/quickstart my-model --format model", settings=False,
    )  # fmt: skip
    exported.add_argument(
        "work",
        type=Path,
        metavar="WORK",
        help="a work folder, or a stage of a run with trajectories; for a model a run (what it ships), one of its rungs, or a model folder",
    )
    exported.add_argument("path", type=Path, metavar="OUT", help="the file to write, for a model a new folder")
    exported.add_argument(
        "--format",
        required=True,
        metavar="NAME",
        help="trl, openai, sharegpt, atif or hub; model (merged weights) or adapter (the LoRA, for PEFT)",
    )
    exported.add_argument("--license", default="", metavar="ID", help="of a model: the licence that its card names, such as apache-2.0")

    terms = verb(
        "terms", _terms, "what licences say of training on outputs",
        "List the licences and services in the table, or what it says of one. No legal advice: read the source before you settle anything.",
        "sharpen terms llama-3.1", settings=False,
    )  # fmt: skip
    terms.add_argument("licence", nargs="?", metavar="LICENCE", help="an id or name, such as Apache-2.0")

    handed = verb(
        "handoff", _handoff, "hand a run over to RL",
        "Write RUN/rl: the model to start from, chosen by pass@k, the tasks split into solved, mixed and never solved, the verifier with what is\n"
        "known of it, a GRPO script for TRL that runs as it is, a taskset for verifiers, and whether RL is justified, with numbers. sharpen run does it too.",
        "sharpen handoff runs/quickstart && python runs/quickstart/rl/train_grpo.py --steps 20", settings=False,
    )  # fmt: skip
    handed.add_argument("run", type=Path, metavar="RUN", help="a run folder, such as runs/quickstart")
    handed.add_argument(
        "--measure",
        action="store_true",
        help="split the tasks by tries of the model that is handed over: where it has made none, sampling.n of every train task are made first, under the "
        "run's caps",
    )

    report = verb(
        "report",
        _report,
        "write a run's page, report.html",
        "Write one self-contained HTML page for a run.",
        "sharpen report runs/quickstart",
        settings=False,
    )
    report.add_argument("run", type=Path, metavar="RUN", help="a run folder, such as runs/quickstart")
    show = verb(
        "show", _show, "print trajectories, trained tokens coloured", "Print trajectories of a run or a work folder, what is trained on coloured.",
        "sharpen show runs/quickstart --rung rejection --failed --limit 3", settings=False,
    )  # fmt: skip
    show.add_argument("run", type=Path, metavar="RUN", help="a run folder, such as runs/quickstart, or a work folder")
    show.add_argument("--rung", metavar="NAME", help="only this rung, for example 002-sft (a part of its name is enough)")
    show.add_argument("--task", metavar="KEY", help="only tasks whose key holds this")
    show.add_argument("--failed", action="store_true", help="only what did not pass")
    show.add_argument("--why-kept", action="store_true", help="one line each: task, try, verdict, and why it trains or does not")
    show.add_argument("--limit", type=int, metavar="N", help="how many to print (default: 5, with --why-kept all)")
    return parser


class _Listed(Exception):
    """What was asked for is printed: nothing more is to be done."""


class _Keys(argparse.Action):
    """``--keys`` and ``--keys SECTION``, on every verb that takes settings. Nothing else that the verb needs has to be given beside it."""

    def __call__(self, parser: object, namespace: object, values: object, option_string: str | None = None) -> None:
        from sharpen.settings import known_keys

        section, known = values, known_keys()
        if section is not None:
            sections = {".".join(parts[:depth]) for parts in (key.split(".") for key in known) for depth in range(1, len(parts) + 1)}
            if section not in sections:
                top = {key.split(".")[0] for key in known}
                raise SettingsError(f"--keys: no settings are called {section!r}{nearest(str(section), top)}")
            known = {key: default for key, default in known.items() if f"{key}.".startswith(f"{section}.")}
        width = max(map(len, known))
        for number, (_, keys) in enumerate(itertools.groupby(known, key=lambda key: key.split(".")[0] if "." in key else "")):
            if number:
                print()
            for key in keys:
                print(f"--{key:<{width}}  {known[key]}")
        raise _Listed


def _overrides(rest: Sequence[str]) -> dict[str, str]:
    """``--sampling.n 16`` or ``--sampling.n=16`` as a mapping."""
    found: dict[str, str] = {}
    words = list(rest)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            raise SettingsError(f"unexpected argument {word!r}; settings are given as --key value")
        key, equals, value = word[2:].partition("=")
        if not equals:
            if not words or words[0].startswith("--"):
                raise SettingsError(f"--{key} needs a value")
            value = words.pop(0)
        found[key] = value
    return found


def _settings(arguments: argparse.Namespace) -> RunSettings:
    from sharpen.settings import load_settings

    signal.signal(signal.SIGTERM, _stop_now)
    return load_settings(arguments.settings, arguments.overrides)


def _stop_now(*_: object) -> None:
    raise KeyboardInterrupt


@contextmanager
def _watched() -> Iterator[Watcher]:
    """The terminal and Ctrl-C, for a verb while it works."""
    from sharpen import loop
    from sharpen.report.live import Live
    from sharpen.verbs import Watcher

    with Live() as live, loop.interruptible(live.say) as asked:
        yield Watcher(live, live.say, asked)


def _init(arguments: argparse.Namespace) -> None:
    from sharpen.projects import write

    for path in write(arguments.kind, arguments.folder):
        print(path)
    print(f"now: cd {arguments.folder} && sharpen run run.yaml")


def _run(arguments: argparse.Namespace) -> None:
    if arguments.settings is None:
        raise SettingsError("name a settings file, for example: sharpen run examples/textworld/quickstart.yaml")
    if arguments.plan:
        _plan(arguments)
        return
    if arguments.measure is not None:
        raise SettingsError("--measure goes with --plan")
    from sharpen.run import climb

    settings = _settings(arguments)
    planned = _planned(settings, arguments.runs)
    climb(settings, arguments.runs, arguments.fork, trust=arguments.trust_unaudited_verifier, planned=planned)


def _planned(settings: RunSettings, runs: Path) -> Planned:
    """What ``--plan`` would say of the whole run, without asking anybody."""
    from sharpen.plan import plan

    return lambda tasks, model: plan(settings, runs, 0, (tasks, model)).whole


def _distil(arguments: argparse.Namespace) -> None:
    from sharpen.run import climb, distilling, refusal

    signal.signal(signal.SIGTERM, _stop_now)
    settings, runs = distilling(arguments.source, arguments.teacher, arguments.overrides, arguments.runs)
    if arguments.plan:
        _show_plan(settings, runs, arguments.measure)
    elif arguments.measure is not None:
        raise SettingsError("--measure goes with --plan")
    else:
        climb(settings, runs, trust=arguments.trust_unaudited_verifier, planned=_planned(settings, runs))
        if why := refusal(runs / settings.name):
            raise Refused(f"nothing was copied: {why}")


def _plan(arguments: argparse.Namespace) -> None:
    if arguments.fork is not None:
        raise SettingsError("--plan and --fork do not go together: fork first, with any cap that stops it at once, then plan")
    _show_plan(_settings(arguments), arguments.runs, arguments.measure)


def _show_plan(settings: RunSettings, runs: Path, measure: int | None) -> None:
    if measure is not None and measure < 0:
        raise SettingsError(f"--measure is {measure}, but must be 0 or more")
    from rich.console import Console

    from sharpen.plan import plan, show

    Console(width=None if sys.stdout.isatty() else 140).print(show(plan(settings, runs, measure)), soft_wrap=False)


def _advise(arguments: argparse.Namespace) -> None:
    from rich.console import Console

    from sharpen.advice import advise, show

    Console(width=None if sys.stdout.isatty() else 140).print(show(advise(_settings(arguments), arguments.runs)), soft_wrap=True)


def _sample(arguments: argparse.Namespace) -> None:
    from sharpen import verbs

    with _watched() as watch:
        pool = verbs.sample(_settings(arguments), arguments.work, arguments.split, watch=watch)
    print(f"{len(pool.wanted)} tries of {len(pool.tasks)} tasks, {pool.sampled_tokens} tokens sampled: {arguments.work}")
    if pool.waves is not None:
        first = pool.first_wave
        print(pool.waves.says)
        print(f"tasks solved: {first.solved} in the first wave, {pool.solved} in all")


def _verify(arguments: argparse.Namespace) -> None:
    from sharpen import verbs

    with _watched() as watch:
        counts = verbs.verify(_settings(arguments), arguments.work, watch=watch)
    print(f"{counts['pass']} pass, {counts['fail']} fail, {counts['error']} error: {arguments.work}")


def _select(arguments: argparse.Namespace) -> None:
    from sharpen import verbs

    selection = verbs.select_(_settings(arguments), arguments.work)
    for reason, count in sorted(selection.counts.items(), key=lambda item: -item[1]):
        print(f"{count:>7}  {reason}")
    for banner in selection.banners:
        print(banner)


def _train(arguments: argparse.Namespace) -> None:
    from sharpen import verbs

    with _watched() as watch:
        model, report = verbs.train(_settings(arguments), arguments.work, arguments.out, watch=watch)
    print(f"{report.steps} steps over {report.trained_tokens} trained tokens of {report.tokens}, in {report.precision}: {model.path}")
    for banner in model.lineage.banners:
        print(banner)


def _eval(arguments: argparse.Namespace) -> None:
    from sharpen import verbs

    with _watched() as watch:
        evaluation = verbs.eval_(_settings(arguments), arguments.work, arguments.split, watch=watch)
    for k, at in evaluation.pass_at.items():
        print(f"pass@{k} on {evaluation.split}: {at.value:.1%} [{at.low:.1%}, {at.high:.1%}], 95 % over {at.n} families ({at.method})")
    if evaluation.played:
        print(f"{evaluation.played}; {evaluation.cost.sampled_tokens} tokens sampled")
    if evaluation.errors:
        from sharpen.report.page import error_range

        print(
            f"{evaluation.errors} tries ended in an error and are in no rate; pass@1 is {error_range(evaluation)} with them as fails, then as passes"
        )


def _label(arguments: argparse.Namespace) -> None:
    if arguments.limit is not None and arguments.limit < 1:
        raise SettingsError(f"--limit is {arguments.limit}, but must be at least 1")
    if arguments.labeller is not None and not arguments.labeller.strip():
        raise SettingsError("--labeller is empty; name who labels")
    if arguments.second is not None and arguments.by != "disagreement":
        raise SettingsError("--second is for --by disagreement; add it, or leave out --second")
    from sharpen.labelling import label

    label(
        arguments.folder, settings=arguments.settings, labels=arguments.labels, labeller=arguments.labeller, rung=arguments.rung,
        among=arguments.among, by=arguments.by, second=arguments.second, limit=arguments.limit,
    )  # fmt: skip


def _audit(arguments: argparse.Namespace) -> None:
    if arguments.limit < 1:
        raise SettingsError(f"--limit is {arguments.limit}, but must be at least 1")
    from rich.console import Console

    from sharpen import verbs
    from sharpen.report.terminal import audit_text

    with _watched() as watch:
        found = verbs.audit_(_settings(arguments), arguments.work, second=arguments.second, limit=arguments.limit, watch=watch)
    Console(width=None if sys.stdout.isatty() else 140).print(audit_text(found), soft_wrap=True)


def _import(arguments: argparse.Namespace) -> None:
    from sharpen import verbs
    from sharpen.settings import load_settings, load_terms

    settings = load_settings(arguments.tasks, {}) if arguments.tasks is not None else None
    terms = load_terms(arguments.terms) if arguments.terms is not None else ()
    if arguments.max_bytes is not None and arguments.max_bytes < 1:
        raise SettingsError(f"--max-bytes is {arguments.max_bytes}, but must be at least 1")
    longest = {} if arguments.max_bytes is None else {"max_bytes": arguments.max_bytes}
    done = verbs.import_(
        arguments.source, arguments.work, format=arguments.format, strict=not arguments.lenient, settings=settings, terms=terms, **longest
    )
    print(f"{done.kept} of {done.pieces} trajectories read as {done.format}: {arguments.work}")
    for reason, count in done.left_out.items():
        print(f"{count:>7}  left out: {reason}, first {done.examples[reason]}")
    for what, count in done.lost.items():
        print(f"{count:>7}  without {what}")


def _export(arguments: argparse.Namespace) -> None:
    from sharpen import verbs

    if arguments.format in verbs.MODEL_FORMATS:
        model = verbs.export_weights(arguments.work, arguments.path, arguments.format, arguments.license)
        print(f"{model.name}, weights {model.fingerprint[:16]}: {arguments.path}")
        for banner in model.lineage.banners:
            print(banner)
        for terms in model.lineage.terms:
            for condition in terms.conditions:
                print(f"{terms.teacher}, {terms.licence}: {condition}")
        return
    if arguments.license:
        raise SettingsError("--license is for --format model and adapter; the terms of trajectories go into a file beside them")
    done = verbs.export(arguments.work, arguments.path, arguments.format)
    print(f"{done.written} trajectories: {done.path}" + (f"; {done.format} has no place for {', '.join(done.loses)}" if done.loses else ""))
    for banner in done.banners:
        print(f"{banner} ({done.warning})")
    if done.terms:
        print(f"their terms: {done.terms}")


def _terms(arguments: argparse.Namespace) -> None:
    from sharpen.terms import find, licences, unknown

    if arguments.licence is None:
        for one in licences():
            print(f"{one.id:<24} {one.covers:<8} {one.training:<10} {one.name}")
        print("no legal advice; sharpen terms LICENCE says more")
        return
    if (found := find(arguments.licence)) is None:
        raise SettingsError(unknown(arguments.licence))
    how = {"text": "its text was read", "clause": "that clause was read", "no": "it was not read"}[found.read]
    print(f"{found.id}: {found.name}\ntraining on {'the text' if found.covers == 'data' else 'outputs'}: {found.training}\n{found.says}")
    for condition in found.conditions:
        print(f"- {condition}")
    print(f"{found.source}; {how} on {found.checked}; no legal advice")


def _handoff(arguments: argparse.Namespace) -> None:
    from sharpen.handoff.folder import FOLDER, hand_over

    handoff = hand_over(arguments.run, measure=arguments.measure)
    print(handoff.justification.paragraph)
    for limit in handoff.limits:
        print(f"note:  {limit}")
    print(f"model: {handoff.start.why}")
    print(f"tasks: {', '.join(f'{count} {kind}' for kind, count in handoff.tasks.items())}")
    print(f"rl:    {arguments.run / FOLDER}")


def _report(arguments: argparse.Namespace) -> None:
    from sharpen.report.read import write_page

    print(write_page(arguments.run))


def _show(arguments: argparse.Namespace) -> None:
    limit = arguments.limit if arguments.limit is not None else sys.maxsize if arguments.why_kept else 5
    if limit < 1:
        raise SettingsError(f"--limit is {arguments.limit}, but must be at least 1")
    from rich.console import Console

    from sharpen.report.page import SampleView
    from sharpen.report.read import read_samples
    from sharpen.report.terminal import trajectory_text, why_line

    def wanted(sample: SampleView) -> bool:
        failed = sample.verdict is not None and not sample.verdict
        return (failed or not arguments.failed) and (arguments.task is None or arguments.task in sample.trajectory.key.task)

    console = Console()
    for sample in read_samples(arguments.run, rung=arguments.rung, wanted=wanted, limit=limit):
        console.print(why_line(sample) if arguments.why_kept else trajectory_text(sample), soft_wrap=arguments.why_kept)

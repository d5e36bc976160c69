"""The command line: ``run``, ``report``, ``show``. Each verb is a thin call into the library."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from sharpen.errors import SettingsError, SharpenError

EXIT_ERROR, EXIT_INTERRUPT = 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Returns 0, or 2 with one line on stderr, or 130 when interrupted."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    try:
        if arguments.verb == "run":
            _run(arguments, rest)
        elif rest:
            raise SettingsError(f"unknown argument {rest[0]!r}; see sharpen {arguments.verb} --help")
        elif arguments.verb == "report":
            _report(arguments)
        else:
            _show(arguments)
    except SharpenError as error:
        print(f"sharpen: {error}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sharpen",
        description="Get out of supervision all that supervision can give, measured and proved, before anyone reaches for RL.",
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    run = verbs.add_parser(
        "run",
        help="climb the ladder: measure, train, keep only what held-out tasks prove",
        description="Climb the ladder that SETTINGS describes. Given again after a kill, it goes on where it stopped.",
        epilog="Every setting is also a flag: --sampling.n 16, --training.method full. `sharpen run --keys` lists them with their defaults.",
    )
    run.add_argument("settings", type=Path, nargs="?", metavar="SETTINGS", help="a YAML file, such as examples/textworld/quickstart.yaml")
    run.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="where run folders lie (default: runs)")
    run.add_argument("--fork", metavar="NEW", help="copy the run under a new name and go on with the settings given now")
    run.add_argument("--keys", action="store_true", help="list every setting with its default, and stop")
    report = verbs.add_parser("report", help="write a run's page, report.html", description="Write one self-contained HTML page for a run.")
    report.add_argument("run", type=Path, metavar="RUN", help="a run folder, such as runs/quickstart")
    show = verbs.add_parser(
        "show", help="print trajectories, trained tokens coloured", description="Print trajectories of a run, what is trained on coloured."
    )
    show.add_argument("run", type=Path, metavar="RUN", help="a run folder, such as runs/quickstart")
    show.add_argument("--rung", metavar="NAME", help="only this rung, for example 002-sft (a part of its name is enough)")
    show.add_argument("--task", metavar="KEY", help="only tasks whose key holds this")
    show.add_argument("--limit", type=int, default=5, metavar="N", help="how many to print (default: 5)")
    return parser


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


def _run(arguments: argparse.Namespace, rest: Sequence[str]) -> None:
    from sharpen.settings import known_keys, load_settings

    if arguments.keys:
        width = max(map(len, known_keys()))
        for key, default in known_keys().items():
            print(f"--{key:<{width}}  {default}")
        return
    if arguments.settings is None:
        raise SettingsError("name a settings file, for example: sharpen run examples/textworld/quickstart.yaml")
    from sharpen.run import climb

    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    climb(load_settings(arguments.settings, _overrides(rest)), arguments.runs, arguments.fork)


def _report(arguments: argparse.Namespace) -> None:
    from sharpen.report.read import write_page

    print(write_page(arguments.run))


def _show(arguments: argparse.Namespace) -> None:
    if arguments.limit < 1:
        raise SettingsError(f"--limit is {arguments.limit}, but must be at least 1")
    from rich.console import Console

    from sharpen.report.read import read_samples
    from sharpen.report.terminal import trajectory_text

    samples = read_samples(arguments.run, rung=arguments.rung, task=arguments.task, limit=arguments.limit)
    console = Console()
    for sample in samples:
        console.print(trajectory_text(sample))

"""Writes docs/cli.md from the command line's own help: python scripts/cli_docs.py [--check]. A test checks it on Python 3.11, whose wording it has."""

import os
import sys
from pathlib import Path

os.environ["COLUMNS"] = "120"

from sharpen.cli import make_parser

PAGE = Path(__file__).parent.parent / "docs" / "cli.md"


def page() -> str:
    parser = make_parser()
    verbs = parser._subparsers._group_actions[0].choices
    parts = ["# The command line\n\nWritten by `python scripts/cli_docs.py` from `sharpen VERB --help`.\n"]
    parts += [f"## sharpen {name}\n\n```text\n{verb.format_help().strip()}\n```\n" for name, verb in verbs.items()]
    return "\n".join(parts)


if sys.argv[1:] == ["--check"]:
    sys.exit(0 if PAGE.read_text() == page() else "docs/cli.md is not what the command line says; run python scripts/cli_docs.py")
PAGE.write_text(page())

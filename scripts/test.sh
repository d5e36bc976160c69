#!/usr/bin/env bash
# Installs everything, then lint, types, room order and tests. --fast leaves out the tests that run the real model, engines and trainer.
. "$(dirname "$0")/setup.sh" all,dev
ruff check .
mypy
lint-imports
[ "${1:-}" != --fast ] || { shift; set -- -m "not real" "$@"; }
exec pytest "$@"

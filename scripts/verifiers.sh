#!/usr/bin/env bash
# The package verifiers in an environment of its own, .venv-verifiers, in which a test plays the exported taskset (done again only when this file changed).
# Of its own: verifiers holds the package mcp to an older version than sharpen's extra of that name.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=.venv-verifiers
stamp="$venv/sharpen-$(sha256sum scripts/verifiers.sh | cut -c1-12)"
[ ! -e "$stamp" ] || exit 0
python3 -m venv "$venv" || { echo "python3 -m venv failed; on Debian: apt-get install python3-venv" >&2; exit 2; }
# uv: verifiers installs the program that plays a turn with it.
"$venv/bin/pip" install --quiet --editable . verifiers==0.4.0 uv
touch "$stamp"

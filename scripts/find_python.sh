#!/usr/bin/env bash
# Print the path of a Python 3.12 or 3.13 that can make a virtual environment. A candidate counts only once it has run,
# for shims on the PATH may lead nowhere. As a last resort uv fetches one (not with NO_FETCH=1), into .uv/ if uv is ours.
set -euo pipefail
shopt -s nullglob

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
wanted='>=3.12,<3.14'

# Print where the interpreter $1 really is, or fail.
suitable() {
  "$1" -c 'import sys, ensurepip, venv
if not (3, 12) <= sys.version_info < (3, 14): sys.exit(1)
print(sys.executable)' 2>/dev/null
}

found() {
  local real
  real=$(suitable "$1") && [ -n "$real" ] && echo "$real" && exit 0
  return 0
}

if [ -n "${PYTHON:-}" ]; then
  found "$PYTHON"
  echo "PYTHON=$PYTHON is not a Python 3.12 or 3.13 that can make a virtual environment; looking elsewhere" >&2
fi

for name in python3.12 python3.13 python3 python; do
  while read -r path; do found "$path"; done < <(type -aP "$name")
done
for path in "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.1[23].*/bin/python3; do found "$path"; done

# uv knows more places, and can fetch a Python.
for uv in "$(type -P uv || true)" "$HOME/.local/bin/uv" "$HOME/.cargo/bin/uv"; do
  [ -x "$uv" ] || continue
  if path=$("$uv" python find --no-project "$wanted" 2>/dev/null); then found "$path"; fi
  if [ -z "${NO_FETCH:-}" ] && "$uv" python install 3.12 >&2; then found "$("$uv" python find --no-project 3.12)"; fi
done

# No uv either: any Python with pip can bring it.
while [ -z "${NO_FETCH:-}" ] && read -r path; do
  "$path" -m pip --version >/dev/null 2>&1 || continue
  echo "no Python 3.12 or 3.13 found; fetching one with uv" >&2
  export UV_PYTHON_INSTALL_DIR="$root/.uv/python"
  uv="$root/.uv/lib/bin/uv"
  if "$path" -m pip install --quiet --target "$root/.uv/lib" --upgrade uv >&2 && "$uv" python install 3.12 >&2; then
    found "$("$uv" python find --no-project --managed-python 3.12)"
  fi
  break
done < <(type -aP python3)

if type -P apt-cache >/dev/null && apt-cache show python3.13-venv >/dev/null 2>&1; then
  fix='sudo apt-get install python3.13 python3.13-venv'
elif type -P apt-cache >/dev/null && apt-cache show python3.12-venv >/dev/null 2>&1; then
  fix='sudo apt-get install python3.12 python3.12-venv'
else
  fix='install uv (https://docs.astral.sh/uv) or pyenv, and with it Python 3.12'
fi
echo "expected Python 3.12 or 3.13 with its venv module, found none; fix: $fix" >&2
exit 1

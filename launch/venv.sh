# Sourced by the scripts of this folder: makes or reuses the virtual environment and installs mindglm into it.
# Leaves: ROOT (repository, also the working directory), PYTHON (the environment's), its bin folder first on PATH.
# Reads:  MINDGLM_VENV (default ROOT/.venv), MINDGLM_EXTRAS (default test,quickstart).

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$ROOT"
MINDGLM_VENV="${MINDGLM_VENV:-$ROOT/.venv}"
MINDGLM_EXTRAS="${MINDGLM_EXTRAS:-test,quickstart}"
PYTHON="$MINDGLM_VENV/bin/python"

# MindSpore 2.9 has wheels for these versions; ensurepip is what a system Python without its venv package lacks.
_venv_python_fits() {
    "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] not in ((3, 10), (3, 11)))' >/dev/null 2>&1
}

_venv_find_python() {
    local candidate path
    for candidate in python3.11 python3.10 python3 python /usr/bin/python3.11 /usr/bin/python3.10; do
        path="$(command -v "$candidate")" || continue
        # The environment itself, when it is activated, is no base: --clear would delete it under its own feet.
        if [ "${path%/*}" != "$MINDGLM_VENV/bin" ] && _venv_python_fits "$path"; then
            echo "$path"
            return
        fi
    done
    echo "mindglm: no fitting Python: given PATH=$PATH, expected Python 3.10 or 3.11 with its venv module." >&2
    echo "         Install one (Debian, Ubuntu: apt-get install python3.11 python3.11-venv) and call again." >&2
    return 2
}

# An environment whose making was interrupted has a Python without pip.
_venv_usable() {
    [ -x "$PYTHON" ] && _venv_python_fits "$PYTHON" && "$PYTHON" -c 'import pip' >/dev/null 2>&1
}

# What the environment must match: another Python, other extras, other requirements or another place make it stale.
_venv_wanted() {
    cat "$ROOT/setup.cfg" "$ROOT/pyproject.toml"
    echo "extras $MINDGLM_EXTRAS, checkout $ROOT"
}

_venv_make() {
    local base stamp="$MINDGLM_VENV/mindglm-installed"
    if _venv_usable && [ "$(_venv_wanted)" = "$(cat "$stamp" 2>/dev/null)" ]; then
        echo "== environment: $MINDGLM_VENV (up to date)"
        return
    fi
    if ! _venv_usable; then
        base="$(_venv_find_python)" || return
        echo "== environment: making $MINDGLM_VENV with $base ($("$base" --version))"
        "$base" -m venv --clear "$MINDGLM_VENV" || return
    fi
    echo "== environment: installing mindglm[$MINDGLM_EXTRAS]; once: some minutes, 3.5 GB on disk"
    rm -f "$stamp"
    if ! "$PYTHON" -m pip install --quiet --disable-pip-version-check --editable "$ROOT[$MINDGLM_EXTRAS]"; then
        echo "mindglm: the installation failed (see above); it needs a package index. Call again to go on." >&2
        return 1
    fi
    _venv_wanted > "$stamp"
}

_venv_make || exit
export PATH="$MINDGLM_VENV/bin:$PATH"
export PYTHON ROOT

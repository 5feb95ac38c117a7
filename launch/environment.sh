# Sourced by train_node.sh, train_cluster.sh, msrun_launcher.sh: finds what is installed, and installs nothing (on a
# cluster all nodes run this at once, often on one shared disk).
# Leaves: ROOT (repository), PYTHON, its folder first on PATH, ROOT on PYTHONPATH, and on Ascend hosts the variables of
#         launch/env_atlas800t_a2.sh. The working directory stays the caller's.
# Reads:  MINDGLM_VENV      folder of the environment; default: ROOT/.venv if it is there, else the Python on PATH
#         MINDGLM_ENV_FILE  what to source; default env_atlas800t_a2.sh where there are Ascend devices; "none": nothing

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
_folder=""
if [ -n "${MINDGLM_VENV:-}" ]; then
    _folder="$MINDGLM_VENV/bin"
elif [ -x "$ROOT/.venv/bin/msrun" ]; then
    _folder="$ROOT/.venv/bin"
elif command -v msrun >/dev/null; then
    _folder="$(dirname "$(command -v msrun)")"
fi
if [ -z "$_folder" ] || [ ! -x "$_folder/python" ]; then
    echo "mindglm: no Python with MindSpore: given MINDGLM_VENV=${MINDGLM_VENV:-} and PATH=$PATH, expected an" >&2
    echo "         environment that has msrun. Activate it, set MINDGLM_VENV to its folder, or make one by" >&2
    echo "         bash launch/test.sh --version" >&2
    exit 2
fi
export PATH="$_folder:$PATH" PYTHON="$_folder/python" MINDGLM_VENV="${_folder%/bin}" ROOT
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
unset _folder

if [ -z "${MINDGLM_ENV_FILE:-}" ]; then
    MINDGLM_ENV_FILE=none
    if [ -e /dev/davinci_manager ]; then MINDGLM_ENV_FILE="$ROOT/launch/env_atlas800t_a2.sh"; fi
fi
if [ "$MINDGLM_ENV_FILE" != none ]; then
    if [ ! -f "$MINDGLM_ENV_FILE" ]; then
        echo "mindglm: MINDGLM_ENV_FILE is $MINDGLM_ENV_FILE, but there is no such file" >&2
        exit 2
    fi
    source "$MINDGLM_ENV_FILE"
fi

#!/usr/bin/env bash
# Runs the tests: bash launch/test.sh [pytest arguments]
#   bash launch/test.sh                      all but the slow ones
#   bash launch/test.sh tests/recipe -x      one room, until the first failure
#   bash launch/test.sh -m slow              the slow ones
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"

echo "== tests: python -m pytest $*"
exec "$PYTHON" -m pytest "$@"

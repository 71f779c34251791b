#!/usr/bin/env bash
# Every GPU figure within 7 minutes on one H100, on a machine with Python, torch and numpy alone.
#   benchmarks/gpu.sh pack              before: download what else is needed into .state/bench/wheels
#   benchmarks/gpu.sh --out FOLDER      there: measure all parts; status 1 if a part failed
#   benchmarks/gpu.sh --device cpu --tiny --out FOLDER   a trial of all parts without a GPU
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-$(command -v python3)}"
if [ "${1:-}" = pack ]; then
  exec "$python" benchmarks/packages.py "${@:2}"
fi
exec "$python" -u benchmarks/gpu.py "$@"

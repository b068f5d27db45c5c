#!/usr/bin/env bash
# Installs rayinf with exactly the versions of constraints.txt, and prints what it has installed. The Dockerfile and the
# setup commands of ray-up/*.yaml run this script, so that every machine gets the same versions.
#
#   deploy/install.sh                      into the Python that `python3` names
#   VENV=~/rayinf-env deploy/install.sh    into a virtual environment, which it makes if it is not there
#   CUDA=1 deploy/install.sh               PyTorch with CUDA, for machines with NVIDIA GPUs
#
# Environment variables:
#   PYTHON           the Python to install into, or to make the virtual environment with. Default: python3
#   VENV             the folder of the virtual environment. Default: none
#   CUDA             0: PyTorch for CPUs, from PyTorch's own package index. 1: with CUDA, from PyPI. Default: 0
#   TORCH_INDEX_URL  where PyTorch comes from. Empty: where pip finds all other packages. Default: set by CUDA
set -euo pipefail
source=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}

case ${CUDA:-0} in
    0) index=${TORCH_INDEX_URL-https://download.pytorch.org/whl/cpu} ;;
    1) index=${TORCH_INDEX_URL-} ;;
    *)
        echo "CUDA=$CUDA: must be 0 (CPU) or 1 (CUDA)" >&2
        exit 2
        ;;
esac

if [ -n "${VENV:-}" ]; then
    [ -x "$VENV/bin/python" ] || "$python" -m venv "$VENV"
    python=$VENV/bin/python
fi
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "$python is older than Python 3.11: set PYTHON to a newer one" >&2
    exit 2
fi

pip() { "$python" -m pip "$@" --quiet --no-cache-dir --disable-pip-version-check; }

# Only the file of PyTorch itself comes from PyTorch's index; what it depends on is pinned in constraints.txt.
if [ -n "$index" ]; then
    pip install --no-deps --index-url "$index" "$(grep '^torch==' "$source/constraints.txt")"
fi
pip install --constraint "$source/constraints.txt" "$source"
"$python" - <<'PY'
from importlib.metadata import version

import ray
import torch

print(f"rayinf {version('rayinf')}, ray {ray.__version__}, torch {torch.__version__} (CUDA {torch.version.cuda})")
PY

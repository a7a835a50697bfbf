#!/bin/sh
# Installs the peers that bench/peers/compare.py measures beside heed: PyTorch Geometric and torch's own attention in
# .venv, DGL in .venv-dgl, since it wants an older torch. Some 11 GB: torch from PyPI does not load without its CUDA
# libraries, although nothing here uses a GPU.
#
# DGL's latest, 2.2.1, is on PyPI for Windows alone; 2.1.0 is the newest for Linux. It loads libraries made for one
# version of torch each, 2.2.1 the newest among them, and that torch wants NumPy 1. It also imports pandas, pydantic and
# PyYAML, which it does not ask pip for, and torchdata as it was before 0.8.
#
# PYTHON=python3.11 bench/peers/setup.sh chooses the interpreter: 3.11 or 3.12, for which there are wheels of all.
set -e
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}

"$python" -m venv .venv
.venv/bin/pip install --quiet torch==2.15.0 torch-geometric==2.8.1 numpy==2.4.6 setuptools==84.2.1

"$python" -m venv .venv-dgl
.venv-dgl/bin/pip install --quiet dgl==2.1.0 torch==2.2.1 torchdata==0.7.1 numpy==1.26.4 scipy==1.17.1 pandas==2.2.3 \
  pydantic==2.14.3 PyYAML==6.0.3

cd bench/peers
../../.venv/bin/python -W ignore -c 'import peer_pyg; print(peer_pyg.VERSIONS)'
../../.venv-dgl/bin/python -W ignore -c 'import peer_dgl; print(peer_dgl.VERSIONS)'

#!/bin/sh
# Installs the peers that bench/peers/compare.py measures beside heed into an environment of their own.
set -e
cd "$(dirname "$0")/../.."
python3 -m venv .venv
.venv/bin/pip install --quiet --upgrade pip
.venv/bin/pip install --quiet torch==2.15.0 torch-geometric==2.8.1 numpy==2.4.6
.venv/bin/python -c 'import torch, torch_geometric; print("torch", torch.__version__, "PyG", torch_geometric.__version__)'

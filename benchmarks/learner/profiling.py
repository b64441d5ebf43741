"""What a step of ours spends its time on."""

from collections import Counter
from collections.abc import Sequence
from functools import wraps
from typing import Any

from torch.profiler import ProfilerActivity, profile, record_function

from iris_ray.contracts import SelfPlayPair
from iris_ray.learner.self_play_learner import SelfPlayLearner

STEP, UPDATE = "benchmark: step", "benchmark: update"
MATRICES, ATTENTION, NORMS, HEAD, OPTIMIZER, OTHER = GROUPS = (
    "matrix products of the layers",
    "attention",
    "elementwise and norms",
    "head and log-softmax",
    "optimiser and DeepSpeed",
    "other (Python, torch's own work between operations)",
)
PRODUCTS = ("aten::mm", "aten::addmm", "mkldnn::_linear_pointwise", "aten::mkldnn_linear")
# The first group with a part of the operation's name takes it.
PARTS = {
    HEAD: ("label_logprobs", "index_add"),
    ATTENTION: ("row_attention", "bmm", "softmax", "scaled_dot_product", "index_select"),
    NORMS: ("Call CompiledFxGraph", "aten::"),  # kernels that torch.compile wrote have no name of their own
}


def profile_steps(
    learner: SelfPlayLearner, batches: Sequence[Sequence[SelfPlayPair]], alpha: float, vocab: int
) -> dict[str, float]:
    """Seconds of a step by group, the mean over `batches`. References should be known.

    Products with a side of `vocab` are the head's, so no other size of the model should equal it. Gradients'
    accumulation counts as elementwise. The profiler itself slows each operation, small ones the most.
    """
    update = learner.engine.step

    @wraps(update)
    def marked(*args: Any, **options: Any) -> Any:
        with record_function(UPDATE):
            return update(*args, **options)

    learner.engine.step = marked
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as recorded:
        for pairs in batches:
            with record_function(STEP):
                learner.step(pairs, alpha)
    learner.engine.step = update
    seconds = Counter(dict.fromkeys(GROUPS, 0.0))
    for event in recorded.events() or ():
        if _within(event, STEP):
            seconds[_group(event, vocab)] += event.self_cpu_time_total / 1e6 / len(batches)
    return dict(seconds)


def _group(event: Any, vocab: int) -> str:
    if _within(event, UPDATE) or event.name.startswith("Optimizer"):
        return OPTIMIZER
    if event.name in PRODUCTS:
        return HEAD if any(vocab in shape for shape in event.input_shapes if shape) else MATRICES
    for group, parts in PARTS.items():
        if any(part in event.name for part in parts):
            return group
    return OTHER


def _within(event: Any, name: str) -> bool:
    while event is not None:
        if event.name == name:
            return True
        event = event.cpu_parent
    return False

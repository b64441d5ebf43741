"""One cell of the study: one method at one learning rate in one world, from one seed.

Objective, learner, order of the data and α control are those of the service. Only the actors are left out:
the responses are written by the learner's own process.
"""

import copy
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from transformers import Qwen2ForCausalLM

from actors.environment import learner_environment
from benchmarks.method.methods import METHODS
from benchmarks.method.truth import measure
from benchmarks.method.worlds import END, PAIRS, World, build_world
from iris_ray.config import RunConfig
from iris_ray.contracts import Demonstration, SelfPlayPair, VersionSpan
from iris_ray.errors import IrisRayError
from iris_ray.game import Game, Round
from iris_ray.learner.round_tail import RoundTail
from iris_ray.round_buffer import RoundBuffer, draw_prompts, sampling_seed

if TYPE_CHECKING:
    from iris_ray.learner.self_play_learner import SelfPlayLearner

ITERATIONS = 5
EPOCHS = 2
BATCH_SIZE = 32
LEARNING_RATES = (1e-4, 3e-4, 1e-3)
SEEDS = (0, 1, 2, 3, 4)
WARMUP_LEARNING_RATE = 2e-3


@dataclass(frozen=True)
class Cell:
    world: str
    method: str
    learning_rate: float
    seed: int


def start_weights(world_name: str, seed: int) -> dict[str, torch.Tensor]:
    """Where every method starts in this world: some SFT on all annotated pairs."""
    _single_process_group()
    world = build_world(world_name, seed)
    steps = world.warmup_steps
    config = _config(
        {
            "objective": {"name": "sft"},
            "schedule": {"iterations": 1, "epochs": -(-steps * BATCH_SIZE // PAIRS)},
        },
        learning_rate=WARMUP_LEARNING_RATE,
        seed=seed,
    )
    model = world.build_model(seed)
    learner = _learner(model, config)
    data = world.annotate(seed)
    pairs = [_pair(item, item.response_tokens) for item in data]
    buffer = _buffer(Round(1, 0, 1.0, 0.0, ""), config)
    learner.start_round(1, steps)
    for step in range(steps):
        learner.step([pairs[i] for i in _ids(buffer, step)], 1.0)
    return {name: weight.clone() for name, weight in learner.weights()}


def play(cell: Cell, start: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Play one cell; returns a JSON object with one entry an iteration, the start first.

    A run whose numbers are no longer finite ends early and says `diverged`.
    """
    _single_process_group()
    begin = time.monotonic()
    method, world = METHODS[cell.method], build_world(cell.world, cell.seed)
    config = _config(
        {"objective": method.objective, "alpha": method.alpha},
        learning_rate=cell.learning_rate,
        seed=cell.seed,
    )
    annotated = world.annotate(cell.seed)
    annotated = annotated[: round(method.share * PAIRS)]
    # Every round has as many pairs, however few of them are distinct: the budget of steps is the same.
    data = [replace(annotated[i % len(annotated)], prompt_id=i) for i in range(PAIRS)]

    model = world.build_model(cell.seed)
    model.load_state_dict(start, strict=False)
    # The learner's own model is laid out for its batches and cannot write.
    writer = copy.deepcopy(model)
    learner, game = _learner(model, config), Game(config)
    iterations: list[dict[str, Any]] = [asdict(measure(writer, world))]
    diverged = False
    initial: list[list[int]] = []
    try:
        while round_ := game.next_round(len(iterations) - 1):
            responses = write(writer, data, world, cell.seed, round_.iteration)
            initial = initial or responses
            pairs = [_pair(*row) for row in zip(data, responses, strict=True)]
            if round_.iteration > 1 and "initial" in learner.objective.responses:
                pairs = [replace(p, initial_tokens=y0) for p, y0 in zip(pairs, initial, strict=True)]
            iterations.append(_round(learner, game, round_, pairs, config))
            writer.load_state_dict(dict(learner.weights()), strict=False)  # a tied weight comes once
            iterations[-1] |= asdict(measure(writer, world))
    except IrisRayError:
        diverged = True
    return asdict(cell) | {
        "diverged": diverged,
        "seconds": round(time.monotonic() - begin, 2),
        "iterations": iterations,
    }


def _round(
    learner: "SelfPlayLearner", game: Game, round_: Round, pairs: list[SelfPlayPair], config: RunConfig
) -> dict[str, Any]:
    """Train against one opponent."""
    buffer = _buffer(round_, config)
    tail = RoundTail(buffer.steps)
    ess_synthetic = []
    learner.start_round(round_.iteration, buffer.steps)
    for step in range(buffer.steps):
        result = learner.step([pairs[i] for i in _ids(buffer, step)], round_.alpha)
        if step == 0:
            round_ = game.measured_start(round_, result.rows.means(learner.objective, round_.alpha))
        tail.add(result.rows)
        ess_synthetic.append(result.report.ess_synthetic)
    game.measured_end(tail.means(learner.objective, round_.alpha))
    return {"alpha": round_.alpha, "gap": round_.gap, "ess_synthetic": fmean(ess_synthetic)}


@torch.inference_mode()
def write(
    model: Qwen2ForCausalLM, data: Sequence[Demonstration], world: World, seed: int, iteration: int
) -> list[list[int]]:
    """The model's own answers at temperature 1, one for each entry of `data`."""
    prompts = torch.tensor([item.prompt_tokens for item in data])  # all of one length
    with torch.random.fork_rng():
        torch.manual_seed(sampling_seed(seed, iteration, 0))
        output = model.generate(  # type: ignore[misc]
            input_ids=prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=world.max_response_tokens,
            do_sample=True,
            top_k=0,
            eos_token_id=END,
            pad_token_id=END,
        )
    answers = output[:, prompts.shape[1] :].tolist()
    return [row[: row.index(END) + 1] if END in row else row for row in answers]


def _pair(item: Demonstration, response: list[int]) -> SelfPlayPair:
    return SelfPlayPair(
        iteration=0,
        prompt_id=item.prompt_id,
        prompt_tokens=item.prompt_tokens,
        real_tokens=item.response_tokens,
        synthetic_tokens=response,
        finish_reason="stop" if response[-1] == END else "length",
        version=0,
        version_spans=[VersionSpan(0, len(response))],
    )


def _config(sections: dict[str, Any], learning_rate: float, seed: int) -> RunConfig:
    return RunConfig.from_dict(
        {
            "run": {"seed": seed},
            "model": {"path": "made here", "dtype": "float32"},
            "data": {"path": "made here"},
            "schedule": {"iterations": ITERATIONS, "epochs": EPOCHS},
            "learner": {
                "zero_stage": 0,
                "batch_size": BATCH_SIZE,
                "learning_rate": learning_rate,
            },
        }
        | sections
    )


def _learner(model: Qwen2ForCausalLM, config: RunConfig) -> "SelfPlayLearner":
    from iris_ray.learner.self_play_learner import SelfPlayLearner

    return SelfPlayLearner(model, config, torch.device("cpu"))


def _buffer(round_: Round, config: RunConfig) -> RoundBuffer:
    seed = config.run.seed
    return RoundBuffer(
        round_,
        draw_prompts(PAIRS, None, seed, round_.iteration),
        epochs=config.schedule.epochs,
        batch_size=BATCH_SIZE,
        max_ahead=PAIRS,
        seed=seed,
    )


def _ids(buffer: RoundBuffer, step: int) -> list[int]:
    return buffer.pair_ids[buffer.positions(step)].tolist()


def _single_process_group() -> None:
    """DeepSpeed wants a process group, be it of one process on one thread."""
    if torch.distributed.is_initialized():
        return
    torch.set_num_threads(1)
    os.environ.update(
        learner_environment(_config({}, 1.0, 0).learner), RANK="0", WORLD_SIZE="1", LOCAL_RANK="0"
    )
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)

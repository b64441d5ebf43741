"""A learner that was saved goes on in another object as if nothing had been: DeepSpeed on one rank."""

import json
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from conftest import make_pairs, run_config, tiny_model
from safetensors.torch import load_file, save_file

from iris_ray.contracts import StepReport
from iris_ray.errors import CheckpointError
from iris_ray.game import Round
from iris_ray.gap import PairMeans

if TYPE_CHECKING:
    from iris_ray.learner.learner_state import RoundProgress
    from iris_ray.learner.self_play_learner import SelfPlayLearner

pytestmark = pytest.mark.usefixtures("one_rank")

LORA = {"rank": 4}
PLAYERS = [pytest.param(None, id="two models"), pytest.param(LORA, id="lora")]
ALPHAS = {1: 1.7, 2: 0.8}
EPOCH, STEPS = 3, 6  # two passes over three batches
# Steps of an iteration after which the learner is saved; `None` is the pause after it.
POINTS: list[tuple[int, int | None]] = [(1, 3), (1, None), (2, 2), (2, 5)]

Weights = dict[str, torch.Tensor]


def build(lora: dict | None, seed: int = 0) -> "SelfPlayLearner":
    """`seed` makes other weights: of the model, or of the adapter alone."""
    from iris_ray.learner.self_play_learner import SelfPlayLearner

    config = run_config(
        run={"seed": seed},
        model={"path": "a", "dtype": "float32", "lora": lora},
        learner={
            "batch_size": 5,
            "micro_batch_tokens": 40,
            "learning_rate": [1e-2, 5e-3],
            "weight_decay": 0.1,
        },
    )
    return SelfPlayLearner(tiny_model(0 if lora else seed), config, torch.device("cpu"))


@dataclass
class History:
    """What a learner did: reports by iteration and step, how each round ended, and the weights after all."""

    reports: dict[tuple[int, int], StepReport] = field(default_factory=dict)
    ends: dict[int, PairMeans] = field(default_factory=dict)
    weights: list[Weights] = field(default_factory=list)


@dataclass
class Saved:
    """A state in `folder`; what was drawn at random and who the opponent was right after it."""

    folder: Path
    plain: dict[str, Any]
    drawn: tuple[float, ...]
    opponent: Weights


def weights(learner: "SelfPlayLearner", opponent: bool) -> Weights:
    return {name: weight.clone() for name, weight in learner.weights(opponent)}


def draw() -> tuple[float, ...]:
    return random.random(), random.gauss(0, 1), np.random.random(), np.random.normal(), torch.rand(()).item()


def play(
    learner: "SelfPlayLearner",
    iteration: int = 1,
    progress: "RoundProgress | None" = None,
    folder: Path | None = None,
) -> tuple[History, dict[tuple[int, int | None], Saved]]:
    """Play from `iteration`, or from the middle of a round, to the end; save at all points into `folder`."""
    from iris_ray.learner.learner_state import RoundProgress, save_learner

    history, saved = History(), {}

    def save(step: int | None, progress: RoundProgress | None) -> None:
        if folder and (iteration, step) in POINTS:
            place = folder / f"{iteration}-{step}"
            place.mkdir()
            plain = save_learner(learner, progress, place)
            saved[iteration, step] = Saved(place, plain, draw(), weights(learner, opponent=True))

    while iteration <= len(ALPHAS):
        alpha = ALPHAS[iteration]
        if progress is None:
            learner.start_round(iteration, STEPS)
            progress = RoundProgress(Round(iteration, iteration - 1, alpha, 0.5, "why"), STEPS)
        while progress.step < STEPS:
            pairs = make_pairs(5 * EPOCH, seed=iteration)[progress.step % EPOCH :: EPOCH]
            result = learner.step(pairs, alpha)
            progress.tail.add(result.rows)
            progress.step += 1
            history.reports[iteration, progress.step] = result.report
            save(progress.step, progress)
        history.ends[iteration] = progress.tail.means(learner.objective, alpha)
        progress = None
        save(None, None)
        iteration += 1
    history.weights = [weights(learner, opponent) for opponent in (False, True)]
    return history, saved


@dataclass
class Straight:
    lora: dict | None
    history: History
    saved: dict[tuple[int, int | None], Saved]


@pytest.fixture(scope="module", params=PLAYERS)
def straight(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Straight:
    """A learner that played without a break, and the states it saved meanwhile."""
    return Straight(request.param, *play(build(request.param), folder=tmp_path_factory.mktemp("states")))


def load(learner: "SelfPlayLearner", saved: Saved) -> "RoundProgress | None":
    from iris_ray.learner.learner_state import load_learner

    return load_learner(learner, json.loads(json.dumps(saved.plain)), saved.folder)


def assert_same(one: Weights, other: Weights) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


@pytest.mark.parametrize("point", POINTS, ids=str)
def test_another_learner_goes_on_the_same_way(straight: Straight, point: tuple[int, int | None]) -> None:
    iteration, step = point
    saved = straight.saved[point]
    learner = build(straight.lora, seed=9)
    progress = load(learner, saved)
    assert draw() == saved.drawn
    if progress:
        assert (progress.round, progress.steps, progress.step) == (
            Round(iteration, iteration - 1, ALPHAS[iteration], 0.5, "why"),
            STEPS,
            step,
        )
        assert_same(weights(learner, opponent=True), saved.opponent)
    history, _ = play(learner, iteration if step else iteration + 1, progress)
    rest = {at: report for at, report in straight.history.reports.items() if at > (iteration, step or STEPS)}
    assert history.reports == rest
    assert rest
    assert history.ends == {i: end for i, end in straight.history.ends.items() if (i, STEPS) in rest}
    for mine, theirs in zip(history.weights, straight.history.weights, strict=True):
        assert_same(mine, theirs)


def test_states_differ_from_point_to_point(straight: Straight) -> None:
    """Or the test above would prove nothing."""
    assert set(straight.saved) == set(POINTS)
    assert len({saved.drawn for saved in straight.saved.values()}) == len(POINTS)
    first, second = straight.saved[1, 3], straight.saved[2, 2]
    assert any(not torch.equal(first.opponent[name], second.opponent[name]) for name in first.opponent)
    losses = [report.loss for report in straight.history.reports.values()]
    assert len(set(losses)) == len(losses) - 1  # both rounds begin at exactly 0


def test_pairs_of_the_first_pass_are_not_scored_again(straight: Straight) -> None:
    learner = build(straight.lora, seed=9)
    progress = load(learner, straight.saved[2, 2])
    scored = []
    opponent_scorer = learner.players.opponent_scorer

    @contextmanager
    def counting(engine: Any) -> Iterator[Any]:
        with opponent_scorer(engine) as scorer:
            yield lambda batch: (scored.append(batch.sequences), scorer(batch))[1]

    learner.players.opponent_scorer = counting  # type: ignore[method-assign]
    play(learner, 2, progress)
    assert sum(scored) == 2 * 5  # y and y' of the one batch that was still new


def test_only_adapters_are_kept_with_lora(straight: Straight) -> None:
    names = load_file(straight.saved[1, 3].folder / "opponent-00000.safetensors").keys()
    assert names == straight.saved[1, 3].opponent.keys()
    assert all("lora" in name for name in names) == bool(straight.lora)


def test_a_pause_needs_no_opponent(straight: Straight) -> None:
    files = {file.name for file in straight.saved[1, None].folder.iterdir()}
    assert files == {"training-state-00000.safetensors", "random-state-00000.safetensors"}


def test_skipped_steps_go_on_being_counted(tmp_path: Path) -> None:
    from iris_ray.learner.learner_state import RoundProgress, load_learner, save_learner

    learner = build(None)
    learner.start_round(1, STEPS)
    learner.score_references(make_pairs(5, seed=1))
    learner.skipped_in_a_row = 2
    # Every step so far was skipped, so there are no rows of any.
    plain = save_learner(learner, RoundProgress(Round(1, 0, 1.0, 0.0, ""), STEPS, 2), tmp_path)
    fresh = build(None)
    progress = load_learner(fresh, plain, tmp_path)
    assert progress is not None
    assert (progress.step, len(progress.tail.rows), fresh.skipped_in_a_row) == (2, 0, 2)


@pytest.mark.parametrize("other", [LORA | {"rank": 8}, None], ids=["another rank", "two models"])
def test_another_model_is_refused(tmp_path: Path, other: dict | None) -> None:
    from iris_ray.learner.learner_state import load_learner, save_learner

    plain = save_learner(build(LORA), None, tmp_path)
    with pytest.raises(CheckpointError, match=r"was (trained and )?saved"):
        load_learner(build(other), plain, tmp_path)


def test_another_opponent_is_refused(straight: Straight, tmp_path: Path) -> None:
    saved = straight.saved[1, 3]
    spoilt = Saved(Path(shutil.copytree(saved.folder, tmp_path / "spoilt")), saved.plain, (), {})
    file = spoilt.folder / "opponent-00000.safetensors"
    kept = load_file(file)
    gone = sorted(kept)[0]
    del kept[gone]
    save_file(kept, file)
    with pytest.raises(CheckpointError, match=f"the opponent in it is not that of this model.*{gone}"):
        load(build(straight.lora), spoilt)


def test_options_of_the_objective_follow_the_iteration() -> None:
    from iris_ray.learner.self_play_learner import SelfPlayLearner

    objective = {"name": "spin", "by_iteration": {"lam": [0.1, 0.4]}}
    settings = {"learning_rate": 1e-12, "max_grad_norm": 1e9}  # the same weights in all rounds
    config = run_config(objective=objective, learner=settings)
    learner, norms = SelfPlayLearner(tiny_model(), config, torch.device("cpu")), []
    for iteration in (1, 2, 3):
        learner.start_round(iteration, steps=1)
        norms.append(learner.step(make_pairs(4, seed=0), alpha=1.0).report.grad_norm)
    # Where r = r' = 0, the gradient is proportional to λ.
    assert [norm / norms[0] for norm in norms] == pytest.approx([1, 4, 4], rel=1e-4)

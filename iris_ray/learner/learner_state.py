"""Everything that decides how a learner goes on, in files.

All ranks write into one folder, each its share. In the middle of a round the opponent and what the round
has brought so far are kept as well; between rounds the policy is all there is.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file

from iris_ray.errors import CheckpointError
from iris_ray.game import Round
from iris_ray.learner.batch_rows import KINDS, BatchRows
from iris_ray.learner.random_state import load_random_state, save_random_state
from iris_ray.learner.round_tail import RoundTail
from iris_ray.learner.self_play_learner import SelfPlayLearner
from iris_ray.learner.training_state import load_training_state, save_training_state


@dataclass
class RoundProgress:
    """How far a round is: `step` of `steps` are done."""

    round: Round
    steps: int
    step: int = 0
    tail: RoundTail = field(init=False)

    def __post_init__(self) -> None:
        self.tail = RoundTail(self.steps)


def save_learner(learner: SelfPlayLearner, progress: RoundProgress | None, folder: Path) -> dict[str, Any]:
    """Write the learner's state into `folder`; returns the plain part of it, to be given back on loading.

    Collective. `progress` is `None` between two rounds.
    """
    rank, ranks = dist.get_rank(), dist.get_world_size()
    save_training_state(learner.engine, folder)
    save_random_state(folder / f"random-state-{rank:05d}.safetensors")
    plain: dict[str, Any] = {"ranks": ranks, "skipped_in_a_row": learner.skipped_in_a_row, "round": None}
    if progress is None:
        return plain
    if learner.players.keeps_opponent:
        share = {
            name: weight.cpu().clone()
            for index, (name, weight) in enumerate(learner.weights(opponent=True))
            if index % ranks == rank
        }
        save_file(share, folder / f"opponent-{rank:05d}.safetensors")
    if rank == 0:
        save_file(_round_tensors(learner, progress.tail), folder / "round.safetensors")
    return plain | {"round": asdict(progress.round), "steps": progress.steps, "step": progress.step}


def load_learner(learner: SelfPlayLearner, plain: dict[str, Any], folder: Path) -> RoundProgress | None:
    """Set what `save_learner` wrote and returned; returns how far the round is.

    Collective. Ranks, ZeRO stage and micro-batches may differ from those that saved; bit-identical results
    need the same. Raises `CheckpointError` if the state is not that of this model.
    """
    load_training_state(learner.engine, folder)
    if plain["ranks"] == dist.get_world_size():
        load_random_state(folder / f"random-state-{dist.get_rank():05d}.safetensors")
    learner.skipped_in_a_row = plain["skipped_in_a_row"]
    if plain["round"] is None:
        return None
    progress = RoundProgress(Round(**plain["round"]), plain["steps"], plain["step"])
    learner.start_round(progress.round.iteration, progress.steps)
    for _ in range(progress.step):
        learner.lr_scheduler.step()
    if learner.players.keeps_opponent:
        files = [folder / f"opponent-{rank:05d}.safetensors" for rank in range(plain["ranks"])]
        _load_opponent(learner, files)
    with safe_open(folder / "round.safetensors", "pt") as file:
        ids, references = file.get_tensor("pair_ids"), file.get_tensor("references")
        learner.references.update(zip(ids.tolist(), references, strict=True))
        for table in file.get_tensor("tail").split(file.get_tensor("tail_sizes").tolist()):
            progress.tail.add(BatchRows(table))
    return progress


def _round_tensors(learner: SelfPlayLearner, tail: RoundTail) -> dict[str, torch.Tensor]:
    # None at all if the pairs bring their own.
    references = [torch.empty(0, KINDS), *(row[None] for row in learner.references.values())]
    return {
        "pair_ids": torch.tensor(list(learner.references)),
        "references": torch.cat(references),
        # No rows at all if every step was skipped.
        "tail": torch.cat([torch.empty(0), *(rows.table for rows in tail.rows)]),
        "tail_sizes": torch.tensor([len(rows) for rows in tail.rows]),
    }


class SavedTensors(Mapping[str, torch.Tensor]):
    """The tensors of several files, each read when it is asked for."""

    def __init__(self, files: list[Path]):
        opened = [safe_open(path, "pt") for path in files]
        self._file_of = {name: file for file in opened for name in file.keys()}  # noqa: SIM118, no dictionary

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._file_of[name].get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)


def _load_opponent(learner: SelfPlayLearner, files: list[Path]) -> None:
    saved = SavedTensors(files)
    names = {name for name, _ in learner.players.policy_weights()}
    if names != saved.keys():
        raise CheckpointError(
            f"{files[0].parent}: the opponent in it is not that of this model. Only one of the two has "
            f"{', '.join(sorted(names ^ saved.keys())[:3])}."
        )
    learner.set_opponent(saved)

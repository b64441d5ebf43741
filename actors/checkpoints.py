"""Checkpoints of a whole run: the learner's part, and that of the actors it plays with."""

import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import ray.train
import torch.distributed as dist
from ray.train import Checkpoint, CheckpointUploadMode
from safetensors import SafetensorError

from actors.stored_pairs import fetch_in_turn
from iris_ray.checkpoints import BEGINNING, CheckpointStorage, read_state, write_state
from iris_ray.chunks import pack
from iris_ray.errors import CheckpointError
from iris_ray.game import Round
from iris_ray.learner.learner_state import RoundProgress, load_learner, save_learner
from iris_ray.refresh import newest_version
from iris_ray.run_folder import RunFolder
from iris_ray.samples import ROW_GROUP, read_pairs, write_pairs

if TYPE_CHECKING:
    from actors.learner_rank import LearnerRank

PAIRS, INITIAL = "pairs.parquet", "initial.parquet"


class Checkpoints:
    """Takes checkpoints and goes back to them; every rank calls every method."""

    def __init__(self, rank: "LearnerRank", resume_from: str | None):
        """`resume_from`: path in the storage of the checkpoint that the run goes on from."""
        self.rank = rank
        self.resume_from = resume_from
        owner = f"{RunFolder(rank.config.folder).path} {rank.rank}"
        self.newest: str | None = None
        self.on_its_way: Path | None = None  # to storage; Ray Train deletes it once it is there
        self.prefix = f"iris-ray-checkpoint-{zlib.crc32(owner.encode()):08x}-"
        # A rank that was killed while it wrote one leaves it behind.
        for left in Path(tempfile.gettempdir()).glob(f"{self.prefix}*"):
            shutil.rmtree(left, ignore_errors=True)

    def save(
        self, progress: RoundProgress, next_version: int | None = None, *, ordered: bool = False
    ) -> None:
        """Write everything that decides the future, in the middle of a round or at its end.

        `next_version` is the one to be published next once the round is over. Returns when the checkpoint
        lies on this node; the way into storage goes on beside training, and the next one waits for its end.
        Else they would pile up where storage, or Ray Train's taking note of them, is slower than training.
        One that is `ordered` lies in storage when this returns: who gave the order may rely on it.
        """
        between = next_version is not None
        version = next_version
        if version is None:
            version = newest_version(progress.round, progress.step, self.rank.refresh_every)
        name = f"iteration-{progress.round.iteration:03d}" + ("" if between else f"-step-{progress.step:05d}")
        with self.rank.learner.stopwatch("checkpoint"):
            if name != self.newest:  # not ordered twice, or where one was due
                self._save(name, version, progress, between)
            if ordered:
                self._stored()

    def _stored(self) -> None:
        """Wait until the newest checkpoint is in storage."""
        if folder := self.on_its_way:
            what = f"{self.newest} to reach the storage of checkpoints"
            self.rank.wait_until(lambda: not folder.exists(), what)

    def _save(self, name: str, version: int, progress: RoundProgress, between: bool) -> None:
        self._stored()
        iteration = progress.round.iteration
        folder = Path(tempfile.mkdtemp(prefix=self.prefix))
        with _written_to(folder):
            plain = save_learner(self.rank.learner, None if between else progress, folder)
        actors = self._save_actors(folder) if self.rank.rank == 0 else {}
        files: list[Any] = [None] * self.rank.ranks
        dist.all_gather_object(files, [(path.name, path.stat().st_size) for path in folder.iterdir()])
        where = {"iteration": iteration, "step": 0 if between else progress.step}
        if self.rank.rank == 0:
            state = where | {"between": between, "version": version, "learner": plain} | actors
            write_state(folder, state, chain(*files))
        ray.train.report(
            {"version": version},
            checkpoint=Checkpoint.from_directory(folder),
            checkpoint_dir_name=name,
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            delete_local_checkpoint_after_upload=True,
        )
        self.newest, self.on_its_way = name, folder
        if self.rank.rank == 0:
            # Waited for: who ordered it is told its name once the order was obeyed.
            self._noted()

    def _noted(self) -> None:
        noted: Any = self.rank.controller.record_checkpoint.remote(self.newest)
        self.rank.wait(noted, "the controller to take note of a checkpoint")

    def restore(self) -> tuple[int, RoundProgress | None]:
        """Bring learner and actors to the last checkpoint, or to the beginning if there is none.

        Returns the newest version that was published, and how far the open round is.
        """
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None and self.resume_from:
            checkpoint = Checkpoint(self.resume_from, CheckpointStorage(self.rank.config).filesystem)
        if checkpoint is None:
            if self.rank.rank == 0:
                self._restore_actors(None, Path())
            dist.barrier()
            return 0, None
        self.newest = Path(checkpoint.path).name
        with checkpoint.as_directory() as name:
            folder = Path(name)
            state = read_state(folder)
            progress = load_learner(self.rank.learner, state["learner"], folder)
            if self.rank.rank == 0:
                self._restore_actors(state, folder)
            dist.barrier()
        return state["version"], progress

    def _save_actors(self, folder: Path) -> dict[str, Any]:
        rank = self.rank
        controller = rank.wait(rank.controller.state.remote(), "the controller's state")
        buffer, stored, initial = rank.wait(rank.buffer.state.remote(), "the sample buffer's state")
        with _written_to(folder):
            for name, places in ((PAIRS, stored), (INITIAL, initial)):
                write_pairs(folder / name, chain.from_iterable(fetch_in_turn(places)))
        return {"controller": controller, "buffer": buffer}

    def _restore_actors(self, state: dict[str, Any] | None, folder: Path) -> None:
        rank = self.rank
        # Ray Train takes note of a checkpoint some time after it was stored, and never if the learner died.
        place = (state["iteration"], state["between"], state["step"]) if state else BEGINNING
        CheckpointStorage(rank.config).forget_later(place)
        rank.wait(rank.controller.restore.remote(state and state["controller"]), "the controller to go back")
        self._noted()
        restored: Any = rank.buffer.restore.remote(state and state["buffer"])
        attempt = rank.wait(restored, "the sample buffer to go back")
        # Last, as it frees who waits for a version that will not come: the buffer must not ask for it again.
        rank.wait(rank.store.clear.remote(attempt), "the weight store to let go of its versions")
        if state is None:
            return
        for name in (PAIRS, INITIAL):
            pairs = read_pairs(folder / name)
            while group := list(islice(pairs, ROW_GROUP)):
                what = "the sample buffer to take in pairs of the checkpoint"
                keys, members = zip(*group, strict=True)
                taken: Any = rank.buffer.restore_pairs.remote(list(keys), pack(members), name == INITIAL)
                rank.wait(taken, what)
        rank.wait(rank.buffer.restored.remote(), "the sample buffer to open the round again")
        if state["learner"]["round"]:
            round_ = Round(**state["learner"]["round"])
            rank.wait(rank.controller.go_on_beside.remote(round_), "the controller to open the round again")


@contextmanager
def _written_to(folder: Path) -> Iterator[None]:
    """Tell in words that this node has no room. Errors out of other actors are not of this folder."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder}: a checkpoint cannot be written there: {error}. Make room, or have TMPDIR name "
            "another folder."
        ) from error

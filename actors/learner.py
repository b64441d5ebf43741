"""The learner: a Ray Train job whose ranks run DeepSpeed."""

import os
from functools import partial
from typing import TYPE_CHECKING, Any

import ray
import ray.train
from ray.exceptions import RayActorError, RayTaskError
from ray.train import CheckpointConfig, FailureConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from actors import names
from actors.environment import learner_environment
from iris_ray.checkpoints import FOLDER, CheckpointStorage
from iris_ray.config import RunConfig
from iris_ray.errors import IrisRayError, LostActorError, RunStopped, first_line
from iris_ray.refresh import next_version
from iris_ray.resources import learner_memory
from iris_ray.run_folder import RunFolder

if TYPE_CHECKING:
    from actors.checkpoints import Checkpoints
    from actors.learner_rank import LearnerRank


COLLECTIVE_S = 1800  # what an operation of all ranks may take by itself
POLL = "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"


def start_learner(config: RunConfig, *arguments: Any, **options: Any) -> ray.ObjectRef:
    """Start `run_learner` with `arguments`, as a task with Ray's `options`."""
    # Ray Train gives the room of dead learners back. Without the address it would not know which of several
    # clusters on a machine is meant.
    environment = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    # How often Ray Train looks whether the ranks are through, or died.
    environment |= {POLL: os.environ.get(POLL, "0.5")}
    options |= {"name": f"{config.run.name}/{names.LEARNER}", "runtime_env": {"env_vars": environment}}
    return run_learner.options(**options).remote(config, *arguments)


@ray.remote(num_cpus=0)
def run_learner(config: RunConfig, model_path: str, parameters: int, resume_from: str | None) -> None:
    """Train until the game is over, then end it; raises what the ranks raise once they failed too often.

    Raises `LostActorError` if Ray Train's controller died, which does not start anew by itself.
    `resume_from`: path in the storage of the checkpoint to go on from.
    """
    learner, storage = config.learner, CheckpointStorage(config)
    resources = {
        "CPU": learner.num_cpus,
        "GPU": learner.num_gpus,
        "memory": learner_memory(config, parameters),
    }
    trainer = TorchTrainer(
        train_loop,
        train_loop_config={"config": config, "model_path": model_path, "resume_from": resume_from},
        scaling_config=ScalingConfig(  # type: ignore[call-arg]
            num_workers=learner.workers,
            use_gpu=learner.num_gpus > 0,
            resources_per_worker=resources | learner.resources,
            label_selector=learner.labels or None,
        ),
        torch_config=TorchConfig(
            backend="nccl" if learner.num_gpus else "gloo",
            # A rank that waits for another one gives up later than that one, which knows what it waits for.
            timeout_s=round(config.run.wait_timeout_s) + COLLECTIVE_S,
        ),
        run_config=ray.train.RunConfig(  # type: ignore[call-arg]
            name=FOLDER,
            storage_path=storage.run_path,
            storage_filesystem=storage.filesystem,
            worker_runtime_env={"env_vars": learner_environment(learner)},
            failure_config=FailureConfig(max_failures=learner.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=config.checkpoint.keep),
            callbacks=[TellsDeaths(config.run.name)],  # type: ignore[list-item]
        ),
    )
    try:
        trainer.fit()
    except RayActorError as error:  # what becomes of a rank is told in other words
        raise LostActorError(f"the controller of Ray Train died: {first_line(error)}") from error
    # Not before: a learner that dies while it saves its model may go back to where it needs generators.
    ray.get(names.find(config.run.name, names.GENERATOR_POOL).close.remote())


class TellsDeaths(UserCallback):
    """Tells the run's controller when the learner died. Ray Train waits for room for another one for ever."""

    def __init__(self, run: str):
        self.run = run

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        names.find(self.run, names.CONTROLLER).record_learner_death.remote()


def train_loop(settings: dict[str, Any]) -> None:
    """One rank: play the game from where the last checkpoint left it."""
    from transformers import AutoModelForCausalLM

    from actors.checkpoints import Checkpoints
    from actors.learner_rank import LearnerRank
    from iris_ray.learner.self_play_learner import SelfPlayLearner

    config: RunConfig = settings["config"]
    model = AutoModelForCausalLM.from_pretrained(
        settings["model_path"], trust_remote_code=config.model.trust_remote_code
    )
    try:
        rank = LearnerRank(config, SelfPlayLearner(model, config, get_device()))
        play_game(rank, Checkpoints(rank, settings["resume_from"]))
    except RunStopped:
        rank.wait(rank.controller.record_stop.remote(), "the controller to take note of the stop")
        return
    except (IrisRayError, RayTaskError) as error:
        # Ray Train would start the learner again, which mends nothing that a user has to mend, nor what went
        # wrong in another actor.
        noted: Any = names.find(config.run.name, names.CONTROLLER).record_failure.remote(error)
        ray.get(noted, timeout=config.run.wait_timeout_s)
        raise
    rank.learner.save(str(RunFolder(config.folder).final))


def play_game(rank: "LearnerRank", checkpoints: "Checkpoints") -> None:
    """Publish the opponent, train against it on what the generators write, and again."""
    every = rank.refresh_every
    version, progress = checkpoints.restore()
    while True:
        # In the middle of an opponent's round, who goes on needs that opponent; online, the newest serves.
        rank.publish(version, opponent=progress is not None and every is None)
        progress = progress or rank.next_round(version)
        if progress is None:
            break
        rank.play(progress, partial(checkpoints.save, progress))
        version = next_version(progress.round, progress.steps, every)
        checkpoints.save(progress, version)
        progress = None

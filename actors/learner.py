"""The learner: a Ray Train job whose ranks run DeepSpeed."""

import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import ray.train
import torch.distributed as dist
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from actors import names
from actors.environment import learner_environment
from iris_ray.config import RunConfig
from iris_ray.contracts import SelfPlayPair
from iris_ray.errors import ResourceError
from iris_ray.game import Round
from iris_ray.learner.round_tail import RoundTail
from iris_ray.resources import learner_memory
from iris_ray.round_buffer import Share
from iris_ray.run_folder import RunFolder
from iris_ray.weights.buckets import pack_buckets
from iris_ray.weights.manifest import Bucket, Probe, WeightManifest

if TYPE_CHECKING:
    from iris_ray.learner.self_play_learner import SelfPlayLearner

GAME_STATE = "game.json"


@ray.remote(num_cpus=0)
def run_learner(config: RunConfig, model_path: str, pad_token_id: int, parameters: int) -> None:
    """Train until the game is over; raises what the ranks raise."""
    learner = config.learner
    resources = {
        "CPU": learner.num_cpus,
        "GPU": learner.num_gpus,
        "memory": learner_memory(config, parameters),
    }
    TorchTrainer(
        train_loop,
        train_loop_config={"config": config, "model_path": model_path, "pad_token_id": pad_token_id},
        scaling_config=ScalingConfig(
            num_workers=learner.workers, use_gpu=learner.num_gpus > 0, resources_per_worker=resources
        ),
        torch_config=TorchConfig(backend="nccl" if learner.num_gpus else "gloo"),
        run_config=ray.train.RunConfig(  # type: ignore[call-arg]
            name="checkpoints",
            storage_path=str(RunFolder(config.folder).path),
            worker_runtime_env={"env_vars": learner_environment(learner)},
            failure_config=FailureConfig(max_failures=0),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    ).fit()


def train_loop(settings: dict[str, Any]) -> None:
    """One rank: publish the opponent, train against it on what the generators write, and again."""
    from transformers import AutoModelForCausalLM

    from iris_ray.learner.self_play_learner import SelfPlayLearner

    config: RunConfig = settings["config"]
    model = AutoModelForCausalLM.from_pretrained(
        settings["model_path"], trust_remote_code=config.model.trust_remote_code
    )
    learner = SelfPlayLearner(model, config, settings["pad_token_id"], get_device())
    rank = LearnerRank(config, learner)
    version = 0
    while True:
        rank.publish(version)
        opened = rank.next_round(version)
        if opened is None:
            break
        game = rank.play(*opened)
        version += 1
        rank.checkpoint(version, game)
    learner.save(str(RunFolder(config.folder).final))


class LearnerRank:
    """Brings the plain learner of one rank together with the run's actors."""

    def __init__(self, config: RunConfig, learner: "SelfPlayLearner"):
        self.config = config
        self.learner = learner
        self.rank = ray.train.get_context().get_world_rank()
        self.ranks = ray.train.get_context().get_world_size()
        self.buffer = names.find(config.run.name, names.SAMPLE_BUFFER)
        self.controller = names.find(config.run.name, names.CONTROLLER)
        self.store = names.find(config.run.name, names.WEIGHT_STORE)
        self.probe = self._wait(self.buffer.probe.remote(), "the probe")

    def publish(self, version: int) -> None:
        """Put the policy's weights into the object store and name them in the weight store."""
        # All ranks walk through the weights, as ZeRO-3 gathers each of them; rank 0 copies.
        buckets = []
        if self.rank == 0:
            for data, tensors in pack_buckets(self.learner.weights(), self.config.sync.bucket_mib << 20):
                buckets.append(Bucket(ray.put(data.numpy()), tensors))
        else:
            for _ in self.learner.weights():
                pass
        probe = Probe(self.probe, self.learner.token_logprobs(self.probe))
        if self.rank == 0:
            manifest = WeightManifest(version, buckets, probe)
            self._wait(self.store.publish.remote(manifest), f"the weight store to take version {version}")

    def next_round(self, version: int) -> tuple[Round, int] | None:
        """The next round and its number of steps, on every rank; `None` when the game is over."""
        what = f"generators to load version {version} and finish the evaluation"
        return self._ask(lambda: self.controller.next_round.remote(version), what)

    def play(self, round_: Round, steps: int) -> dict[str, Any]:
        """Train against one opponent, on its first pairs while it writes the others.

        Returns the state of the game after it.
        """
        self.learner.start_round(steps)
        tail = RoundTail(steps)
        share: ray.ObjectRef = self.buffer.share.remote(0, self.rank, self.ranks)
        for step in range(steps):
            batch = self._wait(share, f"batch {step + 1} of {steps} in iteration {round_.iteration}")
            if step + 1 < steps:
                share = self.buffer.share.remote(step + 1, self.rank, self.ranks)
            result = self.learner.step(_fetch(batch), round_.alpha)
            tail.add(result.rows)
            if step == 0:
                start = result.rows.means(self.learner.objective, round_.alpha)
                what = "the controller to set the order"
                round_ = self._ask(lambda start=start: self.controller.round_started.remote(start), what)
            if self.rank == 0:
                self._wait(self.buffer.commit.remote(step), "the sample buffer to commit a step")
                self.controller.record_step.remote(result.report)
        end = tail.means(self.learner.objective, round_.alpha)
        what = "the controller to close the round"
        return self._ask(lambda: self.controller.round_ended.remote(end), what)

    def checkpoint(self, version: int, game: dict[str, Any]) -> None:
        """Keep the policy as a Hugging Face model in the run folder, beside the state of the game."""
        with tempfile.TemporaryDirectory() as folder:
            self.learner.save(folder)
            if self.rank == 0:
                (Path(folder) / GAME_STATE).write_text(json.dumps(game))
            kept = Checkpoint.from_directory(folder) if self.rank == 0 else None
            name = f"iteration-{version:03d}"
            ray.train.report({"version": version}, checkpoint=kept, checkpoint_dir_name=name)

    def _ask(self, question: Callable[[], ray.ObjectRef], what: str) -> Any:
        """Rank 0 asks; all ranks get the answer."""
        answer = [self._wait(question(), what) if self.rank == 0 else None]
        dist.broadcast_object_list(answer)
        return answer[0]

    def _wait(self, reference: ray.ObjectRef, what: str) -> Any:
        timeout = self.config.run.wait_timeout_s
        try:
            return ray.get(reference, timeout=timeout)
        except ray.exceptions.GetTimeoutError as error:
            raise ResourceError(
                f"learner rank {self.rank} waited {timeout:g} s for {what}. "
                "If the cluster is only slow, raise run.wait_timeout_s."
            ) from error


def _fetch(share: Share) -> list[SelfPlayPair]:
    chunks = list(dict.fromkeys(pair.chunk for pair in share.pairs + share.initial))
    fetched = dict(zip(chunks, ray.get(chunks), strict=True))
    pairs, initial = (
        [fetched[pair.chunk][pair.index] for pair in stored] for stored in (share.pairs, share.initial)
    )
    if not initial:
        return pairs
    return [
        replace(pair, initial_tokens=first.synthetic_tokens)
        for pair, first in zip(pairs, initial, strict=True)
    ]

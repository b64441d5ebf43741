"""The learner: a Ray Train job whose ranks run DeepSpeed."""

import tempfile
from typing import TYPE_CHECKING, Any

import ray
import ray.train
import torch.distributed as dist
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from actors import names
from actors.environment import learner_environment
from iris_ray.alpha import RoundEnd
from iris_ray.config import RunConfig
from iris_ray.contracts import SelfPlayPair
from iris_ray.errors import ResourceError
from iris_ray.game import Round
from iris_ray.learner.round_tail import RoundTail
from iris_ray.resources import learner_memory
from iris_ray.round_buffer import StoredPair
from iris_ray.run_folder import RunFolder
from iris_ray.weights.buckets import pack_buckets
from iris_ray.weights.manifest import Bucket, Probe, WeightManifest

if TYPE_CHECKING:
    from iris_ray.learner.self_play_learner import SelfPlayLearner


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
    version, end = 0, None
    while True:
        rank.publish(version)
        opened = rank.next_round(version, end)
        if opened is None:
            break
        end = rank.play(*opened)
        version += 1
        rank.checkpoint(version)
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

    def next_round(self, version: int, end: RoundEnd | None) -> tuple[Round, int] | None:
        """The next round and its number of steps, on every rank; `None` when the game is over."""
        opened: list[tuple[Round, int] | None] = [None]
        if self.rank == 0:
            what = f"generators to load version {version} and finish the evaluation"
            opened = [self._wait(self.controller.next_round.remote(version, end), what)]
        dist.broadcast_object_list(opened)
        return opened[0]

    def play(self, round_: Round, steps: int) -> RoundEnd:
        """Train against one opponent, on its first pairs while it writes the others."""
        self.learner.start_round(steps)
        tail = RoundTail(steps)
        share: ray.ObjectRef = self.buffer.share.remote(0, self.rank, self.ranks)
        for step in range(steps):
            stored = self._wait(share, f"batch {step + 1} of {steps} in iteration {round_.iteration}")
            if step + 1 < steps:
                share = self.buffer.share.remote(step + 1, self.rank, self.ranks)
            result = self.learner.step(_fetch(stored), round_.alpha)
            tail.add(result.rows)
            if self.rank == 0:
                self._wait(self.buffer.commit.remote(step), "the sample buffer to commit a step")
                self.controller.record_step.remote(result.report)
        return tail.end(self.learner.objective, round_.alpha)

    def checkpoint(self, version: int) -> None:
        """Keep the policy as a Hugging Face model in the run folder."""
        with tempfile.TemporaryDirectory() as folder:
            self.learner.save(folder)
            kept = Checkpoint.from_directory(folder) if self.rank == 0 else None
            name = f"iteration-{version:03d}"
            ray.train.report({"version": version}, checkpoint=kept, checkpoint_dir_name=name)

    def _wait(self, reference: ray.ObjectRef, what: str) -> Any:
        timeout = self.config.run.wait_timeout_s
        try:
            return ray.get(reference, timeout=timeout)
        except ray.exceptions.GetTimeoutError as error:
            raise ResourceError(
                f"learner rank {self.rank} waited {timeout:g} s for {what}. "
                "If the cluster is only slow, raise run.wait_timeout_s."
            ) from error


def _fetch(stored: list[StoredPair]) -> list[SelfPlayPair]:
    chunks = list(dict.fromkeys(pair.chunk for pair in stored))
    fetched = dict(zip(chunks, ray.get(chunks), strict=True))
    return [fetched[pair.chunk][pair.index] for pair in stored]

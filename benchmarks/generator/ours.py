"""Our side: the `Generator` actor beside the other actors of a run, on a Ray of its own."""

import logging
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import ray
import torch
from datasets import Dataset
from transformers import AutoTokenizer

from actors import names
from actors.controller import Controller
from actors.environment import generator_environment
from actors.generator import Generator
from actors.sample_buffer import SampleBuffer
from actors.stored_pairs import fetch
from actors.weight_publishing import put_buckets
from actors.weight_store import WeightStore
from benchmarks.generator.block import Block
from benchmarks.generator.pinning import pin
from benchmarks.generator.settings import RUN, Settings
from benchmarks.learner.model import build_model
from benchmarks.learner.workload import END, TORCH_NAMES
from iris_ray.config import RunConfig
from iris_ray.game import Round
from iris_ray.run_folder import RunFolder
from iris_ray.scratch.tokenizer import train_tokenizer
from iris_ray.weights.manifest import Probe
from iris_ray.weights.shares import WeightShare


def make_files(settings: Settings, folder: Path) -> None:
    """Write the model and the prompts where a run keeps them."""
    model = build_model(settings.workload).to(getattr(torch, TORCH_NAMES[settings.dtype]))
    model.save_pretrained(folder / "model")
    train_tokenizer(["no text is made in this benchmark"], 300).save_pretrained(folder / "model")
    rows = [
        {
            "prompt_id": pair.prompt_id,
            "prompt_tokens": pair.prompt_tokens,
            "response_tokens": pair.real_tokens,
            "response_text": "",
        }
        for pair in settings.workload.batches(1)[0]
    ]
    data = RunFolder(settings.config(folder).folder).data
    Dataset.from_list(rows).save_to_disk(data / "train")
    Dataset.from_list(rows[:1]).save_to_disk(data / "holdout")


class Ours:
    """The benchmark plays the learner's part: it publishes weights, opens rounds and closes them."""

    def __init__(self, settings: Settings, folder: Path):
        self.config = settings.config(folder)
        # As the peer's: Ray's workers give way to all other processes. Ray spells it so.
        os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
        ray.init(
            num_cpus=2, namespace=names.NAMESPACE, log_to_driver=False, logging_level=logging.ERROR,
            include_dashboard=False,
        )  # fmt: skip
        model_path = str(folder / "model")
        self.buffer: Any = names.start(SampleBuffer, RUN, names.SAMPLE_BUFFER, self.config)
        self.store: Any = names.start(WeightStore, RUN, names.WEIGHT_STORE)
        tokenizer = AutoTokenizer.from_pretrained(model_path)
        self.controller: Any = names.start(
            Controller, RUN, names.CONTROLLER, self.config, model_path, tokenizer, True
        )
        weights = _weights(settings, self.config, ray.get(self.buffer.probe.remote()))
        ray.get(self.store.publish.remote(weights))
        name = names.generator(0)
        self.generator: Any = names.start(
            Generator,
            RUN,
            name,
            self.config,
            model_path,
            END,
            name,
            num_cpus=1,
            runtime_env={"env_vars": generator_environment(self.config.generation)},
        )
        core = settings.core
        ray.get(self.generator.__ray_call__.remote(lambda actor: pin(core)))
        ray.get(self.generator.start.remote())
        self.playing: Any = self.generator.play.remote()

    def __enter__(self) -> "Ours":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            ray.get(self.buffer.close.remote())
            ray.get(self.playing)
        ray.get(self.generator.leave.remote())
        ray.shutdown()

    def block(self, iteration: int) -> Block:
        """Write all responses of `iteration`: from the open round to the last delivered pair."""
        begin = time.perf_counter()
        round_ = Round(iteration, version=0, alpha=1.0, gap=0.0, reason="")
        ray.get(self.buffer.open_round.remote(round_))
        written = self.buffer.all_written.remote()
        # A generator that fails would leave the round open for ever.
        done, _ = ray.wait([written, self.playing])
        ray.get(done)
        seconds = time.perf_counter() - begin
        responses = [pair.synthetic_tokens for pair in fetch(ray.get(written))]
        ray.get(self.buffer.close_round.remote())
        return Block(seconds, responses)


@torch.no_grad()
def _weights(settings: Settings, config: RunConfig, sequences: list[list[int]]) -> WeightShare:
    """The model's weights as a learner publishes them."""
    model = build_model(settings.workload).to(getattr(torch, TORCH_NAMES[settings.dtype])).eval()
    logprobs = []
    for tokens in sequences:
        table = model(torch.tensor([tokens])).logits[0, :-1].float().log_softmax(-1)
        logprobs.append(table.gather(1, torch.tensor(tokens[1:])[:, None])[:, 0].tolist())
    buckets = put_buckets(model.named_parameters(), config.sync.bucket_mib << 20)
    return WeightShare(version=0, rank=0, ranks=1, buckets=buckets, probe=Probe(sequences, logprobs))

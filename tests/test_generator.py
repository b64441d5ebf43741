"""A generator whose responses go on while new weights come: real Ray and vLLM."""

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from datasets import Dataset
from run_process import WAIT_S
from test_in_flight import logprobs
from test_policy_engine import END, tiny_model
from transformers import Qwen2ForCausalLM

from actors import names
from actors.cluster import connect
from actors.controller import Controller
from actors.environment import generator_environment
from actors.generator import Generator
from actors.sample_buffer import SampleBuffer
from actors.stored_pairs import fetch
from actors.weight_publishing import put_buckets
from actors.weight_store import WeightStore
from iris_ray.config import RunConfig
from iris_ray.contracts import SelfPlayPair
from iris_ray.errors import ParityError
from iris_ray.game import Round
from iris_ray.run_folder import RunFolder
from iris_ray.scratch.tokenizer import train_tokenizer
from iris_ray.weights.manifest import Probe
from iris_ray.weights.shares import WeightShare

RUN, NAME = "crossing", names.generator(0)
CONCURRENCY, LENGTH = 8, 200
PAIRS = 2 * CONCURRENCY  # all leased at once: some wait for others to end
TOKENS = torch.randint(2, 300, (PAIRS, 40), generator=torch.Generator().manual_seed(2)).tolist()
MODELS = [tiny_model(seed, tied=True) for seed in range(3)]


class Game:
    """The test plays the learner's part: it opens rounds and publishes weights."""

    def __init__(self, folder: Path):
        self.config = RunConfig.from_dict(
            {
                "run": {"name": RUN, "folder": str(folder)},
                "model": {"path": str(folder / "model"), "dtype": "float32"},
                "data": {"path": "made-here", "max_prompt_tokens": 32, "max_response_tokens": LENGTH},
                "schedule": {"epochs": 1, "refresh": 1, "max_staleness": PAIRS},
                "generation": {
                    "num_cpus": 0.5,
                    "enforce_eager": True,
                    "concurrency": CONCURRENCY,
                    "max_ahead": PAIRS,
                    "in_flight": "continue",
                },
                "learner": {"batch_size": CONCURRENCY, "reference": "generator"},
            }
        )
        MODELS[0].save_pretrained(folder / "model")
        tokenizer = train_tokenizer(["no text is made here"], 300)
        tokenizer.save_pretrained(folder / "model")
        data = RunFolder(self.config.folder).data
        rows = [
            {"prompt_id": i, "prompt_tokens": row[:30], "response_tokens": row[30:], "response_text": ""}
            for i, row in enumerate(TOKENS)
        ]
        Dataset.from_list(rows).save_to_disk(data / "train")
        Dataset.from_list(rows[:1]).save_to_disk(data / "holdout")
        self.buffer = names.start(SampleBuffer, RUN, names.SAMPLE_BUFFER, self.config)
        self.store = names.start(WeightStore, RUN, names.WEIGHT_STORE)
        model = str(folder / "model")
        self.controller = names.start(Controller, RUN, names.CONTROLLER, self.config, model, tokenizer, True)
        self.publish(0)
        environment = {"env_vars": generator_environment(self.config.generation)}
        self.generator = names.start(
            Generator, RUN, NAME, self.config, str(folder / "model"), END, NAME,
            num_cpus=0.5, runtime_env=environment,
        )  # fmt: skip
        ray.get(self.generator.start.remote())
        self.playing = self.generator.play.remote()

    def publish(self, version: int, proof: int | None = None) -> None:
        """Publish the weights of `MODELS[version]`, and another model's log-probs for a `proof`."""
        probe = Probe(
            TOKENS[:2], [logprobs(MODELS[proof or version], tokens).tolist() for tokens in TOKENS[:2]]
        )
        buckets = put_buckets(MODELS[version].named_parameters(), self.config.sync.bucket_mib << 20)
        ray.get(self.store.publish.remote(WeightShare(version, 0, 1, buckets, probe)))

    def open_round(self, iteration: int, version: int) -> None:
        """Returns once responses are under way. The engine stands still then, until weights are loaded."""

        def longest(actor: Any) -> int:
            states = actor.engine._engine.output_processor.request_states.values()
            return max((state.detokenizer.num_output_tokens() for state in states), default=0)

        async def stand_still_mid_way(actor: Any) -> None:
            while longest(actor) <= 20:
                await asyncio.sleep(0)
            await actor.engine._pause()

        def begin(actor: Any) -> None:
            loop = actor.engine._engine.output_handler.get_loop()  # this call is not made in it
            actor.standing = asyncio.run_coroutine_threadsafe(stand_still_mid_way(actor), loop)

        self.of_generator(begin)
        ray.get(self.buffer.open_round.remote(Round(iteration, version, alpha=1.0, gap=0.0, reason="")))
        self.of_generator(lambda actor: actor.standing.result(WAIT_S))

    def of_generator(self, look: Callable[[Any], Any]) -> Any:
        return ray.get(self.generator.__ray_call__.remote(look))

    def wait_for(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def written(self) -> list[SelfPlayPair]:
        _, places, _ = ray.get(self.buffer.state.remote())
        return fetch([place for _, place in places])


@pytest.fixture(scope="module")
def game(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Game]:
    connect(None)
    try:
        yield Game(tmp_path_factory.mktemp("runs"))
    finally:
        ray.shutdown()


def of(model: Qwen2ForCausalLM, pair: SelfPlayPair) -> list[float]:
    """log p of y and y'."""
    return [logprobs(model, pair.prompt_tokens + y)[-len(y) :].sum().item() for y in pair.responses]


def test_a_pair_is_compared_with_one_version_whoever_wrote_it(game: Game) -> None:
    game.open_round(1, version=0)
    game.publish(1)
    assert ray.get(game.generator.use_version.remote(1)) == 1
    stored = ray.get(game.buffer.all_written.remote())
    pairs = game.written()
    assert len(pairs) == PAIRS
    for pair, place in zip(pairs, stored, strict=True):
        versions = [span.version for span in pair.version_spans]
        assert versions in ([0], [0, 1], [1])
        assert pair.version in (versions[-1], 1)
        assert sum(span.tokens for span in pair.version_spans) == len(pair.synthetic_tokens)
        assert pair.reference == pytest.approx(of(MODELS[pair.version], pair), abs=2e-3)
        assert place.version == versions[0]  # staleness counts from the oldest
    assert any(len(pair.version_spans) == 2 for pair in pairs)
    ray.get(game.buffer.close_round.remote())


def test_what_weights_wrote_that_failed_the_probe_is_not_delivered(game: Game) -> None:
    game.open_round(2, version=1)
    game.publish(2, proof=1)
    for _ in range(2):  # it does not try again
        with pytest.raises(ParityError, match="does not serve weights version 2"):
            ray.get(game.generator.use_version.remote(2))
    game.wait_for(lambda: game.of_generator(lambda actor: actor.in_flight.count) == 0)
    time.sleep(0.5)  # more than a delivery takes
    assert all(span.version < 2 for pair in game.written() for span in pair.version_spans)
    assert len(game.written()) < PAIRS

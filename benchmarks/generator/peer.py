"""The peer: vLLM's `LLM.generate`, in a process of its own, told the very requests of a round."""

import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

from actors.environment import generator_environment
from benchmarks.generator.block import Block
from benchmarks.generator.pinning import pin
from benchmarks.generator.settings import Settings
from benchmarks.learner.workload import END
from iris_ray.data.splits import demonstration, load_split
from iris_ray.round_buffer import draw_prompts, sampling_seed
from iris_ray.run_folder import RunFolder


class Peer:
    """Engine settings, sampling and seeds are those of the generator; where vLLM computes is left to vLLM."""

    def __init__(self, settings: Settings, folder: Path):
        self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _start, (settings, folder))

    def __enter__(self) -> "Peer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pool.submit(_stop).result()
        self._pool.shutdown()

    def block(self, iteration: int) -> Block:
        """Write all responses of `iteration`."""
        return self._pool.submit(_block, iteration).result()


class _Offline:
    """Lives in the peer's process."""

    def __init__(self, settings: Settings, folder: Path):
        from vllm import LLM

        from iris_ray.generation.policy_engine import engine_settings

        self.config = settings.config(folder)
        self.rows = list(map(demonstration, load_split(RunFolder(self.config.folder).data, "train")))
        engine = engine_settings(self.config, str(self.config.model.path))
        self.llm = LLM(**engine | {"distributed_executor_backend": None})

    def block(self, iteration: int) -> Block:
        from vllm import SamplingParams

        seed, generation = self.config.run.seed, self.config.generation
        order = draw_prompts(len(self.rows), None, seed, iteration)
        asked = [(self.rows[prompt], replica) for prompt in order for replica in range(generation.n)]
        begin = time.perf_counter()
        parameters = [
            SamplingParams(
                max_tokens=self.config.data.max_response_tokens,
                seed=sampling_seed(seed, iteration, row.prompt_id, replica),
                ignore_eos=True,
                stop_token_ids=[END],
                detokenize=False,
            )
            for row, replica in asked
        ]
        prompts: Any = [{"prompt_token_ids": row.prompt_tokens} for row, _ in asked]
        outputs = self.llm.generate(prompts, parameters, use_tqdm=False)
        seconds = time.perf_counter() - begin
        return Block(seconds, [list(output.outputs[0].token_ids) for output in outputs])


_offline: dict[str, _Offline] = {}


def _start(settings: Settings, folder: Path) -> None:
    os.dup2(2, 1)  # vLLM logs to stdout, which is the report's
    os.environ.update(generator_environment(settings.config(folder).generation))
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = str(int(not settings.peer_in_process))
    pin(settings.core)
    _offline["peer"] = _Offline(settings, folder)


def _block(iteration: int) -> Block:
    return _offline["peer"].block(iteration)


def _stop() -> None:
    # Its engine's process would keep this one from ending.
    _offline.pop("peer").llm.llm_engine.engine_core.shutdown()

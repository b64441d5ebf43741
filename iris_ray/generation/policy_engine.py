"""A running vLLM engine whose weights can be replaced."""

import asyncio
import itertools
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from vllm import SamplingParams
from vllm.config.weight_transfer import WeightTransferConfig
from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from iris_ray.config import RunConfig
from iris_ray.contracts import FinishReason
from iris_ray.errors import EngineError
from iris_ray.generation.shared_memory import shared_folder
from iris_ray.lora import adapter_config, meta_model, target_modules, write_adapter
from iris_ray.weights.manifest import TensorSpec
from iris_ray.weights.vllm_engine import BACKEND

MIN_BATCHED_TOKENS = 4096  # prompts of several requests share a forward pass up to this size
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM can make room for


@dataclass(frozen=True)
class Response:
    """Tokens of a response; it ends with the end token unless it was cut (`length`)."""

    tokens: list[int]
    finish_reason: FinishReason


class PolicyEngine:
    """Token ids in, token ids out.

    With `load_format="dummy"` it starts on random weights: `load_weights` brings the real ones, the same
    way as every later version. `auto` loads those of `model_path`.

    With `model.lora` it starts on the weights of `model_path`, which stay: `load_adapter` brings every
    version, the first one too. A model whose linear layers are not those of `model.lora.target_modules`
    raises `ConfigError`.
    """

    def __init__(
        self, config: RunConfig, model_path: str, end_token_id: int, load_format: str = "dummy"
    ) -> None:
        self.config = config
        self.end_token_id = end_token_id
        self._request_ids = itertools.count()
        self._adapter: LoRARequest | None = None
        generation = config.generation
        weights: dict[str, Any]
        if config.model.lora is None:
            weights = {"load_format": load_format, "weight_transfer_config": WeightTransferConfig(BACKEND)}
        else:
            model = meta_model(model_path, config.model.trust_remote_code)
            self._adapter_config = adapter_config(model, config.model.lora)
            weights = {
                "enable_lora": True,
                "max_loras": 1,
                "max_lora_rank": next(rank for rank in LORA_RANKS if rank >= config.model.lora.rank),
                # Without the list vLLM adapts some models' output heads too. A prompt's log-probs under
                # such a head kill the engine on CPU.
                "lora_target_modules": target_modules(model, config.model.lora),
            }
        self._engine = AsyncLLM.from_engine_args(
            AsyncEngineArgs(
                model=model_path,
                skip_tokenizer_init=True,
                trust_remote_code=config.model.trust_remote_code,
                dtype=config.model.dtype,
                max_model_len=config.max_length,
                max_num_batched_tokens=max(config.max_length, MIN_BATCHED_TOKENS),
                # A prompt that is read in pieces makes vLLM rewind the request's seed, which kills the
                # engine on CPU ("CPU Generator does not use offset").
                enable_chunked_prefill=generation.num_gpus > 0,
                max_num_seqs=generation.concurrency,
                gpu_memory_utilization=generation.gpu_memory_utilization,
                enforce_eager=generation.enforce_eager,
                seed=config.run.seed,
                enable_log_requests=False,
                **weights,
            )
        )

    async def generate(self, prompt: list[int], *, seed: int | None = None, greedy: bool = False) -> Response:
        """Answer one prompt, sampled as `generation` says, or greedily."""
        parameters = SamplingParams(
            temperature=0.0 if greedy else self.config.generation.temperature,
            top_p=1.0 if greedy else self.config.generation.top_p,
            max_tokens=self.config.data.max_response_tokens,
            seed=seed,
            # One end token for annotated and written responses, whatever the model's own list says.
            ignore_eos=True,
            stop_token_ids=[self.end_token_id],
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        output = (await self._request(prompt, parameters)).outputs[0]
        return Response(list(output.token_ids), output.finish_reason)

    async def logprobs(self, sequences: Sequence[list[int]]) -> list[list[float]]:
        """log p of every token but the first, in nats, for each token sequence."""
        parameters = SamplingParams(
            max_tokens=1, prompt_logprobs=0, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY
        )
        outputs = await asyncio.gather(*[self._request(tokens, parameters) for tokens in sequences])
        return [
            [at[token].logprob for at, token in zip(output.prompt_logprobs[1:], tokens[1:], strict=True)]
            for output, tokens in zip(outputs, sequences, strict=True)
        ]

    async def load_weights(self, version: int, buckets: Sequence[tuple[Path, list[TensorSpec]]]) -> float:
        """Replace the weights by the buckets' contents; returns how long the engine stood still, in s."""
        begin = time.monotonic()
        # Keys and values of the old weights must not serve the new ones: clear the cache.
        await self._engine.pause_generation(mode="wait", clear_cache=True)
        await self._engine.start_weight_update()
        for path, tensors in buckets:
            info = {"path": str(path), "tensors": [asdict(spec) for spec in tensors]}
            await self._engine.update_weights(WeightTransferUpdateRequest(update_info=info))
        await self._engine.finish_weight_update(weight_version=str(version))
        await self._engine.resume_generation()
        return time.monotonic() - begin

    async def load_adapter(self, version: int, tensors: Iterable[tuple[str, torch.Tensor]]) -> float:
        """Replace the adapter, given under PEFT's names; returns how long the engine stood still, in s."""
        with shared_folder() as folder:
            write_adapter(Path(folder), self._adapter_config, tensors)
            begin = time.monotonic()
            # Keys and values of the old adapter must not serve the new one: clear the cache.
            await self._engine.pause_generation(mode="wait", clear_cache=True)
            if self._adapter is not None:
                await self._engine.remove_lora(self._adapter.lora_int_id)
            # vLLM counts from 1, and takes the same id for the same adapter.
            self._adapter = LoRARequest(f"version-{version}", version + 1, folder)
            await self._engine.add_lora(self._adapter)
            await self._engine.resume_generation()
            return time.monotonic() - begin

    def shutdown(self) -> None:
        self._engine.shutdown()

    async def _request(self, prompt: list[int], parameters: SamplingParams) -> Any:
        request_id = str(next(self._request_ids))
        try:
            async for output in self._engine.generate(
                {"prompt_token_ids": prompt}, parameters, request_id, lora_request=self._adapter
            ):
                final = output
        except EngineDeadError:
            raise EngineError(
                "the vLLM engine of a generator died. The reason stands in the log of its Generator actor: "
                "see the Ray dashboard, or /tmp/ray/session_latest/logs on its node."
            ) from None
        return final

"""A running vLLM engine whose weights can be replaced."""

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoTokenizer
from vllm import SamplingParams
from vllm.config.weight_transfer import WeightTransferConfig
from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine import PauseMode
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from iris_ray.config import RunConfig
from iris_ray.contracts import FinishReason, VersionSpan
from iris_ray.errors import EngineError
from iris_ray.generation.shared_memory import shared_folder
from iris_ray.generation.stop_tokens import single_tokens
from iris_ray.lora import adapter_config, meta_model, target_modules, write_adapter
from iris_ray.weights.manifest import TensorSpec
from iris_ray.weights.staging import StagedBucket
from iris_ray.weights.vllm_engine import BACKEND

if TYPE_CHECKING:
    from starlette.types import Message

    from iris_ray.generation.openai_app import OpenAIApp

MIN_BATCHED_TOKENS = 4096  # prompts of several requests share a forward pass up to this size
LOGS = (
    "The reason stands in the log of its Generator actor: see the Ray dashboard, or "
    "/tmp/ray/session_latest/logs on its node."
)
LOOK_S = 0.5  # between two looks whether the engine lives while it is asked
SAMPLING = ("temperature", "top_p", "top_k", "min_p")  # settings that are called alike here and in vLLM
# By `generation.in_flight`: vLLM's way to pause, and whether it clears its cache. Requests that are kept then
# compute the keys and values of their tokens anew.
PAUSES: dict[str, tuple[PauseMode, bool]] = {
    "finish": ("wait", True),
    "continue": ("keep", False),
    "resubmit": ("keep", True),
}
# vLLM would put a CPU's worker into a process of its own, to bind its threads to cores, which
# `VLLM_CPU_OMP_THREADS_BIND=nobind` leaves to us. Without it a generator starts sooner and writes faster.
IN_ENGINE = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
WHOLE_RESPONSES = "iris_ray.generation.whole_responses.WholeResponses"
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM can make room for


def engine_settings(config: RunConfig, model_path: str) -> dict[str, Any]:
    """What decides how vLLM computes, by the names of its engine arguments."""
    generation = config.generation
    # Where responses stay under way for ever, as many places again let scores and the probe in.
    places = generation.concurrency * (1 if generation.in_flight == "finish" else 2)
    return {
        "model": model_path,
        # Text is for people: pairs are token ids from end to end.
        "skip_tokenizer_init": config.gateway.port is None,
        "scheduling_policy": "fcfs" if config.gateway.port is None else "priority",
        "trust_remote_code": config.model.trust_remote_code,
        "dtype": config.model.dtype,
        "max_model_len": config.window,
        "max_num_batched_tokens": max(config.window, MIN_BATCHED_TOKENS, places),
        # A prompt that is read in pieces makes vLLM rewind the request's seed, which kills the engine on
        # CPU ("CPU Generator does not use offset").
        "enable_chunked_prefill": generation.num_gpus > 0,
        "max_num_seqs": places,
        # With `continue` keys and values of old weights stay, and a later request must not find them.
        "enable_prefix_caching": False if generation.in_flight == "continue" else None,  # None: by model
        "gpu_memory_utilization": generation.gpu_memory_utilization,
        "enforce_eager": generation.enforce_eager,
        "tensor_parallel_size": generation.tensor_parallel,
        "distributed_executor_backend": IN_ENGINE if generation.tensor_parallel == 1 else None,
        "seed": config.run.seed,
    }


@dataclass(frozen=True)
class Response:
    """Tokens of a response; it ends with the end token, or a text of `generation.stop`, unless it was cut
    (`length`). `logprob` is the sum of log p over all of them, in nats, each under the version that wrote it,
    where it was asked for."""

    tokens: list[int]
    finish_reason: FinishReason
    version_spans: list[VersionSpan]
    logprob: float | None = None


class PolicyEngine:
    """Token ids in, token ids out.

    With `load_format="dummy"` it starts on random weights: `load_weights` brings the real ones, the same
    way as every later version. `auto` loads those of `model_path`, as version 0.

    `reports_as` names it in vLLM's own metrics, which then go to Ray's; by default there are none.

    With `model.lora` it starts on the weights of `model_path`, which stay: `load_adapter` brings every
    version, the first one too. A model whose linear layers are not those of `model.lora.target_modules`
    raises `ConfigError`.
    """

    def __init__(
        self,
        config: RunConfig,
        model_path: str,
        end_token_id: int,
        load_format: str = "dummy",
        reports_as: str | None = None,
    ) -> None:
        self.config = config
        self._stop_token_ids = [end_token_id]
        if config.generation.stop:
            tokenizer = AutoTokenizer.from_pretrained(
                model_path, trust_remote_code=config.model.trust_remote_code
            )
            self._stop_token_ids += single_tokens(config.generation.stop, tokenizer)
        self._request_ids = itertools.count()
        self._adapter: LoRARequest | None = None
        self._updating = self._half_updated = False
        self._version = 0
        finish = config.generation.in_flight == "finish"  # then those that wait may do so in the engine
        on_cpu = config.generation.num_gpus == 0
        self._room = nullcontext() if finish else asyncio.Semaphore(config.generation.concurrency)
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
        arguments = AsyncEngineArgs(
            **engine_settings(config, model_path),
            enable_log_requests=False,
            # On GPUs vLLM schedules ahead of the step that runs, and its client has a core of its own.
            scheduler_cls=WHOLE_RESPONSES if on_cpu and finish and not reports_as else None,
            # vLLM's own reports cost Python for every step.
            disable_log_stats=True,
            served_model_name=reports_as,
            **weights,
        )
        try:
            self._engine = AsyncLLM.from_engine_args(
                arguments, stat_loggers=_ray_metrics() if reports_as else None
            )
        except RuntimeError as error:  # of its process: what does not fit is told before it starts
            raise EngineError(f"vLLM's engine did not start: {error} {LOGS}") from error

    async def generate(
        self,
        prompt: list[int],
        *,
        seed: int | None = None,
        greedy: bool = False,
        with_logprob: bool = False,
        max_tokens: int | None = None,
    ) -> Response:
        """Answer one prompt, sampled as `generation` says, or greedily, in at most `max_tokens`.

        By default those are `data.max_response_tokens`. `with_logprob` asks for the response's log p before
        temperature and truncation.
        """
        generation = self.config.generation
        sampling: dict[str, Any] = {"temperature": 0.0}
        if not greedy:
            sampling = {name: getattr(generation, name) for name in SAMPLING}
        parameters = SamplingParams(
            **sampling,
            max_tokens=max_tokens or self.config.data.max_response_tokens,
            seed=seed,
            # One end token for annotated and written responses, whatever the model's own list says.
            ignore_eos=True,
            stop_token_ids=self._stop_token_ids,
            logprobs=0 if with_logprob else None,
            flat_logprobs=True,
            detokenize=False,
            skip_clone=True,  # nobody else holds them
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        async with self._room:
            output = (await self._request(prompt, parameters)).outputs[0]
        spans = [
            VersionSpan(_version(span.version), span.end - span.start) for span in output.weight_versions
        ]
        return Response(list(output.token_ids), output.finish_reason, spans, output.cumulative_logprob)

    def respond(self, method: str, path: str, body: dict[str, Any] | None) -> "AsyncGenerator[Message, None]":
        """Answer a request of the OpenAI protocol, as `OpenAIApp.respond`; needs `gateway.port`."""
        self._openai.serve(self._version, self._adapter)
        return self._openai.respond(method, path, body)

    @cached_property
    def _openai(self) -> "OpenAIApp":
        from iris_ray.generation.openai_app import OpenAIApp

        options = self.config.data.chat_template_options
        return OpenAIApp(self._engine, self.config.run.name, options, lora=self.config.model.lora is not None)

    async def score(self, prompt: list[int], responses: Sequence[list[int]]) -> tuple[list[float], int]:
        """log p(response | prompt) of each, summed over its tokens, in nats, all under one weights version.

        Returns that version, too. If the weights change meanwhile, all are scored again.
        """
        while True:
            version = self._version
            logprobs = await self.logprobs([prompt + response for response in responses])
            if version == self._version:
                break
        pairs = zip(logprobs, responses, strict=True)
        return [sum(tokens[-len(response) :]) for tokens, response in pairs], version

    async def logprobs(self, sequences: Sequence[list[int]]) -> list[list[float]]:
        """log p of every token but the first, in nats, for each token sequence."""
        parameters = SamplingParams(
            max_tokens=1,
            prompt_logprobs=0,  # of the tokens themselves alone
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        outputs = await asyncio.gather(*[self._request(tokens, parameters) for tokens in sequences])
        return [output.prompt_logprobs.logprobs for output in outputs]

    async def ready_weights(self, path: Path, tensors: list[TensorSpec]) -> None:
        """Have the engine get some new weights ready while it serves the old ones.

        They wait for the next `load_weights`; `drop_weights` forgets them. `path` may be deleted afterwards.
        """
        await self._start_update()
        await self._update(path=str(path), tensors=[asdict(spec) for spec in tensors], serving=True)

    async def drop_weights(self) -> None:
        """Forget what `ready_weights` brought, and an update that failed in the middle."""
        if self._updating:
            self._updating = False
            with suppress(Exception):  # vLLM lets go of an update by way of an error in it
                await self._update(cancel=True)

    async def load_weights(
        self, version: int, buckets: AsyncIterable[StagedBucket] | Iterable[StagedBucket]
    ) -> float:
        """Put all weights in place: those that are ready, and the buckets' contents.

        What becomes of responses under way is said by `generation.in_flight`. Returns how long the engine
        stood still, in s. If it raises, the engine goes on standing still until a whole update succeeded.
        Cancelling it counts as such a failure.
        """
        await self._start_update()
        begin = time.monotonic()
        self._half_updated = True
        await self._pause()
        async for source, tensors in buckets if isinstance(buckets, AsyncIterable) else _each(buckets):
            where = {"path": str(source)} if isinstance(source, Path) else {"sent": asdict(source)}
            await self._update(**where, tensors=[asdict(spec) for spec in tensors])
        # Together: where processes share few cores, each answer that is waited for makes the pause longer.
        finish = self._engine.finish_weight_update()  # puts in place what is ready, if nothing else came
        await asyncio.gather(finish, self._engine.update_weight_version(str(version)))
        self._version = version  # before anything is answered with it
        self._updating = self._half_updated = False
        await self._engine.resume_generation()
        return time.monotonic() - begin

    async def _start_update(self) -> None:
        if self._half_updated:  # by an update that failed
            await self.drop_weights()
        if not self._updating:
            await self._engine.start_weight_update()
            self._updating = True

    async def _update(self, **info: Any) -> None:
        await self._engine.update_weights(WeightTransferUpdateRequest(update_info=info))

    async def _pause(self) -> None:
        mode, clear_cache = PAUSES[self.config.generation.in_flight]
        # `AsyncLLM.pause_generation` does the same and then sleeps for 20 ms.
        await self._engine.engine_core.pause_scheduler_async(mode=mode, clear_cache=clear_cache)

    async def load_adapter(self, version: int, tensors: Iterable[tuple[str, torch.Tensor]]) -> float:
        """Replace the adapter, given under PEFT's names; returns how long the engine stood still, in s."""
        with shared_folder() as folder:
            write_adapter(Path(folder), self._adapter_config, tensors)
            begin = time.monotonic()
            await self._pause()
            if self._adapter is not None:
                await self._engine.remove_lora(self._adapter.lora_int_id)
            # vLLM counts from 1, and takes the same id for the same adapter.
            self._adapter = LoRARequest(f"version-{version}", version + 1, folder)
            await self._engine.add_lora(self._adapter)
            await self._engine.update_weight_version(str(version))
            self._version = version
            await self._engine.resume_generation()
            return time.monotonic() - begin

    async def check_alive(self) -> None:
        """Returns once the engine's process answers; raises `EngineError` if it died."""
        question = asyncio.ensure_future(self._engine.is_sleeping())  # the cheapest: between two steps
        try:
            # vLLM leaves a question without an answer if the process dies before it gives one.
            while not (await asyncio.wait({question}, timeout=LOOK_S))[0]:
                if self._engine.errored:
                    raise EngineDeadError
            await question
        except EngineDeadError:
            raise EngineError(f"the vLLM engine of a generator died. {LOGS}") from None
        finally:
            question.cancel()

    def shutdown(self) -> None:
        # Its process has nothing to save: nobody waits while its interpreter takes seconds to end.
        self._engine.shutdown(timeout=0)

    async def _request(self, prompt: list[int], parameters: SamplingParams) -> Any:
        request_id = str(next(self._request_ids))
        try:
            async for output in self._engine.generate(
                {"prompt_token_ids": prompt}, parameters, request_id, lora_request=self._adapter
            ):
                final = output
        except EngineDeadError:
            raise EngineError(f"the vLLM engine of a generator died. {LOGS}") from None
        return final


def _ray_metrics() -> list[Any]:
    """What vLLM reports to when it reports to Ray alone."""
    from vllm.v1.metrics.ray_wrappers import RayPrometheusStatLogger  # brings Ray Serve along

    return [RayPrometheusStatLogger]


def _version(label: str) -> int:
    """The weights version that vLLM calls `label`: it has its own name for those that it started on."""
    return 0 if label == "default" else int(label)


async def _each(buckets: Iterable[StagedBucket]) -> AsyncIterator[StagedBucket]:
    for bucket in buckets:
        yield bucket

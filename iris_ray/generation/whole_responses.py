"""A vLLM scheduler that sends responses when they have ended, for those who ask for nothing earlier."""

from typing import Any

import numpy as np
from vllm.sampling_params import RequestOutputKind
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.outputs import LogprobsLists
from vllm.v1.request import Request


class WholeResponses(Scheduler):
    """vLLM sends each step's tokens to the engine's client, which puts them together.

    On a CPU that costs what the learner could compute with. So the tokens stay here until the response ends,
    if its request wants it whole (`FINAL_ONLY`) and as token ids: for texts that end one the client has to
    look. All tokens count as written by the weights version that wrote the last ones, so this is not for
    responses that go on while weights change.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._begun: dict[str, list[EngineCoreOutput]] = {}  # by request

    def update_from_output(self, *args: Any, **kwargs: Any) -> dict[int, EngineCoreOutputs]:
        clients = super().update_from_output(*args, **kwargs)
        for step in clients.values():
            step.outputs = [whole for part in step.outputs if (whole := self._whole(part))]
        return {
            client: step
            for client, step in clients.items()
            if step.outputs or step.finished_requests or step.scheduler_stats
        }

    def finish_requests(self, *args: Any, **kwargs: Any) -> list[Request]:
        """Some ended from outside, as by their client: nobody waits for what they wrote."""
        finished = super().finish_requests(*args, **kwargs)
        for request in finished:
            self._begun.pop(request.request_id, None)
        return finished

    def _whole(self, part: EngineCoreOutput) -> EngineCoreOutput | None:
        """What its client is to get now: the part, the response that it ends, or nothing yet."""
        if part.finish_reason is None:
            parameters = self.requests[part.request_id].sampling_params
            assert parameters is not None
            if parameters.detokenize or parameters.output_kind != RequestOutputKind.FINAL_ONLY:
                return part
            self._begun.setdefault(part.request_id, []).append(part)
            return None
        if begun := self._begun.pop(part.request_id, None):
            parts = [*begun, part]
            part.new_token_ids = [token for each in parts for token in each.new_token_ids]
            part.new_logprobs = _joined([each.new_logprobs for each in parts if each.new_logprobs])
            part.new_prompt_logprobs_tensors = begun[0].new_prompt_logprobs_tensors
            part.prefill_stats = begun[0].prefill_stats
        return part


def _joined(parts: list[LogprobsLists]) -> LogprobsLists | None:
    if not parts:
        return None
    tokens, logprobs, ranks, _ = zip(*parts, strict=True)
    return LogprobsLists(np.concatenate(tokens), np.concatenate(logprobs), np.concatenate(ranks))

"""The OpenAI-compatible endpoints: vLLM in a generator reads requests and answers them."""

import asyncio
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from iris_ray.gateway.errors import responses
from iris_ray.gateway.limits import Places
from iris_ray.gateway.requests import ChatRequest, CompletionRequest, PolicyRequest
from iris_ray.gateway.run import Run

FIRST = -1  # vLLM takes lower numbers first: a visitor need not wait for the pairs before
ANSWERS = responses(400, 404, 413, 429, 503) | {
    200: {
        "description": "As the OpenAI protocol has it; `system_fingerprint` names the weights that answered.",
        "content": {"application/json": {}, "text/event-stream": {}},
    }
}


def policy_routes(run: Run, most: int, longest: int, end_token_ids: list[int]) -> APIRouter:
    """Routes under /v1.

    At most `most` answers are written at the same time, of at most `longest` tokens each. They end at one of
    `end_token_ids`, as the run's responses do.
    """
    router = APIRouter(prefix="/v1", tags=["policy"])
    places = Places(most)

    @router.get("/models", summary="The policy, called like the run", responses=responses(503))
    async def models() -> Response:
        return Relay(run, places, "GET", "/v1/models")

    @router.post("/completions", summary="Go on with a text", responses=ANSWERS)
    async def completions(request: CompletionRequest) -> Response:
        return answer("/v1/completions", request)

    @router.post("/chat/completions", summary="Answer a conversation", responses=ANSWERS)
    async def chat_completions(request: ChatRequest) -> Response:
        return answer("/v1/chat/completions", request)

    def answer(path: str, request: PolicyRequest) -> Response:
        if (request.longest or 0) > longest:
            raise HTTPException(
                400, f"max_tokens={request.longest}: gateway.max_tokens allows {longest} at most."
            )
        body = request.model_dump(exclude_none=True) | {"stop_token_ids": end_token_ids, "priority": FIRST}
        if request.longest is None:
            body["max_tokens"] = longest
        return Relay(run, places, "POST", path, body, request.n)

    return router


class Relay(Response):
    """A generator's response, passed on message by message until nobody listens any more."""

    def __init__(
        self,
        run: Run,
        places: Places,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        answers: int = 0,
    ):
        super().__init__()
        self.run = run
        self.places = places
        self.asked = method, path, body
        self.answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self.places.take(self.answers):
            passing_on = asyncio.ensure_future(self._pass_on(send))
            listening = asyncio.ensure_future(_until_gone(receive))
            try:
                await asyncio.wait((passing_on, listening), return_when=asyncio.FIRST_COMPLETED)
            finally:
                listening.cancel()
                if passing_on.done():
                    passing_on.result()
                passing_on.cancel()
                await asyncio.wait((passing_on, listening))

    async def _pass_on(self, send: Send) -> None:
        async with aclosing(self.run.respond(*self.asked)) as messages:
            async for message in messages:
                await send(message)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass

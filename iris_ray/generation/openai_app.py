"""vLLM's own OpenAI-compatible endpoints, answered by an engine that somebody else runs."""

import asyncio
import json
from argparse import Namespace
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.types import Message
from vllm.entrypoints.openai.chat_completion import api_router as chat
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.entrypoints.openai.completion import api_router as completion
from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
from vllm.entrypoints.openai.models import api_router as models
from vllm.entrypoints.openai.models.protocol import BaseModelPath
from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.entrypoints.serve.exception_handling.register import init_exception_handler
from vllm.lora.request import LoRARequest
from vllm.renderers.online_renderer import OnlineRenderer
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from iris_ray.gateway.errors import unavailable


async def _engine_died(_: Request, error: Exception) -> JSONResponse:
    return unavailable("The generator that was answering lost its engine, and is replaced. Ask again.")


class OpenAIApp:
    """Routes, protocol, streaming and errors are vLLM's; requests come as calls instead of over a socket.

    Conversations go through the tokenizer's chat template with `template_options`. The model is called
    `name`; with `lora` that is the adapter, and the model below it `<name>-base`. The engine must have a
    tokenizer.
    """

    def __init__(self, engine: AsyncLLM, name: str, template_options: dict[str, Any], lora: bool):
        self._name = name
        self._version = 0
        base = f"{name}-base" if lora else name
        self._models = OpenAIServingModels(engine, [BaseModelPath(base, base)])
        renderer = OnlineRenderer(
            engine.model_config,
            engine.renderer,
            request_logger=None,
            chat_template=None,  # the tokenizer's
            chat_template_content_format="auto",
            default_chat_template_kwargs=template_options,
        )
        self._completion = OpenAIServingCompletion(
            engine, self._models, online_renderer=renderer, request_logger=None
        )
        self._chat = OpenAIServingChat(
            engine,
            self._models,
            "assistant",
            online_renderer=renderer,
            request_logger=None,
            chat_template=None,
            chat_template_content_format="auto",
        )
        self._app = FastAPI()
        for router in (models, completion, chat):
            router.attach_router(self._app)
        init_exception_handler(self._app)
        self._app.exception_handler(EngineDeadError)(_engine_died)  # vLLM's looks for a server, to end it
        self._app.state.args = Namespace(log_error_stack=False)  # the part of a server's that is looked at
        self._app.state.openai_serving_models = self._models
        self._app.state.openai_serving_completion = self._completion
        self._app.state.openai_serving_chat = self._chat

    def serve(self, version: int, adapter: LoRARequest | None) -> None:
        """From now on responses come from weights `version`, or `adapter`, and say so."""
        self._version = version
        self._chat.system_fingerprint = self._completion.system_fingerprint = f"weights-version-{version}"
        if adapter is not None:
            self._models.lora_requests = {self._name: adapter}

    async def respond(
        self, method: str, path: str, body: dict[str, Any] | None
    ) -> AsyncGenerator[Message, None]:
        """The messages of the response to a JSON `body`. To stop listening ends the work on it.

        Raises what kept the response from beginning; later errors are in its body.
        """
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": method,
            "path": path,
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
        }
        received: list[Message] = [
            {"type": "http.request", "body": json.dumps(body).encode() if body else b""}
        ]
        messages: asyncio.Queue[Message] = asyncio.Queue()

        async def receive() -> Message:
            # Whoever asks for a second message waits for the end of the connection: that is cancelled.
            return received.pop() if received else await asyncio.get_running_loop().create_future()

        call = asyncio.ensure_future(self._app(scope, receive, messages.put))
        call.add_done_callback(lambda _: messages.put_nowait({"type": "end"}))
        begun = False
        try:
            while (message := await messages.get())["type"] != "end":
                if not begun:
                    begun = True
                    message["headers"].append((b"x-weights-version", str(self._version).encode()))
                yield message
            if not begun:
                call.result()
        finally:
            call.cancel()
            await asyncio.wait([call])

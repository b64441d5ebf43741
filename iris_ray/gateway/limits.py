"""Bounds that keep visitors from starving the training."""

from collections.abc import Iterator
from contextlib import contextmanager

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from iris_ray.gateway.errors import RETRY_AFTER_S, error_response


class BodyLimit:
    """ASGI middleware: a request body of more than `most` bytes is refused before it is read whole."""

    def __init__(self, app: ASGIApp, most: int):
        self.app = app
        self.most = most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body = b""
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            if len(body) > self.most:
                told = f"The body has more than {self.most} bytes. gateway.max_body_kib says how many may be."
                await error_response(413, told)(scope, receive, send)
                return
            more = message["type"] == "http.request" and message.get("more_body", False)
        whole = iter([{"type": "http.request", "body": body}])

        async def read() -> Message:
            return next(whole, None) or await receive()

        await self.app(scope, read, send)


class Places:
    """So many answers may be under way at the same time."""

    def __init__(self, most: int):
        self.most = most
        self.taken = 0

    @contextmanager
    def take(self, count: int) -> Iterator[None]:
        """Take `count` places; raises 429 if there are not so many left."""
        if self.taken + count > self.most:
            raise HTTPException(
                429,
                f"{self.taken} of {self.most} answers are under way, and this request asks for {count}. Try "
                "again soon; gateway.max_requests says how many may be.",
                {"Retry-After": str(RETRY_AFTER_S)},
            )
        self.taken += count
        try:
            yield
        finally:
            self.taken -= count

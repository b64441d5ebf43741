"""The HTTP application: `/` for people, `/status` and its like for tools, `/v1` for OpenAI clients."""

import secrets
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query
from fastapi.responses import HTMLResponse, JSONResponse, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from iris_ray.config import RunConfig
from iris_ray.contracts import Order
from iris_ray.errors import NotObeyedError
from iris_ray.gateway.answers import Metrics, Pair, Status
from iris_ray.gateway.curves import Curves
from iris_ray.gateway.demonstrations import Demonstrations, Taken, put_in
from iris_ray.gateway.errors import responses, tell_errors
from iris_ray.gateway.limits import BodyLimit
from iris_ray.gateway.live_page import live_page
from iris_ray.gateway.policy import policy_routes
from iris_ray.gateway.recent import Recent
from iris_ray.gateway.requests import Strict
from iris_ray.gateway.run import Run
from iris_ray.run_folder import RunFolder
from iris_ray.versions import versions

FRESH_S = 0.5  # several who look at the same time ask the run once
PAIRS = 6
LOOPBACK = ("127.0.0.1", "localhost", "::1")
ORDERS: dict[Order, str] = {
    "pause": "Stand still before the next step",
    "resume": "Go on",
    "checkpoint": "Take a checkpoint before the next step",
    "stop": "Take a checkpoint before the next step, then end",
}


class GeneratorCount(Strict):
    count: int = Field(ge=1, le=100_000)


class Obeyed(BaseModel):
    run: str
    state: str
    iteration: int
    step: int
    last_checkpoint: str | None


class Given(BaseModel):
    run: str
    order: str


Timeout = Annotated[float, Query(gt=0, le=600, description="Seconds to wait until the learner has obeyed.")]


def gateway_app(run: Run, config: RunConfig, token: str, end_token_ids: list[int]) -> FastAPI:
    """Everything over HTTP for `run`. Who changes something must send `token`."""
    settings, name = config.gateway, config.run.name
    app = FastAPI(
        title=f"iris-ray: {name}",
        version=versions()["iris_ray"],
        description="Look at a self-play run, steer it, and talk to its policy.",
        docs_url=None,  # the pages would load scripts from elsewhere
        redoc_url=None,
    )
    tell_errors(app)
    app.add_middleware(BodyLimit, most=settings.max_body_kib << 10)
    if settings.host in LOOPBACK:
        # A page on the internet may have its own host name resolve to this machine, and read along.
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(LOOPBACK))
    status = Recent(run.status, FRESH_S)
    pairs = Recent(lambda: run.newest_pairs(PAIRS), FRESH_S)
    curves = Curves(RunFolder(config.folder), config)

    bearer = HTTPBearer(auto_error=False, description="The token in gateway.token of the run folder.")

    def authorised(given: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]) -> None:
        if given is None or not secrets.compare_digest(given.credentials.encode(), token.encode()):
            raise HTTPException(
                401,
                "This changes the run and needs its token: 'Authorization: Bearer TOKEN'. It lies in "
                "gateway.token of the run folder.",
                {"WWW-Authenticate": "Bearer"},
            )

    changing: dict[str, Any] = {"tags": ["steer"], "dependencies": [Depends(authorised)]}

    @app.get("/", include_in_schema=False)
    def page() -> Response:
        html, policy = live_page(name)
        return HTMLResponse(html, headers={"Content-Security-Policy": policy, "Cache-Control": "no-store"})

    @app.get("/status", summary="How the run stands", tags=["look"], responses=responses(503))
    def get_status() -> Status:
        return Status.model_validate(status())

    @app.get("/metrics", summary="The curves of all steps so far", tags=["look"])
    def get_metrics() -> Metrics:
        return curves()

    @app.get("/pairs", summary="Pairs that were written last", tags=["look"], responses=responses(503))
    def get_pairs() -> list[Pair]:
        return [Pair.model_validate(pair) for pair in pairs()]

    @app.post(
        "/generators",
        summary="Change the number of generators",
        responses=responses(401, 413, 503),
        **changing,
    )
    def post_generators(wanted: GeneratorCount) -> Status:
        run.scale(wanted.count)
        return Status.model_validate(run.status())

    @app.post(
        "/demonstrations",
        summary="Add annotated conversations, from the next iteration on",
        status_code=202,
        responses=responses(400, 401, 413),
        **changing,
    )
    def post_demonstrations(given: Demonstrations) -> Taken:
        return put_in(given, config.data)

    def give(order: Order, timeout: float) -> Any:
        try:
            return run.order(order, timeout)
        except NotObeyedError:
            return JSONResponse(Given(run=name, order=order).model_dump(), 202)

    def add_order(order: Order, told: str) -> None:
        @app.post(
            f"/{order}",
            summary=told,
            name=order,
            response_model=Obeyed,
            responses=responses(401, 413, 503)
            | {202: {"model": Given, "description": "Given, and not obeyed yet: it will be."}},
            **changing,
        )
        def post_order(timeout: Timeout = 30) -> Any:
            return give(order, timeout)

    for order, told in ORDERS.items():
        add_order(order, told)

    longest = settings.max_tokens or config.data.max_response_tokens
    app.include_router(policy_routes(run, settings.max_requests, longest, end_token_ids))
    return app

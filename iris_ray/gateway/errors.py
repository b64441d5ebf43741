"""Errors over HTTP: one shape for all of them, that of the OpenAI protocol."""

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from iris_ray.errors import ConfigError, UnavailableError

RETRY_AFTER_S = 2


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: int


class Error(BaseModel):
    error: ErrorDetail


def error_response(
    status: int, message: str, param: str | None = None, headers: dict[str, str] | None = None
) -> JSONResponse:
    kind = HTTPStatus(status).phrase.replace(" ", "")
    error = Error(error=ErrorDetail(message=message, type=kind, param=param, code=status))
    return JSONResponse(error.model_dump(), status, headers)


def unavailable(message: str) -> JSONResponse:
    """Come again."""
    return error_response(503, message, headers={"Retry-After": str(RETRY_AFTER_S)})


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For a route's `responses`: which errors it may answer with."""
    return {status: {"model": Error, "description": HTTPStatus(status).phrase} for status in statuses}


def tell_errors(app: FastAPI) -> None:
    """Have `app` answer in this shape."""

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        told = "; ".join(
            f"{'.'.join(str(part) for part in one['loc'])}: {one['msg']}" for one in error.errors()[:5]
        )
        return error_response(422, told, where or None)

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> JSONResponse:
        return error_response(error.status_code, str(error.detail), headers=dict(error.headers or {}))

    @app.exception_handler(ConfigError)
    async def unfit(_: Request, error: ConfigError) -> JSONResponse:
        return error_response(400, str(error))

    @app.exception_handler(UnavailableError)
    async def away(_: Request, error: UnavailableError) -> JSONResponse:
        return unavailable(str(error))

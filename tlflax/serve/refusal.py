"""Errors as clients see them: JSON with one sentence, and nothing of this machine."""

from collections.abc import Mapping

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from tlflax.utils.files import dump_json

JSON = 'application/json'
_SENTENCES = {
    404: 'There is nothing at this address; GET /openapi.json lists what there is.',
    405: 'This address does not take that method; the header Allow lists those that it takes.',
}


class Refusal(Exception):
    """Why a request has no answer.

    Args:
        status: Of HTTP.
        detail: A sentence.
        headers: More headers of the answer.
    """

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, dict(headers or {})


def busy(detail: str, seconds: int) -> Refusal:
    """Returns a refusal for now.

    Args:
        detail: A sentence.
        seconds: When to ask again.
    """
    return Refusal(503, detail, {'Retry-After': str(seconds)})


def problem(status: int, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    """Returns an error as an answer; see `Refusal`."""
    body = dump_json({'detail': detail})
    return Response(body, status, headers, media_type=JSON)


async def of_refusal(request: Request, error: Exception) -> Response:
    """Answers a `Refusal`."""
    assert isinstance(error, Refusal)
    return problem(error.status, error.detail, error.headers)


async def of_http(request: Request, error: Exception) -> Response:
    """Answers what the framework refuses: unknown pages and methods."""
    assert isinstance(error, HTTPException)
    detail = _SENTENCES.get(error.status_code, f'{error.detail}.')
    return problem(error.status_code, detail, error.headers)


async def of_query(request: Request, error: Exception) -> Response:
    """Answers a wrong parameter: its name and what is wrong with it."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return problem(422, f'{first["loc"][1]}: {first["msg"]}.')

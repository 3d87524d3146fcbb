"""What the service takes and gives, as its OpenAPI document describes it."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

_Strict = ConfigDict(extra='forbid')
Probability = Annotated[float, Field(ge=0, le=1.000001)]  # rounding


class Problem(BaseModel):
    """Why a request has no answer."""

    model_config = _Strict
    detail: str = Field(description='one sentence')


class Ranked(BaseModel):
    """A class with its probability."""

    model_config = ConfigDict(extra='forbid', populate_by_name=True)
    name: str = Field(alias='class')
    probability: Probability


class Prediction(BaseModel):
    """The classes of an image."""

    model_config = _Strict
    label: str = Field(description='the most probable class')
    probability: Probability = Field(description='of that class')
    step: int = Field(description='of the checkpoint')
    probabilities: dict[str, Probability] = Field(
        default_factory=dict, description='of every class; not with top_k'
    )
    top: list[Ranked] = Field(
        default_factory=list, description='with top_k: the most probable comes first'
    )


class About(BaseModel):
    """The classifier."""

    model_config = _Strict
    classes: list[str] = Field(description='in the order of the classifier')
    image_size: list[int] = Field(
        min_length=2, max_length=2, description='height and width that it sees, in pixels'
    )
    resize: str = Field(description='how images come to that size: stretch, pad or crop')
    step: int = Field(description='of the checkpoint')
    backbone: str
    head: str
    calibrated: bool = Field(description='whether a temperature is applied')
    heat_maps: bool = Field(description='whether POST /heat_map gives pictures')
    max_pixels: int = Field(description='of an image; larger ones are refused')
    max_bytes: int = Field(description='of an image file; larger ones are refused')


class Health(BaseModel):
    """The service is ready."""

    model_config = _Strict
    status: str


IMAGE_BODY: dict[str, Any] = {
    'requestBody': {
        'required': True,
        'description': 'An image file. Its content decides what it is, whatever the header says.',
        'content': {
            kind: {'schema': {'type': 'string', 'format': 'binary'}}
            for kind in ('image/*', 'application/octet-stream')
        },
    }
}
_MEANINGS = {
    404: 'This classifier has no heat maps.',
    408: 'The body arrives too slowly.',
    413: 'The body has too many bytes.',
    415: 'The body is not an image.',
    422: 'The image is damaged or too large, or a parameter is wrong.',
    500: 'The classifier failed.',
    503: 'Too much is waiting, or the service starts or stops: ask again later.',
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Returns the description of the errors that an endpoint gives."""
    found: dict[int | str, dict[str, Any]] = {
        status: {'model': Problem, 'description': _MEANINGS[status]} for status in statuses
    }
    if 503 in found:
        about = {'description': 'seconds', 'required': True, 'schema': {'type': 'integer'}}
        found[503]['headers'] = {'Retry-After': about}
    return found


def text(kind: str, about: str, form: str | None = None) -> dict[int | str, dict[str, Any]]:
    """Returns the description of an answer that is not JSON.

    Args:
        kind: Its media type.
        about: What it is.
        form: 'binary', or None for text.
    """
    schema = {'type': 'string', **({'format': form} if form else {})}
    return {200: {'description': about, 'content': {kind: {'schema': schema}}}}

"""The application: what each address answers."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, PlainTextResponse
from pydantic import Field
from pydantic.json_schema import SkipJsonSchema
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from tlflax.data.images import sniff
from tlflax.inference.prediction import Prediction
from tlflax.serve import bodies, guard, metrics, page, refusal, schemas
from tlflax.serve.batcher import Batcher
from tlflax.serve.classifier import Answer, Classifier, Kind
from tlflax.serve.refusal import Refusal
from tlflax.serve.settings import Settings
from tlflax.utils import cpu
from tlflax.utils.errors import UserError
from tlflax.utils.files import JsonObject, dump_json

T = TypeVar('T')
_OF_IMAGES = (408, 413, 415, 422, 500, 503)  # statuses where an image is sent


class Service:
    """What the endpoints share.

    Args:
        classifier: What answers.
        settings: The limits.
    """

    def __init__(self, classifier: Classifier, settings: Settings) -> None:
        self.classifier, self.settings = classifier, settings
        self.metrics = metrics.Metrics()
        self.batcher = Batcher(classifier, settings.queue, self.metrics)
        self.memory = bodies.Memory(settings.buffered)
        self.failure: BaseException | None = None
        self.metrics.gauges |= {
            'tlflax_queue_images': ('Images that wait.', lambda: len(self.batcher)),
            'tlflax_body_bytes': ('Bytes of image files in memory.', lambda: self.memory.held),
            'tlflax_ready': ('1 once the classifier is compiled.', lambda: self.batcher.ready),
        }

    async def ask(self, request: Request, kind: Kind) -> tuple[bytes, Any]:
        """Returns the body of a request, an image file, and its answer.

        Raises:
            Refusal: There is none.
            ClientDisconnect: The client has gone.
        """
        self.batcher.check()
        limits = self.settings
        with self.memory.lease() as lease:
            file = await bodies.read(
                request, lease, max_bytes=limits.max_bytes, seconds=limits.timeout
            )
            answer = await while_connected(request, self.batcher.answer(kind, file))
        if isinstance(answer, UserError):
            raise _refused(file, answer)
        return file, answer


def _refused(file: bytes, error: UserError) -> Refusal:
    """Returns the refusal of a file that the decoder does not take."""
    image = sniff.sniff(file[: sniff.HEAD_BYTES]) in sniff.READABLE
    if image:
        return Refusal(422, f'The image {error.what}.')
    return Refusal(415, f'The body {error.what}.')


async def while_connected(request: Request, work: Coroutine[Any, Any, Answer]) -> Answer:
    """Returns what some work gives; it is canceled where the client goes.

    Raises:
        ClientDisconnect: The client has gone.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())['type'] != 'http.disconnect':
        pass


def create(service: Service) -> guard.App:
    """Returns the application, which compiles the classifier when it starts."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(service.batcher.run())
        task.add_done_callback(lambda done: _note_failure(service, done))
        yield
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    app = FastAPI(
        title='tlflax',
        description='A classifier of images.',
        version='1',
        docs_url=None,  # they load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,  # to an address that the client's header names
        lifespan=lifespan,
        exception_handlers={
            Refusal: refusal.of_refusal,
            HTTPException: refusal.of_http,
            RequestValidationError: refusal.of_query,
            ClientDisconnect: _of_gone,
            Exception: _of_bug,
        },
    )
    app.include_router(_information(service))
    app.include_router(_images(service))
    paths = {'/', '/model', '/health', '/metrics', '/openapi.json', '/predict', '/heat_map'}
    return guard.guarded(app, service.metrics, paths)


def _note_failure(service: Service, done: 'asyncio.Task[None]') -> None:
    service.batcher.ready = False
    if not done.cancelled():
        service.failure = done.exception()


async def _of_gone(request: Request, error: Exception) -> Response:
    return Response(status_code=guard.GONE)


async def _of_bug(request: Request, error: Exception) -> Response:
    return refusal.problem(500, 'The server failed; its log says why.')


def _information(service: Service) -> APIRouter:
    """Returns the endpoints that take nothing."""
    router = APIRouter()
    html = schemas.text('text/html', 'A page that sends images to the service.')

    @router.get('/', response_class=HTMLResponse, responses=html)
    async def try_it() -> Response:
        """A page on which an image can be chosen."""
        text, policy = page.rendered()
        return HTMLResponse(text, headers={'Content-Security-Policy': policy})

    @router.get('/model', responses={200: {'model': schemas.About}})
    async def model() -> Response:
        """The classes and what the classifier is."""
        about = {**service.classifier.about(), 'max_bytes': service.settings.max_bytes}
        return Response(dump_json(about), media_type=refusal.JSON)

    @router.get('/health', responses={200: {'model': schemas.Health}, **schemas.problems(503)})
    async def health() -> Response:
        """Whether images are answered: the classifier is compiled."""
        if not service.batcher.ready or service.batcher.stopping:
            raise refusal.busy('The classifier is not ready.', 5)
        return Response(dump_json({'status': 'ready'}), media_type=refusal.JSON)

    figures = schemas.text('text/plain', 'In the text format of Prometheus.')

    @router.get('/metrics', response_class=PlainTextResponse, responses=figures)
    async def figures_of_service() -> Response:
        """Figures of the service since it started."""
        return Response(service.metrics.text(), media_type=metrics.CONTENT_TYPE)

    return router


def _images(service: Service) -> APIRouter:
    """Returns the endpoints that take an image."""
    router, drawing = APIRouter(), ThreadPoolExecutor(cpu.cores(), 'pictures')

    @router.post(
        '/predict',
        openapi_extra=schemas.IMAGE_BODY,
        responses={200: {'model': schemas.Prediction}, **schemas.problems(*_OF_IMAGES)},
    )
    async def predict(
        request: Request,
        top_k: Annotated[
            Annotated[int, Field(ge=1)] | SkipJsonSchema[None],
            Query(description='give the so many most probable classes'),
        ] = None,
    ) -> Response:
        """The classes of an image."""
        _, answer = await service.ask(request, 'predict')
        record = _record(answer, top_k, service.classifier.step)
        return Response(dump_json(record), media_type=refusal.JSON)

    @router.post(
        '/heat_map',
        response_class=Response,
        openapi_extra=schemas.IMAGE_BODY,
        responses={
            **schemas.text('image/png', 'The image under its heat map.', 'binary'),
            **schemas.problems(404, *_OF_IMAGES),
        },
    )
    async def heat_map(request: Request) -> Response:
        """What in an image speaks for the predicted class, as a picture."""
        if why := service.classifier.no_heat_maps:
            raise Refusal(404, why)
        file, answer = await service.ask(request, 'heat_map')
        loop, draw = asyncio.get_running_loop(), service.classifier.picture
        return Response(
            await loop.run_in_executor(drawing, draw, file, answer), media_type='image/png'
        )

    return router


def _record(one: Prediction, top_k: int | None, step: int) -> JsonObject:
    """Returns a prediction as `python -m tlflax.predict --format=json` prints it."""
    fixed = {'label': one.label, 'probability': one.probability, 'step': step}
    if top_k is None:
        return {**fixed, 'probabilities': one.probabilities}
    best = [{'class': label, 'probability': p} for label, p in one.top(top_k)]
    return {**fixed, 'top': best}

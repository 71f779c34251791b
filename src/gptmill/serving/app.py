"""HTTP routes: models, chat, completions, Markdown, health and the chat page."""

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from gptmill.generation.completion import TextGenerator
from gptmill.serving import requests
from gptmill.serving.about import MarkdownRequest, about, as_html
from gptmill.serving.decoding import CLIENT_LEFT, Decoding, Stream, whole
from gptmill.serving.errors import ApiError, as_api_error, error_body
from gptmill.serving.gate import MOST_BYTES, TooLargeError
from gptmill.serving.requests import ChatRequest, CompletionRequest, Limits, Work
from gptmill.serving.wire import Answer, AnswerKind
from gptmill.serving.worker import Worker

READING = ["GET", "HEAD"]
PAGE = Path(__file__).with_name("page.html")


def build(generator: TextGenerator, worker: Worker, limits: Limits) -> FastAPI:
    """Return the application serving `generator` and decoding in `worker`."""
    # FastAPI's documentation pages are off: they load scripts from a CDN
    app = FastAPI(
        title="gptmill", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False
    )
    _add_error_handlers(app)
    _add_decoding_routes(app, generator, worker, limits)
    _add_information_routes(app, generator, worker, limits)
    return app


def _add_decoding_routes(
    app: FastAPI, generator: TextGenerator, worker: Worker, limits: Limits
) -> None:
    """Add the two decoding routes.

    Prompts are tokenized in a thread pool: tokenizing would block the event loop.
    """

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        body = requests.parse(await request.body(), ChatRequest)
        _check_model(body.model, generator)
        work = await run_in_threadpool(requests.chat_work, body, generator, limits)
        return await _answer(request, "chat", work, generator, worker)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        body = requests.parse(await request.body(), CompletionRequest)
        _check_model(body.model, generator)
        work = await run_in_threadpool(requests.completion_work, body, generator, limits)
        return await _answer(request, "text", work, generator, worker)


def _add_information_routes(
    app: FastAPI, generator: TextGenerator, worker: Worker, limits: Limits
) -> None:
    """Add the routes that need no decoding."""
    model_object = {
        "id": generator.name,
        "object": "model",
        "created": 0,
        "owned_by": "gptmill",
        "gptmill": about(generator, limits),
    }
    content = PAGE.read_text(encoding="utf-8")
    headers = {
        "Content-Security-Policy": content_security_policy(content),
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-cache",
    }

    @app.api_route("/v1/models", methods=READING)
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model_object]}

    @app.api_route("/v1/models/{name:path}", methods=READING)
    async def model(name: str) -> dict[str, Any]:
        _check_model(name, generator)
        return model_object

    @app.post("/v1/markdown")
    async def markdown(request: Request) -> HTMLResponse:
        body = requests.parse(await request.body(), MarkdownRequest)
        return HTMLResponse(await run_in_threadpool(as_html, body.text), headers=headers)

    @app.api_route("/health", methods=READING)
    async def health() -> dict[str, Any]:
        active, waiting = worker.load
        return {"status": "ok", "active": active, "waiting": waiting}

    @app.api_route("/", methods=READING)
    async def page() -> HTMLResponse:
        return HTMLResponse(content, headers=headers)


def content_security_policy(page: str) -> str:
    """Return a policy allowing only the page's script and style.

    Both are allowed by their SHA-256 hashes.
    """

    def hashes(tag: str) -> str:
        texts = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digests = [hashlib.sha256(text.encode("utf-8")).digest() for text in texts]
        return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)

    return (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )


def _check_model(name: str, generator: TextGenerator) -> None:
    if name != generator.name:
        message = f"the model {name!r} does not exist; this server has {generator.name!r}"
        raise ApiError(404, message, code="model_not_found", param="model")


async def _answer(
    request: Request, form: AnswerKind, work: Work, generator: TextGenerator, worker: Worker
) -> Response:
    answer = Answer(form, generator.name, work)
    # the job is queued before the response begins: a full queue can still set an error status
    decoding = Decoding(
        worker, generator.completions(work.prompts, work.config, stops=work.stops, seed=work.seed)
    )
    return Stream(answer, decoding) if work.stream else await whole(request, answer, decoding)


def _add_error_handlers(app: FastAPI) -> None:
    """Add handlers to return every error in OpenAI's format."""

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> JSONResponse:
        headers = {"Retry-After": "1"} if error.status == 503 else None
        return JSONResponse(error.body, error.status, headers)

    @app.exception_handler(TooLargeError)
    async def too_large(request: Request, error: TooLargeError) -> JSONResponse:
        message = f"the body is larger than {MOST_BYTES} bytes"
        return JSONResponse(error_body(413, message, code="request_too_large"), 413)

    @app.exception_handler(HTTPException)
    async def routing_error(request: Request, error: HTTPException) -> Response:
        status, headers = error.status_code, dict(error.headers or {})
        if status == 405:
            headers["Allow"] = ", ".join([*sorted(headers["Allow"].split(", ")), "OPTIONS"])
            if request.method == "OPTIONS":
                return Response(status_code=204, headers=headers)
        message = f"{request.method} {request.url.path}: {error.detail}"
        return JSONResponse(error_body(status, message), status, headers)

    @app.exception_handler(ClientDisconnect)
    async def client_left(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=CLIENT_LEFT)

    @app.exception_handler(Exception)
    async def internal_error(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse(as_api_error(error).body, 500)

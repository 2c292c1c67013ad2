"""The guard: which requests come through at all, and with which headers answers go out."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

from deixis.web.queue import Queue

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
LARGEST_QUESTION = 1_000_000  # bytes of a request that is no upload (our choice)
UPLOAD_EXTRA = 20_000  # bytes of an upload beside the film: its multipart frame (our choice)
SERVED = "/gradio_api/file="  # and a path of the uploads: Gradio's way to hand out a file
OPEN = {  # what the page and Gradio's client need; every other route of Gradio is closed
    "GET": (
        r"/", r"/config/?", r"/theme\.css", r"/favicon\.ico", r"/(assets|static)/[\w@+.-]+(/[\w@+.-]+)*",
        r"/results/[\w-]{22}/[a-z_]+\.[a-z0-9]+", r"/gradio_api/info/?", r"/gradio_api/theme\.css",
        r"/gradio_api/(startup-events|app_id|login_check)/?", r"/gradio_api/(queue/data|upload_progress)",
        r"/gradio_api/heartbeat/[\w-]+", r"/gradio_api/call/\w+/[\w-]+", r"/gradio_api/file=/.+",
    ),
    "POST": (
        r"/gradio_api/(queue/join|cancel|upload|reset)/?", r"/gradio_api/call/\w+/?", r"/gradio_api/(run|api)/\w+/?",
    ),
}  # fmt: skip
HEADERS = {
    # A browser loads from no other server, whatever a film, a sentence or a library would like.
    "content-security-policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' blob:; font-src 'self' data:; "
    "connect-src 'self' data: blob:; worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[Any], Awaitable[None]]


def is_loopback(host: str) -> bool:
    return host.lower() in LOOPBACK or re.fullmatch(r"127(\.\d{1,3}){3}", host) is not None


# --- the guard --------------------------------------------------------------------------------------------------------


class Guard:
    """Stands before Gradio: closed unless open.

    Routes that the page does not need do not exist; a file is served, and taken as an answer's input, only if it is a
    plain file of the uploads; requests are bounded in size. hosts: names by which the server may be called, None for
    any (on loopback they keep another site's page, that a name leads here, from using this server).
    """

    def __init__(self, app: Any, queue: Queue, hosts: frozenset[str] | None) -> None:
        self._app, self._queue, self._hosts = app, queue, hosts
        self._open = {m: re.compile("|".join(f"(?:{p})" for p in patterns)) for m, patterns in OPEN.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            body = RequestBody(receive)
            try:
                self._check(scope)
                if scope["method"] != "POST":
                    await self._app(scope, body, _with_headers(scope, send))
                elif scope["path"].startswith("/gradio_api/upload"):
                    await self._upload(scope, body, send)
                else:
                    await self._app(scope, await self._question(body), _with_headers(scope, send))
            except Refused as refused:
                await body.drain(2 * self._queue.limits.bytes)  # a client that still sends would not read the answer
                await _say(send, refused.status, str(refused))

    def _check(self, scope: Scope) -> None:
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        path: str = scope["path"]
        if method not in self._open or not self._open[method].fullmatch(path) or ".." in path.split("/"):
            raise Refused(404, "not here")
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get(b"host", "")
        if self._hosts is not None and _split(f"//{host}").hostname not in self._hosts:
            raise Refused(403, "this server is not called by that name; use 127.0.0.1 or localhost")
        origin = headers.get(b"origin")
        if method == "POST" and origin is not None and _split(origin).netloc != host:
            raise Refused(403, "called from a page of another site")
        if path.startswith(SERVED) and not self._queue.is_upload(Path(path.removeprefix(SERVED))):
            raise Refused(404, "no such file")

    async def _question(self, receive: Receive) -> Receive:
        """The body of a request that is no upload: read whole, checked, and then given on."""
        body, more = b"", True
        while more:
            part = await receive()
            if part["type"] == "http.disconnect":
                raise Refused(400, "broken off")
            body, more = body + part.get("body", b""), part.get("more_body", False)
            if len(body) > LARGEST_QUESTION:
                raise Refused(413, f"a question may hold {LARGEST_QUESTION:,} bytes")
        self._check_question(body)
        answered = False

        async def again() -> dict[str, Any]:
            nonlocal answered
            if answered:
                return await receive()
            answered = True
            return {"type": "http.request", "body": body, "more_body": False}

        return again

    def _check_question(self, body: bytes) -> None:
        try:
            question = json.loads(body) if body.strip() else {}
        except (ValueError, RecursionError) as error:
            raise Refused(400, "a question must be JSON") from error
        for path in paths_in(question):
            if not isinstance(path, str) or not self._queue.is_upload(Path(path)):
                raise Refused(403, "a file must be uploaded first; this is none of the uploads")

    async def _upload(self, scope: Scope, body: RequestBody, send: Send) -> None:
        """Let an upload through, counted as it comes: its length may be unstated, or a lie."""
        limit = self._queue.limits.bytes
        stated = dict(scope["headers"]).get(b"content-length", b"0")
        if not stated.isdigit():
            raise Refused(400, "the length must be a number")
        too_large = Refused(413, f"the film holds more than the limit of {limit:,} bytes; cut it")
        if int(stated) > limit + UPLOAD_EXTRA:
            raise too_large
        if not self._queue.has_room(int(stated)):
            raise Refused(507, "the server's disk is full of films; try again later")
        passing = _with_headers(scope, send)

        def over() -> bool:
            return body.bytes > limit + UPLOAD_EXTRA

        async def counting() -> dict[str, Any]:
            part = {} if over() else await body()
            return {"type": "http.disconnect"} if over() else part

        async def sending(message: dict[str, Any]) -> None:
            if not over():
                await passing(message)

        try:
            await self._app(scope, counting, sending)
        except Exception:
            if not over():
                raise
        if over():
            raise too_large


def _split(address: str) -> SplitResult:
    try:
        return urlsplit(address)
    except ValueError as error:
        raise Refused(400, "an address that cannot be") from error


def _with_headers(scope: Scope, send: Send) -> Send:
    """Sends with the headers of HEADERS; Gradio's own permission for other sites' pages is left out."""
    wanted = dict(HEADERS)
    if scope["path"].startswith(SERVED):
        wanted["content-security-policy"] = "sandbox; default-src 'none'"  # what a visitor brought is never a page
    added = [(name.encode(), value.encode()) for name, value in wanted.items()]

    async def sending(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            names = [(name.decode("latin-1").lower(), name, value) for name, value in message["headers"]]
            kept = [(n, v) for low, n, v in names if low not in wanted and not low.startswith("access-control-")]
            message = {**message, "headers": kept + added}
        await send(message)

    return sending


class RequestBody:
    """Receives, and counts how much has come and whether that was all."""

    def __init__(self, receive: Receive) -> None:
        self._receive, self.bytes, self.ended = receive, 0, False

    async def __call__(self) -> dict[str, Any]:
        part = await self._receive()
        self.bytes += len(part.get("body", b""))
        self.ended = part["type"] == "http.disconnect" or not part.get("more_body", False)
        return part

    async def drain(self, most: int) -> None:
        """Read what is left, up to ``most`` bytes of body in all."""
        while not self.ended and self.bytes < most:
            await self()


class Refused(Exception):
    """A request that does not come through: an HTTP status and a line."""

    def __init__(self, status: int, line: str) -> None:
        super().__init__(line)
        self.status = status


async def _say(send: Send, status: int, line: str) -> None:
    about = {**HEADERS, "content-type": "text/plain; charset=utf-8", "connection": "close"}
    headers = [(name.encode(), value.encode()) for name, value in about.items()]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": line.encode()})


def paths_in(question: Any) -> list[Any]:
    """Every ``path`` that stands anywhere in a JSON question."""
    found: list[Any] = []
    left = [question]
    while left:
        item = left.pop()
        if isinstance(item, dict):
            found += [item["path"]] if "path" in item else []
            left += item.values()
        elif isinstance(item, list):
            left += item
    return found

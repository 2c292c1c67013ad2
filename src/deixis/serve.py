"""The web page: drop a film, write what to look for, and see where and when it is. Needs the extra ``web`` (Gradio).

Three layers: ``Guard`` (which requests come through at all), the page and its API (``make_page``), and the queue
(``deixis.jobs``) that does the work elsewhere. Nothing of a request is used as a path unless it lies in the uploads.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import secrets
import shutil
import signal
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

from deixis.jobs import FILES, SHOWN_ONLY, Job, Limits, Queue, safe, timeline
from deixis.types import DeixisError

PAGE = Path(__file__).parent / "assets" / "page"
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
FORMAT_WORDS = (
    ("Overlay film", "overlay"), ("Masks as JSON", "rle"), ("Masks as pictures", "png"),
    ("Film with alpha", "matte"),
)  # fmt: skip
LARGEST_QUESTION = 1_000_000  # bytes of a request that is no upload (our choice)
UPLOAD_EXTRA = 20_000  # bytes of an upload beside the film: its multipart frame (our choice)
SERVED = "/gradio_api/file="  # and a path of the uploads: Gradio's way to hand out a file
POLL = 0.2  # seconds between two looks at a job (our choice)
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
    # A browser asks nobody but this server, whatever a film, a sentence or a library would like.
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


def serve(
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    models: Sequence[str] = ("light",),
    limits: Limits | None = None,
    device: str = "auto",
    precision: str = "auto",
    folder: Path | None = None,
    say: Callable[[str], None] = print,
    warn: Callable[[str], None] = print,
) -> None:
    """Serve the page until a signal comes.

    models: names or checkpoint files that visitors may choose from, the first by default.  folder: where films and
    results lie (default: one a port in the user's cache); it is emptied at the start and at the end.
    say, warn: called with what a person at the terminal should read. Raises DeixisError for what can be set right.
    """
    try:
        prepare_gradio()
        import uvicorn
    except ImportError as error:
        raise DeixisError("the page needs Gradio; install it with: pip install 'deixis[web]'") from error
    from deixis.segment import choose_device, choose_precision

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            # An open page is a question that never ends; that the end cuts it off is no error to be told.
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
            await super().shutdown(sockets)

    known = known_models(models)
    choose_precision(precision, choose_device(device))
    with listen(host, port) as sock:
        at = sock.getsockname()[1]
        with Queue(folder or default_folder(at), known, limits, device=device, precision=precision) as queue:
            app = Guard(make_app(queue), queue, LOOPBACK | {host.lower()} if is_loopback(host) else None)
            config = uvicorn.Config(
                app, log_level="warning", server_header=False, access_log=False, timeout_graceful_shutdown=2,
                limit_concurrency=1000, ws="none",
            )  # fmt: skip
            name = f"[{host}]" if ":" in host else host
            if not is_loopback(host):
                warn(
                    f"warning: bound to {host}: everybody who can reach this machine may use the page; it has no "
                    "password and no encryption"
                )
            say(f"deixis is at http://{name}:{at} (Ctrl-C ends it)")
            before = signal.signal(signal.SIGTERM, _leave)  # uvicorn raises a signal again when it has shut down
            try:
                Server(config).run(sockets=[sock])
            finally:
                signal.signal(signal.SIGTERM, before)


def _leave(number: int, frame: Any) -> None:
    raise SystemExit(128 + number)


def prepare_gradio() -> None:
    """Import Gradio so that it reports to nobody, and keeps no history of runs."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_RUN_HISTORY"] = "False"  # newer ones than 6.16 have it
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    import gradio  # noqa: F401


def known_models(models: Sequence[str]) -> dict[str, str]:
    """{name that a visitor sees: name or file}. Raises DeixisError for none, an unknown one, or two of one name."""
    from deixis import weights

    if not models:
        raise DeixisError("the page needs at least one --model")
    known: dict[str, str] = {}
    for model in models:
        name = str(weights.describe(model)["name"])
        if name in known:
            raise DeixisError(f"two models are called {name!r}; rename one of the files")
        known[name] = model
    return known


def default_folder(port: int) -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "deixis" / f"serve-{port}"


def is_loopback(host: str) -> bool:
    return host.lower() in LOOPBACK or re.fullmatch(r"127(\.\d{1,3}){3}", host) is not None


def listen(host: str, port: int) -> socket.socket:
    """A socket at host and port (0: any that is free). Raises DeixisError when it cannot be had."""
    if not 0 <= port <= 65535:
        raise DeixisError(f"the port must lie between 0 and 65535, got {port}")
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(128)
    except OSError as error:
        sock.close()
        raise DeixisError(f"cannot listen at {host}:{port} ({error.strerror}); give another --host, --port") from error
    return sock


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
            body = Body(receive)
            try:
                self._check(scope)
                if scope["method"] != "POST":
                    await self._app(scope, body, _with_headers(scope, send))
                elif scope["path"].startswith("/gradio_api/upload"):
                    await self._upload(scope, body, send)
                else:
                    await self._app(scope, await self._question(body), _with_headers(scope, send))
            except Refused as refused:
                await body.drain(2 * self._queue.limits.bytes)  # who still sends would not hear the answer
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
            raise Refused(403, "asked from a page of another site")
        if path.startswith(SERVED) and not self._queue.brought(Path(path.removeprefix(SERVED))):
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
        told = False

        async def again() -> dict[str, Any]:
            nonlocal told
            if told:
                return await receive()
            told = True
            return {"type": "http.request", "body": body, "more_body": False}

        return again

    def _check_question(self, body: bytes) -> None:
        try:
            question = json.loads(body) if body.strip() else {}
        except (ValueError, RecursionError) as error:
            raise Refused(400, "a question must be JSON") from error
        for path in paths_in(question):
            if not isinstance(path, str) or not self._queue.brought(Path(path)):
                raise Refused(403, "a file must be uploaded first; this is none of the uploads")

    async def _upload(self, scope: Scope, body: Body, send: Send) -> None:
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


class Body:
    """Receives, and knows how much has come and whether that was all."""

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


# --- the page and its API ---------------------------------------------------------------------------------------------


def make_app(queue: Queue) -> Any:
    """The ASGI application: results by token and name, and Gradio for the rest."""
    os.environ["GRADIO_TEMP_DIR"] = str(queue.uploads)
    import gradio as gr
    from fastapi import FastAPI, Response
    from fastapi.responses import FileResponse

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.api_route("/results/{token}/{name}", methods=["GET", "HEAD"])
    def result(token: str, name: str) -> Response:
        job = queue.jobs.get(token)
        path = job.files.get(name) if job is not None else None
        if path is None or not path.is_file():
            return Response("no such result; it may have been deleted", 404, media_type="text/plain")
        shown = name in SHOWN_ONLY or name in ("overlay.mp4", "contact_sheet.png")
        return FileResponse(path, filename=name, content_disposition_type="inline" if shown else "attachment")

    font = ("system-ui", "Segoe UI", "Roboto", "Helvetica Neue", "Liberation Sans", "sans-serif")
    return gr.mount_gradio_app(
        app,
        make_page(queue),
        path="/",
        theme=gr.themes.Base(
            font=font, font_mono=("ui-monospace", "Consolas", "monospace"), primary_hue="teal", neutral_hue="stone",
            radius_size="lg",
        ),
        css=(PAGE / "page.css").read_text(encoding="utf-8"),
        head=f"<script>{(PAGE / 'page.js').read_text(encoding='utf-8')}</script>",
        max_file_size=queue.limits.bytes,
        show_error=False,  # an error that is not meant for visitors stays in the log
        footer_links=["api"],
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
    )  # fmt: skip


def make_page(queue: Queue) -> Any:
    """The page as Gradio blocks. Its API has two names: ``/segment``, and ``/models`` for what may be asked."""
    import gradio as gr

    async def find(film: str | None, text: str, model: str, formats: list[str], request: Any) -> Any:
        try:
            job = queue.submit(Path(film or ""), text or "", model or "", formats or [], request.session_hash or "")
        except DeixisError as error:
            yield status_html("failed", str(error)), gr.skip(), gr.skip(), gr.skip()
            return
        async with aclosing(following(queue, job)) as news:
            async for _ in news:
                yield job_html(queue, job), waiting_html(), gr.update(interactive=False), gr.update(interactive=True)
        end = result_html(job) if job.state == "done" else empty_html()
        yield job_html(queue, job), end, gr.update(interactive=True), gr.update(interactive=False)

    async def api_segment(film: str, text: str, model: str, formats: list[str], request: Any) -> Any:
        try:
            job = queue.submit(Path(film or ""), text or "", model or "", formats or [], request.session_hash or "")
        except DeixisError as error:
            raise gr.Error(str(error), print_exception=False) from error
        async with aclosing(following(queue, job)) as news:
            async for _ in news:
                yield facts(queue, job), None
        if job.state == "failed":
            raise gr.Error(job.message, print_exception=False)
        yield facts(queue, job), [str(p) for n, p in shareable(queue, job).items() if n not in SHOWN_ONLY] or None

    def stop(request: Any) -> None:
        queue.cancel_all_of(request.session_hash or "nobody")

    def demo_film() -> tuple[str, str]:
        from deixis.weights import DEMO_EXPRESSIONS, DEMO_FILM

        place = queue.uploads / secrets.token_hex(16)
        place.mkdir()
        shutil.copyfile(DEMO_FILM, place / DEMO_FILM.name)
        return str(place / DEMO_FILM.name), "\n".join(DEMO_EXPRESSIONS)

    def models() -> list[str]:
        return list(queue.models)

    for function in (find, api_segment, stop):  # an annotation is how Gradio is asked for the request
        function.__annotations__["request"] = gr.Request
    limits = queue.limits
    names = list(queue.models)
    with gr.Blocks(title="deixis", analytics_enabled=False, fill_width=True) as page:
        gr.HTML(
            f'<header class="dx-head" data-bytes="{limits.bytes}"><h1>deixis</h1>'
            "<p>Point at things in a film with words.</p></header>"
        )
        with gr.Row(equal_height=False, elem_classes="dx-row"):
            with gr.Column(scale=0, min_width=340, elem_classes="dx-ask"):
                film = gr.File(label="Film", height=128, elem_id="film")
                demo = gr.Button("Use the demo film", size="sm", variant="secondary", elem_id="demo")
                text = gr.Textbox(
                    label="What to look for, one sentence a line", lines=4, max_lines=limits.sentences + 2,
                    placeholder="the woman in the black dress\nthe bench", elem_id="sentences",
                )  # fmt: skip
                model = gr.Dropdown(names, value=names[0], label="Model", elem_id="model", visible=len(names) > 1)
                formats = gr.CheckboxGroup(
                    list(FORMAT_WORDS), value=["overlay", "rle"], label="To download", elem_id="formats"
                )
                with gr.Row(elem_classes="dx-buttons"):
                    go = gr.Button("Find", variant="primary", elem_id="find", min_width=80)
                    halt = gr.Button("Stop", variant="secondary", interactive=False, elem_id="stop", min_width=80)
                gr.HTML(f'<p class="dx-limits">{safe(limits_line(limits))}</p>')
            with gr.Column(scale=1, min_width=320, elem_classes="dx-answer"):
                status = gr.HTML(elem_id="status")
                result = gr.HTML(empty_html(), elem_id="result")
        go.click(
            find, [film, text, model, formats], [status, result, go, halt], api_visibility="private",
            concurrency_limit=None, show_progress="hidden",
        )  # fmt: skip
        halt.click(stop, None, None, api_visibility="private", queue=False, show_progress="hidden")
        demo.click(demo_film, None, [film, text], api_visibility="private", queue=False, show_progress="hidden")
        for_programs = gr.Button(visible=False)
        for_programs.click(
            api_segment, [film, text, model, formats], [gr.JSON(visible=False), gr.Files(visible=False)],
            api_name="segment", concurrency_limit=None,
            api_description="Find what sentences (one a line) name in a film; yields progress, then facts and files.",
        )  # fmt: skip
        gr.api(models, api_name="models", queue=False)
        page.unload(stop)
    page.queue(default_concurrency_limit=None, api_open=False)
    return page


async def following(queue: Queue, job: Job) -> AsyncGenerator[None, None]:
    """Comes back whenever there is news of a job, until it is over. When nobody listens any more, the job is stopped.

    The caller must close it (``aclosing``), or the job of a listener who has left would go on.
    """
    news: Any = None
    try:
        while not job.over:
            now = (job.state, job.stage, job.frames, queue.ahead(job))
            if now != news:
                news = now
                yield
            await asyncio.sleep(POLL)
    finally:
        if not job.over:
            queue.cancel(job)


def shareable(queue: Queue, job: Job) -> Mapping[str, Path]:
    """The job's files, linked to where Gradio may read them: a folder of the uploads, swept like a film."""
    if not job.files:
        return {}
    place = queue.uploads / secrets.token_hex(16)
    place.mkdir()
    found = {}
    for name, path in job.files.items():
        os.link(path, place / name)
        found[name] = place / name
    return found


def facts(queue: Queue, job: Job) -> dict[str, Any]:
    """What a program is told: state, then ahead, or stage, frames, of and seconds_left, or objects and warnings."""
    known: dict[str, Any] = {"state": job.state}
    if job.state == "waiting":
        known["ahead"] = queue.ahead(job)
    elif job.state == "working":
        left = job.seconds_left
        known |= {"stage": job.stage, "frames": job.frames, "of": job.of}
        known |= {"seconds_left": None if left is None else round(left, 1)}
    elif job.state == "done":
        known |= {"seconds": round(job.length, 3), "objects": job.rows, "warnings": job.warnings}
    return known


def limits_line(limits: Limits) -> str:
    minutes = f"{limits.keep / 60:g} minutes"
    return (
        f"Films of up to {limits.seconds:g} s and {limits.bytes / 1e6:g} MB, up to {limits.sentences} sentences. "
        f"Film and results are deleted after {minutes}."
    )


def job_html(queue: Queue, job: Job) -> str:
    """The line and the bar over the results."""
    if job.state == "waiting":
        ahead = queue.ahead(job)
        line = "Your film is next." if ahead < 2 else f"{ahead} films are before yours."
        return status_html("waiting", f"Waiting: another film is being looked at. {line}")
    if job.state == "working":
        left, share = job.seconds_left, job.frames / job.of if job.of else 0.0
        words = {"looking": "Looking", "drawing": "Drawing"}.get(job.stage, "Opening the film")
        of = f" of {job.of}" if job.of else ""
        line = f"{words}: frame {job.frames}{of}" if job.frames else f"{words} …"
        part = {"looking": 0, "drawing": 1}.get(job.stage, 0)
        note = "" if left is None else f"about {max(1, round(left))} s left to {'look' if part == 0 else 'draw'}"
        return status_html("working", line, note, (part + min(1.0, share)) / 2)
    if job.state == "done":
        return status_html("done", "; ".join(job.warnings)) if job.warnings else ""
    return status_html(job.state, job.message or "Stopped.")


def status_html(state: str, line: str, note: str = "", share: float | None = None) -> str:
    role = "alert" if state == "failed" else "status"
    bar = "" if share is None else f'<div class="dx-progress"><i style="width:{100 * share:.1f}%"></i></div>'
    words = f"<span>{safe(line)}</span><span>{safe(note)}</span>"
    return f'<div class="dx-status" data-state="{state}" role="{role}"><p>{words}</p>{bar}</div>'


def empty_html() -> str:
    return (
        '<div class="dx-empty"><p>Drop a film, write what to look for, and press <b>Find</b>.</p>'
        "<p>Here you will see where each thing is, and when.</p></div>"
    )


def waiting_html() -> str:
    return '<div class="dx-busy"><i></i><i></i></div>'


def result_html(job: Job) -> str:
    """Players side by side, the timeline, the table, the contact sheet, the downloads."""
    link = {name: f"results/{job.token}/{name}" for name in job.files}
    films = [(name, "Your film" if name in SHOWN_ONLY else "What was found") for name in (*SHOWN_ONLY, "overlay.mp4")]
    players = "".join(
        f'<figure><video src="{link[name]}" preload="auto" playsinline {"muted" if name in SHOWN_ONLY else ""}></video>'
        f"<figcaption>{words}</figcaption></figure>"
        for name, words in films
        if name in link
    )
    sizes = {name: size_words(path.stat().st_size) for name, path in job.files.items()}
    downloads = "".join(
        f'<a href="{url}" download="{name}">{FILES[name]}<small>{sizes[name]}</small></a>'
        for name, url in link.items()
        if name not in SHOWN_ONLY
    )
    bars = timeline(job.rows, job.length)
    return (
        f'<section class="dx-result" data-length="{job.length:.3f}"><div class="dx-pair">{players}</div>'
        '<div class="dx-bar"><button type="button" class="dx-play" aria-label="Play">▶</button>'
        f'<span class="dx-time">0.0 / {job.length:.1f} s</span></div>'
        f'<div class="dx-timeline"><input type="range" class="dx-seek" min="0" max="{job.length:.3f}" step="0.01" '
        f'value="0" aria-label="Position in the film">{bars}<i class="dx-head-line"></i></div>'
        f'<div class="dx-downloads" aria-label="Downloads">{downloads}</div>{table_html(job.rows)}'
        f'<img class="dx-sheet" src="{link["contact_sheet.png"]}" alt="Frames of the film, a row a sentence">'
        "</section>"
    )


def table_html(rows: Sequence[Mapping[str, Any]]) -> str:
    """Presence, a row a sentence."""
    lines = []
    for row in rows:
        when = ", ".join(f"{begin:.1f}–{end:.1f} s" for begin, end in row["stretches"][:4])
        when += f" and {len(row['stretches']) - 4} more" if len(row["stretches"]) > 4 else ""
        verdict = "there" if row["present"] else "not there"
        share = f"{100 * row['share']:.1f} %" if row["present"] else "–"
        lines.append(
            f'<tr data-present="{str(row["present"]).lower()}"><td><i style="background:{row["colour"]}"></i>'
            f"{safe(row['sentence'])}</td><td>{verdict}</td><td>{row['presence']:.2f}</td><td>{when or '–'}</td>"
            f"<td>{share}</td></tr>"
        )
    head = "".join(f"<th>{words}</th>" for words in ("Sentence", "Is it there?", "Presence", "When", "Of the picture"))
    return f'<table class="dx-table"><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table>'


def size_words(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{max(1, round(size / 1e3))} kB"

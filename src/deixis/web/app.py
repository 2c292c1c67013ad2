"""The web page: drop a film, write what to look for, and see where and when it is. Needs the extra ``web`` (Gradio).

Three layers: ``Guard`` (which requests come through at all), the page and its API (``make_page``), and the queue
(``deixis.web.queue``) that has the work done in another process. Nothing of a request is used as a path unless it
lies in the uploads.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import shutil
import signal
import socket
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from deixis import weights
from deixis.devices import choose_device, choose_precision
from deixis.types import DeixisError
from deixis.web.guard import LOOPBACK, Guard, is_loopback
from deixis.web.html import empty_html, job_html, limits_line, result_html, status_html, waiting_html
from deixis.web.jobs import SHOWN_ONLY, Job, Limits
from deixis.web.queue import Queue
from deixis.web.timeline import safe
from deixis.weights import DEMO_EXPRESSIONS, DEMO_FILM
from deixis.writers import FORMATS

PAGE = Path(__file__).parents[1] / "assets" / "page"
FORMAT_WORDS = [(form.choice, name) for name, form in FORMATS.items()]
POLL = 0.2  # seconds between two polls of a job (our choice)


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

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            # An open page is a request that never ends; cutting it off at the end is no error.
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
    """Import Gradio so that it sends no reports, and keeps no history of runs."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_RUN_HISTORY"] = "False"  # newer ones than 6.16 have it
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    import gradio  # noqa: F401


def known_models(models: Sequence[str]) -> dict[str, str]:
    """{name on the page: name or file}. Raises DeixisError for none, an unknown one, or two of one name."""
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


def listen(host: str, port: int) -> socket.socket:
    """A socket at host and port (0: any that is free). Raises DeixisError when it cannot be had."""
    if not 0 <= port <= 65535:
        raise DeixisError(f"the port must lie between 0 and 65535, got {port}")
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(128)
    except (OSError, TypeError) as error:  # the latter of a host that no name can be made of, "é..", say
        sock.close()
        reason = getattr(error, "strerror", None) or error
        raise DeixisError(f"cannot listen at {host}:{port} ({reason}); give another --host, --port") from error
    return sock


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


def lay_out(queue: Queue) -> tuple[Any, ...]:
    """Put the page's parts into the open blocks: film, text, model, formats; three buttons; status, result."""
    import gradio as gr

    limits, names = queue.limits, list(queue.models)
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
            formats = gr.CheckboxGroup(FORMAT_WORDS, value=["overlay", "rle"], label="To download", elem_id="formats")
            with gr.Row(elem_classes="dx-buttons"):
                go = gr.Button("Find", variant="primary", elem_id="find", min_width=80)
                halt = gr.Button("Stop", variant="secondary", interactive=False, elem_id="stop", min_width=80)
            gr.HTML(f'<p class="dx-limits">{safe(limits_line(limits))}</p>')
        with gr.Column(scale=1, min_width=320, elem_classes="dx-answer"):
            status = gr.HTML(elem_id="status")
            result = gr.HTML(empty_html(), elem_id="result")
    return film, text, model, formats, demo, go, halt, status, result


def make_page(queue: Queue) -> Any:
    """The page as Gradio blocks. Its API has two names: ``/segment``, and ``/models`` for the choices."""
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
        place = queue.uploads / secrets.token_hex(16)
        place.mkdir()
        shutil.copyfile(DEMO_FILM, place / DEMO_FILM.name)
        return str(place / DEMO_FILM.name), "\n".join(DEMO_EXPRESSIONS)

    def models() -> list[str]:
        return list(queue.models)

    for function in (find, api_segment, stop):  # by an annotation Gradio hands over the request
        function.__annotations__["request"] = gr.Request
    with gr.Blocks(title="deixis", analytics_enabled=False, fill_width=True) as page:
        film, text, model, formats, demo, go, halt, status, result = lay_out(queue)
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
    """Comes back whenever there is news of a job, until it is over. When its reader has gone, the job is stopped.

    The caller must close it (``aclosing``), or the job of a reader that has left would go on.
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
    """What a program gets: state, then ahead, or stage, frames, of and seconds_left, or objects and warnings."""
    known: dict[str, Any] = {"state": job.state}
    if job.state == "waiting":
        known["ahead"] = queue.ahead(job)
    elif job.state == "working":
        left = job.seconds_left
        known |= {"stage": job.stage, "frames": job.frames, "of": job.of}
        known |= {"seconds_left": None if left is None else round(left, 1)}
    elif job.state == "done":
        known |= {"seconds": round(job.length, 3), "objects": job.rows, "warnings": job.warnings}
        known["run"] = job.run
    return known

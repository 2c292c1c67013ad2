"""Commands over a user's videos: segment, demo, batch, serve."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deixis.cli.options import (
    DeviceOption,
    EndOption,
    EveryOption,
    FormatOption,
    FpsOption,
    ModelOption,
    PixelsOption,
    PrecisionOption,
    SelectionOption,
    StartOption,
    ThresholdOption,
)  # fmt: skip
from deixis.progress import Screen, counting_bar

if TYPE_CHECKING:
    from deixis.out_folder import Output

FILE_SUFFIXES = frozenset({".png", ".jpg", ".json", ".zip"})  # and those of films: no folder of results is called so

JsonOption = Annotated[bool, typer.Option("--json", help="Print each verdict as a line of JSON, and nothing else.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print the verdicts and what went wrong only.")]


def segment(
    film: Annotated[str, typer.Argument(metavar="VIDEO", help="A film, or a folder of frames.")],
    expressions: Annotated[list[str], typer.Argument(help="Words that name an object; one or more.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")],
    formats: FormatOption = "overlay,rle",
    model: ModelOption = "light",
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    start: StartOption = None,
    end: EndOption = None,
    every: EveryOption = 1,
    size: Annotated[
        int | None, typer.Option(help="Short side at which frames are encoded, pixels (default: as trained).")
    ] = None,
    threshold: ThresholdOption = None,
    selection: SelectionOption = None,
    fps: FpsOption = 24.0,
    max_pixels: PixelsOption = 50_000_000,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace results in a folder that is not empty.")
    ] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Cut the object that each EXPRESSION names out of VIDEO."""
    from deixis.inference import check_choices
    from deixis.out_folder import Output
    from deixis.sentences import as_expressions
    from deixis.types import DeixisError
    from deixis.video import FILM_SUFFIXES, Video
    from deixis.writers import check_formats

    kinds = check_formats(formats)
    as_expressions(expressions)
    _check_words(film, expressions)
    check_choices(
        device=device, precision=precision, threshold=threshold, selection=selection, size=size, model=model
    )  # fmt: skip
    output = Output(out, overwrite=overwrite, keep=True)
    output.check()  # before the film is read
    source = Video(film, start=start, end=end, every=every, max_pixels=max_pixels, fps=fps)
    if source.path.is_dir() and source.path.resolve() == output.out.resolve():
        raise DeixisError(f"{out} is the folder of the frames themselves; give another one with -o")
    screen = Screen(as_json=as_json, quiet=quiet or as_json)
    if out.suffix.lower() in FILM_SUFFIXES | FILE_SUFFIXES and not out.is_dir():
        screen.warn(f"{out} will be a folder, for there are several results; a film in it is overlay.mp4")
    _segment_to_disk(source, expressions, output, kinds, model, device, precision, size, threshold, screen, selection)


def _check_words(film: str, expressions: Sequence[str]) -> None:
    """Refuse a second file where words belong, and a film that stands behind its words."""
    from deixis.types import DeixisError
    from deixis.video.paths import is_file, is_there

    files = [words for words in expressions if " " not in words and "." in words and is_file(Path(words))]
    if files and not is_there(Path(film)):
        raise DeixisError(f"{film!r} is no file and {files[0]!r} is one; the film comes first, then the words")
    if files:
        raise DeixisError(
            f"{files[0]!r} is a file, where words belong; segment takes one film and then what to look for, and"
            " `deixis batch` a list of films"
        )


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")] = Path("deixis-demo"),
    formats: FormatOption = "overlay,rle",
    model: ModelOption = "light",
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
) -> None:
    """Run `segment` on the short clip that comes with deixis, with three expressions, one of something not there."""
    from deixis.inference import check_choices
    from deixis.out_folder import Output
    from deixis.video import Video
    from deixis.weights import DEMO_EXPRESSIONS, DEMO_FILM
    from deixis.writers import check_formats

    kinds = check_formats(formats)
    check_choices(device=device, precision=precision, model=model)
    output = Output(out, overwrite=True, keep=True)
    output.check()
    source = Video(DEMO_FILM)
    typer.echo(f"{DEMO_FILM}")
    _segment_to_disk(source, DEMO_EXPRESSIONS, output, kinds, model, device, precision, None, None, Screen())


def _segment_to_disk(
    film: Any,
    expressions: Sequence[str],
    output: Output,
    formats: Sequence[str],
    model: str,
    device: str,
    precision: str,
    size: int | None,
    threshold: float | None,
    screen: Screen,
    selection: str | None = None,
) -> None:
    """The two passes over a film, with what the screen shows."""
    from deixis.devices import run_facts, run_words
    from deixis.inference import model_size, remarks_on
    from deixis.inference import segment as answer
    from deixis.verdicts import TrackSummary
    from deixis.weights import describe, load

    about = describe(model)
    stopped = False
    try:
        with output:
            for note in output.notes:
                screen.warn(note)
            for remark in remarks_on(expressions, model):
                screen.warn(remark)
            system: Any = load(model)
            model_size(film.source_size, system.config, size)  # refuses a size below what a preset takes
            screen.note(run_words(run_facts(system, device, precision), about["name"]))
            with screen.frames_bar("segmenting", film.length) as progress, _ctrl_c_once() as stop:
                tracks = answer(
                    film, expressions, model=system, device=device, precision=precision, size=size,
                    threshold=threshold, selection=selection, folder=output.scratch, progress=progress, stop=stop,
                )  # fmt: skip
                stopped = stop()
            run = run_facts(system, device, precision)
            about |= run
            if stopped:  # what is answered is kept in the form that is quickest to write
                formats = ("rle",)
            _write_or_rescue(output, film, tracks, formats, about, not stopped, screen)
            for track in tracks:
                screen.verdict(TrackSummary.of(track), run)
    except KeyboardInterrupt:
        stopped = True
    finally:
        for warning in film.warnings:
            screen.warn(warning)
    for path in output.paths:
        screen.note(f"wrote {path}", err=False)
    if stopped:
        kept = "what was finished is kept" if output.paths else "nothing was finished"
        typer.echo(f"deixis: stopped; {kept}", err=True)
        raise typer.Exit(130)


def _write_or_rescue(
    output: Output, film: Any, tracks: Any, formats: Sequence[str], about: Any, complete: bool, screen: Screen
) -> None:
    """Write all formats; whatever fails, the masks are kept."""
    from deixis.writers import write
    from deixis.writers.rle import write_rle

    try:
        with screen.frames_bar("drawing", len(tracks[0])) as progress:
            write(output, film, tracks, formats, model=about, complete=complete, progress=progress)
    except Exception:  # whatever it is: the answers shall not be lost
        if "masks.json" not in output.finished:
            with contextlib.suppress(OSError):
                output.rescue("masks.json", lambda path: write_rle(path, film, tracks, model=about, complete=complete))
        raise


@contextmanager
def _ctrl_c_once() -> Iterator[Callable[[], bool]]:
    """Yields a function that returns whether Ctrl-C was pressed; a second Ctrl-C interrupts as always."""
    pressed = []

    def note(number: int, frame: Any) -> None:
        pressed.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        typer.echo("stopping after this window; Ctrl-C again to stop at once", err=True)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


def batch(
    manifest: Annotated[str, typer.Argument(help="A CSV or JSONL of films, sentences and options; a path or a URL.")],
    out: Annotated[str, typer.Option("--out", "-o", help="Folder (or URL) for the results; it is taken up there.")],
    formats: FormatOption = "overlay,rle",
    model: ModelOption = "light",
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    start: StartOption = None,
    end: EndOption = None,
    every: EveryOption = 1,
    size: Annotated[int | None, typer.Option(help="Short side at which frames are encoded, pixels.")] = None,
    threshold: ThresholdOption = None,
    fps: FpsOption = 24.0,
    max_pixels: PixelsOption = 50_000_000,
    engine: Annotated[str, typer.Option(help="local: this machine; ray: a Ray cluster (extra `cluster`).")] = "local",
    address: Annotated[str | None, typer.Option(help="Of the Ray cluster (default: one is started here).")] = None,
    workers: Annotated[int | None, typer.Option(help="Films at once (default: a GPU or a core each).")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of a worker (default: cores / workers).")] = None,
    tries: Annotated[int, typer.Option(help="Workers that a film may kill before it is given up.")] = 3,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and how long it takes.")] = False,
    rate_from: Annotated[str | None, typer.Option(help="With --dry-run: a results.jsonl whose speed counts.")] = None,
) -> None:
    """Run `segment` on every film of MANIFEST; finished films are passed over. A row's own options go first."""
    from deixis.batch.forecast import forecast, forecast_lines
    from deixis.batch.manifest import Options
    from deixis.batch.run import batch as run_batch
    from deixis.batch.run import plan, summary_lines
    from deixis.writers import check_formats

    planned = plan(
        manifest, out, model=model, device=device, precision=precision, engine=engine, address=address,
        workers=workers, threads=threads, tries=tries,
        defaults=Options(
            formats=check_formats(formats), start=start, end=end, every=every, size=size, threshold=threshold,
            fps=fps, max_pixels=max_pixels,
        ),
    )  # fmt: skip
    if dry_run:
        for line in forecast_lines(forecast(planned, rate_from)):
            typer.echo(line)
        return
    with counting_bar("films") as progress:
        summary = run_batch(planned, progress=progress, say=lambda line: typer.echo(line, err=True))
    for bad in summary.failed:
        typer.echo(f"failed: {bad['film']} (row {bad['row']}): {bad['reason']}", err=True)
    for line in summary_lines(summary, out):
        typer.echo(line)
    if summary.stopped:
        typer.echo("deixis: stopped; what is finished is kept, and the same command goes on from there", err=True)
        raise typer.Exit(130)
    if summary.failed:
        raise typer.Exit(1)


def serve(
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at; 0 takes a free one.")] = 7860,
    model: Annotated[
        list[str] | None, typer.Option(help="A model that visitors may choose; repeatable (default: light).")
    ] = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    folder: Annotated[
        Path | None, typer.Option(help="Where films and results lie; emptied at start and end (default: in the cache).")
    ] = None,
    max_bytes: Annotated[int, typer.Option(help="Of one film.")] = 200_000_000,
    max_pixels: Annotated[int, typer.Option(help="Of one frame.")] = 10_000_000,
    max_seconds: Annotated[float, typer.Option(help="Of one film.")] = 120.0,
    max_sentences: Annotated[int, typer.Option(help="Of one job.")] = 8,
    max_jobs: Annotated[int, typer.Option(help="That wait, besides the one at work.")] = 8,
    max_work: Annotated[float, typer.Option(help="Seconds that one job may take.")] = 1800.0,
    max_room: Annotated[int, typer.Option(help="Bytes of all films and results together.")] = 10_000_000_000,
    keep: Annotated[float, typer.Option(help="Seconds that a film and its results stay after the job.")] = 1800.0,
) -> None:
    """Serve a web page: drop a film, write what to look for, see where and when it is (extra `web`)."""
    from deixis.web.app import serve as serve_page
    from deixis.web.jobs import Limits

    limits = Limits(
        bytes=max_bytes, pixels=max_pixels, seconds=max_seconds, sentences=max_sentences, jobs=max_jobs,
        work=max_work, keep=keep, room=max_room,
    )  # fmt: skip
    serve_page(
        host=host, port=port, models=model or ["light"], limits=limits, device=device, precision=precision,
        folder=folder, say=typer.echo, warn=lambda line: typer.echo(line, err=True),
    )  # fmt: skip

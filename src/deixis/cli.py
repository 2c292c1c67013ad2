"""The command line: thin words over the functions of the package. Imports no torch until a command runs."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

try:
    from typer._click.exceptions import UsageError  # newer ones bring their own
except ImportError:
    from click.exceptions import UsageError  # type: ignore[assignment]

from deixis import __version__
from deixis.progress import Screen, counting_bar, frames_bar, training_bar
from deixis.tables import BENCHMARK_FILES, FORMAT_FILES

if TYPE_CHECKING:
    from deixis.metrics.summary import Scores
    from deixis.out_folder import Output


class OneLineErrors(TyperGroup):
    """What a user caused ends in one line on stderr and exit status 2; Ctrl-C in status 130."""

    def invoke(self, ctx: Any) -> Any:
        words = [*ctx._protected_args, *ctx.args]
        try:
            return super().invoke(ctx)
        except UsageError as error:
            dashed = next((word for word in words if word.startswith("-") and Path(word).exists()), None)
            if dashed is None:
                raise
            line = f"{dashed} is taken for an option, since it begins with a dash; write ./{dashed}"
            typer.echo(f"deixis: {line}", err=True)
            raise typer.Exit(2) from error
        except ValueError as error:
            types = sys.modules.get("deixis.types")  # unless a command has imported it, the error cannot be ours
            if types is None or not isinstance(error, types.DeixisError):
                raise
            typer.echo(f"deixis: {' '.join(str(error).split())}", err=True)
            raise typer.Exit(2) from error
        except KeyboardInterrupt as error:
            typer.echo("deixis: stopped", err=True)
            raise typer.Exit(130) from error


app = typer.Typer(
    name="deixis",
    cls=OneLineErrors,
    help="Point at things in a video with words: referring video object segmentation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


ModelOption = Annotated[str, typer.Option(help="A name that `deixis models` lists, or a checkpoint file.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
PrecisionOption = Annotated[str, typer.Option(help="auto, fp32 or bf16.")]
FormatOption = Annotated[str, typer.Option("--as", help=f"Of {', '.join(FORMAT_FILES)}; commas between.")]
StartOption = Annotated[float | None, typer.Option(help="Begin at this second.")]
EndOption = Annotated[float | None, typer.Option(help="End before this second.")]
EveryOption = Annotated[int, typer.Option(help="Look at each Nth frame.")]
ThresholdOption = Annotated[
    float | None,
    typer.Option(help="Presence below which masks stay empty, above 0 and below 1 (default: the model's own)."),
]
SelectionOption = Annotated[
    str | None, typer.Option(help="official: the rule of the model's paper; linked: one path (default: the model's).")
]
FpsOption = Annotated[float, typer.Option(help="Frames per second of a folder of frames.")]
PixelsOption = Annotated[int, typer.Option(help="Refuse frames that hold more pixels.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"deixis {__version__}")
        raise typer.Exit


VersionOption = Annotated[
    bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
]


@app.callback()
def deixis(version: VersionOption = False) -> None:
    """Point at things in a video with words: referring video object segmentation."""


JsonOption = Annotated[bool, typer.Option("--json", help="Print each verdict as a line of JSON, and nothing else.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print the verdicts and what went wrong only.")]


@app.command()
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
    from deixis.out_folder import Output
    from deixis.types import DeixisError
    from deixis.video import Video
    from deixis.writers import check_formats

    kinds = check_formats(formats)
    output = Output(out, overwrite=overwrite, keep=True)
    output.check()  # before the film is read
    source = Video(film, start=start, end=end, every=every, max_pixels=max_pixels, fps=fps)
    if source.path.is_dir() and source.path.resolve() == output.out.resolve():
        raise DeixisError(f"{out} is the folder of the frames themselves; give another one with -o")
    screen = Screen(as_json=as_json, quiet=quiet or as_json)
    _segment_to_disk(source, expressions, output, kinds, model, device, precision, size, threshold, screen, selection)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")] = Path("deixis-demo"),
    formats: FormatOption = "overlay,rle",
    model: ModelOption = "light",
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
) -> None:
    """Run `segment` on the short clip that comes with deixis, with three expressions, one of something not there."""
    from deixis.out_folder import Output
    from deixis.video import Video
    from deixis.weights import DEMO_EXPRESSIONS, DEMO_FILM
    from deixis.writers import check_formats

    kinds = check_formats(formats)
    source = Video(DEMO_FILM)
    typer.echo(f"{DEMO_FILM}")
    output = Output(out, overwrite=True, keep=True)
    _segment_to_disk(source, DEMO_EXPRESSIONS, output, kinds, model, device, precision, None, None, Screen())


@app.command()
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
        summary = run_batch(planned, progress=progress)
    for bad in summary.failed:
        typer.echo(f"failed: {bad['film']} (row {bad['row']}): {bad['reason']}", err=True)
    for line in summary_lines(summary, out):
        typer.echo(line)
    if summary.stopped:
        typer.echo("deixis: stopped; what is finished is kept, and the same command goes on from there", err=True)
        raise typer.Exit(130)
    if summary.failed:
        raise typer.Exit(1)


@app.command()
def models() -> None:
    """List systems, presets and checkpoints, what they need, their licences, and where each file lies."""
    from deixis.systems import NEEDS, PRESETS, SYSTEMS
    from deixis.weights import KNOWN

    typer.echo(f"systems      {', '.join(SYSTEMS)}")
    typer.echo(f"presets      {', '.join(PRESETS)}  (those named _debug load with random weights)")
    for preset, needed in NEEDS.items():
        typer.echo(f"needs        {preset}: {needed}")
    for checkpoint in KNOWN.values():
        place = checkpoint.place
        where = f"{place} ({place.stat().st_size / 1e6:.1f} MB)" if place.is_file() else f"{place} (not there)"
        typer.echo(f"checkpoint   {checkpoint.name}: preset {checkpoint.preset}; {checkpoint.licence}; {where}")


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
    """The two passes over a film, with what is seen on the screen."""
    from deixis.inference import as_expressions, choose_device, choose_precision, remarks_on
    from deixis.inference import segment as answer
    from deixis.verdicts import TrackSummary, run_facts, run_words
    from deixis.weights import describe, load

    as_expressions(expressions)  # refuses what is none, before anything is read
    where = choose_device(device)
    reduced = choose_precision(precision, where)
    about = describe(model)
    stopped = False
    try:
        with output:
            for note in output.notes:
                screen.warn(note)
            for remark in remarks_on(expressions, model):
                screen.warn(remark)
            system = load(model)
            screen.note(f"{about['name']} on {run_words(run_facts(system, where, reduced))}")
            with screen.frames_bar("segmenting", film.length) as progress, _ctrl_c_once() as stop:
                tracks = answer(
                    film, expressions, model=system, device=device, precision=precision, size=size,
                    threshold=threshold, selection=selection, folder=output.scratch, progress=progress, stop=stop,
                )  # fmt: skip
                stopped = stop()
            run = run_facts(system, where, reduced)
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
    """Yields a function that tells whether Ctrl-C was pressed; a second Ctrl-C interrupts as always."""
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


@app.command()
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


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="What to train, on what: a name that `deixis recipes` lists.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for checkpoints, metrics and the model.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="model.X, train.X or data.X; repeatable.")
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option("--data", metavar="NAME=PATH", help="Where a dataset lies; repeatable.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in the folder.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
) -> None:
    """Train a system by a recipe; several GPUs: torchrun --nproc-per-node N -m deixis.cli train ..."""
    from deixis.training.loop import train as train_run
    from deixis.training.recipes import find_recipe

    places = {name: Path(place) for name, place in _pairs(data, "--data NAME=PATH").items()}
    run = find_recipe(recipe)(places, overrides=_pairs(settings, "--set FIELD=VALUE"))
    with training_bar(run.train.steps) as report, _disk_errors_as_ours(out):  # under torchrun the first process reports
        outcome = train_run(run, out, device=device, resume=resume, report=report)
    if os.environ.get("RANK", "0") == "0":
        typer.echo(f"{outcome.stopped} at step {outcome.step} of {run.train.steps}; the model: {outcome.model}")
        for name, number in outcome.counts.items():
            typer.echo(f"{name.replace('_', ' ')}: {number:g}")
    if outcome.stopped.startswith("SIG"):
        raise typer.Exit(128 + getattr(signal, outcome.stopped))


@contextmanager
def _disk_errors_as_ours(out: Path) -> Iterator[None]:
    """What a disk refuses while a run is written, as one line; what stands in OUT is whole."""
    from safetensors import SafetensorError

    from deixis.out_folder import disk_refuses
    from deixis.types import DeixisError

    try:
        yield
    except (OSError, SafetensorError) as error:
        if not disk_refuses(error):
            raise
        there = (out / "last.safetensors").is_file()
        kept = "the last checkpoint is whole, go on from it with --resume" if there else "nothing was written"
        raise DeixisError(f"cannot write to {out} ({getattr(error, 'strerror', None) or error}); {kept}") from error


def _pairs(items: list[str] | None, form: str) -> dict[str, str]:
    from deixis.types import DeixisError

    for item in items or []:
        if not all(item.partition("=")[::2]):
            raise DeixisError(f"expected {form}, got {item!r}")
    return {item.partition("=")[0]: item.partition("=")[2] for item in items or []}


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="A recipe (default: all, in a table).")] = None,
) -> None:
    """List what can be trained: data, published run, batch, length, hardware, and what differs from the publication."""
    from deixis.training.recipes import RECIPES, find_recipe
    from deixis.training.recipes.statements import describe_recipe, table

    if name is None:
        typer.echo("\n".join(table(RECIPES)))
        return
    find_recipe(name)
    typer.echo("\n".join(describe_recipe(name)))


@app.command()
def world(
    out: Annotated[Path, typer.Argument(help="A new folder for the benchmark.")],
    films: Annotated[int, typer.Option(help="How many films, over the three splits.")] = 100,
    seed: Annotated[int, typer.Option(help="The same seed makes the same films.")] = 0,
    size: Annotated[str, typer.Option(help="Height x width in pixels.")] = "240x432",
    frames: Annotated[int, typer.Option(help="Frames a film.")] = 24,
    cutouts: Annotated[Path | None, typer.Option(help="A folder of real pictures and cut-outs to use too.")] = None,
) -> None:
    """Write a generated benchmark with exact truth, in the layout of MeViS."""
    from deixis.synthetic.world import write_mevis
    from deixis.synthetic.world_config import WorldConfig
    from deixis.types import DeixisError

    height, _, width = size.partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise DeixisError(f"--size must be HEIGHTxWIDTH in pixels, as 240x432, got {size!r}")
    config = WorldConfig(size=(int(height), int(width)), frames=frames, cutouts=cutouts)
    with frames_bar("making films", films * frames) as progress:
        counts = write_mevis(out, films, seed=seed, config=config, progress=lambda done: progress(done * frames))
    typer.echo(f"{out}: " + ", ".join(f"{count} films in {split}" for split, count in counts.items()))


BenchmarkArgument = Annotated[str, typer.Argument(help=f"{', '.join(BENCHMARK_FILES[:-1])} or {BENCHMARK_FILES[-1]}.")]
RootArgument = Annotated[Path, typer.Argument(help="The benchmark's folder; `deixis data fixture` shows its layout.")]
SplitOption = Annotated[str | None, typer.Option(help="Default: the split that is usually reported.")]
SkipBadOption = Annotated[bool, typer.Option("--skip-bad", help="Leave bad annotations out instead of refusing.")]


@app.command()
def predict(
    benchmark: BenchmarkArgument,
    root: RootArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results; a stopped run is taken up there.")],
    model: ModelOption = "light",
    split: SplitOption = None,
    device: DeviceOption = "auto",
    precision: Annotated[str, typer.Option(help="fp32, as published figures are computed; bf16 or auto.")] = "fp32",
    threshold: Annotated[
        float | None, typer.Option(help="Presence below which masks stay empty (default: the protocol's).")
    ] = None,
    selection: SelectionOption = None,
    skip_bad: SkipBadOption = False,
) -> None:
    """Answer every expression of a benchmark's split, in the layout that its server takes."""
    from deixis.benchmarks import open_benchmark
    from deixis.predict import predict as answer_all

    opened = open_benchmark(benchmark, root, split, skip_bad)
    with counting_bar("expressions") as progress:
        answer_all(
            opened, out, model, device=device, precision=precision, threshold=threshold, selection=selection,
            progress=progress,
        )  # fmt: skip
    typer.echo(f"{len(opened.samples)} expressions of {benchmark} {opened.split} are answered in {out}")


@app.command()
def score(
    benchmark: Annotated[str, typer.Argument(help="A benchmark; or the word masks, then RESULTS and TRUTH follow.")],
    root: Annotated[Path, typer.Argument(help="The benchmark's folder (after masks: RESULTS).")],
    results: Annotated[Path, typer.Argument(help="A folder of results, or a zip of one (after masks: TRUTH).")],
    split: SplitOption = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for scores.* (default: RESULTS).")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the scores to this file too.")] = None,
    workers: Annotated[int, typer.Option(help="Processes that share the videos.")] = 1,
    drop_ends: Annotated[
        bool, typer.Option("--drop-ends", help="With masks: the first and last frame are not scored (DAVIS).")
    ] = False,
    least_pixels: Annotated[
        int, typer.Option(help="N-acc, T-acc: an answer counts as empty up to this many pixels a frame.")
    ] = 0,
    skip_bad: SkipBadOption = False,
) -> None:
    """Score results on disk against truth on disk: `score BENCHMARK ROOT RESULTS` or `score masks RESULTS TRUTH`."""
    from deixis.metrics import report

    if benchmark == "masks":
        from deixis.metrics.folders import score_masks

        scores = score_masks(root, results, drop_ends=drop_ends, workers=workers)
        written: list[Path] = []
    else:
        scores, written = _score_benchmark(benchmark, root, results, split, out, workers, least_pixels, skip_bad)
    if json_file is not None:
        report.write_scores_json(scores, json_file, __version__)
        written.append(json_file)
    typer.echo("\n".join(report.as_lines(scores)))
    for path in written:
        typer.echo(f"wrote {path}")


def _score_benchmark(
    name: str, root: Path, results: Path, split: str | None, out: Path | None, workers: int, least_pixels: int,
    skip_bad: bool,
) -> tuple[Scores, list[Path]]:  # fmt: skip
    from deixis.benchmarks import open_benchmark
    from deixis.benchmarks.results import holds, opened
    from deixis.metrics import report
    from deixis.metrics.evaluate import look_at, score_benchmark

    benchmark = open_benchmark(name, root, split, skip_bad)
    with opened(results, holds(benchmark)) as folder:
        with counting_bar("videos") as progress:
            scores = score_benchmark(
                name, root, folder, split, workers=workers, least_pixels=least_pixels, skip_bad=skip_bad,
                progress=progress,
            )  # fmt: skip
        where = out or (results if results.is_dir() else results.with_name(results.stem + "-scores"))
        looks = look_at(benchmark, folder, report.worst_rows(scores))
        return scores, report.write_all(scores, where, looks, __version__)


@app.command()
def pack(
    benchmark: Annotated[str, typer.Argument(help="The benchmark that the results are of.")],
    results: Annotated[Path, typer.Argument(help="A folder of results.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The zip to write.")],
    root: Annotated[
        Path | None, typer.Option(help="The benchmark's folder (default: the one that predict noted).")
    ] = None,
    split: SplitOption = None,
    skip_bad: SkipBadOption = False,
) -> None:
    """Zip complete, well-formed results for the benchmark's server; anything else is refused by name."""
    from deixis.benchmarks import open_benchmark
    from deixis.benchmarks.results import noted_run
    from deixis.benchmarks.results import pack_results as write_zip

    noted_root, noted_split = noted_run(benchmark, results) if root is None else (root, split)
    opened = open_benchmark(benchmark, noted_root, split or noted_split, skip_bad)
    count = write_zip(opened, results, out)
    typer.echo(f"wrote {out}: {count} files, complete for {benchmark} {opened.split}")


data = typer.Typer(help="Benchmarks on disk: check, build, and make tiny copies of them.", no_args_is_help=True)


app.add_typer(data, name="data")


@data.command()
def check(
    benchmark: BenchmarkArgument,
    root: RootArgument,
    split: Annotated[str | None, typer.Option(help="Only this split (default: all that are there).")] = None,
) -> None:
    """Read a benchmark through: counts against the published ones, and every problem by path."""
    from deixis.benchmarks.checking import check_benchmark as check_all

    with counting_bar("videos") as progress:
        findings = check_all(benchmark, root, split, progress)
    for line in findings.lines:
        typer.echo(line)
    if findings.problems:
        typer.echo(f"deixis: {findings.problems} problems in {root}", err=True)
        raise typer.Exit(2)


@data.command()
def fixture(
    benchmark: BenchmarkArgument,
    out: Annotated[Path, typer.Argument(help="A new folder.")],
) -> None:
    """Write a tiny valid copy of a benchmark, in the layout of the real one."""
    from deixis.benchmarks import write_fixture

    write_fixture(benchmark, out)
    typer.echo(f"wrote {out}")


@data.command()
def build(
    benchmark: Annotated[str, typer.Argument(help="ref-davis17, refcoco or visor.")],
    source: Annotated[Path, typer.Argument(help="The folder of the original download.")],
    out: Annotated[Path, typer.Argument(help="Folder for the built copy.")],
    texts: Annotated[Path | None, typer.Option(help="ref-davis17: the folder with the four text files.")] = None,
    semantics: Annotated[Path | None, typer.Option(help="ref-davis17: davis_semantics.json, for categories.")] = None,
    images: Annotated[Path | None, typer.Option(help="refcoco: COCO's train2014, if not in SOURCE.")] = None,
) -> None:
    """Lay a download out in the form that deixis reads (Ref-DAVIS17, RefCOCO/+/g, VISOR)."""
    from deixis.types import DeixisError

    if benchmark == "ref-davis17":
        from deixis.benchmarks.ref_davis17 import build_ref_davis17 as build_davis

        if texts is None:
            raise DeixisError("ref-davis17 is built from DAVIS and four text files: give their folder with --texts")
        build_davis(source, texts, out, semantics)
    elif benchmark == "visor":
        from deixis.benchmarks.visor import build_visor

        build_visor(source, out)
    elif benchmark == "refcoco":
        from deixis.benchmarks.refcoco_build import build_refcoco

        for split, count in build_refcoco(source, out, images).items():
            typer.echo(f"{split}: {count} sentences")
    else:
        raise DeixisError(
            f"only ref-davis17, refcoco and visor are built, got {benchmark!r}; the others are read as they come"
        )
    typer.echo(f"wrote {out}")


@data.command()
def flow(
    videos: Annotated[Path, typer.Argument(help="A CSV with the columns film and caption.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the cache (default: flow in DEIXIS_CACHE).")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="rate, most, short_side, ...; as data.flow.X in training."),
    ] = None,
    estimator: Annotated[str, typer.Option(help="dis, or MODULE:FUNCTION of a learned one.")] = "dis",
    workers: Annotated[int, typer.Option(help="Processes that share the films.")] = 1,
) -> None:
    """Estimate the optical flow of captioned films ahead of training; what is there already is kept."""
    from deixis.config import apply_overrides
    from deixis.training.captions import VideoCaptions
    from deixis.training.flow import FlowCache, FlowSettings, fill_cache

    wanted = {f"flow.{name}": text for name, text in _pairs(settings, "--set FIELD=VALUE").items()}
    chosen = apply_overrides({"flow.estimator": estimator} | wanted, flow=FlowSettings())["flow"]
    cache = FlowCache(out, chosen)
    with counting_bar("films") as progress:
        tally = fill_cache(VideoCaptions(videos), cache, workers, progress)
    for reason in tally.reasons:
        typer.echo(f"left out {reason}", err=True)
    typer.echo(
        f"{cache.folder}: flow of {tally.made} films made, of {tally.there} there already; {tally.broken} left out"
    )


weights = typer.Typer(help="Checkpoints: read those of others.", no_args_is_help=True)


app.add_typer(weights, name="weights")


@weights.command("import")
def import_weights(
    file: Annotated[Path, typer.Argument(help="The authors' checkpoint (.pth).")],
    system: Annotated[str, typer.Option(help="Whose it is: soc or soc_plus_plus.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The .safetensors file; its config goes beside it.")],
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder or hub name of the tokenizer to put into the file (roberta-base's).")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="How it is used: window, short_side, eval_level, ..."),
    ] = None,
) -> None:
    """Turn a published checkpoint into one of ours, strictly; every key left out is listed with its reason."""
    from deixis.types import DeixisError
    from deixis.weights import save
    from deixis.weights_import import import_checkpoint

    if out.suffix != ".safetensors":
        raise DeixisError(f"the output must end in .safetensors, got {out}")
    done = import_checkpoint(file, system, tokenizer=tokenizer, settings=_pairs(settings, "--set FIELD=VALUE"))
    out.parent.mkdir(parents=True, exist_ok=True)
    save(done.system, out, card={"imported_from": file.name, "left_out": done.left_out})
    for key, reason in done.left_out.items():
        typer.echo(f"left out {key}: {reason}")
    typer.echo(f"wrote {out} and {out.with_suffix('.json')}")


def main() -> None:
    """Run the command line; what a user caused ends in one line on stderr and exit status 2."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # what libraries warn of is for programmers
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")  # errors of decoding are reported in our own words
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal, or a file's name, may not be UTF-8
    app()


if __name__ == "__main__":
    main()

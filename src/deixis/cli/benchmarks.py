"""Commands over benchmarks: predict, score, pack; and data that is made or laid out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deixis import __version__
from deixis.cli.options import (
    BenchmarkArgument,
    DeviceOption,
    ModelOption,
    RootArgument,
    SelectionOption,
    SkipBadOption,
    SplitOption,
    named_values,
)  # fmt: skip
from deixis.progress import counting_bar, frames_bar

if TYPE_CHECKING:
    from deixis.metrics.summary import Scores


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
    from deixis.metrics.evaluate import score_benchmark, worst_frames

    benchmark = open_benchmark(name, root, split, skip_bad)
    with opened(results, holds(benchmark)) as folder:
        with counting_bar("videos") as progress:
            scores = score_benchmark(
                name, root, folder, split, workers=workers, least_pixels=least_pixels, skip_bad=skip_bad,
                progress=progress,
            )  # fmt: skip
        where = out or (results if results.is_dir() else results.with_name(results.stem + "-scores"))
        worst = worst_frames(benchmark, folder, report.worst_rows(scores))
        return scores, report.write_all(scores, where, worst, __version__)


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


def fixture(
    benchmark: BenchmarkArgument,
    out: Annotated[Path, typer.Argument(help="A new folder.")],
) -> None:
    """Write a tiny valid copy of a benchmark, in the layout of the real one."""
    from deixis.benchmarks import write_fixture

    write_fixture(benchmark, out)
    typer.echo(f"wrote {out}")


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

    wanted = {f"flow.{name}": text for name, text in named_values(settings, "--set FIELD=VALUE").items()}
    chosen = apply_overrides({"flow.estimator": estimator} | wanted, flow=FlowSettings())["flow"]
    cache = FlowCache(out, chosen)
    with counting_bar("films") as progress:
        tally = fill_cache(VideoCaptions(videos), cache, workers, progress)
    for reason in tally.reasons:
        typer.echo(f"left out {reason}", err=True)
    typer.echo(
        f"{cache.folder}: flow of {tally.made} films made, of {tally.found} there already; {tally.broken} left out"
    )

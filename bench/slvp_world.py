"""What SLVP-style pre-training buys, small and from scratch: flow on held-out films, then masks from few labels.

    python bench/slvp_world.py OUT                              # all of it on generated films; goes on if stopped
    python bench/slvp_world.py OUT --pictures ../shared/data    # the same on films made of real pictures
    python bench/slvp_world.py OUT --flow --davis ../shared/data/davis_train    # errors of the flow, and a picture
    python bench/slvp_world.py OUT --dis                        # DIS against the exact flow of world
    python bench/slvp_world.py OUT --table                      # table and plot of what is done

Two processes may share the work: give them different --fusions, --seeds, --starts or --shares (one that needs a
pre-training that is not done yet does it itself, so let each keep to its own fusion or seed). A run that is done is
read, not repeated. Everything lies in OUT/world or OUT/real.

The grid: fusion (vision, language) x start (scratch, flow, flow+language) x share of the films whose masks are used x
seed. All runs of a share see the same films. J&F is over all sentences of the held-out films, per film; intervals
(95 %) are from a bootstrap over films and seeds; differences from scratch are paired by film and seed.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _grid import cell as finished_cell
from _grid import interval, trained

FUSIONS = ("vision", "language")
STARTS: dict[str, dict[str, str] | None] = {  # what pre-training changes; None: no pre-training
    "scratch": None,
    "flow": {"data.loss.contrast": "0", "data.loss.words": "0"},
    "flow+language": {},
}
SHARES = (0.01, 0.1, 1.0)


# --- runs -------------------------------------------------------------------------------------------------------------


def places(options: argparse.Namespace) -> dict[str, Path]:
    return {} if options.pictures is None else {"pictures": options.pictures}


def base(options: argparse.Namespace) -> Path:
    return options.out / ("world" if options.pictures is None else "real")


def sizes(options: argparse.Namespace) -> dict[str, str]:
    """Overrides for frames of another size than the recipes'."""
    if options.size is None:
        return {}
    height, width = map(str, options.size)
    return {"data.films.size": f"{height},{width}", "model.short_side": height, "model.long_side": width}


def slow(options: argparse.Namespace) -> int:
    """How slowly things move in the films of the pre-training. Real ones move little: twice as fast there."""
    return 2 if options.pictures is None else 1


def pretrained(options: argparse.Namespace, fusion: str, start: str, seed: int) -> Path:
    """The checkpoint of one pre-training; trained now if it is not there."""
    from deixis.training.loop import train
    from deixis.training.recipes import find_recipe
    from deixis.weights import load

    changes, seed = STARTS[start], seed % options.pretrainings
    assert changes is not None
    folder = base(options) / f"pre-{fusion}-{start}-{seed}"
    if not (folder / "scores.json").is_file():
        overrides = changes | sizes(options) | {
            "model.fusion": fusion, "train.seed": str(seed), "train.steps": str(options.pretrain_steps),
            "train.threads": str(options.threads), "data.films.count": str(options.pretrain_films),
            "data.films.slow": str(slow(options)),
        }  # fmt: skip
        job = find_recipe("slvp_pretrain_world")(places(options), overrides=overrides)
        began = time.process_time()
        outcome = train(job, folder, device=options.device, resume=True)
        if outcome.stopped != "finished":
            raise SystemExit(f"{folder.name}: stopped at step {outcome.step}; run again to go on")
        assert job.validate is not None
        scores = job.validate(load(outcome.model, options.device))
        facts = {"fusion": fusion, "start": start, "seed": seed, "steps": options.pretrain_steps, "scores": scores}
        (folder / "scores.json").write_text(json.dumps(facts | {"cpu_seconds": time.process_time() - began}, indent=1))
        print(folder.name, {k: round(v, 3) for k, v in scores.items()}, flush=True)
    return folder / "model.safetensors"


def transferred(options: argparse.Namespace, fusion: str, start: str, share: float, seed: int) -> dict[str, Any]:
    """One training for masks and its scores, or those of an earlier call."""
    folder = base(options) / f"run-{fusion}-{start}-{share:g}-{seed}"
    return finished_cell(folder, partial(transfer, folder, options, fusion, start, share, seed))


def transfer(
    folder: Path, options: argparse.Namespace, fusion: str, start: str, share: float, seed: int
) -> dict[str, Any]:
    from deixis.training.flow_validation import mask_rows
    from deixis.training.recipes import find_recipe

    data = places(options)
    if STARTS[start] is not None:
        data["start"] = pretrained(options, fusion, start, seed)
    overrides = sizes(options) | {
        "model.fusion": fusion, "train.seed": str(seed), "train.steps": str(options.steps),
        "train.threads": str(options.threads), "data.share": str(share), "data.films.count": str(options.films),
        "data.films.calibration": "0",  # J&F does not depend on presence
    }  # fmt: skip
    job = find_recipe("slvp_world")(data, overrides=overrides)
    began = time.process_time()
    model = trained(job, folder, options.device, folder.name)
    rows = mask_rows(job.samples.args[0].films, model)  # type: ignore[attr-defined]
    films = sorted({row["film"] for row in rows})
    facts = {
        "fusion": fusion, "start": start, "share": share, "seed": seed, "steps": options.steps,
        "labelled_films": max(1, round(options.films * share)),
        "parameters": sum(p.numel() for p in model.parameters()),
        "jf": [float(np.mean([row["jf"] for row in rows if row["film"] == film])) for film in films],
        "mean": {name: float(np.mean([row[name] for row in rows])) for name in ("jf", "j", "f", "right")},
        "right": by_kind(rows), "sentences": len(rows),
        "cpu_seconds": time.process_time() - began, "torch": torch.__version__,
    }  # fmt: skip
    for name in ("last.safetensors", "best.safetensors"):  # what resuming needs; the model stays
        (folder / name).unlink(missing_ok=True)
    return facts


def by_kind(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Share of the sentences of each kind that are answered with the right object."""
    kinds = sorted({row["kind"] for row in rows})
    return {kind: float(np.mean([row["right"] for row in rows if row["kind"] == kind])) for kind in kinds}


# --- table and plot ---------------------------------------------------------------------------------------------------


def collect(runs: list[dict[str, Any]]) -> dict[tuple[str, str, float], dict[int, np.ndarray]]:
    """(fusion, start, share) -> seed -> J&F of each held-out film."""
    found: dict[tuple[str, str, float], dict[int, np.ndarray]] = {}
    for facts in runs:
        found.setdefault((facts["fusion"], facts["start"], facts["share"]), {})[facts["seed"]] = np.array(facts["jf"])
    return found


def table(folder: Path) -> None:
    done = [json.loads(path.read_text()) for path in sorted(folder.glob("run-*/scores.json"))]
    found = collect(done)
    if not found:
        return
    shares = sorted({share for _, _, share in found})
    print(f"\nJ&F in percent on held-out films [95 %], {folder.name}; below: difference from scratch, same seeds")
    print("| fusion | start | " + " | ".join(f"{100 * share:g} % of the masks" for share in shares) + " |")
    print("|---|---|" + "---|" * len(shares))
    for fusion in FUSIONS:
        for start in STARTS:
            runs = [found.get((fusion, start, share), {}) for share in shares]
            if any(runs):
                print(f"| {fusion} as query | {start} | " + " | ".join(cell(r) for r in runs) + " |")
            plain = [found.get((fusion, "scratch", share), {}) for share in shares]
            if start != "scratch" and any(runs):
                print("| | | " + " | ".join(gain(r, p) for r, p in zip(runs, plain, strict=True)) + " |")
    claims(found, shares)
    right_objects(done, shares)
    plot(folder, found, shares)


def claims(found: dict[tuple[str, str, float], dict[int, np.ndarray]], shares: list[float]) -> None:
    """Print the paired gains that decide: what language adds to flow, and vision as query over language as query."""
    print("\npaired gains in points of J&F [95 %]")
    print("| gain | " + " | ".join(f"{100 * share:g} % of the masks" for share in shares) + " |")
    print("|---|" + "---|" * len(shares))
    for fusion in FUSIONS:
        of = [(found.get((fusion, "flow+language", s), {}), found.get((fusion, "flow", s), {})) for s in shares]
        print(f"| language beside flow, {fusion} as query | " + " | ".join(gain(*pair) for pair in of) + " |")
    for start in STARTS:
        of = [(found.get(("vision", start, s), {}), found.get(("language", start, s), {})) for s in shares]
        print(f"| vision over language as query, {start} | " + " | ".join(gain(*pair) for pair in of) + " |")


def right_objects(facts: list[dict[str, Any]], shares: list[float]) -> None:
    """Print, for each start, how many sentences of each kind find the right object: mean and deviation over seeds."""
    kinds = sorted({kind for run in facts for kind in run["right"]})
    print("\nright object, share of the sentences, by their kind: mean and standard deviation over seeds")
    print("| fusion | start | kind | " + " | ".join(f"{100 * share:g} % of the masks" for share in shares) + " |")
    print("|---|---|---|" + "---|" * len(shares))
    for fusion in FUSIONS:
        for start in STARTS:
            for kind in kinds:
                cells = []
                for share in shares:
                    runs = [r for r in facts if (r["fusion"], r["start"], r["share"]) == (fusion, start, share)]
                    of = np.array([r["right"][kind] for r in runs])
                    cells.append(f"{of.mean():.3f} ± {of.std():.3f}" if len(of) else "-")
                print(f"| {fusion} as query | {start} | {kind} | " + " | ".join(cells) + " |")


def cell(runs: dict[int, np.ndarray]) -> str:
    if not runs:
        return "-"
    mean, low, high = interval(np.stack(list(runs.values())))
    return f"{100 * mean:.1f} [{100 * low:.1f}, {100 * high:.1f}] ({len(runs)} seeds)"


def gain(runs: dict[int, np.ndarray], plain: dict[int, np.ndarray]) -> str:
    both = sorted(runs.keys() & plain.keys())
    if not both:
        return "-"
    mean, low, high = interval(np.stack([runs[seed] - plain[seed] for seed in both]))
    return f"{100 * mean:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def plot(folder: Path, found: dict[tuple[str, str, float], dict[int, np.ndarray]], shares: list[float]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    colours = dict(zip(STARTS, ("tab:gray", "tab:blue", "tab:orange"), strict=True))
    for axis, fusion in zip(axes, FUSIONS, strict=True):
        for shift, start in zip((0.94, 1.0, 1.06), STARTS, strict=True):
            there = [share for share in shares if found.get((fusion, start, share))]
            spread = [interval(np.stack(list(found[fusion, start, share].values()))) for share in there]
            if there:
                mean, low, high = (100 * np.array(side) for side in zip(*spread, strict=True))
                axis.errorbar(
                    100 * shift * np.array(there), mean, (mean - low, high - mean), marker="o", capsize=3,
                    color=colours[start], label=start,
                )  # fmt: skip
        axis.set(xscale="log", xlabel="% of the films with masks", title=f"{fusion} as query")
    axes[0].set_ylabel("J&F, %")
    axes[0].legend()
    figure.savefig(folder / "transfer.png", dpi=110)
    print(f"wrote {folder / 'transfer.png'}")


# --- flow -------------------------------------------------------------------------------------------------------------


def dis_on_world(sizes: tuple[tuple[int, int], ...] = ((96, 160), (120, 216), (240, 432)), films: int = 40) -> None:
    """DIS against the exact flow of held-out films of world: mean endpoint error in pixels, and where it is trusted."""
    from deixis.synthetic.world import World
    from deixis.synthetic.world_config import WorldConfig
    from deixis.training.flow import endpoint_error, estimate

    print("| size | films | error of DIS | where trusted (share) | on objects | no flow: all | on objects |")
    print("|---|---|---|---|---|---|---|")
    for size in sizes:
        world = World("valid_u", WorldConfig(size=size, frames=9, objects=(2, 3)))
        rows = []
        for number in range(films):
            film = world.film(number)
            assert film.flow is not None
            flow, valid = estimate(film.frames)
            error = endpoint_error(flow, film.flow)
            speed, objects = np.linalg.norm(film.flow, axis=-1), film.masks[:-1].any(1)
            rows.append((error.mean(), error[valid].mean(), valid.mean(), error[objects].mean(), speed.mean(),
                         speed[objects].mean()))  # fmt: skip
        m = np.mean(rows, axis=0)
        cells = (f"{m[0]:.3f}", f"{m[1]:.3f} ({100 * m[2]:.1f} %)", *(f"{x:.3f}" for x in m[3:]))
        print(f"| {size[0]}x{size[1]} | {films} | {' | '.join(cells)} |", flush=True)


def flow_report(options: argparse.Namespace) -> None:
    """Endpoint errors of every pre-training that is done, on held-out generated films and on real clips against DIS;
    and OUT/.../flow.png: frame, target and what is foreseen."""
    from deixis.training.flow_validation import errors_of, flow_pixels
    from deixis.training.small_films import SmallFilms, length_of, side_by_side, small_film
    from deixis.weights import load

    films = SmallFilms(pictures=options.pictures, held_out=options.clips, slow=slow(options))
    middle = (length_of(films) - films.frames) // 2
    made = [small_film(films, "valid_u", i) for i in range(films.held_out)]
    clips = {"generated": [side_by_side(small, films.frames, middle) for small in made]}
    if options.davis is not None:
        clips["real, DIS as truth"] = davis_clips(options.davis, films.size, films.frames, options.clips)
    print("endpoint error in pixels of frames of 48x80; raw flow: the frame's median is added to what is foreseen")
    print("| pre-training | clips | foreseen | median alone | no flow | foreseen, moving pixels | median, moving |")
    print("|---|---|---|---|---|---|---|")
    shown = []
    for folder in sorted(base(options).glob("pre-*")):
        if not (folder / "model.safetensors").is_file():
            continue
        model = load(folder / "model.safetensors", options.device)
        for name, made in clips.items():
            found = [flow_pixels(model, s.film.frames, s.film.sentences[0].text) for s in made]
            rows = [errors_of(f, s.film, s.valid) for f, s in zip(found, made, strict=True)]
            m = {key: float(np.nanmean([row[key] for row in rows])) for key in rows[0]}
            errors = (m[k] for k in ("found", "median", "zero", "found_moving", "median_moving"))
            cells = (folder.name, f"{name} ({len(made)})", *(f"{error:.3f}" for error in errors))
            print(f"| {' | '.join(cells)} |", flush=True)
            if folder.name.endswith(f"-{options.seeds[0]}"):
                shown.append((f"{folder.name}, {name}", made, found))
    if shown:
        draw_flow(base(options) / "flow.png", shown)


def davis_clips(folder: Path, size: tuple[int, int], frames: int, most: int) -> list[Any]:
    """Three clips of every video of a folder like davis_train, with DIS as truth, estimated at twice the size."""
    from deixis.synthetic.scene import Sentence, SyntheticVideo
    from deixis.training.flow import estimate, to_cells
    from deixis.training.small_films import SmallFilm
    from deixis.video import Video, resize

    entries = json.loads((folder / "expressions.json").read_text())
    clips = []
    for name in sorted(entries)[: -(-most // 3)]:
        pictures = [frame.pixels((2 * size[0], 2 * size[1])) for frame in Video(folder / "JPEGImages" / name).frames()]
        for part in (0.1, 0.45, 0.8):
            first = int(part * (len(pictures) - frames))
            large = np.stack(pictures[first : first + frames])
            flow, valid = estimate(large)
            small = np.stack([resize(picture, size) for picture in large])
            sentence = Sentence(entries[name]["expressions"][0], "written", (0,))
            masks = np.zeros((frames, 1, *size), bool)
            film = SyntheticVideo(small, masks, (sentence,), flow=to_cells(flow, size) / 2, name=name)
            clips.append(SmallFilm(film, valid[:, 1::2, 1::2]))
    return clips


def draw_flow(path: Path, shown: list[tuple[str, list[Any], list[np.ndarray]]]) -> None:
    """A row for each pre-training: of three clips that move much, a frame, the target and what is foreseen."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from deixis.training.flow import median_of
    from deixis.training.flow_validation import flow_picture

    figure, axes = pyplot.subplots(len(shown), 9, figsize=(18, 1.6 * len(shown)), layout="constrained", squeeze=False)
    for row, (name, clips, found) in zip(axes, shown, strict=True):
        moves = [float(np.abs(s.film.flow - median_of(s.film.flow)).mean()) for s in clips]
        chosen = np.argsort(moves)[::-1][[0, len(moves) // 20, len(moves) // 8]]
        for k, i in enumerate(chosen):
            film, middle = clips[i].film, len(clips[i].film.flow) // 2
            target = (film.flow - median_of(film.flow))[middle]
            fastest = float(np.percentile(np.linalg.norm(target, axis=-1), 99))
            pictures = (film.frames[middle], flow_picture(target, fastest), flow_picture(found[i][middle], fastest))
            for axis, picture, title in zip(row[3 * k :], pictures, ("frame", "target", "foreseen"), strict=False):
                axis.imshow(picture)
                axis.set_title(title, fontsize="x-small")
        for axis in row:
            axis.set_xticks([])
            axis.set_yticks([])
        row[0].set_ylabel(name.replace(", ", "\n"), fontsize="xx-small")
    figure.savefig(path, dpi=100)
    print(f"wrote {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--pictures", type=Path, help="a folder like ../shared/data: films of real pictures")
    parser.add_argument("--fusions", "--only", nargs="+", choices=FUSIONS, default=list(FUSIONS))
    parser.add_argument("--starts", nargs="+", choices=list(STARTS), default=list(STARTS))
    parser.add_argument("--shares", "--fractions", type=float, nargs="+", default=list(SHARES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=400, help="of a training for masks, 8 clips each")
    parser.add_argument("--films", type=int, default=1000, help="whose masks are all of them")
    parser.add_argument("--pretrain-steps", type=int, default=800, help="of a pre-training, 16 clips each")
    parser.add_argument("--pretrainings", type=int, default=3, help="of a kind; seed n starts from number n modulo it")
    parser.add_argument("--pretrain-films", type=int, default=2000)
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="pixels of the frames, if not 48 80")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--pretrain-only", action="store_true", help="no training for masks")
    parser.add_argument("--flow", action="store_true", help="only report the flow of what is pre-trained")
    parser.add_argument("--davis", type=Path, help="with --flow: a folder like ../shared/data/davis_train")
    parser.add_argument("--clips", type=int, default=100, help="with --flow: at most so many of each kind")
    parser.add_argument("--dis", action="store_true", help="only measure DIS against exact flow")
    parser.add_argument("--table", action="store_true", help="only print what is done")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    print(f"torch {torch.__version__}, {platform.machine()}, {options.device}, {options.threads} threads")
    if options.dis:
        dis_on_world()
        return
    if options.flow:
        flow_report(options)
        return
    if not options.table:
        for seed in options.seeds:  # the whole grid of a seed first, so that a stop leaves a fair comparison
            for fusion in options.fusions:
                for start in options.starts:
                    if options.pretrain_only:
                        _ = None if STARTS[start] is None else pretrained(options, fusion, start, seed)
                        continue
                    for share in options.shares:
                        facts = transferred(options, fusion, start, share, seed)
                        means = {k: round(v, 3) for k, v in facts["mean"].items()}
                        print(fusion, start, share, seed, means, f"{facts['cpu_seconds']:.0f} s", flush=True)
    table(base(options))


if __name__ == "__main__":
    main()

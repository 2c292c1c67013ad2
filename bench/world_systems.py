"""SOC without its video-level cluster, SOC, and SOC++, small and from scratch, on generated films: scores and curves.

    python bench/world_systems.py OUT --steps 600 --seeds 0 1 2       # goes on where it was stopped
    python bench/world_systems.py OUT --table                         # prints the table of what is done

Each run is ``deixis train soc_world`` or ``soc_plus_plus_world``; OUT/<variant>-<seed> holds its metrics and model. The
table gives, on held-out films, the share of sentences answered with the right object and the mean overlap, for
sentences of motion and for the others, as mean and standard deviation over seeds.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch

VARIANTS: dict[str, tuple[str, dict[str, str]]] = {
    "SOC without cluster": ("soc_world", {"model.cluster": "false"}),
    "SOC": ("soc_world", {}),
    "SOC++": ("soc_plus_plus_world", {}),
}


def run(folder: Path, variant: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train one variant with one seed, or read what an earlier call has found."""
    from deixis.training.loop import train
    from deixis.training.recipes import find_recipe
    from deixis.weights import load

    done = folder / "scores.json"
    if done.is_file():
        return json.loads(done.read_text())
    recipe, changes = VARIANTS[variant]
    overrides = changes | {
        "train.seed": str(seed), "train.steps": str(options.steps), "train.threads": str(options.threads),
        "train.batch": str(options.batch), "train.lr": str(options.lr),
    }  # fmt: skip
    job = find_recipe(recipe)({}, overrides=overrides)
    outcome = train(job, folder, device=options.device, resume=True)
    if outcome.stopped != "finished":
        raise SystemExit(f"{variant}, seed {seed}: stopped at step {outcome.step}; run again to go on")
    model = load(outcome.model, options.device)
    assert job.validate is not None
    with torch.inference_mode():
        scores = job.validate(model)
    facts = {
        "variant": variant, "seed": seed, "steps": options.steps, "batch": options.batch, "lr": options.lr,
        "parameters": sum(p.numel() for p in model.parameters()), "scores": scores, "torch": torch.__version__,
    }  # fmt: skip
    done.write_text(json.dumps(facts, indent=1))
    return facts


def table(out: Path) -> None:
    found = [json.loads(path.read_text()) for path in sorted(out.glob("*/scores.json"))]
    print("| variant | parameters | seeds | steps | right: motion | right: other | overlap: motion | overlap: other |")
    print("|---|---|---|---|---|---|---|---|")
    for variant in VARIANTS:
        runs = [f for f in found if f["variant"] == variant]
        if runs:
            size = f"{runs[0]['parameters'] / 1e6:.2f} M"
            steps = "/".join(sorted({str(f["steps"]) for f in runs}))
            cells = [spread([score(f["scores"], name, kind) for f in runs]) for name, kind in COLUMNS]
            print(f"| {variant} | {size} | {len(runs)} | {steps} | " + " | ".join(cells) + " |")


COLUMNS = (("right", "motion"), ("right", "other"), ("overlap", "motion"), ("overlap", "other"))


def score(scores: dict[str, float], name: str, kind: str) -> float:
    """``name`` of a kind; of any but motion, the mean of the kinds that are not motion."""
    if kind == "motion":
        return scores[f"{name}_motion"]
    return float(np.mean([v for k, v in scores.items() if k.startswith(f"{name}_") and not k.endswith("_motion")]))


def spread(values: list[float]) -> str:
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1) if len(values) > 1 else 0:.3f}"


def curves(out: Path) -> None:
    """OUT/curves.png: the summed loss of every run, smoothed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(7, 4))
    colours = dict(zip(VARIANTS, ("tab:gray", "tab:blue", "tab:orange"), strict=True))
    for path in sorted(out.glob("*/metrics.jsonl")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        rows = [row for row in rows if "losses" in row or "loss" in row]
        steps = [row["step"] for row in rows]
        total = [row["loss"] if "loss" in row else sum(row["losses"].values()) for row in rows]
        variant = next(v for v in VARIANTS if path.parent.name.startswith(slug(v) + "-"))
        first = variant not in [line.get_label() for line in axis.lines]
        axis.plot(steps, total, color=colours[variant], alpha=0.8, label=variant if first else None)
    axis.set(xlabel="step", ylabel="loss, all terms")
    axis.legend()
    figure.tight_layout()
    figure.savefig(out / "curves.png", dpi=110)


def slug(variant: str) -> str:
    return variant.lower().replace(" ", "_").replace("++", "_plus_plus")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--table", action="store_true", help="only print what is done")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    print(f"torch {torch.__version__}, {platform.machine()}, {options.device}, {options.threads} threads")
    if not options.table:
        for seed in options.seeds:  # all variants of a seed first, so that a stop leaves a fair comparison
            for variant in options.variants:
                facts = run(options.out / f"{slug(variant)}-{seed}", variant, seed, options)
                print(variant, seed, {k: round(v, 3) for k, v in facts["scores"].items()}, flush=True)
    table(options.out)
    curves(options.out)


if __name__ == "__main__":
    main()

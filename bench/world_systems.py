"""SOC without its video-level cluster, SOC, and SOC++, small and from scratch, on generated films: scores and curves.

    python bench/world_systems.py OUT --steps 600 --seeds 0 1 2       # goes on where it was stopped
    python bench/world_systems.py OUT --table                         # prints the table of what is done

Each run is ``deixis train soc_world`` or ``soc_plus_plus_world``; OUT/<variant>-<seed> holds its metrics and model. The
table gives, on held-out films, the share of sentences answered with the right object and the mean overlap, for
sentences of motion and for the others, as mean and standard deviation over seeds.
"""

from __future__ import annotations

import argparse
import logging
import platform
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _grid import cell, cells, draw_losses, score, slug, spread, trained

VARIANTS: dict[str, tuple[str, dict[str, str]]] = {
    "SOC without cluster": ("soc_world", {"model.cluster": "false"}),
    "SOC": ("soc_world", {}),
    "SOC++": ("soc_plus_plus_world", {}),
}


def run(folder: Path, variant: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train one variant with one seed and score it."""
    from deixis.training.recipes import find_recipe

    recipe, changes = VARIANTS[variant]
    overrides = changes | {
        "train.seed": str(seed), "train.steps": str(options.steps), "train.threads": str(options.threads),
        "train.batch": str(options.batch), "train.lr": str(options.lr),
    }  # fmt: skip
    job = find_recipe(recipe)({}, overrides=overrides)
    model = trained(job, folder, options.device, f"{variant}, seed {seed}")
    assert job.validate is not None
    with torch.inference_mode():
        scores = job.validate(model)
    return {
        "variant": variant, "seed": seed, "steps": options.steps, "batch": options.batch, "lr": options.lr,
        "parameters": sum(p.numel() for p in model.parameters()), "scores": scores, "torch": torch.__version__,
    }  # fmt: skip


def table(out: Path) -> None:
    found = cells(out)
    print("| variant | parameters | seeds | steps | right: motion | right: other | overlap: motion | overlap: other |")
    print("|---|---|---|---|---|---|---|---|")
    for variant in VARIANTS:
        runs = [f for f in found if f["variant"] == variant]
        if runs:
            size = f"{runs[0]['parameters'] / 1e6:.2f} M"
            steps = "/".join(sorted({str(f["steps"]) for f in runs}))
            row = [spread([score(f["scores"], name, kind) for f in runs]) for name, kind in COLUMNS]
            print(f"| {variant} | {size} | {len(runs)} | {steps} | " + " | ".join(row) + " |")


COLUMNS = (("right", "motion"), ("right", "other"), ("overlap", "motion"), ("overlap", "other"))


def curves(out: Path) -> None:
    """OUT/curves.png: the summed loss of every run."""
    runs = {variant: sorted(out.glob(f"{slug(variant)}-[0-9]*/metrics.jsonl")) for variant in VARIANTS}
    draw_losses(out / "curves.png", {"": runs})


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
                folder = options.out / f"{slug(variant)}-{seed}"
                facts = cell(folder, partial(run, folder, variant, seed, options))
                print(variant, seed, {k: round(v, 3) for k, v in facts["scores"].items()}, flush=True)
    table(options.out)
    curves(options.out)


if __name__ == "__main__":
    main()

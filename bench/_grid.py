"""What the studies of bench/ share: a cell of a grid is trained and scored once, then read; a table; curves."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

SCORES = "scores.json"


def cell(folder: Path, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The facts of a cell: those of an earlier call, or those that ``work`` returns, which are kept."""
    done = folder / SCORES
    if done.is_file():
        return json.loads(done.read_text())
    facts = work()
    done.write_text(json.dumps(facts, indent=1))
    return facts


def cells(out: Path, pattern: str = "*") -> list[dict[str, Any]]:
    """The facts of every finished cell."""
    return [json.loads(path.read_text()) for path in sorted(out.glob(f"{pattern}/{SCORES}"))]


def trained(job: Any, folder: Path, device: str, name: str) -> Any:
    """The model that the run leaves; it goes on from where it stands. Raises SystemExit where it was stopped."""
    from deixis.training.loop import train
    from deixis.weights import load

    outcome = train(job, folder, device=device, resume=True)
    if outcome.stopped != "finished":
        raise SystemExit(f"{name}: stopped at step {outcome.step}; run again to go on")
    return load(outcome.model, device)


def slug(name: str) -> str:
    """A folder's name for a cell's."""
    return "".join(c if c.isalnum() else "_" for c in name.lower().replace("++", "_plus_plus"))


def score(scores: Mapping[str, float], name: str, kind: str) -> float:
    """``name`` of a kind; of any but motion, the mean of the kinds that are not motion."""
    if kind == "motion":
        return scores[f"{name}_motion"]
    return float(np.mean([v for k, v in scores.items() if k.startswith(f"{name}_") and not k.endswith("_motion")]))


def spread(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1) if len(values) > 1 else 0:.3f}"


def interval(values: np.ndarray, draws: int = 2000) -> tuple[float, float, float]:
    """(mean, low, high) of (seeds, films) values: 95 % of a bootstrap over both."""
    rng = np.random.default_rng(0)
    seeds, films = values.shape
    means = [values[rng.integers(0, seeds, seeds)][:, rng.integers(0, films, films)].mean() for _ in range(draws)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(values.mean()), float(low), float(high)


def draw_losses(file: Path, panels: Mapping[str, Mapping[str, Sequence[Path]]]) -> None:
    """The summed loss of runs over steps. panels: {title: {label: metrics.jsonl of its seeds}}."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(panels), figsize=(max(7, 5 * len(panels)), 3.8), squeeze=False)
    for axis, (title, runs) in zip(axes[0], panels.items(), strict=True):
        for number, (label, paths) in enumerate(runs.items()):
            for i, path in enumerate(paths):
                rows = [json.loads(line) for line in path.read_text().splitlines()]
                rows = [row for row in rows if "losses" in row]
                total = [sum(row["losses"].values()) for row in rows]
                label_once = None if i else label
                axis.plot([row["step"] for row in rows], total, color=f"C{number}", alpha=0.8, label=label_once)
        axis.set(xlabel="step", ylabel="loss, all terms", title=title)
        if axis.lines:
            axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(file, dpi=110)

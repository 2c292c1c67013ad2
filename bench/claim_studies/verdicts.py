"""What the runs of a study say: accuracies, paired gains with intervals, the verdict, and a small plot."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _grid import interval

from claim_studies.grid import Comparison, Study


def verdict(low: float, high: float, margin: float) -> str:
    """shown: a gain's interval lies above the margin; refuted: below it; else not shown."""
    if low > margin:
        return "shown"
    return "refuted" if high < margin else "not shown"


def verdict_of_all(verdicts: Sequence[str]) -> str:
    """Shown against every control; refuted as soon as one control does as well."""
    if all(v == "shown" for v in verdicts):
        return "shown"
    return "refuted" if "refuted" in verdicts else "not shown"


def rights(found: Sequence[dict[str, Any]], arm: str, test: str) -> np.ndarray:
    """(seeds, films) of an arm."""
    return np.array([one["right"][test] for one in sorted(found, key=lambda one: one["seed"]) if one["arm"] == arm])


def gains(
    found: Sequence[dict[str, Any]], comparison: Comparison
) -> list[tuple[str, float, float, float, list[float]]]:
    """(control, gain, low, high, the gain of every seed) for each control: paired by seed and film."""
    own, rows = rights(found, comparison.arm, comparison.test), []
    for control in comparison.controls:
        difference = own - rights(found, control, comparison.test)
        rows.append((control, *interval(difference), difference.mean(1).tolist()))
    return rows


def read(study: Study, out: Path) -> list[dict[str, Any]]:
    """The runs of a study that are done, of the seeds that have every arm."""
    found = [json.loads(path.read_text()) for path in sorted((out / study.name).glob("*/scores.json"))]
    whole = {s for s in {f["seed"] for f in found} if {f["arm"] for f in found if f["seed"] == s} == set(study.arms)}
    return [one for one in found if one["seed"] in whole]


def still_rising(study: Study, out: Path) -> list[str]:
    """The arms whose validation curve was not flat when the study ended."""
    path = out / study.name / "ended.json"
    return (
        [arm for arm, is_flat in json.loads(path.read_text())["flat"].items() if not is_flat] if path.is_file() else []
    )


def table(study: Study, out: Path) -> None:
    """Print the arms and the verdicts of a study."""
    found = read(study, out)
    if not found:
        return
    seeds, steps = sorted({one["seed"] for one in found}), sorted({one["step"] for one in found})
    seconds = sum(one["seconds"] for one in found)
    commits, rising = "/".join(sorted({one["commit"] for one in found})), still_rising(study, out)
    print(
        f"\n### {study.name}: {len(seeds)} seeds, {'/'.join(map(str, steps))} steps, {seconds:.0f} s, commit {commits}"
        + (f"; still rising: {', '.join(rising)}" if rising else "")
        + "\n"
    )
    tests = list(study.all_tests())
    print("| arm | trained | " + " | ".join(test or "held-out films" for test in tests) + " | read off |")
    print("|---|---|" + "---|" * len(tests) + "---|")
    for arm in study.arms:
        runs = [one for one in found if one["arm"] == arm]
        cells = [in_percent(interval(rights(found, arm, test))) for test in tests]
        facts = {k: np.mean([r["facts"][k] for r in runs]) for k in runs[0]["facts"]}
        read_off = ", ".join(f"{name} {value:.3f}" for name, value in facts.items())
        print(f"| {arm} | {runs[0]['trained']:,} | " + " | ".join(cells) + f" | {read_off} |")
    for comparison in study.comparisons:
        print(f"\n{comparison.claim}")
        rows = gains(found, comparison)
        for control, gain, low, high, each in rows:
            of_seeds = ", ".join(f"{100 * x:+.1f}" for x in each)
            where = f" ({comparison.test})" if comparison.test else ""
            print(
                f"- {comparison.arm} over {control}{where}: {100 * gain:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]; "
                f"seeds {of_seeds}: {verdict(low, high, comparison.margin)}"
            )
        print(f"- **{verdict_of_all([verdict(low, high, comparison.margin) for _, _, low, high, _ in rows])}**")


def in_percent(values: tuple[float, float, float]) -> str:
    mean, low, high = values
    return f"{100 * mean:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def plot(study: Study, out: Path, to: Path) -> None:
    """The validation curves of the arms, mean over seeds; a PNG of a few kB."""
    found = read(study, out)
    if found:
        curves = {arm: [one["curve"] for one in found if one["arm"] == arm] for arm in study.arms}
        draw_curves(curves, to / f"claims_{study.name}.png", title=study.name, chance=study.comparisons[0].chance)


def draw_curves(
    curves: Mapping[str, Sequence[Sequence[Any]]],
    file: Path,
    *,
    title: str,
    label: str = "right",
    chance: float = 0.0,
    top: float | None = 1.02,
) -> None:
    """Curves of (step, value) of every arm's seeds as their mean and span."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from PIL import Image

    figure, axis = pyplot.subplots(figsize=(5, 2.6))
    for arm, runs in curves.items():
        length = min(map(len, runs))
        values = np.array([run[:length] for run in runs])
        axis.plot(values[0, :, 0], values[:, :, 1].mean(0), label=arm, linewidth=1.2)
        axis.fill_between(values[0, :, 0], values[:, :, 1].min(0), values[:, :, 1].max(0), alpha=0.12)
    if chance:
        axis.axhline(chance, color="gray", linewidth=0.8, linestyle=":")
    axis.set(xlabel="step", ylabel=label, title=title, ylim=(0, top))
    axis.legend(fontsize=6, loc="lower right")
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=70)
    pyplot.close(figure)
    Image.open(file).convert("RGB").quantize(24).save(file, optimize=True)  # a few kB

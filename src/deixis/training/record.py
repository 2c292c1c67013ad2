"""The record of a run: ``metrics.jsonl``, TensorBoard (if installed), and a PNG of the curves (matplotlib)."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deixis.files import write_atomically

log = logging.getLogger(__name__)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl`` up to one that is damaged: the last, as a rule, cut off by a crash."""
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            break
        if not isinstance(line, dict) or not isinstance(line.get("step"), int):
            break
        lines.append(line)
    return lines


class Record:
    """Appends one JSON object a line. A resumed run drops the lines after its checkpoint, and writes them anew."""

    def __init__(self, out: Path, *, from_step: int) -> None:
        self.out, self.path = out, out / "metrics.jsonl"
        kept = [line for line in read_metrics(self.path) if line["step"] <= from_step]
        write_atomically(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        self._board = _tensorboard(out, from_step)

    def add(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """One line: {"kind": "train" or "validate", "step": finished steps, ...values}."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        if self._board is not None:
            for name, value in _flat(values):
                self._board.add_scalar(f"{kind}/{name}", value, step)

    def draw(self) -> None:
        """Write ``curves.png`` from the lines so far."""
        draw_curves(read_metrics(self.path), self.out / "curves.png")

    def close(self) -> None:
        if self._board is not None:
            self._board.close()


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    pairs: list[tuple[str, float]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            pairs += _flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            pairs.append((prefix + name, float(value)))
    return pairs


def _tensorboard(out: Path, from_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(out / "tensorboard"), purge_step=from_step + 1)


def draw_curves(lines: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A PNG with the loss parts, the learning rate and the validation scores against steps; needs matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        log.info("no curves drawn: matplotlib is not installed (pip install 'deixis[plot]')")
        return
    train = [line for line in lines if line["kind"] == "train"]
    scored = [line for line in lines if line["kind"] == "validate"]
    figure = Figure(figsize=(15, 4), layout="constrained")
    losses, rate, scores = figure.subplots(1, 3)
    for name in train[0]["losses"] if train else ():
        losses.plot([line["step"] for line in train], [line["losses"][name] for line in train], label=name)
    losses.set(title="weighted loss parts", xlabel="step", yscale="log" if _positive(train) else "linear")
    rate.plot([line["step"] for line in train], [line["lr"] for line in train])
    rate.set(title="learning rate", xlabel="step")
    for name in scored[0]["scores"] if scored else ():
        points = [(line["step"], line["scores"][name]) for line in scored if name in line["scores"]]
        scores.plot(*zip(*points, strict=True), marker=".", label=name)
    scores.set(title="validation", xlabel="step")
    for axes in (losses, scores):
        if axes.get_lines():
            axes.legend(fontsize="small")
    figure.savefig(path, dpi=100, format="png")


def _positive(train: Sequence[Mapping[str, Any]]) -> bool:
    values = [value for line in train for value in line["losses"].values()]
    return bool(values) and min(values) > 0

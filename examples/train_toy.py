"""Training from Python: a small SOC from scratch on a practice folder, then its score on the films that were held out.

python examples/toy_folder.py toy --films 20
python examples/train_toy.py toy runs/toy --steps 600
"""

from __future__ import annotations

import argparse
from pathlib import Path

from deixis.benchmarks import open_benchmark
from deixis.metrics import report
from deixis.metrics.evaluate import score_benchmark
from deixis.predict import predict
from deixis.training.loop import train
from deixis.training.recipes import find_recipe
from deixis.training.run import Progress


def show(progress: Progress) -> None:
    """One line for every line of metrics.jsonl."""
    if progress.logged:
        left = f"{progress.seconds_left:.0f} s left"
        print(f"step {progress.step} of {progress.steps}: loss {sum(progress.losses.values()):.2f}, {left}")
    if progress.scores:
        print("  held out: " + ", ".join(f"{name} {value:.2f}" for name, value in progress.scores.items()))


def main(folder: Path, out: Path, steps: int) -> None:
    settings = {"train.steps": str(steps), "train.workers": "0", "train.validate_every": str(max(1, steps // 3))}
    run = find_recipe("soc_folder")({"folder": folder}, overrides=settings)
    outcome = train(run, out, report=show)
    # Every sentence is answered: this recipe does not train to say "not there", and its model states so.
    predict(open_benchmark("folder", folder, "valid"), out / "valid", outcome.model)
    scores = score_benchmark("folder", folder, out / "valid", "valid")
    print("\n".join(report.as_lines(scores)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=600)
    given = parser.parse_args()
    main(given.folder, given.out, given.steps)

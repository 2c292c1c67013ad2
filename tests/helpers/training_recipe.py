"""A published recipe, shrunk by overrides, as a program for torchrun: ``training_recipe.py RECIPE OUT DATA=PLACE ...``.

Settings with a dot are overrides, the others data. Every process writes the numbers of its samples to OUT_seen_RANK.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from deixis.training.loop import train
from deixis.training.recipes import find_recipe


def main() -> None:
    name, out, *settings = sys.argv[1:]
    pairs = dict(setting.split("=", 1) for setting in settings)
    data = {key: Path(value) for key, value in pairs.items() if "." not in key}
    run = find_recipe(name)(data, overrides={key: value for key, value in pairs.items() if "." in key})

    def noted(index: int) -> Any:
        with Path(f"{out}_seen_{os.environ.get('RANK', '0')}").open("a") as file:
            file.write(f"{index}\n")
        return run.samples(index)

    train(replace(run, samples=noted), Path(out), device="cpu")


if __name__ == "__main__":
    main()

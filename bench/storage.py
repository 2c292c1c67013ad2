"""Does int8 storage cost anything? The bundled model against itself with its frozen parts as they were published.

    python bench/storage.py --pictures ../shared/data --weights ../shared/weights [--films 80] [--threads 1]

The vision encoders (published as fp16) and the text encoder (fp32) of ``light`` are stored as int8 rows. Prints the
shares of right objects by kind of sentence on development films for both.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from deixis.systems.light import Light
from deixis.training.recipes.light import FROZEN, LightData, build, validate
from deixis.weights import load


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pictures", required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--model", default="light")
    parser.add_argument("--films", type=int, default=80)
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    stored = load(chosen.model)
    assert isinstance(stored, Light)
    whole = build(stored.config, {"weights": chosen.weights}).eval()
    trained = {k: v for k, v in stored.state_dict().items() if not k.startswith(FROZEN)}
    missing, unknown = whole.load_state_dict(trained, strict=False)
    assert not unknown
    assert all(k.startswith(FROZEN) for k in missing)
    data = LightData(development_films=chosen.films)
    with torch.inference_mode():
        scores = [validate(chosen.pictures, data, system) for system in (whole, stored)]
    print(f"{chosen.films} development films of 8 frames, torch {torch.__version__}")
    print("| share of right objects | frozen parts as published | as int8 rows |")
    print("|---|---|---|")
    for name in scores[0]:
        print(f"| {name} | {scores[0][name]:.3f} | {scores[1][name]:.3f} |")


if __name__ == "__main__":
    main()

"""Cut the slice of the reference tensors that lies here out of the whole files, which are not distributed.

    python tests/data/make_reference_slice.py FOLDER_WITH_NPZ FOLDER_WITH_KEY_LISTS

Writes ``reference_soc.npz``, ``reference_socpp.npz`` and ``official_keys.json.gz``. Of a tensor with more than ``MOST``
numbers every k-th is kept, in the order of memory; ``meta`` states k and the whole shape under ``every``. Of the masks
of ``clip96`` in evaluation, ``QUERIES`` are kept whole as well, for the tests that write masks.
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import numpy as np

MOST = 400  # numbers of a tensor that are kept
QUERIES = 4  # whole masks, of the queries with the best mean scores, in the order of their numbers
WHOLE = "clip96/eval/pred_masks"
LISTS = {"soc": "soc_state_dict.txt", "soc_b": "soc_b_state_dict.txt", "soc_plus_plus": "socpp_state_dict.txt"}


def cut(path: Path, out: Path) -> None:
    kept: dict[str, np.ndarray] = {}
    every: dict[str, list] = {}
    with np.load(path, allow_pickle=False) as file:
        meta = json.loads(str(file["meta"]))
        for name in sorted(set(file.files) - {"meta"}):
            tensor = file[name]
            step = -(-tensor.size // MOST)
            step += step > 1 and step % 2 == 0  # odd, so that no axis of an even length is always met at one place
            every[name] = [step, list(tensor.shape)]
            kept[name] = tensor.reshape(-1)[::step]
        scores = 1 / (1 + np.exp(-file["clip96/eval/pred_cls"][..., 0].astype(np.float64)))  # (T, B, Q)
        best = np.sort(np.argsort(-scores.mean(0)[0])[:QUERIES])
        kept["whole/queries"] = best
        kept["whole/masks"] = file[WHOLE][:, :, best]
    np.savez_compressed(out, meta=np.array(json.dumps({**meta, "every": every})), **kept)


def main() -> None:
    tensors, lists = (Path(given) for given in sys.argv[1:3])
    here = Path(__file__).parent
    for name in ("soc", "socpp"):
        cut(tensors / f"{name}.npz", here / f"reference_{name}.npz")
    table = {name: (lists / file).read_text(encoding="ascii").split("\n") for name, file in LISTS.items()}
    with open(here / "official_keys.json.gz", "wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as file:
        file.write(json.dumps(table).encode())


if __name__ == "__main__":
    main()

"""The papers' claims at module level: true object tracks, the claimed part and a head trained, controls beside it.

    python bench/claims.py soc_cluster --seeds 3 --out DIR       # one study; goes on where it was stopped
    python bench/claims.py all --seeds 3 --out DIR               # all of them, one after the other
    python bench/claims.py all --out DIR --table                 # prints what is done
    python bench/claims.py all --out DIR --plots docs/results    # draws it

``--device cuda`` needs nothing else. What each study's film, control and margin are was written down before it ran:
docs/results/claims.md.
"""

from __future__ import annotations

import argparse
import platform
from pathlib import Path

import torch
from claim_studies import aligned, conv_clip, grid, motion, soc, soc_plus_plus, verdicts, vlp_rvos

MODULES = soc, soc_plus_plus, vlp_rvos, conv_clip, aligned, motion
STUDIES: dict[str, grid.Study] = {study.name: study for module in MODULES for study in module.STUDIES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="+", choices=[*STUDIES, "all"])
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 to this number less one")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, help="exactly so many, instead of until the curves are flat")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--table", action="store_true", help="only print what is done")
    parser.add_argument("--plots", type=Path, help="only draw what is done, into this folder")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {platform.machine()}, {options.device}, commit {grid.commit()}", flush=True)
    for name in STUDIES if "all" in options.study else options.study:
        study = STUDIES[name]
        if options.plots:
            verdicts.plot(study, options.out, options.plots)
            continue
        if not options.table:
            place = grid.Place(out=options.out, device=options.device)
            grid.run(study, range(options.seeds), place, options.steps)
        verdicts.table(study, options.out)


if __name__ == "__main__":
    main()

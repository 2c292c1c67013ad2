"""Words choose among the tracks of another tool: a film and its COCO or YouTube-VIS JSON in, a line a sentence out.

python examples/choose_tracks.py film.mp4 labels.json "the woman" "a brown dog"
"""

from __future__ import annotations

import sys

import deixis
from deixis.writers import read_coco


def main(film: str, labels: str, *sentences: str) -> None:
    tracks = read_coco(labels)
    print(f"{len(tracks)} tracks: " + ", ".join(f"{i} {track.expression.text}" for i, track in enumerate(tracks)))
    for choice in deixis.choose(film, tracks, list(sentences)):
        which = "none of them" if choice.track is None else f"track {choice.track}"
        print(f"{choice.expression.text}: {which} (presence {choice.presence:.2f}, {choice.verdict})")


if __name__ == "__main__":
    main(*sys.argv[1:])

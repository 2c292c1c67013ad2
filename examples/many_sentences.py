"""Many sentences about one film: the frames are encoded once, each further sentence costs little. Sorted by presence.

python examples/many_sentences.py film.mp4 [sentences.txt]
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import deixis

SENTENCES = (
    "a woman", "a woman in a black dress", "the person", "a man", "a child", "a dog", "a horse", "a bicycle", "a car",
    "the bench", "a wooden bench", "a chair", "the thing in the middle", "the thing that moves",
    "the thing on the left", "something red", "something black", "a ball", "an umbrella", "a bag",
)  # fmt: skip


def main(film: str, list_of_sentences: str | None = None) -> None:
    sentences = SENTENCES
    if list_of_sentences is not None:
        sentences = Path(list_of_sentences).read_text(encoding="utf-8").splitlines()
    model = deixis.load("light")  # once, for any number of films
    began = time.perf_counter()
    tracks = deixis.segment(film, [text for text in sentences if text.strip()], model=model)
    seconds = time.perf_counter() - began
    for track in sorted(tracks, key=lambda t: -t.presence):
        seen = track.masks.areas().nonzero()[0]
        when = f"{track.times[seen[0]]:.1f} to {track.times[seen[-1]]:.1f} s" if len(seen) else "-"
        print(f"{track.presence:5.2f}  {when:>14}  {track.expression.text}")
    print(f"{len(tracks)} sentences, {len(tracks[0])} frames, {seconds:.1f} s")


if __name__ == "__main__":
    main(*sys.argv[1:3])

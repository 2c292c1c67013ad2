"""Proposals of several frames as tracks: the best path through time first, then the best of what is left.

After the action tubes of Gkioxari and Malik (CVPR 2015, section 3.3). T frames, Q proposals a frame.
"""

from __future__ import annotations

import numpy as np

REACH = 3  # frames back that a path may come from: an object may miss two frames (our choice)
SKIPPED = 0.15  # cost of each frame that is missed (our choice)


def best_paths(affinity: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Share out the proposals among tracks.

    A path is worth the scores of its proposals and the affinities between those that follow one another. The path that
    is worth most becomes track 0 and its proposals are used up; the next best becomes track 1, and so on. Unlike an
    assignment from frame to frame this compares whole films: a part of an object that fits the last frame by chance
    does not take the track away from the object.

    Args:
        affinity: (REACH, T, Q, Q): [r, i, p, q] of proposal p in frame i - 1 - r and q in frame i; above 0 where q may
            continue p.
        scores: (T, Q), 0 where there is no proposal.

    Returns:
        (T, Q) the proposal of each track in each frame, -1 where it has none. No proposal is in two tracks; what
        is left when Q tracks are full is left out.
    """
    t, q = scores.shape
    skips = SKIPPED * np.arange(REACH)[:, None, None, None]
    gains = np.where(affinity > 0, affinity - skips, -np.inf)
    # of each frame: from all proposals of the frames before, the oldest first, to its own
    into = [gains[: min(i, REACH), i][::-1].reshape(-1, q) for i in range(t)]
    order = np.full((t, q), -1, dtype=np.int64)
    left = scores > 0
    columns = np.arange(q)
    for track in range(q):
        if not left.any():
            break
        worth = np.where(left, scores, -np.inf).ravel()
        before = np.full(t * q, -1)
        for i in range(1, t):
            first = max(0, i - REACH) * q
            longer = worth[first : i * q, None] + into[i]
            best = longer.argmax(0)
            gain = longer[best, columns]
            continues = gain > 0
            own = slice(i * q, (i + 1) * q)
            worth[own] += np.where(continues, gain, 0)
            before[own] = np.where(continues, best + first, -1)
        at = int(worth.argmax())
        while at >= 0:
            order[at // q, track] = at % q
            left[at // q, at % q] = False
            at = int(before[at])
    return order

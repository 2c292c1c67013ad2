"""Choose among given tracks with words: the other half of the bundled model, for any tool's masks.

T frames, Q tracks, H W pixels of the video.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from deixis.inference import Setup, model_size, prepare
from deixis.linking import sigmoid
from deixis.sentences import as_expressions, as_list, as_read
from deixis.systems.light import Light, TrackFeatures
from deixis.types import DeixisError, Expression, MaskTrack, RleMasks, Verdict, verdict_of
from deixis.video import Video, normalise

MOST_FRAMES = 16  # frames that are used, evenly spread over the video (our choice: memory does not grow)


@dataclass(frozen=True)
class Choice:
    """The answer to one expression.

    Attributes:
        expression: As it was given.
        track: Index of the track that it refers to, or None where it refers to none of them.
        presence: 0..1, the probability that it refers to one of the tracks.
        probabilities: (Q,) of each track; they and 1 - presence sum to 1.
        sure: Presence below which ``track`` is a guess; None where the model does not say.

    Example:
        >>> from deixis import Choice, Expression
        >>> Choice(Expression("the left dog"), 0, 0.9, (0.8, 0.1)).track
        0
    """

    expression: Expression
    track: int | None
    presence: float
    probabilities: tuple[float, ...]
    sure: float | None = None

    @property
    def verdict(self) -> Verdict:
        """ "there"; "unsure": ``track`` is a guess; or "not there"."""
        return verdict_of(self.track is not None, self.presence, self.sure)


def choose(
    video: str | Path | Video,
    tracks: Sequence[MaskTrack | np.ndarray],
    expressions: str | Expression | Sequence[str | Expression],
    *,
    model: str | Path | nn.Module = "light",
    device: str = "auto",
    precision: str = "auto",
    threshold: float | None = None,
) -> list[Choice]:
    """Choose, for each expression, the track that it refers to.

    Args:
        video: Path of a video or of a folder of frames, or an open ``Video``.
        tracks: Q objects of the video, from any tool: a ``MaskTrack``, or (T, H, W) bool, one mask a frame.
        expressions: One expression or several. Of text the phrase alone is read, as by `segment`: "where is the dog?"
            is "the dog"; an `Expression` is taken as it stands.
        model: The bundled model, or a checkpoint or system of its kind.
        device: auto, cpu, cuda or mps.
        precision: auto, fp32 or bf16.
        threshold: Presence below which no track is chosen. Default: the model's own.

    Returns:
        One ``Choice`` per expression, in order.

    Raises:
        DeixisError: No tracks, tracks without any mask, of another size or length than the video, or a model that
            cannot score given tracks.

    Example:
        >>> import numpy as np, deixis
        >>> boxes = [np.zeros((12, 96, 160), bool) for _ in range(2)]  # of the video's length and size
        >>> boxes[0][:, 10:50, 5:45] = boxes[1][:, 10:50, 90:140] = True
        >>> choices = deixis.choose("film.mp4", boxes, "the thing on the left", threshold=0.001)
        >>> choices[0].track in (0, 1)
        True
    """
    typed = as_list(expressions)
    wanted = as_expressions(typed)
    read = as_read(typed, wanted)
    setup = prepare(model, device=device, precision=precision, threshold=threshold)
    system = setup.system
    if not isinstance(system, Light):
        raise DeixisError(
            f"{type(system).__name__} proposes masks with the words and cannot score given tracks; "
            "use the model 'light' or a checkpoint of it"
        )
    source = video if isinstance(video, Video) else Video(video)
    masks = [_masks_of(track, number) for number, track in enumerate(tracks)]
    _check(masks, source)
    tokens = _pool(setup, system, source, masks)
    rule = setup.presence_rule
    with torch.inference_mode(), torch.autocast(setup.device.type, torch.bfloat16, enabled=setup.reduced):
        embedding = system.namer(tokens)
        which = torch.zeros(len(wanted), dtype=torch.long, device=setup.device)
        similarity, none = system.score_texts(tokens, embedding, [e.text for e in read], which)
    choices = []
    for expression, row, nothing in zip(wanted, similarity.float().cpu(), none.float().cpu(), strict=True):
        raw = float(row.logsumexp(0) - nothing)
        presence = float(sigmoid(rule.calibrated(raw)))
        shares = row.softmax(0) * presence
        track = int(row.argmax()) if rule.shows(presence) else None
        choices.append(Choice(expression, track, presence, tuple(shares.tolist()), rule.sure))
    return choices


Masks = RleMasks | np.ndarray  # of a track: (T, H, W) bool, or read one by one


def _masks_of(track: MaskTrack | np.ndarray, number: int) -> Masks:
    if isinstance(track, MaskTrack):
        return track.masks
    masks = np.asarray(track)
    if masks.ndim != 3 or masks.dtype != bool:
        raise DeixisError(
            f"track {number} must be a MaskTrack or bool (T, H, W), got {masks.dtype} of shape {masks.shape}"
        )
    return masks


def _check(masks: Sequence[Masks], source: Video) -> None:
    if not masks:
        raise DeixisError("there are no tracks to choose among; give at least one")
    height, width = source.source_size
    lengths = {len(m) for m in masks}
    for number, track in enumerate(masks):
        shape = tuple(np.shape(track[0])) if len(track) else ()
        if shape != (height, width):
            raise DeixisError(
                f"track {number} has masks of {shape}, the video has frames of {(height, width)}; "
                "give masks of the video's own size"
            )
    if len(lengths) > 1:  # whether it is the video's is known when all frames are read: ``Video.length`` is about
        raise DeixisError(f"the tracks have {sorted(lengths)} frames; all must be as long as the video")
    if not any(track[i].any() for track in masks for i in _spread(len(track))):
        raise DeixisError("no track has a mask in the frames that are used; leave empty tracks out")


def _spread(length: int) -> list[int]:
    return sorted({int(i) for i in np.linspace(0, length - 1, min(length, MOST_FRAMES)).round()})


@torch.inference_mode()
def _pool(setup: Setup, system: Light, source: Video, masks: Sequence[Masks]) -> TrackFeatures:
    """Track features of the video's frames that are used."""
    config, length = system.config, len(masks[0])
    used, size = set(_spread(length)), model_size(source.source_size, config)
    frames: list[Tensor] = []
    shares: list[np.ndarray] = []
    done = 0
    for clip in source.windows(config.window, size=size, overlap=0):
        pixels, _ = normalise(clip, mean=config.mean, std=config.std, multiple=config.multiple, device=setup.device)
        inner = (clip.frames.shape[-2] // 4, clip.frames.shape[-1] // 4)
        grid = (pixels.shape[-2] // 4, pixels.shape[-1] // 4)
        for i in range(len(clip)):
            number = clip.start + i
            if number in used and number >= done:
                frames.append(pixels[:, i : i + 1])
                shares.append(np.stack([_share(m[number], inner, grid) for m in masks]))
        done = clip.start + len(clip)
    if done != length:
        raise DeixisError(f"the tracks have {length} frames, but the video has {done}; give one mask a frame")
    clip_pixels = torch.cat(frames, dim=1)  # (1, T, 3, H, W)
    soft = torch.from_numpy(np.stack(shares))[None].to(setup.device)  # (1, T, Q, h, w)
    scores = (soft.sum((-1, -2)) > 0.5).float()
    with torch.autocast(setup.device.type, torch.bfloat16, enabled=setup.reduced):
        features = system.encode_frames(clip_pixels.flatten(0, 1))
        return system.pool_tracks(features, clip_pixels, soft, scores)


def _share(mask: np.ndarray, inner: tuple[int, int], grid: tuple[int, int]) -> np.ndarray:
    """How much of each cell of the padded ``grid`` a mask (H, W) covers, 0..1; the picture fills ``inner`` of it."""
    share = cv2.resize(np.asarray(mask).astype(np.float32), inner[::-1], interpolation=cv2.INTER_AREA)
    return np.pad(share, ((0, grid[0] - inner[0]), (0, grid[1] - inner[1])))

"""Motion, for every system that can know it: twins that are alike in every frame, one goes left and one goes right.

The film is pixels and the system is whole as far as order can come in; only the choice is given, between the places of
the two twins. The control is the same film with its frames in a random order, in training and in the test.

B films, T frames, K twins, h w cells of 4 pixels, D width.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from claim_studies.grid import Chooser, Comparison, Draw, Films, Study
from claim_studies.twins import LED, LEFT, RIGHT, TWINS, at_twins, mostly_left, named
from deixis.blocks.fusion import CrossGate
from deixis.blocks.positions import word_positions
from deixis.blocks.temporal import ResidualAttention
from deixis.encoders.clip_vit import ClipVitConfig
from deixis.encoders.roberta import TextConfig
from deixis.encoders.video_swin import VideoSwin, VideoSwinConfig
from deixis.systems.slvp import Slvp, SlvpConfig
from deixis.systems.soc import QueryClusterer, SocConfig
from deixis.systems.soc_plus_plus import RelevanceClusterer, SocPlusPlus, SocPlusPlusConfig
from deixis.systems.vlp_rvos import Prompts, VlpRvos, VlpRvosConfig
from deixis.types import TextFeatures

FRAMES, HEIGHT, SIDE, PATCH, WIDTH = 4, 4, 8, 4, 32  # of the film in cells, pixels of a cell's side; D
NOISE = 0.2  # of every pixel; the ground is -1, a twin 1
SWIN = VideoSwinConfig(dim=16, depths=(2, 1), heads=(2, 2), window=(FRAMES, 4, 4), drop_path=0.0)
CLUSTER: dict[str, object] = {
    "width": WIDTH, "queries": TWINS, "layers": 1, "heads": 4, "hidden": 64, "dropout": 0.0
}  # fmt: skip
SLVP = SlvpConfig(
    vision=VideoSwinConfig(dim=8, depths=(1, 1, 1, 1), heads=(1, 1, 1, 1), window=(FRAMES, 4, 4), drop_path=0.0),
    text=TextConfig(
        vocabulary=64, width=WIDTH, layers=1, heads=2, hidden=64, positions=16, tokenizer="letters", frozen=False
    ),  # not in the arm: the two sentences are an embedding
    width=WIDTH, heads=4, blocks=1, space=(16, 32), compared=(4, 8), reach=1, signature=8, pixel_channels=16,
    norm_groups=4, pixel_groups=2,
)  # fmt: skip
VLP = VlpRvosConfig(
    clip=ClipVitConfig(
        place="", width=WIDTH, layers=2, heads=4, patch=PATCH, image=PATCH * SIDE, text_width=WIDTH, text_layers=1,
        text_heads=2, vocabulary=64, joint=16,
    ),
    width=WIDTH, heads=4, expand=2, dropout=0.0, prompts=False, capture=False, guidance="none", history=False,
    taps=(0, 1), cube_side=4, frames=FRAMES, mask_width=16, norm_groups=4,
)  # fmt: skip


def motion_films(count: int, draw: torch.Generator) -> Films:
    """Twins on a torus of cells, two rows apart, a cell a frame, one to the left, one to the right; the sentence names
    a direction. ``order`` is a random order of the frames: in it, and in each frame, both directions look the same."""
    row = torch.randint(HEIGHT, (count, 1), generator=draw)
    rows = (torch.cat([row, row + 2], dim=1) % HEIGHT)[:, None].expand(-1, FRAMES, -1)  # (B, T, K)
    goes = torch.rand(count, TWINS, generator=draw).argsort(1)  # LEFT or RIGHT
    step = torch.where(goes == LEFT, -1, 1)
    start = torch.randint(SIDE, (count, 1, TWINS), generator=draw)
    columns = (start + step[:, None] * torch.arange(FRAMES)[:, None]) % SIDE
    at, asked = rows * SIDE + columns, torch.randint(2, (count,), generator=draw)
    ground = torch.full((count, FRAMES, HEIGHT * SIDE), -1.0).scatter(2, at, 1.0).view(count, FRAMES, 1, HEIGHT, SIDE)
    pixels = ground.repeat_interleave(PATCH, 3).repeat_interleave(PATCH, 4).expand(-1, -1, 3, -1, -1)
    return {
        "pixels": pixels + NOISE * torch.randn(pixels.shape, generator=draw), "at": at, "goes": goes, "asked": asked,
        "order": torch.rand(count, FRAMES, generator=draw).argsort(1),
        "truth": named(goes, asked),
    }  # fmt: skip


def reordered(films: Films, order: Tensor) -> Films:
    """The films with their frames in ``order`` (B, T)."""
    row = torch.arange(len(order), device=order.device)[:, None]
    return films | {"pixels": films["pixels"][row, order], "at": films["at"][row, order]}


def backwards(count: int, draw: torch.Generator) -> Films:
    """Films played backwards, with the truth of before: who follows the order answers them wrongly."""
    films = motion_films(count, draw)
    return reordered(films, torch.arange(FRAMES).flip(0).expand(count, -1))


def led_films(count: int, draw: torch.Generator) -> Films:
    """Films to train on of which most sentences name the one that goes left."""
    return mostly_left(motion_films(count, draw), draw, LED)


def sentences_of_others(count: int, draw: torch.Generator) -> Films:
    """Films with the sentence of the film before; the truth is their own."""
    films = motion_films(count, draw)
    return films | {"asked": films["asked"].roll(1)}


class MotionArm(Chooser):
    """A small system; a number at the places of each twin, averaged over the frames. Subclasses say which."""

    def __init__(self, shuffled: bool = False) -> None:
        super().__init__()
        self.shuffled, self.sentences = shuffled, nn.Embedding(RIGHT + 1, WIDTH)

    def forward(self, films: Films) -> Tensor:
        films = reordered(films, films["order"]) if self.shuffled else films
        pixels, words = films["pixels"], self.sentences(films["asked"])
        text = TextFeatures(words[:, None], torch.zeros_like(words[:, :1], dtype=torch.bool), words)
        padding = torch.zeros_like(pixels[:, :, 0], dtype=torch.bool)
        return self.at_each(pixels, padding, text, films["at"]).mean(1)

    def at_each(self, pixels: Tensor, padding: Tensor, text: TextFeatures, at: Tensor) -> Tensor:
        """(B, T, K) for twins at cells ``at`` (B, T, K)."""
        raise NotImplementedError


class SocMotion(MotionArm):
    """SOC or SOC++: Video Swin, the gate with the words, and for a frame's queries the stride-8 cell of each twin; then
    the cluster of the clip and the score. Of the system, what finds objects in a frame is left out."""

    def __init__(self, plus_plus: bool, shuffled: bool = False) -> None:
        super().__init__(shuffled)
        self.vision, self.vision_gate = VideoSwin(SWIN), CrossGate(WIDTH, 4)
        self.project = nn.Sequential(nn.Conv2d(self.vision.channels[1], WIDTH, 1), nn.GroupNorm(4, WIDTH))
        self.cluster: QueryClusterer | RelevanceClusterer
        if plus_plus:
            config = SocPlusPlusConfig(**CLUSTER)  # type: ignore[arg-type]
            self.config, self.cluster = config, RelevanceClusterer(config)
            self.to_frames = ResidualAttention(WIDTH, config.heads, config.dropout)
        else:
            self.cluster = QueryClusterer(SocConfig(**CLUSTER))  # type: ignore[arg-type]
        self.score = nn.Linear(WIDTH, 1)

    def at_each(self, pixels: Tensor, padding: Tensor, text: TextFeatures, at: Tensor) -> Tensor:
        level = self.project(self.vision(pixels)[1].flatten(0, 1)).unflatten(0, at.shape[:2])
        level = level.permute(0, 1, 3, 4, 2)  # (B, T, h / 2, w / 2, D)
        keys = text.words + word_positions(text.padding, WIDTH)  # as gate_with_text
        cells = self.vision_gate(level.flatten(1, 3), keys, text.words, text.padding).view_as(level)
        halved = at // SIDE // 2 * (SIDE // 2) + at % SIDE // 2
        queries = at_twins(cells, halved)  # (B, T, K, D)
        if isinstance(self.cluster, RelevanceClusterer):
            clip = self.cluster([queries], text.sentence, [0])[0]
            queries = SocPlusPlus.add_clip_context(self, queries, clip)  # type: ignore[arg-type]
        else:
            queries = queries + self.cluster(queries, text.sentence)[:, None]  # as Soc.add_clip_context
        return self.score(queries)[..., 0]


class VlpMotion(MotionArm):
    """VLP-RVOS on a frozen tower of random weights that reads frame by frame, without temporal prompts: its cubes are
    the only way in for order. Read by the mask's logits."""

    def __init__(self, shuffled: bool = False) -> None:
        super().__init__(shuffled)
        whole = VlpRvos(VLP)
        self.config, self.tower, self.guide, self.capture = whole.config, whole.tower, whole.guide, whole.capture
        self.fuse, self.reason, self.mask_head = whole.fuse, whole.reason, whole.mask_head

    def at_each(self, pixels: Tensor, padding: Tensor, text: TextFeatures, at: Tensor) -> Tensor:
        patches = self.tower.patches(pixels.flatten(0, 1)).unflatten(0, at.shape[:2])
        encode = VlpRvos.encode_with_text
        *skips, deepest = encode(self, patches, text, Prompts(None, None, None), None)  # type: ignore[arg-type]
        cells, language, hidden = self.fuse(deepest, text)
        for stage, skip in zip(self.reason, reversed(skips), strict=True):
            cells = stage(cells, skip, language, hidden)
        masks = self.mask_head(cells)  # (B, T, 4 h, 4 w)
        return logits_at(nn.functional.avg_pool2d(masks, masks.shape[-1] // SIDE), at)


class SlvpMotion(MotionArm):
    """The SLVP-style system but for its text encoder, vision as query. Read by the mask's logits."""

    def __init__(self, shuffled: bool = False) -> None:
        super().__init__(shuffled)
        whole = Slvp(SLVP)
        del whole.text
        self.whole = whole

    def at_each(self, pixels: Tensor, padding: Tensor, text: TextFeatures, at: Tensor) -> Tensor:
        fused = self.whole.fuse_text(self.whole.encode(pixels, padding), text)
        return logits_at(self.whole.mask_head(fused).masks[:, :, 0], at)


def logits_at(masks: Tensor, at: Tensor) -> Tensor:
    """(B, T, K) of masks (B, T, h, w)."""
    return masks.flatten(2).gather(2, at)


ORDERED, SHUFFLED, BALANCED = "frames in order", "frames in random order", "both named alike"
TESTS: dict[str, Draw] = {"played backwards": backwards, "sentence of another film": sentences_of_others}


def study(name: str, whose: str, arm: partial[MotionArm], led: bool = False) -> Study:
    """led: most sentences to train on name one direction, and balanced films decide."""
    return Study(
        name=name, batch=16, arms={ORDERED: arm, SHUFFLED: partial(arm, shuffled=True)},
        draw=led_films if led else motion_films, tests={BALANCED: motion_films, **TESTS} if led else TESTS,
        rate=2e-3 if led else 1e-3,
        comparisons=(
            Comparison(
                claim=f"{whose}: motion is above chance", arm=ORDERED, controls=(SHUFFLED,), chance=1 / TWINS,
                test=BALANCED if led else "",
            ),
        ),
    )  # fmt: skip


STUDIES = (
    study("motion_soc", "SOC", partial(SocMotion, False)),
    study("motion_soc_plus_plus", "SOC++", partial(SocMotion, True)),
    study("motion_vlp_rvos", "VLP-RVOS", partial(VlpMotion), led=True),
    study("motion_slvp", "SLVP-style", partial(SlvpMotion)),
)

"""VLP-RVOS: temporal prompts, history from clip to clip, and cube-frame attention, on twins alike in every frame.

The tower is a small CLIP vision transformer, trained first on pairs of frames so that motion is in what its layers can
compute (a pair's cells in one sequence, the direction read at the twins), then frozen.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from claim_studies.grid import Chooser, Comparison, Films, Study, generator
from claim_studies.twins import (
    HAT,
    LED,
    NOTHING,
    PLAIN,
    ROWS,
    SIDE,
    Cells,
    at_twins,
    mostly_left,
    told_before,
    twin_films,
)
from deixis.blocks.attention import Mlp
from deixis.encoders.clip_vit import ClipVitConfig
from deixis.systems.vlp_rvos import CubeFrameLayer, Prompts, VlpRvos, VlpRvosConfig, frame_code, pool_by_mask
from deixis.types import TextFeatures

WIDTH = 32
TOWER = ClipVitConfig(
    place="", width=WIDTH, layers=3, heads=4, patch=16, image=16 * SIDE, text_width=16, text_layers=1, text_heads=2,
    vocabulary=64, joint=16,
)  # fmt: skip
CONFIG = VlpRvosConfig(
    clip=TOWER, width=WIDTH, heads=4, expand=2, dropout=0.0, prompts=False, temporal_prompts=4, prompt_width=WIDTH,
    prompt_heads=4, guidance="none", taps=(0, 2), cube_side=2, frames=6, mask_width=16, norm_groups=4,
)  # fmt: skip
WIDE = 6  # h and w of the films for cubes: three cubes a side
TIME = 0.5  # how much of a frame's code the pairs' cells get; the capture starts with the same


def of_arm(capture: bool = False, history: bool = False) -> VlpRvos:
    """The system with no more than an arm trains; its gates on words stay shut."""
    fields = {name: getattr(CONFIG, name) for name in CONFIG.__dataclass_fields__}
    return VlpRvos(VlpRvosConfig(**{**fields, "capture": capture, "history": history}))


class TwinArm(Chooser):
    """Cells of a clip through the frozen tower with what the arm adds; a score at each twin, averaged over the frames.

    adds: "none", "time" (a code of the frame's number on every cell), "mean" (the clip's mean of each cell), or what
    subclasses add.
    """

    def __init__(self, adds: str, capture: bool = False, history: bool = False) -> None:
        super().__init__()
        self.adds, self.cells = adds, Cells(WIDTH)
        whole = of_arm(capture, history)
        self.tower, self.prompts, self.capture = whole.tower, whole.prompts, whole.capture
        self.guide, self.history, self.config = whole.guide, whole.history, whole.config
        self.sentences = nn.Embedding(2, WIDTH)
        self.score = Mlp(2 * WIDTH, 64, 1)
        if self.capture is not None:
            nn.init.constant_(self.capture.time, TIME)
            for parameter in (self.prompts.to_vision.weight, self.prompts.tokens["temporal"]):  # type: ignore[union-attr]
                nn.init.normal_(parameter, std=0.3)  # the published start is near nothing: many steps are saved

    def prepare(self, folder: Path, seed: int) -> None:
        """Put the tower of this seed in, trained now if it is not there."""
        self.tower.load_state_dict(tower_of(folder / f"tower-{seed}.pt", seed))

    def encode(self, films: Films, before: Tensor | None = None) -> Tensor:
        """(B, T, h, w, C) after the tower's last layer."""
        patches = self.cells(films["at"])
        frames = patches.shape[1]
        if self.adds == "time":
            patches = patches + TIME * frame_code(frames, WIDTH, patches.device)[:, :, None, None]
        if self.adds == "mean":
            patches = patches + patches.mean(1, keepdim=True)
        nothing = patches.new_zeros(len(patches), 1, 16)
        text = TextFeatures(nothing, nothing[..., 0].bool(), nothing[:, 0])
        prompts = self.prompts() if self.capture is not None else Prompts(None, None, None)
        return VlpRvos.encode_with_text(self, patches, text, prompts, before)[-1]  # type: ignore[arg-type]

    def choose(self, cells: Tensor, films: Films) -> Tensor:
        twins = at_twins(cells, films["at"])  # (B, T, K, C)
        sentence = self.sentences(films["asked"])[:, None, None].expand_as(twins)
        return self.score(torch.cat([twins, sentence], dim=-1))[..., 0].mean(1)

    def forward(self, films: Films) -> Tensor:
        return self.choose(self.encode(films), films)


class HistoryArm(TwinArm):
    """Clip 2, with what clip 1's mask has pooled: the true mask of the one that the sentence names."""

    def __init__(self, adds: str, history: bool = False, pooled: bool = False) -> None:
        super().__init__(adds, history=history)
        self.pooled = pooled
        draw = torch.Generator().manual_seed(3)
        self.register_buffer("reasoned", torch.randn(WIDTH, CONFIG.width, generator=draw) / WIDTH**0.5)

    def forward(self, films: Films) -> Tensor:
        if self.history is None:
            return self.choose(self.encode(films), films)
        cells = self.cells(films["before"], torch.where(films["hats"] == 1, HAT, PLAIN)).movedim(2, -1)
        own = films["before"].gather(2, films["truth"][:, None, None].expand(-1, cells.shape[1], 1))  # (B, T, 1)
        masks = torch.full((*cells.shape[:2], ROWS * SIDE), -8.0, device=cells.device).scatter(2, own, 8.0)
        masks = masks.unflatten(-1, (ROWS, SIDE)).repeat_interleave(4, -1).repeat_interleave(4, -2)
        memory = pool_by_mask(cells @ self.reasoned, masks)  # (B, T, D)
        memory = memory.mean(1, keepdim=True) if self.pooled else memory
        return self.choose(self.encode(films, self.history(memory, len(memory))), films)


def jumping_twins(count: int, draw: torch.Generator, left: float | None = None) -> Films:
    """Twins that leave their cube with every step. left: the share of sentences that name the one that goes left."""
    films = twin_films(count, draw, jump=2, height=WIDE, side=WIDE)
    return films if left is None else mostly_left(films, draw, left)


class CubeArm(Chooser):
    """Two layers of the reasoning's encoder on cells; side: of a cube, ``WIDE`` is full attention."""

    def __init__(self, cube: bool, frame: bool, side: int = 2, code: bool = False) -> None:
        super().__init__()
        fields = {name: getattr(CONFIG, name) for name in CONFIG.__dataclass_fields__}
        config = VlpRvosConfig(**{**fields, "cube": cube, "frame": frame, "cube_side": side})
        self.cells, self.code = Cells(WIDTH, WIDE, WIDE), code
        self.layers = nn.ModuleList(CubeFrameLayer(config) for _ in range(2))
        self.sentences, self.score = nn.Embedding(2, WIDTH), Mlp(2 * WIDTH, 64, 1)

    def forward(self, films: Films) -> Tensor:
        x = self.cells(films["at"]).movedim(2, -1)
        if self.code:
            x = x + frame_code(x.shape[1], WIDTH, x.device)[:, None, None]
        for layer in self.layers:
            x = layer(x)
        twins = at_twins(x, films["at"])
        sentence = self.sentences(films["asked"])[:, None, None].expand_as(twins)
        return self.score(torch.cat([twins, sentence], dim=-1))[..., 0].mean(1)

    @torch.no_grad()
    def facts(self, films: Films) -> dict[str, float]:
        """Time of a film as long as these, and of one four times as long, without gradient."""
        found = {}
        for times in (1, 4):
            x = self.cells(films["at"][:16].repeat(1, times, 1)).movedim(2, -1)
            began = time.process_time()
            for layer in self.layers:
                x = layer(x)
            found[f"ms a film of {x.shape[1]}"] = 1000 * (time.process_time() - began) / len(x)
        return found


def tower_of(path: Path, seed: int) -> dict[str, Tensor]:
    """The tower's weights: trained on pairs of frames until nearly every direction is right, at most 3,000 steps."""
    if path.is_file():
        return torch.load(path, weights_only=True)
    torch.manual_seed(seed)
    tower, cells, head = of_arm().tower, Cells(WIDTH), nn.Linear(WIDTH, 2)
    trained = [*tower.module.vision_model.encoder.layers.parameters(), *head.parameters()]
    for parameter in trained:
        parameter.requires_grad_(True)
        if parameter.ndim > 1:
            nn.init.xavier_uniform_(parameter)  # CLIP's start is for deeper towers and longer runs
    optimizer, recent = torch.optim.AdamW(trained, lr=2e-3), 0.0
    for step in range(3000):
        films = twin_films(32, generator(30_000_001 + 10_000 * seed + step))
        loss, right = direction_loss(tower, cells, head, films, step % 5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        recent = 0.95 * recent + 0.05 * right
        if recent > 0.98:
            break
    print(f"tower of seed {seed}: {step + 1} steps, directions right {recent:.3f}", flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(tower.state_dict(), path)
    return tower.state_dict()


def direction_loss(tower: nn.Module, cells: Cells, head: nn.Linear, films: Films, first: int) -> tuple[Tensor, float]:
    """Which way each twin goes, read at it, of the pair of frames ``first`` and the next in one sequence.

    In half of the films the second twin is left out: one direction is learned before two are kept apart.
    """
    at = films["at"][:, first : first + 2]
    kinds = torch.full((len(at), 2), PLAIN)
    kinds[::2, 1] = NOTHING
    x = cells(at, kinds) + TIME * frame_code(first + 2, WIDTH, at.device)[first:, :, None, None]
    tokens = x.movedim(2, -1).flatten(1, 3)
    start = tower.start(ROWS, SIDE).expand(len(tokens), 1, -1)  # type: ignore[operator]
    tokens = torch.cat([start, tokens], dim=1)
    for layer in tower.layers(ROWS, SIDE):  # type: ignore[operator]
        tokens = layer(tokens)
    logits = head(at_twins(tokens[:, 1:].unflatten(1, (2, ROWS, SIDE)), at))  # (B, 2, K, 2)
    there = (kinds == PLAIN)[:, None].expand(-1, 2, -1)
    truth = films["goes"][:, None].expand(-1, 2, -1)
    logits, truth = logits[there], truth[there]
    return F.cross_entropy(logits, truth), float((logits.argmax(-1) == truth).float().mean())


PROMPTS = Study(
    name="vlp_rvos_prompts",
    arms={
        "temporal prompts": partial(TwinArm, "none", capture=True), "without": partial(TwinArm, "none"),
        "plain mean": partial(TwinArm, "mean"), "time code": partial(TwinArm, "time"),
    },
    draw=twin_films,
    comparisons=(
        Comparison(
            claim="VLP-RVOS: temporal prompts let a frozen tower understand motion",
            arm="temporal prompts", controls=("without", "plain mean", "time code"), chance=0.5,
        ),
    ),
)  # fmt: skip
HISTORY = Study(
    name="vlp_rvos_history",
    arms={
        "history": partial(HistoryArm, "none", history=True), "without": partial(HistoryArm, "none"),
        "one mean token": partial(HistoryArm, "none", history=True, pooled=True),
        "time code": partial(HistoryArm, "time"),
    },
    draw=told_before,
    comparisons=(
        Comparison(
            claim="VLP-RVOS: history carries from clip to clip", arm="history", controls=("without", "time code"),
            chance=0.5,
        ),
        Comparison(claim="VLP-RVOS: a history token a frame beats their mean", arm="history",
                   controls=("one mean token",), chance=0.5),
    ),
)  # fmt: skip
CUBES = Study(
    name="vlp_rvos_cubes_led",
    arms={
        "cubes and frames": partial(CubeArm, True, True), "frames only": partial(CubeArm, False, True),
        "frames only, time code": partial(CubeArm, False, True, code=True), "cubes only": partial(CubeArm, True, False),
        "full attention": partial(CubeArm, True, False, WIDE),
    },
    draw=partial(jumping_twins, left=LED),
    tests={"both named alike": jumping_twins},
    batch=16,
    rate=2e-3,
    least=1000,
    comparisons=(
        Comparison(
            claim="VLP-RVOS: cube-frame attention follows a cue that crosses cubes", arm="cubes and frames",
            controls=("frames only", "frames only, time code", "cubes only"), chance=0.5, test="both named alike",
        ),
        Comparison(
            claim="VLP-RVOS: cube-frame attention is as good as full attention (no more than 2 points below)",
            arm="cubes and frames", controls=("full attention",), margin=-0.02, chance=0.5, test="both named alike",
        ),
    ),
)  # fmt: skip
STUDIES = (PROMPTS, HISTORY, CUBES)

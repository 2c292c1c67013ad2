"""CLIP ViT: exactly transformers' function with nothing put in, read strictly, with its own words and places."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from deixis.encoders.clip_vit import ClipVit, ClipVitConfig, OpenLayer, clip_vit_b, clip_vit_l, make_clip, make_config
from deixis.encoders.frozen import fill_towers, save_tower
from deixis.types import DeixisError

SMALL = ClipVitConfig(
    place="", width=32, layers=3, heads=4, patch=8, image=32, text_width=24, text_layers=2, text_heads=3, positions=24,
    vocabulary=64, joint=16,
)  # fmt: skip
TEXTS = ["a dog", "the black and white horse", "Zebra, 2nd from left!"]


def small_tokenizer() -> CLIPTokenizer:
    """CLIP's kind of byte-pair encoding, with few pieces: letters, some pairs, and two whole words."""
    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789,!."]
    merges = [("t", "h"), ("th", "e</w>"), ("d", "o"), ("do", "g</w>"), ("a", "n"), ("an", "d</w>")]
    pieces = [*letters, *(f"{x}</w>" for x in letters), *("".join(pair) for pair in merges)]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CLIPModel, ClipVitConfig]:
    """A folder as the hub's: config, safetensors, tokenizer; random weights of small sizes."""
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = small_tokenizer()
    config = replace(SMALL, place=str(folder), vocabulary=len(tokenizer))
    torch.manual_seed(0)
    model = make_clip(config).eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.05)  # biases and norms are not left at 0 and 1
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, model, config


@pytest.fixture(scope="module")
def tower(published: tuple[Path, CLIPModel, ClipVitConfig]) -> ClipVit:
    made = ClipVit(published[2])
    fill_towers(made)
    return made


def close(a: Tensor, b: Tensor, tolerance: float = 1e-6) -> None:
    assert a.shape == b.shape
    assert (a - b).abs().max() <= tolerance * b.abs().max()


@pytest.mark.parametrize("size", [(32, 32), (40, 24), (64, 48)])
@torch.no_grad()
def test_pictures_are_prepared_exactly_as_by_transformers(
    published: tuple[Path, CLIPModel, ClipVitConfig], tower: ClipVit, size: tuple[int, int]
) -> None:
    model, pictures = published[1], torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    theirs = model.vision_model(pixel_values=pictures, interpolate_pos_encoding=True, output_hidden_states=True)
    first, last = tower.encode_image(pictures, taps=(0, -1))
    close(last, theirs.last_hidden_state)
    close(first, theirs.hidden_states[1])
    joint = model.visual_projection(theirs.pooler_output)
    close(tower.project_image(last[:, 0]), joint)


@torch.no_grad()
def test_texts_are_split_exactly_as_by_transformers(
    published: tuple[Path, CLIPModel, ClipVitConfig], tower: ClipVit
) -> None:
    folder, model, _ = published
    tokens = CLIPTokenizer.from_pretrained(folder)(TEXTS, padding=True, truncation=True, max_length=24,
                                                   return_tensors="pt")  # fmt: skip
    theirs = model.text_model(**tokens)
    text_features = tower.encode_text(TEXTS)
    assert torch.equal(text_features.padding, tokens["attention_mask"] == 0)
    there = ~text_features.padding
    close(text_features.words[there], theirs.last_hidden_state[there])
    close(text_features.sentence, theirs.pooler_output)
    close(tower.project_text(text_features.sentence), model.text_projection(theirs.pooler_output))


def test_tokens_are_those_of_the_published_vocabulary(published: Any, tower: ClipVit) -> None:
    theirs = CLIPTokenizer.from_pretrained(published[0])
    for text in [*TEXTS, "the dog and the dog", "  Spaces\tand CAPITALS  ", "the dog " * 40]:
        ids, _ = tower.tokens([text], 24)
        assert ids[0].tolist() == theirs(" ".join(text.split()), truncation=True, max_length=24)["input_ids"]
    ids, _ = tower.tokens(["the dog"], 24)
    assert ids.shape == (1, 4)  # start, two whole words, end


@torch.no_grad()
def test_words_attend_to_prompts_which_are_not_returned_and_take_room(tower: ClipVit) -> None:
    prompts = torch.randn(5, 24, generator=torch.Generator().manual_seed(2))
    plain, prompted = tower.encode_text(TEXTS), tower.encode_text(TEXTS, prompts)
    assert plain.words.shape == (3, 20, 24)
    assert prompted.words.shape == (3, 19, 24)  # 24 positions, 5 of them prompts; the longest text was cut
    close(prompted.words[:, 0], plain.words[:, 0])  # the start stands before the prompts
    assert not torch.allclose(prompted.sentence, plain.sentence)
    each = tower.encode_text(TEXTS, torch.stack([prompts, prompts, -prompts]))
    close(each.sentence[:2], prompted.sentence[:2])
    assert not torch.allclose(each.sentence[2], prompted.sentence[2])


@torch.no_grad()
def test_a_text_is_encoded_alike_alone_and_beside_a_longer_one(tower: ClipVit) -> None:
    together = tower.encode_text(TEXTS)
    for i, text in enumerate(TEXTS):
        close(tower.encode_text([text]).sentence[0], together.sentence[i], 1e-5)


@torch.no_grad()
def test_a_layer_taken_apart_is_the_layer_itself(published: Any, tower: ClipVit) -> None:
    x = torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(3))
    theirs = published[1].vision_model.encoder.layers[1](x, None)
    ours = tower.layers(4, 4)[1]
    close(ours(x), theirs)
    y = ours.norm(x)
    few = ours.attend(y, y, torch.tensor([True] * 4 + [False] * 3).view(1, 1, 1, 7))
    close(few, ours.attend(y, y[:, :4]), 1e-5)  # a key that is masked out is as good as none


def test_gradients_go_through_the_frozen_towers_to_what_is_put_in(tower: ClipVit) -> None:
    prompts = torch.randn(2, 24, requires_grad=True)
    tower.encode_text(TEXTS, prompts).sentence.sum().backward()
    assert prompts.grad is not None
    assert prompts.grad.abs().sum() > 0
    extra = torch.randn(1, 3, 32, requires_grad=True)
    x = torch.cat([tower.patches(torch.randn(1, 3, 32, 32)).flatten(2).mT, extra], dim=1)
    for layer in tower.layers(4, 4):
        x = layer(x)
    x[:, 0].sum().backward()
    assert extra.grad is not None
    assert all(p.grad is None for p in tower.parameters())


# --- files -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_an_older_pytorch_file_with_its_constants_is_read_too(
    published: tuple[Path, CLIPModel, ClipVitConfig], tower: ClipVit, tmp_path: Path
) -> None:
    folder, model, config = published
    constants = {
        "text_model.embeddings.position_ids": torch.arange(24)[None],
        "vision_model.embeddings.position_ids": torch.arange(17)[None],
    }
    torch.save({**model.state_dict(), **constants}, tmp_path / "pytorch_model.bin")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    for place in (tmp_path, tmp_path / "pytorch_model.bin"):
        again = ClipVit(replace(config, place=str(place)))
        again.fill()
        assert torch.equal(again.encode_text(TEXTS).sentence, tower.encode_text(TEXTS).sentence)
        assert torch.equal(again.fingerprint, tower.fingerprint)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"heads": 8}, r"vision_config.num_attention_heads is 4, expected 8"),
        ({"text_heads": 6}, r"text_config.num_attention_heads is 3, expected 6"),
        ({"layers": 4}, "keys missing"),
        ({"text_layers": 1}, "keys left over"),
        ({"image": 48}, r"position_embedding.weight is \(17, 32\), expected \(37, 32\)"),
        ({"vocabulary": 90}, "entries, but its tower 90"),
    ],
)
def test_files_of_other_sizes_are_refused(published: Any, change: dict[str, int], words: str) -> None:
    with pytest.raises(DeixisError, match=words):
        ClipVit(replace(published[2], **change)).fill()


def test_another_activation_is_refused(published: Any, tmp_path: Path) -> None:
    for path in published[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    facts = json.loads((tmp_path / "config.json").read_text())
    facts["vision_config"]["hidden_act"] = "gelu"
    (tmp_path / "config.json").write_text(json.dumps(facts))
    with pytest.raises(DeixisError, match="hidden_act is gelu, expected quick_gelu"):
        ClipVit(replace(published[2], place=str(tmp_path))).fill()


@torch.no_grad()
def test_a_small_tower_saved_by_us_comes_back_with_its_words(tmp_path: Path) -> None:
    torch.manual_seed(4)
    made = ClipVit(SMALL)
    save_tower(made, tmp_path / "tower.safetensors")
    again = ClipVit(replace(SMALL, place=str(tmp_path / "tower.safetensors")))
    again.fill()
    assert torch.equal(again.encode_text(TEXTS).sentence, made.encode_text(TEXTS).sentence)
    with pytest.raises(DeixisError, match="with heads 4, expected 2"):
        ClipVit(replace(SMALL, heads=2, place=str(tmp_path / "tower.safetensors"))).fill()


def test_the_published_sizes_have_the_published_parts() -> None:
    """Parameters in all, as OpenAI's release prints them (from memory), and transformers' names of the hub's files."""
    for config, parameters, keys in ((clip_vit_b(), 149_620_737, 398), (clip_vit_l(), 427_616_513, 590)):
        with torch.device("meta"):
            state = make_clip(config).state_dict()
        assert sum(value.numel() for value in state.values()) == parameters
        assert len(state) == keys
        assert {key.split(".")[0] for key in state} == {
            "logit_scale", "text_model", "vision_model", "visual_projection", "text_projection",
        }  # fmt: skip
    assert make_config(clip_vit_b()).vision_config.hidden_act == "quick_gelu"


def test_a_tower_by_its_hub_id_is_read_from_the_hubs_cache(
    published: tuple[Path, CLIPModel, ClipVitConfig], tower: ClipVit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The cache's layout: snapshots of a commit, and a reference to it."""
    root = tmp_path / "models--openai--clip-vit-small"
    snapshot = root / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("0" * 40)
    for path in published[0].iterdir():
        (snapshot / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    words = small_tokenizer().backend_tokenizer
    monkeypatch.setattr("deixis.encoders.clip_vit.published_tokenizer", lambda place, size: words)
    found = ClipVit(replace(published[2], place="openai/clip-vit-small"))
    found.fill()
    assert torch.equal(found.fingerprint, tower.fingerprint)


def test_an_open_layer_is_causal_only_when_asked(tower: ClipVit) -> None:
    layer = OpenLayer(tower.module.text_model.encoder.layers[0])
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(1, 5, 24, generator=draw)
    for place in range(5):
        changed = x.clone()
        changed[:, place] = 3 * torch.randn(24, generator=draw)  # another token, not a shifted one: norms undo a shift
        for causal in (True, False):
            moved = (layer(x, causal=causal) - layer(changed, causal=causal)).abs().amax((0, 2)) > 1e-4
            assert moved.tolist() == [i >= place or not causal for i in range(5)]

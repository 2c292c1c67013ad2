"""VLMo: its blocks against the formula written out plainly, its bias tables against a loop, its file read strictly."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from deixis.encoders.vlmo import Vlmo, VlmoBody, VlmoConfig, bias_rows, vlmo_b, vlmo_l
from deixis.types import DeixisError

SMALL = VlmoConfig(place="", width=16, layers=2, heads=2, patch=8, image=24, positions=12, vocabulary=200)
TEXTS = ["a dog", "zebra left"]


@pytest.fixture(scope="module")
def tower() -> Vlmo:
    torch.manual_seed(0)
    made = Vlmo(SMALL)
    for parameter in made.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return made


def plain_block(block: Any, x: Tensor, bias: Tensor, kind: str, heads: int) -> Tensor:
    """The spec's layer, head by head: fused qkv, biases for q and v only, scaled logits plus bias, layer scales."""
    y = F.layer_norm(x, x.shape[-1:], block.norm1.weight, block.norm1.bias, 1e-6)
    qkv_bias = torch.cat([block.attn.q_bias, torch.zeros_like(block.attn.q_bias), block.attn.v_bias])
    q, k, v = F.linear(y, block.attn.qkv.weight, qkv_bias).chunk(3, -1)
    d = x.shape[-1] // heads
    attended = []
    for head in range(heads):
        part = slice(head * d, (head + 1) * d)
        logits = q[..., part] @ k[..., part].mT / math.sqrt(d) + bias[head]
        attended.append(logits.softmax(-1) @ v[..., part])
    x = x + block.gamma_1 * block.attn.proj(torch.cat(attended, -1))
    norm, mlp = getattr(block, f"norm2_{kind}"), getattr(block, f"mlp_{kind}")
    y = F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, 1e-6)
    return x + block.gamma_2 * mlp.fc2(F.gelu(mlp.fc1(y)))


def close(a: Tensor, b: Tensor, tolerance: float = 1e-6) -> None:
    assert a.shape == b.shape
    assert (a - b).abs().max() <= tolerance * b.abs().max()


@torch.no_grad()
def test_pictures_go_through_the_blocks_as_the_formula_says(tower: Vlmo) -> None:
    body, side = tower.module, 3
    pictures = torch.randn(2, 3, 24, 24)
    cells = F.conv2d(
        pictures, body.transformer.patch_embed.proj.weight, body.transformer.patch_embed.proj.bias, stride=8
    )
    x = torch.cat([body.transformer.cls_token.expand(2, -1, -1), cells.flatten(2).mT], dim=1)
    x = x + body.token_type_embeddings.weight[1]
    table = body.relative_position_bias_table.unflatten(1, (2, 2))  # rows, layers, heads
    for i, block in enumerate(body.transformer.blocks):
        bias = torch.empty(2, 10, 10)
        for a in range(10):
            for b in range(10):
                if a == 0 or b == 0:
                    row = 25 + (2 if a == b else 0 if a == 0 else 1)
                else:
                    dy, dx = (a - 1) // side - (b - 1) // side, (a - 1) % side - (b - 1) % side
                    row = (dy + side - 1) * (2 * side - 1) + dx + side - 1
                bias[:, a, b] = table[row, i]
        x = plain_block(block, x, bias, "imag", 2)
    close(tower.encode_image(pictures)[0], x, 2e-6)


@torch.no_grad()
def test_texts_go_through_the_same_attention_and_their_own_networks(tower: Vlmo) -> None:
    body, named = tower.module, tower.module.text_embeddings
    ids, padding = tower.tokens(TEXTS[:1], 12)
    assert not padding.any()
    length = ids.shape[1]
    x = named.word_embeddings(ids) + named.position_embeddings.weight[:length] + named.token_type_embeddings.weight[0]
    x = F.layer_norm(x, (16,), named.LayerNorm.weight, named.LayerNorm.bias, 1e-12)
    x = x + body.token_type_embeddings.weight[0]
    table = body.relative_position_bias_table.unflatten(1, (2, 2))
    for i, block in enumerate(body.transformer.blocks):
        bias = torch.empty(2, length, length)
        for a in range(length):
            for b in range(length):
                if a == 0 or b == 0:
                    row = len(table) - (1 if a == b else 3 if a == 0 else 2)
                else:
                    row = 25 + 3 + 2 + 194 + a - b
                bias[:, a, b] = table[row, i]
        x = plain_block(block, x, bias, "text", 2)
    x = F.layer_norm(x, (16,), body.transformer.norm.weight, body.transformer.norm.bias, 1e-6)
    text_features = tower.encode_text(TEXTS[:1])
    close(text_features.words, x, 2e-6)
    close(text_features.sentence, x[:, 0], 2e-6)


@torch.no_grad()
def test_a_text_is_encoded_alike_alone_and_beside_a_longer_one_with_prompts_or_without(tower: Vlmo) -> None:
    for prompts in (None, torch.randn(3, 16)):
        together = tower.encode_text(TEXTS, prompts)
        alone = tower.encode_text(TEXTS[:1], prompts)
        close(together.sentence[:1], alone.sentence, 1e-5)
        close(together.words[:1, : alone.words.shape[1]], alone.words, 1e-5)


@torch.no_grad()
def test_appended_tokens_get_no_bias_and_other_sizes_a_resized_one(tower: Vlmo) -> None:
    (layer, _) = tower.layers(3, 3)
    mask = layer.mask(2)
    assert mask.shape == (1, 2, 12, 12)
    assert not mask[..., 10:].any()
    assert mask[..., :10, :10].any()
    (wide, _) = tower.layers(2, 5)
    assert wide.mask(0).shape == (1, 2, 11, 11)
    assert torch.isfinite(tower.encode_image(torch.randn(1, 3, 16, 40))[0]).all()


def published_file(folder: Path, config: VlmoConfig, **more: Tensor) -> Path:
    torch.manual_seed(1)
    state = dict(VlmoBody(config).state_dict())
    fused = {f"transformer.blocks.1.{part}": torch.zeros(3) for part in ("norm2_vl.weight", "mlp_vl.fc1.bias")}
    others = {"pooler.dense.weight": torch.zeros(2, 2), "itc_vl_text_proj.fc.weight": torch.zeros(2),
              "logit_scale": torch.zeros(()), "text_embeddings.position_ids": torch.arange(12)[None]}  # fmt: skip
    torch.save({"state_dict": state | fused | others | more}, folder / "vlmo.pt")
    return folder / "vlmo.pt"


@pytest.fixture
def words(tmp_path: Path) -> str:
    from transformers import PreTrainedTokenizerFast

    from deixis.encoders.tokenizers import wordpiece_letter_tokenizer

    tokenizer = wordpiece_letter_tokenizer()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(
        tmp_path / "words"
    )
    return str(tmp_path / "words")


def test_a_file_of_the_published_layout_is_read_strictly(tmp_path: Path, words: str) -> None:
    config = replace(SMALL, tokenizer=words, vocabulary=192)
    path = published_file(tmp_path, config)
    tower = Vlmo(replace(config, place=str(path)))
    tower.fill()
    torch.manual_seed(1)
    assert torch.equal(tower.module.transformer.cls_token, VlmoBody(config).transformer.cls_token)
    assert torch.isfinite(tower.encode_text(TEXTS).sentence).all()
    path = published_file(tmp_path, config, **{"transformer.surprise": torch.zeros(1)})
    with pytest.raises(DeixisError, match=r"1 keys left over, such as transformer\.surprise"):
        Vlmo(replace(config, place=str(path))).fill()


def test_the_published_sizes() -> None:
    assert bias_rows(24) == 47 * 47 + 3 + 392 + 2
    with torch.device("meta"):
        state = VlmoBody(vlmo_b()).state_dict()
    assert tuple(state["relative_position_bias_table"].shape) == (2606, 144)
    assert tuple(state["transformer.blocks.11.attn.qkv.weight"].shape) == (2304, 768)
    assert vlmo_l().layers * vlmo_l().heads == 384


def test_a_file_that_is_not_there_is_said_so() -> None:
    with pytest.raises(DeixisError, match=r"no frozen tower at vlmo_base_patch16_384_coco\.pt"):
        Vlmo(vlmo_b()).fill()

"""Tokenizers: published ones, ones made from words or letters, and their bytes in a checkpoint."""

from __future__ import annotations

import gzip
import html
import json
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from string import ascii_lowercase, digits, printable
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn

from deixis.types import DeixisError

START, PAD, END, UNKNOWN = 0, 1, 2, 3  # token ids of RoBERTa (read)


def roberta_letter_tokenizer() -> Tokenizer:
    """Spells in lower-case letters and digits, with RoBERTa's special tokens: 41 entries."""
    split = pre_tokenizers.Split(Regex("."), "isolated")
    return _of_pieces([*ascii_lowercase, *digits, "-"], [pre_tokenizers.WhitespaceSplit(), split])


def word_tokenizer(texts: Sequence[str], most: int) -> Tokenizer:
    """A token for each of the commonest words of ``texts``, ``most`` entries in all: for small models from scratch."""
    counts = Counter(word for text in texts for word in re.findall(r"\w+|[^\w\s]", text.lower()))
    return _of_pieces([word for word, _ in counts.most_common(most - 4)], [pre_tokenizers.Whitespace()])


def _of_pieces(pieces: Sequence[str], split: list[Any]) -> Tokenizer:
    table = {piece: i for i, piece in enumerate(["<s>", "<pad>", "</s>", "<unk>", *pieces])}
    tokenizer = Tokenizer(models.WordLevel(table, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", START), ("</s>", END)]
    )
    return tokenizer


MAX_TOKENS = 64  # our choice: the longest sentence of the benchmarks has fewer; what follows is left out


def wordpiece_letter_tokenizer() -> Tokenizer:
    """A WordPiece tokenizer that spells: the vocabulary of a model whose weights are random."""
    letters = [c for c in printable if not c.isspace()]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{c}" for c in letters)]
    tokenizer = Tokenizer(models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_truncation(MAX_TOKENS)
    return tokenizer


def published_tokenizer(place: str, vocabulary: int) -> Tokenizer:
    """The tokenizer of a hub id or folder, which must have exactly ``vocabulary`` entries; else DeixisError."""
    from transformers import AutoTokenizer

    try:
        # AutoTokenizer: offline, a concrete class can silently return an empty vocabulary.
        loaded: Any = AutoTokenizer.from_pretrained(place, use_fast=True)
        found: Tokenizer = loaded.backend_tokenizer
    except (OSError, ValueError, AttributeError, KeyError) as error:
        raise DeixisError(
            f"the tokenizer {place!r} is neither a folder nor in the hub's cache, and the hub did not answer with it; "
            "connect once, or name a folder that holds tokenizer.json"
        ) from error
    if found.get_vocab_size() != vocabulary:
        raise DeixisError(
            f"the tokenizer {place!r} has {found.get_vocab_size()} entries, but its tower {vocabulary}; "
            "they belong to two models"
        )
    return found


def tokenizer_bytes(tokenizer: Tokenizer | None) -> Tensor:
    """A tokenizer as uint8, any length; a blank for none."""
    text = "" if tokenizer is None else tokenizer.to_str()
    return torch.frombuffer(bytearray(text.encode() or b" "), dtype=torch.uint8)


def tokenizer_of(state: Tensor) -> Tokenizer | None:
    text = bytes(state.cpu().to(torch.uint8).numpy()).decode().strip()
    return Tokenizer.from_str(text) if text else None


CLIP_START, CLIP_END = "<|startoftext|>", "<|endoftext|>"
MERGES = 49152 - 256 - 2  # read of the published file; what follows in it is not used
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"  # the published pattern
_HEADER = "#version"


def clip_tokenizer(place: str) -> Tokenizer:
    """The tokenizer at a place: the published merges (.txt or .txt.gz), a folder with tokenizer.json, or a hub id.

    Ids are those of the published models; the start and end tokens are added. Raises DeixisError where there is none.
    """
    path = Path(place)
    if path.is_file() and path.name.endswith((".txt", ".txt.gz")):
        return tokenizer_of_merges(read_merges(path))
    from transformers import AutoTokenizer

    try:
        # AutoTokenizer: offline, a concrete class can silently return an empty vocabulary.
        loaded: Any = AutoTokenizer.from_pretrained(place, use_fast=True)
        model = json.loads(loaded.backend_tokenizer.to_str())["model"]
        merges = [tuple(m.split()) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    except (OSError, ValueError, AttributeError, KeyError) as error:
        raise DeixisError(
            f"the CLIP vocabulary {place!r} is neither a file of merges, nor a folder with tokenizer.json, nor in the "
            "hub's cache, and the hub did not answer with it; connect once, or name bpe_simple_vocab_16e6.txt.gz"
        ) from error
    made = tokenizer_of_merges(merges)
    ours = made.get_vocab()
    if any(ours.get(piece) != number for piece, number in model["vocab"].items()):
        raise DeixisError(f"the tokenizer {place!r} numbers its pieces otherwise than CLIP; it is another model's")
    return made


def read_merges(path: Path) -> list[tuple[str, str]]:
    """The merges of a file in the published form: a header, then two pieces a line. DeixisError for anything else."""
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DeixisError(f"{path} cannot be read as CLIP's merges; it is cut off or another file") from error
    header, *lines = text.split("\n")
    pairs = [tuple(line.split()) for line in lines[:MERGES] if line.strip()]
    if _HEADER not in header or any(len(pair) != 2 for pair in pairs):
        raise DeixisError(f"{path} holds no merges in CLIP's form: a header line, then two pieces a line")
    return [(first, second) for first, second in pairs]


def tokenizer_of_merges(merges: Sequence[tuple[str, ...]]) -> Tokenizer:
    """CLIP's tokenizer with these merges; without any it spells, byte by byte (514 entries)."""
    letters = list(_byte_letters())
    pieces = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges)]
    pieces += [CLIP_START, CLIP_END]
    table = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(
        models.BPE(table, [(pair[0], pair[1]) for pair in merges], end_of_word_suffix="</w>", unk_token=CLIP_END)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{CLIP_START} $A {CLIP_END}",
        special_tokens=[(CLIP_START, table[CLIP_START]), (CLIP_END, table[CLIP_END])],
    )
    return tokenizer


def clip_letter_tokenizer() -> Tokenizer:
    """CLIP's tokenizer without a vocabulary: for models whose weights are random."""
    return tokenizer_of_merges([])


def _byte_letters() -> list[str]:
    """A printable character for each of the 256 bytes, in the published order: those that are printable come first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = 256 - len(printable)
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(others)]


# What ftfy, through which the published models' texts went, does to characters: quotes made straight, ligatures and
# full-width letters taken apart. Its repair of wrongly decoded text is left out: films' sentences come as Unicode.
_STRAIGHT = {ord(c): "'" for c in "‘’‚‛"} | {ord(c): '"' for c in "“”„‟"}
_TAKEN_APART = {
    code: unicodedata.normalize("NFKC", chr(code))
    for code in (
        *range(0xFF01, 0xFFF0), 0x3000, *range(0xFB00, 0xFB07), 0x132, 0x133, 0x149, *range(0x1C4, 0x1CD), 0x1F1, 0x1F2,
        0x1F3,
    )
}  # fmt: skip


def clean_text(text: str) -> str:
    """A text as the published tokenizer cleans it: characters repaired, HTML taken back, single spaces, lower case."""
    text = unicodedata.normalize("NFC", text.translate(_STRAIGHT | _TAKEN_APART))
    return " ".join(html.unescape(html.unescape(text)).split()).lower()


def ids_of(tokenizer: Tokenizer, texts: Sequence[str], positions: int) -> tuple[Tensor, Tensor]:
    """Token ids (B, L) and their padding (B, L), L at most ``positions``; the last token of each text is the end."""
    tokenizer.no_padding()
    tokenizer.enable_truncation(positions)
    ids = [torch.tensor(e.ids) for e in tokenizer.encode_batch([clean_text(text) for text in texts])]
    lengths = torch.tensor([len(i) for i in ids])
    tokens = nn.utils.rnn.pad_sequence(ids, batch_first=True)
    return tokens, torch.arange(tokens.shape[1]) >= lengths[:, None]

"""RefCOCO from what people have: the refer toolkit's pickles, which may run nothing, and the layout of ReferFormer."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from deixis.benchmarks import open_benchmark
from deixis.benchmarks.refcoco_build import build_refcoco, read_refs, write_download, write_rearranged
from deixis.cli import app
from deixis.types import DeixisError

FILES = {
    "refcoco_train", "refcoco_val", "refcoco_testA", "refcoco+_train", "refcoco+_val", "refcoco+_testB",
    "refcocog_train", "refcocog_val", "refcocog_test",
}  # fmt: skip


@pytest.fixture
def here(tmp_path: Path) -> Path:
    write_download(tmp_path / "data")
    return tmp_path / "data"


def test_a_record_a_sentence_is_built_for_every_set_and_split(here: Path, tmp_path: Path) -> None:
    counts = build_refcoco(here, tmp_path / "built")
    assert counts == dict.fromkeys(FILES, 4)  # one image, two objects, two sentences of each
    for split in FILES:
        opened = open_benchmark("refcoco", tmp_path / "built", split)
        words = "the red box that walks down"
        assert [s.text for s in opened.samples][:2] == [words, f"{words}, here"]
        assert opened.truth is not None
        first, third = (opened.truth(opened.samples[i].video, 0).masks["1"] for i in (0, 2))
        assert first.any()
        assert not (first & third).any()


def test_the_layout_of_referformer_is_read_as_it_is(tmp_path: Path) -> None:
    write_rearranged(tmp_path)
    assert (tmp_path / "refcoco" / "instances_refcoco_train.json").is_file()
    assert not list(tmp_path.glob("instances_*.json"))
    for split in FILES:
        assert len(open_benchmark("refcoco", tmp_path, split).samples) == 4


def test_the_command_builds_and_the_recipe_trains_on_it(here: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["data", "build", "refcoco", str(here), str(tmp_path / "built")])
    assert done.exit_code == 0, done.output
    from deixis.training.recipes import find_recipe

    run = find_recipe("soc_refcoco")({"refcoco": tmp_path / "built", "kinetics": tmp_path / "k.pth"}, overrides={})
    assert run.collate([run.samples(0)]).frames.shape[1] == 1


def test_split_by_umd_and_unc_goes_before_google_and_google_alone_is_read(here: Path, tmp_path: Path) -> None:
    (here / "refcocog" / "refs(umd).p").write_bytes(b"(l.")  # no references at all: nothing would be written
    assert not any(key.startswith("refcocog") for key in build_refcoco(here, tmp_path / "a"))
    (here / "refcocog" / "refs(umd).p").unlink()
    assert build_refcoco(here, tmp_path / "b")["refcocog_val"] == 4


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_references_of_every_protocol_are_read(here: Path, protocol: int, tmp_path: Path) -> None:
    refs = read_refs(here / "refcoco" / "refs(unc).p")
    (tmp_path / "refs.p").write_bytes(pickle.dumps(refs, protocol=protocol))
    assert read_refs(tmp_path / "refs.p") == refs
    assert refs[0]["sentences"][0]["sent"] == "the red box that walks down"


class Hostile:
    def __reduce__(self) -> Any:
        return os.mkdir, ("hostile-code-ran",)


class HostileState:
    def __setstate__(self, state: dict) -> None:
        os.mkdir("hostile-code-ran")


HOSTILE = [
    *(pickle.dumps([{"sentences": Hostile()}], protocol=p) for p in range(pickle.HIGHEST_PROTOCOL + 1)),
    pickle.dumps(HostileState()),
    b"cos\nmkdir\n(S'hostile-code-ran'\ntR.",
    b"(S'hostile-code-ran'\nios\nmkdir\n.",  # INST
    b"(cos\nmkdir\nS'hostile-code-ran'\no.",  # OBJ
    b"\x80\x02\x82\x01.",  # EXT1
    b"P0\n.",  # PERSID
    b"\x80\x05\x96\xff\xff\xff\xff\xff\x00\x00\x00.",  # BYTEARRAY8 of a terabyte
]


@pytest.mark.parametrize("data", HOSTILE, ids=range(len(HOSTILE)))
def test_a_pickle_that_wants_to_run_code_is_refused_and_runs_nothing(
    data: bytes, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (here / "refcoco" / "refs(unc).p").write_bytes(data)
    with pytest.raises(DeixisError, match="may run code") as caught:
        build_refcoco(here, tmp_path / "built")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "hostile-code-ran").exists()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not a whole pickle"),
        (b"(lI1\n", "not a whole pickle"),
        (b"g7\n.", "not a whole pickle"),  # of a memo that was never written
        (b"r\xff\xff\xff\xff.", "not a whole pickle"),  # a memo of four thousand million entries
        (b"\x80\x04X\xff\xff\xff\x7fa.", "not a whole pickle"),
        (b"I7\n.", "must hold a list of references"),
        (b"(lI7\na.", "must hold a list of references"),
    ],
)
def test_a_damaged_pickle_gets_one_line(data: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "refs.p").write_bytes(data)
    with pytest.raises(DeixisError, match=says) as caught:
        read_refs(tmp_path / "refs.p")
    assert "\n" not in str(caught.value)


def test_what_is_missing_or_does_not_fit_is_said(here: Path, tmp_path: Path) -> None:
    with pytest.raises(DeixisError, match="holds none of refcoco"):
        build_refcoco(tmp_path / "nothing", tmp_path / "out")
    table = json.loads((here / "refcoco" / "instances.json").read_text())
    (here / "refcoco" / "instances.json").write_text(json.dumps({**table, "annotations": table["annotations"][:1]}))
    with pytest.raises(DeixisError, match=r"a reference has ann_id 12, which .* does not list"):
        build_refcoco(here, tmp_path / "out")
    (here / "refcoco" / "refs(unc).p").unlink()
    (here / "refcoco" / "refs(google).p").unlink()
    with pytest.raises(DeixisError, match=r"holds none of refs\(unc\|google\).p"):
        build_refcoco(here, tmp_path / "out")


def test_an_rle_of_numbers_as_coco_keeps_crowds_is_read(here: Path, tmp_path: Path) -> None:
    file = here / "refcoco" / "instances.json"
    table = json.loads(file.read_text())
    table["annotations"][0]["segmentation"] = {"size": [48, 32], "counts": [0, 48, 48 * 31]}  # the first column
    file.write_text(json.dumps(table))
    build_refcoco(here, tmp_path / "built")
    opened = open_benchmark("refcoco", tmp_path / "built", "refcoco_train")
    assert opened.truth is not None
    mask = opened.truth(opened.samples[0].video, 0).masks["1"]
    assert np.array_equal(np.flatnonzero(mask.any(0)), [0])

"""OpenVINO for the frozen encoders: as PyTorch up to rounding, and never fatal."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from helpers.films import moving, write_folder
from typer.testing import CliRunner

from deixis.cli import app
from deixis.devices import run_facts, run_words
from deixis.encoders import fast
from deixis.encoders.fast import FastNetwork
from deixis.systems.light import light_debug

pytestmark = pytest.mark.slow  # each test traces and compiles networks
needs_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed (extra fast)")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DEIXIS_CACHE", str(tmp_path))
    monkeypatch.setenv("DEIXIS_FAST", "1")
    return tmp_path / "openvino"


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """A network and the cache that holds it."""
    folder = tmp_path_factory.mktemp("traced")
    torch.manual_seed(0)
    network = light_debug().eval().tiny_vit
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEIXIS_CACHE", str(folder))
        patch.setenv("DEIXIS_FAST", "1")
        FastNetwork(network)(frames(), bf16=False)
    return network, folder / "openvino"


def frames(count=2):
    return torch.randn(count, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def assert_same(found, wanted):
    for a, b in zip(found, wanted, strict=True):
        assert (a - b).abs().max() <= 1e-3 * b.abs().max()


@needs_openvino
def test_encoders_give_the_same_maps_in_fp32(cache):
    torch.manual_seed(0)
    system = light_debug().eval()
    x = frames()
    with torch.no_grad():
        plain = system.encode_frames(x)
        assert system.accelerate() == fast.openvino_version()
        quick = system.encode_frames(x)
    names = ("fine", "middle", "deep", "semantic16", "semantic32")
    assert_same([getattr(quick, n) for n in names], [getattr(plain, n) for n in names])


@needs_openvino
@pytest.mark.parametrize("padded", [False, True])
def test_proposals_are_the_same_in_fp32(cache, padded):
    torch.manual_seed(0)
    system = light_debug().eval()
    x, padding = frames(), torch.zeros(2, 64, 96, dtype=torch.bool)
    padding[:, :, 64:] = padded
    with torch.no_grad():
        plain = system.propose(system.encode_frames(x), x, padding)
        system.accelerate()
        quick = system.propose(system.encode_frames(x), x, padding)
    torch.testing.assert_close(quick.scores, plain.scores, atol=1e-4, rtol=1e-3)
    assert torch.equal(quick.cells[quick.scores > 0], plain.cells[plain.scores > 0])


@needs_openvino
@pytest.mark.parametrize("harm", ["cut off", "empty", "another shape"])
def test_a_broken_file_in_the_cache_is_made_anew(traced, cache, harm):
    network, whole = traced
    with torch.no_grad():
        wanted = network(frames())
    shutil.copytree(whole, cache)
    (place,) = cache.glob("*.xml")
    if harm == "another shape":
        other = FastNetwork(network)
        other(frames()[..., :64], bf16=False)
        (narrow,) = set(cache.glob("*.xml")) - {place}
        place.write_bytes(narrow.read_bytes())
        place.with_suffix(".bin").write_bytes(narrow.with_suffix(".bin").read_bytes())
    else:
        place.write_bytes(b"" if harm == "empty" else place.read_bytes()[:500])
    assert_same(FastNetwork(network)(frames(), bf16=False), wanted)


@needs_openvino
def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("DEIXIS_CACHE", str(tmp_path / "file"))
    network = light_debug().eval().tiny_vit
    with torch.no_grad():
        assert_same(FastNetwork(network)(frames(), bf16=False), network(frames()))


@needs_openvino
def test_what_openvino_cannot_run_pytorch_runs_with_one_warning(cache, monkeypatch, caplog):
    network = light_debug().eval().tiny_vit
    quick = FastNetwork(network)

    def fail(*_):
        raise RuntimeError("no such instruction\nand a long trace")

    monkeypatch.setattr(quick, "_compile", fail)
    with torch.no_grad():
        assert_same(quick(frames(), bf16=False), network(frames()))
        quick(frames(), bf16=False)
    assert [r.getMessage() for r in caplog.records] == [
        "OpenVINO cannot run TinyVit (no such instruction); PyTorch does"
    ]


def test_without_openvino_or_with_it_switched_off_pytorch_is_used(monkeypatch):
    monkeypatch.setenv("DEIXIS_FAST", "0")
    system = light_debug().eval()
    assert system.accelerate() is None
    assert system.fast is None


@needs_openvino
def test_each_frame_is_computed_for_itself(cache):
    network = FastNetwork(light_debug().eval().tiny_vit)
    x = frames(5)
    together, alone = network(x, bf16=False)[0], network(x[3:4], bf16=False)[0]
    np.testing.assert_allclose(together[3], alone[0], atol=1e-5)


@needs_openvino
def test_the_verdicts_header_and_every_json_name_the_engine(cache, tmp_path):
    film = write_folder(tmp_path / "f", moving(2))
    version = fast.openvino_version()
    words = ["segment", str(film), "red", "-o", str(tmp_path / "out"), "--model", "light_debug", "--device", "cpu"]
    done = CliRunner().invoke(app, [*words, "--precision", "fp32", "--as", "rle"])
    assert done.exit_code == 0, done.output
    assert f"light_debug on cpu in fp32, OpenVINO {version}\n" in done.stderr
    model = json.loads((tmp_path / "out" / "masks.json").read_text())["model"]
    assert (model["device"], model["precision"], model["engine"]) == ("cpu", "fp32", f"OpenVINO {version}")


@needs_openvino
def test_an_engine_that_gave_way_to_pytorch_is_not_named(cache, monkeypatch):
    system = light_debug().eval()
    assert run_facts(system, "cpu", "fp32")["engine"] == f"OpenVINO {fast.openvino_version()}"
    monkeypatch.setattr(FastNetwork, "_compile", lambda *_: 1 / 0)
    with torch.no_grad():
        system.encode_frames(frames())
    assert run_facts(system, "cpu", "fp32")["engine"] == "PyTorch"
    assert run_words(run_facts(system, "cpu", "bf16")) == "cpu in bf16"
    assert run_words(run_facts(system, "cpu", "fp32"), "light") == "light on cpu in fp32"

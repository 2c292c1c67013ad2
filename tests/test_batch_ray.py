"""`deixis batch --engine ray`: the same films as `segment`, through Ray Data; actors that die are replaced."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.batch_films import COUNT, Listed, Mortal, files, make_films, noise, plan_of, results, truth_of
from helpers.films import moving, write_film

from deixis.batch.run import batch
from deixis.batch.storage import RESULTS

ray = pytest.importorskip("ray", reason="the extra `cluster` is not installed")
pytest.importorskip("ray.data", reason="the extra `cluster` is not installed")

from deixis.batch.ray_cluster import Cluster, TaskRunner, cpu_share, gpu_share  # noqa: E402  (needs Ray)
from deixis.types import DeixisError  # noqa: E402


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A Ray of two CPUs, small, for all tests of this file."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)  # actors import the tests' workers
        start(attempts=3)
        yield Cluster()
        ray.shutdown()
    torch.set_num_threads(before)


def start(attempts: int) -> None:
    """Ray gives its own processes 30 seconds to start; on a busy machine it may need to be asked again."""
    for attempt in range(attempts):
        try:
            ray.init(
                address="local", num_cpus=2, object_store_memory=100 * 2**20, include_dashboard=False,
                log_to_driver=False, logging_level="ERROR",
            )  # fmt: skip
            return
        except Exception:
            ray.shutdown()
            if attempt == attempts - 1:
                raise


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Listed:
    return make_films(tmp_path_factory.mktemp("listed"))


def test_24_films_by_two_actors_through_a_bucket_are_those_of_segment_byte_for_byte(
    cluster: Cluster, listed: Listed, tmp_path: Path
) -> None:
    """Manifest, films and OUT are URLs, which are read and written as buckets are."""
    planned = plan_of(listed.manifest.as_uri(), (tmp_path / "out").as_uri(), engine=cluster)
    seen: list[int] = []
    summary = batch(planned, progress=lambda done, total: seen.append(done))
    assert (len(summary.now), summary.failed, summary.waiting) == (COUNT, [], [])
    assert listed.wrong(tmp_path / "out") == []
    assert [line["row"] for line in results(tmp_path / "out")] == list(range(1, COUNT + 1))
    assert seen == list(range(COUNT + 1))
    assert any(t["present"] for line in results(tmp_path / "out") for t in line["tracks"])


def test_killed_actors_films_are_done_again_bad_ones_named_and_deadly_ones_given_up(
    cluster: Cluster, tmp_path: Path
) -> None:
    names = ["0.mp4", "once.mp4", "2.mp4", "deadly.mp4", "4.mp4", "noise.mp4", "6.mp4"]
    for number, name in enumerate(names):
        write_film(tmp_path / name, moving(3 + number, (32, 48)))
    noise(tmp_path / "noise.mp4")
    (tmp_path / "m.csv").write_text("film,sentences\n" + "".join(f"{name},a red square\n" for name in names))
    summary = batch(plan_of(tmp_path / "m.csv", tmp_path / "out", engine=cluster, worker=Mortal, tries=2))
    reasons = {line["film"]: line["reason"] for line in summary.failed}
    assert list(reasons) == ["deadly.mp4", "noise.mp4"]
    assert reasons["deadly.mp4"].startswith("its worker died 2 times")
    assert "is not a film" in reasons["noise.mp4"]
    assert (tmp_path / "killed-once.mp4").read_text() == "x"
    assert (tmp_path / "killed-deadly.mp4").read_text() == "xx"
    for line in results(tmp_path / "out"):
        row = {"sentences": ["a red square"], "options": {}}
        truth = truth_of(tmp_path / line["film"], row, tmp_path / "truth" / line["film"])
        assert files(tmp_path / "out" / line["folder"]) == truth
    assert [line["film"] for line in results(tmp_path / "out")] == ["0.mp4", "once.mp4", "2.mp4", "4.mp4", "6.mp4"]
    there = {RESULTS, *(line["folder"] for line in results(tmp_path / "out"))}
    assert {p.name for p in (tmp_path / "out").iterdir()} == there
    ray.shutdown()  # what is finished needs no worker, and is found by another engine too
    again = batch(plan_of(tmp_path / "m.csv", tmp_path / "out", workers=1, worker=Mortal, tries=1))
    assert (again.now, again.before, len(again.failed)) == ([], 5, 2)


def test_actors_leave_a_cpu_to_what_feeds_them() -> None:
    assert cpu_share(2, 2, 1) == 0.5
    assert cpu_share(1, 1, 1) == 0.5
    assert cpu_share(8, 7, 1) == 1
    assert cpu_share(64, 64, 1) == 0.98
    assert cpu_share(64, 16, 4) == 3
    assert all(cpu_share(c, w, 1) * w < c for c in range(1, 65) for w in range(1, c + 1))


def test_each_gpu_has_room_for_the_actors_that_share_it() -> None:
    assert gpu_share(0, 4) == 0
    assert gpu_share(4, 4) == 1
    assert gpu_share(4, 2) == 1
    assert gpu_share(4, 6) == 0.5


def test_a_cluster_that_is_not_there_is_one_clear_error() -> None:
    with pytest.raises(DeixisError, match=r"no Ray cluster at 127\.0\.0\.1:1"):
        Cluster("127.0.0.1:1").__enter__()


def test_a_model_that_is_refused_reaches_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(number: int) -> None:
        raise DeixisError("the model is damaged")

    class Starts:
        class begin:
            remote = staticmethod(lambda index: 1)

    monkeypatch.setattr(ray, "get", lambda found: found)
    said = TaskRunner(refuse, ["film"], Starts, 3)({"index": [0]})  # type: ignore[arg-type]
    assert said == {"index": [0], "said": ['{"refused": "the model is damaged"}']}

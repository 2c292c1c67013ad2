"""Benchmarks on disk: every layout opens, the known traps are stepped over, and hostile files end in one clear line."""

import json
import shutil

import numpy as np
import pytest
from helpers.downloads import write_davis, write_visor
from PIL import Image

from deixis.benchmarks import BENCHMARKS, a2d_sentences, jhmdb_sentences, mevis_layout, open_benchmark, splits_of, visor
from deixis.benchmarks import write_fixture as write
from deixis.benchmarks.checking import check_benchmark
from deixis.benchmarks.fixtures import tiny_videos
from deixis.benchmarks.frames import centred_window, read_frames
from deixis.benchmarks.mevis_layout import scan_masks
from deixis.benchmarks.pngs import checked_mask, davis_palette, polygon_mask, read_ids, write_ids
from deixis.benchmarks.ref_davis17 import TEXTS, build_ref_davis17, merge_objects
from deixis.benchmarks.ref_youtube_vos import holdout_ids
from deixis.training.clips import anchored_frames, consecutive_windows, pseudo_clip, surrounding_frames, training_clip
from deixis.types import DeixisError, encode_rle

FIXTURES = [name for name in BENCHMARKS if name not in ("world", "folder")]  # folder: tests/test_folder.py


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DEIXIS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def made(tmp_path):
    def make(name):
        write(name, tmp_path / name)
        return tmp_path / name

    return make


def truth_of(benchmark, sample, index):
    return benchmark.truth(sample.video, index).union(sample.objects)


# --- every layout ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FIXTURES)
def test_a_fixture_has_no_problem_in_any_split(name, made):
    findings = check_benchmark(name, made(name))
    assert findings.problems == 0
    assert not [line for line in findings.lines if "not to be opened" in line]


@pytest.mark.parametrize("name", FIXTURES)
def test_truth_is_the_boxes_that_were_drawn(name, made):
    root = made(name)
    split = {"ref-youtube-vos": "train"}.get(name)
    benchmark = open_benchmark(name, root, split)
    drawn = {video.id: video for video in tiny_videos(frames=8 if name == "a2d-sentences" else 4)}
    videos = list(drawn.values())
    for sample in benchmark.samples:
        index = 0 if sample.scored is None else sample.scored[0]
        mask = truth_of(benchmark, sample, index)
        at = int(sample.video.names[index]) - 1 if name == "a2d-sentences" else index
        if name == "refcoco":
            ids = videos[int(sample.id) // 2].ids[0] == int(sample.id) % 2 + 1
        elif name == "visor":
            ids = np.isin(videos[int(sample.video.id[-5:])].ids[at], [int(o) for o in sample.objects])
        elif name == "mevis":
            ids = np.isin(drawn[sample.video.id].ids[at], [int(o) % 2 + 1 for o in sample.objects])
        else:
            ids = drawn[sample.video.id].ids[at] == int(sample.objects[0])
            ids[0, :3] &= name != "ref-davis17"  # void there
        assert np.array_equal(mask, ids), sample


def test_a_missing_benchmark_says_what_is_missing_and_where_to_get_it(tmp_path):
    for name in FIXTURES:
        with pytest.raises(DeixisError, match=r"is missing; .*docs/benchmarks\.md"):
            open_benchmark(name, tmp_path / "nothing")


def test_unknown_names_and_splits_are_refused_with_the_known_ones(made):
    with pytest.raises(DeixisError, match="ref-davis17"):
        open_benchmark("davis", made("mevis"))
    with pytest.raises(DeixisError, match="valid_u, train, valid"):
        open_benchmark("mevis", made("visor"), "test")


def test_a_fixture_is_not_written_over_anything(tmp_path):
    (tmp_path / "kept").write_text("dear")
    with pytest.raises(DeixisError, match="not empty"):
        write("mevis", tmp_path)


def test_an_incomplete_copy_is_known_as_such(made):
    assert not open_benchmark("mevis", made("mevis")).complete


# --- Ref-YouTube-VOS -------------------------------------------------------------------------------------------------


def test_validation_is_the_valid_file_without_the_videos_of_the_test_file(made):
    root = made("ref-youtube-vos")
    listed = json.loads((root / "meta_expressions/valid/meta_expressions.json").read_text())["videos"]
    valid = {s.video.id for s in open_benchmark("ref-youtube-vos", root, "valid").samples}
    test = {s.video.id for s in open_benchmark("ref-youtube-vos", root, "test").samples}
    assert valid | test == set(listed)
    assert not valid & test


def test_the_holdout_is_fixed_and_training_can_leave_it_out(made):
    ids = frozenset(f"{i:010x}" for i in range(3471))
    held = holdout_ids(ids)
    assert len(held) == 200
    assert held == holdout_ids(frozenset(sorted(ids)))
    root = made("ref-youtube-vos")
    parts = [{s.video.id for s in open_benchmark("ref-youtube-vos", root, split).samples}
             for split in ("holdout", "train_without_holdout", "train")]  # fmt: skip
    assert parts[0] | parts[1] == parts[2]
    assert not parts[0] & parts[1]


def test_annotations_are_read_as_indices_never_as_colours(made):
    root = made("ref-youtube-vos")
    file = next((root / "train/Annotations/video00").glob("*.png"))
    assert set(np.unique(read_ids(file, file))) == {0, 1, 2}
    assert Image.open(file).convert("RGB").getpixel((5, 10)) == (128, 0, 0)
    Image.open(file).convert("RGB").save(file)
    findings = check_benchmark("ref-youtube-vos", root, "train")
    assert any("the PNG is RGB; a mask has one channel" in line and file.name in line for line in findings.lines)


# --- MeViS -----------------------------------------------------------------------------------------------------------


def test_mevis_expressions_may_name_several_objects_or_none(made):
    benchmark = open_benchmark("mevis", made("mevis"))
    by_text = {s.text: s for s in benchmark.samples if s.video.id == "video00"}
    both = truth_of(benchmark, by_text["the two boxes"], 0)
    one = truth_of(benchmark, by_text["the red box that walks down"], 0)
    other = truth_of(benchmark, by_text["the green box on the right"], 0)
    assert np.array_equal(both, one | other)
    assert by_text["the dog that jumps"].objects == ()
    assert benchmark.absent_possible


def test_both_names_of_the_expression_file_are_taken(made):
    root = made("mevis")
    newer = root / "valid_u/meta_expressions_v2.json"
    assert open_benchmark("mevis", root).expected["expressions"] == 907
    newer.rename(root / "valid_u/meta_expressions.json")
    assert open_benchmark("mevis", root).expected["expressions"] == 793


@pytest.mark.parametrize("chunk", [40, 97, 1 << 20])
def test_the_mask_file_is_scanned_in_pieces_of_any_size(made, monkeypatch, chunk):
    monkeypatch.setattr(mevis_layout, "CHUNK", chunk)
    file = made("mevis") / "train/mask_dict.json"
    file.write_text(json.dumps(json.loads(file.read_text()), indent=2))  # with blanks and line ends too
    text, whole = file.read_bytes(), json.loads(file.read_text())
    found = list(scan_masks(file))
    assert [key for key, *_ in found] == list(whole)
    assert all(json.loads(text[start:end]) == whole[key] for key, start, end, _ in found)


def test_the_mask_file_is_indexed_once_and_again_when_it_changes(made, monkeypatch):
    root = made("mevis")
    open_benchmark("mevis", root)
    scans = []
    scan = scan_masks
    monkeypatch.setattr(mevis_layout, "scan_masks", lambda file: scans.append(file) or scan(file))
    open_benchmark("mevis", root)
    assert scans == []
    file = root / "valid_u/mask_dict.json"
    file.write_text(file.read_text() + " ")
    open_benchmark("mevis", root)
    assert scans == [file]


def test_a_mask_list_of_the_wrong_length_is_reported_and_skipped_only_if_asked(made):
    root = made("mevis")
    file = root / "valid_u/mask_dict.json"
    masks = json.loads(file.read_text())
    masks["0"].pop()
    file.write_text(json.dumps(masks))
    with pytest.raises(DeixisError, match=r"mask_dict.json: annotation 0 has 3 entries, video video00 4 frames"):
        open_benchmark("mevis", root)
    left = open_benchmark("mevis", root, skip_bad=True)
    assert {s.id for s in left.samples if s.video.id == "video00"} == {"1", "3"}


@pytest.mark.parametrize("cut", [1, 20, 300])
def test_a_truncated_mask_file_is_named(made, cut):
    root = made("mevis")
    file = root / "valid_u/mask_dict.json"
    file.write_bytes(file.read_bytes()[:-cut])
    with pytest.raises(DeixisError, match=r"mask_dict.json: not a mask dictionary .* is the download whole"):
        open_benchmark("mevis", root)


@pytest.mark.parametrize("counts", ["0001", "", "`0`", "zzzz", "é", None, 7, [-1, 17], ["a"], [3, 3], "o" * 2000])
def test_an_rle_that_does_not_fill_its_mask_is_refused(counts):
    with pytest.raises(DeixisError, match="here: bad RLE"):
        checked_mask({"size": [4, 4], "counts": counts}, (4, 4), "here")


def test_an_rle_of_another_size_is_refused_before_it_is_decoded():
    with pytest.raises(DeixisError, match=r"it is \[1000000, 1000000\], the frame \[4, 4\]"):
        checked_mask({"size": [1000000, 1000000], "counts": "0"}, (4, 4), "here")


def test_every_true_rle_is_taken(made):
    rng = np.random.default_rng(0)
    for _ in range(200):
        size = tuple(int(s) for s in rng.integers(1, 60, 2))
        mask = rng.random(size) < rng.choice([0, 0.02, 0.5, 1])
        rle = {"size": list(size), "counts": encode_rle(mask)["counts"].decode()}
        assert np.array_equal(checked_mask(rle, size, "here"), mask)


@pytest.mark.parametrize(
    "polygons", [[], [[1, 2, 3, 4]], [[1, 2, 3, 4, 5]], [[0, 0, 9e9, 0, 9, 9]], [["a"] * 6], [None], [[[1, 2]] * 6]]
)
def test_polygons_that_are_none_are_refused(polygons):
    with pytest.raises(DeixisError, match="here: a mask must be polygons of three corners"):
        polygon_mask(polygons, (48, 32), "here")


# --- Ref-DAVIS17 -----------------------------------------------------------------------------------------------------


def test_objects_compete_for_pixels_and_doubt_is_background():
    soft = [np.array([[0.9, 0.49, 0.6, 0.7]]), np.array([[0.8, 0.3, 0.6, 0.95]])]
    assert merge_objects(soft).tolist() == [[1, 0, 1, 2]]


def test_the_copy_is_built_from_davis_and_four_text_files(tmp_path):
    (davis, texts), out = write_davis(tmp_path), tmp_path / "out"
    build_ref_davis17(davis, texts, out)
    benchmark = open_benchmark("ref-davis17", out)
    said = {s.id: (s.text, s.objects) for s in benchmark.samples}
    assert said["1"] == ("a cafe 1 by 1", ("1",))
    assert said["6"] == ("a café 2 by 2", ("2",))  # exp = 4 * (object - 1) + annotator
    assert len(said) == 8
    assert {s.video.id for s in open_benchmark("ref-davis17", out, "train").samples} == {"motorbike"}
    (texts / TEXTS[0][0]).write_text("clasic-car one 'a car'\n")
    with pytest.raises(DeixisError, match=r"annot1\.txt, line 1: must be a video, an object number and a quoted text"):
        build_ref_davis17(davis, texts, tmp_path / "out2")


def test_the_palette_is_davis_own():
    colours = np.array(davis_palette()).reshape(256, 3)
    assert ["".join(f"{c:02x}" for c in row) for row in colours[:6]] == [
        "000000", "800000", "008000", "808000", "000080", "800080",
    ]  # fmt: skip
    assert colours[255].tolist() == [224, 224, 192]


# --- A2D-Sentences, JHMDB-Sentences ----------------------------------------------------------------------------------


def test_a2d_samples_are_labelled_frames_where_the_object_exists(made):
    root = made("a2d-sentences")
    benchmark = open_benchmark("a2d-sentences", root)
    assert len(benchmark.samples) == 8  # 2 films, 2 sentences, 2 labelled frames; the row "1 (copy)" is dropped
    assert {s.video.names for s in benchmark.samples} == {("00003", "00006")}
    assert {s.id for s in benchmark.samples if s.video.id == "video01"} == {
        f"v_video01_f_{f}_i_{i}" for f in (3, 6) for i in (1, 2)
    }


def test_a_single_instance_without_leading_axis_is_read(made):
    import h5py

    root = made("a2d-sentences")
    file = root / "text_annotations/a2d_annotation_with_instances/video01/00003.h5"
    ids = tiny_videos(frames=8)[1].ids[2]
    with h5py.File(file, "w") as label:
        label["instance"], label["reMask"] = np.array([1]), (ids == 1).T.astype(np.uint8)
    benchmark = open_benchmark("a2d-sentences", root)
    asked = [s for s in benchmark.samples if s.video.id == "video01"]
    assert len(asked) == 3  # object 2 is no longer labelled there
    assert np.array_equal(truth_of(benchmark, asked[0], 0), ids == 1)


def test_the_label_index_is_kept_until_labels_change(made, monkeypatch):
    root = made("a2d-sentences")
    open_benchmark("a2d-sentences", root)
    monkeypatch.setattr(a2d_sentences, "_read_label", lambda *_: pytest.fail("read again"))
    assert len(open_benchmark("a2d-sentences", root).samples) == 8


def test_jhmdb_lists_are_kept_apart_by_name(made):
    root = made("jhmdb-sentences")
    frames = {name: sorted({s.scored[0] + 1 for s in open_benchmark("jhmdb-sentences", root, name).samples})
              for name in ("mttr", "soc")}  # fmt: skip
    assert frames == {"mttr": [1, 2, 4], "soc": [1, 3, 4]}
    assert any("not comparable" in note for note in open_benchmark("jhmdb-sentences", root, "drawn").notes)


def test_jhmdb_paths_of_the_lists_author_lead_nowhere_else(made):
    root = made("jhmdb-sentences")
    file = root / jhmdb_sentences.LISTS["mttr"]
    rows = json.loads(file.read_text())
    rows[0][1] = "../../../../etc/../00001.png"
    file.write_text(json.dumps(rows))
    with pytest.raises(DeixisError, match="may leave its folder"):
        open_benchmark("jhmdb-sentences", root)


def test_jhmdb_films_listed_with_two_lengths_are_reported(made):
    root = made("jhmdb-sentences")
    file = root / jhmdb_sentences.LISTS["mttr"]
    rows = json.loads(file.read_text())
    rows[1][3] = 3
    file.write_text(json.dumps(rows))
    with pytest.raises(DeixisError, match="listed with another length"):
        open_benchmark("jhmdb-sentences", root)
    assert len(open_benchmark("jhmdb-sentences", root, skip_bad=True).samples) == 8


# --- VISOR -----------------------------------------------------------------------------------------------------------


def test_visor_is_built_with_later_objects_over_earlier_ones(tmp_path):
    write_visor(tmp_path / "visor")
    visor.build_visor(tmp_path / "visor", tmp_path / "out")
    benchmark = open_benchmark("visor", tmp_path / "out")
    said = {s.text: s for s in benchmark.samples}
    assert set(said) == {"left hand", "plate"}
    assert said["left hand"].tags == ("hands", "in the first frame")
    hand, plate = (truth_of(benchmark, said[text], 0) for text in ("left hand", "plate"))
    assert hand.shape == (480, 854)
    assert not (hand & plate).any()
    assert hand[250, 300]  # 1080p (562, 674): inside both polygons; the hand comes later
    assert plate[100, 100]
    assert said["plate"].video.names[0].endswith("0000000000")  # sorted by image path


@pytest.mark.parametrize("segment", [[[1, 2], [3]], "ab", [["x", "y"]], [[1e300, 2], [3, 4], [5, 6]]])
def test_visor_segments_that_are_no_polygons_are_refused(segment):
    with pytest.raises(DeixisError, match="object 'plate': a segment"):
        visor.rasterise([{"name": "plate", "segments": [segment]}], {"plate": 1})


def test_visor_knows_the_kitchens_that_training_never_sees(made):
    tags = {s.video.id: s.tags for s in open_benchmark("visor", made("visor")).samples}
    assert "unseen kitchens" in tags["P07_101_seq_00002"]
    assert "unseen kitchens" not in tags["P01_01_seq_00000"]


# --- hostile files ---------------------------------------------------------------------------------------------------


def edit_json(file, change):
    table = json.loads(file.read_text())
    change(table)
    file.write_text(json.dumps(table))


@pytest.mark.parametrize("name", ["../out", "/etc/passwd", "a/b", "..", "", "x" * 300, "a\x00b", "c:d"])
def test_names_that_would_leave_their_folder_are_refused(made, name):
    root = made("mevis")
    file = root / "valid_u/meta_expressions_v2.json"
    keep = file.read_text()
    for change in (
        lambda t: t["videos"].update({name: t["videos"].pop("video00")}),
        lambda t: t["videos"]["video00"]["frames"].append(name),
        lambda t: t["videos"]["video00"]["expressions"].update({name: {"exp": "a dog"}}),
    ):
        file.write_text(keep)
        edit_json(file, change)
        with pytest.raises(DeixisError, match="may leave its folder"):
            open_benchmark("mevis", root)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"videos": {', "not valid JSON"),
        ('{"videos": []}', "'videos' must be dict, got list"),
        ("[]", "'videos' must be dict, got nothing"),
        ('{"videos": {"v": {"frames": NaN}}}', "NaN is no number"),
        ('{"videos": {"v": {}, "v": {}}}', "the key 'v' stands twice"),
        ('{"videos": {"v": {"frames": "abc", "expressions": {}}}}', "'frames' must be list, got str"),
        ('{"videos": {"v": {"frames": [1, 2], "expressions": {}}}}', "is no name of a video"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_an_expression_file_of_another_form_ends_in_one_line(made, text, says):
    root = made("mevis")
    (root / "valid_u/meta_expressions_v2.json").write_text(text)
    with pytest.raises(DeixisError, match=says) as caught:
        open_benchmark("mevis", root)
    assert "\n" not in str(caught.value)


def test_an_expression_without_words_is_refused(made):
    root = made("mevis")
    edit_json(root / "valid_u/meta_expressions_v2.json",
              lambda t: t["videos"]["video00"]["expressions"]["0"].update(exp="  "))  # fmt: skip
    with pytest.raises(DeixisError, match="must be text with words"):
        open_benchmark("mevis", root)


def test_a_missing_frame_is_named_and_its_video_left_out_only_if_asked(made):
    root = made("mevis")
    (root / "valid_u/JPEGImages/video01/00002.jpg").unlink()
    with pytest.raises(DeixisError, match=r"video01/00002.jpg: the frame is missing; .*--skip-bad"):
        open_benchmark("mevis", root)
    left = open_benchmark("mevis", root, skip_bad=True)
    assert {s.video.id for s in left.samples} == {"video00", "video02"}
    assert any("video01" in line for line in check_benchmark("mevis", root, "valid_u").lines)


def test_a_symlink_loop_ends_in_one_line(made):
    root = made("mevis")
    folder = root / "valid_u/JPEGImages/video01"
    shutil.rmtree(folder)
    folder.symlink_to(folder)
    with pytest.raises(DeixisError, match="video01"):
        open_benchmark("mevis", root)


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "size"])
def test_a_damaged_annotation_is_named_by_check(made, damage):
    root = made("visor")
    file = sorted((root / "val/Annotations").glob("*/*.png"))[1]
    whole = file.read_bytes()
    contents = {"truncated": whole[: len(whole) // 2], "empty": b"", "text": b"hello"}
    if damage == "size":
        write_ids(file, np.zeros((10, 10), np.uint8))
    else:
        file.write_bytes(contents[damage])
    findings = check_benchmark("visor", root, "val")
    assert findings.problems == 1
    assert any(file.stem in line for line in findings.lines)


# --- training --------------------------------------------------------------------------------------------------------


def test_anchored_frames_hold_the_anchor_and_its_neighbours():
    rng = np.random.default_rng(0)
    for length, count in [(36, 5), (4, 5), (1, 3), (6, 6), (40, 1)]:
        for anchor in range(length):
            chosen = anchored_frames(anchor, length, count, rng)
            assert len(chosen) == count
            assert chosen == sorted(chosen)
            assert anchor in chosen
            assert all(0 <= i < length for i in chosen)
    near = [sorted(abs(i - 18) for i in anchored_frames(18, 36, 5, rng))[1:3] for _ in range(20)]
    assert all(1 <= distance <= 3 for pair in near for distance in pair)


def test_surrounding_frames_stay_within_reach():
    rng = np.random.default_rng(0)
    for reference in range(30):
        chosen = surrounding_frames(reference, 30, 6, 8, rng)
        assert len(chosen) == 6
        assert reference in chosen
        assert max(chosen) - min(chosen) <= 16
    assert surrounding_frames(0, 1, 3, 8, rng) == [0, 0, 0]


def test_windows_cover_every_frame_and_are_full():
    assert consecutive_windows(20, 8) == [list(range(8)), list(range(8, 16)), list(range(12, 20))]
    assert consecutive_windows(16, 8) == [list(range(8)), list(range(8, 16))]
    assert consecutive_windows(3, 5) == [[0, 1, 2, 2, 2]]
    assert centred_window(4, 8) == [0, 1, 2, 3, 4, 5, 6, 7]
    assert centred_window(1, 5) == [-1, 0, 1, 2, 3]


def test_a_training_clip_marks_what_is_referred_to_and_boxes_follow_the_masks(made):
    benchmark = open_benchmark("mevis", made("mevis"))
    sample = next(s for s in benchmark.samples if s.text == "the green box on the right" and s.video.id == "video02")
    clip = training_clip(benchmark, sample, [0, 3])
    assert clip.frames.shape == (2, 3, 48, 32)
    assert clip.target.referred.tolist() == [True, False]
    assert clip.target.visible.tolist() == [[True, True], [False, True]]  # box 2 is away in the last frame
    ids = tiny_videos()[2].ids[0]
    rows, columns = np.nonzero(ids == 2)
    height, width = rows.max() + 1 - rows.min(), columns.max() + 1 - columns.min()
    middle = (columns.min() + width / 2) / 32, (rows.min() + height / 2) / 48
    assert clip.target.boxes[0, 0].tolist() == pytest.approx([*middle, width / 32, height / 48])
    assert clip.target.boxes[1, 0].tolist() == [0, 0, 0, 0]


def test_a_training_clip_of_a2d_has_a_window_and_one_labelled_frame(made):
    benchmark = open_benchmark("a2d-sentences", made("a2d-sentences"), "train")
    sample = benchmark.samples[-1]
    clip = training_clip(benchmark, sample, centred_window(5, 8))  # frame 00006 is the film's sixth
    assert clip.frames.shape == (8, 3, 48, 32)
    assert clip.wanted == (4,)
    assert clip.target.masks.shape == (1, 2, 48, 32)
    with pytest.raises(DeixisError, match="labelled frame 5 must be among"):
        training_clip(benchmark, sample, [0, 1])


def test_frames_of_a_film_file_are_found_by_number_and_clamped(made):
    sample = open_benchmark("a2d-sentences", made("a2d-sentences")).samples[0]
    frames = read_frames(sample.video, [-2, 0, 7, 9])
    drawn = tiny_videos(frames=8)[1].frames
    assert np.array_equal(frames[0], frames[1])
    assert np.array_equal(frames[2], frames[3])
    assert np.abs(frames[1].astype(int) - drawn[0]).mean() < 12  # MPEG-4 and chroma at half size
    assert np.abs(frames[2].astype(int) - drawn[7]).mean() < 12


def test_a_still_set_in_motion_keeps_frame_and_mask_together():
    rng = np.random.default_rng(3)
    image, masks = np.full((120, 160, 3), 20, np.uint8), np.zeros((1, 120, 160), bool)
    image[40:80, 50:100] = (250, 40, 40)
    masks[0, 40:80, 50:100] = True
    frames, moved = pseudo_clip(image, masks, 6, rng)
    assert frames.shape == (6, 120, 160, 3)
    assert moved.shape == (6, 1, 120, 160)
    for frame, mask in zip(frames, moved[:, 0], strict=True):
        bright = frame[..., 0].astype(int) - frame[..., 2] > 100
        assert (bright & mask).sum() / (bright | mask).sum() > 0.75
    assert any(np.array_equal(mask, masks) for mask in moved)


def test_worlds_own_kinds_become_tags(made, tmp_path):
    root = made("mevis")
    for split in ("train", "valid"):
        shutil.rmtree(root / split)
    edit_json(root / "valid_u/meta_expressions_v2.json",
              lambda t: t["videos"]["video00"]["expressions"]["0"].update(kind="motion"))  # fmt: skip
    assert splits_of("world", root) == ("valid_u",)
    assert open_benchmark("world", root).samples[0].tags == ("motion",)

"""The page in a real browser: upload, search, results, download, cancel, a bad file, two visitors.

Screenshots go to the folder in DEIXIS_SHOTS, if one is named. Chromium is that of the system, nothing is downloaded.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from helpers.films import moving, write_film
from helpers.serving import Server, running

from deixis.inference import segment
from deixis.video import Video
from deixis.writers.rle import read_rle

pytestmark = pytest.mark.browser
playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra browser (Playwright)")
pytest.importorskip("gradio", reason="needs the extra web (Gradio)")

CHROMIUM = os.environ.get("DEIXIS_CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
PATIENCE = 240_000  # milliseconds, for a machine that has other things to do
DOWNLOADS = {"Overlay film": "overlay.mp4", "Masks, RLE": "masks.json", "Masks, PNG": "masks.zip"}


@pytest.fixture(scope="module")
def browser() -> Iterator:
    if not Path(CHROMIUM).exists():
        pytest.skip(f"no Chromium at {CHROMIUM} (apt-get install chromium, or set DEIXIS_CHROMIUM)")
    with playwright.sync_playwright() as driver:
        made = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS), timeout=PATIENCE)
        yield made
        made.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    options = ("--model", "soc_debug", "--max-jobs", "1", "--max-bytes", "3000000")
    with running(tmp_path_factory.mktemp("server"), *options) as made:
        yield made


@contextmanager
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Visitor:
    """A page of its own session, whose complaints and requests are noted."""

    def __init__(self, browser, server: Server) -> None:
        self.context = browser.new_context(viewport={"width": 1360, "height": 1000}, accept_downloads=True)
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._listen)
        self.page.goto(server.url)
        self.page.wait_for_selector("#find")

    def _listen(self, message) -> None:
        if message.type == "error" or "Content Security Policy" in message.text:
            self.complaints.append(message.text)

    def bring(self, film: Path) -> None:
        self.page.set_input_files("#film input[type=file]", str(film))
        self.page.wait_for_selector(f"#film >> text={film.stem}")

    def find(self, *sentences: str) -> None:
        self.page.fill("#sentences textarea", "\n".join(sentences))
        self.page.click("#find")

    def shot(self, name: str) -> None:
        if folder := os.environ.get("DEIXIS_SHOTS"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)


@pytest.fixture
def visit(browser, server: Server) -> Iterator[Callable[[], Visitor]]:
    visitors: list[Visitor] = []

    def come() -> Visitor:
        visitors.append(Visitor(browser, server))
        return visitors[-1]

    yield come
    for visitor in visitors:
        visitor.context.close()


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pictures = moving(24, (180, 240), ("red", "green"))
    return write_film(tmp_path_factory.mktemp("films") / "squares.mp4", pictures)


@pytest.fixture(scope="module")
def long_film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_film(tmp_path_factory.mktemp("films") / "long.mp4", moving(900))


def test_upload_ask_see_and_download(visit, server: Server, film: Path, tmp_path: Path) -> None:
    visitor = visit()
    page = visitor.page
    visitor.shot("empty")
    visitor.bring(film)
    page.click("#formats >> text=Masks as pictures")
    words = ("the red square", "<b>bold</b> ${1+1} {{value}}")
    visitor.find(*words)
    page.wait_for_selector(".dx-result")
    playwright.expect(page.locator(".dx-pair video")).to_have_count(2)
    page.wait_for_function("[...document.querySelectorAll('.dx-pair video')].every(v => v.readyState >= 2)")
    sizes = page.evaluate("[...document.querySelectorAll('.dx-pair video')].map(v => [v.videoHeight, v.videoWidth])")
    assert sizes == [[180, 240], [180, 240]]
    seen = page.locator(".dx-table tbody tr td:first-child").all_inner_texts()
    assert [text.strip() for text in seen] == list(words)  # as they were written: words, not code
    assert page.locator(".dx-result b").count() == 0

    with one_thread():  # as the server has: sums in another order move a pixel or two
        tracks = segment(film, list(words), model="light_debug", device="cpu")
    verdicts = page.locator(".dx-table tbody tr td:nth-child(2)").all_inner_texts()
    assert verdicts == [track.verdict for track in tracks]
    bars = page.locator(".dx-timeline svg rect[fill^='#']").count()
    assert (bars > 0) is any(track.present for track in tracks)
    assert page.evaluate("document.querySelector('.dx-sheet').naturalWidth") == 1536

    page.click(".dx-play")
    page.wait_for_function("document.querySelectorAll('.dx-pair video')[1].currentTime > 0.3")
    page.click(".dx-play")
    page.wait_for_function("[...document.querySelectorAll('.dx-pair video')].every(v => v.paused)")
    box = page.locator(".dx-seek").bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_function(
        "[...document.querySelectorAll('.dx-pair video')].every(v => Math.abs(v.currentTime - 1) < 0.1)"
    )
    assert page.inner_text(".dx-time").startswith("1.0 / 2.0")
    visitor.shot("answer")

    got = {}
    for words_on_it, name in DOWNLOADS.items():
        with page.expect_download() as coming:
            page.click(f".dx-downloads >> text={words_on_it}")
        assert coming.value.suggested_filename == name
        got[name] = tmp_path / name
        coming.value.save_as(got[name])
    for theirs, ours in zip(read_rle(got["masks.json"]), tracks, strict=True):
        assert np.array_equal(np.asarray(theirs.masks), np.asarray(ours.masks))
    assert Video(got["overlay.mp4"]).length == 24
    facts = json.loads(got["masks.json"].read_text())
    assert (facts["film"]["name"], facts["model"]["name"]) == ("squares.mp4", "light_debug")
    assert visitor.complaints == []
    origin = urlsplit(server.url).netloc
    assert {urlsplit(url).netloc for url in visitor.asked if not url.startswith(("data:", "blob:"))} == {origin}


def test_stop_ends_the_work_and_the_page_can_be_used_again(visit, film: Path, long_film: Path) -> None:
    visitor = visit()
    page = visitor.page
    visitor.bring(long_film)
    visitor.find("red")
    line = page.locator(".dx-status")
    playwright.expect(line).to_contain_text(re.compile(r"Looking: frame \d+ of 900"), timeout=PATIENCE)
    playwright.expect(line).to_contain_text(re.compile(r"about \d+ s left"), timeout=PATIENCE)
    visitor.shot("working")
    playwright.expect(page.locator("#find")).to_be_disabled()
    page.click("#stop")
    playwright.expect(line).to_contain_text("Stopped.", timeout=60_000)
    playwright.expect(page.locator("#find")).to_be_enabled(timeout=PATIENCE)
    visitor.shot("stopped")
    page.click("#film [aria-label='Clear'], #film [title='Clear']")
    visitor.bring(film)
    visitor.find("red")
    page.wait_for_selector(".dx-result")
    assert visitor.complaints == []


def test_another_model_can_be_chosen(visit, film: Path, tmp_path: Path) -> None:
    visitor = visit()
    page = visitor.page
    visitor.bring(film)
    page.click("#model input")
    page.click("[role=option] >> text=soc_debug")
    visitor.find("red")
    page.wait_for_selector(".dx-result")
    with page.expect_download() as coming:
        page.click(".dx-downloads >> text=Masks, RLE")
    coming.value.save_as(tmp_path / "masks.json")
    assert json.loads((tmp_path / "masks.json").read_text())["model"]["name"] == "soc_debug"


def test_a_bad_file_is_one_line_that_says_what_to_do(visit, tmp_path: Path) -> None:
    visitor = visit()
    (tmp_path / "notes.mp4").write_text("these are only words\n" * 50)
    visitor.find("red")
    alert = visitor.page.locator(".dx-status[role=alert]")
    playwright.expect(alert).to_have_text("no film is given; drop one first", timeout=PATIENCE)
    visitor.bring(tmp_path / "notes.mp4")
    visitor.find("red")
    said = "notes.mp4 is not a film that can be decoded here; give an MP4, MOV, MKV or WebM"
    playwright.expect(alert).to_have_text(said, timeout=PATIENCE)
    visitor.shot("bad_film")
    visitor.find(*"123456789")
    said = "9 sentences, more than the limit of 8; leave some out"
    playwright.expect(alert).to_have_text(said, timeout=PATIENCE)
    assert visitor.complaints == []


def test_a_film_beyond_the_limit_is_refused_with_a_reason(visit, film: Path, tmp_path: Path) -> None:
    visitor = visit()
    (tmp_path / "big.mp4").write_bytes(b"x" * 3_100_000)
    visitor.page.set_input_files("#film input[type=file]", str(tmp_path / "big.mp4"))
    alert = visitor.page.locator(".dx-status[role=alert]")
    said = "the film holds 3,100,000 bytes, more than the limit of 3,000,000; cut it"
    playwright.expect(alert).to_have_text(said, timeout=PATIENCE)
    visitor.shot("too_large")
    assert not [url for url in visitor.asked if "/upload" in url]  # it did not even travel
    visitor.bring(film)
    playwright.expect(alert).to_have_count(0)


def test_two_visitors_share_the_model_and_one_who_leaves_makes_way(visit, film: Path, long_film: Path) -> None:
    first, second, third = visit(), visit(), visit()
    first.bring(long_film)
    first.find("red")
    playwright.expect(first.page.locator(".dx-status")).to_contain_text("Looking: frame", timeout=PATIENCE)
    second.bring(film)
    second.find("red")
    waiting = second.page.locator(".dx-status")
    playwright.expect(waiting).to_contain_text("Waiting: another film is being looked at.", timeout=PATIENCE)
    second.shot("waiting")
    third.bring(film)
    third.find("red")
    full = third.page.locator(".dx-status[role=alert]")
    playwright.expect(full).to_have_text("the queue is full (1 waiting); try again later", timeout=PATIENCE)
    assert second.page.locator(".dx-result").count() == 0
    first.context.close()  # the tab is closed: nobody needs the answer any more
    second.page.wait_for_selector(".dx-result", timeout=PATIENCE)

(() => {
  // A film beyond the limit is refused before it travels, in the same words as the server's.
  const refuse = (event, files) => {
    document.querySelectorAll(".dx-local").forEach((line) => line.remove());
    const limit = Number(document.querySelector(".dx-head").dataset.bytes);
    const large = [...files].find((file) => file.size > limit);
    if (!large) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    const number = (value) => value.toLocaleString("en");
    const line = document.createElement("div");
    line.className = "dx-status dx-local";
    line.dataset.state = "failed";
    line.setAttribute("role", "alert");
    line.textContent = `the film holds ${number(large.size)} bytes, more than the limit of ${number(limit)}; cut it`;
    document.querySelector("#status").before(line);
  };

  document.addEventListener("change", (event) => {
    if (!event.target.matches || !event.target.matches("#film input[type=file]")) return;
    refuse(event, event.target.files);
    if (event.defaultPrevented) event.target.value = "";
  }, true);

  document.addEventListener("drop", (event) => {
    if (event.target.closest && event.target.closest("#film")) refuse(event, event.dataTransfer.files);
  }, true);

  document.addEventListener("click", (event) => {
    if (event.target.closest && event.target.closest("#find, #demo")) {
      document.querySelectorAll(".dx-local").forEach((line) => line.remove());
    }
  }, true);

  // The two players of a result run together: one button, one position, one line over the timeline.
  const parts = (inside) => {
    const box = inside.closest && inside.closest(".dx-result");
    if (!box) return null;
    return {
      box,
      films: [...box.querySelectorAll("video")],
      button: box.querySelector(".dx-play"),
      seek: box.querySelector(".dx-seek"),
      time: box.querySelector(".dx-time"),
      line: box.querySelector(".dx-head-line"),
      length: Number(box.dataset.length),
    };
  };

  const show = (p) => {
    const at = Math.min(p.films[p.films.length - 1].currentTime, p.length);
    p.seek.value = at;
    p.time.textContent = `${at.toFixed(1)} / ${p.length.toFixed(1)} s`;
    p.line.style.left = `${(100 * at) / p.length}%`;
  };

  const run = (p) => {
    const main = p.films[p.films.length - 1];
    show(p);
    for (const film of p.films) {
      if (film !== main && Math.abs(film.currentTime - main.currentTime) > 0.08) film.currentTime = main.currentTime;
    }
    if (main.isConnected && !main.paused && !main.ended) requestAnimationFrame(() => run(p));
    else {
      p.films.forEach((film) => film.pause());
      p.button.textContent = "▶";
      p.button.setAttribute("aria-label", "Play");
    }
  };

  const toggle = async (p) => {
    const main = p.films[p.films.length - 1];
    if (!main.paused && !main.ended) return main.pause();
    if (main.ended) p.films.forEach((film) => (film.currentTime = 0));
    p.button.textContent = "❚❚";
    p.button.setAttribute("aria-label", "Pause");
    await Promise.allSettled(p.films.map((film) => film.play()));
    run(p);
  };

  document.addEventListener("click", (event) => {
    if (!event.target.closest || !event.target.closest(".dx-play, .dx-pair video")) return;
    const p = parts(event.target);
    if (p) toggle(p);
  });

  document.addEventListener("input", (event) => {
    if (!event.target.classList || !event.target.classList.contains("dx-seek")) return;
    const p = parts(event.target);
    p.films.forEach((film) => (film.currentTime = Number(event.target.value)));
    show(p);
  });

  document.addEventListener("seeked", (event) => {
    const p = parts(event.target);
    if (p && p.films[p.films.length - 1].paused) show(p);
  }, true);
})();

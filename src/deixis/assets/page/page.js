// The two players of a result run together: one button, one position, one line over the timeline.
(() => {
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

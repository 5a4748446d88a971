// Plots are drawn and videos loaded when they come near the screen; both after the first paint.
(() => {
  "use strict";
  const near = { rootMargin: "300px 0px" };
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const HOLD_MS = 500, DRIFT_S = 0.15;

  function script(source) {
    return new Promise((done, failed) => {
      const element = document.createElement("script");
      element.src = source;
      element.onload = done;
      element.onerror = () => failed(new Error(source + " is missing beside index.html"));
      document.head.append(element);
    });
  }

  // A solid plot holds a WebGL context, of which a page has few: it is given back when out of sight.
  function show(element) {
    const figure = window.worldr1Figures[element.dataset.plot];
    if (!figure || element.dataset.drawn) return;
    element.dataset.drawn = "yes";
    Plotly.newPlot(element, figure.data, figure.layout, {
      displaylogo: false, responsive: true,
      modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
    });
  }
  function hide(element) {
    if (!element.dataset.drawn || !element.classList.contains("solid")) return;
    delete element.dataset.drawn;
    Plotly.purge(element);
  }
  function startPlots() {
    const seen = new IntersectionObserver((entries) => {
      for (const entry of entries) (entry.isIntersecting ? show : hide)(entry.target);
    }, near);
    document.querySelectorAll(".plot").forEach((element) => seen.observe(element));
  }

  // The clips of a reel start together, follow the first one and start over together.
  class Reel {
    constructor(root) {
      this.videos = [...root.querySelectorAll("video")];
      this.button = root.querySelector(".play");
      this.seek = root.querySelector(".seek");
      this.wanted = !still;
      this.on = false;
      if (!this.videos.length) return;
      this.videos[0].addEventListener("ended", () => setTimeout(() => this.again(), HOLD_MS));
      this.videos[0].addEventListener("timeupdate", () => this.follow());
      if (this.button) this.button.onclick = () => this.set(!this.wanted);
      if (this.seek) this.seek.oninput = () => this.place(this.seek.value * this.videos[0].duration);
    }
    async enter() {
      if (this.on || !this.videos.length) return;
      this.on = true;
      const ready = this.videos.map((video) => new Promise((done) => {
        video.addEventListener("loadeddata", done, { once: true });
        video.addEventListener("error", done, { once: true });
        video.preload = "auto";
        video.src = video.dataset.src;
      }));
      await Promise.all(ready);
      if (this.on) this.set(this.wanted);
    }
    leave() {
      if (!this.on) return;
      this.on = false;
      for (const video of this.videos) {
        video.pause();
        video.removeAttribute("src");
        video.load();
      }
    }
    set(playing) {
      this.wanted = playing;
      if (this.button) this.button.textContent = playing ? "❚❚" : "▶";
      for (const video of this.videos) {
        if (playing) video.play().catch(() => {}); else video.pause();
      }
    }
    again() {
      if (!this.on || !this.wanted) return;
      this.place(0);
      this.set(true);
    }
    place(time) {
      for (const video of this.videos) video.currentTime = Math.min(time, video.duration || time);
    }
    follow() {
      const [first, ...others] = this.videos;
      if (this.seek && first.duration) this.seek.value = first.currentTime / first.duration;
      for (const video of others) {
        if (Math.abs(video.currentTime - first.currentTime) > DRIFT_S && !video.ended) {
          video.currentTime = first.currentTime;
        }
      }
    }
  }
  function startReels() {
    const reels = new Map();
    const seen = new IntersectionObserver((entries) => {
      for (const entry of entries) {
        const reel = reels.get(entry.target);
        if (entry.isIntersecting) reel.enter(); else reel.leave();
      }
    }, near);
    document.querySelectorAll("[data-reel]").forEach((root) => {
      reels.set(root, new Reel(root));
      seen.observe(root);
    });
  }

  function startTabs() {
    const tabs = [...document.querySelectorAll("[role=tab]")];
    for (const tab of tabs) {
      tab.onclick = () => {
        for (const other of tabs) {
          const chosen = other === tab;
          other.setAttribute("aria-selected", chosen);
          document.getElementById(other.dataset.panel).hidden = !chosen;
        }
      };
    }
  }

  // What a dialog shows is loaded while it is open.
  function startDialogs() {
    for (const button of document.querySelectorAll("[data-dialog]")) {
      const dialog = document.getElementById(button.dataset.dialog);
      const videos = [...dialog.querySelectorAll("video")];
      button.onclick = () => {
        dialog.showModal();
        for (const video of videos) {
          Object.assign(video, { src: video.dataset.src, loop: true, controls: true });
          if (!still) video.play().catch(() => {});
        }
      };
      dialog.onclose = () => videos.forEach((video) => { video.removeAttribute("src"); video.load(); });
      dialog.onclick = (event) => { if (event.target === dialog) dialog.close(); };
    }
  }

  startTabs();
  startDialogs();
  requestAnimationFrame(() => requestAnimationFrame(() => {
    startReels();
    Promise.all([script("plotly.min.js"), script("figures.js")]).then(startPlots);
  }));
})();

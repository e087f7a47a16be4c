"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const root = document.documentElement;
  const main = byId("main");
  const viewer = byId("viewer");
  const tiles = [...document.querySelectorAll(".tile")];
  const galleries = [...document.querySelectorAll(".gallery")];
  document.querySelectorAll(".js").forEach((part) => { part.hidden = false; });

  // Theme: as the system says until the reader decides; #dark opens a report dark.
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);
  const nameTheme = () => { byId("theme").textContent = isDark() ? "Light" : "Dark"; };
  if (location.hash === "#dark") root.dataset.theme = "dark";
  byId("theme").addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; nameTheme(); });
  dark.addEventListener("change", nameTheme);
  nameTheme();

  // Section in view.
  const links = [...document.querySelectorAll("nav a")];
  const sections = links.map((link) => document.querySelector(link.getAttribute("href")));
  const markSection = () => {
    const atEnd = innerHeight + scrollY >= document.body.scrollHeight - 2 && scrollY > 0;
    let here = 0;
    sections.forEach((section, i) => { if (section.getBoundingClientRect().top < 120) here = i; });
    if (atEnd) here = sections.length - 1;
    links.forEach((link, i) => {
      link.classList.toggle("here", i === here);
      if (i === here) link.setAttribute("aria-current", "true"); else link.removeAttribute("aria-current");
    });
  };
  addEventListener("scroll", markSection, { passive: true });
  markSection();

  // Layers of the map.
  const boxes = [...document.querySelectorAll("[data-layer]")];
  const showLayer = (box) => {
    byId("layer-" + box.dataset.layer).classList.toggle("off", !box.checked);
    if (box.dataset.layer === "rings") byId("layer-links").classList.toggle("off", !box.checked);
  };
  boxes.forEach((box) => { box.addEventListener("change", () => showLayer(box)); showLayer(box); });
  document.querySelectorAll(".legend-tools [data-all]").forEach((button) => {
    button.addEventListener("click", () => boxes.forEach((box) => {
      if (box.dataset.layer !== "areas") { box.checked = button.dataset.all === "1"; showLayer(box); }
    }));
  });
  byId("zoom").addEventListener("click", () => {
    const box = byId("mapbox"), zoomed = box.classList.toggle("zoomed");
    byId("zoom").textContent = zoomed ? "Zoom out" : "Zoom in";
    byId("zoom").setAttribute("aria-pressed", zoomed);
    if (zoomed) {
      box.tabIndex = 0;
      box.scrollTo((box.scrollWidth - box.clientWidth) / 2, (box.scrollHeight - box.clientHeight) / 2);
    } else box.removeAttribute("tabindex");
  });
  if (!byId("filter")) return;

  // Filter and order of the tiles.
  const filter = byId("filter");
  const shown = (tile) => !tile.hidden;
  const certainty = (tile) => (tile.dataset.p === "" ? 2 : Number(tile.dataset.p));
  const blast = (tile) => (tile.dataset.blast === "" ? -1 : Number(tile.dataset.blast));
  const number = (tile) => Number(tile.dataset.id);
  const orders = {
    blast: (a, b) => blast(b) - blast(a) || number(a) - number(b),
    certain: (a, b) => certainty(a) - certainty(b) || number(a) - number(b),
    id: (a, b) => number(a) - number(b),
  };
  const folded = new Map(galleries.map((gallery) => [gallery, !gallery.open]));
  let order = "blast";
  const applyFilter = () => {
    const code = byId("f-code").value, status = byId("f-status").value, least = Number(byId("f-blast").value);
    byId("f-value").textContent = least.toFixed(2);
    const seen = new Set(), all = new Set();
    tiles.forEach((tile) => {
      const data = tile.dataset;
      tile.hidden = (code !== "" && data.code !== code) || (status !== "" && data.status !== status)
        || (least > 0 && blast(tile) < least);
      all.add(data.id);
      if (!tile.hidden) seen.add(data.id);
    });
    if (byId("f-order").value !== order) {
      order = byId("f-order").value;
      galleries.forEach((gallery) => gallery.querySelector(".tiles").append(
        ...[...gallery.querySelectorAll(".tile")].sort(orders[order])));
    }
    galleries.forEach((gallery) => {
      const first = [...gallery.querySelectorAll(".tile")].find(shown);
      gallery.hidden = !first;
      gallery.querySelectorAll("button.pic").forEach((button) => { button.tabIndex = -1; });
      if (first) first.querySelector("button").tabIndex = 0;
      if (folded.get(gallery)) gallery.open = status !== "" && gallery.id === "g-" + status;
    });
    byId("f-count").textContent = `${seen.size} of ${all.size} pictures`;
  };
  const refilter = () => {
    const scrolled = filter.getBoundingClientRect().top <= document.querySelector("nav").offsetHeight + 1;
    applyFilter();
    const first = galleries.find((gallery) => !gallery.hidden);
    if (scrolled && first) first.scrollIntoView();
  };
  ["input", "change"].forEach((kind) => filter.addEventListener(kind, refilter));
  filter.addEventListener("reset", () => setTimeout(refilter));
  filter.addEventListener("submit", (event) => event.preventDefault());

  // The enlarged picture.
  const rows = [...byId("v-bars").rows];
  const large = new Map();
  document.querySelectorAll("#g-top .tile").forEach((tile) => large.set(tile.dataset.id, tile.querySelector("img").src));
  const overs = new Map();
  document.querySelectorAll("#g-top .over-map").forEach((map) => overs.set(map.closest(".tile").dataset.id, map));
  const maps = byId("maps");
  const showMap = (wanted) => {
    const over = current && overs.get(current.dataset.id);
    byId("v-sense").hidden = byId("v-over").hidden = !over;
    byId("v-over").classList.toggle("on", wanted);
    byId("v-sense").setAttribute("aria-pressed", wanted);
    if (over) { byId("v-over").src = over.src; byId("v-over").alt = over.alt; }
  };
  byId("v-sense").addEventListener("click", () => { maps.checked = !maps.checked; showMap(maps.checked); });
  const umPerPx = Number(main.dataset.um);
  let current = null;
  const put = (id, text) => { byId(id).textContent = text; };
  const three = (text) => (text === "" ? "" : Number(text).toFixed(3));
  const fill = (tile) => {
    const d = tile.dataset;
    current = tile;
    put("v-title", `Cell ${d.id}` + (d.code ? ` – ${d.name} (${d.code})` : ` – ${d.status}`));
    put("v-status", { typed: "typed", unsure: "unsure, not counted", edge: "cut by the border of the scan, not counted",
      rejected: "rejected, not counted" }[d.status]);
    put("v-reason", d.reason);
    put("v-p", three(d.p));
    put("v-blast", three(d.blast));
    put("v-atypical", three(d.atypical));
    const mm = (px) => (px * umPerPx / 1000).toFixed(3);
    put("v-place", `${d.x}, ${d.y} px · ${mm(d.x)}, ${mm(d.y)} mm`);
    put("v-nucleus", `${d.nucleus} µm²`);
    byId("v-image").src = large.get(d.id) || tile.querySelector("img").src;
    showMap(Boolean(maps) && maps.checked);
    byId("v-image").alt = tile.querySelector("img").alt;
    byId("v-bars").hidden = d.all === "";
    const values = d.all.split(" ").map(Number);
    const best = Math.max(...values);
    rows.forEach((row, i) => {
      const value = d.all === "" ? 0 : values[i] / 1000;
      row.querySelector("rect").setAttribute("width", `${100 * value}%`);
      row.lastElementChild.textContent = value.toFixed(3);
      row.classList.toggle("best", values[i] === best);
    });
    byId("v-dot").style.left = `${100 * d.x / main.dataset.width}%`;
    byId("v-dot").style.top = `${100 * d.y / main.dataset.height}%`;
  };
  const open = (tile) => {
    if (!byId("v-map").src) byId("v-map").src = document.querySelector(".map image").getAttribute("href");
    fill(tile);
    if (!viewer.open) viewer.showModal();
  };
  const inView = () => tiles.length && [...document.querySelectorAll(".gallery[open]:not([hidden]) .tile:not([hidden])")];
  const step = (by) => {
    const list = inView();
    if (!list.length) return;
    const at = list.indexOf(current);
    fill(list[at < 0 ? 0 : Math.min(list.length - 1, Math.max(0, at + by))]);
  };
  const focusTile = (tile) => {
    tile.closest(".gallery").querySelectorAll('button.pic[tabindex="0"]').forEach((b) => { b.tabIndex = -1; });
    const button = tile.querySelector("button");
    button.tabIndex = 0;
    button.focus();
  };
  byId("v-prev").addEventListener("click", () => step(-1));
  byId("v-next").addEventListener("click", () => step(1));
  byId("v-close").addEventListener("click", () => viewer.close());
  viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });
  viewer.addEventListener("close", () => { if (current && shown(current)) focusTile(current); });
  viewer.addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (by) { event.preventDefault(); step(by); }
  });
  const columns = (tile) => getComputedStyle(tile.parentElement).gridTemplateColumns.split(" ").length;
  galleries.forEach((gallery) => {
    gallery.addEventListener("click", (event) => {
      const button = event.target.closest("button.pic");
      if (button) open(button.parentElement);
    });
    gallery.addEventListener("keydown", (event) => {
      const tile = event.target.closest(".tile");
      if (!tile || !["ArrowRight", "ArrowLeft", "ArrowDown", "ArrowUp"].includes(event.key)) return;
      event.preventDefault();
      const by = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns(tile), ArrowUp: -columns(tile) }[event.key];
      const list = [...gallery.querySelectorAll(".tile")].filter(shown);
      const next = list[list.indexOf(tile) + by];
      if (next) focusTile(next);
    });
  });
  document.querySelectorAll("#layer-links a").forEach((link) => link.addEventListener("click", (event) => {
    event.preventDefault();
    const tile = document.querySelector(link.getAttribute("href"));
    tile.closest(".gallery").open = true;
    open(tile);
  }));
  applyFilter();
})();

"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  document.querySelectorAll(".js").forEach((e) => { e.hidden = false; });

  const root = document.documentElement, theme = byId("theme");
  const dark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  const label = () => { theme.textContent = dark() ? "Light" : "Dark"; };
  theme.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; label(); });
  label();

  const table = byId("slides");
  if (!table) return;
  const body = table.tBodies[0], rows = [...body.rows], heads = [...table.tHead.rows[0].cells];

  heads.forEach((head, column) => {
    const button = head.querySelector("button");
    if (!button) return;
    button.addEventListener("click", () => {
      const numeric = head.dataset.sort === "number", now = head.getAttribute("aria-sort");
      const down = now ? now === "ascending" : numeric;
      heads.forEach((h) => h.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => row.cells[column].dataset.v;
      const order = numeric ? (a, b) => key(a) - key(b) : (a, b) => key(a).localeCompare(key(b), undefined, { numeric: true });
      rows.sort((a, b) => (down ? -1 : 1) * order(a, b));
      body.append(...rows);
    });
  });

  const text = byId("f-text"), blast = byId("f-blast"), apart = byId("f-apart"), warn = byId("f-warn"), count = byId("f-count");
  const filter = () => {
    const words = text.value.toLowerCase().split(/\s+/).filter(Boolean), least = (Number(blast.value) || 0) / 100;
    let shown = 0;
    for (const row of rows) {
      const d = row.dataset;
      const fits = words.every((w) => d.text.includes(w)) && (least <= 0 || Number(d.blast) >= least)
        && (!apart.checked || d.apart !== "0") && (!warn.checked || d.warn !== "0");
      row.hidden = !fits;
      shown += fits;
    }
    count.textContent = `${shown} of ${rows.length} slides`;
  };
  [text, blast, apart, warn].forEach((e) => e.addEventListener("input", filter));
  filter();

  addEventListener("hashchange", () => {
    const row = byId(decodeURIComponent(location.hash.slice(1)));
    if (row && row.hidden) { text.value = ""; blast.value = 0; apart.checked = warn.checked = false; filter(); row.scrollIntoView(); }
  });
})();

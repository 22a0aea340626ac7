// What a page does when it is touched: tips on the marks of charts, tables that sort, flips that filter, and thresholds to try.
// Every number stands on the page without it.
"use strict";

const all = (selector, within = document) => [...within.querySelectorAll(selector)];

function tips() {
  const tip = document.body.appendChild(document.createElement("div"));
  tip.className = "tip";
  tip.hidden = true;
  for (const title of all("svg.plot title")) {
    title.parentNode.dataset.tip = title.textContent;
    title.remove();
  }
  const show = (event) => {
    const mark = event.target.closest ? event.target.closest("[data-tip]") : null;
    tip.hidden = !mark;
    if (!mark) return;
    tip.textContent = mark.dataset.tip;
    const room = document.documentElement.clientWidth - tip.offsetWidth - 8;
    tip.style.left = `${Math.max(8, Math.min(event.clientX + 12, room))}px`;
    tip.style.top = `${Math.max(8, event.clientY - tip.offsetHeight - 12)}px`;
  };
  for (const name of ["pointermove", "pointerdown"]) document.addEventListener(name, show);
  document.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });
}

function sorting() {
  const value = (row, column) => {
    const text = row.cells[column].textContent.trim();
    const number = parseFloat(text.replace("−", "-"));
    return Number.isNaN(number) ? text : number;
  };
  for (const heading of all("table.sortable th")) {
    const sort = () => {
      const column = heading.cellIndex;
      const body = heading.closest("table").tBodies[0];
      const sign = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      for (const other of all("th", heading.parentNode)) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
      const order = (a, b) => (typeof a === typeof b ? (a < b ? -1 : Number(a > b)) : typeof a === "number" ? -1 : 1);
      body.append(...[...body.rows].sort((a, b) => sign * order(value(a, column), value(b, column))));
    };
    heading.tabIndex = 0;
    heading.addEventListener("click", sort);
    heading.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(); });
  }
}

function filtering() {
  const bar = document.querySelector(".filter");
  if (!bar) return;
  const choices = all("select", bar);
  const flips = all("[data-flip]");
  const apply = () => {
    const wanted = choices.filter((choice) => choice.value);
    for (const flip of flips) flip.hidden = !wanted.every((choice) => flip.dataset[choice.name] === choice.value);
    const rows = flips.filter((flip) => flip.tagName === "TR");
    bar.querySelector("output").textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} flips`;
    bar.querySelector("button").hidden = wanted.length === 0;
    for (const more of all("details.more")) more.open = wanted.length > 0 || more.open;
  };
  for (const choice of choices) choice.addEventListener("change", apply);
  bar.querySelector("button").addEventListener("click", () => {
    for (const choice of choices) choice.value = "";
    apply();
  });
  for (const cell of all("[data-truth][data-answer]", document).filter((found) => found.closest("svg"))) {
    cell.addEventListener("click", () => {
      for (const choice of choices) choice.value = "";
      bar.querySelector("[name=truth]").value = cell.dataset.truth;
      bar.querySelector(`[name=${cell.dataset.side}]`).value = cell.dataset.answer;
      apply();
      bar.scrollIntoView({ block: "start" });
    });
  }
  apply();
}

function thresholds() {
  const tried = document.querySelector(".thresholds");
  if (!tried) return;
  const rows = all("tr[data-threshold]", tried).map((row) => row.dataset);
  const middle = (name) => {
    const mark = document.querySelector(`[data-at=${name}]`);
    if (!mark) return null;
    const box = mark.getBBox();
    return [box.x + box.width / 2, box.y + box.height / 2];
  };
  const origin = middle("origin"), unit = middle("unit");
  for (const slider of all("input[type=range]", tried)) {
    const side = slider.name, start = middle(side), mark = document.querySelector(`[data-at=${side}]`);
    const move = () => {
      const row = rows[Number(slider.value) - 1];
      const figure = (name) => row[side + name];
      for (const shown of all(`[data-show^=${side}]`, tried)) {
        const value = figure(shown.dataset.show.slice(side.length));
        shown.textContent = value === "" ? "–" : `${(100 * value).toFixed(1)}%`;
      }
      document.querySelector(`output[name=${side}]`).textContent = (slider.value / 100).toFixed(2);
      if (!mark || !origin) return;
      const x = origin[0] + figure("Fpr") * (unit[0] - origin[0]) - start[0];
      const y = origin[1] + figure("Recall") * (unit[1] - origin[1]) - start[1];
      mark.setAttribute("transform", `translate(${x} ${y})`);
    };
    slider.addEventListener("input", move);
  }
}

document.documentElement.classList.add("live");
tips();
sorting();
filtering();
thresholds();

"use strict";
// Shared by all parts of a page: colours, decoding, tips, the theme, sorting and saving of tables. It uses no network and no storage.

const shiftscope = {};

shiftscope.json = (element) => JSON.parse(element.textContent);

/** Bytes of base64 text. */
shiftscope.bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

/** Little-endian 16-bit integers of base64 text. */
shiftscope.int16s = (text, signed) => {
  const view = new DataView(shiftscope.bytes(text).buffer);
  const result = signed ? new Int16Array(view.byteLength / 2) : new Uint16Array(view.byteLength / 2);
  for (let index = 0; index < result.length; index++) {
    result[index] = signed ? view.getInt16(2 * index, true) : view.getUint16(2 * index, true);
  }
  return result;
};

shiftscope.stops = shiftscope.json(document.getElementById("scale"));

/** The colour at a fraction of the way along the scale: [red, green, blue]. */
shiftscope.colour = (fraction) => {
  const stops = shiftscope.stops;
  const place = Math.min(Math.max(fraction, 0), 1) * (stops.length - 1);
  const below = Math.min(Math.floor(place), stops.length - 2);
  return stops[below].map((start, part) => Math.round(start + (stops[below + 1][part] - start) * (place - below)));
};

/** An element with a class, a text and children. */
shiftscope.make = (name, className = "", text = "", ...children) => {
  const element = document.createElement(name);
  if (className) element.className = className;
  if (text !== "") element.textContent = text;
  element.append(...children);
  return element;
};

/** A shift in words. */
shiftscope.shiftWords = (dy, dx) => {
  if (!dy && !dx) return "not shifted";
  const parts = [];
  if (dx) parts.push([Math.abs(dx), dx > 0 ? "right" : "left"]);
  if (dy) parts.push([Math.abs(dy), dy > 0 ? "down" : "up"]);
  return parts.map(([length, direction], index) => `${length} ${index ? "" : length === 1 ? "pixel " : "pixels "}${direction}`).join(", ");
};

shiftscope.tips = () => {
  const tip = document.querySelector(".tip");
  const show = (text, event) => {
    tip.textContent = text;
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const left = Math.min(Math.max(event.clientX - box.width / 2, 8), document.documentElement.clientWidth - box.width - 8);
    const above = event.clientY - box.height - 14;
    tip.style.transform = `translate(${left}px, ${above > 4 ? above : event.clientY + 18}px)`;
  };
  const textAt = (event) => {
    const marked = event.target.closest?.("[data-tip]");
    if (marked) return marked.dataset.tip;
    const map = event.target.closest?.(".shiftmap");
    return map ? mapTip(map, event) : "";
  };
  const mapTip = (map, event) => {
    const side = Number(map.dataset.side);
    const box = map.getBoundingClientRect();
    const column = Math.min(Math.max(Math.floor(((event.clientX - box.left) / box.width) * side), 0), side - 1);
    const row = Math.min(Math.max(Math.floor(((event.clientY - box.top) / box.height) * side), 0), side - 1);
    const reach = (side - 1) / 2;
    const value = map.dataset.values.split(" ")[row * side + column];
    return `${shiftscope.shiftWords(row - reach, column - reach)}\n${value}`;
  };
  const follow = (event) => {
    const text = textAt(event);
    if (text) show(text, event);
    else tip.hidden = true;
  };
  document.addEventListener("pointermove", follow, { passive: true });
  document.addEventListener("pointerdown", follow, { passive: true });
  document.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") tip.hidden = true; });
};

shiftscope.theme = () => {
  const button = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (document.documentElement.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
  const label = () => { button.textContent = dark() ? "Light" : "Dark"; };
  button.addEventListener("click", () => {
    document.documentElement.dataset.theme = dark() ? "light" : "dark";
    label();
  });
  system.addEventListener("change", label);
  label();
  button.hidden = false;
};

/** Sort a table by a column, numerically or alphabetically; empty cells come last in both directions. */
shiftscope.sort = (table, column, ascending) => {
  const body = table.tBodies[0];
  const numeric = table.tHead.rows[0].cells[column].classList.contains("numeric");
  const key = (row) => row.cells[column].dataset.order;
  const compare = (a, b) => (numeric ? Number(a) - Number(b) : a.localeCompare(b));
  const rows = Array.from(body.rows).sort((one, other) => {
    const [a, b] = [key(one), key(other)];
    if (a === "" || b === "") return (a === "") - (b === "");
    return ascending ? compare(a, b) : compare(b, a);
  });
  body.append(...rows);
  for (const [index, head] of Array.from(table.tHead.rows[0].cells).entries()) {
    head.setAttribute("aria-sort", index !== column ? "none" : ascending ? "ascending" : "descending");
  }
};

shiftscope.tables = () => {
  for (const section of document.querySelectorAll("section.rows")) {
    const table = section.querySelector("table");
    for (const [column, button] of section.querySelectorAll(".sort").entries()) {
      button.addEventListener("click", () => {
        const now = button.closest("th").getAttribute("aria-sort");
        shiftscope.sort(table, column, now !== "ascending");
      });
    }
    const save = section.querySelector(".save");
    save.addEventListener("click", () => {
      const link = shiftscope.make("a");
      const url = URL.createObjectURL(new Blob([shiftscope.json(section.querySelector(".csv"))], { type: "text/csv" }));
      link.href = url;
      link.download = table.dataset.file;
      link.click();
      setTimeout(() => URL.revokeObjectURL(url), 1000);
    });
    save.hidden = false;
  }
};

shiftscope.ramps = () => {
  for (const canvas of document.querySelectorAll(".ramp")) {
    const context = canvas.getContext("2d");
    for (let column = 0; column < canvas.width; column++) {
      context.fillStyle = `rgb(${shiftscope.colour(column / (canvas.width - 1)).join(" ")})`;
      context.fillRect(column, 0, 1, 1);
    }
  }
};

shiftscope.tips();
shiftscope.theme();
shiftscope.tables();
shiftscope.ramps();

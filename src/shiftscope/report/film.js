"use strict";
// Slide through frames. Each is a picture with the model's answer, computed beforehand.

shiftscope.Reel = class {
  static WIDTH = 300;
  static HEIGHT = 80;

  constructor(section) {
    this.data = shiftscope.json(section.querySelector(".data"));
    const find = (name) => section.querySelector(name);
    this.parts = { shown: find(".shown"), at: find(".at"), answer: find(".answer-now"), change: find(".change-now"), curve: find(".curve"), place: find(".place"), status: find(".status"), strip: find(".strip") };
    this.parts.strip.append(...this.data.strips.map((strip, index) => {
      const option = shiftscope.make("option", "", strip.name);
      option.value = index;
      return option;
    }));
    section.querySelector(".strips-label").hidden = this.data.strips.length < 2;
    this.parts.strip.addEventListener("change", () => this.choose(Number(this.parts.strip.value)));
    this.parts.place.addEventListener("input", () => this.show(Number(this.parts.place.value)));
    find(".largest").addEventListener("click", () => this.show(this.largest()));
    this.listen(find(".screen"));
    find(".reel").hidden = false;
    this.choose(0);
  }

  /** Slide by dragging the picture: its whole width is all frames. */
  listen(screen) {
    let start = null;
    screen.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      start = { x: event.clientX, place: this.place };
      screen.setPointerCapture(event.pointerId);
    });
    screen.addEventListener("pointermove", (event) => {
      if (start) this.show(start.place + Math.round(((event.clientX - start.x) / screen.clientWidth) * (this.frames.length - 1)));
    });
    const end = () => { start = null; };
    screen.addEventListener("pointerup", end);
    screen.addEventListener("pointercancel", end);
  }

  choose(strip) {
    this.frames = this.data.strips[strip].frames;
    this.name = this.data.strips[strip].name;
    this.parts.place.max = this.frames.length - 1;
    this.top = Math.max(...this.frames.map((frame) => frame.change ?? 0)) || 1;
    this.parts.strip.value = strip;
    this.drawCurve();
    this.show(0);
  }

  /** The frame with the largest change. */
  largest() {
    const changes = this.frames.map((frame) => frame.change ?? -1);
    return changes.indexOf(Math.max(...changes));
  }

  across(place) {
    return (place / Math.max(this.frames.length - 1, 1)) * shiftscope.Reel.WIDTH;
  }

  drawCurve() {
    const { WIDTH, HEIGHT } = shiftscope.Reel;
    const element = (name, attributes) => {
      const made = document.createElementNS("http://www.w3.org/2000/svg", name);
      for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
      return made;
    };
    const up = (change) => HEIGHT - 4 - (change / this.top) * (HEIGHT - 8);
    const bars = this.frames.flatMap((frame, place) => frame.change === null ? [] : [element("line", { class: "bar", x1: this.across(place), x2: this.across(place), y1: HEIGHT, y2: up(frame.change) })]);
    this.marker = element("line", { class: "marker", y1: 0, y2: HEIGHT });
    this.parts.curve.replaceChildren(element("line", { class: "base", x1: 0, x2: WIDTH, y1: HEIGHT, y2: HEIGHT }), ...bars, this.marker);
  }

  show(place) {
    this.place = Math.min(Math.max(place, 0), this.frames.length - 1);
    const frame = this.frames[this.place];
    const { parts } = this;
    parts.shown.src = frame.picture;
    parts.shown.alt = `${this.name}, ${frame.at}`;
    parts.place.value = this.place;
    parts.place.setAttribute("aria-valuetext", frame.at);
    parts.at.textContent = frame.at;
    parts.answer.textContent = frame.answer;
    parts.change.textContent = frame.change === null ? "" : `${this.data.change}: ${frame.change.toPrecision(3)}`;
    for (const end of ["x1", "x2"]) this.marker.setAttribute(end, this.across(this.place));
    clearTimeout(this.timer);
    this.timer = setTimeout(() => { parts.status.textContent = [frame.at, frame.answer, parts.change.textContent].filter(Boolean).join(". "); }, 350);
  }
};

shiftscope.reels = Array.from(document.querySelectorAll("section.film"), (section) => new shiftscope.Reel(section));

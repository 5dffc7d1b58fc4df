"use strict";
// Drag the image. The engine computed every output beforehand; this script looks it up and shows it.

shiftscope.Player = class {
  static PROBABILITY_STEPS = 255;
  static COSINE_STEPS = 32767;
  static BARS = 10;

  constructor(section) {
    this.section = section;
    this.data = shiftscope.json(section.querySelector(".data"));
    this.pixels = shiftscope.bytes(this.data.images);
    this.side = 2 * this.data.reach + 1;
    this.image = 0;
    this.dy = 0;
    this.dx = 0;
    this.stage = section.querySelector(".stage");
    this.picture = section.querySelector(".picture");
    [this.picture.height, this.picture.width] = this.data.canvas;
    this.picture.style.aspectRatio = `${this.picture.width} / ${this.picture.height}`;
    this.stage.style.width = `${100 * Math.min(1, this.picture.width / this.picture.height)}%`;
    this.status = section.querySelector(".status");
    this.decoded = new Map();
    const shown = this.data.networks.length > 1 ? [0, this.data.networks.length - 1] : [0];
    this.panels = shown.map((network, position) => new shiftscope.Panel(this, network, position));
    section.querySelector(".networks").append(...this.panels.map((panel) => panel.element));
    this.addThumbs();
    this.listen();
    section.querySelector(".player").hidden = false;
    this.choose(0);
  }

  /** A network's outputs, decoded when they are first needed. */
  network(number) {
    if (!this.decoded.has(number)) {
      const raw = this.data.networks[number];
      this.decoded.set(number, {
        name: raw.name,
        factor: raw.factor,
        probabilities: shiftscope.bytes(raw.probabilities),
        cosines: shiftscope.int16s(raw.cosines, true),
        tops: shiftscope.int16s(raw.tops, false),
        unshifted: shiftscope.int16s(raw.unshifted, false),
      });
    }
    return this.decoded.get(number);
  }

  /** The index of an image at a shift among a network's outputs. */
  index(image, dy, dx) {
    return (image * this.side + dy + this.data.reach) * this.side + dx + this.data.reach;
  }

  /** The class that an image is labelled with; undefined if it is not known. */
  label(image) {
    return this.data.classes[this.data.labels[image]];
  }

  addThumbs() {
    const group = `${this.section.id}-image`;
    const thumbs = Array.from({ length: this.data.count }, (_, image) => {
      const input = shiftscope.make("input");
      input.type = "radio";
      input.name = group;
      input.value = image;
      input.checked = image === 0;
      const label = this.label(image);
      input.setAttribute("aria-label", `image ${image + 1}${label === undefined ? "" : `: ${label}`}`);
      input.addEventListener("change", () => this.choose(image));
      const canvas = shiftscope.make("canvas");
      canvas.width = this.data.width;
      canvas.height = this.data.height;
      canvas.getContext("2d").putImageData(this.imageData(image), 0, 0);
      return shiftscope.make("label", "", "", input, canvas);
    });
    this.section.querySelector(".thumbs").append(...thumbs);
  }

  /** The pixels of an image without canvas. */
  imageData(image) {
    const { height, width, channels } = this.data;
    const result = new ImageData(width, height);
    const start = image * height * width * channels;
    for (let pixel = 0; pixel < height * width; pixel++) {
      for (let part = 0; part < 3; part++) {
        result.data[4 * pixel + part] = this.pixels[start + pixel * channels + Math.min(part, channels - 1)];
      }
      result.data[4 * pixel + 3] = 255;
    }
    return result;
  }

  listen() {
    let start = null;
    this.stage.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      start = { x: event.clientX - this.dx * this.scale(), y: event.clientY - this.dy * this.scale() };
      this.stage.setPointerCapture(event.pointerId);
      this.stage.classList.add("dragging");
    });
    this.stage.addEventListener("pointermove", (event) => {
      if (start) this.move((event.clientY - start.y) / this.scale(), (event.clientX - start.x) / this.scale());
    });
    const end = () => {
      start = null;
      this.stage.classList.remove("dragging");
    };
    this.stage.addEventListener("pointerup", end);
    this.stage.addEventListener("pointercancel", end);
    this.stage.addEventListener("keydown", (event) => {
      const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (step) this.move(this.dy + step[0], this.dx + step[1]);
      else if (event.key === "Home") this.move(0, 0);
      else return;
      event.preventDefault();
    });
    this.sliders = { dx: this.section.querySelector(".dx"), dy: this.section.querySelector(".dy") };
    for (const slider of Object.values(this.sliders)) {
      slider.addEventListener("input", () => this.move(Number(this.sliders.dy.value), Number(this.sliders.dx.value)));
    }
    this.section.querySelector(".reset").addEventListener("click", () => this.move(0, 0));
    this.section.querySelector(".nearest").addEventListener("click", () => this.moveToNearestChange());
  }

  /** Screen pixels for each pixel of the canvas. */
  scale() {
    return this.stage.clientWidth / this.picture.width;
  }

  choose(image) {
    this.image = image;
    const label = this.label(image);
    this.section.querySelector(".truth").textContent = label === undefined ? "" : `Labelled ${label}`;
    this.drawn = this.imageData(image);
    for (const panel of this.panels) panel.chooseImage();
    this.move(this.dy, this.dx, true);
  }

  move(dy, dx, always = false) {
    const clamp = (value) => Math.min(Math.max(Math.round(value), -this.data.reach), this.data.reach) || 0;
    [dy, dx] = [clamp(dy), clamp(dx)];
    if (!always && dy === this.dy && dx === this.dx) return;
    [this.dy, this.dx] = [dy, dx];
    this.draw();
    for (const panel of this.panels) panel.show();
    this.sliders.dx.value = dx;
    this.sliders.dy.value = dy;
    this.section.querySelector(".shift").textContent = shiftscope.shiftWords(dy, dx);
    // A screen reader announces the predictions once the image rests.
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.announce(), 350);
  }

  draw() {
    const { height, width, colour } = this.data;
    const { height: tall, width: wide } = this.picture;
    const context = this.picture.getContext("2d");
    context.fillStyle = `rgb(${[0, 1, 2].map((part) => colour[Math.min(part, colour.length - 1)]).join(" ")})`;
    context.fillRect(0, 0, wide, tall);
    context.putImageData(this.drawn, Math.floor((wide - width) / 2) + this.dx, Math.floor((tall - height) / 2) + this.dy);
  }

  /** The least cosine of the shown networks and 0, so that their maps share a scale. */
  lowest() {
    const least = this.panels.map((panel) => panel.cosines().reduce((low, value) => Math.min(low, value)));
    return Math.min(...least, 0) / shiftscope.Player.COSINE_STEPS;
  }

  /** Write what the networks predict where a screen reader announces it. */
  announce() {
    const sentences = this.panels.map((panel) => `${panel.outputs().name}: ${panel.sentence()}`);
    this.status.textContent = `${shiftscope.shiftWords(this.dy, this.dx)}. ${sentences.join("; ")}.`;
  }

  /** Move to the shortest shift at which a shown network predicts another class than without a shift. */
  moveToNearestChange() {
    let best = null;
    for (let dy = -this.data.reach; dy <= this.data.reach; dy++) {
      for (let dx = -this.data.reach; dx <= this.data.reach; dx++) {
        const length = dy * dy + dx * dx;
        const changed = this.panels.some((panel) => {
          const outputs = panel.outputs();
          return outputs.tops[this.index(this.image, dy, dx)] !== outputs.unshifted[this.image];
        });
        if (changed && (!best || length < best.length)) best = { dy, dx, length };
      }
    }
    if (best) {
      this.move(best.dy, best.dx);
      return;
    }
    this.status.textContent = this.section.querySelector(".shift").textContent = "no shift of this grid changes these networks' predictions";
  }
};

/** One of the two networks side by side. */
shiftscope.Panel = class {
  constructor(player, number, position) {
    const make = shiftscope.make;
    this.player = player;
    this.number = number;
    this.select = make("select");
    this.select.setAttribute("aria-label", position ? "right network" : "left network");
    this.select.append(...player.data.networks.map((network, index) => {
      const option = make("option", "", network.name);
      option.value = index;
      option.selected = index === number;
      return option;
    }));
    this.select.addEventListener("change", () => {
      this.number = Number(this.select.value);
      this.player.choose(this.player.image);
    });
    this.name = make("p", "fullname");
    this.name.dir = "auto";
    this.name.setAttribute("aria-hidden", "true");
    this.predicted = make("span", "class");
    this.before = make("span", "before");
    this.cosine = make("b");
    this.bars = make("div", "bars");
    this.map = make("canvas");
    this.map.setAttribute("aria-hidden", "true");
    this.map.width = this.map.height = player.side;
    this.overlay = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    this.overlay.setAttribute("viewBox", `0 0 ${player.side} ${player.side}`);
    this.overlay.setAttribute("aria-hidden", "true");
    const box = make("div", "mapbox", "", this.map, this.overlay);
    box.addEventListener("click", (event) => {
      const frame = box.getBoundingClientRect();
      const at = (offset, size) => Math.floor((offset / size) * player.side) - player.data.reach;
      player.move(at(event.clientY - frame.top, frame.height), at(event.clientX - frame.left, frame.width));
    });
    this.note = make("p", "mapnote");
    const similarity = make("p", "cosine", "cosine similarity ", this.cosine);
    this.element = make("div", "network", "", this.select, this.name, make("div", "prediction", "", this.predicted, this.before), similarity, this.bars, box, this.note);
  }

  outputs() {
    return this.player.network(this.number);
  }

  /** Draw what depends on the image and the network but not on the shift: the bars' classes, the map and its lattice. */
  chooseImage() {
    this.name.textContent = this.outputs().name;
    this.makeBars();
    this.drawMap();
    this.drawLattice();
  }

  /** The classes that are most probable at some shift of this image, in their own order; the same for all panels. */
  classes() {
    const { player } = this;
    const count = player.data.classes.length;
    if (count <= shiftscope.Player.BARS) return Array.from({ length: count }, (_, index) => index);
    const most = new Float64Array(count);
    for (const panel of player.panels) {
      const { probabilities } = panel.outputs();
      const start = player.index(player.image, -player.data.reach, -player.data.reach) * count;
      for (let index = 0; index < player.side * player.side * count; index++) {
        most[index % count] = Math.max(most[index % count], probabilities[start + index]);
      }
    }
    const order = Array.from(most.keys()).sort((a, b) => most[b] - most[a]);
    return order.slice(0, shiftscope.Player.BARS).sort((a, b) => a - b);
  }

  makeBars() {
    const make = shiftscope.make;
    const names = this.player.data.classes;
    this.rows = this.classes().map((label) => {
      const name = make("span", "label", names[label]);
      name.dir = "auto";
      name.title = names[label];
      const fill = make("div", "fill");
      const share = make("span", "share");
      const row = make("div", "barrow", "", name, make("div", "track", "", fill), share);
      return { label, row, fill, share };
    });
    this.bars.classList.toggle("long", this.rows.some((each) => names[each.label].length > 2));
    this.bars.replaceChildren(...this.rows.map((each) => each.row));
  }

  /** The cosines of the shown image at every shift. */
  cosines() {
    const { player } = this;
    const start = player.index(player.image, -player.data.reach, -player.data.reach);
    return this.outputs().cosines.subarray(start, start + player.side * player.side);
  }

  drawMap() {
    const { player } = this;
    const values = this.cosines();
    const low = player.lowest();
    const picture = new ImageData(player.side, player.side);
    values.forEach((value, index) => {
      const share = (value / shiftscope.Player.COSINE_STEPS - low) / (1 - low);
      picture.data.set([...shiftscope.colour(share), 255], 4 * index);
    });
    this.map.getContext("2d").putImageData(picture, 0, 0);
    const factor = this.outputs().factor;
    this.note.textContent = `Cosine similarity at every shift, from dark ${(Math.round(100 * low) / 100 || 0).toFixed(2)} to light 1. `
      + (factor === null ? "" : factor > 1 ? `Dots: multiples of ${factor}, this network's subsampling factor.` : "Subsampling factor 1: every shift is a multiple of it.");
  }

  drawLattice() {
    const { side, data } = this.player;
    const { factor } = this.outputs();
    const mark = (className, x, y, radius) => {
      const circle = document.createElementNS("http://www.w3.org/2000/svg", "circle");
      circle.setAttribute("class", className);
      circle.setAttribute("cx", x + 0.5);
      circle.setAttribute("cy", y + 0.5);
      circle.setAttribute("r", radius);
      return circle;
    };
    const marks = [];
    for (let y = 0; factor > 1 && y < side; y++) {
      for (let x = 0; x < side; x++) {
        if ((y - data.reach) % factor === 0 && (x - data.reach) % factor === 0) marks.push(mark("lattice", x, y, 0.24));
      }
    }
    this.here = [mark("here under", 0, 0, 0.75), mark("here", 0, 0, 0.75)];
    this.overlay.replaceChildren(...marks, ...this.here);
  }

  show() {
    const { player } = this;
    const outputs = this.outputs();
    const names = player.data.classes;
    const index = player.index(player.image, player.dy, player.dx);
    const [top, before] = [outputs.tops[index], outputs.unshifted[player.image]];
    this.element.classList.toggle("changed", top !== before);
    this.predicted.textContent = names[top];
    this.before.textContent = top === before ? "as without a shift" : `${names[before]} without a shift`;
    this.cosine.textContent = this.similarity(index).toFixed(3);
    for (const { label, row, fill, share } of this.rows) {
      const value = outputs.probabilities[index * names.length + label] / shiftscope.Player.PROBABILITY_STEPS;
      row.classList.toggle("top", label === top);
      fill.style.transform = `scaleX(${value})`;
      share.textContent = `${Math.round(100 * value)} %`;
    }
    for (const circle of this.here) {
      circle.setAttribute("cx", player.dx + player.data.reach + 0.5);
      circle.setAttribute("cy", player.dy + player.data.reach + 0.5);
    }
  }

  similarity(index) {
    return this.outputs().cosines[index] / shiftscope.Player.COSINE_STEPS;
  }

  sentence() {
    return `${this.predicted.textContent}, ${this.before.textContent}, cosine similarity ${this.cosine.textContent}`;
  }
};

shiftscope.players = Array.from(document.querySelectorAll("section.drag"), (section) => new shiftscope.Player(section));

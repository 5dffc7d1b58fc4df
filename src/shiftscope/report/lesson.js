"use strict";
// The theory on one axis, in the few lines it takes. The definitions are those of the package's signals.py; a test compares them.

shiftscope.theory = {
  TIE: 1e-9,

  /** Valid cross-correlation: out[i] = sum_k kernel[k] signal[i + k]. */
  correlate: (signal, kernel) =>
    Array.from({ length: signal.length - kernel.length + 1 }, (_, i) =>
      kernel.reduce((sum, tap, k) => sum + tap * signal[i + k], 0)),

  /** The content moved right; zeros come in. */
  translate: (signal, shift) => signal.map((_, i) => signal[i - shift] ?? 0),

  subsample: (signal, factor) => signal.filter((_, i) => i % factor === 0),

  /** Dense pooling over windows of a size. */
  pool: (signal, kind, size) => {
    if (kind === "none") return signal;
    return Array.from({ length: signal.length - size + 1 }, (_, i) => {
      const window = signal.slice(i, i + size);
      return kind === "max" ? Math.max(...window) : window.reduce((sum, value) => sum + value, 0) / size;
    });
  },

  energy: (signal) => signal.reduce((sum, value) => sum + value * value, 0),

  /** Cosine of the angle between two signals; two zero signals are alike, a zero signal is like no other. */
  cosine: (a, b) => {
    const [one, other] = [shiftscope.theory.energy(a), shiftscope.theory.energy(b)];
    if (one === 0 || other === 0) return one === other ? 1 : 0;
    return a.reduce((sum, value, i) => sum + value * b[i], 0) / Math.sqrt(one * other);
  },

  /** Similarity and movement: the largest c(u) = <a, T_-u b> / (|a| |b|) over displacements u, and the nearest u that has it. */
  respond: (a, b) => {
    const { cosine, energy, TIE } = shiftscope.theory;
    const norm = Math.sqrt(energy(a) * energy(b));
    if (norm === 0) {
      const alike = energy(a) === energy(b) ? 1 : 0;
      return { similarity: alike, movement: 0, inPlace: cosine(a, b) };
    }
    const found = [];
    for (let u = 1 - a.length; u < a.length; u++) {
      found.push([a.reduce((sum, value, i) => sum + value * (b[i + u] ?? 0), 0) / norm, Math.abs(u)]);
    }
    const most = Math.max(...found.map(([value]) => value));
    const movement = Math.min(...found.filter(([value]) => value >= most - TIE).map(([, length]) => length));
    return { similarity: Math.min(most, 1), movement, inPlace: cosine(a, b) };
  },

  /** The mean over shifts below the factor, 0 left out, of the cosine between what subsampling keeps; 1 at factor 1. */
  homogeneity: (signal, factor) => {
    const { cosine, subsample, translate } = shiftscope.theory;
    const kept = subsample(signal, factor);
    let sum = 0;
    for (let shift = 1; shift < factor; shift++) sum += cosine(kept, subsample(translate(signal, shift), factor));
    return factor > 1 ? sum / (factor - 1) : 1;
  },
};

shiftscope.Lesson = class {
  constructor(section) {
    this.data = shiftscope.json(section.querySelector(".data"));
    const find = (name) => section.querySelector(`.${name}`);
    this.find = find;
    for (const [name, choices] of [["signal", this.data.signals], ["kernel", this.data.kernels]]) {
      find(name).append(...choices.map((choice, index) => {
        const option = shiftscope.make("option", "", choice.name);
        option.value = index;
        return option;
      }));
    }
    find("signal").addEventListener("change", () => this.take());
    for (const name of ["kernel", "pool", "size", "stride", "move"]) find(name).addEventListener("input", () => this.show());
    find("typed").addEventListener("input", () => this.read());
    find("bench").hidden = false;
    this.take();
  }

  take() {
    this.values = this.data.signals[Number(this.find("signal").value)].values;
    this.find("typed").value = this.values.join(" ");
    this.find("typed").removeAttribute("aria-invalid");
    this.show();
  }

  /** Numbers that were typed; what is no number is told, and the last signal stays. */
  read() {
    const parts = this.find("typed").value.split(/[\s,;]+/).filter((part) => part !== "");
    const values = parts.map(Number);
    const sound = values.length >= 8 && values.length <= 32 && values.every((value) => Number.isFinite(value) && Math.abs(value) <= 1e6);
    this.find("typed").setAttribute("aria-invalid", String(!sound));
    if (sound) {
      this.values = values;
      this.show();
    } else {
      this.find("told").textContent = "The signal must be 8 to 32 numbers with spaces between them.";
    }
  }

  whole(name) {
    const input = this.find(name);
    const value = Math.round(Number(input.value)) || Number(input.min);
    return Math.min(Math.max(value, Number(input.min)), Number(input.max));
  }

  settings() {
    return {
      kernel: this.data.kernels[Number(this.find("kernel").value)].values,
      pool: this.find("pool").value,
      size: this.whole("size"),
      stride: this.whole("stride"),
      shift: this.whole("move"),
    };
  }

  show() {
    const { correlate, translate, subsample, pool, respond, homogeneity } = shiftscope.theory;
    const { kernel, pool: kind, size, stride, shift } = this.settings();
    const moved = translate(this.values, shift);
    const dense = [this.values, moved].map((signal) => pool(correlate(signal, kernel), kind, size));
    const [before, after] = dense.map((signal) => subsample(signal, stride));
    const response = respond(before, after);
    const alike = homogeneity(dense[0], stride);
    this.find("controls").querySelector("output").textContent = shift;
    this.find("strips").replaceChildren(
      ...this.strips("input", this.values, moved, shift), ...this.strips(`output at stride ${stride}`, before, after, shift));
    const write = (name, value, digits) => { this.find(name).textContent = value.toFixed(digits); };
    write("similarity", response.similarity, 3);
    write("movement", response.movement, 0);
    write("in-place", response.inPlace, 3);
    write("homogeneity", alike, 3);
    this.find("told").textContent = this.lesson(response, { shift, stride, before, after });
  }

  strips(name, before, after, shift) {
    const most = Math.max(...before.map(Math.abs), ...after.map(Math.abs), 1e-9);
    return [this.strip(name, before, most, ""), this.strip(`${name}, shifted by ${shift}`, after, most, "shifted")];
  }

  strip(name, values, most, className) {
    const make = shiftscope.make;
    const cells = values.map((value) => {
      const bar = make("i", value < 0 ? "negative" : "");
      bar.style.transform = `scaleY(${(0.66 * Math.abs(value)) / most})`;
      return make("div", "", "", bar, make("span", "", String(Number(value.toFixed(2)))));
    });
    return make("div", `strip ${className}`, "", make("p", "", name), make("div", "cells", "", ...cells));
  }

  /** What is to be seen, in a sentence. */
  lesson(response, { shift, stride, before, after }) {
    const { movement, similarity } = response;
    const lost = similarity < 1 - 1e-6;
    // A cosine does not see that an output has only been scaled.
    const scaled = !lost && Math.abs(shiftscope.theory.energy(before) - shiftscope.theory.energy(after)) > 1e-6;
    if (shift === 0) return "Without a shift nothing changes. Move the signal.";
    if (lost && stride > 1 && shift % stride !== 0) {
      return `${shift} is not a multiple of the stride ${stride}, so subsampling picks other positions and the output changes. `
        + "Pool over a larger window: neighbours grow alike, and the similarity returns.";
    }
    if (lost) return "Part of the output has left the signal's end, or the window; what is left has moved.";
    if (scaled) return "The output looks alike to a cosine, but its size has changed: subsampling has picked other positions.";
    if (movement === 0) return "The output is where it was and what it was: this shift is invisible behind the stride.";
    return `The output is preserved and has moved by ${movement} of the input's ${shift}: `
      + (movement === shift ? "equivariant, and a fully connected layer sees the whole move." : "subsampling has scaled the shift.");
  }
};

shiftscope.lessons = Array.from(document.querySelectorAll("section.lesson"), (section) => new shiftscope.Lesson(section));

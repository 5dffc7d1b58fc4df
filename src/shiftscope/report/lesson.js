"use strict";
// The theory in one dimension. The definitions are those of the package's theory.py; a test compares them.

shiftscope.theory = {
  TIE: 1e-9,

  /** Valid cross-correlation: out[i] = sum_k kernel[k] signal[i + k]. */
  correlate: (signal, kernel) =>
    Array.from({ length: signal.length - kernel.length + 1 }, (_, i) =>
      kernel.reduce((sum, tap, k) => sum + tap * signal[i + k], 0)),

  /** Move the signal right and fill with zeros. */
  translate: (signal, shift) => signal.map((_, i) => signal[i - shift] ?? 0),

  subsample: (signal, factor) => signal.filter((_, i) => i % factor === 0),

  /** Pool over windows of a size, with stride 1. */
  pool: (signal, kind, size) => {
    if (kind === "none") return signal;
    return Array.from({ length: signal.length - size + 1 }, (_, i) => {
      const window = signal.slice(i, i + size);
      return kind === "max" ? Math.max(...window) : window.reduce((sum, value) => sum + value, 0) / size;
    });
  },

  energy: (signal) => signal.reduce((sum, value) => sum + value * value, 0),

  /** Cosine of the angle between two signals; 1 for two zero signals, 0 for a zero signal and another. */
  cosine: (a, b) => {
    const [one, other] = [shiftscope.theory.energy(a), shiftscope.theory.energy(b)];
    if (one === 0 || other === 0) return one === other ? 1 : 0;
    return a.reduce((sum, value, i) => sum + value * b[i], 0) / Math.sqrt(one * other);
  },

  /** Similarity and movement: the largest c(u) = <a, T_-u b> / (|a| |b|) over displacements u, and the smallest |u| with it. */
  respond: (a, b) => {
    const { cosine, energy, TIE } = shiftscope.theory;
    const norm = Math.sqrt(energy(a) * energy(b));
    if (norm === 0) {
      const similarity = energy(a) === energy(b) ? 1 : 0;
      return { similarity, movement: 0, inPlace: cosine(a, b) };
    }
    const found = [];
    for (let u = 1 - a.length; u < a.length; u++) {
      found.push([a.reduce((sum, value, i) => sum + value * (b[i + u] ?? 0), 0) / norm, Math.abs(u)]);
    }
    const most = Math.max(...found.map(([value]) => value));
    const movement = Math.min(...found.filter(([value]) => value >= most - TIE).map(([, length]) => length));
    return { similarity: Math.min(most, 1), movement, inPlace: cosine(a, b) };
  },

  /** Mean cosine between the subsampled signal and the subsampled shifted signal, over shifts 1 to factor - 1; 1 at factor 1. */
  homogeneity: (signal, factor) => {
    const { cosine, subsample, translate } = shiftscope.theory;
    const subsampled = subsample(signal, factor);
    let sum = 0;
    for (let shift = 1; shift < factor; shift++) sum += cosine(subsampled, subsample(translate(signal, shift), factor));
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
    find("signal").addEventListener("change", () => this.chooseSignal());
    for (const name of ["kernel", "pool", "size", "stride", "shift-size"]) find(name).addEventListener("input", () => this.show());
    find("signal-values").addEventListener("input", () => this.readValues());
    find("demo").hidden = false;
    this.chooseSignal();
  }

  chooseSignal() {
    this.values = this.data.signals[Number(this.find("signal").value)].values;
    this.find("signal-values").value = this.values.join(" ");
    this.find("signal-values").removeAttribute("aria-invalid");
    this.show();
  }

  /** Read the typed values; if they are invalid, say so and keep the last signal. */
  readValues() {
    const parts = this.find("signal-values").value.split(/[\s,;]+/).filter((part) => part !== "");
    const values = parts.map(Number);
    const valid = values.length >= 8 && values.length <= 32 && values.every((value) => Number.isFinite(value) && Math.abs(value) <= 1e6);
    this.find("signal-values").setAttribute("aria-invalid", String(!valid));
    if (valid) {
      this.values = values;
      this.show();
    } else {
      this.find("status").textContent = "The signal must be 8 to 32 numbers, separated by spaces.";
    }
  }

  integer(name) {
    const input = this.find(name);
    const value = Math.round(Number(input.value)) || Number(input.min);
    return Math.min(Math.max(value, Number(input.min)), Number(input.max));
  }

  settings() {
    return {
      kernel: this.data.kernels[Number(this.find("kernel").value)].values,
      pool: this.find("pool").value,
      size: this.integer("size"),
      stride: this.integer("stride"),
      shift: this.integer("shift-size"),
    };
  }

  show() {
    const { correlate, translate, subsample, pool, respond, homogeneity } = shiftscope.theory;
    const { kernel, pool: kind, size, stride, shift } = this.settings();
    const moved = translate(this.values, shift);
    const dense = [this.values, moved].map((signal) => pool(correlate(signal, kernel), kind, size));
    const [before, after] = dense.map((signal) => subsample(signal, stride));
    const response = respond(before, after);
    this.find("controls").querySelector("output").textContent = shift;
    this.find("strips").replaceChildren(
      ...this.strips("input", this.values, moved, shift), ...this.strips(`output at stride ${stride}`, before, after, shift));
    const write = (name, value, digits) => { this.find(name).textContent = value.toFixed(digits); };
    write("similarity", response.similarity, 3);
    write("movement", response.movement, 0);
    write("in-place", response.inPlace, 3);
    const alike = homogeneity(dense[0], stride);
    if (stride === 1) this.find("homogeneity").textContent = "\u2013";
    else write("homogeneity", alike, 3);
    this.find("status").textContent = this.explanation(response, { shift, stride, alike, before, after });
  }

  strips(name, before, after, shift) {
    const both = [...before, ...after];
    const most = Math.max(...both.map(Math.abs), 1e-9);
    const signed = both.some((value) => value < 0) ? "signed" : "";
    return [this.strip(name, before, most, signed), this.strip(`${name}, shifted by ${shift}`, after, most, `shifted ${signed}`)];
  }

  /** Values as bars of up to most; of a signed strip from its middle, negative ones downwards. */
  strip(name, values, most, className) {
    const make = shiftscope.make;
    const cells = values.map((value) => {
      const bar = make("i", value < 0 ? "negative" : "");
      bar.style.transform = `scaleY(${(0.66 * Math.abs(value)) / most})`;
      return make("div", "", "", bar, make("span", "", String(Number(value.toFixed(2)))));
    });
    return make("div", `strip ${className}`, "", make("p", "", name), make("div", "cells", "", ...cells));
  }

  /** What the outputs show, in a sentence or two. */
  explanation(response, { shift, stride, alike, before, after }) {
    const { movement, similarity } = response;
    const changed = similarity < 1 - 1e-6;
    // A cosine does not change when an output is only scaled.
    const scaled = !changed && Math.abs(shiftscope.theory.energy(before) - shiftscope.theory.energy(after)) > 1e-6;
    if (shift === 0) return "Without a shift nothing changes. Shift the signal.";
    if (changed && stride > 1 && shift % stride !== 0) {
      return `${shift} is not a multiple of the stride ${stride}, so subsampling picks other positions and the output changes. `
        + "Pool over a larger window: neighbouring values become similar, and so do the outputs.";
    }
    if (changed) return "Part of the output has moved past its end; the rest has moved.";
    if (shift % stride !== 0 && alike < 1 - 1e-6) {
      return `${shift} is not a multiple of the stride ${stride}: subsampling has picked other values, and the cosine is 1 only `
        + "because these have the same shape.";
    }
    if (scaled) return "The output is scaled, which a cosine does not show: subsampling has picked other positions.";
    if (movement === 0) return "The output is unchanged: this shift does not show after the stride.";
    return `The output is preserved and has moved by ${movement}, the input by ${shift}: `
      + (stride === 1 ? "this is equivariance, and a fully connected layer sees the full shift." : "subsampling has scaled the shift down.");
  }
};

shiftscope.lessons = Array.from(document.querySelectorAll("section.lesson"), (section) => new shiftscope.Lesson(section));

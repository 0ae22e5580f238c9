// An experiment: its settings, their text in the address of the page, and its run.

import * as optimizers from "./optimizers.mjs";
import { height, surfaces } from "./surfaces.mjs";

export const LAST = 1000; // steps of a run
const FAR = 1e6; // a weight beyond it has diverged

export const names = ["gravity", "sgd", "momentum", "adam"];
export const titles = { gravity: "Gravity", sgd: "SGD", momentum: "Momentum", adam: "Adam" };

// The numbers that may be set. `none` is the word for null, where there is a value without setting.
export const ranges = {
  rate: { symbol: "η", title: "learning rate", low: 0.001, high: 10, initial: 0.1, log: true },
  alpha: { symbol: "α", title: "size of V₀", low: 0, high: 1, initial: 0.01 },
  beta: { symbol: "β", title: "limit of β̂", low: 0, high: 1, initial: 0.9 },
  m: { symbol: "m", title: "", low: 0.01, high: 100, initial: null, none: "gradient", log: true },
  scale: { symbol: "c", title: "scale of the loss", low: 0.01, high: 100, initial: 1, log: true },
  seed: { title: "seed", low: 0, high: 2 ** 32 - 1, initial: 0, whole: true },
  n: { title: "step", low: 0, high: LAST, initial: 40, whole: true },
  sgd: { title: "rate of SGD", low: 1e-5, high: 10, initial: null, none: "auto" },
  momentum: { title: "rate of momentum", low: 1e-5, high: 10, initial: null, none: "auto" },
  adam: { title: "rate of Adam", low: 1e-5, high: 10, initial: null, none: "auto" },
};

const choices = {
  surface: Object.keys(surfaces),
  axes: ["linear", "logarithmic"],
  theme: ["auto", "light", "dark"],
};

export function rangeOf(key, surface) {
  const [left, right, bottom, top] = surfaces[surface].view;
  if (key === "x") return { title: "start x", low: left, high: right };
  if (key === "y") return { title: "start y", low: bottom, high: top };
  return ranges[key];
}

export function defaults(surface = "bowl") {
  const [x, y] = surfaces[surface].start;
  const numbers = Object.fromEntries(Object.entries(ranges).map(([key, r]) => [key, r.initial]));
  return { surface, x, y, ...numbers, axes: "linear", theme: "auto", off: [] };
}

// Returns the number nearest to the text that is allowed, and what was wrong with the text.
export function checked(key, text, surface) {
  const { title, symbol, low, high, none, whole } = rangeOf(key, surface);
  const fallback = defaults(surface)[key];
  const name = [symbol, title].filter(Boolean).join(", ");
  if (text.trim() === none) return { value: null };
  const number = text.trim() === "" ? NaN : Number(text);
  if (!Number.isFinite(number)) {
    const problem = `${name}: “${text}” is no number. ${fallback ?? none} is used.`;
    return { value: fallback, problem };
  }
  const value = Math.min(Math.max(whole ? Math.round(number) : number, low), high);
  if (value === number) return { value };
  const wanted = `${whole ? "an integer " : ""}from ${low} to ${high}`;
  return { value, problem: `${name}: ${text} is not ${wanted}. ${value} is used.` };
}

// Reads the settings from the address's part after “#”. What is wrong is replaced, and reported.
export function parse(hash) {
  const query = new URLSearchParams(hash.replace(/^#/, ""));
  const problems = [];
  const choose = (key, fallback) => {
    const text = query.get(key) ?? fallback;
    if (choices[key].includes(text)) return text;
    problems.push(`${key}: “${text}” is unknown. “${fallback}” is used.`);
    return fallback;
  };
  const surface = choose("surface", "bowl");
  const settings = defaults(surface);
  settings.axes = choose("axes", settings.axes);
  settings.theme = choose("theme", settings.theme);
  for (const [key, text] of query) {
    if (Object.hasOwn(choices, key)) continue;
    if (key === "off") {
      const off = text.split(",").filter(Boolean);
      settings.off = names.filter((name) => off.includes(name));
      const unknown = off.filter((name) => !names.includes(name));
      if (unknown.length) problems.push(`off: “${unknown}” is no optimizer of this page.`);
    } else if (["x", "y", ...Object.keys(ranges)].includes(key)) {
      const { value, problem } = checked(key, text, surface);
      settings[key] = value;
      if (problem) problems.push(problem);
    } else {
      problems.push(`“${key}” is no setting of this page.`);
    }
  }
  return { settings, problems };
}

// The inverse of `parse`: what differs from the defaults of the surface.
export function format(settings) {
  const initial = { ...defaults(settings.surface), surface: "bowl" };
  const query = new URLSearchParams();
  for (const [key, value] of Object.entries(settings)) {
    if (String(value) !== String(initial[key])) query.set(key, value ?? ranges[key].none);
  }
  return query.toString().replaceAll("%2C", ",");
}

// SGD has the rate of Gravity. With momentum 0.9, steps add up to ten times the rate, and Adam
// divides by the size of the gradients: they have a tenth of it.
export function rateOf(settings, name) {
  const { rate } = settings;
  return settings[name] ?? (name === "sgd" ? rate : Number((rate / 10).toPrecision(12)));
}

// Runs every optimizer that is on for LAST steps. Each result has the points, the heights above the
// lowest point, `end`, the step after which it had diverged, or null, and for Gravity the trace.
export function run(settings) {
  const surface = surfaces[settings.surface];
  const { scale } = settings;
  const descend = (step) => {
    const [points, heights] = [[], []];
    let w = [settings.x, settings.y];
    while (points.length <= LAST && w.every((x) => Math.abs(x) < FAR)) {
      points.push(w);
      heights.push(scale * height(surface, ...w));
      const g = surface.gradient(...w).map((x) => scale * x);
      w = step(w, g);
    }
    return { points, heights, end: points.length <= LAST ? points.length : null };
  };
  const result = {};
  for (const name of names.filter((each) => !settings.off.includes(each))) {
    const trace = [];
    const step =
      name === "gravity"
        ? optimizers.gravity(settings, trace)
        : optimizers[name](rateOf(settings, name));
    result[name] = { ...descend(step), trace };
  }
  return result;
}

// The angle of the slope, in degrees: tan θ = |g| / m.
export const angle = (g, m) => (g === 0 ? 0 : (Math.atan(Math.abs(g) / m) * 180) / Math.PI);

// A number in three digits.
export function shown(x) {
  const size = Math.abs(x);
  if (x === 0 || (size >= 0.001 && size < 1e4)) {
    return String(Number(x.toPrecision(3))).replace("-", "−");
  }
  const [digits, exponent] = x.toExponential(1).split("e");
  return `${digits.replace("-", "−").replace(".0", "")}·${powerOfTen(Number(exponent))}`;
}

export function powerOfTen(k) {
  return `10${[...String(k)].map((c) => (c === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[c])).join("")}`;
}

// What the figures show, in words.
export function summary(settings, results) {
  const { n } = settings;
  const sentences = [`${surfaces[settings.surface].title}, ${n} step${n === 1 ? "" : "s"}.`];
  for (const [name, { points, heights, end, trace }] of Object.entries(results)) {
    if (end !== null && n >= end) {
      sentences.push(`${titles[name]} diverged in step ${end}.`);
      continue;
    }
    const [x, y] = points[n].map(shown);
    sentences.push(`${titles[name]} is at x ${x}, y ${y}, height ${shown(heights[n])}.`);
    if (name === "gravity") {
      const { g, m } = trace[n];
      const steep = ["x", "y"].filter((_, i) => Math.abs(g[i]) > m);
      const angles = g.map((each) => Math.round(angle(each, m)));
      sentences.push(
        `The slope is ${angles[0]}° under x and ${angles[1]}° under y` +
          (steep.length ? `; ${steep.join(" and ")} beyond 45°, where steps shrink.` : "."),
      );
    }
  }
  return sentences.join(" ");
}

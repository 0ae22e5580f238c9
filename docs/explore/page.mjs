// The page: its controls, the start point, the clock, the address, and the theme.

import * as port from "../../gravity_conformance/vectors/examples/gravity.mjs";
import { judge } from "../../gravity_conformance/vectors/examples/judge.mjs";
import * as experiment from "./experiment.mjs";
import * as figures from "./figures.mjs";
import { surfaces } from "./surfaces.mjs";

const { LAST, checked, defaults, names, ranges, shown, titles } = experiment;
const $ = (id) => document.getElementById(id);
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const darkScheme = matchMedia("(prefers-color-scheme: dark)");

let settings; // what the address holds
let results; // of all optimizers that are on
let playing = false;

function element(tag, attributes = {}, ...children) {
  const made = Object.assign(document.createElement(tag), attributes);
  made.append(...children);
  return made;
}

// Changing a setting

function set(changes) {
  settings = { ...settings, ...changes };
  const keys = Object.keys(changes);
  if (keys.some((key) => !["n", "axes", "theme"].includes(key))) results = experiment.run(settings);
  draw();
}

// Takes a number that was typed; one that is wrong is replaced, and reported.
function take(key, input) {
  const text = input.value || (ranges[key]?.none ?? "");
  const { value, problem } = checked(key, text, settings.surface);
  $("problems").textContent = problem ?? "";
  set({ [key]: value });
  input.value = value ?? "";
}

function load(hash) {
  const { settings: found, problems } = experiment.parse(hash);
  $("problems").textContent = problems.join("\n");
  playing = false;
  settings = found;
  set(found);
}

// The controls of numbers

const sliders = {}; // functions that show the settings
const toSlider = ({ low, high, log }, x) =>
  log ? Math.log(x / low) / Math.log(high / low) : (x - low) / (high - low);
function fromSlider({ low, high, log, whole }, position) {
  if (!log) return Number((low + (high - low) * position).toFixed(whole ? 0 : 2));
  return Number((low * (high / low) ** position).toPrecision(2));
}

const typing = (input) => document.activeElement === input;

function numberField(key, { slider = true } = {}) {
  const range = () => experiment.rangeOf(key, settings.surface);
  const { symbol, title } = experiment.rangeOf(key, "bowl");
  const label = element("label", { htmlFor: key });
  if (symbol) label.append(element("b", { textContent: symbol }), " ");
  label.append(title);
  const number = element("input", { type: "number", id: key, step: "any" });
  number.addEventListener("change", () => take(key, number));
  const field = element("div", { className: "field" }, label, number);
  const bar = element("input", { type: "range", min: 0, max: 1, step: 0.005 });
  bar.setAttribute("aria-label", [symbol, title].join(" "));
  bar.addEventListener("input", () => set({ [key]: fromSlider(range(), bar.valueAsNumber) }));
  if (slider) field.append(bar);
  sliders[key] = () => {
    const value = settings[key];
    if (!typing(number)) number.value = value ?? "";
    if (value !== null) bar.value = toSlider(range(), value);
    bar.setAttribute("aria-valuetext", value === null ? ranges[key].none : shown(value));
    bar.disabled = number.disabled = value === null;
  };
  return field;
}

function buildControls() {
  for (const [key, { title }] of Object.entries(surfaces)) {
    $("surface").append(element("option", { value: key, textContent: title }));
  }
  $("surface").addEventListener("change", () => {
    const [x, y] = surfaces[$("surface").value].start;
    $("problems").textContent = "";
    set({ surface: $("surface").value, x, y });
  });
  const start = element("div", { className: "pair" });
  start.append(...["x", "y"].map((key) => numberField(key, { slider: false })));
  $("problem-settings").append(start, numberField("scale"));

  const follow = element("input", { type: "checkbox", id: "m-from-gradient" });
  follow.addEventListener("change", () => set({ m: follow.checked ? null : 1 }));
  sliders.follow = () => (follow.checked = settings.m === null);
  const another = element("button", { type: "button", textContent: "Another V₀" });
  another.addEventListener("click", () => set({ seed: (settings.seed + 1) % 2 ** 32 }));
  const seed = numberField("seed", { slider: false });
  seed.lastChild.before(another);
  $("gravity-settings").append(
    ...["rate", "alpha", "beta"].map((key) => numberField(key)),
    element("label", { className: "check" }, follow, " m from the gradient, 1/max|G|"),
    ...[numberField("m"), seed],
  );

  for (const name of names) {
    const box = element("input", { type: "checkbox", id: `on-${name}` });
    box.addEventListener("change", () => {
      const off = names.filter((each) =>
        each === name ? !box.checked : settings.off.includes(each),
      );
      set({ off });
    });
    const label = element("label");
    const sample = `<path class="trail ${name}" d="M1 6h24"/>`;
    label.innerHTML = ` <svg viewBox="0 0 26 12" aria-hidden="true">${sample}</svg> ${titles[name]}`;
    label.prepend(box);
    const row = element("div", { className: "optimizer" }, label);
    if (name !== "gravity") {
      const rate = element("input", { type: "number", id: name, step: "any", min: 0 });
      rate.addEventListener("change", () => take(name, rate));
      row.append(rate);
      rate.setAttribute("aria-label", ranges[name].title);
      sliders[name] = () => {
        if (!typing(rate)) rate.value = settings[name] ?? "";
        rate.placeholder = experiment.rateOf(settings, name);
      };
    }
    sliders[box.id] = () => (box.checked = !settings.off.includes(name));
    $("optimizers").append(row);
  }
}

// Drawing

function drawInto(id, figure) {
  const svg = $(id);
  svg.innerHTML = figure(
    { settings, results, surface: surfaces[settings.surface] },
    svg.clientWidth,
    svg.clientHeight,
  );
}

function draw() {
  const surface = surfaces[settings.surface];
  document.documentElement.dataset.theme = theme();
  $("theme").textContent = theme() === "dark" ? "Light theme" : "Dark theme";
  paintBands(surface);
  drawInto("paths", figures.surfaceFigure);
  drawInto("slopes", figures.slopesFigure);
  drawInto("curve", figures.curveFigure);
  drawInto("times", figures.timesFigure);

  const [left, top] = figures
    .projection(surface, $("stage").clientWidth)
    .to([settings.x, settings.y]);
  Object.assign($("start").style, { left: `${left}px`, top: `${top}px` });
  $("start").ariaValueNow = settings.x;
  $("start").ariaValueText = `x ${shown(settings.x)}, y ${shown(settings.y)}`;
  [$("start").ariaValueMin, $("start").ariaValueMax] = surface.view;
  const [a, b, c, d] = surface.view.map(shown);
  const formula =
    settings.scale === 1 ? surface.formula : `${shown(settings.scale)} (${surface.formula})`;
  $("surface-note").textContent =
    `${formula}; x from ${a} to ${b}, y from ${c} to ${d}. Drag the ring, the start.`;
  $("surface").value = settings.surface;
  $("axes").checked = settings.axes === "logarithmic";
  $("n").value = settings.n;
  $("n-shown").textContent = settings.n;
  $("play").textContent = playing ? "Pause" : "Play";
  Object.values(sliders).forEach((show) => show());
  later();
}

// What need not happen in every frame: the address, and the summary for readers and screen readers.
let timer;
function later() {
  clearTimeout(timer);
  timer = setTimeout(() => {
    const hash = experiment.format(settings);
    if (hash !== location.hash.slice(1)) history.replaceState(null, "", `#${hash}`);
    $("summary").textContent = experiment.summary(settings, results);
  }, 300);
}

// The surface, for some milliseconds of each frame, when it, its size or the theme has changed.
let painted = "";
function paintBands(surface) {
  const size = Math.min(
    Math.round($("stage").clientWidth * Math.min(devicePixelRatio, 2)),
    figures.LARGEST,
  );
  const wanted = [settings.surface, size, theme()].join();
  if (size === 0 || wanted === painted) return;
  painted = wanted;
  const canvas = $("bands");
  [canvas.width, canvas.height] = [size, size];
  const context = canvas.getContext("2d");
  const image = context.createImageData(size, size);
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => {
    const text = style.getPropertyValue(`--${name}`).trim();
    return [1, 3, 5].map((i) => parseInt(text.slice(i, i + 2), 16));
  };
  const colours = { low: colour("low"), high: colour("high"), contour: colour("contour") };
  const rows = (first) => {
    if (painted !== wanted) return; // another surface came between
    const start = performance.now();
    let done = first;
    while (done < size && performance.now() - start < 8) {
      const end = Math.min(done + figures.ROWS, size);
      figures.paint(image.data, size, surface, colours, done, end);
      done = end;
    }
    context.putImageData(image, 0, 0, 0, first, size, done - first);
    if (done < size) requestAnimationFrame(() => rows(done));
    else canvas.dataset.painted = wanted;
  };
  rows(0);
}

const theme = () =>
  settings.theme === "auto" ? (darkScheme.matches ? "dark" : "light") : settings.theme;

// The clock

let before = null; // the time of the last frame
let due = 0; // steps that the clock owes

function frame(now) {
  if (!playing) return;
  due += ((now - (before ?? now)) / 1000) * Number($("speed").value);
  before = now;
  const steps = Math.floor(due);
  due -= steps;
  if (steps > 0) set({ n: Math.min(settings.n + steps, LAST) });
  if (settings.n === LAST) pause();
  requestAnimationFrame(frame);
}

function play() {
  if (settings.n === LAST) set({ n: 0 });
  if (calm.matches) {
    set({ n: Math.min(settings.n + 50, LAST) }); // no motion: a jump
    return;
  }
  [playing, before, due] = [true, null, 0];
  draw();
  requestAnimationFrame(frame);
}

function goTo(n) {
  playing = false;
  set({ n });
}

const pause = () => goTo(settings.n);

// The start point

function moveStart(x, y) {
  const [left, right, bottom, top] = surfaces[settings.surface].view;
  const tidy = (value, low, high) => Number(Math.min(Math.max(value, low), high).toFixed(2));
  set({ x: tidy(x, left, right), y: tidy(y, bottom, top) });
}

let held = [0, 0]; // from the middle of the ring to where it is held

function dragTo(event) {
  const { left, top, width } = $("stage").getBoundingClientRect();
  const { from } = figures.projection(surfaces[settings.surface], width);
  moveStart(...from(event.clientX - left - held[0], event.clientY - top - held[1]));
}

function listen() {
  const start = $("start");
  const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
  start.addEventListener("keydown", (event) => {
    if (!(event.key in arrows)) return;
    event.preventDefault();
    const [left, right] = surfaces[settings.surface].view;
    const length = ((right - left) / 200) * (event.shiftKey ? 10 : 1);
    const [x, y] = arrows[event.key];
    moveStart(settings.x + x * length, settings.y + y * length);
  });
  // With a mouse or pen the start follows from anywhere; a finger must hold it, or tap: the picture
  // is as wide as a phone, which scrolls where it is touched.
  $("stage").addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || (event.pointerType === "touch" && event.target !== start)) return;
    $("stage").setPointerCapture(event.pointerId);
    const { left, top } = start.getBoundingClientRect();
    const middle = [left + start.clientWidth / 2, top + start.clientHeight / 2];
    held = event.target === start ? [event.clientX - middle[0], event.clientY - middle[1]] : [0, 0];
    dragTo(event);
  });
  $("stage").addEventListener("pointermove", (event) => {
    if ($("stage").hasPointerCapture(event.pointerId)) dragTo(event);
  });
  $("stage").addEventListener("click", (event) => {
    if (event.pointerType !== "touch" || event.target === start) return;
    held = [0, 0];
    dragTo(event);
  });

  $("play").addEventListener("click", () => (playing ? pause() : play()));
  $("step").addEventListener("click", () => goTo(Math.min(settings.n + 1, LAST)));
  $("reset").addEventListener("click", () => goTo(0));
  $("n").max = LAST;
  $("n").addEventListener("input", () => goTo($("n").valueAsNumber));
  $("axes").addEventListener("change", () =>
    set({ axes: $("axes").checked ? "logarithmic" : "linear" }),
  );
  $("theme").addEventListener("click", () => set({ theme: theme() === "dark" ? "light" : "dark" }));
  $("defaults").addEventListener("click", () => {
    $("problems").textContent = "";
    playing = false;
    set({ ...defaults(), theme: settings.theme });
  });
  $("copy").addEventListener("click", async () => {
    const address = `${location.href.split("#")[0]}#${experiment.format(settings)}`;
    history.replaceState(null, "", address);
    try {
      await navigator.clipboard.writeText(address);
      $("copied").textContent = "The link is on the clipboard.";
    } catch {
      $("copied").textContent = "The link is in the address bar.";
    }
  });
  $("check").addEventListener("click", () => {
    const { compared, lines } = judge(port, JSON.parse($("vectors").textContent));
    $("checked").textContent = `${compared} results compared, ${lines.length} wrong.`;
  });
  addEventListener("hashchange", () => load(location.hash));
  darkScheme.addEventListener("change", draw);
  new ResizeObserver(draw).observe(document.body);
}

settings = defaults();
buildControls();
listen();
load(location.hash);
if (calm.matches) $("play").title = "Jumps 50 steps, because your system asks for less motion.";

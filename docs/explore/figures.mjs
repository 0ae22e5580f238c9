// The figures as text of SVG, and the pixels of the surface. Nothing here needs a browser.

import { LAST, angle, powerOfTen, shown, titles } from "./experiment.mjs";

const AXES = ["x", "y"];
const clamp = (x, low, high) => Math.min(Math.max(x, low), high);
const round = (x) => Math.round(clamp(x, -1e5, 1e5) * 10) / 10;

// Maps numbers from `low` to `high` to pixels.
function scaleOf(low, high, from, to, log = false) {
  const f = log ? Math.log10 : (x) => x;
  const [a, slope] = [f(low), (to - from) / (f(high) - f(low))];
  return (x) => round(from + slope * (f(log ? Math.max(x, 1e-300) : x) - a));
}

// At most about 300 of the numbers from 0 to n, the last one included.
function thinned(n, limit = 300) {
  const stride = Math.max(1, Math.floor(n / limit));
  const indices = [];
  for (let i = 0; i < n; i += stride) indices.push(i);
  return [...indices, n];
}

const pathOf = (points) => points.map(([x, y], i) => `${i ? "L" : "M"}${x} ${y}`).join("");
const line = (x1, y1, x2, y2, name) =>
  `<line x1="${x1}" y1="${y1}" x2="${x2}" y2="${y2}" class="${name}"/>`;
const text = (x, y, words, name = "", anchor = "start") =>
  `<text x="${x}" y="${y}" class="${name}" text-anchor="${anchor}">${words}</text>`;
const path = (d, name) => `<path d="${d}" class="${name}"/>`;
const circle = (x, y, r, name) => `<circle cx="${x}" cy="${y}" r="${r}" class="${name}"/>`;
const rect = (x, y, width, tall, name) =>
  `<rect x="${x}" y="${y}" width="${round(width)}" height="${round(tall)}" class="${name}"/>`;

// Moves numbers apart until neighbours have a distance of `gap`.
function spread(wanted, gap, low, high) {
  const order = wanted.map((_, i) => i).sort((a, b) => wanted[a] - wanted[b]);
  const places = [...wanted];
  let least = low;
  for (const i of order) {
    places[i] = Math.max(places[i], least);
    least = places[i] + gap;
  }
  let most = high;
  for (const i of order.reverse()) {
    places[i] = Math.min(places[i], most);
    most = places[i] - gap;
  }
  return places;
}

// 1, 2 or 5 times a power of ten, the least that is not below x.
export function nice(x) {
  const power = 10 ** Math.floor(Math.log10(x));
  return [1, 2, 5, 10].map((k) => k * power).find((each) => each >= x * (1 - 1e-12));
}

function powersOfTen(low, high, stride = 1) {
  const ticks = [];
  const last = Math.log10(high) + 1e-9;
  for (let k = Math.ceil(Math.log10(low)); k <= last; k += stride) ticks.push(10 ** k);
  return ticks;
}

// 1. The surface

// The picture's coordinates of weights, and back.
export function projection({ view: [left, right, bottom, top] }, size) {
  const [x, y] = [scaleOf(left, right, 0, size), scaleOf(bottom, top, size, 0)];
  return {
    to: (w) => [x(w[0]), y(w[1])],
    from: (px, py) => [left + ((right - left) * px) / size, top - ((top - bottom) * py) / size],
  };
}

export const LARGEST = 900; // pixels of the surface
export const ROWS = 30; // that are painted at once
const BANDS = 14;

// Fills the rows from `first` to before `end` of RGBA pixels with bands of height, and with lines
// between them. Colours are [red, green, blue].
export function paint(pixels, size, surface, { low, high, contour }, first = 0, end = size) {
  const { view, value, minima, shade } = surface;
  const { from } = projection(surface, size);
  const lowest = value(...minima[0]);
  const level = (x, y) => Math.log1p(Math.max(value(x, y) - lowest, 0) / shade);
  const corners = [view[0], view[1]].flatMap((x) => [level(x, view[2]), level(x, view[3])]);
  const bands = BANDS / Math.max(...corners);
  const columns = Float64Array.from({ length: size + 1 }, (_, i) => from(i + 0.5, 0)[0]);
  const row = (j) => {
    const y = from(0, j + 0.5)[1];
    return columns.map((x) => bands * level(x, y));
  };
  let below = row(first);
  for (let j = first; j < end; j += 1) {
    const current = below;
    below = row(j + 1);
    for (let i = 0; i < size; i += 1) {
      const here = current[i];
      const slope = Math.abs(current[i + 1] - here) + Math.abs(below[i] - here) + 1e-9;
      const distance = Math.abs(here - Math.max(Math.round(here), 1)) / slope;
      const onLine = 0.55 * clamp(1.2 - distance, 0, 1);
      const band = Math.min(Math.floor(here) / BANDS, 1);
      const at = 4 * (j * size + i);
      for (let k = 0; k < 3; k += 1) {
        const colour = low[k] + (high[k] - low[k]) * band;
        pixels[at + k] = colour + (contour[k] - colour) * onLine;
      }
      pixels[at + 3] = 255;
    }
  }
}

// The part of the line from p to q that lies within `margin` of the picture, or null. Browsers are
// slow to dash lines of a million pixels.
function cut(p, q, size, margin = 20) {
  let [start, end] = [0, 1];
  for (const k of [0, 1]) {
    const way = q[k] - p[k];
    const [a, b] = [(-margin - p[k]) / way, (size + margin - p[k]) / way].sort((u, v) => u - v);
    if (way !== 0) [start, end] = [Math.max(start, a), Math.min(end, b)];
    else if (p[k] < -margin || p[k] > size + margin) return null;
  }
  const at = (part) => [0, 1].map((k) => round(p[k] + part * (q[k] - p[k])));
  return start < end ? [at(start), at(end)] : null;
}

// The visible part of a path.
function trail(pixels, size) {
  const inside = pixels.map(([x, y]) => x >= 0 && x <= size && y >= 0 && y <= size);
  let [d, pen] = ["", null];
  for (let i = 1; i < pixels.length; i += 1) {
    const [p, q] = [pixels[i - 1], pixels[i]];
    const part = inside[i - 1] && inside[i] ? [p, q] : cut(p, q, size);
    if (part === null) continue;
    if (part[0] !== pen) d += `M${part[0][0]} ${part[0][1]}`;
    d += `L${part[1][0]} ${part[1][1]}`;
    pen = part[1];
  }
  return d;
}

export function surfaceFigure({ settings, results, surface }, size) {
  const { to } = projection(surface, size);
  const parts = surface.minima.map((w) => {
    const [x, y] = to(w);
    return path(`M${x - 6} ${y}h12M${x} ${y - 6}v12`, "minimum");
  });
  const heads = [];
  for (const [name, { points, end }] of Object.entries(results).reverse()) {
    const last = end === null ? settings.n : Math.min(settings.n, end - 1);
    const pixels = points.slice(0, last + 1).map(to);
    parts.push(path(trail(pixels, size), `trail ${name}`));
    if (name === "gravity") {
      parts.push(path(pixels.map(([x, y]) => `M${x} ${y}h0`).join(""), "dots gravity"));
    }
    const [x, y] = pixels.at(-1);
    const at = [clamp(x, 8, size - 8), clamp(y, 8, size - 8)];
    const seen = clamp(x, 0, size) === x && clamp(y, 0, size) === y;
    const gone = !seen || (end !== null && settings.n >= end);
    heads.push({ name, at, words: gone ? `${titles[name]} left the picture` : titles[name], gone });
  }
  const wanted = heads.map(({ at }) => at[1] + 5);
  const places = spread(wanted, 19, 16, size - 8);
  heads.forEach(({ name, at: [x, y], words, gone }, i) => {
    if (!gone) parts.push(circle(x, y, name === "gravity" ? 8 : 5, `head ${name}`));
    const left = x > size - 110;
    const [anchor, place] = left ? ["end", x - 14] : ["start", x + 14];
    parts.push(text(place, round(places[i]), words, `name ${name}`, anchor));
  });
  return parts.join("");
}

// 2. The slope under each weight, and the step curve

// The slope under each weight as a plane with a ball on it, and an arrow as long as the step is,
// relative to the longest one, at 45°.
export function slopesFigure({ settings, results }, width, tall) {
  if (!results.gravity) return "";
  const { g, m } = results.gravity.trace[settings.n];
  const half = width / 2;
  const reach = Math.min(half * 0.4, tall * 0.26);
  const ground = round(tall / 2 + reach + 14);
  return AXES.map((axis, i) => {
    const theta = angle(g[i], m);
    const [cx, cy] = [round(half * (i + 0.5)), round(ground - reach - 20)];
    const uphill = Math.sign(g[i]) || 1;
    const step = round(-uphill * reach * Math.sin((theta * Math.PI) / 90));
    const tip = 5 * Math.sign(step);
    const arrow = `M${cx} ${ground}h${step}m${-tip} -4l${tip} 4l${-tip} 4`;
    const words = `${axis}: ${Math.round(theta)}°`;
    return [
      line(cx - reach, ground, cx + reach, ground, "grid"),
      `<g transform="translate(${cx} ${cy}) rotate(${round(-uphill * theta)})">`,
      line(-reach, 0, reach, 0, "plane"),
      circle(0, -11, 9.5, "ball"),
      "</g>",
      path(Math.abs(step) < 2 ? "" : arrow, "arrow"),
      text(cx, round(ground + 20), words, theta > 45 ? "steep" : "strong", "middle"),
    ].join("");
  }).join("");
}

export function curveFigure({ settings, results }, width, tall) {
  if (!results.gravity) {
    return text(width / 2, tall / 2, "Gravity is switched off", "muted", "middle");
  }
  const { g, m, zeta } = results.gravity.trace[settings.n];
  const log = settings.axes === "logarithmic";
  const box = { left: 52, right: width - 20, top: 12, bottom: tall - 36 };
  const largest = Math.max(...g.map(Math.abs));
  const edge = log ? 1000 : nice(Math.max(1.1 * largest, Math.min(3 * m, 4 * largest), 0.005));
  const start = log ? 0.001 : 0;
  const term = (x) => x / (1 + (x / m) * (x / m));
  const highest = log ? 10 : nice(1.15 * term(Math.min(m, edge)));
  const lowest = log ? 0.0001 : 0;
  const x = scaleOf(start, edge, box.left, box.right, log);
  const y = scaleOf(lowest, highest, box.bottom, box.top, log);
  const inside = (pixel) => clamp(pixel, box.left, box.right);
  const samples = Array.from({ length: 161 }, (_, i) =>
    log ? start * (edge / start) ** (i / 160) : Math.max((edge * i * i) / 160 ** 2, 1e-12),
  );
  const parts = [];
  const mx = m < edge ? inside(x(m)) : box.right;
  const high = box.bottom - box.top;
  parts.push(
    `<clipPath id="clip">${rect(box.left, box.top, box.right - box.left, high, "")}</clipPath>`,
    rect(mx, box.top, box.right - mx, high, "falling"),
  );
  const xTicks = log ? powersOfTen(start, edge) : [0, edge / 4, edge / 2, (3 * edge) / 4, edge];
  const yTicks = log ? powersOfTen(lowest, highest) : [0, highest / 2, highest];
  for (const tick of xTicks) {
    parts.push(line(x(tick), box.top, x(tick), box.bottom, "grid"));
    parts.push(text(x(tick), box.bottom + 16, tickText(tick, log), "tick", "middle"));
  }
  for (const tick of yTicks) {
    parts.push(line(box.left, y(tick), box.right, y(tick), "grid"));
    parts.push(text(box.left - 6, y(tick) + 4, tickText(tick, log), "tick", "end"));
  }
  parts.push(
    text((box.left + box.right) / 2, tall - 4, "size of the gradient, |g|", "tick", "middle"),
    text(box.left + 6, box.top + 12, "ζ", "strong"),
  );
  const curve = (f, name) => path(pathOf(samples.map((each) => [x(each), y(f(each))])), name);
  parts.push(
    `<g clip-path="url(#clip)">`,
    curve((each) => each, "trail sgd"),
    curve(term, "trail gravity"),
    m < edge ? line(mx, box.top, mx, box.bottom, "limit") : "",
    "</g>",
  );
  const ends = Math.min(highest, edge); // of the line of gradient descent
  const [side, at] =
    x(ends) > box.right - 130
      ? ["end", x(ends) - 12]
      : ["start", Math.max(x(ends), box.left + 14) + 8];
  const height = Math.max(y(ends) + (m < edge ? 12 : -8), box.top + 12);
  parts.push(text(at, height, "gradient descent", "strong sgd", side));
  if (m < edge && !g.some((each) => x(Math.abs(each)) > box.right - 80)) {
    const over = y(term(samples.find((each) => x(each) > box.right - 62))) - 6;
    const place = clamp(over, box.top + 12, box.bottom - 26);
    parts.push(text(box.right - 2, place, "Gravity", "strong gravity", "end"));
  }
  if (m < edge && m > start) {
    const right = mx > (box.left + box.right) / 2;
    const [anchor, place] = right ? ["end", mx - 6] : ["start", mx + 6];
    parts.push(text(place, box.bottom - 8, `m = ${shown(m)}: 45°`, "strong", anchor));
  }
  const marks = g.map((each, i) => [
    inside(x(Math.abs(each))),
    clamp(y(Math.abs(zeta[i])), box.top, box.bottom),
  ]);
  const wanted = marks.map(([, py]) => py - 10);
  const places = spread(wanted, 17, box.top + 12, box.bottom - 6);
  marks.forEach(([px, py], i) => {
    parts.push(line(px, py, px, box.bottom, "drop"));
    parts.push(i === 0 ? circle(px, py, 6, "mark") : rect(px - 5.5, py - 5.5, 11, 11, "mark"));
    const [anchor, place] = px > box.right - 30 ? ["end", px - 12] : ["start", px + 11];
    parts.push(text(place, round(places[i]), AXES[i], "strong", anchor));
  });
  return parts.join("");
}

function tickText(tick, log) {
  const k = Math.round(Math.log10(tick));
  return log && Math.abs(k) > 2 ? powerOfTen(k) : shown(tick);
}

// 3. Over time

// The steps that the axis shows.
export const span = (n) => [50, 100, 200, 500, LAST].find((each) => each >= n);

export function timesFigure({ settings, results }, width, tall) {
  const { n, beta } = settings;
  const box = { left: 52, right: width - 96, bottom: tall - 22 };
  const last = span(n);
  const x = scaleOf(0, last, box.left, box.right);
  const strip = (tall - 22) / 4;
  const parts = [];
  const axis = (top, bottom, low, high, ticks, log, title) => {
    const y = scaleOf(low, high, bottom, top, log);
    for (const tick of ticks) {
      parts.push(line(box.left, y(tick), box.right, y(tick), "grid"));
      parts.push(text(box.left - 6, y(tick) + 4, tickText(tick, log), "tick", "end"));
    }
    parts.push(text(box.left + 4, top - 5, title, "tick"));
    return (value) => clamp(y(value), top, bottom);
  };
  const series = (values, end, y, name) => {
    const points = thinned(end).map((i) => [x(i), y(values(i))]);
    parts.push(path(pathOf(points), `trail ${name}`));
    return points.at(-1);
  };
  const named = (ends, top, bottom) => {
    const wanted = ends.map(({ at }) => at[1] + 4);
    const places = spread(wanted, 15, top + 4, bottom + 4);
    ends.forEach(({ at, words, name }, i) => {
      parts.push(text(at[0] + 6, round(places[i]), words, `name ${name}`));
    });
  };

  // The heights take two of the four strips.
  const all = Object.entries(results);
  const highest = Math.max(...all.map(([, { heights }]) => heights[0]), 1e-5);
  const decade = 10 ** Math.ceil(Math.log10(highest));
  const floor = decade * 1e-6;
  let [top, bottom] = [20, 2 * strip - 14];
  const decades = powersOfTen(floor, decade, 2);
  let y = axis(top, bottom, floor, decade, decades, true, "height above the minimum");
  const lasts = all.map(([name, { heights, end }]) => {
    const stop = end === null ? n : Math.min(n, end - 1);
    return { name, at: series((i) => heights[i], stop, y, name), words: titles[name] };
  });
  named(lasts, top, bottom);

  if (results.gravity) {
    const { trace } = results.gravity;
    [top, bottom] = [2 * strip + 22, 3 * strip - 12];
    y = axis(top, bottom, 0, 1, [0, 0.5, 1], false, "β̂, the weight of the old velocity");
    const at = series((i) => trace[i].beta_hat, n, y, "gravity");
    parts.push(line(box.left, y(beta), at[0], y(beta), "limit"));
    const words = `β̂ ${shown(trace[n].beta_hat)}`;
    named([{ name: "gravity", at, words }], top, bottom);

    [top, bottom] = [3 * strip + 22, 4 * strip - 6];
    const sizes = thinned(last).flatMap((i) => trace[i].before.map(Math.abs));
    const most = nice(Math.max(...sizes, 1e-6));
    y = axis(top, bottom, -most, most, [-most, 0, most], false, "V, the velocity");
    const ends = AXES.map((name, k) => ({
      name: `of-${name}`,
      at: series((i) => trace[i].before[k], n, y, `of-${name}`),
      words: `V of ${name}`,
    }));
    named(ends, top, bottom);
  }
  for (const tick of [0, last / 2, last]) {
    parts.push(text(x(tick), tall - 6, tick === last ? `${tick} steps` : tick, "tick", "middle"));
  }
  parts.push(line(x(n), 8, x(n), box.bottom, "now"));
  return parts.join("");
}

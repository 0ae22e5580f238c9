// Measures the arithmetic of a frame of the page:
//
//     node docs/explore/measure.mjs
//
// A frame here runs all optimizers anew, as after a change of a setting, and writes all figures at
// their longest. The surface is painted only when it, the theme or the size changes, ROWS rows at
// once, for 8 ms of each frame. Times are those of the processor, so that other processes do not
// count. They include the engine's threads that compile, mostly in the first times, and collect
// garbage.

import { LAST, defaults, run } from "./experiment.mjs";
import * as figures from "./figures.mjs";
import { surfaces } from "./surfaces.mjs";

const { LARGEST: size, ROWS } = figures;
const pixels = new Uint8ClampedArray(4 * size * size);
const colours = { low: [255, 255, 255], high: [90, 110, 140], contour: [30, 40, 60] };

function timed(task, repeats) {
  const times = [];
  for (let i = 0; i < repeats; i += 1) {
    const start = process.cpuUsage();
    task(i);
    const { user, system } = process.cpuUsage(start);
    times.push((user + system) / 1000);
  }
  const longest = Math.max(...times);
  const median = times.sort((a, b) => a - b)[Math.floor(repeats / 2)];
  return `median ${median.toFixed(1)} ms, longest ${longest.toFixed(1)} ms`;
}

for (const [name, surface] of Object.entries(surfaces)) {
  const settings = { ...defaults(name), n: LAST };
  const frame = () => {
    const state = { settings, surface, results: run(settings) };
    figures.surfaceFigure(state, 600);
    figures.slopesFigure(state, 150, 260);
    figures.curveFigure(state, 400, 260);
    figures.timesFigure(state, 560, 420);
  };
  const rows = (i) => {
    const first = (i * ROWS) % size;
    figures.paint(pixels, size, surface, colours, first, Math.min(first + ROWS, size));
  };
  const times = [timed(frame, 20), timed(frame, 200), timed(rows, 50)];
  console.log(`${name}`);
  console.log(`  all figures, the first 20 times: ${times[0]}`);
  console.log(`  all figures, 200 times:          ${times[1]}`);
  console.log(`  ${ROWS} rows of the surface:          ${times[2]}`);
}

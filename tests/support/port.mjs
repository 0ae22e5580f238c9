// A port of Gravity to JavaScript, written from the README of the vectors and run on them.
//
//     node port.mjs FOLDER            prints one line per wrong result; exit status 0 or 1
//
// It reads the decimals, because JavaScript has no reader for hexadecimal floats.

import { readFileSync, readdirSync } from "node:fs";
import { join } from "node:path";

const folder = process.argv[2];
const mistake = process.argv[3]; // "mean_for_max", to see that the vectors can fail
let compared = 0;
const wrong = [];

const round = { float32: Math.fround, float64: (x) => x };
const read = (x) => (typeof x === "string" ? Number(x) : x); // "NaN", "Infinity"
const numbers = (tensor, dtype) => tensor.decimal.map((x) => round[dtype](read(x)));

function compare(computed, expected, where) {
  computed.forEach((x, i) => {
    compared += 1;
    const want = read(expected.decimal[i]);
    const tolerance = expected.tolerance === undefined ? 0 : expected.tolerance[i];
    const right =
      tolerance === null || Object.is(x, want) || x === want ||
      (Number.isFinite(want) && Math.abs(x - want) <= tolerance);
    if (!right) wrong.push(`${where}, element ${i}: ${x} where ${want} is expected`);
  });
}

const single = ({ decimal, tolerance }) => ({ decimal: [decimal], tolerance: [tolerance] });

function coefficients(t, beta, fl) {
  return [fl((beta * t + 1) / (t + 2)), fl(((1 - beta) * t + 1) / (t + 2))];
}

function update(g, v, w, t, lr, beta, decay, fl) {
  const sizes = g.map(Math.abs); // Math.max propagates NaN
  const mean = sizes.reduce((a, b) => a + b, 0) / sizes.length;
  const largest = mistake === "mean_for_max" ? fl(mean) : Math.max(0, ...sizes);
  const [old, next] = coefficients(t, beta, fl);
  g.forEach((x, i) => {
    const s = fl(x * largest);
    const zeta = fl(x / fl(1 + fl(s * s)));
    v[i] = fl(fl(old * v[i]) + fl(next * zeta));
    w[i] = fl(fl(1 - fl(lr * decay)) * w[i]);
    w[i] = fl(w[i] - fl(fl(lr) * v[i]));
  });
}

function threefry(key, counter) {
  const keys = [...key, (0x1bd11bda ^ key[0] ^ key[1]) >>> 0];
  let [x, y] = [(counter[0] + keys[0]) >>> 0, (counter[1] + keys[1]) >>> 0];
  for (let n = 0; n < 20; n += 1) {
    const bits = [13, 15, 26, 6, 17, 29, 16, 24][n % 8];
    x = (x + y) >>> 0;
    y = (((y << bits) | (y >>> (32 - bits))) ^ x) >>> 0;
    if (n % 4 === 3) {
      const i = (n + 1) / 4;
      x = (x + keys[i % 3]) >>> 0;
      y = (y + keys[(i + 1) % 3] + i) >>> 0;
    }
  }
  return [x, y];
}

const run = {
  coefficients(test, dtype, where) {
    const [old, next] = coefficients(test.t, test.beta.decimal, round[dtype]);
    compare([old], single(test.expected.beta_hat), `${where} beta_hat`);
    compare([next], single(test.expected.one_minus_beta_hat), `${where} one_minus_beta_hat`);
  },
  update(test, dtype, where) {
    const { beta, weight_decay: decay, maximize } = test.hyperparameters;
    const v = test.tensors.map((tensor) => numbers(tensor.V, dtype));
    const w = test.tensors.map((tensor) => numbers(tensor.W, dtype));
    test.steps.forEach((step, n) => {
      step.G.forEach((tensor, i) => {
        const g = numbers(tensor, dtype).map((x) => (maximize ? -x : x));
        const lr = step.learning_rate.decimal;
        update(g, v[i], w[i], step.t, lr, beta.decimal, decay.decimal, round[dtype]);
        const expected = step.expected.tensors[i];
        compare(v[i], expected.V, `${where} V of tensor ${i} after step ${n}`);
        compare(w[i], expected.W, `${where} W of tensor ${i} after step ${n}`);
      });
    });
  },
  threefry(test, dtype, where) {
    const output = threefry(test.key.map(Number), test.counter.map(Number));
    compare(output, { decimal: test.expected.output.map(Number) }, `${where} output`);
  },
  initial_velocity(test, dtype, where) {
    const { expected, first_element: first, elements } = test;
    const words = (n) => [Math.floor(n / 2 ** 32), n % 2 ** 32];
    const seed = [Number(test.seed.slice(0, 10)), Number(`0x${test.seed.slice(10)}`)];
    const key = threefry(seed, [0, test.index]);
    compare(key, { decimal: expected.key.map(Number) }, `${where} key`);
    const ks = [];
    for (let i = first; i < first + elements; i += 1) {
      const y = threefry(key, words(Math.floor(i / 4)))[Math.floor((i % 4) / 2)];
      ks.push(i % 2 ? y >>> 16 : y & 0xffff);
    }
    compare(ks, { decimal: expected.k }, `${where} k`);
    const [fl, lr] = [round[dtype], test.learning_rate.decimal];
    const std = test.velocity_std?.decimal ?? (lr === 0 ? 0 : test.alpha.decimal / lr);
    compare([std], single(expected.std), `${where} std`);
    const v = numbers(expected.z, "float32").map((z) => fl(fl(std) * z)); // Φ⁻¹ is not ported
    compare(v, { decimal: numbers(expected.V, dtype) }, `${where} V`);
  },
};

for (const file of readdirSync(folder).filter((name) => name.endsWith(".json"))) {
  for (const group of JSON.parse(readFileSync(join(folder, file), "utf8")).groups ?? []) {
    if (group.dtype !== "uint32" && !(group.dtype in round)) continue; // JavaScript has no halves
    for (const test of group.tests) run[group.type](test, group.dtype, `${file} ${test.id}:`);
  }
}
wrong.forEach((line) => console.log(line));
console.log(`${compared} results compared, ${wrong.length} wrong`);
process.exit(wrong.length ? 1 : 0);

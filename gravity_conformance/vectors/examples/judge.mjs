// Compares what a port computes with the vectors. It needs no Node and no browser.

import { fromJson, toJson } from "./numbers.mjs";

const same = (x, y) => x === y || (Number.isNaN(x) && Number.isNaN(y));
const single = ({ decimal, tolerance }) => ({ decimal: [decimal], tolerance: [tolerance] });

// `port` has the functions of gravity.mjs. `files` are pairs of a file's name and its object.
// Returns one line per wrong result, and what `gravity vectors --explain` reads. The port reads the
// decimals, because JavaScript has no reader for hexadecimal floats. It does not save its state, so
// a reload changes nothing.
export function judge(port, files) {
  const results = { schema: "results_schema.json", failed: [], passed: [], gradients_changed: [], got: {} };
  const lines = [];
  let compared = 0;
  let wrong = []; // of the current test

  const numbers = (tensor, dtype) => tensor.decimal.map((x) => port.round[dtype](fromJson(x)));

  function compare(computed, expected, what) {
    computed.forEach((x, i) => {
      compared += 1;
      const want = fromJson(expected.decimal[i]);
      const tolerance = expected.tolerance === undefined ? 0 : expected.tolerance[i];
      const near = Number.isFinite(want) && Math.abs(x - want) <= tolerance;
      if (tolerance !== null && !near && !same(x, want)) {
        wrong.push(`${what}, element ${i}: ${x} where ${want} is expected`);
      }
    });
  }

  // Each function runs a test, compares the results, and returns what it computed.
  const run = {
    coefficients(test, dtype) {
      const [old, next] = port.coefficients(test.t, test.beta.decimal, dtype);
      compare([old], single(test.expected.beta_hat), "beta_hat");
      compare([next], single(test.expected.one_minus_beta_hat), "one_minus_beta_hat");
      return { beta_hat: toJson(old), one_minus_beta_hat: toJson(next) };
    },
    update(test, dtype, name) {
      const { beta, weight_decay: decay, maximize } = test.hyperparameters;
      const v = test.tensors.map((tensor) => numbers(tensor.V, dtype));
      const w = test.tensors.map((tensor) => numbers(tensor.W, dtype));
      const first = test.steps[0].G.map((tensor) => numbers(tensor, dtype));
      const steps = test.steps.map((step, n) => {
        const grads = test.same_gradients ? first : step.G.map((tensor) => numbers(tensor, dtype));
        const found = {};
        const tensors = grads.map((g, i) => {
          const before = [...g];
          const after = port.update({
            ...{ w: w[i], v: v[i], g, t: step.t, lr: step.learning_rate.decimal, dtype },
            ...{ beta: beta.decimal, weight_decay: decay.decimal, maximize },
          });
          [w[i], v[i]] = [after.w, after.v];
          compare(v[i], step.expected.tensors[i].V, `V of tensor ${i} after step ${n}`);
          compare(w[i], step.expected.tensors[i].W, `W of tensor ${i} after step ${n}`);
          if (!before.every((x, k) => same(x, g[k]))) {
            wrong.push(`step ${n} changed the gradient of tensor ${i}`);
            if (!results.gradients_changed.includes(name)) results.gradients_changed.push(name);
          }
          found.beta_hat = toJson(after.beta_hat);
          found.one_minus_beta_hat = toJson(after.one_minus_beta_hat);
          const { m, zeta } = after;
          return { m: toJson(m), zeta: zeta.map(toJson), V: v[i].map(toJson), W: w[i].map(toJson) };
        });
        return { ...found, tensors };
      });
      return { steps };
    },
    threefry(test) {
      const found = port.threefry(test.key.map(Number), test.counter.map(Number));
      compare(found, { decimal: test.expected.output.map(Number) }, "output");
      return {};
    },
    initial_velocity(test, dtype) {
      const { expected, first_element: first, elements } = test;
      const seed = [Number(test.seed.slice(0, 10)), Number(`0x${test.seed.slice(10)}`)];
      const key = port.tensorKey(seed, test.index);
      compare(key, { decimal: expected.key.map(Number) }, "key");
      compare(port.halfwords(key, first, elements), { decimal: expected.k }, "k");
      const drawn = wrong.length === 0;
      const std = port.velocityStd({
        learning_rate: test.learning_rate.decimal,
        alpha: test.alpha.decimal,
        velocity_std: test.velocity_std?.decimal,
      });
      compare([std], single(expected.std), "std");
      const fl = port.round[dtype];
      const v = numbers(expected.z, "float32").map((z) => fl(fl(std) * z)); // Φ⁻¹ is not ported
      compare(v, { decimal: numbers(expected.V, dtype) }, "V");
      return drawn ? { V: v.map(toJson) } : {}; // z is not that of a wrong k
    },
  };

  for (const [file, { groups = [] }] of files) {
    for (const group of groups) {
      if (group.dtype !== "uint32" && !(group.dtype in port.round)) continue; // no half types here
      for (const test of group.tests) {
        const name = `${file}/${test.id}`;
        wrong = [];
        const got = run[group.type](test, group.dtype, name);
        lines.push(...wrong.map((line) => `${name}: ${line}`));
        if (wrong.length) results.got[name] = got;
        results[wrong.length ? "failed" : "passed"].push(name);
      }
    }
  }
  return { compared, lines, results };
}

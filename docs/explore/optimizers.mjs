// The optimizers. Each function returns one that maps weights and gradient to the next weights:
// (w, g) → w. Gravity's arithmetic is the port that runs on the conformance vectors.

import * as port from "../../gravity_conformance/vectors/examples/gravity.mjs";

export const MOMENTUM = 0.9;
const [BETA1, BETA2, EPSILON] = [0.9, 0.999, 1e-8]; // of Adam

// W ← W − η G
export function sgd(rate) {
  return (w, g) => w.map((x, i) => x - rate * g[i]);
}

// V ← μ V + G;  W ← W − η V
export function momentum(rate) {
  let v = [0, 0];
  return (w, g) => {
    v = g.map((x, i) => MOMENTUM * v[i] + x);
    return w.map((x, i) => x - rate * v[i]);
  };
}

// M ← β₁ M + (1 − β₁) G;  S ← β₂ S + (1 − β₂) G²;  both divided by their bias
export function adam(rate) {
  let [m, s, t] = [[0, 0], [0, 0], 0];
  return (w, g) => {
    t += 1;
    m = g.map((x, i) => BETA1 * m[i] + (1 - BETA1) * x);
    s = g.map((x, i) => BETA2 * s[i] + (1 - BETA2) * x * x);
    const [free1, free2] = [1 - BETA1 ** t, 1 - BETA2 ** t];
    return w.map((x, i) => x - (rate * (m[i] / free1)) / (Math.sqrt(s[i] / free2) + EPSILON));
  };
}

// Gravity. `trace` gets one object per step: the gradient, m, ζ, β̂, and V before and after.
export function gravity({ rate, alpha, beta, m = null, seed }, trace) {
  let [v, t] = [initialVelocity(port.velocityStd({ learning_rate: rate, alpha }), seed, 2), 0];
  return (w, g) => {
    t += 1;
    const step = { w, v, g, t, lr: rate, beta, dtype: "float64" };
    const after = m === null ? port.update(step) : fixedUpdate(step, m);
    trace.push({ g, before: v, ...after });
    v = after.v;
    return after.w;
  };
}

// The update with a given m, in place of 1 / max|G|.
function fixedUpdate({ w, v, g, t, lr, beta }, m) {
  const [beta_hat, next] = port.coefficients(t, beta, "float64");
  const zeta = g.map((x) => x / (1 + (x / m) * (x / m)));
  const velocity = v.map((x, i) => beta_hat * x + next * zeta[i]);
  return { w: w.map((x, i) => x - lr * velocity[i]), v: velocity, beta_hat, m, zeta };
}

// V₀ of the first tensor, with n elements. The seed is below 2³².
export function initialVelocity(std, seed, n) {
  const ks = port.halfwords(port.tensorKey([0, seed], 0), 0, n);
  return ks.map((k) => std * Math.fround(normalQuantile((k + 0.5) / 65536)));
}

// Φ, the distribution function of the normal distribution (Marsaglia 2004), for |z| < 6.
function normal(z) {
  let [sum, term] = [z, z];
  for (let k = 3; Math.abs(term) > 1e-18; k += 2) {
    term *= (z * z) / k;
    sum += term;
  }
  return 0.5 + (sum * Math.exp((-z * z) / 2)) / Math.sqrt(2 * Math.PI);
}

// Φ⁻¹, by bisection.
export function normalQuantile(p) {
  let [low, high] = [-6, 6];
  for (let n = 0; n < 60; n += 1) {
    const z = (low + high) / 2;
    if (normal(z) < p) low = z;
    else high = z;
  }
  return (low + high) / 2;
}

// Gravity in JavaScript: a port by the README of the vectors, for float32 and float64.
//
// Numbers are float64 in JavaScript. The function `round` of a dtype rounds the result of every
// operation, so the results have the bits of that dtype.

export const round = { float32: Math.fround, float64: (x) => x };

export function coefficients(t, beta, dtype) {
  const fl = round[dtype];
  return [fl((beta * t + 1) / (t + 2)), fl(((1 - beta) * t + 1) / (t + 2))];
}

// Math.max(...g) is short, but it overflows the stack for large tensors. Math.max propagates NaN.
export function maxAbs(g) {
  return g.reduce((largest, x) => Math.max(largest, Math.abs(x)), 0);
}

export function gradientTerm(g, dtype) {
  const [fl, largest] = [round[dtype], maxAbs(g)];
  return g.map((x) => {
    const s = fl(x * largest);
    return fl(x / fl(1 + fl(s * s)));
  });
}

// Returns the next W and V of one tensor, and β̂, 1 − β̂, m and ζ. The arguments stay as they are.
export function update({ w, v, g, t, lr, beta, weight_decay = 0, maximize = false, dtype }) {
  const fl = round[dtype];
  const gradient = maximize ? g.map((x) => -x) : g;
  const [old, next] = coefficients(t, beta, dtype);
  const zeta = gradientTerm(gradient, dtype);
  const velocity = v.map((x, i) => fl(fl(old * x) + fl(next * zeta[i])));
  const [keep, rate] = [fl(1 - lr * weight_decay), fl(lr)];
  const weights = w.map((x, i) => fl(fl(keep * x) - fl(rate * velocity[i])));
  return {
    w: weights,
    v: velocity,
    beta_hat: old,
    one_minus_beta_hat: next,
    m: fl(1 / maxAbs(gradient)),
    zeta,
  };
}

// Threefry-2x32 with 20 rounds: the hash of two 32-bit words under two others.
export function threefry(key, counter) {
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

// σ, in float64.
export function velocityStd({ learning_rate, alpha, velocity_std }) {
  return velocity_std ?? (learning_rate === 0 ? 0 : alpha / learning_rate);
}

// The key of the tensor with that index. The seed is two 32-bit words, high and low.
export const tensorKey = (seed, index) => threefry(seed, [0, index]);

// The halfword of each element; V₀ is σ Φ⁻¹((k + ½)/65536).
export function halfwords(key, first, elements) {
  const words = (n) => [Math.floor(n / 2 ** 32), n % 2 ** 32];
  const ks = [];
  for (let i = first; i < first + elements; i += 1) {
    const y = threefry(key, words(Math.floor(i / 4)))[Math.floor((i % 4) / 2)];
    ks.push(i % 2 ? y >>> 16 : y & 0xffff);
  }
  return ks;
}

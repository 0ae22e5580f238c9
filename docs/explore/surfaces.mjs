// The surfaces: functions of two weights, x and y, with their gradients.
//
// `view` is the part that is drawn: x from view[0] to view[1], y from view[2] to view[3]. `start` is
// where a run begins, and `minima` are the lowest points. Up to the height `shade` the bands of the
// picture are about evenly spaced, above it by the logarithm.

const square = (x) => x * x;
const edge = (x) => 1 / (1 + Math.exp(-12 * (x - 1)));

export const surfaces = {
  bowl: {
    title: "Bowl",
    formula: "x² + y²",
    ...{ view: [-2, 2, -2, 2], start: [-1.2, 0.9], minima: [[0, 0]], shade: 1 },
    value: (x, y) => x * x + y * y,
    gradient: (x, y) => [2 * x, 2 * y],
  },
  ravine: {
    title: "Ravine",
    formula: "x²/8 + 2y²",
    ...{ view: [-4, 4, -4, 4], start: [-3.2, 0.9], minima: [[0, 0]], shade: 1 },
    value: (x, y) => (x * x) / 8 + 2 * y * y,
    gradient: (x, y) => [x / 4, 4 * y],
  },
  rosenbrock: {
    title: "Rosenbrock’s valley",
    formula: "(1 − x)²/100 + (y − x²)²",
    ...{ view: [-2, 2, -1, 3], start: [-1.2, 1], minima: [[1, 1]], shade: 0.01 },
    value: (x, y) => square(1 - x) / 100 + square(y - x * x),
    gradient: (x, y) => [(x - 1) / 50 - 4 * x * (y - x * x), 2 * (y - x * x)],
  },
  wall: {
    title: "Walls",
    formula: "x⁶ + y⁶",
    ...{ view: [-2, 2, -2, 2], start: [-1.5, 1.1], minima: [[0, 0]], shade: 0.1 },
    value: (x, y) => square(x * x * x) + square(y * y * y),
    gradient: (x, y) => [6 * x * square(x * x), 6 * y * square(y * y)],
  },
  cliff: {
    title: "Cliff",
    formula: "(x² + y²)/4 + 2/(1 + exp(12 − 12x))",
    ...{ view: [-3, 3, -3, 3], start: [2.6, 1.6], minima: [[-0.000294, 0]], shade: 0.5 },
    value: (x, y) => (x * x + y * y) / 4 + 2 * edge(x),
    gradient: (x, y) => [x / 2 + 24 * edge(x) * (1 - edge(x)), y / 2],
  },
  saddle: {
    title: "Saddle",
    formula: "x²/2 − y²/2 + y⁴/4",
    ...{ view: [-2, 2, -2, 2], start: [-1.5, 0], minima: [[0, -1], [0, 1]], shade: 0.5 },
    value: (x, y) => (x * x - y * y) / 2 + square(y * y) / 4,
    gradient: (x, y) => [x, y * y * y - y],
  },
};

// The height above the lowest point.
export function height({ value, minima }, x, y) {
  return Math.max(value(x, y) - value(...minima[0]), 0);
}

// Numbers in JSON: NaN, the infinities and −0 are strings, because JSON.stringify loses them.

const named = (x) => !Number.isFinite(x) || Object.is(x, -0);

export const toJson = (x) => (named(x) ? (Object.is(x, -0) ? "-0" : String(x)) : x);
export const fromJson = (x) => (typeof x === "string" ? Number(x) : x);

// Answers the requests of bridge.py with the port in gravity.mjs, until its input ends.

import { createInterface } from "node:readline";
import { update } from "./gravity.mjs";
import { fromJson, toJson } from "./numbers.mjs";

function answer(line) {
  const request = JSON.parse(line);
  for (const name of ["w", "v", "g"]) request[name] = request[name].map(fromJson);
  const { w, v } = update(request);
  return { w: w.map(toJson), v: v.map(toJson) };
}

for await (const line of createInterface({ input: process.stdin })) {
  let found;
  try {
    found = answer(line);
  } catch (error) {
    found = { error: String(error) };
  }
  process.stdout.write(`${JSON.stringify(found)}\n`);
}

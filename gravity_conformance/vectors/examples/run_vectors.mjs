// Runs the port in gravity.mjs on the vectors.
//
//     node run_vectors.mjs FOLDER [FAILED.json]
//
// It prints one line per wrong result, and its exit status is 0 or 1. FAILED.json is what
// `gravity vectors --explain` reads.

import { readFileSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import * as port from "./gravity.mjs";
import { judge } from "./judge.mjs";

const [folder, output] = process.argv.slice(2);
const names = readdirSync(folder).filter((name) => name.endsWith(".json"));
const read = (name) => JSON.parse(readFileSync(join(folder, name), "utf8"));
const { compared, lines, results } = judge(port, names.map((name) => [name, read(name)]));

lines.forEach((line) => console.log(line));
console.log(`${compared} results compared, ${lines.length} wrong`);
if (output !== undefined) writeFileSync(output, JSON.stringify(results));
process.exit(lines.length ? 1 : 0);

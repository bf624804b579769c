// What the library serves is what the source says, and small.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { gzipSync } from "node:zlib";

const js = new URL("..", import.meta.url).pathname;
const served = readFileSync(join(js, "pushlet.min.js"));

test("pushlet.min.js is made from pushlet.js", (t) => {
  const dir = mkdtempSync(join(tmpdir(), "pushlet-js-"));
  t.after(() => rmSync(dir, { recursive: true }));
  const built = join(dir, "pushlet.min.js");
  execFileSync("npm", ["run", "--silent", "build", "--", `--outfile=${built}`, "--log-level=error"], { cwd: js });
  assert.equal(readFileSync(built, "utf8"), String(served), "it is old: run make js");
});

test("it has at most 4 KB compressed", () => {
  const size = gzipSync(served, { level: 9 }).length;
  assert.ok(size <= 4096, `${size} bytes`);
});

// With a real server, real sockets, and the classes that Node.js has from npm.
import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import net from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { EventSource } from "eventsource";
import { WebSocket } from "ws";
import { Pushlet } from "../pushlet.js";

const dir = mkdtempSync(join(tmpdir(), "pushlet-js-"));
const program = join(dir, "server");
before(() => {
  const root = new URL("../..", import.meta.url).pathname;
  execFileSync("go", ["build", "-o", program, "./example/dual_protocol.go"], { cwd: root, stdio: "inherit" });
});
after(() => rmSync(dir, { recursive: true }));

/** A server in a process of its own, and a proxy before it that can be cut. */
async function serve(t) {
  let child;
  let port = 0;
  const start = () => {
    child = spawn(program, ["-addr", `127.0.0.1:${port}`], { stdio: ["ignore", "ignore", "pipe"] });
    return new Promise((resolve, reject) => {
      let log = "";
      child.on("error", reject).on("exit", () => reject(new Error(`the server has ended: ${log}`)));
      child.stderr.on("data", (chunk) => {
        log += chunk;
        const found = /Server started at http:\/\/[^:\s]+:(\d+)/.exec(log);
        if (found) resolve((port = Number(found[1])));
      });
    });
  };
  const stop = async (signal) => {
    if (child.exitCode == null && child.signalCode == null) {
      child.kill(signal);
      await once(child, "exit");
    }
  };
  await start();
  const sockets = new Set();
  const proxy = net.createServer((page) => {
    const server = net.connect(port, "127.0.0.1");
    for (const [from, to] of [[page, server], [server, page]]) {
      sockets.add(from);
      from.on("error", () => {}).on("close", () => {
        sockets.delete(from);
        to.destroy();
      });
      from.pipe(to);
    }
  });
  proxy.listen(0, "127.0.0.1");
  await once(proxy, "listening");
  t.after(async () => {
    proxy.close();
    for (const s of sockets) s.destroy();
    await stop("SIGKILL");
  });
  return {
    url: `http://127.0.0.1:${proxy.address().port}`,
    cut: () => sockets.forEach((s) => s.destroy()),
    kill: () => stop("SIGKILL"),
    end: () => stop("SIGTERM"),
    start,
    publish: async (topic, message) => {
      const path = topic == "*" ? "broadcast" : "send";
      const answer = await fetch(`http://127.0.0.1:${port}/${path}?${new URLSearchParams({ topic, message })}`);
      assert.equal(answer.status, 200);
      await answer.text();
    },
  };
}

/** Waits until ok() is true: for what should happen soon, on a busy machine too. */
async function until(what, ok) {
  for (const end = Date.now() + 30_000; !ok(); await new Promise((r) => setTimeout(r, 5))) {
    if (Date.now() > end) throw new Error(`in vain: ${what()}`);
  }
}

for (const kind of ["webSocket", "eventSource"]) {
  const connect = (t, { url }) => {
    const push = new Pushlet({
      WebSocket,
      EventSource,
      webSocket: `${url}/ws`,
      eventSource: `${url}/events`,
      transports: [kind],
      reconnect: [10, 100],
    });
    t.after(() => push.close());
    const follow = (topic) => {
      const list = [];
      push.subscribe(topic, (m) => list.push(m.data), { onLive: () => list.push("live"), onGap: (gap) => list.push(gap.reason) });
      return list;
    };
    return { push, follow };
  };

  test(`${kind}: thousands of messages while the network is cut`, { timeout: 120_000 }, async (t) => {
    const server = await serve(t);
    const { push, follow } = connect(t, server);
    const topics = ["a", "b/ü", "*"];
    const lists = topics.map(follow);
    await until(() => "live", () => lists.every((l) => l.length));
    const most = 900; // of a topic; history keeps 1000
    let cuts = 0;
    for (let n = 0; n < most; n++) {
      await Promise.all(topics.map((topic) => server.publish(topic, String(n))));
      if (n % 100 == 50) {
        server.cut();
        cuts++;
      }
      if (n % 100 == 80) await until(() => push.status, () => push.status == "open");
    }
    const want = ["live", ...Array.from({ length: most }, (_, n) => String(n))];
    for (const list of lists) {
      await until(() => `${list.length} of ${want.length}`, () => list.length >= want.length);
      assert.deepEqual(list, want);
    }
    assert.equal(cuts, 9);
  });

  test(`${kind}: a server that is killed, and one that is stopped`, { timeout: 120_000 }, async (t) => {
    const server = await serve(t);
    const { push, follow } = connect(t, server);
    const list = follow("a");
    await until(() => "live", () => list.length == 1);
    for (const end of [server.kill, server.end]) {
      await server.publish("a", "before");
      await until(() => list, () => list.at(-1) == "before");
      await end();
      await until(() => push.status, () => push.status != "open");
      await server.start();
      await until(() => list, () => list.at(-1) == "restarted"); // its history is in memory
      await server.publish("a", "after");
      await until(() => list, () => list.at(-1) == "after");
    }
    assert.deepEqual(list, ["live", "before", "restarted", "after", "before", "restarted", "after"]);
  });
}

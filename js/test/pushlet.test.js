// What pushlet.d.ts promises, in a world that the test moves by hand.
import assert from "node:assert/strict";
import { test } from "node:test";
import { Pushlet } from "../pushlet.js";
import { Clock, Server, network } from "./world.js";

/** A client, a server, and what the client has said. */
function start(t, options = {}, setUp = () => {}) {
  const clock = new Clock();
  const server = new Server();
  setUp(server);
  clock.install();
  const seen = { status: [], gaps: [], errors: [] };
  const push = new Pushlet({
    webSocket: "http://pushlet.test/ws",
    eventSource: "http://pushlet.test/events",
    onStatus: (status, wait) => seen.status.push(wait ? `${status} ${Math.round(wait)}` : status),
    onGap: (gap) => seen.gaps.push(gap),
    onError: (failure) => seen.errors.push(failure),
    ...network(server),
    ...options,
  });
  t.after(() => {
    push.close();
    clock.uninstall();
    assert.equal(clock.pending, 0, "timers are left after close");
    assert.equal(server.peers.size, 0, "connections are left after close");
  });
  /** Moves the time, and what is underway. */
  const run = async (ms = 1000) => {
    for (let done = 0; done < ms; done += 10) {
      await clock.advance(Math.min(10, ms - done));
      server.deliver();
    }
  };
  /** Follows a topic; what comes is in the list, "live" and gaps included. */
  const follow = (topic) => {
    const list = [];
    const stop = push.subscribe(topic, (m) => list.push(m.event == "message" ? Number(m.data) : `${m.event} ${m.data}`), {
      onLive: () => list.push("live"),
      onGap: (gap) => list.push(gap.reason),
      onError: (failure) => list.push(failure.message),
    });
    return Object.defineProperty(list, "stop", { value: stop }); // not enumerable: no part of what came
  };
  return { clock, server, push, seen, run, follow };
}

const one = (kind) => ({ transports: [kind] });
const kinds = ["webSocket", "eventSource"];

for (const kind of kinds) {
  test(`${kind}: topics, events, broadcasts`, async (t) => {
    const { server, push, run, follow, seen } = start(t, one(kind));
    assert.equal(push.status, "idle");
    const [a, b] = [follow("a"), follow("b")];
    assert.deepEqual(a, [], "nothing is called from within subscribe");
    await run();
    assert.equal(push.status, "open");
    const all = follow("*");
    server.publish("a");
    server.publish("b", "login");
    server.publish("*");
    server.publish("elsewhere");
    await run();
    const late = follow("c");
    await run();
    server.publish("c");
    server.publish("*");
    await run();
    assert.deepEqual(a, ["live", 0]);
    assert.deepEqual(b, ["live", "login 0"]);
    assert.deepEqual(late, ["live", 0]);
    assert.deepEqual(all.slice(-2), [0, 1]);
    assert.equal(all.filter((x) => x == "live").length, 1);
    assert.deepEqual(seen.gaps.concat(seen.errors), []);
    assert.ok(server.attempts.length <= (kind == "webSocket" ? 1 : 3), "one connection");
  });

  test(`${kind}: a message has what was published`, async (t) => {
    const { server, push, run } = start(t, one(kind));
    const messages = [];
    push.subscribe("a", (m) => messages.push(m));
    await run();
    server.publish("a", "login");
    await run();
    const { timestamp, ...rest } = messages[0];
    assert.deepEqual(rest, { topic: "a", event: "login", data: "0", id: "1-1" });
    assert.ok(Date.parse(timestamp) > 0);
  });

  test(`${kind}: resumes every topic where it was`, async (t) => {
    const { server, run, follow, seen } = start(t, one(kind));
    const [a, b, all] = [follow("a"), follow("b"), follow("*")];
    await run();
    server.publish("a");
    await run();
    for (let i = 0; i < 5; i++) {
      server.publish("a"); // what is underway gets lost
      for (const peer of [...server.peers]) peer.cut();
      server.publish("a");
      server.publish("b");
      server.publish("*");
      await run(20_000);
      server.publish("b");
    }
    await run();
    assert.deepEqual(a, ["live", 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
    assert.deepEqual(b, ["live", 0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    assert.deepEqual(all, ["live", 0, 1, 2, 3, 4]);
    assert.deepEqual(seen.gaps, []);
  });

  test(`${kind}: tells of a gap, and goes on behind it`, async (t) => {
    const { server, run, follow } = start(t, one(kind), (s) => (s.history = 2));
    const a = follow("a");
    await run();
    for (const peer of [...server.peers]) peer.cut();
    for (let i = 0; i < 5; i++) server.publish("a");
    await run(20_000);
    server.restart();
    server.publish("a");
    await run(20_000);
    assert.deepEqual(a, ["live", "trimmed", 3, 4, "restarted", 5]);
    server.restart();
    await run(20_000);
    for (const peer of [...server.peers]) peer.cut();
    await run(20_000);
    assert.deepEqual(a.slice(6), ["restarted"], "a gap is told once, also if nothing came after it");
  });

  test(`${kind}: a topic that is refused`, async (t) => {
    const { server, run, follow, push, seen } = start(t, one(kind), (s) => s.refused.add("private"));
    const [a, b] = [follow("a"), follow("private")];
    await run();
    push.subscribe("private", () => {});
    await run();
    server.publish("a");
    await run();
    assert.deepEqual(a, ["live", 0]);
    assert.deepEqual(b, ["not allowed"]);
    assert.deepEqual(seen.errors, [{ topic: "private", message: "not allowed" }]);
    b.stop();
    server.refused.clear();
    const again = follow("private");
    await run();
    assert.deepEqual(again, ["live"]);
  });

  test(`${kind}: all topics are refused`, async (t) => {
    const { server, run, follow, push } = start(t, one(kind), (s) => s.refused.add("private"));
    follow("private");
    await run();
    assert.equal(push.status, "idle");
    assert.equal(server.peers.size, 0);
    assert.equal(server.attempts.length, 1);
  });

  test(`${kind}: access that is withdrawn ends one topic`, async (t) => {
    const { server, run, follow } = start(t, one(kind));
    const [a, b] = [follow("a"), follow("b")];
    await run();
    server.refused.add("b");
    for (const peer of [...server.peers]) peer.cut();
    server.publish("a");
    await run(60_000);
    server.publish("a");
    await run();
    assert.deepEqual(a, ["live", 0, 1]);
    assert.deepEqual(b, ["live", "not allowed"]);
    for (const peer of [...server.peers]) peer.cut();
    await run(20_000);
    assert.ok(server.attempts.at(-1).url.searchParams.getAll("topic").includes("a"), "resumed by the URL again");
  });

  test(`${kind}: topics that are unavailable just now`, async (t) => {
    const { server, run, follow, push } = start(t, one(kind), (s) => (s.unavailable = true));
    const a = follow("a");
    await run(60_000);
    assert.ok(server.attempts.length < 12, "waits longer each time");
    assert.deepEqual(a, []);
    server.unavailable = false;
    await run(60_000);
    assert.deepEqual(a, ["live"]);
    assert.equal(push.status, "open");
  });

  test(`${kind}: the last topic goes while the connection is lost`, async (t) => {
    const { server, clock, run, follow, push } = start(t, one(kind));
    const [a, b] = [follow("a"), follow("b")];
    await run();
    b.stop();
    for (const peer of [...server.peers]) peer.cut();
    a.stop();
    await run(60_000);
    assert.equal(push.status, "idle");
    assert.equal(server.attempts.length, 1);
    assert.equal(clock.pending, 0);
  });

  test(`${kind}: broadcasts that are refused`, async (t) => {
    const { server, run, follow, seen } = start(t, one(kind), (s) => s.refused.add("*"));
    const a = follow("a");
    await run();
    server.publish("*");
    for (const peer of [...server.peers]) peer.cut();
    server.publish("a");
    await run(20_000);
    assert.deepEqual(seen.errors, [], "nobody asked for them");
    const asked = server.commands.flatMap((c) => c.topics ?? c.topic).concat(server.attempts.flatMap((x) => x.url.searchParams.getAll("topic")));
    assert.equal(asked.filter((topic) => topic == "*").length, 1, "not again and again");
    const all = follow("*");
    await run();
    server.publish("*");
    server.publish("a");
    await run();
    assert.deepEqual(a, ["live", 0, 1]);
    assert.deepEqual(all, ["not allowed"]);
    server.refused.clear();
    const again = follow("*");
    await run();
    server.publish("*");
    await run();
    assert.deepEqual(again, ["live", 2]);
  });

  test(`${kind}: broadcasts that are refused later, to a client with a user`, async (t) => {
    const { server, run, follow } = start(t, one(kind), (s) => (s.user = "ann"));
    const [mine, all] = [follow("@user"), follow("*")];
    await run();
    server.publish("*");
    await run();
    server.refused.add("*");
    for (const peer of [...server.peers]) peer.cut();
    server.publish("@user");
    await run(60_000);
    assert.deepEqual(mine, ["live", 0]);
    assert.deepEqual(all, ["live", 0, "not allowed"]);
  });

  test(`${kind}: too many topics`, async (t) => {
    const { run, follow } = start(t, one(kind), (s) => (s.maxTopics = 2));
    const lists = ["a", "b", "c"].map(follow);
    await run();
    assert.deepEqual(lists, [["live"], ["live"], ["more than 2 topics"]]);
  });

  test(`${kind}: what is for the user`, async (t) => {
    const { server, run, follow } = start(t, one(kind), (s) => (s.user = "ann"));
    const [a, mine, all] = [follow("a"), follow("@user"), follow("*")];
    await run();
    for (let i = 0; i < 3; i++) {
      server.publish("@user");
      server.publish("*");
      for (const peer of [...server.peers]) peer.cut();
      server.publish("@user");
      server.publish("*");
      await run(20_000);
    }
    assert.deepEqual([...new Set(mine)], ["live", 0, 1, 2, 3, 4, 5]);
    assert.equal(mine.length, 7, "each once");
    assert.deepEqual(all, mine);
    assert.deepEqual(a, ["live"]);
    mine.stop();
    await run();
    const again = follow("@user");
    await run();
    server.publish("@user");
    await run();
    assert.deepEqual(again, ["live", 6]);
  });

  test(`${kind}: unsubscribed is unsubscribed, and wanted anew is new`, async (t) => {
    const { server, run, follow, push } = start(t, one(kind));
    const [a, b] = [follow("a"), follow("b")];
    await run();
    server.publish("a");
    a.stop();
    a.stop(); // twice does nothing
    const again = follow("a"); // what was published before is not for it
    server.publish("b");
    await run();
    server.publish("a");
    await run();
    assert.deepEqual(a, ["live"]);
    assert.deepEqual(again, ["live", 1]);
    assert.deepEqual(b, ["live", 0]);
    b.stop();
    again.stop();
    await run();
    assert.equal(push.status, "idle");
    assert.equal(server.peers.size, 0);
    const back = follow("a");
    await run();
    assert.deepEqual(back, ["live"]);
  });

  test(`${kind}: several subscriptions to one topic`, async (t) => {
    const { server, run, follow } = start(t, one(kind));
    const first = follow("a");
    await run();
    const second = follow("a");
    await run();
    server.publish("a");
    await run();
    first.stop();
    server.publish("a");
    await run();
    assert.deepEqual(first, ["live", 0]);
    assert.deepEqual(second, ["live", 0, 1]);
    assert.equal(server.attempts.length, 1);
  });

  test(`${kind}: a connection that has died silently`, async (t) => {
    const { server, run, follow } = start(t, one(kind));
    const a = follow("a");
    await run();
    for (const peer of server.peers) peer.stalled = true;
    server.publish("a");
    await run(120_000);
    assert.deepEqual(a, ["live", 0]);
  });

  test(`${kind}: a server that is only silent`, async (t) => {
    const { server, run, follow } = start(t, one(kind));
    follow("a");
    for (let i = 0; i < 20; i++) {
      await run(30_000);
      server.beat();
    }
    assert.equal(server.attempts.length, 1);
  });

  test(`${kind}: a server that does not answer`, async (t) => {
    const { server, run, follow } = start(t, one(kind), (s) => (s.down[kind] = "silent"));
    const a = follow("a");
    await run(60_000);
    assert.ok(server.attempts.length >= 2, "gave up the first attempt");
    server.down[kind] = false;
    await run(60_000);
    assert.deepEqual(a, ["live"]);
  });

  test(`${kind}: hundreds of topics`, async (t) => {
    const { server, run, follow } = start(t, one(kind));
    const lists = Array.from({ length: 300 }, (_, i) => follow(`topic/${i}`));
    await run();
    assert.ok(server.commands.length < 20, `${server.commands.length} commands`);
    for (const peer of [...server.peers]) peer.cut();
    for (let i = 0; i < 300; i++) server.publish(`topic/${i}`);
    await run(20_000);
    assert.ok(server.commands.length < 20, `${server.commands.length} commands`);
    for (const list of lists) assert.deepEqual(list, ["live", 0]);
    const { length } = server.attempts.at(-1).url.href;
    assert.ok(kind == "eventSource" || length < 8000, `a URL of ${length} characters, where commands would do`);
  });
}

test("falls back to what works, and stays with it", async (t) => {
  for (const [broken, works] of [["webSocket", "eventSource"], ["eventSource", "webSocket"]]) {
    await t.test(works, async (t) => {
      const { server, run, follow } = start(t, { transports: [broken, works] }, (s) => (s.down[broken] = true));
      const a = follow("a");
      await run(20_000);
      assert.deepEqual(a, ["live"]);
      server.publish("a");
      await run();
      for (const peer of [...server.peers]) peer.cut();
      server.publish("a");
      await run(20_000);
      assert.deepEqual(a, ["live", 0, 1], "positions are good on both");
      assert.deepEqual(server.attempts.map((x) => x.kind), [broken, works, works]);
    });
  }
});

test("waits longer each time, at random, up to the longest", async (t) => {
  const { server, run, follow, seen } = start(t, { ...one("webSocket"), reconnect: [1000, 30000] }, (s) => (s.down.webSocket = true));
  follow("a");
  await run(600_000);
  const waits = seen.status.filter((s) => s.startsWith("waiting")).map((s) => Number(s.split(" ")[1]));
  const most = [3, 6, 12, 24, 30, 30, 30].map((s) => s * 1000);
  most.forEach((max, i) => assert.ok(waits[i] <= max && waits[i] >= max / 3, `wait ${i}: ${waits[i]}, at most ${max}`));
  assert.ok(new Set(waits).size > waits.length / 2, "at random");
  server.down.webSocket = false;
  await run(60_000);
  for (const peer of [...server.peers]) peer.cut();
  await run();
  assert.ok(Number(seen.status.at(-1).split(" ")[1]) <= 3000 || seen.status.at(-1) == "open", "and begins anew after a success");
});

test("wake tries at once", async (t) => {
  const { server, push, run, follow } = start(t, { reconnect: [3_600_000, 36_000_000] });
  const a = follow("a");
  await run();
  for (const peer of [...server.peers]) peer.cut();
  server.publish("a");
  await run();
  assert.equal(push.status, "waiting");
  push.wake();
  await run(100);
  assert.deepEqual(a, ["live", 0]);
});

test("wake notices a dead connection sooner", async (t) => {
  const { server, push, run, follow } = start(t);
  const a = follow("a");
  await run();
  for (const peer of server.peers) peer.stalled = true;
  server.publish("a");
  push.wake();
  await run(20_000); // without: idle and a third of it, 40 s
  assert.deepEqual(a, ["live", 0]);
});

test("the page's events: online, hidden and shown", async (t) => {
  const page = new EventTarget();
  const browser = new EventTarget();
  page.visibilityState = "visible";
  globalThis.document = page;
  globalThis.addEventListener = browser.addEventListener.bind(browser);
  t.after(() => {
    delete globalThis.document;
    delete globalThis.addEventListener;
  });
  const { server, push, run, follow, seen } = start(t, { pauseHidden: 60_000, reconnect: [3_600_000, 36_000_000] });
  const a = follow("a");
  await run();
  for (const peer of [...server.peers]) peer.cut();
  await run();
  assert.equal(push.status, "waiting");
  browser.dispatchEvent(new Event("online"));
  await run();
  assert.equal(push.status, "open");

  const show = (state) => {
    page.visibilityState = state;
    page.dispatchEvent(new Event("visibilitychange"));
  };
  show("hidden");
  await run(30_000);
  show("visible");
  await run(60_000);
  assert.equal(push.status, "open", "shown again in time");
  show("hidden");
  await run(61_000);
  assert.equal(push.status, "paused");
  assert.equal(server.peers.size, 0);
  server.publish("a");
  const b = follow("b");
  await run(60_000);
  assert.equal(push.status, "paused", "a new topic waits");
  show("visible");
  await run();
  assert.deepEqual(a, ["live", 0]);
  assert.deepEqual(b, ["live"]);
  assert.deepEqual(seen.gaps, []);
  push.close();
  const before = server.attempts.length;
  browser.dispatchEvent(new Event("online"));
  show("visible");
  await run();
  assert.equal(server.attempts.length, before, "closed is closed");
});

test("offline waits for the network", async (t) => {
  const line = { onLine: false };
  const before = Object.getOwnPropertyDescriptor(globalThis, "navigator");
  Object.defineProperty(globalThis, "navigator", { value: line, configurable: true });
  t.after(() => (before ? Object.defineProperty(globalThis, "navigator", before) : delete globalThis.navigator));
  const { server, push, run, follow } = start(t, {}, (s) => (s.down.webSocket = s.down.eventSource = true));
  follow("a");
  await run(25_000);
  assert.equal(server.attempts.length, 1, "does not try in vain");
  line.onLine = true;
  server.down.webSocket = false;
  push.wake();
  await run();
  server.down.eventSource = false;
  await run(30_000);
  assert.equal(push.status, "open");
});

test("addresses may be asked for, each time", async (t) => {
  let asked = 0;
  const webSocket = async () => {
    if (++asked == 2) throw new Error("no token");
    return `wss://pushlet.test/ws?token=${asked}`.replace("wss", "http");
  };
  const { server, run, follow, seen } = start(t, { webSocket, eventSource: false });
  const a = follow("a");
  await run();
  for (const peer of [...server.peers]) peer.cut();
  server.publish("a");
  await run(60_000);
  assert.deepEqual(a, ["live", 0]);
  assert.deepEqual(server.attempts.map((x) => x.url.searchParams.get("token")), ["1", "3"]);
  assert.deepEqual(seen.errors, [{ message: "Error: no token" }]);
});

test("given up while it connects", async (t) => {
  const { clock, server, push, run, follow } = start(t, one("webSocket"));
  const [a, b, c] = [follow("a"), follow("b"), follow("c")];
  await run();
  for (const peer of [...server.peers]) peer.cut();
  while (push.status == "waiting") await clock.advance(1); // it takes 5 ms to connect
  assert.equal(push.status, "connecting");
  a.stop(); // its position is in the URL already
  b.stop();
  const again = follow("b");
  server.publish("a");
  server.publish("b");
  await run();
  server.publish("b");
  await run();
  assert.deepEqual(a, ["live"]);
  assert.deepEqual(again, ["live", 1]);
  const [peer] = server.peers;
  assert.deepEqual([...peer.topics].sort(), ["*", "b", "c"]);
  assert.deepEqual(c, ["live"]);
  assert.equal(server.attempts.length, 2);
});

test("a callback that throws is in nobody's way", async (t) => {
  const { clock, server, push, run, follow } = start(t);
  push.subscribe("a", () => {
    throw new Error("mine");
  });
  const a = follow("a");
  await run();
  server.publish("a");
  server.deliver();
  await assert.rejects(async () => clock.advance(1), /mine/); // for the console
  await run();
  server.publish("a");
  server.deliver();
  await assert.rejects(async () => clock.advance(1), /mine/);
  assert.deepEqual(a, ["live", 0, 1]);
});

test("close from within a callback", async (t) => {
  const { server, push, run, follow } = start(t);
  const got = [];
  push.subscribe("a", (m) => {
    got.push(m.data);
    push.close();
  });
  const other = follow("a");
  await run();
  server.publish("a");
  server.publish("a");
  await run();
  assert.deepEqual(got, ["0"]);
  assert.deepEqual(other, ["live"]);
  assert.equal(push.status, "closed");
  assert.throws(() => push.subscribe("b", () => {}), /closed/);
});

test("what a connection that was given up still brings", async (t) => {
  const sockets = [];
  const { server, run, follow } = start(t, one("webSocket"), (s) => (s.onSocket = (socket) => sockets.push(socket)));
  const a = follow("a");
  await run();
  for (const peer of server.peers) peer.stalled = true;
  server.publish("a");
  await run(120_000);
  assert.equal(sockets.length, 2);
  sockets[0].onmessage({ data: server.message("a", 0) });
  assert.deepEqual(a, ["live", 0]);
});

test("what is no Pushlet", async (t) => {
  const { server, push, run, follow } = start(t, one("webSocket"));
  follow("a");
  await run();
  for (const peer of server.peers) peer.send("<html>");
  await run();
  assert.equal(push.status, "waiting");
});

test("bad topics and options throw", (t) => {
  const { push } = start(t);
  for (const topic of ["", "/", "\0", "a\nb", "\u0085", "x".repeat(256), "ü".repeat(128), "@user/ann", 7, undefined, null]) {
    assert.throws(() => push.subscribe(topic, () => {}), TypeError, JSON.stringify(topic));
  }
  assert.throws(() => push.subscribe("\ud800", () => {}), Error, "half a character");
  push.subscribe("ü".repeat(127), () => {})();
  for (const times of [{ idle: 0 }, { idle: Infinity }, { reconnect: [-1, 5] }, { reconnect: [1, NaN] }, { pauseHidden: 2 ** 31 }, { pauseHidden: "soon" }]) {
    assert.throws(() => new Pushlet(times), TypeError, JSON.stringify(times));
  }
  assert.throws(() => new Pushlet({ webSocket: false, eventSource: false }), TypeError);
  assert.throws(() => new Pushlet({ share: "/pushlet.js", webSocket: () => "/ws" }), TypeError);
});

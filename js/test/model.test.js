// Random runs: whatever becomes of connections, server and page, each subscription gets each
// message once and in order, or is told of a gap. PUSHLET_JS_SEED=n repeats a run, PUSHLET_JS_RUNS=n
// makes more.
import assert from "node:assert/strict";
import { test } from "node:test";
import { Pushlet } from "../pushlet.js";
import { Clock, Server, network, random } from "./world.js";

const topics = ["a", "b", "c", "private", "*", "@user"];

/** A subscription, and what it may expect. */
class Follower {
  live = false;
  least = 0; // what comes must not be before it
  next = -1; // the message that must come next; -1: any
  owed = Infinity; // from this one on all must have come in the end
  ended = false;

  constructor(world, topic) {
    const { push, server } = world;
    this.topic = topic;
    this.world = world;
    const fail = (why) => {
      throw new Error(`${topic}: ${why}`);
    };
    const guarded = (fn) => (value) => {
      try {
        if (this.ended) fail("called after it was ended");
        fn(value);
      } catch (err) {
        world.failure ??= err;
      }
    };
    this.stop = push.subscribe(topic, guarded((m) => {
      const n = Number(m.data);
      if (m.topic != topic) fail(`a message of ${m.topic}`);
      if (!this.live) fail(`message ${n} before it was live`);
      if (this.next >= 0 && n != this.next) fail(`message ${n}, want ${this.next}`);
      if (n < this.least) fail(`message ${n} again`);
      if (this.next < 0 && n > this.owed) fail(`message ${n}, and not ${this.owed}`);
      world.received++;
      this.next = n + 1;
      this.least = n + 1;
    }), {
      onLive: guarded(() => {
        if (this.live) fail("live twice");
        this.live = true;
        this.owed = Math.min(this.owed, server.log(topic).messages);
      }),
      onGap: guarded((gap) => {
        if (gap.topic != topic) fail(`a gap of ${gap.topic}`);
        if (world.lossless && gap.reason != "not_resumable") fail(`a gap, ${gap.reason}, where nothing was lost`);
        world.gaps++;
        this.next = -1;
        this.owed = server.log(topic).messages;
      }),
      onError: guarded(() => (this.ended = this.refused = true)),
    });
  }

  end() {
    this.stop();
    this.ended = true;
  }

  /** In the end, with everything working, nothing may be missing. */
  check() {
    const { messages } = this.world.server.log(this.topic);
    if (!this.live) throw new Error(`${this.topic}: never live`);
    if (this.next < 0 ? this.owed < messages : this.next != messages) {
      throw new Error(`${this.topic}: next is ${this.next} of ${messages}, owed from ${this.owed}`);
    }
  }
}

async function runOnce(seed) {
  const dice = random(seed);
  const clock = new Clock();
  const server = new Server();
  const world = { server, received: 0, gaps: 0, lossless: dice.below(3) > 0 };
  if (!world.lossless) server.history = 1 + dice.below(6);
  if (dice.below(2)) server.user = "ann";
  if (dice.below(4) == 0) server.refused.add("*");
  const transports = dice.of([["webSocket"], ["eventSource"], ["webSocket", "eventSource"], ["eventSource", "webSocket"]]);
  clock.install();
  Math.random = dice.next;
  const page = Object.assign(new EventTarget(), { visibilityState: "visible" });
  globalThis.document = page;
  try {
    world.push = new Pushlet({
      webSocket: dice.below(2) ? "http://pushlet.test/ws" : async () => "http://pushlet.test/ws",
      eventSource: "http://pushlet.test/events",
      transports,
      reconnect: [100, 5000],
      idle: 10_000,
      pauseHidden: dice.below(2) ? 3000 : undefined,
      onStatus: () => {},
      onGap: () => {},
      onError: () => {},
      ...network(server),
    });
    server.heartbeat = 5000;
    let followers = [];
    const steps = {
      8: () => server.publish(dice.of(topics)),
      6: () => server.deliver(1 + dice.below(4)),
      5: () => clock.advance(dice.below(50)),
      4: () => {
        const topic = dice.of(topics);
        if (topic != "@user" || server.user) followers.push(new Follower(world, topic));
      },
      3: () => followers.splice(dice.below(followers.length), 1)[0]?.end(),
      2: () => dice.of([...server.peers])?.cut(),
      1: () => dice.of([
        () => clock.advance(dice.below(20_000)),
        () => server.beat(),
        () => {
          server.unavailable = !server.unavailable;
        },
        () => world.push.wake(),
        () => {
          for (const peer of server.peers) peer.stalled = true;
        },
        () => {
          server.down[dice.of(transports)] = dice.of([true, false, "silent"]);
        },
        () => {
          page.visibilityState = dice.of(["visible", "hidden"]);
          page.dispatchEvent(new Event("visibilitychange"));
        },
        () => {
          const topic = dice.of(["private", "*"]);
          if (!server.refused.delete(topic)) server.refused.add(topic);
        },
        () => {
          if (!world.lossless) server.restart();
        },
      ])(),
    };
    const bag = Object.entries(steps).flatMap(([n, step]) => Array(Number(n)).fill(step));
    for (let i = 40 + dice.below(200); i > 0 && !world.failure; i--) await dice.of(bag)();

    // All is well again.
    server.down = {};
    server.unavailable = false;
    for (const peer of [...server.peers]) if (peer.stalled) peer.cut();
    page.visibilityState = "visible";
    page.dispatchEvent(new Event("visibilitychange"));
    for (let i = 0; i < 300; i++) {
      await clock.advance(100);
      server.deliver();
      if (i % 40 == 0) server.beat();
    }
    followers = followers.filter((f) => !f.refused);
    if (!world.failure) for (const f of followers) f.check();
    if (world.failure) throw world.failure;
    assert.ok(server.peers.size <= 1, "one connection");
    for (const f of followers) f.end();
    await clock.settle();
    assert.equal(server.peers.size, 0, "a connection for nobody");
    world.push.close();
    assert.equal(clock.pending, 0, "timers are left");
  } catch (err) {
    throw new Error(`PUSHLET_JS_SEED=${seed}: ${err.message}`, { cause: err });
  } finally {
    world.push?.close();
    clock.uninstall();
    delete globalThis.document;
  }
  return world;
}

test("random runs", async (t) => {
  if (process.env.PUSHLET_JS_SEED) {
    await runOnce(Number(process.env.PUSHLET_JS_SEED));
    return;
  }
  const first = Math.floor(Math.random() * 2 ** 31);
  const total = { received: 0, gaps: 0 };
  const runs = Number(process.env.PUSHLET_JS_RUNS ?? 1000);
  for (let i = 0; i < runs; i++) {
    const { received, gaps } = await runOnce(first + i);
    total.received += received;
    total.gaps += gaps;
  }
  t.diagnostic(`${runs} runs, ${total.received} messages received, ${total.gaps} gaps`);
  assert.ok(total.received > runs && total.gaps > runs / 20);
});

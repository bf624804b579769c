// A clock, a network and a server that a test moves by hand, so that a day takes no time and every
// run can be repeated.

/** Numbers from a seed: mulberry32. */
export function random(seed) {
  const next = () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let x = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    x = (x + Math.imul(x ^ (x >>> 7), 61 | x)) ^ x;
    return ((x ^ (x >>> 14)) >>> 0) / 2 ** 32;
  };
  return { next, below: (n) => Math.floor(next() * n), of: (list) => list[Math.floor(next() * list.length)] };
}

/** Time that stands still until it is moved. It takes the place of the global timers. */
export class Clock {
  now = 1_700_000_000_000;
  #timers = new Map();
  #last = 0;
  #real;

  install() {
    const { setTimeout, clearTimeout, setInterval, clearInterval, setImmediate } = globalThis;
    this.#real = { setTimeout, clearTimeout, setInterval, clearInterval, dateNow: Date.now, setImmediate, random: Math.random };
    globalThis.setTimeout = (fn, wait = 0) => this.#add(fn, wait, 0);
    globalThis.setInterval = (fn, every) => this.#add(fn, every, Math.max(1, every));
    globalThis.clearTimeout = globalThis.clearInterval = (id) => this.#timers.delete(id);
    Date.now = () => this.now;
  }

  uninstall() {
    const { dateNow, random, ...timers } = this.#real;
    Object.assign(globalThis, timers);
    Date.now = dateNow;
    Math.random = random;
  }

  #add(fn, wait, every) {
    const id = ++this.#last;
    this.#timers.set(id, { at: this.now + Math.max(0, wait), fn, every });
    return id;
  }

  /** How many timers are set. */
  get pending() {
    return this.#timers.size;
  }

  /** Lets promises settle, without moving the time. */
  settle() {
    return new Promise((resolve) => this.#real.setImmediate(resolve));
  }

  /** Moves the time, and calls what is due, in order. */
  async advance(ms) {
    const end = this.now + ms;
    await this.settle();
    for (;;) {
      let first;
      for (const [id, t] of this.#timers) if (t.at <= end && (!first || t.at < first.at)) first = { id, ...t };
      if (!first) break;
      this.now = Math.max(this.now, first.at);
      if (first.every) this.#timers.get(first.id).at = this.now + first.every;
      else this.#timers.delete(first.id);
      first.fn();
      await this.settle();
    }
    this.now = end;
  }
}

const frame = (topic, event, data, id) =>
  JSON.stringify({ ...(topic && { topic }), event, data, timestamp: new Date(Date.now()).toISOString(), ...(id && { id }) });

/** A server that keeps what Pushlet promises of its wire, and a network that keeps nothing. */
export class Server {
  logs = new Map(); // topic → {messages, first: index of the oldest that is kept}
  lineage = 1; // another after a restart
  history = Infinity; // messages a topic keeps
  refused = new Set(); // topics that WithAuthorize does not allow
  maxTopics = Infinity;
  user = ""; // of every client
  heartbeat = 30_000;
  unavailable = false; // Redis does not answer
  down = { webSocket: false, eventSource: false };
  attempts = []; // what was asked for: {kind, url}
  commands = []; // what came
  peers = new Set(); // connections that are up
  onSocket; // is told of each WebSocket of the page

  log(topic) {
    if (!this.logs.has(topic)) this.logs.set(topic, { messages: 0, first: 0 });
    return this.logs.get(topic);
  }

  publish(topic, event = "message") {
    const log = this.log(topic);
    const n = log.messages++;
    log.first = Math.max(log.first, log.messages - this.history);
    for (const peer of this.peers) if (peer.follows(topic)) peer.send(this.message(topic, n, event));
    return n;
  }

  message = (topic, n, event = "message") => frame(topic, event, String(n), this.id(n + 1));
  id = (n) => `${this.lineage}-${n}`;

  /** The process dies, and another begins with nothing. */
  restart() {
    for (const peer of [...this.peers]) peer.cut();
    this.lineage++;
    for (const log of this.logs.values()) log.first = log.messages;
  }

  /** A moment in which heartbeats are due. */
  beat() {
    for (const peer of this.peers) peer.beat?.();
  }

  /** Reads what is underway, in the order in which it was sent. */
  deliver(most = Infinity) {
    for (const peer of [...this.peers]) peer.deliver(most);
  }
}

/** One connection, as the server has it; subclasses are what the page has. */
class Peer {
  topics = new Set();
  queue = []; // underway to the page
  commands = []; // underway to the server
  stalled = false; // half open: nothing arrives any more, in neither direction

  constructor(server, kind, url) {
    this.server = server;
    this.kind = kind;
    this.url = new URL(url);
    server.attempts.push({ kind, url: this.url });
  }

  follows(topic) {
    return topic == "*" ? this.topics.size > 0 : this.topics.has(topic);
  }

  send(text) {
    this.queue.push(text);
  }

  deliver(most) {
    for (let n = 0; n < most && this.commands.length && !this.stalled && this.server.peers.has(this); n++) this.command(this.commands.shift());
    for (let n = 0; n < most && this.queue.length && !this.stalled && this.server.peers.has(this); n++) this.receive(this.queue.shift());
  }

  subscribe(topic, since) {
    const { server } = this;
    if (server.unavailable) return this.send(frame(topic, "pushlet.error", "pushlet: unavailable"));
    if (server.refused.has(topic)) return this.send(frame(topic, "pushlet.error", "not allowed"));
    if (topic == "@user" && !server.user) return this.send(frame(topic, "pushlet.error", "this client has no user"));
    const ordinary = [...this.topics].filter((t) => t != "*" && t != "@user");
    if (topic != "*" && topic != "@user" && !this.topics.has(topic) && ordinary.length >= server.maxTopics) {
      return this.send(frame(topic, "pushlet.error", `more than ${server.maxTopics} topics`));
    }
    this.topics.add(topic);
    const log = server.log(topic);
    let from = log.messages;
    if (since) {
      const [lineage, n] = since.split("-").map(Number);
      this.send(frame(topic, "pushlet.subscribed", "", since));
      from = n;
      if (lineage != server.lineage || n < log.first) {
        from = log.first;
        this.send(frame(topic, "pushlet.gap", lineage == server.lineage ? "trimmed" : "restarted", server.id(from)));
      }
    } else {
      this.send(frame(topic, "pushlet.subscribed", "", server.id(from)));
    }
    for (let n = from; n < log.messages; n++) this.send(server.message(topic, n));
  }

  /** What the URL asks for, each topic with where it is to begin; the broadcast log first. */
  wishes() {
    const topics = this.url.searchParams.getAll("topic");
    const since = this.url.searchParams.getAll("since");
    if (topics.length != since.length) throw new Error(`one since for each topic: ${this.url}`);
    return topics.map((t, i) => [t, since[i]]).sort((a, b) => (b[0] == "*") - (a[0] == "*"));
  }

  join() {
    this.server.peers.add(this);
  }

  leave() {
    this.server.peers.delete(this);
    this.queue = [];
  }
}

/** Classes for the options WebSocket and EventSource of a client. */
export function network(server) {
  class ServerWebSocket extends Peer {
    readyState = 0;
    constructor(url, protocol) {
      super(server, "webSocket", url);
      if (protocol != "pushlet.text" || this.url.protocol != "ws:") throw new Error(`${protocol} ${url}`);
      setTimeout(() => this.#open(), 5);
    }
    #open() {
      if (this.readyState != 0) return;
      const wishes = this.wishes();
      if (server.down.webSocket == "silent") return;
      if (server.down.webSocket || wishes.some(([topic]) => server.refused.has(topic))) return this.cut();
      this.join();
      this.readyState = 1;
      if (server.user && !wishes.some(([topic]) => topic == "@user")) wishes.push(["@user", ""]);
      for (const [topic, since] of wishes) this.subscribe(topic, since);
      this.onopen?.();
    }
    command({ action, topic, topics = [topic], since }) {
      if (action == "ping") return this.send(frame("", "pushlet.pong", ""));
      if (topics.length > server.maxTopics) return this.send(frame("", "pushlet.error", `more than ${server.maxTopics} topics`));
      for (const t of topics) {
        if (action == "subscribe") {
          this.subscribe(t, since[t]);
        } else if (t == "@user") {
          this.send(frame(t, "pushlet.error", "it cannot be unsubscribed from"));
        } else {
          this.topics.delete(t);
          this.send(frame(t, "pushlet.unsubscribed", ""));
        }
      }
    }
    receive(text) {
      this.onmessage?.({ data: text });
    }
    cut() {
      if (this.readyState == 3) return;
      this.readyState = 3;
      this.leave();
      this.onerror?.({});
      this.onclose?.({});
    }
    close() {
      this.readyState = 3;
      this.leave();
    }
  }
  // What the page sends goes another way than what the server sends.
  class PageWebSocket {
    constructor(url, protocol) {
      const peer = new ServerWebSocket(url, protocol);
      peer.onopen = () => this.onopen?.();
      peer.onmessage = (e) => this.onmessage?.(e);
      peer.onclose = () => this.onclose?.({});
      peer.onerror = () => this.onerror?.({});
      this.peer = peer;
      server.onSocket?.(this);
    }
    get readyState() {
      return this.peer.readyState;
    }
    send(text) {
      const command = JSON.parse(text);
      server.commands.push(command);
      this.peer.commands.push(command);
    }
    close() {
      const { queue } = this.peer;
      this.peer.close();
      // As some do that are no browser: the page hears of what had come already.
      queueMicrotask(() => queue.forEach((text) => this.onmessage?.({ data: text })));
    }
  }

  class PageEventSource extends Peer {
    #listeners = new Map();
    constructor(url) {
      super(server, "eventSource", url);
      setTimeout(() => this.#open(), 5);
    }
    #open() {
      if (this.closed) return;
      const wishes = this.wishes();
      if (this.url.searchParams.get("format") != "json") throw new Error(`format: ${this.url}`);
      if (server.down.eventSource == "silent") return;
      if (server.down.eventSource) return this.cut();
      this.join();
      this.send({ beat: String(server.heartbeat) });
      if (server.user && !wishes.some(([topic]) => topic == "@user")) wishes.push(["@user", ""]);
      for (const [topic, since] of wishes) this.subscribe(topic, since);
    }
    beat() {
      this.send({ beat: "" });
    }
    addEventListener(name, fn) {
      this.#listeners.set(name, fn);
    }
    receive(text) {
      if (typeof text == "string") this.onmessage?.({ data: text });
      else this.#listeners.get("pushlet.heartbeat")?.({ data: text.beat });
    }
    cut() {
      if (this.closed) return;
      this.leave();
      this.onerror?.({});
    }
    close() {
      this.closed = true;
      this.leave();
    }
  }
  return { WebSocket: PageWebSocket, EventSource: PageEventSource };
}

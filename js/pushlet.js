// Pushlet's client for browsers: many topics on one connection, over WebSocket or, where that
// does not get through, EventSource. It reconnects by itself, resumes every topic where it was,
// and loses nothing silently. One module, no dependencies. The contract is in pushlet.d.ts.

const all = "*"; // the broadcast log, which everybody follows who follows a topic
const user = "@user"; // what is for the user of the connection, whom the server knows

/** What an application uses: who wants what. How it comes is the business of the backend. */
export class Pushlet {
  status = "idle";
  #options;
  #topics = new Map(); // name → {live, handlers}
  #backend; // null once closed
  #stopListening = new AbortController();

  constructor(options = {}) {
    this.#options = options;
    const tell = (kind, value, more) => this.#tell(kind, value, more);
    const setUp = { webSocket: "/ws", eventSource: "/events", reconnect: [1000, 30000], idle: 30000, ...options };
    for (const ms of [setUp.idle, ...setUp.reconnect, setUp.pauseHidden ?? 1]) {
      // A longer timer would ring at once.
      if (!(ms > 0 && ms < 2 ** 31)) throw new TypeError(`pushlet: ${ms} milliseconds`);
    }
    this.#backend = sharable(setUp) ? new Shared(setUp, tell) : new Connection(setUp, tell);
    const listening = { signal: this.#stopListening.signal };
    globalThis.addEventListener?.("online", () => this.wake(), listening);
    const page = globalThis.document;
    const look = () => this.#backend?.setVisible(page.visibilityState != "hidden");
    page?.addEventListener("visibilitychange", look, listening);
    if (page) look();
  }

  subscribe(topic, onMessage, { onLive, onGap, onError } = {}) {
    if (!this.#backend) throw new Error("pushlet: closed");
    checkTopic(topic);
    const handler = { onMessage, onLive, onGap, onError };
    let t = this.#topics.get(topic);
    if (!t) {
      t = { live: false, handlers: new Set() };
      this.#topics.set(topic, t);
      this.#backend.follow(topic);
    } else if (t.live) {
      queueMicrotask(() => t.handlers.has(handler) && call(onLive));
    }
    t.handlers.add(handler);
    return () => {
      if (t.handlers.delete(handler) && !t.handlers.size && this.#topics.get(topic) == t) {
        this.#topics.delete(topic);
        this.#backend?.unfollow(topic);
      }
    };
  }

  wake() {
    this.#backend?.wake();
  }

  close() {
    this.#stopListening.abort();
    this.#topics.clear();
    this.#backend?.close();
    this.#backend = null;
  }

  // What the backend says: "status", and of a topic "live", "message", "gap" and "error".
  #tell(kind, value, more) {
    const { onStatus, onGap, onError } = this.#options;
    if (kind == "status") {
      this.status = value;
      call(onStatus, value, more);
      return;
    }
    const t = this.#topics.get(value.topic);
    const handlers = t ? [...t.handlers] : [];
    if (kind == "live" && t) t.live = true;
    if (kind == "error") {
      this.#topics.delete(value.topic);
      if (!t) call(onError ?? console.warn, value);
    }
    for (const h of handlers) {
      if (!this.#backend || !t.handlers.has(h)) continue; // ended since, by another
      if (kind == "message") call(h.onMessage, value);
      if (kind == "live") call(h.onLive);
      if (kind == "gap") call(h.onGap ?? onGap ?? console.warn, value);
      if (kind == "error") call(h.onError ?? onError ?? console.warn, value);
    }
  }
}

function call(fn, ...args) {
  try {
    fn?.(...args);
  } catch (err) {
    setTimeout(() => { throw err; }); // for the console, and not in the way of the others
  }
}

// What the server refuses without saying which topic it means must not get there.
function checkTopic(topic) {
  if (topic != all && topic != user) {
    const size = typeof topic == "string" && encodeURIComponent(topic).replace(/%../g, "x").length;
    if (!size || size > 255 || topic == "/" || /^@user\/|[\0-\x1f\x7f-\x9f]/.test(topic)) {
      throw new TypeError(`pushlet: invalid topic ${JSON.stringify(topic)}`);
    }
  }
}

// ----- one connection

/** A connection, over and over again. */
class Connection {
  #options;
  #tell;
  #topics = new Map(); // name → {since, wanted, live}
  #link = null; // the one whose frames count
  #retry; // the timer of the next attempt; undefined: none is due
  #watch; // the timer that looks whether the server is there
  #pause; // the timer that counts how long the page is hidden
  #paused = false;
  #attempt = 0; // how many have failed in a row
  #transport = 0; // which one is next
  #byCommand = false; // resume by commands: the server may not have liked the URL
  #allRefused = false; // the server does not let us follow the broadcast log by name

  constructor(options, tell) {
    this.#options = options;
    this.#tell = tell;
    if (!this.#transports().length) throw new TypeError("pushlet: no transport");
  }

  follow(topic) {
    const t = this.#know(topic);
    t.wanted = true;
    if (t.since && this.#link?.open) queueMicrotask(() => this.#makeLive(topic, t));
    else if (this.#link?.send) this.#link.subscribe([topic]);
    else this.#renew();
  }

  unfollow(topic) {
    const t = this.#topics.get(topic);
    if (!t) return; // refused
    if (topic == all || topic == user) {
      t.wanted = t.live = false; // they come by themselves
      this.#restIfIdle();
      return;
    }
    this.#topics.delete(topic);
    if (this.#restIfIdle()) return;
    if (this.#link?.send) this.#link.unsubscribe(topic);
    else this.#renew();
  }

  // A good moment to try again, or to look whether the server is still there.
  wake() {
    if (this.#retry) this.#connect();
    else this.#link?.probe();
  }

  setVisible(visible) {
    clearTimeout(this.#pause);
    if (visible) {
      const resume = this.#paused && this.#topics.size;
      this.#paused = false;
      if (resume) this.#connect();
      else this.wake();
    } else if (this.#options.pauseHidden) {
      this.#pause = setTimeout(() => {
        this.#paused = true;
        if (this.#topics.size) this.#rest("paused");
      }, this.#options.pauseHidden);
    }
  }

  close() {
    clearTimeout(this.#pause);
    this.#topics.clear();
    this.#rest("closed");
  }

  #transports() {
    const { transports = ["webSocket", "eventSource"], ...o } = this.#options;
    return transports.filter((t) => o[t] && (t == "webSocket" ? o.WebSocket ?? globalThis.WebSocket : o.EventSource ?? globalThis.EventSource));
  }

  #know(topic) {
    if (!this.#topics.has(topic)) this.#topics.set(topic, {});
    return this.#topics.get(topic);
  }

  // The broadcasts come with every topic, so where they are has to be known, too.
  #knowAll() {
    if (!this.#allRefused) this.#know(all);
  }

  #restIfIdle() {
    if ([...this.#topics.values()].some((t) => t.wanted)) return false;
    this.#topics.clear();
    this.#rest("idle");
    return true;
  }

  // Ends what there is, until somebody wants something.
  #rest(status) {
    this.#drop();
    clearTimeout(this.#retry);
    this.#retry = undefined;
    this.#tell("status", status);
  }

  #drop() {
    const link = this.#link;
    this.#link = null;
    clearInterval(this.#watch);
    link?.close();
  }

  // Connects soon, if there is no connection yet that can be told of new topics; several are
  // gathered.
  #renew() {
    if (!this.#retry && !this.#link?.opening && !this.#paused) this.#schedule(10);
  }

  #schedule(wait) {
    clearTimeout(this.#retry);
    this.#retry = setTimeout(() => this.#connect(), wait);
  }

  async #connect() {
    clearTimeout(this.#retry);
    this.#retry = undefined;
    this.#drop();
    const kinds = this.#transports();
    const kind = kinds[this.#transport % kinds.length];
    const link = (this.#link = { kind, opening: true, leaving: new Map(), heard: Date.now(), pinged: 0, close() {}, probe() {} });
    this.#tell("status", "connecting");
    this.#watch = setInterval(() => this.#check(link), this.#options.idle / 6);
    try {
      let url = this.#options[kind];
      if (typeof url == "function") url = await url();
      if (link != this.#link) return;
      if (kind == "webSocket") this.#openWebSocket(link, new URL(url, globalThis.location?.href));
      else this.#openEventSource(link, new URL(url, globalThis.location?.href));
    } catch (err) {
      if (link != this.#link) return;
      this.#tell("error", { message: String(err) });
      this.#lost(link);
    }
  }

  #openWebSocket(link, url) {
    const WS = this.#options.WebSocket ?? WebSocket;
    url.protocol = url.protocol.replace("http", "ws");
    // Who has a user is followed from the start; no command could resume that.
    const asked = this.#ask(url, (name, t, size) => t.since && (name == user || (!this.#byCommand && size < 4000)));
    const ws = new WS(url.href, "pushlet.text");
    link.opening = false; // what is followed from now on is sent when it opens
    link.send = (command) => ws.readyState == 1 && ws.send(JSON.stringify(command));
    link.subscribe = (names) => {
      if (names.includes(all)) link.early = true;
      // The server limits the rate of commands, and how many topics are in one: few commands for
      // many topics, and one for each of few, so that one too many is refused alone.
      const size = names.length > 100 ? 50 : 1;
      for (let i = 0; i < names.length; i += size) {
        const topics = names.slice(i, i + size);
        const since = Object.fromEntries(topics.map((name) => [name, this.#topics.get(name)?.since]));
        link.send({ action: "subscribe", topics, since });
      }
    };
    link.unsubscribe = (topic) => {
      if (ws.readyState != 1) return;
      link.leaving.set(topic, (link.leaving.get(topic) ?? 0) + 1);
      link.send({ action: "unsubscribe", topic });
    };
    link.probe = () => {
      if (!link.pinged && link.send({ action: "ping" }) !== false) link.pinged = Date.now();
    };
    link.close = () => ws.close();
    ws.onopen = () => {
      if (link != this.#link) return;
      this.#opened(link);
      // Some may have been given up meanwhile, and perhaps wanted anew.
      const stands = (name) => asked.has(name) && asked.get(name) == this.#topics.get(name);
      for (const name of asked.keys()) if (!stands(name)) link.unsubscribe(name);
      this.#knowAll();
      link.subscribe([...this.#topics.keys()].filter((name) => !stands(name)));
    };
    ws.onmessage = (e) => this.#receive(link, e.data);
    ws.onclose = ws.onerror = () => this.#lost(link);
  }

  #openEventSource(link, url) {
    const ES = this.#options.EventSource ?? EventSource;
    this.#knowAll();
    link.asked = this.#ask(url, () => true);
    url.searchParams.set("format", "json");
    const es = new ES(url.href, { withCredentials: !!this.#options.withCredentials });
    link.opening = false;
    link.close = () => es.close();
    link.probe = () => this.#check(link);
    es.addEventListener("pushlet.heartbeat", (e) => {
      link.heard = Date.now();
      if (link == this.#link && e.data) {
        link.silence = 2.5 * e.data;
        this.#opened(link);
      }
    });
    es.onmessage = (e) => this.#receive(link, e.data);
    es.onerror = () => this.#lost(link); // the browser would come back to where it was
  }

  // Puts the topics into the URL that are to be, and returns which.
  #ask(url, wanted) {
    const asked = new Map();
    let size = 0;
    for (const [name, t] of this.#topics) {
      if (!wanted(name, t, size)) continue;
      url.searchParams.append("topic", name);
      url.searchParams.append("since", t.since ?? "");
      size += name.length + 60;
      asked.set(name, t);
    }
    return asked;
  }

  #opened(link) {
    link.open = true;
    this.#tell("status", "open");
  }

  #receive(link, text) {
    if (link != this.#link) return;
    link.heard = Date.now();
    link.pinged = 0;
    let m;
    try {
      m = JSON.parse(text);
    } catch {
      return this.#lost(link); // that is no Pushlet
    }
    if (m.event == "pushlet.unsubscribed") {
      link.leaving.set(m.topic, link.leaving.get(m.topic) - 1);
      return;
    }
    if (m.event == "pushlet.error") return this.#refused(link, m);
    if (!m.topic || link.leaving.get(m.topic) > 0) return;
    const t = m.topic == user ? this.#know(user) : this.#topics.get(m.topic);
    const subscribed = m.event == "pushlet.subscribed";
    if (m.topic == all) {
      if (link.early && !subscribed) return; // it comes again, from where we asked for it
      link.early = false;
    }
    if (!t || (link.asked && m.topic != user && link.asked.get(m.topic) != t)) return; // wanted no more, or anew
    link.fruitful = true;
    this.#attempt = 0;
    if (m.id) t.since = m.id;
    if (subscribed) {
      this.#makeLive(m.topic, t);
    } else if (m.event == "pushlet.gap") {
      this.#tell("gap", { topic: m.topic, reason: m.data });
    } else if (!m.event.startsWith("pushlet.")) {
      this.#tell("message", m);
    }
  }

  #makeLive(topic, t) {
    if (t.live || !t.wanted) return;
    t.live = true;
    this.#tell("live", { topic });
  }

  #refused(link, { topic, data }) {
    if (topic && data.startsWith("pushlet: unavailable")) return this.#lost(link); // later, perhaps
    const t = this.#topics.get(topic);
    if (topic && (!t || link.leaving.get(topic) > 0)) return; // it may be wanted anew
    this.#topics.delete(topic);
    if (topic == all) {
      this.#allRefused = true;
      if (!t.wanted) return;
    }
    this.#tell("error", { topic, message: data });
    this.#restIfIdle();
  }

  // Looks whether the server is still there.
  #check(link) {
    if (link != this.#link) return;
    const { idle } = this.#options;
    const now = Date.now();
    const silent = now - link.heard;
    if (link.open && link.send) {
      if (link.pinged && now - link.pinged > idle / 3) this.#lost(link);
      else if (silent > idle) link.probe();
    } else if (silent > (link.silence ?? idle / 2)) {
      this.#lost(link);
    }
  }

  #lost(link) {
    if (link != this.#link) return;
    this.#drop();
    if (link.fruitful) {
      this.#byCommand = false;
    } else {
      this.#attempt++;
      this.#transport++;
      if (link.kind == "webSocket") this.#byCommand = !this.#byCommand;
    }
    const [first, longest] = this.#options.reconnect;
    let wait = Math.min(first * 2 ** Math.max(0, this.#attempt - 1), longest / 3);
    wait *= 1 + 2 * Math.random();
    if (globalThis.navigator?.onLine === false) wait = longest;
    this.#schedule(wait);
    this.#tell("status", "waiting", wait);
  }
}

// ----- one connection for all tabs

// In the SharedWorker runs this same module. What the worker is to connect to is its name, so
// that tabs with other options have another worker. Who has gone is told by the lock that it
// held: a tab one of its own, the worker its name.

// A worker lives as long as any tab does, so tabs of several versions may meet in one: the number
// is to be raised whenever what they say to each other changes.
const workerPrefix = "pushlet 1 ";

function sharable({ share, webSocket, eventSource }) {
  if (!share) return false;
  if (typeof webSocket == "function" || typeof eventSource == "function") {
    throw new TypeError("pushlet: share needs URLs that are strings");
  }
  return !!(globalThis.SharedWorker && globalThis.navigator?.locks);
}

/** The tab's end: a backend like Connection. */
class Shared {
  #url;
  #name;
  #tell;
  #topics = new Map(); // name → {turn, live}: which subscription that is, and whether it was confirmed
  #turn = 0;
  #port;
  #leave = new AbortController(); // of the lock that says that this tab is there
  #worker = new AbortController(); // of the wait for the worker's

  constructor({ share, webSocket, eventSource, transports, withCredentials, reconnect, idle }, tell) {
    const absolute = (url) => url && new URL(url, location.href).href;
    const options = { webSocket: absolute(webSocket), eventSource: absolute(eventSource), transports, withCredentials, reconnect, idle };
    this.#url = share;
    this.#name = workerPrefix + JSON.stringify(options);
    this.#tell = tell;
    this.#open();
  }

  #open() {
    const worker = new SharedWorker(this.#url, { type: "module", name: this.#name });
    worker.onerror = () => this.#tell("error", { message: `pushlet: ${this.#url} cannot be run as a worker` });
    const { port } = worker;
    this.#port = port;
    port.onmessage = ({ data: [kind, value, more] }) => {
      if (port != this.#port) return;
      if (kind == "hello") this.#watch();
      else if (kind == "status" || !value.topic) this.#tell(kind, value, more);
      else this.#hear(kind, value, more);
    };
    const id = workerPrefix + crypto.randomUUID();
    const left = new Promise((resolve) => this.#leave.signal.addEventListener("abort", resolve));
    navigator.locks.request(id, () => {
      if (port == this.#port) port.postMessage(["hello", id]);
      return left;
    });
    for (const [topic, { turn }] of this.#topics) port.postMessage(["follow", topic, turn]);
  }

  #hear(kind, value, turn) {
    const t = this.#topics.get(value.topic);
    if (t?.turn != turn) return; // of a subscription that has ended
    if (kind == "error") this.#topics.delete(value.topic);
    if (kind == "live") {
      if (t.live) [kind, value] = ["gap", { topic: value.topic, reason: "not_resumable" }]; // by another worker
      t.live = true;
    }
    this.#tell(kind, value);
  }

  // The lock is ours when the worker has died.
  #watch() {
    navigator.locks
      .request(this.#name, { mode: "shared", signal: this.#worker.signal }, () => {})
      .then(() => this.#open(), () => {}); // closed
  }

  follow(topic) {
    const turn = ++this.#turn;
    this.#topics.set(topic, { turn });
    this.#port.postMessage(["follow", topic, turn]);
  }

  unfollow(topic) {
    this.#topics.delete(topic);
    this.#port.postMessage(["unfollow", topic]);
  }

  wake() {
    this.#port.postMessage(["wake"]);
  }

  setVisible(visible) {
    if (visible) this.wake();
  }

  close() {
    this.#port.close();
    this.#port = null;
    this.#worker.abort();
    this.#leave.abort();
    this.#tell("status", "closed");
  }
}

/** The worker's end. */
function serveTabs(options) {
  const ports = new Set();
  const status = ["status", "idle"];
  const push = new Pushlet({
    ...options,
    onStatus(value, wait) {
      status.splice(1, 2, value, wait);
      for (const port of ports) port.postMessage(status);
    },
    onError: (err) => ports.forEach((port) => port.postMessage(["error", err])),
  });
  const held = new Promise((resolve) => {
    navigator.locks.request(self.name, () => {
      resolve();
      return new Promise(() => {}); // for as long as the worker lives
    });
  });
  self.onconnect = ({ ports: [port] }) => {
    const topics = new Map(); // name → how to unsubscribe
    const unfollow = (topic) => {
      topics.get(topic)?.();
      topics.delete(topic);
    };
    const follow = (topic, turn) => {
      const tell = (kind) => (value) => port.postMessage([kind, value ?? { topic }, turn]);
      const options = { onLive: tell("live"), onGap: tell("gap"), onError: tell("error") };
      topics.set(topic, push.subscribe(topic, tell("message"), options));
    };
    const leave = () => {
      ports.delete(port);
      [...topics.keys()].forEach(unfollow);
    };
    port.onmessage = ({ data: [verb, value, turn] }) => {
      if (verb == "hello") navigator.locks.request(value, leave); // ours when the tab has gone
      else if (verb == "follow") follow(value, turn);
      else if (verb == "unfollow") unfollow(value);
      else push.wake();
    };
    held.then(() => {
      ports.add(port);
      port.postMessage(["hello"]);
      port.postMessage(status);
    });
  };
}

if (globalThis.SharedWorkerGlobalScope && self instanceof SharedWorkerGlobalScope) {
  if (self.name.startsWith(workerPrefix)) {
    serveTabs(JSON.parse(self.name.slice(workerPrefix.length)));
  } else if (self.name.startsWith("pushlet ")) {
    self.onconnect = (e) => e.ports[0].postMessage(["error", { message: "pushlet: share is another version of pushlet.js" }]);
  }
}

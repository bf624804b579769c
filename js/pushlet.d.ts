// The contract of pushlet.js, Pushlet's client for browsers.

/** A message, as it was published. */
export interface Message {
  /** What it was published to; "*" is a broadcast, "@user" what is for the user of this page. */
  readonly topic: string;
  /** "message" if it was published without a name. */
  readonly event: string;
  readonly data: string;
  /** Its ID in its topic. */
  readonly id: string;
  /** When it was published: RFC 3339, UTC. */
  readonly timestamp: string;
}

/** Messages of a topic are gone for good: load what they were about again. */
export interface Gap {
  readonly topic: string;
  /**
   * "trimmed", "expired", "restarted", "rolled_back" or "unknown_cursor", as the server says, or
   * "not_resumable": the connection that was shared has died, with all it knew.
   */
  readonly reason: string;
}

/** Why a topic is not followed or, without a topic, what else went wrong. */
export interface Failure {
  readonly topic?: string;
  readonly message: string;
}

/**
 * "idle": no topic is wanted, so there is no connection. "waiting": the next attempt is due in
 * some time. "paused": the page is hidden, see pauseHidden. "closed": for good, by close.
 */
export type Status = "idle" | "connecting" | "open" | "waiting" | "paused" | "closed";

/** An address, or a function that is asked for it before each attempt, for a token that expires. */
export type URLSource = string | URL | (() => string | URL | Promise<string | URL>);

export interface Options {
  /** Where HandleWebSocket is mounted; false: none. Default "/ws". Without topics. */
  webSocket?: URLSource | false;
  /** Where HandleSSE is mounted; false: none. Default "/events". Without topics. */
  eventSource?: URLSource | false;
  /**
   * Which to use, the preferred one first. The next is tried when one brings nothing; what has
   * worked is used again. Default ["webSocket", "eventSource"].
   */
  transports?: ("webSocket" | "eventSource")[];
  /** Send cookies to another origin with an EventSource. (A WebSocket always does.) */
  withCredentials?: boolean;
  /**
   * The URL of this module, as the page's own origin serves it: all tabs that use the same URL
   * and options share one connection, in a SharedWorker. Where the browser has none, or the page is not
   * served over HTTPS or from localhost, each tab has its own. It needs addresses that are strings.
   * Where the page requires trusted types, a TrustedScriptURL.
   */
  share?: string | URL;
  /**
   * How long to wait, in milliseconds, before another attempt: at random between the first and
   * three times that, doubled with each attempt that fails, up to the second. Default [1000, 30000].
   */
  reconnect?: [first: number, longest: number];
  /**
   * After how many milliseconds of silence a WebSocket is asked for a sign of life, for which the server
   * then has a third of that; half of it is what a connection may take to open. Default 30000.
   * An EventSource counts as dead after two and a half heartbeats of the server.
   */
  idle?: number;
  /**
   * Disconnect once the page has been hidden for so many milliseconds, and resume when it is shown;
   * not with share. Default: never. (All times are more than 0, and less than 24 days.)
   */
  pauseHidden?: number;
  /** Called whenever the status changes; wait is the time until the next attempt, in milliseconds. */
  onStatus?: (status: Status, wait?: number) => void;
  /** For gaps of topics whose subscription has no onGap of its own. Default: console.warn. */
  onGap?: (gap: Gap) => void;
  /** For failures that no subscription has an onError for. Default: console.warn. */
  onError?: (failure: Failure) => void;
  /** Instead of the global classes, for Node.js. */
  WebSocket?: unknown;
  EventSource?: unknown;
}

export interface SubscribeOptions {
  /**
   * Called once, when nothing that is published from then on will be missed: the moment to load
   * what was before. A reconnection is no such moment, since it resumes.
   */
  onLive?: () => void;
  /** Messages of this topic are gone for good: the moment to load again. */
  onGap?: (gap: Gap) => void;
  /** The server does not let this page follow the topic: the subscription has ended. */
  onError?: (failure: Failure) => void;
}

/**
 * A Pushlet follows topics over one connection, which is there while a topic is wanted. When it breaks
 * it is made again, and every topic goes on where it was: each message comes once, and in the
 * order of its topic, or onGap says that some are gone. It connects at once when the page is
 * shown, or the network is back, and looks then whether an open connection is still alive.
 *
 * Callbacks are called one after the other, never from within subscribe. One that throws does not
 * keep the others from being called; the exception goes to the console.
 */
export class Pushlet {
  constructor(options?: Options);

  readonly status: Status;

  /**
   * Follows a topic. Several subscriptions to one topic share it. A topic is 1 to 255 bytes of
   * UTF-8 without control characters; others throw a TypeError. "*" is what is published to everyone,
   * "@user" what is for the user of this page. Returns a function that ends the subscription: after it no
   * callback of it is called any more.
   */
  subscribe(topic: string, onMessage: (message: Message) => void, options?: SubscribeOptions): () => void;

  /** Tries at once if the next attempt is due later, or looks whether the server is still there. */
  wake(): void;

  /** Ends everything, for good. */
  close(): void;
}

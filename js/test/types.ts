// Compiled, never run: the declarations are those of the module, and say what a user writes.
import { Pushlet, type Failure, type Gap, type Message, type Options, type Status } from "../pushlet.js";

const options: Options = {
  webSocket: async () => new URL("wss://example.com/ws"),
  eventSource: false,
  transports: ["eventSource", "webSocket"],
  reconnect: [100, 1000],
  onStatus: (status: Status, wait?: number) => console.log(status, wait?.toFixed()),
  onGap: (gap: Gap) => console.log(gap.topic, gap.reason),
  onError: (failure: Failure) => console.log(failure.topic?.length, failure.message),
};
const push = new Pushlet(options);
const unsubscribe: () => void = push.subscribe("news", (m: Message) => console.log(m.topic, m.event, m.data, m.id, m.timestamp), {
  onLive: () => {},
  onGap: ({ reason }) => console.log(reason),
});
unsubscribe();
push.wake();
push.close();
const status: Status = push.status;
new Pushlet();

// @ts-expect-error a topic is a string
push.subscribe(7, () => {});
// @ts-expect-error there is no such transport
new Pushlet({ transports: ["carrier pigeon"] });
// @ts-expect-error it cannot be set
push.status = status;

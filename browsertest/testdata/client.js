// Follows topics with pushlet.js, and writes down what it is told.
import { Pushlet } from "/pushlet.js";

window.Pushlet = Pushlet;
window.seen = {}; // topic → in order: the data of messages, <live>, <gap …>, <error …>
window.messages = []; // of all topics, whole
window.statuses = [];
window.failures = []; // of no subscription

window.start = (options) => {
  window.push = new Pushlet({
    reconnect: [20, 200],
    ...options,
    onStatus: (status) => statuses.push(status),
    onError: ({ message }) => failures.push(message),
  });
};

const ends = {};

window.follow = (...topics) => {
  for (const topic of topics) {
    const told = (seen[topic] ??= []);
    const onMessage = (m) => {
      told.push(m.data);
      messages.push(m);
    };
    ends[topic] = push.subscribe(topic, onMessage, {
      onLive: () => told.push("<live>"),
      onGap: ({ topic: of, reason }) => told.push(of == topic ? `<gap ${reason}>` : `<gap of ${of}>`),
      onError: ({ message }) => told.push(`<error ${message}>`),
    });
  }
};

window.unfollow = (...topics) => topics.forEach((topic) => ends[topic]());

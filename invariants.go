package pushlet

import "fmt"

// checkInvariants panics if what the broker owns does not fit together. It runs after
// commands in tests, where PUSHLET_VERIFY=1 is set, and never otherwise.
func (b *broker) checkInvariants() {
	attached := 0
	for i, bucket := range b.buckets {
		for j, c := range bucket {
			attached++
			must(int(c.bucket) == i && int(c.index) == j, "client knows its bucket")
			b.checkClient(c)
		}
	}
	must(attached == b.clients, "every attached client is in a bucket")
	b.checkTopic(b.all)
	users := 0
	for name, t := range b.topics {
		must(t.name == name && t != b.all, "topic %q is known by its name", name)
		must(len(t.subs) > 0 || t.state != nil || b.shared != nil, "topic %q has a follower or messages", name)
		b.checkTopic(t)
		if t.ofUser && len(t.subs) > 0 {
			users++
		}
	}
	must(users == b.users, "users are counted")
}

func (b *broker) checkClient(c *client) {
	behind := 0
	for s := range c.subscriptions() {
		must(s.client == c, "subscription belongs to its client")
		must(s.topic.subs[s.index] == s, "subscription knows its place in topic %q", s.topic.name)
		must(!b.last.before(s.position()) || s.behind, "no position is ahead of all messages")
		if s.behind {
			behind++
		}
	}
	must(behind == c.behind, "client counts what is behind")
	_, listed := b.behind[c]
	must(listed == (behind > 0), "clients that are behind are listed")
	must(c.form != formSSE || behind == 0 || behind == 1+len(c.topics), "an SSE client is behind as a whole")
	must((c.all.topic != nil) == (len(c.topics) > 0 || c.allAsked), "who follows a topic follows the broadcasts")
}

func (b *broker) checkTopic(t *topic) {
	var followers [numForms]int32
	for i, s := range t.subs {
		must(s.topic == t && int(s.index) == i, "follower of %q is in its place", t.name)
		must(s.client.bucket >= 0, "follower of %q is attached", t.name)
		followers[s.client.form]++
	}
	must(followers == t.followers, "followers of %q are counted", t.name)
	if t.state == nil {
		return
	}
	log := &t.state.log
	bytes := 0
	for i := log.head; i < len(log.frames); i++ {
		f := log.frames[i]
		bytes += f.size()
		must(f.prev.before(f.id), "IDs of %q increase", t.name)
		must(i == log.head || f.prev == log.frames[i-1].id || b.shared != nil && f.prev.isFloor(), "messages of %q are linked", t.name)
	}
	must(bytes == log.bytes, "bytes of %q are counted", t.name)
	must(log.len() == 0 || log.frames[len(log.frames)-1].id == t.last || b.shared != nil && t.last.isFloor(), "the newest of %q is the last", t.name)
	if b.shared != nil {
		must(t.shared.open, "messages of %q came after its position", t.name)
	}
	must(log.len() <= max(1, log.limits.messages), "history of %q is bounded", t.name)
}

func must(ok bool, claim string, args ...any) {
	if !ok {
		panic("pushlet: broken invariant: " + fmt.Sprintf(claim, args...))
	}
}

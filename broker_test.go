package pushlet

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// newTestBroker returns a broker that does not run: the test applies the commands. No
// worker takes what is runnable.
func newTestBroker(t *testing.T, options ...Option) (*broker, *clientEnv) {
	t.Helper()
	cfg := defaultConfig()
	for _, option := range options {
		option(&cfg)
	}
	if cfg.err != nil {
		t.Fatal(cfg.err)
	}
	k, f := new(counters), newFlusher(0)
	env := &clientEnv{maxMessages: cfg.queueMessages, maxBytes: cfg.queueBytes, maxTopics: cfg.maxTopics, flusher: f, counters: k}
	return newBroker(&cfg, f, k, func(report) {}, time.Now()), env
}

func attachTo(b *broker, env *clientEnv, form form, topics ...string) *client {
	c := newClient(Client{ID: newClientID()}, form, nullTransport{}, env, time.Now())
	b.apply(&attach{client: c, topics: topics})
	return c
}

func publishTo(b *broker, topic, data string) *frame {
	f := newFrame(topic, "", data, time.Now())
	b.apply(f)
	return f
}

// drainQueue writes all that is queued, as a flusher does, and returns it and what is to
// be done next.
func drainQueue(c *client) (written string, step nextStep) {
	for {
		b, _ := c.peek(make([]byte, 0, 4096))
		written += string(b)
		if step, _ = c.wrote(len(b)); step != stepMore {
			return written, step
		}
	}
}

// A client whose queue was full may have been drained by the time the broker notes that it
// is behind. Then nobody will ask for the page, and the broker must go on by itself.
func TestFallBehindAfterDrain(t *testing.T) {
	b, env := newTestBroker(t, WithQueue(1, 1<<20))
	c := attachTo(b, env, formSSE, "a")
	publishTo(b, "a", "first")
	f := newFrame("a", "", "second", time.Now())
	b.publish(f) // the queue is full, so this runs fallBehind ...
	if c.behind == 0 {
		t.Fatal("the client is not behind")
	}
	if got, step := drainQueue(c); step != stepPage || strings.Contains(got, "second") {
		t.Fatalf("wrote %q, then step %v", got, step)
	}
	b.page(c)
	if got, _ := drainQueue(c); !strings.Contains(got, "second") {
		t.Fatalf("from history: %q", got)
	}

	// ... and here the flusher comes between the full queue and fallBehind.
	third := publishTo(b, "a", "third")
	if _, step := drainQueue(c); step != stepIdle {
		t.Fatalf("step %v, want idle", step)
	}
	b.fallBehind(c, third)
	if got, _ := drainQueue(c); !strings.Contains(got, "third") {
		t.Errorf("after the queue was drained: %q, want the third message", got)
	}
	b.checkInvariants()
}

// What is queued for a client is one range as long as its messages are neighbours, also
// where others were written in between.
func TestQueueMergesNeighbours(t *testing.T) {
	for form := range numForms {
		b, env := newTestBroker(t)
		c := attachTo(b, env, form, "a")
		drainQueue(c)
		publishTo(b, "b", "not for it")
		for range 10 {
			publishTo(b, "a", "message")
		}
		// Segments of 256, 512 and 1024 bytes hold them all.
		if len(c.queue) > 3 {
			t.Errorf("form %d: 10 messages are %d ranges", form, len(c.queue))
		}
		if c.messages != 10 {
			t.Errorf("form %d: %d messages are queued", form, c.messages)
		}
	}
}

// Part of a range may be written; the count of messages stays exact.
func TestQueueTakesParts(t *testing.T) {
	const n = 20
	for form := range numForms {
		for _, step := range []int{1, 7, 200} {
			b, env := newTestBroker(t)
			c := attachTo(b, env, form, "a")
			drainQueue(c)
			var ends []int // where each message ends
			for i := range n {
				size := c.bytes
				if i%4 == 3 {
					b.apply(newFrame(broadcastTopic, "", "for all", time.Now()))
				} else {
					publishTo(b, "a", strings.Repeat("line\r\n\n", i*i%400))
				}
				if len(ends) > 0 {
					ends = append(ends, ends[len(ends)-1]+c.bytes-size)
				} else {
					ends = append(ends, c.bytes)
				}
			}
			messages, bytes := 0, 0
			for {
				chunk, _ := c.peek(make([]byte, 0, 512))
				chunk = chunk[:min(step, len(chunk))]
				next, k := c.wrote(len(chunk))
				messages += k
				bytes += len(chunk)
				if want, _ := slices.BinarySearch(ends, bytes+1); messages != want || c.messages != n-want {
					t.Fatalf("form %d, %d bytes written: %d messages, and %d left, want %d", form, bytes, messages, c.messages, want)
				}
				if next != stepMore {
					break
				}
			}
			if messages != n || c.messages != 0 || c.bytes != 0 {
				t.Errorf("%d messages written, %d messages and %d bytes left", messages, c.messages, c.bytes)
			}
			if c.private != nil || c.spare[0].seg != nil {
				t.Error("an empty queue keeps a segment")
			}
		}
	}
}

// answerUntil queues answers of 1 KB until the client is ended or they are that many bytes,
// and returns how many they were.
func answerUntil(b *broker, c *client, most int) (bytes int) {
	answer := make([]byte, 1000)
	for bytes < most {
		b.apply(&reply{c, answer})
		b.flusher.wg.Wait()
		if c.isEnding() {
			break
		}
		bytes += len(answer)
	}
	return bytes
}

// Answers have a limit of their own: a client whose queue is full of messages may still ask,
// and one that does not read its answers is ended, however much its queue may hold.
func TestAnswersDoNotCountAsMessages(t *testing.T) {
	b, env := newTestBroker(t, WithQueue(1000, 8<<10), WithMaxTopics(10))
	c := attachTo(b, env, formBinary, "a")
	drainQueue(c)
	n := 0
	for data := strings.Repeat("x", 1000); c.behind == 0; n++ {
		publishTo(b, "a", data)
		b.apply(&reply{c, make([]byte, 500)})
	}
	if messages, _ := c.depth(); messages != n-1 || messages != 7 {
		t.Errorf("%d messages of 1.1 KiB in 8 KiB, and %d that had no room", messages, n-messages)
	}
	const most = 50_000
	if answerUntil(b, c, most) < most {
		t.Error("a client with a full queue is ended after less than 64 KiB of answers")
	}
	if _, step := drainQueue(c); step != stepPage || c.control != 0 || c.bytes != 0 {
		t.Errorf("step %v, %d bytes and %d of answers are left", step, c.bytes, c.control)
	}
}

func TestAnswersAreBounded(t *testing.T) {
	for topics, limit := range map[int]int{1: 64 << 10, 100: 100 << 10, 1000: 1000 << 10, math.MaxInt: 8 << 20} {
		b, env := newTestBroker(t, WithQueue(1<<20, 1<<30), WithMaxTopics(topics))
		c := attachTo(b, env, formBinary, "a")
		publishTo(b, "a", strings.Repeat("x", 1<<20)) // which is no answer
		if got := answerUntil(b, c, 16<<20); got < limit-1000 || got > limit+1000 || c.endReason() != ReasonSlow {
			t.Errorf("up to %d topics: ended after %d bytes of answers: %q", topics, got, c.endReason())
		}
	}
}

// Whoever follows as many topics as it may at once, and has missed messages of all of them,
// is not ended for what it is told then.
func TestAnswersToAllTopicsFit(t *testing.T) {
	for _, n := range []int{10, 100, 1000} {
		b, env := newTestBroker(t, WithMaxTopics(n))
		for form := formSSEJSON; form < numForms; form++ {
			c := newClient(Client{ID: newClientID()}, form, nullTransport{}, env, time.Now())
			var all []*subscribe
			for i := range n {
				topic := fmt.Sprintf("%0255d", i)
				hello := appendJSONHead(nil, topic, eventSubscribed, "", b.now)
				all = append(all, &subscribe{client: c, topic: topic, hello: hello, resume: true, now: b.now})
			}
			b.apply(&attach{client: c, first: all})
			b.flusher.wg.Wait()
			if got, _ := drainQueue(c); strings.Count(got, eventGap) != n || c.isEnding() {
				t.Errorf("%d topics: %d gaps, ended: %q", n, strings.Count(got, eventGap), c.endReason())
			}
		}
	}
}

// What counts as answers is exact, whatever is queued and written when. "id:" lines do not.
func TestAnswersAreCounted(t *testing.T) {
	for form := range numForms {
		b, env := newTestBroker(t, WithQueue(50, 16<<10))
		c := attachTo(b, env, form, "a", "b")
		for i := range 3000 {
			switch rand.IntN(5) {
			case 0, 1:
				publishTo(b, []string{"a", "b", broadcastTopic}[i%3], strings.Repeat("x", rand.IntN(300)))
			case 2:
				b.apply(&reply{c, make([]byte, rand.IntN(200))})
			case 3:
				b.beat(c, b.now)
			default:
				chunk, _ := c.peek(make([]byte, 0, 512))
				if step, _ := c.wrote(rand.IntN(len(chunk) + 1)); step == stepPage {
					b.page(c)
				}
			}
			bytes, control := 0, 0
			for _, s := range c.queue {
				bytes += s.len()
				if s.n == 0 && form != formSSE {
					control += s.len()
				}
			}
			if c.bytes != bytes || int(c.control) != control {
				t.Fatalf("form %d, step %d: %d bytes and %d of answers, want %d and %d", form, i, c.bytes, c.control, bytes, control)
			}
		}
		if form == formSSE && c.control != 0 {
			t.Error("an SSE client has answers")
		}
	}
}

// A topic that nobody follows and whose messages are old costs nothing, and a position in
// it is then a gap; positions handed out since are not.
func TestTopicIsForgotten(t *testing.T) {
	b, env := newTestBroker(t, WithLastMessageAge(time.Hour))
	now := time.Now()
	f := publishTo(b, "a", "message")
	c := attachTo(b, env, formBinary, "never published to")
	sweep := func(after time.Duration) { b.apply(tick{now: now.Add(after)}) }

	sweep(59 * time.Minute)
	if b.topics["a"] == nil {
		t.Fatal("forgotten too early")
	}
	if why := b.missing(b.topicFor("a"), f.id, true); why != "" {
		t.Errorf("the position of the last message: %s", why)
	}
	sweep(61 * time.Minute)
	if b.topics["a"] != nil || len(b.logs) != 0 {
		t.Fatal("not forgotten")
	}
	later := b.last.next(b.last.ms+1, b.lineage)
	b.last = later
	if why := b.missing(b.newTopic("a"), f.prev, true); why != gapExpired {
		t.Errorf("a position before its last message: %q, want %q", why, gapExpired)
	}
	if why := b.missing(b.newTopic("a"), later, true); why != "" {
		t.Errorf("a later position: %q", why)
	}
	b.detach(c, now)
	if len(b.topics) != 0 {
		t.Error("a topic without follower or messages is kept")
	}
	b.checkInvariants()
}

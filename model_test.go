package pushlet

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestModel drives the broker and its clients with random publishes, broadcasts,
// subscribes, disconnects at random bytes of the stream, resumes, trims, restarts and
// slow reads, and compares what every client has got with a naive model: exactly once,
// in order, or a gap event before the hole. All happens in one goroutine, so that a seed
// repeats a run.
//
// PUSHLET_MODEL_RUNS sets the number of runs, PUSHLET_MODEL_SEED repeats one.
func TestModel(t *testing.T) {
	var totals [modelShards]modelStats
	runs := eachSeed(t, func(t *testing.T, shard int, seed uint64) fmt.Stringer {
		s := runModel(t, seed)
		totals[shard].add(s)
		return s
	})
	var total modelStats
	for _, s := range totals {
		total.add(s)
	}
	t.Logf("%d runs: %v", runs, total)
	// A model that never gets to the hard parts proves nothing.
	if runs > 1 && !t.Failed() && (total.received == 0 || total.gaps == 0 || total.resumed == 0 || total.fellBehind == 0 || total.cut == 0) {
		t.Errorf("the runs did not cover everything: %v", total)
	}
}

const modelShards = 4

// eachSeed calls run for as many seeds as the environment asks for, in a few goroutines,
// or for the one that it names.
func eachSeed(t *testing.T, run func(t *testing.T, shard int, seed uint64) fmt.Stringer) (runs int) {
	runs = 5_000
	if s := os.Getenv("PUSHLET_MODEL_RUNS"); s != "" {
		var err error
		if runs, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	if testing.Short() {
		runs /= 10
	}
	if s := os.Getenv("PUSHLET_MODEL_SEED"); s != "" {
		seed, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		t.Log(run(t, 0, seed))
		return 1
	}
	base := rand.Uint64()
	t.Run("shards", func(t *testing.T) {
		for shard := range modelShards {
			t.Run(fmt.Sprint(shard), func(t *testing.T) {
				t.Parallel()
				for i := shard; i < runs && !t.Failed(); i += modelShards {
					run(t, shard, base+uint64(i))
				}
			})
		}
	})
	return runs
}

type modelStats struct {
	published, received, gaps, resumed, fellBehind, restarts, cut int
}

func (s *modelStats) add(o modelStats) {
	s.published += o.published
	s.received += o.received
	s.gaps += o.gaps
	s.resumed += o.resumed
	s.fellBehind += o.fellBehind
	s.restarts += o.restarts
	s.cut += o.cut
}

func (s modelStats) String() string {
	return fmt.Sprintf("%d published, %d received, %d gaps, %d resumed, %d fell behind, %d restarts, %d cut within an event",
		s.published, s.received, s.gaps, s.resumed, s.fellBehind, s.restarts, s.cut)
}

// modelWorld is one run.
type modelWorld struct {
	t    *testing.T
	rand *rand.Rand
	seed uint64

	cfg      config
	env      *clientEnv
	counters counters
	broker   *broker
	pages    []*client // that have asked for a page
	runnable []*client
	now      time.Time

	lossless bool           // history keeps everything and nothing restarts: no gap may come
	logs     map[string]int // how many messages each topic has had, over restarts
	clients  []*modelClient
	stats    modelStats
}

// modelClient is a subscriber over all its connections.
type modelClient struct {
	w      *modelWorld
	name   string
	form   form
	topics []string

	// The connection, nil if there is none.
	c    *client
	wire []byte // written, not yet read
	room int    // the socket takes no more than this
	over bool   // the server has ended the stream
	read []byte // read, not yet a whole event

	// What it knows.
	lastID   string            // SSE: the last event's
	inCursor []string          // SSE: the topics followed when it came
	since    map[string]string // JSON: the last ID of each topic
	progress map[string]*modelProgress
	forged   bool // its cursor was spoiled
}

// modelProgress is what the model expects of a client in one topic.
type modelProgress struct {
	next int  // index of the next message
	gap  bool // a gap was signalled since the last message
	skip int  // policy KeepLatest: messages before this index may be left out
	any  bool // after a gap by an unreadable cursor the next may be any
}

func runModel(t *testing.T, seed uint64) modelStats {
	w := &modelWorld{
		t: t, seed: seed,
		rand: rand.New(rand.NewPCG(seed, 1)),
		now:  time.UnixMilli(1_700_000_000_000),
		logs: make(map[string]int),
	}
	w.setUp()
	for range 40 + w.rand.IntN(160) {
		w.step()
		if w.t.Failed() {
			return w.stats
		}
	}
	w.finish()
	w.stats.fellBehind = int(w.counters.fellBehind.Load())
	return w.stats
}

func (w *modelWorld) fatalf(format string, args ...any) {
	w.t.Errorf("PUSHLET_MODEL_SEED=%d: %s", w.seed, fmt.Sprintf(format, args...))
}

const modelEvents = 3 // event names

var modelTopics = []string{"a", "b", "off/c", "d"}

func (w *modelWorld) setUp() {
	w.cfg = defaultConfig()
	w.lossless = w.rand.IntN(4) == 0
	if !w.lossless {
		w.cfg.history.fallback = historyLimits{1 + w.rand.IntN(20), 20 + w.rand.IntN(400), time.Duration(1+w.rand.IntN(60)) * time.Second}
		w.cfg.history.set("off/", historyLimits{})
		w.cfg.lastMessageAge = 10 * time.Second
	}
	w.cfg.queueMessages = 1 + w.rand.IntN(12)
	w.cfg.queueBytes = 100 + w.rand.IntN(2000)
	w.cfg.slowPolicy.fallback = SlowPolicy(w.rand.IntN(3))
	w.boot()
	for i := range 1 + w.rand.IntN(4) {
		c := &modelClient{w: w, name: fmt.Sprint("client", i), form: form(w.rand.IntN(int(numForms)))}
		c.form = form(w.rand.IntN(4)) // compressed ones are the same to the broker
		c.since = make(map[string]string)
		c.progress = make(map[string]*modelProgress)
		c.topics = w.someTopics()
		w.clients = append(w.clients, c)
	}
}

func (w *modelWorld) someTopics() []string {
	n := 1
	if w.rand.IntN(2) == 0 {
		n = 1 + w.rand.IntN(len(modelTopics))
	}
	topics := slices.Clone(modelTopics)
	w.rand.Shuffle(len(topics), func(i, j int) { topics[i], topics[j] = topics[j], topics[i] })
	return topics[:n]
}

// boot starts a process.
func (w *modelWorld) boot() {
	f := newFlusher(0) // flushOne stands for its workers
	w.env = &clientEnv{
		maxMessages: w.cfg.queueMessages,
		maxBytes:    w.cfg.queueBytes,
		maxTopics:   w.cfg.maxTopics,
		flusher:     f,
		counters:    &w.counters,
		requestPage: func(c *client) { w.pages = append(w.pages, c) },
	}
	w.broker = newBroker(&w.cfg, f, &w.counters, func(report) {}, w.now)
	w.pages, w.runnable = nil, nil
}

// apply gives the broker a command and collects what has become runnable.
func (w *modelWorld) apply(cmd command) {
	for _, m := range w.clients {
		m.noteLatest()
	}
	w.broker.apply(cmd)
	w.broker.handOver()
	f := w.broker.flusher
	f.wg.Wait() // for aborts
	w.runnable = append(w.runnable, f.clients[f.head:]...)
	f.clients, f.head = nil, 0
}

func (w *modelWorld) step() {
	c := w.clients[w.rand.IntN(len(w.clients))]
	switch n := w.rand.IntN(100); {
	case n < 30:
		w.publish()
	case n < 35:
		for range 1 + w.rand.IntN(30) {
			w.publish()
		}
	case n < 55:
		w.flushOne()
	case n < 70:
		c.readSome(1 + w.rand.IntN(400))
	case n < 78:
		w.answerPage()
	case n < 86:
		if c.c == nil {
			c.connect()
		} else if w.rand.IntN(3) == 0 {
			c.disconnect()
		}
	case n < 90:
		w.tick(time.Duration(w.rand.IntN(60_000)) * time.Millisecond)
	case n < 94:
		c.changeTopics()
	case n < 96:
		w.settle()
	case n < 97 && !w.lossless:
		w.restart()
	case n < 98 && !w.lossless:
		c.spoilCursor()
	default:
		w.broker.checkInvariants()
	}
}

func (w *modelWorld) publish() {
	topic := broadcastTopic
	if w.rand.IntN(5) > 0 {
		topic = modelTopics[w.rand.IntN(len(modelTopics))]
	}
	i := w.logs[topic]
	w.logs[topic]++
	w.stats.published++
	w.now = w.now.Add(time.Duration(w.rand.IntN(3)) * time.Millisecond)
	data := fmt.Sprintf("%s %d %s", topic, i, strings.Repeat("x", w.rand.IntN(60)))
	f := newFrame(topic, fmt.Sprint("event", w.rand.IntN(modelEvents)), data, w.now)
	f.encode(w.counters.wanted())
	w.apply(f)
}

// flushOne is what a flusher does, with a socket that takes only so much.
func (w *modelWorld) flushOne() {
	if len(w.runnable) == 0 {
		return
	}
	i := w.rand.IntN(len(w.runnable))
	c := w.runnable[i]
	m := c.transport.(*modelTransport).m
	var chunk []byte
	if m.c == c {
		chunk, _ = c.peek(make([]byte, 0, 200))
		chunk = chunk[:min(len(chunk), max(0, m.room-len(m.wire)))]
		m.wire = append(m.wire, chunk...)
	}
	step, _ := c.wrote(len(chunk))
	if step == stepMore {
		return // stays runnable
	}
	w.runnable = slices.Delete(w.runnable, i, i+1)
	c.proceed(step)
}

func (w *modelWorld) answerPage() {
	if len(w.pages) > 0 {
		c := w.pages[0]
		w.pages = w.pages[1:]
		w.apply(page{c})
	}
}

func (w *modelWorld) tick(d time.Duration) {
	if w.lossless {
		d /= 1000
	}
	w.now = w.now.Add(d)
	w.apply(tick{w.now, w.rand.IntN(heartbeatBuckets)})
}

// restart ends the process with all it knew.
func (w *modelWorld) restart() {
	for _, c := range w.clients {
		c.disconnect()
	}
	w.stats.restarts++
	w.now = w.now.Add(time.Duration(w.rand.IntN(5000)-1000) * time.Millisecond) // clocks are set back, too
	w.boot()
}

// settle lets all clients read until nothing is left.
func (w *modelWorld) settle() {
	for range 10_000 {
		for _, c := range w.clients {
			c.room = 1 << 30
			c.readSome(1 << 30)
		}
		switch {
		case len(w.runnable) > 0:
			w.flushOne()
		case len(w.pages) > 0:
			w.answerPage()
		default:
			for _, c := range w.clients {
				c.readSome(1 << 30)
				c.room = w.socketRoom()
			}
			return
		}
	}
	w.fatalf("does not settle")
}

func (w *modelWorld) socketRoom() int { return 20 + w.rand.IntN(1000) }

// finish checks that in the end everybody has everything, or knows of a gap.
func (w *modelWorld) finish() {
	for range 3 { // a client that policy disconnects comes back
		for _, c := range w.clients {
			c.connect()
		}
		w.settle()
	}
	w.broker.checkInvariants()
	for _, c := range w.clients {
		if c.c == nil {
			w.fatalf("%s was disconnected although it reads", c.name)
			return
		}
		for _, topic := range append([]string{broadcastTopic}, c.topics...) {
			p := c.progress[topic]
			if p.next != w.logs[topic] && !p.gap {
				w.fatalf("%s: %q ends before message %d of %d, and no gap was signalled", c.name, topic, p.next, w.logs[topic])
			}
		}
	}
}

// modelTransport only says which model client a client is.
type modelTransport struct{ m *modelClient }

func (t *modelTransport) tryWrite(*socketWriter, []byte) (int, error) { panic("not used") }
func (t *modelTransport) write([]byte) (int, error)                   { panic("not used") }
func (t *modelTransport) check(bool) Reason                           { return "" }
func (t *modelTransport) endWrite()                                   { t.m.over = true }
func (t *modelTransport) close()                                      { t.m.over = true }

func (m *modelClient) connect() {
	if m.c != nil {
		if !m.over {
			return
		}
		m.disconnect()
	}
	w := m.w
	m.room, m.over = w.socketRoom(), false
	m.c = newClient(Client{ID: m.name}, m.form, &modelTransport{m}, w.env, w.now)
	m.expectTopics()
	if m.form != formSSE {
		w.apply(&attach{client: m.c})
		m.subscribe(broadcastTopic)
		for _, topic := range m.topics {
			m.subscribe(topic)
		}
		return
	}
	s := &sseRequest{info: Client{ID: m.name}, topics: m.topics}
	if m.lastID != "" {
		cur, ok := parseCursor(m.lastID)
		s.resume = &resume{cur, ok}
	}
	w.apply(&attach{client: m.c, topics: m.topics, resume: s.resume, hello: connectedHead(s)})
}

// expectTopics lets the model follow what the client follows: a new topic from now on,
// a known one from where it was.
func (m *modelClient) expectTopics() {
	topics := append([]string{broadcastTopic}, m.topics...)
	for topic := range m.progress {
		if !slices.Contains(topics, topic) && (m.form != formSSE || !slices.Contains(m.inCursor, topic)) {
			delete(m.progress, topic)
			delete(m.since, topic)
		}
	}
	for _, topic := range topics {
		if m.progress[topic] == nil || m.form == formSSE && (m.lastID == "" || !slices.Contains(m.inCursor, topic)) {
			m.progress[topic] = &modelProgress{next: m.w.logs[topic]}
		}
	}
}

func (m *modelClient) subscribe(topic string) {
	cmd := &subscribe{
		client: m.c, topic: topic, now: m.w.now,
		hello: appendJSONHead(nil, topic, eventSubscribed, "", m.w.now),
	}
	if since, ok := m.since[topic]; ok {
		cmd.resume = true
		cmd.since, _ = parseID(since)
	} else {
		m.progress[topic] = &modelProgress{next: m.w.logs[topic]}
	}
	m.w.apply(cmd)
}

// noteLatest lets the model leave out what has been published by now if the client's next
// page has only the newest messages of a topic, under policy KeepLatest.
func (m *modelClient) noteLatest() {
	if m.c == nil {
		return
	}
	for s := range m.c.subscriptions() {
		p := m.progress[s.topic.name]
		latest := s.latest || s.slow && s.topic.policy == KeepLatest && s.pos.before(s.topic.floor())
		if s.behind && latest && p != nil {
			p.skip = m.w.logs[s.topic.name]
		}
	}
}

// disconnect cuts the connection wherever it is; what lies in the socket is lost.
func (m *modelClient) disconnect() {
	if m.c == nil {
		return
	}
	m.readSome(m.w.rand.IntN(len(m.wire) + 1))
	if len(m.read) > 0 {
		m.w.stats.cut++
	}
	c := m.c
	m.c, m.wire, m.read = nil, nil, nil
	c.abort(ReasonClientClosed)
	m.w.apply(&detach{c, m.w.now})
}

// changeTopics follows another set: an SSE client when it connects again.
func (m *modelClient) changeTopics() {
	w := m.w
	if m.form == formSSE {
		if m.c == nil {
			m.topics = w.someTopics()
		}
		return
	}
	if m.c == nil || m.over {
		return
	}
	if topic := modelTopics[w.rand.IntN(len(modelTopics))]; !slices.Contains(m.topics, topic) {
		if m.progress[topic] != nil {
			return // the last unsubscribe is not answered yet
		}
		m.topics = append(m.topics, topic)
		delete(m.since, topic)
		m.subscribe(topic)
		return
	}
	if len(m.topics) < 2 {
		return
	}
	topic := m.topics[0]
	m.topics = m.topics[1:]
	w.apply(&unsubscribe{client: m.c, topic: topic, now: w.now,
		reply: jsonReply(m.form, topic, eventUnsubscribed, "", msgID{}, w.now)})
}

// spoilCursor is a proxy or a program that does not give back what it got.
func (m *modelClient) spoilCursor() {
	if m.c != nil || m.form != formSSE || len(m.lastID) < 3 {
		return
	}
	b := []byte(m.lastID)
	switch m.w.rand.IntN(3) {
	case 0:
		b = b[:m.w.rand.IntN(len(b))]
	case 1:
		b = append(b, '!')
	default:
		b = []byte("0")
	}
	m.lastID = string(b)
	m.forged = true
}

// readSome reads what the socket has and takes the whole events from it.
func (m *modelClient) readSome(n int) {
	n = min(n, len(m.wire))
	m.read = append(m.read, m.wire[:n]...)
	m.wire = m.wire[n:]
	for m.c != nil && !m.w.t.Failed() {
		size := m.takeEvent()
		if size == 0 {
			return
		}
		m.read = m.read[size:]
	}
}

// takeEvent handles the first whole event and returns its size, 0 if there is none.
func (m *modelClient) takeEvent() int {
	event, size := firstEvent(m.form, m.read)
	switch {
	case size == 0:
	case m.form == formSSE:
		m.takeSSE(string(event))
	case event != nil:
		m.takeJSON(event)
	}
	return size
}

// firstEvent returns the first event of a stream, and how many bytes it takes, 0 if it is
// not whole. Of a stream of JSON it is the object, nil if there is none in it.
func firstEvent(f form, b []byte) (event []byte, size int) {
	if f.isStream() {
		end := bytes.Index(b, []byte("\n\n"))
		if end < 0 {
			return nil, 0
		}
		event = b[:end]
		if f == formSSEJSON {
			event, _ = bytes.CutPrefix(event, []byte("data: "))
			if len(event) == end { // a heartbeat, or the farewell's retry
				event = nil
			}
		}
		return event, end + 2
	}
	if len(b) < 2 {
		return nil, 0
	}
	head, size := 2, int(b[1])
	if size == 126 {
		if len(b) < 4 {
			return nil, 0
		}
		head, size = 4, int(b[2])<<8|int(b[3])
	}
	if len(b) < head+size {
		return nil, 0
	}
	if b[0]&0x0f > wsBinary { // ping or close
		return nil, head + size
	}
	return b[head : head+size], head + size
}

// parseSSE returns the fields of an event.
func parseSSE(block string) (id, event, data string) {
	for _, line := range strings.Split(block, "\n") {
		name, value, _ := strings.Cut(line, ": ")
		switch name {
		case "id":
			id = value
		case "event":
			event = value
		case "data":
			data = value
		}
	}
	return id, event, data
}

func (m *modelClient) takeSSE(block string) {
	id, event, data := parseSSE(block)
	if event == "" {
		return // a heartbeat, or the farewell's retry
	}
	if id == "" || len(m.topics) <= 6 && len(id) > 128 {
		m.w.fatalf("%s: event %q has the id %q", m.name, event, id)
	}
	m.lastID, m.inCursor = id, append([]string{broadcastTopic}, m.topics...)
	switch event {
	case eventConnected:
		var v struct{ Resumed bool }
		if err := json.Unmarshal([]byte(data), &v); err != nil {
			m.w.fatalf("%s: %v in %s", m.name, err, data)
		}
		if v.Resumed {
			m.w.stats.resumed++
		}
	case eventGap:
		var v struct {
			Topics []string
			Reason Reason
		}
		if err := json.Unmarshal([]byte(data), &v); err != nil || len(v.Topics) == 0 {
			m.w.fatalf("%s: %v in %s", m.name, err, data)
		}
		for _, topic := range v.Topics {
			m.gap(topic, v.Reason)
		}
	default:
		m.message(data)
	}
}

func (m *modelClient) takeJSON(payload []byte) {
	var v struct{ Topic, Event, Data, ID, Timestamp string }
	if err := json.Unmarshal(payload, &v); err != nil {
		m.w.fatalf("%s: %v in %s", m.name, err, payload)
		return
	}
	if _, err := time.Parse(time.RFC3339, v.Timestamp); err != nil {
		m.w.fatalf("%s: %v", m.name, err)
	}
	switch v.Event {
	case eventSubscribed:
		m.since[v.Topic] = v.ID
		m.w.stats.resumed++
	case eventUnsubscribed:
		delete(m.progress, v.Topic)
		delete(m.since, v.Topic)
	case eventGap:
		m.since[v.Topic] = v.ID
		m.gap(v.Topic, Reason(v.Data))
	case eventError:
		m.w.fatalf("%s: error frame %s", m.name, payload)
	default:
		m.since[v.Topic] = v.ID
		m.message(v.Data)
	}
}

func (m *modelClient) gap(topic string, why Reason) {
	m.w.stats.gaps++
	if m.w.lossless {
		m.w.fatalf("%s: a gap in %q (%s) although history has everything", m.name, topic, why)
	}
	if p := m.progress[topic]; p != nil {
		p.gap = true
		p.any = p.any || why == gapUnknownCursor && m.forged
	}
}

// message compares a message with what the model expects.
func (m *modelClient) message(data string) {
	m.w.stats.received++
	fields := strings.Fields(data)
	topic := fields[0]
	i, _ := strconv.Atoi(fields[1])
	p := m.progress[topic]
	switch {
	case p == nil:
		m.w.fatalf("%s: message %d of %q, which it does not follow", m.name, i, topic)
		return
	case i == p.next:
	case p.gap && (i > p.next || p.any):
	case i > p.next && i <= p.skip:
	default:
		m.w.fatalf("%s: message %d of %q, want %d (gap signalled: %v)", m.name, i, topic, p.next, p.gap)
	}
	*p = modelProgress{next: i + 1, skip: p.skip}
}

package pushlet

import (
	"encoding/json"
	"fmt"
	"net/http"
	"time"
)

// A commander does what a client that speaks JSON asks for: over WebSocket in its commands, in an
// event stream in its URL. What is wrong with a topic is answered with pushlet.error, and the
// others go on. It belongs to one goroutine at a time.
type commander struct {
	p       *Pushlet
	c       *client
	request *http.Request // for authorize; nil if there is none
}

// A wsCommand is what a client sends.
type wsCommand struct {
	Action string   `json:"action"` // subscribe, unsubscribe or ping
	Topic  *string  `json:"topic"`
	Topics []string `json:"topics"`
	Since  wsSince  `json:"since"` // for subscribe
}

// A wsSince says after which IDs topics are to be resumed: a string is for all of them, an object has
// one for each that it names, and the others are followed from now on.
type wsSince struct {
	all  *string
	each map[string]*string
}

// UnmarshalJSON takes a string, an object of strings, or null.
func (s *wsSince) UnmarshalJSON(b []byte) error {
	if b[0] == '{' {
		return json.Unmarshal(b, &s.each)
	}
	return json.Unmarshal(b, &s.all)
}

func (s *wsSince) of(topic string) *string {
	if s.each != nil {
		return s.each[topic]
	}
	return s.all
}

// command acts on a message. Whatever is wrong with it is answered with pushlet.error.
func (m *commander) command(b []byte) {
	var cmd wsCommand
	if err := json.Unmarshal(b, &cmd); err != nil {
		m.error("", "not a command: "+err.Error())
		return
	}
	topics := cmd.Topics
	if cmd.Topic != nil {
		topics = append([]string{*cmd.Topic}, topics...)
	}
	switch cmd.Action {
	case "ping":
		m.answer("", eventPong, "")
		return
	case "subscribe", "unsubscribe":
	default:
		m.error("", fmt.Sprintf("unknown action %q", cutUTF8(cmd.Action, 64)))
		return
	}
	switch {
	case len(topics) == 0:
		m.error("", cmd.Action+" without a topic")
		return
	case len(topics) > m.p.cfg.maxTopics:
		m.error("", fmt.Sprintf("more than %d topics", m.p.cfg.maxTopics))
		return
	}
	for _, name := range topics {
		topic, ok := m.topic(name)
		switch {
		case !ok:
		case cmd.Action == "subscribe":
			m.subscribe(topic, cmd.Since.of(name))
		default:
			m.unsubscribe(topic)
		}
	}
}

// topic returns the topic that the client means by a name. If there is none, it is told why.
func (m *commander) topic(name string) (topic string, ok bool) {
	switch mine := topicOfUser(m.c.info.User); {
	case name == broadcastTopic:
		return name, true
	case name == userTopic && mine == "":
		m.error(name, "this client has no user")
		return "", false
	case name == userTopic:
		return mine, true
	}
	if err := checkTopic(name); err != nil {
		m.error("", err.Error())
		return "", false
	}
	return name, true
}

// subscribe follows a topic that has been checked, from a position if there is one.
func (m *commander) subscribe(topic string, since *string) {
	if err := m.p.authorizeAll(m.request, []string{topic}); err != nil {
		m.error(topic, err.Error())
		return
	}
	m.p.broker.send(m.follow(topic, since))
}

// follow makes the command for a topic that the client may follow.
func (m *commander) follow(topic string, since *string) *subscribe {
	now := time.Now()
	cmd := &subscribe{
		client: m.c,
		topic:  topic,
		hello:  appendJSONHead(nil, wireTopic(topic), eventSubscribed, "", now),
		now:    now,
	}
	if since != nil {
		cmd.resume = true
		cmd.since, _ = parseID(*since) // zero, if it is no ID, is a gap
	}
	return cmd
}

func (m *commander) unsubscribe(topic string) {
	if isUserTopic(topic) {
		m.error(wireTopic(topic), "it cannot be unsubscribed from")
		return
	}
	now := time.Now()
	reply := jsonReply(m.c.form, topic, eventUnsubscribed, "", msgID{}, now)
	m.p.broker.send(&unsubscribe{client: m.c, topic: topic, reply: reply, now: now})
}

func (m *commander) error(topic, why string) { m.answer(topic, eventError, why) }

// answer queues a frame that is no message of a topic.
func (m *commander) answer(topic, event, data string) {
	m.p.broker.send(&reply{m.c, jsonReply(m.c.form, topic, event, data, msgID{}, time.Now())})
}

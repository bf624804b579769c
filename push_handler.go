package pushlet

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
)

// WithPushAuthorize sets a function that says whether a request to HandlePush may push. An
// error refuses it: with status 401 if it wraps ErrUnauthenticated, else with 403. Its text is
// sent; a panic is a refusal too. Without this option HandlePush refuses everything. It is
// called by several goroutines at once.
func WithPushAuthorize(authorize func(r *http.Request) error) Option {
	return func(c *config) { c.pushAuthorize = authorize }
}

// AllowPush is for [WithPushAuthorize]: everybody who can reach HandlePush may push, because
// something else, such as a router's middleware or the network, keeps the others away.
func AllowPush(*http.Request) error { return nil }

// WithMaxPushSize sets how many bytes the body of a request to HandlePush may have. The
// default is 4 MiB.
func WithMaxPushSize(bytes int) Option {
	return positive("WithMaxPushSize", bytes, func(c *config) { c.maxPushSize = bytes })
}

// HandlePush lets other programs push by HTTP. It takes POST requests with a body of type
// application/json:
//
//	{"uids":["u001"],"topics":["news"],"events":[{"event":"message","data":"hello"}]}
//
// Without uids and topics the events go to all that PublishToAll reaches; an empty list is an
// error. Without "event" the event is "message". "data" is a string or any other JSON, which
// is sent as its text. With the header Idempotency-Key a request that is sent again publishes
// nothing twice; see [Push].Key.
//
// All is checked first: with status 400 nothing was published, and the body says which field
// is wrong. Otherwise the answer has a result for each event:
//
//	{"events":[{"published":2,"duplicates":0,"clients":3}]}
//
// "published" is how many messages it has become, "clients" how many connections of this
// instance follow what it was published to. The status is 200 or, if anything could not be
// published, 503, with "error" at the events concerned: with an Idempotency-Key the request
// can be sent again as it is. Other answers: 401 and 403 from WithPushAuthorize, 403 without it,
// 405, 413 for a body over WithMaxPushSize, 415, and 503 before Start and after Stop. Errors
// have the form {"error":"…"}. There are no CORS headers: pages of other origins cannot push.
func (p *Pushlet) HandlePush(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		refusePush(w, http.StatusMethodNotAllowed, errors.New("method not allowed"))
		return
	}
	if err := p.mayPush(r); err != nil {
		status := http.StatusForbidden
		if errors.Is(err, ErrUnauthenticated) {
			status = http.StatusUnauthorized
			if w.Header().Get("WWW-Authenticate") == "" {
				w.Header().Set("WWW-Authenticate", "Bearer")
			}
		}
		refusePush(w, status, err)
		return
	}
	// A page of another origin can send no JSON without being asked for permission first.
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/json" {
		refusePush(w, http.StatusUnsupportedMediaType, errors.New("Content-Type is not application/json"))
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, int64(p.cfg.maxPushSize)))
	if err != nil {
		status := http.StatusBadRequest
		if large := (*http.MaxBytesError)(nil); errors.As(err, &large) {
			status, err = http.StatusRequestEntityTooLarge, fmt.Errorf("body: over %d bytes", large.Limit)
		}
		refusePush(w, status, err)
		return
	}
	push, err := parsePush(body)
	if err != nil {
		refusePush(w, http.StatusBadRequest, err)
		return
	}
	push.Key = r.Header.Get("Idempotency-Key")
	results, err := p.Push(r.Context(), push)
	switch {
	case errors.Is(err, ErrNotStarted), errors.Is(err, ErrClosed):
		w.Header().Set("Retry-After", "1")
		refusePush(w, http.StatusServiceUnavailable, err)
	case err != nil:
		why := strings.Replace(err.Error(), "users[", "uids[", 1)
		refusePush(w, http.StatusBadRequest, errors.New(why))
	default:
		answerPush(w, results)
	}
}

// mayPush asks the application.
func (p *Pushlet) mayPush(r *http.Request) error {
	if p.cfg.pushAuthorize == nil {
		return errors.New("pushing is off: there is no WithPushAuthorize")
	}
	err := errAuthorizePanic
	p.guard("WithPushAuthorize", func() { err = p.cfg.pushAuthorize(r) })
	return err
}

// pushBody is the body of a request to HandlePush.
type pushBody struct {
	UIDs   json.RawMessage `json:"uids"`
	Topics json.RawMessage `json:"topics"`
	Events []struct {
		Event string          `json:"event"`
		Data  json.RawMessage `json:"data"`
	} `json:"events"`
}

// parsePush reads the body of a request. Errors name the field.
func parsePush(body []byte) (push Push, err error) {
	var in pushBody
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields() // "uid" would go to everyone
	if err := d.Decode(&in); err != nil {
		return Push{}, fmt.Errorf("body: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return Push{}, errors.New("body: more than one JSON value")
	}
	if push.Users, err = listOf("uids", in.UIDs); err != nil {
		return Push{}, err
	}
	if push.Topics, err = listOf("topics", in.Topics); err != nil {
		return Push{}, err
	}
	push.Everyone = push.Users == nil && push.Topics == nil
	if len(in.Events) == 0 {
		return Push{}, errors.New("events: missing or empty")
	}
	for i, e := range in.Events {
		data := string(bytes.TrimSpace(e.Data))
		if data == "" {
			return Push{}, fmt.Errorf("events[%d].data: missing", i)
		}
		if data[0] == '"' {
			if err := json.Unmarshal(e.Data, &data); err != nil {
				return Push{}, fmt.Errorf("events[%d].data: %w", i, err)
			}
		}
		push.Events = append(push.Events, Event{e.Event, data})
	}
	return push, nil
}

// listOf reads a list that may be missing. An empty one, or null, is more likely a mistake
// than meant for everyone.
func listOf(name string, raw json.RawMessage) (list []string, err error) {
	if len(raw) == 0 {
		return nil, nil
	}
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("%s: empty; leave it out to reach everyone", name)
	}
	return list, nil
}

func refusePush(w http.ResponseWriter, status int, why error) {
	sendJSON(w, status, struct {
		Error string `json:"error"`
	}{why.Error()})
}

func answerPush(w http.ResponseWriter, results []PushResult) {
	type result struct {
		Published  int    `json:"published"`
		Duplicates int    `json:"duplicates"`
		Clients    int    `json:"clients"`
		Error      string `json:"error,omitempty"`
	}
	var answer struct {
		Events []result `json:"events"`
	}
	status := http.StatusOK
	for _, r := range results {
		one := result{r.Published, r.Duplicates, r.Clients, ""}
		if r.Err != nil {
			one.Error = r.Err.Error()
			status = http.StatusServiceUnavailable
			w.Header().Set("Retry-After", "1")
		}
		answer.Events = append(answer.Events, one)
	}
	sendJSON(w, status, answer)
}

func sendJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // if it fails, nobody listens
}

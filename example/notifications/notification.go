package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/usual2970/pushlet"
)

// A notification is what is published, and what the user gets.
type notification struct {
	UserID    int64   `json:"user_id"`
	Message   string  `json:"message"`
	CreatedAt *string `json:"created_at"`
}

// convert makes a push of what came from the channel. Its errors are logged, so they do not
// hold what was sent.
func convert(payload string) (pushlet.Push, error) {
	var n notification
	if err := json.Unmarshal([]byte(payload), &n); err != nil {
		var kind *json.UnmarshalTypeError
		if errors.As(err, &kind) {
			return pushlet.Push{}, fmt.Errorf("%s: not of the right type", cmp.Or(kind.Field, "the notification"))
		}
		return pushlet.Push{}, fmt.Errorf("not JSON, %d bytes", len(payload))
	}
	if n.UserID <= 0 {
		return pushlet.Push{}, errors.New("user_id: missing, or not a positive integer")
	}
	if n.CreatedAt == nil {
		now := time.Now().UTC().Format("2006-01-02T15:04:05.000Z07:00")
		n.CreatedAt = &now
	} else if _, err := time.Parse(time.RFC3339, *n.CreatedAt); err != nil {
		return pushlet.Push{}, errors.New("created_at: not a time as in RFC 3339")
	}
	data, err := json.Marshal(n)
	if err != nil {
		return pushlet.Push{}, err
	}
	return pushlet.Push{
		Users:  []string{userName(n.UserID)},
		Events: []pushlet.Event{{Data: string(data)}},
	}, nil
}

package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/usual2970/pushlet"
)

// A store keeps messages in a bbolt file. It is a pushlet.History.
//
//	messages / audience / ID   the message
//	counts / audience          how many messages there are
//	newest / newest            the newest ID of all
type store struct {
	db     *bolt.DB
	keep   int           // of each audience, at most
	maxAge time.Duration // of a message

	quit chan struct{}
	done sync.WaitGroup
}

var (
	messagesBucket = []byte("messages")
	countsBucket   = []byte("counts")
	newestBucket   = []byte("newest")
)

const (
	pruneEvery = time.Minute
	pruneChunk = 100     // audiences in one transaction, so that Append need not wait for long
	pageBytes  = 4 << 20 // that After returns at once, more or less
)

// openStore opens a file. One process may have it open at a time; another waits for a
// second and gets an error.
func openStore(path string, keep int, maxAge time.Duration) (*store, error) {
	db, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: time.Second})
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	err = db.Update(func(tx *bolt.Tx) error {
		for _, name := range [][]byte{messagesBucket, countsBucket, newestBucket} {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		db.Close()
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	s := &store{db: db, keep: keep, maxAge: maxAge, quit: make(chan struct{})}
	s.done.Go(s.pruneNowAndThen)
	return s, nil
}

func (s *store) close() error {
	close(s.quit)
	s.done.Wait()
	return s.db.Close()
}

// keyOf is the key of an audience. Its kind comes first, so that a user and a topic of the
// same name differ.
func keyOf(a pushlet.Audience) []byte {
	switch {
	case a.User != "":
		return []byte("u" + a.User)
	case a.Topic != "":
		return []byte("t" + a.Topic)
	}
	return []byte("*")
}

// Append implements pushlet.History. The transaction is on disk when it returns.
func (s *store) Append(ctx context.Context, messages []pushlet.Message) error {
	return s.db.Update(func(tx *bolt.Tx) error {
		for _, m := range messages {
			if err := ctx.Err(); err != nil {
				return err // nothing is stored
			}
			key := keyOf(m.Audience)
			log, err := tx.Bucket(messagesBucket).CreateBucketIfNotExists(key)
			if err != nil {
				return err
			}
			log.FillPercent = 0.9 // keys come in their order
			if err := log.Put([]byte(m.ID), encode(m)); err != nil {
				return err
			}
			if err := changeCount(tx, key, log, 1, s.keep); err != nil {
				return err
			}
		}
		if len(messages) == 0 {
			return nil
		}
		return tx.Bucket(newestBucket).Put(newestBucket, []byte(messages[len(messages)-1].ID))
	})
}

// changeCount notes that there are more messages in a log, or fewer, and removes the oldest
// if they are too many.
func changeCount(tx *bolt.Tx, key []byte, log *bolt.Bucket, by int64, keep int) error {
	counts := tx.Bucket(countsBucket)
	n := by
	if old := counts.Get(key); len(old) == 8 {
		n += int64(binary.BigEndian.Uint64(old))
	}
	for ; n > int64(keep); n-- {
		oldest, _ := log.Cursor().First()
		if err := log.Delete(oldest); err != nil {
			return err
		}
	}
	return counts.Put(key, binary.BigEndian.AppendUint64(nil, uint64(n)))
}

// After implements pushlet.History.
func (s *store) After(ctx context.Context, audience pushlet.Audience, id string, limit int) (page []pushlet.Message, err error) {
	err = s.db.View(func(tx *bolt.Tx) error {
		log := tx.Bucket(messagesBucket).Bucket(keyOf(audience))
		if log == nil {
			return nil
		}
		c := log.Cursor()
		k, v := c.Seek([]byte(id))
		if id != "" && string(k) == id {
			k, v = c.Next()
		}
		for size := 0; k != nil && len(page) < limit && size < pageBytes; k, v = c.Next() {
			if err := ctx.Err(); err != nil {
				return err
			}
			m, err := decode(audience, k, v)
			if err != nil {
				return err
			}
			page = append(page, m)
			size += len(v)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return page, nil
}

// Last implements pushlet.History.
func (s *store) Last(_ context.Context, audience pushlet.Audience) (m pushlet.Message, ok bool, err error) {
	err = s.db.View(func(tx *bolt.Tx) error {
		log := tx.Bucket(messagesBucket).Bucket(keyOf(audience))
		if log == nil {
			return nil
		}
		k, v := log.Cursor().Last()
		if k == nil {
			return nil
		}
		m, err = decode(audience, k, v)
		ok = err == nil
		return err
	})
	return m, ok, err
}

// Newest implements pushlet.History.
func (s *store) Newest(context.Context) (id string, err error) {
	err = s.db.View(func(tx *bolt.Tx) error {
		id = string(tx.Bucket(newestBucket).Get(newestBucket))
		return nil
	})
	return id, err
}

// encode writes all of a message but its ID and its audience, which are the key: the time,
// and then each text after its length.
func encode(m pushlet.Message) []byte {
	b := binary.AppendVarint(nil, m.Time.UnixMilli())
	for _, text := range []string{m.Prev, m.Event, m.Data} {
		b = binary.AppendUvarint(b, uint64(len(text)))
		b = append(b, text...)
	}
	return b
}

var errCorrupt = errors.New("a message in the file is damaged")

func decode(audience pushlet.Audience, k, v []byte) (pushlet.Message, error) {
	ms, n := binary.Varint(v)
	if n <= 0 {
		return pushlet.Message{}, errCorrupt
	}
	v = v[n:]
	var texts [3]string
	for i := range texts {
		size, n := binary.Uvarint(v)
		if n <= 0 || size > uint64(len(v)-n) {
			return pushlet.Message{}, errCorrupt
		}
		texts[i] = string(v[n : n+int(size)]) // a copy: v is the file's
		v = v[n+int(size):]
	}
	return pushlet.Message{
		ID: string(k), Prev: texts[0], Audience: audience, Event: texts[1], Data: texts[2], Time: time.UnixMilli(ms),
	}, nil
}

func (s *store) pruneNowAndThen() {
	ticker := time.NewTicker(pruneEvery)
	defer ticker.Stop()
	for {
		select {
		case now := <-ticker.C:
			if err := s.prune(now); err != nil {
				log.Println("history:", err)
			}
		case <-s.quit:
			return
		}
	}
}

// prune removes messages that are too old. The newest of an audience goes too: maxAge is
// more than the 24 hours that pushlet asks for.
func (s *store) prune(now time.Time) error {
	oldest := fmt.Appendf(nil, "%d-", now.Add(-s.maxAge).UnixMilli())
	for from := []byte{}; from != nil; {
		err := s.db.Update(func(tx *bolt.Tx) error {
			keys := tx.Bucket(messagesBucket).Cursor()
			key, _ := keys.Seek(from)
			var chunk [][]byte
			for ; key != nil && len(chunk) < pruneChunk; key, _ = keys.Next() {
				chunk = append(chunk, bytes.Clone(key))
			}
			from = bytes.Clone(key)
			for _, key := range chunk {
				if err := s.pruneLog(tx, key, oldest); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *store) pruneLog(tx *bolt.Tx, key, oldest []byte) error {
	log := tx.Bucket(messagesBucket).Bucket(key)
	gone := int64(0)
	for k, _ := log.Cursor().First(); k != nil && bytes.Compare(k, oldest) < 0; k, _ = log.Cursor().First() {
		if err := log.Delete(k); err != nil {
			return err
		}
		gone++
	}
	if k, _ := log.Cursor().First(); k == nil {
		if err := tx.Bucket(countsBucket).Delete(key); err != nil {
			return err
		}
		return tx.Bucket(messagesBucket).DeleteBucket(key)
	}
	if gone == 0 {
		return nil
	}
	return changeCount(tx, key, log, -gone, s.keep)
}

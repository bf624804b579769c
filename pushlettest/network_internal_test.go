package pushlettest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// bubble runs a test in fake time on a connection with room for 8 bytes.
func bubble(t *testing.T, test func(t *testing.T, client, server *conn)) {
	synctest.Test(t, func(t *testing.T) {
		client, server := pipe(8, &net.TCPAddr{IP: clientIP, Port: 1024}, &net.TCPAddr{IP: serverIP, Port: 80})
		test(t, client, server)
	})
}

func TestConnBuffers(t *testing.T) {
	bubble(t, func(t *testing.T, client, server *conn) {
		var writer sync.WaitGroup
		written := 0
		writer.Go(func() { // more than there is room for
			n, err := server.Write([]byte("0123456789abcdef"))
			if err != nil {
				t.Error(err)
			}
			written = n
		})
		synctest.Wait()
		if written != 0 {
			t.Errorf("%d bytes were taken", written)
		}
		got := make([]byte, 16)
		if _, err := io.ReadFull(client, got); err != nil || string(got) != "0123456789abcdef" {
			t.Errorf("read %q, %v", got, err)
		}
		writer.Wait()
		if written != 16 {
			t.Errorf("wrote %d bytes", written)
		}
	})
}

func TestConnClose(t *testing.T) {
	bubble(t, func(t *testing.T, client, server *conn) {
		if _, err := server.Write([]byte("bye")); err != nil {
			t.Fatal(err)
		}
		server.Close()
		if b, err := io.ReadAll(client); err != nil || string(b) != "bye" {
			t.Errorf("read %q, %v", b, err)
		}
		if _, err := client.Write([]byte("x")); !errors.Is(err, errBroken) {
			t.Errorf("write to one who has closed: %v", err)
		}
		for _, err := range []error{second(server.Write([]byte("x"))), second(server.Read(make([]byte, 1)))} {
			if !errors.Is(err, net.ErrClosed) {
				t.Errorf("after Close: %v", err)
			}
		}
	})
}

func second[T any](_ T, err error) error { return err }

func TestConnCloseWrite(t *testing.T) {
	bubble(t, func(t *testing.T, client, server *conn) {
		if err := server.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(client); err != nil || len(b) > 0 {
			t.Errorf("read %q, %v", b, err)
		}
		if _, err := client.Write([]byte("x")); err != nil {
			t.Error(err)
		}
		if n, err := server.Read(make([]byte, 2)); n != 1 || err != nil {
			t.Errorf("read %d, %v", n, err)
		}
	})
}

func TestConnDrop(t *testing.T) {
	bubble(t, func(t *testing.T, client, server *conn) {
		var waiting sync.WaitGroup
		waiting.Go(func() {
			if _, err := server.Read(make([]byte, 1)); !errors.Is(err, errReset) {
				t.Errorf("read that waits: %v", err)
			}
		})
		waiting.Go(func() {
			if n, err := server.Write(make([]byte, 9)); n != 8 || !errors.Is(err, errReset) {
				t.Errorf("write that waits: %d, %v", n, err)
			}
		})
		synctest.Wait()
		client.drop()
		waiting.Wait()
		if n, err := client.Read(make([]byte, 9)); n != 0 || !errors.Is(err, errReset) {
			t.Errorf("read of what was on its way: %d, %v", n, err)
		}
		if _, err := client.Write([]byte("x")); !errors.Is(err, errReset) {
			t.Errorf("write: %v", err)
		}
	})
}

func TestConnStall(t *testing.T) {
	bubble(t, func(t *testing.T, client, server *conn) {
		client.stall(true)
		if _, err := server.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		server.Close()
		net.Conn(client).SetReadDeadline(time.Now().Add(time.Hour))
		if n, err := client.Read(make([]byte, 1)); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a stalled client reads %d, %v", n, err)
		}
		net.Conn(client).SetReadDeadline(time.Time{})
		time.AfterFunc(time.Minute, func() { client.stall(false) })
		if b, err := io.ReadAll(client); err != nil || string(b) != "x" {
			t.Errorf("read %q, %v", b, err)
		}
	})
}

func TestConnDeadlines(t *testing.T) {
	bubble(t, func(t *testing.T, client, server *conn) {
		begin := time.Now()
		net.Conn(server).SetDeadline(begin.Add(time.Second))
		time.AfterFunc(500*time.Millisecond, func() { net.Conn(server).SetReadDeadline(begin.Add(time.Minute)) })
		if n, err := server.Write(make([]byte, 9)); n != 8 || !errors.Is(err, os.ErrDeadlineExceeded) || !isTimeout(err) {
			t.Errorf("write: %d, %v", n, err)
		}
		if d := time.Since(begin); d != time.Second {
			t.Errorf("the write took %v", d)
		}
		if _, err := server.Read(make([]byte, 1)); !isTimeout(err) {
			t.Errorf("read: %v", err)
		}
		if d := time.Since(begin); d != time.Minute {
			t.Errorf("the read took until %v", d)
		}
		net.Conn(server).SetDeadline(time.Time{})
		if b := make([]byte, 8); second(io.ReadFull(client, b)) != nil || !bytes.Equal(b, make([]byte, 8)) {
			t.Errorf("read %q", b)
		}
		if _, err := server.Write([]byte("x")); err != nil {
			t.Errorf("write without a deadline: %v", err)
		}
	})
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

func TestListener(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newListener()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := l.dial(ctx, 1, 1); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("dial of a server that does not accept: %v", err)
		}
		go func() { _, _ = l.dial(t.Context(), 5000, 1) }() // its other end is looked at
		c, err := l.Accept()
		if err != nil || !strings.HasSuffix(c.RemoteAddr().String(), ":5000") || c.LocalAddr() != l.Addr() {
			t.Errorf("accepted %v, %v", c, err)
		}
		l.Close()
		l.Close()
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Accept after Close: %v", err)
		}
		if _, err := l.dial(t.Context(), 1, 1); !errors.Is(err, net.ErrClosed) {
			t.Errorf("dial after Close: %v", err)
		}
	})
}

package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"
)

// findRedis returns the address of a Redis, and what ends it if it was started here.
func findRedis(ctx context.Context) (addr string, end func(), err error) {
	addr = cmp.Or(os.Getenv("REDIS_ADDR"), "localhost:6379")
	why := ping(ctx, addr)
	if why == nil {
		return addr, func() {}, nil
	}
	path, err := exec.LookPath("redis-server")
	if err != nil {
		return "", nil, fmt.Errorf("no Redis answers at %s (%w), and there is no redis-server in the PATH to start: "+
			"install Redis 7.0 or later, or set REDIS_ADDR", addr, why)
	}
	return startRedis(ctx, path)
}

// ping reports whether a Redis answers.
func ping(ctx context.Context, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr) // a failure go-redis would log
	if err != nil {
		return err
	}
	conn.Close()
	client := redis.NewClient(&redis.Options{Addr: addr, MaxRetries: -1, ContextTimeoutEnabled: true})
	defer client.Close()
	return client.Ping(ctx).Err()
}

// startRedis starts a redis-server that keeps nothing on disk.
func startRedis(ctx context.Context, path string) (addr string, end func(), err error) {
	port, err := freePort()
	if err != nil {
		return "", nil, err
	}
	var output bytes.Buffer
	cmd := exec.Command(path, "--port", strconv.Itoa(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no")
	cmd.Stdout, cmd.Stderr = &output, &output
	apart(cmd)
	if err := cmd.Start(); err != nil {
		return "", nil, err
	}
	ended := make(chan struct{})
	go func() {
		cmd.Wait()
		close(ended)
	}()
	end = func() {
		cmd.Process.Kill()
		<-ended
	}
	addr = net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	for deadline := time.Now().Add(10 * time.Second); ; {
		err := ping(ctx, addr)
		if err == nil {
			return addr, end, nil
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			end()
			return "", nil, fmt.Errorf("redis-server does not answer: %w", err)
		}
		select {
		case <-ended:
			return "", nil, errors.New("redis-server ended at once:\n" + output.String())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func freePort() (int, error) {
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

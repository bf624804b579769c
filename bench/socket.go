package main

import (
	"fmt"
	"net/netip"
	"strings"
	"syscall"
)

// The load generator uses the socket calls themselves. With package net each of
// its connections would cost a goroutine and a buffer, and each read a pass
// through the scheduler.

// Protocols.
const (
	protocolSSE       = "sse"
	protocolWebSocket = "ws"
)

// dial connects to a loopback address. Source addresses differ, because each has
// only about 28,000 ports. The descriptor blocks: everything on it is done when
// epoll says that it can be.
func dial(server netip.AddrPort, source int) (fd int, err error) {
	if !server.Addr().IsLoopback() {
		return -1, fmt.Errorf("%v is not a loopback address", server)
	}
	fd, err = syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("socket: %w", err)
	}
	defer func() {
		if err != nil {
			syscall.Close(fd)
		}
	}()
	// Lets connect choose the port, so that a port serves again for another address.
	const ipBindAddressNoPort = 24
	if err := syscall.SetsockoptInt(fd, syscall.IPPROTO_IP, ipBindAddressNoPort, 1); err != nil {
		return -1, fmt.Errorf("IP_BIND_ADDRESS_NO_PORT: %w", err)
	}
	const sources = 64
	local := syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, byte(2 + source%sources)}}
	if err := syscall.Bind(fd, &local); err != nil {
		return -1, fmt.Errorf("bind: %w", err)
	}
	remote := syscall.SockaddrInet4{Addr: server.Addr().As4(), Port: int(server.Port())}
	if err := syscall.Connect(fd, &remote); err != nil {
		return -1, fmt.Errorf("connect: %w", err)
	}
	return fd, nil
}

// request is what a client sends to follow a topic, after the message named last
// if that is not empty.
func request(protocol string, topic int, last string) string {
	var b strings.Builder
	if protocol == protocolSSE {
		fmt.Fprintf(&b, "GET /events?topic=%s HTTP/1.1\r\nHost: bench\r\nAccept: text/event-stream\r\n", topicName(topic))
		if last != "" {
			fmt.Fprintf(&b, "Last-Event-ID: %s\r\n", last)
		}
	} else {
		fmt.Fprintf(&b, "GET /ws?topic=%s", topicName(topic))
		if last != "" {
			fmt.Fprintf(&b, "&since=%s", last)
		}
		b.WriteString(" HTTP/1.1\r\nHost: bench\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" +
			"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n")
	}
	b.WriteString("\r\n")
	return b.String()
}

package main

import (
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/usual2970/pushlet"
)

// TestTLS: all commands speak https and wss, to servers that the system trusts. (That Go heeds
// SSL_CERT_FILE is not so on every system.)
func TestTLS(t *testing.T) {
	t.Parallel()
	p := pushlet.New(pushlet.WithPushAuthorize(pushlet.AllowPush))
	check(t, p.Start())
	mux := http.NewServeMux()
	mux.HandleFunc("/events", p.HandleSSE)
	mux.HandleFunc("/ws", p.HandleWebSocket)
	mux.HandleFunc("/push", p.HandlePush)
	srv := httptest.NewUnstartedServer(mux)
	srv.EnableHTTP2 = true
	srv.StartTLS()
	t.Cleanup(func() {
		if err := p.Stop(); err != nil {
			t.Error(err)
		}
		srv.Close()
	})
	certificate := filepath.Join(t.TempDir(), "cert.pem")
	block := &pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}
	check(t, os.WriteFile(certificate, pem.EncodeToMemory(block), 0o600))
	addr := srv.Listener.Addr().String()
	for args, want := range map[string]int{
		"sub https://" + addr + " -last-event-id x -fail-on-gap": exitLost, // which it learns from the server
		"sub wss://" + addr + " -since a=1-0 -fail-on-gap":       exitLost,
		"pub https://" + addr + " -topic a x":                    exitOK,
		"bench https://" + addr + " -n 10 -for 200ms -settle 1m": exitOK,
		"bench wss://" + addr + " -n 10 -for 200ms -settle 1m":   exitOK,
	} {
		cmd := program(t, strings.Fields(args)...)
		cmd.Env = append(cmd.Env, "SSL_CERT_FILE="+certificate)
		out, _ := cmd.CombinedOutput() // the code says it
		if code := cmd.ProcessState.ExitCode(); code != want {
			t.Errorf("%s: exit code %d, want %d\n%s", args, code, want, out)
		}
	}
	_, stderr := runs(t, exitFailed, "", "bench", "https://"+addr, "-n", "1", "-no-publish", "-for", "1h")
	if !strings.Contains(stderr, "1 of 1 connections failed") {
		t.Errorf("of a server that nobody trusts it said %q", stderr)
	}
}

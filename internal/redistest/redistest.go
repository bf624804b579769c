// Package redistest runs real Redis servers for tests: alone, watched by sentinels, or as a
// cluster. They listen on free ports of 127.0.0.1 and end with the test that started them.
//
// What goes wrong ends the test with tb.Fatal, so the functions are for the test's own
// goroutine, but for [Server.Addr], [Server.Running] and [Server.TLSConfig].
package redistest

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// patience is how long anything here waits for what should happen soon.
const patience = 60 * time.Second

// A Server is a process of redis-server with a port and a directory of its own, which it
// keeps when it is killed and started again.
type Server struct {
	tb        testing.TB
	dir       string
	port      int
	args      []string // as on redis-server's command line, without the port
	sentinel  bool
	password  string
	tlsConfig *tls.Config   // of clients; nil without TLS
	admin     *redis.Client // for what the methods ask

	mu      sync.Mutex
	process *os.Process
	paused  bool
	ended   chan struct{} // closed when process is no more
}

// An Option says what is different from a server with Redis's defaults and no persistence.
type Option func(*Server)

// Args adds to the command line: Args("--maxmemory", "10mb").
func Args(args ...string) Option {
	return func(s *Server) { s.args = append(s.args, args...) }
}

// Password is what the default user has to give. [Server.Client] gives it.
func Password(password string) Option {
	return func(s *Server) {
		s.password = password
		s.args = append(s.args, "--requirepass", password, "--masterauth", password)
	}
}

// ACLUser adds a user with rules such as "~pushlet:* &pushlet:* +@all".
func ACLUser(name, password, rules string) Option {
	return func(s *Server) {
		s.args = append(s.args, "--user", name, "on", ">"+password)
		s.args = append(s.args, strings.Fields(rules)...)
	}
}

// AppendOnly keeps the data in a file, written to disk "always", "everysec" or "no".
func AppendOnly(fsync string) Option {
	return Args("--appendonly", "yes", "--appendfsync", fsync)
}

// TLS makes the server speak TLS only, with a certificate made for it.
func TLS() Option {
	return func(s *Server) {
		var err error
		if s.tlsConfig, err = writeCertificate(s.dir); err != nil {
			s.tb.Fatalf("certificate: %v", err)
		}
		s.args = append(s.args, "--tls-cert-file", filepath.Join(s.dir, "cert.pem"),
			"--tls-key-file", filepath.Join(s.dir, "key.pem"), "--tls-auth-clients", "no",
			"--tls-ca-cert-file", filepath.Join(s.dir, "ca.pem"))
	}
}

// Start starts a server and waits until it answers. Without redis-server on the PATH the
// test is skipped, or fails if PUSHLET_REQUIRE_REDIS is set.
func Start(tb testing.TB, options ...Option) *Server {
	tb.Helper()
	s := &Server{tb: tb, args: []string{
		"--bind", "127.0.0.1", "--loglevel", "warning", "--save", "", "--appendonly", "no",
	}}
	if err := s.makeDir(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(s.end)
	if _, err := exec.LookPath("redis-server"); err != nil {
		if os.Getenv("PUSHLET_REQUIRE_REDIS") != "" {
			tb.Fatal(err)
		}
		tb.Skip(err)
	}
	for _, o := range options {
		o(s)
	}
	if err := s.start(FreePort); err != nil {
		tb.Fatal(err)
	}
	return s
}

// start runs the server on one of the ports: another process may be faster to take one.
func (s *Server) start(ports func(testing.TB) int) (err error) {
	for range 5 {
		s.port = ports(s.tb)
		if s.admin != nil {
			s.admin.Close()
		}
		s.admin = redis.NewClient(s.options(adminOptions))
		if err = s.configure(); err != nil {
			return err
		}
		if err = s.run(); err == nil || !strings.Contains(err.Error(), "Failed listening on port") {
			return err
		}
	}
	return err
}

// makeDir is apart from Start because tb.TempDir, which a linter would have there, fails the
// test when a child of a killed server still writes.
func (s *Server) makeDir() (err error) {
	s.dir, err = os.MkdirTemp("", "redistest")
	return err
}

// configure writes the configuration to a file, where Redis can rewrite it: sentinels insist.
func (s *Server) configure() error {
	var conf strings.Builder
	port, noPort := "port", "tls-port"
	if s.tlsConfig != nil {
		port, noPort = noPort, port
	}
	fmt.Fprintf(&conf, "dir %q\n%s %d\n%s 0", s.dir, port, s.port, noPort)
	for _, arg := range s.args {
		if name, ok := strings.CutPrefix(arg, "--"); ok {
			conf.WriteString("\n" + name)
		} else {
			fmt.Fprintf(&conf, " %q", arg)
		}
	}
	conf.WriteString("\n")
	return os.WriteFile(s.file("redis.conf"), []byte(conf.String()), 0o600)
}

func (s *Server) file(name string) string { return filepath.Join(s.dir, name) }

// run starts the process and waits until it, and not another one on its port, has its data.
func (s *Server) run() error {
	output, err := os.OpenFile(s.file("output"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer output.Close()
	args := []string{s.file("redis.conf")}
	if s.sentinel {
		args = append(args, "--sentinel")
	}
	cmd := exec.CommandContext(context.Background(), "redis-server", args...)
	cmd.Stdout, cmd.Stderr = output, output
	dieWithParent(cmd)

	started, ended := make(chan error), make(chan struct{})
	go func() {
		defer close(ended)
		runtime.LockOSThread() // the parent, as Linux sees it, is this thread
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // how it ended does not matter
		}
	}()
	if err := <-started; err != nil {
		return err
	}
	s.mu.Lock()
	s.process, s.ended, s.paused = cmd.Process, ended, false
	s.mu.Unlock()

	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		err := s.ready(cmd.Process.Pid)
		switch {
		case err == nil:
			return nil
		case !s.Running():
			return fmt.Errorf("redis-server ended at once:\n%s", s.tail())
		case time.Now().After(deadline):
			return fmt.Errorf("redis-server is not ready: %w\n%s", err, s.tail())
		}
	}
}

// ready returns an error unless the process answers and has loaded its data.
func (s *Server) ready(pid int) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", s.Addr()) // a failure go-redis would log
	if err != nil {
		return err
	}
	conn.Close()
	info, err := s.info(ctx)
	switch {
	case err != nil:
		return err
	case info["process_id"] != strconv.Itoa(pid):
		return fmt.Errorf("process %s listens on port %d", info["process_id"], s.port)
	case info["loading"] == "1" || info["async_loading"] == "1":
		return errors.New("loading")
	}
	return nil
}

// end is the end of the test.
func (s *Server) end() {
	s.Kill()
	if s.admin != nil {
		s.admin.Close()
	}
	if s.tb.Failed() {
		s.tb.Logf("redis-server on port %d said:\n%s", s.port, s.tail())
	}
	// What the server forked to write a file may do so for a moment longer.
	var err error
	for range 100 {
		if err = os.RemoveAll(s.dir); err == nil {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	s.tb.Error(err)
}

// tail returns the last of what the server printed.
func (s *Server) tail() string {
	b, err := os.ReadFile(s.file("output"))
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-4000):])
}

// Addr returns the server's host:port.
func (s *Server) Addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)) }

// TLSConfig returns what a client needs to trust the server, or nil if it does without TLS.
func (s *Server) TLSConfig() *tls.Config { return s.tlsConfig.Clone() }

// Client returns a client of the server, closed at the end of the test.
func (s *Server) Client(options ...func(*redis.Options)) *redis.Client {
	c := redis.NewClient(s.options(options...))
	s.tb.Cleanup(func() { c.Close() })
	return c
}

func (s *Server) options(options ...func(*redis.Options)) *redis.Options {
	o := &redis.Options{Addr: s.Addr(), Password: s.password, TLSConfig: s.TLSConfig()}
	for _, option := range options {
		option(o)
	}
	return o
}

// adminOptions are for a client that soon says what is wrong.
func adminOptions(o *redis.Options) {
	o.MaxRetries, o.DialerRetries, o.ContextTimeoutEnabled = -1, 1, true
	o.DisableIdentity = true
	o.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
}

// Running reports whether the server's process is there; a paused one is.
func (s *Server) Running() bool {
	_, ended := s.current()
	select {
	case <-ended:
		return false
	default:
		return true
	}
}

// current returns the last process and what is closed at its end.
func (s *Server) current() (*os.Process, chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended == nil {
		s.ended = make(chan struct{})
		close(s.ended)
	}
	return s.process, s.ended
}

// signal sends the signals to the server if it is running.
func (s *Server) signal(signals ...syscall.Signal) {
	s.tb.Helper()
	process, _ := s.current()
	for _, sig := range signals {
		if !s.Running() {
			return
		}
		if err := process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
			s.tb.Fatalf("signal %v: %v", sig, err)
		}
	}
}

// wait waits for the end of the process.
func (s *Server) wait() {
	s.tb.Helper()
	_, ended := s.current()
	select {
	case <-ended:
	case <-time.After(patience):
		s.tb.Fatalf("redis-server has not ended within %v", patience)
	}
}

// Kill ends the server as a crash would, with SIGKILL.
func (s *Server) Kill() {
	s.tb.Helper()
	s.signal(syscall.SIGKILL)
	s.wait()
}

// Stop ends the server in good order, with SIGTERM, which is Redis's SHUTDOWN.
func (s *Server) Stop() {
	s.tb.Helper()
	s.signal(syscall.SIGTERM, sigcont)
	s.wait()
}

// Restart starts the server again, on its port and with the data it has on disk. One that
// is running is stopped first.
func (s *Server) Restart() {
	s.tb.Helper()
	s.Stop()
	if err := s.run(); err != nil {
		s.tb.Fatal(err)
	}
}

// Wipe deletes the data of a server that is down.
func (s *Server) Wipe() {
	s.tb.Helper()
	if s.Running() {
		s.tb.Fatal("Wipe of a running server")
	}
	for _, name := range []string{"appendonlydir", "dump.rdb"} {
		if err := os.RemoveAll(s.file(name)); err != nil {
			s.tb.Fatal(err)
		}
	}
}

// Pause stops the process where it is: its connections stay and nobody answers.
func (s *Server) Pause() {
	s.tb.Helper()
	s.pause(true)
	s.signal(sigstop)
}

// Continue ends a Pause.
func (s *Server) Continue() {
	s.tb.Helper()
	s.signal(sigcont)
	s.pause(false)
}

func (s *Server) pause(paused bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.paused = paused
}

// answers reports whether the server can be asked.
func (s *Server) answers() bool {
	s.mu.Lock()
	paused := s.paused
	s.mu.Unlock()
	return !paused && s.Running()
}

// CPU returns the processor time the server has used since its start.
func (s *Server) CPU() time.Duration {
	s.tb.Helper()
	info, err := s.info(context.Background())
	if err != nil {
		s.tb.Fatalf("INFO: %v", err)
	}
	var seconds float64
	for _, name := range []string{"used_cpu_user", "used_cpu_sys"} {
		n, err := strconv.ParseFloat(info[name], 64)
		if err != nil {
			s.tb.Fatalf("INFO: %s: %v", name, err)
		}
		seconds += n
	}
	return time.Duration(seconds * float64(time.Second))
}

// info returns the fields of INFO.
func (s *Server) info(ctx context.Context) (map[string]string, error) {
	text, err := s.admin.Info(ctx).Result()
	return fields(text), err
}

// onlineReplicas returns an error unless the server is a master and n replicas, or more, get
// what is written to it.
func (s *Server) onlineReplicas(ctx context.Context, n int) error {
	info, err := s.info(ctx)
	if err != nil {
		return err
	}
	if info["role"] != "master" {
		return fmt.Errorf("%s is a %s", s.Addr(), info["role"])
	}
	online := 0
	for i := 0; info["slave"+strconv.Itoa(i)] != ""; i++ {
		if strings.Contains(info["slave"+strconv.Itoa(i)], "state=online") {
			online++
		}
	}
	if online < n {
		return fmt.Errorf("%s has %d online replicas, not %d", s.Addr(), online, n)
	}
	return nil
}

// fields returns the lines "name:value" of what INFO or CLUSTER INFO answered.
func fields(text string) map[string]string {
	m := make(map[string]string)
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			m[name] = value
		}
	}
	return m
}

// do sends a command and fails the test if the answer is an error.
func (s *Server) do(args ...any) *redis.Cmd {
	s.tb.Helper()
	cmd := s.admin.Do(context.Background(), args...)
	if err := cmd.Err(); err != nil {
		s.tb.Fatalf("%s: %v: %v", s.Addr(), args, err)
	}
	return cmd
}

// eventually tries again and again until there is no error, and gives each try some time.
func eventually(tb testing.TB, what string, try func(context.Context) error) {
	tb.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(tb.Context()), 2*time.Second) // also in a Cleanup
		err := try(ctx)
		cancel()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			tb.Fatalf("not within %v: %s: %v", patience, what, err)
		}
	}
}

// taken are the ports given to tests that still run, whether or not they are in use now.
var taken sync.Map

// FreePort returns a port on which nobody listens, and which is not given to anyone else
// before the end of the test; nor is the one 10000 above, for the bus of a cluster.
// Outgoing connections do not take it either: it is below the ports they usually have.
func FreePort(tb testing.TB) int {
	tb.Helper()
	for range 1000 {
		port := 10000 + mathrand.IntN(10000) //nolint:gosec // nothing depends on its being hard to guess
		if _, used := taken.LoadOrStore(port, true); used {
			continue
		}
		if !canListen(port) || !canListen(port+10000) {
			taken.Delete(port)
			continue
		}
		tb.Cleanup(func() { taken.Delete(port) })
		return port
	}
	tb.Fatal("no free port")
	return 0
}

func canListen(port int) bool {
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
	if err != nil {
		return false
	}
	l.Close()
	return true
}

// writeCertificate makes an authority and a certificate for 127.0.0.1, writes what the
// server needs to the directory, and returns what a client needs.
func writeCertificate(dir string) (*tls.Config, error) {
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(24 * time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	ca, err := x509.CreateCertificate(rand.Reader, template, template, caKey.Public(), caKey)
	if err != nil {
		return nil, err
	}
	parent, err := x509.ParseCertificate(ca)
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template.SerialNumber, template.IsCA, template.KeyUsage = big.NewInt(2), false, x509.KeyUsageDigitalSignature
	template.IPAddresses, template.DNSNames = []net.IP{net.IPv4(127, 0, 0, 1)}, []string{"localhost"}
	cert, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), caKey)
	if err != nil {
		return nil, err
	}
	keyBytes, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	for name, block := range map[string]*pem.Block{
		"ca.pem":   {Type: "CERTIFICATE", Bytes: ca},
		"cert.pem": {Type: "CERTIFICATE", Bytes: cert},
		"key.pem":  {Type: "PRIVATE KEY", Bytes: keyBytes},
	} {
		var b bytes.Buffer
		if err := errors.Join(pem.Encode(&b, block),
			os.WriteFile(filepath.Join(dir, name), b.Bytes(), 0o600)); err != nil {
			return nil, err
		}
	}
	roots := x509.NewCertPool()
	roots.AddCert(parent)
	return &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}, nil
}

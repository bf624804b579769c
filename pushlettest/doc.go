// Package pushlettest helps to test applications that push with Pushlet. It serves their
// handlers in memory, by the real net/http and the real library, to clients of both
// protocols that behave as browsers do, and breaks connections where a test wants it.
//
//	func TestNews(t *testing.T) {
//		p := pushlet.New()
//		srv := pushlettest.Serve(t, p) // or NewServer(t, your handler)
//		c := srv.SSE("/events?topic=news")
//
//		p.Publish("news", "message", "one")
//		c.Expect("message", "one")
//
//		c.Drop() // the network fails
//		p.Publish("news", "message", "two")
//		c.Reconnect() // as a browser does
//		c.Expect("message", "two")
//		if gaps := c.Gaps(); len(gaps) > 0 {
//			t.Error("messages were lost:", gaps)
//		}
//	}
//
// Nothing sleeps: a client waits for what a test wants, and when it has not come in 10
// seconds ([WithTimeout]) the test fails, and says what came instead. When the test is over
// everything is ended and waited for.
//
// # Fake time
//
// All of it works in a bubble of testing/synctest, where heartbeats, timeouts and the
// expiry of history take no time. Make the Pushlet and the Server inside:
//
//	synctest.Test(t, func(t *testing.T) {
//		p := pushlet.New(pushlet.WithHistory(1000, 1<<20, time.Hour))
//		c := pushlettest.Serve(t, p).SSE("/events?topic=news")
//		time.Sleep(5 * time.Minute) // passes at once
//		…
//	})
//
// The library's clock ticks every second, so a day takes about a second under the race
// detector. Distributed mode needs a Redis, whose connections a bubble does not know of, so
// test that outside.
//
// # What it is not
//
// Connections are HTTP/1.1 without TLS, on an http.Server of this package. They have no socket of the operating system, so what
// the library does with sockets is not tested: there, a peer that has vanished is noticed
// over SSE by what TCP does not acknowledge; here, by the write timeout. A chunk of up to 16
// KiB, as the library writes them, has to be taken within the write timeout as a whole.
package pushlettest

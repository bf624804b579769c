package browsertest

import (
	"os"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
)

// The pages in testdata are those of the project's documents, byte for byte.

func readPage(t *testing.T, name string) string {
	t.Helper()
	page, err := os.ReadFile("testdata/" + name)
	must(t, err)
	return string(page)
}

// shows is the JavaScript condition that a line with this text is in the page.
func shows(text string) string {
	return `[...document.querySelectorAll("#messages > div")].some(div => div.textContent === "` + text + `")`
}

func TestDocumentBasicPage(t *testing.T) {
	t.Parallel()
	p := startPushlet(t)
	server := serve(t, p, routes(p, readPage(t, "basic.html")))
	tab := openTab(t, server.URL)
	tab.waitFor(`evtSource.readyState === EventSource.OPEN`)

	must(t, p.Publish("default", "message", "你好, World!"))
	tab.waitFor(shows("收到消息: 你好, World!"))
	must(t, p.Publish("default", "custom-event", "special"))
	tab.waitFor(shows("收到自定义事件: special") + ` && document.querySelector("#messages > div:last-child").style.color === "blue"`)
	must(t, p.PublishToAll("message", "for all"))
	tab.waitFor(shows("收到消息: for all"))
	if n := eval[int](tab, `document.querySelectorAll("#messages > div").length`); n != 3 {
		t.Errorf("%d lines in the page, want 3", n)
	}
}

func TestDocumentUserLogin(t *testing.T) {
	t.Parallel()
	p := startPushlet(t)
	server := serve(t, p, routes(p, blankPage))
	tab := openTab(t, server.URL)
	eval[chromedp.Void](tab, `
		window.logged = [];
		console.log = (...args) => logged.push(args.join(" "));
		window.evtSource = follow("/events?topic=user-notifications");
		// As in the document.
		evtSource.addEventListener("user-login", function(e) {
		    console.log("User login event:", e.data);
		});`)
	tab.waitFor(`evtSource.connected === 1`)

	must(t, p.Publish("user-notifications", "user-login", "User John has logged in"))
	tab.waitFor(`logged[0] === "User login event: User John has logged in"`)
}

func TestDocumentSSEPage(t *testing.T) {
	t.Parallel()
	p := startPushlet(t)
	server := serve(t, p, routes(p, readPage(t, "sse.html")))
	tab := openTab(t, server.URL)
	tab.waitFor(`evtSource.readyState === EventSource.OPEN`)

	must(t, p.Publish("default", "message", "not for this page"))
	must(t, p.Publish("my-topic", "message", "Hello, World!"))
	tab.waitFor(shows("SSE 消息: Hello, World!"))
	if n := eval[int](tab, `document.querySelectorAll("#messages > div").length`); n != 1 {
		t.Errorf("%d lines in the page, want 1", n)
	}
}

func TestDocumentWebSocketPage(t *testing.T) {
	t.Parallel()
	p := startPushlet(t)
	routes := routes(p, "")
	server := serve(t, p, routes)
	address := server.Listener.Addr().String()
	page := strings.Replace(readPage(t, "websocket.html"), "localhost:8080", address, 1)
	routes.HandleFunc("/page", servePage(page))

	tab := openTab(t, server.URL+"/page")
	tab.waitFor(`ws.readyState === WebSocket.OPEN`)
	tab.do(chromedp.Click(chromedp.CSS(`button[onclick="subscribe('topic1')"]`)))
	tab.waitFor(shows("[pushlet.subscribed] "))
	must(t, p.Publish("topic1", "message", "Hello, World!"))
	tab.waitFor(shows("[message] Hello, World!"))
	must(t, p.Publish("topic1", "custom-event", "special"))
	tab.waitFor(shows("[custom-event] special"))

	// The answer to the second subscription says that the server has also seen the unsubscription.
	tab.do(chromedp.Click(chromedp.CSS(`button[onclick="unsubscribe('topic1')"]`)))
	eval[chromedp.Void](tab, `subscribe("topic2")`)
	tab.waitFor(`document.body.textContent.split("[pushlet.subscribed]").length === 3`)
	must(t, p.Publish("topic1", "message", "no longer wanted"))
	must(t, p.Publish("topic2", "message", "wanted"))
	tab.waitFor(shows("[message] wanted"))
	if eval[bool](tab, shows("[message] no longer wanted")) {
		t.Error("a message came after its topic was unsubscribed")
	}
}

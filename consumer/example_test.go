package consumer_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"

	"github.com/usual2970/pushlet"
	"github.com/usual2970/pushlet/consumer"
)

// newServer starts a server with /events and /ws for the examples.
func newServer() (p *pushlet.Pushlet, url string, end func()) {
	p = pushlet.New(pushlet.WithLogger(silent))
	if err := p.Start(); err != nil {
		panic(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/events", p.HandleSSE)
	mux.HandleFunc("/ws", p.HandleWebSocket)
	srv := httptest.NewServer(mux)
	return p, srv.URL, func() {
		p.Stop()
		srv.Close()
	}
}

func publish(p *pushlet.Pushlet, topic, event, data string) {
	if err := p.Publish(topic, event, data); err != nil {
		panic(err)
	}
}

func ExampleSubscribe() {
	p, url, end := newServer()
	defer end()

	// So that there is something to receive: what is published once the topic is followed.
	ready := consumer.WithOnSubscribed(func(topic string) {
		publish(p, topic, "headline", "Gophers found on the moon")
		publish(p, topic, "headline", "They were there all along")
	})

	for msg, err := range consumer.Subscribe(context.Background(), url+"/events?topic=news", ready) {
		if err != nil {
			fmt.Println("for good:", err)
			break
		}
		fmt.Println(msg.Event, msg.Data)
		if strings.HasPrefix(msg.Data, "They") {
			break // closes the connection
		}
	}
	// Output:
	// headline Gophers found on the moon
	// headline They were there all along
}

func ExampleNewClient() {
	p, url, end := newServer()
	defer end()

	client := consumer.NewClient(url + "/events?topic=news")
	client.OnEvent("message", func(msg *consumer.Message) {
		fmt.Println("received:", msg.Data)
		client.Stop()
	})
	client.OnError(func(err error) { fmt.Println("error:", err) })
	client.OnConnection(func() { fmt.Println("connected") })
	client.OnSubscribed(func(topic string) { publish(p, topic, "message", "hello") })

	if err := client.Connect(); err != nil {
		fmt.Println("no connection:", err)
		return
	}
	<-client.Wait()
	// Output:
	// connected
	// received: hello
}

// Over WebSocket topics may come and go.
func ExampleClient_Subscribe() {
	p, url, end := newServer()
	defer end()

	client := consumer.NewClient(strings.Replace(url, "http", "ws", 1)+"/ws", consumer.WithTopics("lobby"))
	client.OnSubscribed(func(topic string) { publish(p, topic, "message", "welcome to "+topic) })
	for msg, err := range client.Messages(context.Background()) {
		if err != nil {
			fmt.Println("for good:", err)
			break
		}
		fmt.Println(msg.Topic+":", msg.Data)
		if msg.Topic == "room/7" {
			break
		}
		if err := errors.Join(client.Unsubscribe("lobby"), client.Subscribe("room/7")); err != nil {
			fmt.Println("not over SSE:", err)
		}
	}
	// Output:
	// lobby: welcome to lobby
	// room/7: welcome to room/7
}

// What the server refuses for good ends the loop; what may pass is told to OnError.
func ExampleResponseError() {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "not for you", http.StatusForbidden)
	}))
	defer srv.Close()
	for _, err := range consumer.Subscribe(context.Background(), srv.URL) {
		var answer *consumer.ResponseError
		if errors.As(err, &answer) {
			fmt.Println(answer.Status, err)
		}
	}
	// Output:
	// 403 consumer: status 403 Forbidden: "not for you"
}

// A Decoder reads an event stream from anywhere, such as a file.
func ExampleDecoder() {
	d := consumer.NewDecoder(strings.NewReader("id: 7\nevent: greeting\ndata: hello\ndata: world\n\n"))
	for {
		msg, err := d.Next()
		if err != nil {
			break // io.EOF
		}
		fmt.Printf("%s %s %q\n", msg.ID, msg.Event, msg.Data)
	}
	// Output:
	// 7 greeting "hello\nworld"
}

package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"net"
	"net/http"

	"github.com/gin-gonic/gin"

	"github.com/usual2970/pushlet"
)

// newHub makes the Pushlet. It knows nothing of gin.
func newHub(token string) *pushlet.Pushlet {
	return pushlet.New(
		pushlet.WithIdentity(uidOf),
		pushlet.WithPushAuthorize(func(r *http.Request) error { return mayPush(r, token) }),
	)
}

// routes is where gin and Pushlet meet.
func routes(p *pushlet.Pushlet) *gin.Engine {
	r := gin.New()
	r.Use(gin.Recovery())

	r.GET("/events", authenticate, passUID, gin.WrapF(p.HandleSSE))
	r.GET("/ws", authenticate, passUID, gin.WrapF(p.HandleWebSocket))
	r.POST("/push", gin.WrapF(p.HandlePush))

	r.GET("/stats", func(c *gin.Context) { c.String(http.StatusOK, "%v\n", p.Stats()) })
	r.GET("/", func(c *gin.Context) { c.Data(http.StatusOK, "text/html; charset=utf-8", page) })
	return r
}

// authenticate stands for an application's login: it sets "uid". Here everybody is who they
// say they are, or somebody new.
func authenticate(c *gin.Context) {
	uid := c.Query("uid")
	if uid == "" {
		uid = "guest-" + rand.Text()[:8]
	}
	c.Set("uid", uid)
}

type uidKey struct{}

// passUID hands on what a login has set in gin's context. Pushlet sees the request, and the
// request's context has none of it.
func passUID(c *gin.Context) {
	ctx := context.WithValue(c.Request.Context(), uidKey{}, c.GetString("uid"))
	c.Request = c.Request.WithContext(ctx)
}

// uidOf tells Pushlet whose connection it is.
func uidOf(r *http.Request) (string, error) {
	uid, _ := r.Context().Value(uidKey{}).(string)
	if uid == "" {
		return "", errors.New("please log in")
	}
	return uid, nil
}

// mayPush lets in who has the token; without one, who is on this machine.
func mayPush(r *http.Request, token string) error {
	if token != "" {
		// Hashes have one length, and comparing them takes one time.
		given := sha256.Sum256([]byte(r.Header.Get("Authorization")))
		want := sha256.Sum256([]byte("Bearer " + token))
		if subtle.ConstantTimeCompare(given[:], want[:]) == 0 {
			return fmt.Errorf("%w: a bearer token is needed", pushlet.ErrUnauthenticated)
		}
		return nil
	}
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if ip := net.ParseIP(host); err != nil || ip == nil || !ip.IsLoopback() {
		return errors.New("only from this machine, unless PUSH_TOKEN is set")
	}
	return nil
}

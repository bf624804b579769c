package main

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
)

// settings are what the environment says.
type settings struct {
	addr    string // to listen at
	channel string
	origins []string // whose pages may connect besides our own

	redisAddr, redisUser, redisPassword string
	redisDB                             int
}

// readSettings returns the settings, or all that is wrong with them.
func readSettings(getenv func(string) string) (settings, error) {
	var errs []error
	text := func(name, fallback string) string { return cmp.Or(getenv(name), fallback) }
	number := func(name, fallback string, least, most int) int {
		n, err := strconv.Atoi(text(name, fallback))
		if err != nil || n < least || n > most {
			errs = append(errs, fmt.Errorf("%s: %q is not a number from %d to %d", name, text(name, fallback), least, most))
		}
		return n
	}
	address := func(host, defaultHost, port, defaultPort string, leastPort int) string {
		return net.JoinHostPort(text(host, defaultHost), strconv.Itoa(number(port, defaultPort, leastPort, 65535)))
	}
	s := settings{
		addr:          address("SSE_HOST", "0.0.0.0", "SSE_PORT", "8085", 0),
		channel:       text("SSE_REDIS_CHANNEL", "notifications"),
		redisAddr:     address("REDIS_HOST", "127.0.0.1", "REDIS_PORT", "6379", 1),
		redisUser:     getenv("REDIS_USERNAME"),
		redisPassword: getenv("REDIS_PASSWORD"),
		redisDB:       number("REDIS_MAIN_DB", "1", 0, 1<<30),
	}
	for origin := range strings.SplitSeq(getenv("SSE_ALLOWED_ORIGINS"), ",") {
		origin = strings.TrimSpace(origin)
		switch {
		case origin == "":
		case origin == "*" || isOrigin(origin):
			s.origins = append(s.origins, origin)
		default:
			errs = append(errs, fmt.Errorf("SSE_ALLOWED_ORIGINS: %q is not an origin such as https://app.example.com", origin))
		}
	}
	return s, errors.Join(errs...)
}

// isOrigin reports whether a browser could send this as the origin of a page: no path, not even
// a slash.
func isOrigin(s string) bool {
	u, err := url.Parse(s)
	return err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != "" && s == u.Scheme+"://"+u.Host
}

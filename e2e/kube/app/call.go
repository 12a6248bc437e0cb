package app

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// Call asks once: an http:// URL is fetched on a connection of its own; tcp:// expects
// the echo of a line, first:// the greeting of a server that speaks first.
type Call struct {
	URL     string `json:"url"`
	Timeout string `json:"timeout,omitempty"` // default 5s
}

// Result is how a call went.
type Result struct {
	OK     bool    `json:"ok"`
	Err    string  `json:"err,omitempty"`
	Answer Answer  `json:"answer"`
	MS     float64 `json:"ms"`
}

// Do makes the call.
func (c Call) Do(ctx context.Context) Result {
	timeout, err := time.ParseDuration(c.Timeout)
	if err != nil {
		timeout = 5 * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	began := time.Now()
	var r Result
	r.Answer, err = c.ask(ctx)
	r.MS = float64(time.Since(began).Microseconds()) / 1000
	if r.OK = err == nil; err != nil {
		r.Err = err.Error()
	}
	return r
}

func (c Call) ask(ctx context.Context) (Answer, error) {
	u, err := url.Parse(c.URL)
	if err != nil {
		return Answer{}, err
	}
	switch u.Scheme {
	case "http":
		return askHTTP(ctx, c.URL)
	case "tcp", "first":
		return askTCP(ctx, u.Host, u.Scheme == "first")
	}
	return Answer{}, fmt.Errorf("%s: want http://, tcp:// or first://", c.URL)
}

func askHTTP(ctx context.Context, target string) (a Answer, err error) {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return a, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
	if err != nil {
		return a, err
	}
	if resp.StatusCode != http.StatusOK {
		return a, fmt.Errorf("%s: %.100s", resp.Status, body)
	}
	_ = json.Unmarshal(body, &a) // another server answered; that it did is enough
	return a, nil
}

func askTCP(ctx context.Context, addr string, first bool) (a Answer, err error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return a, err
	}
	defer conn.Close()
	if d, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(d) // a fresh connection takes one
	}
	in := bufio.NewReader(conn)
	if first {
		line, err := in.ReadString('\n')
		a.Pod = strings.TrimSpace(strings.TrimPrefix(line, "hello from "))
		return a, err
	}
	return a, echoOnce(conn, in, "are you there\n")
}

// echoOnce sends one line and expects it back.
func echoOnce(conn net.Conn, in *bufio.Reader, line string) error {
	if _, err := io.WriteString(conn, line); err != nil {
		return err
	}
	got, err := in.ReadString('\n')
	if err == nil && got != line {
		err = fmt.Errorf("the echo of %q was %q", line, got)
	}
	return err
}

package relay_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/warren-mesh/warren/proxy/relay"
)

// TestSmallWordsToAStalledReader: what comes while a few bytes wait for room is not
// forgotten when there is room again, though nothing follows it.
func TestSmallWordsToAStalledReader(t *testing.T) {
	app, a := conns(t)
	b, backend := conns(t)
	_ = b.SetWriteBuffer(16 << 10)
	_ = backend.SetReadBuffer(64 << 10)
	var c relay.Counters
	done := make(chan relay.Result, 1)
	flow := newRelay(t).Start(a, relay.TCP(b), &c, func(r relay.Result) { done <- r })
	total := 0
	for moved := int64(-1); moved != c.Sent.Load(); {
		moved = c.Sent.Load()
		for range 10 { // one by one: none is bulk
			write(t, app, strings.Repeat("x", 1000))
			total += 1000
			time.Sleep(200 * time.Microsecond)
		}
		time.Sleep(20 * time.Millisecond)
	}
	for got, buf := 0, make([]byte, 64<<10); got < total; {
		_ = backend.SetReadDeadline(time.Now().Add(3 * time.Second))
		n, err := backend.Read(buf)
		if got += n; err != nil {
			t.Fatalf("%d of %d bytes: %v", got, total, err)
		}
	}
	flow.Cut(errors.New("test is over"))
	<-done
}

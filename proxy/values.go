package proxy

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"
)

func parseNumber(s string) (uint64, error) { return strconv.ParseUint(s, 10, 64) }

func validJSON(s string) bool { return json.Valid([]byte(s)) }

func validHeader(name, value string) bool {
	return httpguts.ValidHeaderFieldName(name) && httpguts.ValidHeaderFieldValue(value)
}

var errDuration = errors.New("want something like 24h, 1h30m or 90 (seconds)")

// parseDuration reads durations as people write them: Go's (1h30m), with spaces
// and long names (1hour 30min), days and weeks, and bare seconds.
func parseDuration(s string) (time.Duration, error) {
	rest := strings.TrimSpace(s)
	if n, err := parseNumber(rest); err == nil {
		if n > uint64(math.MaxInt64/time.Second) {
			return 0, fmt.Errorf("%q is too long", s)
		}
		return time.Duration(n) * time.Second, nil
	}
	var sum time.Duration
	for rest != "" {
		digits := len(rest) - len(strings.TrimLeft(rest, "0123456789"))
		n, err := parseNumber(rest[:digits])
		if err != nil {
			return 0, fmt.Errorf("%q: %w", s, errDuration)
		}
		rest = strings.TrimSpace(rest[digits:])
		letters := strings.IndexAny(rest, " 0123456789")
		if letters < 0 {
			letters = len(rest)
		}
		unit := unitOf(rest[:letters])
		if unit == 0 {
			return 0, fmt.Errorf("%q: %w", s, errDuration)
		}
		if n > uint64((math.MaxInt64-sum)/unit) {
			return 0, fmt.Errorf("%q is too long", s)
		}
		sum += time.Duration(n) * unit
		rest = strings.TrimSpace(rest[letters:])
	}
	if s == "" {
		return 0, fmt.Errorf("empty: %w", errDuration)
	}
	return sum, nil
}

func unitOf(name string) time.Duration {
	switch name {
	case "ns", "nsec":
		return time.Nanosecond
	case "us", "µs", "usec":
		return time.Microsecond
	case "ms", "msec", "millis":
		return time.Millisecond
	case "s", "sec", "secs", "second", "seconds":
		return time.Second
	case "m", "min", "mins", "minute", "minutes":
		return time.Minute
	case "h", "hr", "hrs", "hour", "hours":
		return time.Hour
	case "d", "day", "days":
		return 24 * time.Hour
	case "w", "week", "weeks":
		return 7 * 24 * time.Hour
	}
	return 0
}

// threads is how many system threads may run Go code at once: a number, a part
// of the CPUs, 0 for all of them. Unset it is the mesh's concurrency, if any.
func (e *environ) threads(c Config) int {
	const name = "ZTUNNEL_WORKER_THREADS"
	v, ok := e.vars[name]
	if !ok {
		return c.Threads
	}
	all := c.cpus(machine{cpus: runtime.NumCPU()})
	if p, isPart := strings.CutSuffix(v, "%"); isPart {
		n, err := parseNumber(p)
		if err != nil || n == 0 || n > 100 {
			e.bad(name, "%q is not a part from 1%% to 100%%", v)
			return 0
		}
		return (all*int(n) + 99) / 100
	}
	if n := int(e.number(name, 0, 0, 1024)); n > 0 {
		return n
	}
	return all
}

// cpus is a number of CPUs; 0: not said.
func (e *environ) cpus(name string) int {
	v := e.text(name, "")
	if v == "" {
		return 0
	}
	n, err := parseCPUs(v)
	if err != nil {
		e.bad(name, "%w", err)
	}
	return n
}

func itoa(n int) string { return strconv.Itoa(n) }

func cmpText(a, b string) int { return strings.Compare(a, b) }

// orNone is an error's text for a log.
func orNone(err error) string {
	if err == nil {
		return "none"
	}
	return err.Error()
}

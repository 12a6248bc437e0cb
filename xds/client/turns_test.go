package client

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestAskedAnewAmongMany: what is asked for anew is asked for in the message after that
// which gives it back, however many names there are: one message later it would be gone.
func TestAskedAnewAmongMany(t *testing.T) {
	list := func(what string, n int) (names []string) {
		for i := range n {
			names = append(names, fmt.Sprint(what, i))
		}
		return names
	}
	for _, tt := range []struct {
		name            string
		renewed, others int
		evicted         int // given back for good
		last            bool
	}{
		{name: "nothing"},
		{name: "one", renewed: 1},
		{name: "one waypoint after what a pod opens", others: maxNamesSent + 1, renewed: 1, last: true},
		{name: "more than a message is renewed", renewed: 2*maxNamesSent + 1},
		{name: "in front of others", renewed: 2, others: 2 * maxNamesSent},
		{name: "all at once", renewed: maxNamesSent + 7, others: maxNamesSent + 7, evicted: maxNamesSent + 7, last: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, _ := newClient(t, onDemandConfig("http://localhost:1"))
			f := &fakeStream{ctx: t.Context()}
			s := newSession(c, f, func(error) {})
			c.asks.restart()
			now := time.Unix(100, 0)
			renewed, others, evicted := list("renewed", tt.renewed), list("other", tt.others), list("evicted", tt.evicted)
			ask := func(names []string) {
				t.Helper()
				for _, name := range names {
					if a, err := c.asks.ask(name, now); a == nil || err != nil {
						t.Fatal(name, a, err)
					}
				}
			}
			ask(renewed)
			c.asks.due()
			for _, name := range renewed {
				c.asks.answer(name, false, nil, now)
			}
			now = now.Add(time.Hour)
			if !tt.last {
				ask(renewed)
			}
			ask(others)
			if tt.last {
				ask(renewed)
			}
			c.asks.leave = append(slices.Clone(evicted), c.asks.leave...)
			if err := s.demand(t.Context()); err != nil {
				t.Fatal(err)
			}

			subscribed, back := map[string]int{}, []string(nil)
			for _, r := range f.sent {
				names := r.GetResourceNamesSubscribe()
				for _, name := range back {
					if !strings.HasPrefix(name, "evicted") && !slices.Contains(names, name) {
						t.Fatalf("%s is not asked for in the message after that which gives it back", name)
					}
				}
				back = r.GetResourceNamesUnsubscribe()
				if n := max(len(names), len(back)); n == 0 || n > maxNamesSent {
					t.Errorf("a message of %d names", n)
				}
				for _, name := range names {
					subscribed[name]++
				}
			}
			delete(subscribed, nothing)
			for _, name := range slices.Concat(renewed, others) {
				if subscribed[name] != 1 {
					t.Errorf("%s is asked for %d times", name, subscribed[name])
				}
			}
			if len(subscribed) != tt.renewed+tt.others {
				t.Errorf("%d names are asked for, want %d", len(subscribed), tt.renewed+tt.others)
			}
		})
	}
}

// TestTurns: a name that was given back twice, with a question between, is asked for after
// its last.
func TestTurns(t *testing.T) {
	for _, tt := range []struct {
		leave, enter []string
		want         string
	}{
		{nil, nil, "[]"},
		{[]string{"a", "b"}, nil, "[{[a b] []}]"},
		{nil, []string{"a", "b", "a"}, "[{[] [a b]}]"},
		{[]string{"b", "a", "b"}, []string{"x", "b", "b", "y"}, "[{[b a] [b x y]}]"},
	} {
		if got := fmt.Sprint(turns(tt.leave, tt.enter)); got != tt.want {
			t.Errorf("%v, %v: %s, want %s", tt.leave, tt.enter, got, tt.want)
		}
	}
}

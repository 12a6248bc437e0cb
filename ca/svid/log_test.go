package svid_test

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/warren-mesh/warren/ca/svid"
)

// lines is a log.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

// count is of the lines in which all words are.
func (l *lines) count(words ...string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.buf.String()) {
		all := true
		for _, w := range words {
			all = all && strings.Contains(line, w)
		}
		if all {
			n++
		}
	}
	return n
}

// Of many pods of one identity the log says which one a line is about: what began and came of it, the end of its stream,
// and what will be taken back.
func TestTheLogNamesThePod(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, log := newAgent(t), &lines{}
		m, stop := run(t, svid.Config{Watcher: a, Log: slog.New(slog.NewTextHandler(log, nil))})
		defer stop()
		a.give(pod(0).UID, sa("a"))
		mustIdentity(t, m.Acquire(pod(0), sa("a")))
		m.Acquire(pod(1), sa("a")) // which has nothing
		time.Sleep(time.Minute)
		a.end(pod(0).UID, svid.ErrProcessEnded)
		time.Sleep(time.Second)
		a.end(pod(1).UID, errors.New("the agent is away"))
		time.Sleep(time.Minute)
		for n, want := range map[int][]string{
			0: {"rotation started", "rotation completed", "stream of certificates", "will be taken back"},
			1: {"rotation started", "rotation failed", "stream of certificates"},
		} {
			for _, words := range want {
				if log.count(words, "uid="+pod(n).UID) == 0 {
					t.Errorf("no line says %q of pod %d", words, n)
				}
			}
		}
	})
}

// Roots that come and go are in the log: they end connections.
func TestTheLogTellsOfRoots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, log := newLiar(t), &lines{}
		m, stop := run(t, svid.Config{Signer: l, Log: slog.New(slog.NewTextHandler(log, nil))})
		defer stop()
		mustIdentity(t, m.Acquire(pod(0), sa("a")))
		if log.count("trusted roots changed", "roots=1", "were=0") != 1 {
			t.Error("not of the first")
		}
		other := newLiar(t)
		l.mu.Lock()
		l.root, l.key = other.root, other.key
		l.mu.Unlock()
		time.Sleep(10 * time.Minute)
		if log.count("trusted roots changed") != 2 {
			t.Errorf("%d lines about roots", log.count("trusted roots changed"))
		}
	})
}

// What is all pods' is named after none of them: the one that came first may be gone.
func TestTheLogNamesNoPodOfMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, log := newSigner(t), &lines{}
		m, stop := run(t, svid.Config{Signer: a, Log: slog.New(slog.NewTextHandler(log, nil))})
		defer stop()
		first := m.Acquire(pod(0), sa("a"))
		mustIdentity(t, first)
		mustIdentity(t, m.Acquire(pod(1), sa("a")))
		first.Release()
		time.Sleep(24 * time.Hour)
		if log.count("rotation completed") < 2 || log.count("uid=") > 0 || m.Dump()[0].Pod != (svid.Pod{}) {
			t.Errorf("%d lines, %d of them name a pod; %+v", log.count(""), log.count("uid="), m.Dump()[0].Pod)
		}
	})
}

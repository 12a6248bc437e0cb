package server

import (
	"strconv"
	"testing"
	"testing/synctest"
	"time"
)

func TestPublisherDebounces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		snaps := make([]*Snapshot, 300)
		for i := range snaps {
			snaps[i] = &Snapshot{version: strconv.Itoa(i)}
		}
		p := newPublisher(100*time.Millisecond, 10*time.Second)
		newest := func() *Snapshot {
			synctest.Wait()
			s, _ := p.newest()
			return s
		}
		_, changed := p.newest()
		p.set(snaps[0])
		if newest() != snaps[0] {
			t.Fatal("the first snapshot is not published at once")
		}
		<-changed

		p.set(snaps[1])
		time.Sleep(60 * time.Millisecond)
		p.set(snaps[2])
		time.Sleep(60 * time.Millisecond)
		if newest() != snaps[0] {
			t.Fatal("published though it was not quiet")
		}
		time.Sleep(40 * time.Millisecond)
		if newest() != snaps[2] {
			t.Fatal("not published though it was quiet")
		}

		p.set(snaps[3])
		p.set(&Snapshot{version: snaps[2].version})
		time.Sleep(time.Minute)
		if newest() != snaps[2] {
			t.Fatal("published though everything had changed back")
		}

		start := time.Now()
		for i := 3; newest() == snaps[2]; i++ {
			p.set(snaps[i])
			time.Sleep(50 * time.Millisecond)
		}
		if d := time.Since(start); d < 10*time.Second || d > 10200*time.Millisecond {
			t.Fatalf("a burst without end was published after %v, want 10 s", d)
		}
	})
}

package proxy

import (
	"io"
	"log/slog"
	"sync"
	"time"
)

const (
	maxLogLines = 10000
	maxLogBytes = 8 << 20
	// lastWords is how long the end waits for a reader of the log.
	lastWords = 2 * time.Second
	// logPause is how long lines are gathered after a write: one write, and one
	// waking of who does it, for each would cost as much again as making them.
	logPause = 5 * time.Millisecond
)

// logSink takes finished lines and writes them from a goroutine of its own, many
// at a time. A writer that is slower than the lines come costs lines, never a
// connection's time; how many is said as soon as it can be.
type logSink struct {
	w      io.Writer
	encode encoder
	wake   chan struct{}
	quit   chan struct{}
	done   chan struct{}
	once   sync.Once // closes quit

	mu      sync.Mutex
	buf     []byte
	lines   int
	dropped int
	lost    int // since the start
	closed  bool
	stuck   bool // nobody reads
}

// newLogSink starts the writer. Close ends it.
func newLogSink(w io.Writer, encode encoder) *logSink {
	s := &logSink{w: w, encode: encode, wake: make(chan struct{}, 1), quit: make(chan struct{}), done: make(chan struct{})}
	go s.run()
	return s
}

// line adds a line, newline included, and keeps nothing of it.
func (s *logSink) line(b []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.stuck:
		s.lost++
		return
	case s.closed:
		_, _ = s.w.Write(b) // the last words: nothing waits for us any more
		return
	case s.lines >= maxLogLines || len(s.buf)+len(b) > maxLogBytes:
		s.dropped++
		s.lost++
		return
	}
	s.buf = append(s.buf, b...)
	s.lines++
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Lost is how many lines were dropped since the start.
func (s *logSink) Lost() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lost
}

func (s *logSink) run() {
	defer close(s.done)
	var spare []byte
	for {
		select {
		case <-s.wake:
			spare = s.flush(spare)
			s.gather()
		case <-s.quit:
			s.flush(spare)
			return
		}
	}
}

// gather lets lines come, for a while.
func (s *logSink) gather() {
	pause := time.NewTimer(logPause)
	defer pause.Stop()
	select {
	case <-pause.C:
	case <-s.quit:
	}
}

// flush writes what there is and returns the buffer for the next time.
func (s *logSink) flush(spare []byte) []byte {
	s.mu.Lock()
	out, dropped := s.buf, s.dropped
	s.buf, s.lines, s.dropped = spare[:0], 0, 0
	s.mu.Unlock()
	if dropped > 0 {
		out = s.encode(out, time.Now(), slog.LevelWarn, "log", "lines were dropped: the log is not read fast enough", nil,
			[]slog.Attr{slog.Int("lines", dropped)})
	}
	if len(out) > 0 {
		_, _ = s.w.Write(out) // there is nowhere else to say that it failed
	}
	if cap(out) > 1<<20 {
		return nil // a burst is over
	}
	return out
}

// Close writes what is left. Lines that come later are written at once. A log
// that nobody reads does not keep the process from ending: after lastWords its
// lines are lost, and the goroutine with them. It may be called more than once.
func (s *logSink) Close() {
	s.once.Do(func() { close(s.quit) })
	timer := time.NewTimer(lastWords)
	defer timer.Stop()
	select {
	case <-s.done:
	case <-timer.C:
		s.mu.Lock()
		s.stuck = true
		s.mu.Unlock()
		return
	}
	s.mu.Lock()
	s.closed = true
	left := s.buf
	s.buf = nil
	if len(left) > 0 {
		_, _ = s.w.Write(left)
	}
	s.mu.Unlock()
}

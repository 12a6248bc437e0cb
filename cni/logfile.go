package cni

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"
)

const (
	maxLogFile = 4 << 20  // when a file becomes the one backup, ".1"
	maxLogCall = 64 << 10 // what one call of the plugin may add
	staleLock  = time.Minute
)

// logFile appends to a file that other calls append to at the same time: every
// record is one write. Its size is bounded by twice maxLogFile, which it grows to
// while whoever moves it away is slow or has died, and by what the calls add that
// run when that is reached.
type logFile struct {
	f    *os.File
	room int
}

// openLog opens the file, after moving one that is full out of the way.
func openLog(path string, limit int64) (*logFile, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if full(path, limit) {
		if err := rotate(path, limit); err != nil {
			return nil, err
		}
	}
	if info, err := os.Lstat(path); err == nil && !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	return &logFile{f: f, room: int(min(maxLogCall, max(0, 2*limit-info.Size())))}, nil
}

func full(path string, limit int64) bool {
	info, err := os.Lstat(path)
	return err == nil && info.Size() >= limit
}

// rotate makes the file the backup. Of several processes one does it; the
// others go on with the file that is there. A lock that was left by a process
// that died counts for a minute.
func rotate(path string, limit int64) error {
	lock := path + ".lock"
	l, err := os.OpenFile(lock, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		if info, err := os.Lstat(lock); err == nil && time.Since(info.ModTime()) > staleLock {
			return os.Remove(lock)
		}
		return nil
	}
	if err != nil {
		return err
	}
	defer os.Remove(lock)
	defer l.Close()
	if !full(path, limit) {
		return nil // another process was faster
	}
	return os.Rename(path, path+".1")
}

// Write writes one record, as long as there is room. A log that cannot be
// written must not fail a pod, so there is never an error.
func (l *logFile) Write(p []byte) (int, error) {
	if l.room -= len(p); l.room >= 0 {
		_, _ = l.f.Write(p)
	}
	return len(p), nil
}

// newLog logs JSON to stderr and, if one is wanted, to a file. Closing it
// closes the file.
func newLog(stderr io.Writer, c Config) (*slog.Logger, io.Closer) {
	opts := &slog.HandlerOptions{Level: c.LogLevel}
	if c.LogFile == "" {
		return slog.New(slog.NewJSONHandler(stderr, opts)), io.NopCloser(nil)
	}
	file, err := openLog(c.LogFile, maxLogFile)
	if err != nil {
		log := slog.New(slog.NewJSONHandler(stderr, opts))
		log.Warn("no log file", "file", c.LogFile, "err", err)
		return log, io.NopCloser(nil)
	}
	return slog.New(slog.NewJSONHandler(both{stderr, file}, opts)), file.f
}

// both writes to two, the second even if the first fails: nobody need read our
// stderr.
type both struct{ a, b io.Writer }

func (w both) Write(p []byte) (int, error) {
	_, _ = w.a.Write(p)
	return w.b.Write(p)
}

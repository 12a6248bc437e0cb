package cni

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// Calls of the plugin at the same time: no record is torn or lost but by the
// bound, and the sizes stay within it.
func TestLogFileConcurrently(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sub", "log")
	const limit, writers, records = 2000, 8, 50
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range records {
				f, err := openLog(path, limit)
				if err != nil {
					t.Error(err)
					return
				}
				slog.New(slog.NewJSONHandler(f, nil)).Info("record", "w", w, "i", i)
				f.f.Close()
			}
		})
	}
	wg.Wait()
	for _, name := range []string{path, path + ".1"} {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if info.Size() > 2*limit+writers*200 || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %d bytes, mode %04o; want at most about %d, 0600", name, info.Size(), info.Mode().Perm(), 2*limit)
		}
		for line := range bytes.Lines(data) {
			if !bytes.HasPrefix(line, []byte(`{"time"`)) || !bytes.HasSuffix(line, []byte("}\n")) {
				t.Errorf("torn: %s", line)
			}
		}
	}
	if names, _ := os.ReadDir(filepath.Dir(path)); len(names) != 2 {
		t.Errorf("in the folder: %v; want the log and one backup", names)
	}
}

func TestLogFileBoundsOneCall(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	f, err := openLog(path, maxLogFile)
	if err != nil {
		t.Fatal(err)
	}
	defer f.f.Close()
	for range 100 {
		fmt.Fprintln(f, strings.Repeat("x", 4096))
	}
	if info, err := os.Stat(path); err != nil || info.Size() > maxLogCall {
		t.Errorf("%v, %v; want at most %d bytes", info.Size(), err, maxLogCall)
	}
}

// A process that died in the middle of a rotation must not stop it for ever.
func TestLogFileStaleLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	write := func() {
		f, err := openLog(path, 10)
		if err != nil {
			t.Fatal(err)
		}
		defer f.f.Close()
		fmt.Fprintln(f, "more than ten bytes")
	}
	write()
	if err := os.WriteFile(path+".lock", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		write()
	}
	if _, err := os.Stat(path + ".1"); err == nil {
		t.Error("rotated while another process does")
	}
	if info, err := os.Stat(path); err != nil || info.Size() > 20+20 {
		t.Errorf("it grows while another process does not rotate it: %d bytes, %v", info.Size(), err)
	}
	old := time.Now().Add(-2 * staleLock)
	if err := os.Chtimes(path+".lock", old, old); err != nil {
		t.Fatal(err)
	}
	write() // removes the lock
	write()
	if _, err := os.Stat(path + ".1"); err != nil {
		t.Error(err)
	}
}

// A log that cannot be had is said, and no more.
func TestNoLogFile(t *testing.T) {
	dir := t.TempDir()
	var stderr bytes.Buffer
	log, closer := newLog(&stderr, Config{LogFile: dir})
	defer closer.Close()
	log.Info("still here")
	if got := stderr.String(); !strings.Contains(got, "no log file") || !strings.Contains(got, "still here") {
		t.Errorf("stderr: %s", got)
	}
}

package dirwatch_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/warren-mesh/warren/internal/dirwatch"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func wakes(t *testing.T, w *dirwatch.Watch, what string) {
	t.Helper()
	select {
	case <-w.Events():
	case <-time.After(time.Minute):
		t.Fatalf("nothing is told of %s", what)
	}
}

func calm(w *dirwatch.Watch) {
	for {
		select {
		case <-w.Events():
		case <-time.After(100 * time.Millisecond):
			return
		}
	}
}

func TestWatch(t *testing.T) {
	base := t.TempDir()
	a, b := filepath.Join(base, "a"), filepath.Join(base, "b")
	w := dirwatch.New()
	defer w.Close()
	ensure := func(want int) {
		t.Helper()
		if n, err := w.Ensure(a, b); n != want || err != nil {
			t.Fatalf("watches %d folders, %v, want %d", n, err, want)
		}
	}
	ensure(0)
	if err := os.Mkdir(a, 0o700); err != nil {
		t.Fatal(err)
	}
	ensure(1)
	wakes(t, w, "what came before it was watched")
	calm(w)
	write := func(dir string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "f"), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(a)
	wakes(t, w, "a file")
	if err := os.Mkdir(b, 0o700); err != nil {
		t.Fatal(err)
	}
	ensure(2)
	calm(w)
	write(b)
	wakes(t, w, "a file in the other folder")
	// Another folder in the place of the first.
	if err := os.Rename(a, filepath.Join(base, "old")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(a, 0o700); err != nil {
		t.Fatal(err)
	}
	ensure(2)
	calm(w)
	ensure(2)
	select {
	case <-w.Events():
		t.Error("opened again without need")
	default:
	}
	write(a)
	wakes(t, w, "a file in the new folder")
	w.Close()
	w.Close()
}

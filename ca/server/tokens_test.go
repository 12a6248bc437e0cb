package server_test

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/metadata"

	"github.com/warren-mesh/warren/ca/server"
)

const (
	token1 = "0123456789abcdef-one"
	token2 = "0123456789abcdef-two"
)

func write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(tmp, mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(tmp, path); err != nil {
		t.Fatal(err)
	}
}

func with(headers ...string) context.Context {
	md := metadata.MD{}
	for _, h := range headers {
		md.Append("authorization", h)
	}
	return metadata.NewIncomingContext(context.Background(), md)
}

func TestTokens(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tokens")
	write(t, path, "# nodes\n\n"+token1+" node-1\n"+token2+"\tnode-2\nnode-1-also-has-this node-1\n", 0o600)
	tokens, err := server.NewTokens(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ header, node string }{
		{"Bearer " + token1, "node-1"}, {"bearer " + token2, "node-2"}, {"Bearer node-1-also-has-this", "node-1"},
		{"Bearer " + token1 + " ", "node-1"}, {"Bearer " + token1[:19], ""}, {"Bearer ", ""}, {token1, ""}, {"Basic " + token1, ""},
		{"Bearer " + strings.Repeat("x", 5000), ""}, {"", ""}, {"Bearer #", ""},
	} {
		c, err := tokens.Authenticate(with(tt.header))
		if c.Node != tt.node || (err == nil) != (tt.node != "") {
			t.Errorf("%.30q: node %q, %v", tt.header, c.Node, err)
		}
		if err != nil && strings.Contains(err.Error(), "0123456789") {
			t.Errorf("the error quotes the token: %v", err)
		}
	}
	for _, ctx := range []context.Context{context.Background(), with(), with("Bearer "+token1, "Bearer "+token2)} {
		if c, err := tokens.Authenticate(ctx); err == nil {
			t.Errorf("%s got in", c)
		}
	}
}

func TestTokensAreReadAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tokens")
	write(t, path, token1+" node-1\n", 0o600)
	var log bytes.Buffer
	tokens, err := server.NewTokens(path, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	in := func(token string) bool {
		t.Helper()
		_, err := tokens.Authenticate(with("Bearer " + token))
		return err == nil
	}
	steps := []struct {
		name     string
		change   func()
		one, two bool
	}{
		{"as read first", func() {}, true, false},
		{"replaced", func() { write(t, path, token2+" node-2\n", 0o600) }, false, true},
		{"does not parse: the old ones stay", func() { write(t, path, token1+"\n", 0o600) }, false, true},
		{"corrected", func() { write(t, path, token1+" node-1\n"+token2+" node-2\n", 0o600) }, true, true},
		{"readable by others", func() { write(t, path, token1+" node-1\n", 0o644) }, false, false},
		{"made safe", func() { write(t, path, token1+" node-1\n", 0o640) }, true, false},
		{"gone", func() { os.Remove(path) }, false, false},
		{"back, in place, at the same time and size", func() {
			write(t, path, token1+" node-1\n", 0o600)
			in(token1)
			if err := os.WriteFile(path, []byte(token2+" node-1\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, false, true},
	}
	for _, s := range steps {
		s.change()
		if one, two := in(token1), in(token2); one != s.one || two != s.two {
			t.Errorf("%s: %v, %v; want %v, %v", s.name, one, two, s.one, s.two)
		}
	}
	if strings.Contains(log.String(), "0123456789") {
		t.Errorf("the log quotes a token: %s", &log)
	}
	// Only the mode of an old file changes.
	if err := os.Chtimes(path, time.Time{}, time.Now().Add(-time.Hour)); err != nil {
		t.Fatal(err)
	}
	for _, mode := range []os.FileMode{0o600, 0o644} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if got, want := in(token2), mode == 0o600; got != want {
			t.Errorf("mode %o: %v, want %v", mode, got, want)
		}
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	// An old file is not read in each call, nor one from another clock's future.
	for _, age := range []time.Duration{-time.Hour, time.Hour} {
		if err := os.Chtimes(path, time.Time{}, time.Now().Add(age)); err != nil {
			t.Fatal(err)
		}
		in(token2)
		if n := testing.AllocsPerRun(10, func() { in(token2) }); n > 20 {
			t.Errorf("age %s: %v allocations a call", age, n)
		}
	}
}

// Whoever calls, with or without a token, cannot fill the log with a mistake in the file.
func TestAMistakeIsLoggedOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tokens")
	write(t, path, token1+" node-1\n", 0o600)
	var log bytes.Buffer
	tokens, err := server.NewTokens(path, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"short x\n", token1 + "\n", token1 + " node-1\n", token1 + "\n"} {
		write(t, path, text, 0o600)
		for range 50 {
			if _, err := tokens.Authenticate(with("Bearer " + token1)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if n := strings.Count(log.String(), "do not parse"); n != 3 {
		t.Errorf("%d lines for 3 mistakes: %s", n, &log)
	}
}

func TestTokenFilesThatAreRefused(t *testing.T) {
	dir := t.TempDir()
	for _, tt := range []struct {
		name, text string
		mode       os.FileMode
		want       string
	}{
		{"empty", "# nothing\n", 0o600, "no tokens"},
		{"short", "secret node-1\n", 0o600, "line 1: token of 6 bytes"},
		{"no node", "\n" + token1 + "\n", 0o600, "line 2: 1 fields"},
		{"three fields", token1 + " node 1\n", 0o600, "line 1: 3 fields"},
		{"one token for two nodes", token1 + " node-1\n" + token1 + " node-2\n", 0o600, "line 2"},
		{"others may read", token1 + " node-1\n", 0o604, "chmod 600"},
		{"the group may write", token1 + " node-1\n", 0o660, "chmod 600"},
		{"huge", strings.Repeat("#\n", 1<<20), 0o600, "more than"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(dir, "tokens")
			write(t, path, tt.text, tt.mode)
			_, err := server.NewTokens(path, nil)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			if err != nil && (strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), token1)) {
				t.Errorf("the error quotes the token: %v", err)
			}
		})
	}
	if _, err := server.NewTokens(filepath.Join(dir, "none"), nil); err == nil {
		t.Error("a missing file")
	}
	if _, err := server.NewTokens(dir, nil); err == nil {
		t.Error("a directory")
	}
}

package main

import (
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"
)

// The first signal begins the drain, SIGTERM once more changes nothing, and
// SIGINT then ends it.
func TestSignals(t *testing.T) {
	ended := make(chan int, 1)
	ctx, stop := untilTold(func(code int) { ended <- code })
	defer stop()
	say := func(s syscall.Signal) {
		if err := syscall.Kill(os.Getpid(), s); err != nil {
			t.Fatal(err)
		}
	}
	say(syscall.SIGTERM)
	<-ctx.Done()
	say(syscall.SIGTERM)
	select {
	case code := <-ended:
		t.Fatalf("the second SIGTERM ended it with %d", code)
	case <-time.After(50 * time.Millisecond):
	}
	say(syscall.SIGINT)
	select {
	case code := <-ended:
		if code != 0 {
			t.Errorf("ended with %d", code)
		}
	case <-time.After(10 * time.Second):
		t.Error("SIGINT during the drain did nothing")
	}
}

const asProgram = "WARREN_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		os.Exit(run([]string{"help"}, os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

// Whoever read the log is gone: that must not end the pods' connections.
func TestLogReaderGone(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	defer w.Close()
	cmd := exec.Command(os.Args[0])
	cmd.Env, cmd.Stdout = append(os.Environ(), asProgram+"=1"), w
	if err := cmd.Run(); err != nil {
		t.Errorf("a closed log ended the program: %v", err)
	}
}

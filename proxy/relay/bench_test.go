package relay_test

import (
	"fmt"
	"io"
	"testing"
)

// BenchmarkSplice moves 1 MiB an operation between two TCP connections.
func BenchmarkSplice(b *testing.B) { benchmarkBulk(b, joinTCP) }

// BenchmarkStream moves 1 MiB an operation through a far end in memory.
func BenchmarkStream(b *testing.B) { benchmarkBulk(b, joinStreams) }

func benchmarkBulk(b *testing.B, join func(testing.TB) *joined) {
	j := join(b)
	buf := make([]byte, 1<<20)
	b.SetBytes(1 << 20)
	b.ReportAllocs()
	done := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, struct{ io.Reader }{j.backend})
		close(done)
	}()
	for b.Loop() {
		if _, err := j.app.Write(buf); err != nil {
			b.Fatal(err)
		}
	}
	_ = j.app.CloseWrite()
	<-done
	_ = j.backend.CloseWrite()
	<-j.done
}

// BenchmarkMessage is a message there and back.
func BenchmarkMessage(b *testing.B) {
	for name, join := range kinds {
		for _, n := range []int{1, 1024} {
			b.Run(fmt.Sprintf("%s/%d", name, n), func(b *testing.B) {
				j := join(b)
				go func() { _, _ = io.Copy(j.backend, struct{ io.Reader }{j.backend}) }()
				buf := make([]byte, n)
				b.ReportAllocs()
				for b.Loop() {
					if _, err := j.app.Write(buf); err != nil {
						b.Fatal(err)
					}
					if _, err := io.ReadFull(j.app, buf); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

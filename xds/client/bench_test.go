package client

import (
	"fmt"
	"testing"
)

// A mesh of 10 000 pods, as it comes at first.
func BenchmarkFirst(b *testing.B) {
	r := response(AddressType, "1")
	for i := range 10_000 {
		r.Resources = append(r.Resources, podAt([]byte{10, 0, byte(i >> 8), byte(i)}, fmt.Sprintf("c//Pod/ns/w%d", i), "1", "ns/p"))
	}
	b.ReportAllocs()
	for b.Loop() {
		w := newWorld(addresses)
		if text := w.apply(r); text != "" {
			b.Fatal(text)
		}
	}
}

// One pod of 10 000 changes.
func BenchmarkChange(b *testing.B) {
	w := newWorld(addresses)
	r := response(AddressType, "1")
	for i := range 10_000 {
		r.Resources = append(r.Resources, podAt([]byte{10, 0, byte(i >> 8), byte(i)}, fmt.Sprintf("c//Pod/ns/w%d", i), "1"))
	}
	w.apply(r)
	one := response(AddressType, "2", podAt([]byte{10, 0, 0, 77}, "c//Pod/ns/w77", "2"))
	b.ReportAllocs()
	for b.Loop() {
		w.apply(one)
	}
}

package proxy

import (
	"reflect"
	"testing"
)

// A node has very many of these at rest. Go's allocator gives 416 bytes to what needs up to as many, and 448 above.
func TestSizeOfAConnection(t *testing.T) {
	if size := reflect.TypeFor[connection]().Size(); size > 416 {
		t.Errorf("%d bytes: order the fields so that the small ones are side by side, or say why one more class is worth it", size)
	}
}

package proxy

import (
	"context"
	"errors"
	"reflect"
	"testing"

	"github.com/warren-mesh/warren/proxy/track"
)

// A node has very many of these at rest. Go's allocator gives 416 bytes to what needs up to as many, and 448 above.
func TestSizeOfAConnection(t *testing.T) {
	if size := reflect.TypeFor[connection]().Size(); size > 416 {
		t.Errorf("%d bytes: order the fields so that the small ones are side by side, or say why one more class is worth it", size)
	}
}

// A connection that is cut while it changes from one endpoint to another is cut there.
func TestACutMeetsAChangeOfEndpoints(t *testing.T) {
	for _, cut := range []error{nil, errPolicyChange} {
		p := &pod{s: &Server{tracked: track.New(2, 2)}, hard: context.Background()}
		first, err := p.track(track.Facts{Pod: "u"})
		if err != nil {
			t.Fatal(err)
		}
		second, err := p.track(track.Facts{Pod: "u"})
		if err != nil {
			t.Fatal(err)
		}
		if cut != nil { // after the second was judged, before the first is given up
			first.guard.Owner.Cut(cut)
		}
		first.goOnAs(second)
		if !errors.Is(context.Cause(second.ctx), cut) || (cut == nil) != (second.ctx.Err() == nil) {
			t.Errorf("cut with %v: the connection goes on with %v", cut, context.Cause(second.ctx))
		}
		if first.ctx.Err() == nil || p.s.tracked.Len() != 1 {
			t.Errorf("the first attempt is still there, %d are tracked", p.s.tracked.Len())
		}
	}
}

package client

import (
	"errors"
	"fmt"
	"io"
	"unicode/utf8"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/warren-mesh/warren/xds/workload"
)

// codec reads responses by itself, straight into the model. The general decoder builds
// everything that a message has: two bytes on the wire can make an object of a hundred,
// and a message that is within its limit gigabytes. This one takes the fields that are
// used, and so many entries of each list as could be. A message is never in one piece.
type codec struct {
	encoding.CodecV2
	share  *workload.Sharer // of who receives
	breath func() *breath
}

// newCodec makes the codec. During a response that takes long it rests by what
// breath returns.
func newCodec(share *workload.Sharer, breath func() *breath) codec {
	return codec{encoding.GetCodecV2(proto.Name), share, breath}
}

// Unmarshal is of encoding.CodecV2.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	r, ok := v.(*delivery)
	if !ok {
		return c.CodecV2.Unmarshal(data, v)
	}
	rest := c.breath()
	defer rest.end()
	return decodeResponse(data, r, maxResources, c.share, rest)
}

// delivery is a DeltaDiscoveryResponse, as far as it is of use.
type delivery struct {
	typeURL, nonce string
	resources      resources
	removed        []string
	size           int // of the whole message
}

// resource is one of them, converted unless fault says why not. There are as many in memory
// as the mesh has.
type resource struct {
	name, version string
	object        object
	size          int32 // of it on the wire
	inside        kind  // if known
	known         bool
	rare          *rarely
}

// rarely is what few resources have.
type rarely struct {
	err     error // why it is not converted
	aliases []string
	standIn *workload.Policy // in the place of a policy that is not taken
}

func (r *resource) aliases() []string {
	if r.rare == nil {
		return nil
	}
	return r.rare.aliases
}

func (r *resource) fault() error {
	if r.rare == nil {
		return nil
	}
	return r.rare.err
}

func (r *resource) more() *rarely {
	if r.rare == nil {
		r.rare = &rarely{}
	}
	return r.rare
}

// resources is a list that grows without being copied.
type resources struct {
	parts [][]resource
	n     int
}

const maxPart = 1 << 10

func (l *resources) add() *resource {
	last := len(l.parts) - 1
	if last < 0 || len(l.parts[last]) == cap(l.parts[last]) {
		l.parts = append(l.parts, make([]resource, 0, min(max(1, l.n), maxPart)))
		last++
	}
	l.n++
	part := append(l.parts[last], resource{})
	l.parts[last] = part
	return &part[len(part)-1]
}

func (l *resources) all(yield func(*resource) bool) {
	for _, part := range l.parts {
		for i := range part {
			if !yield(&part[i]) {
				return
			}
		}
	}
}

// decodeResponse fills r, which shares no memory with data. It takes at most limit
// resources, as many names of removed ones, and as many aliases; more aliases are left
// out.
func decodeResponse(data mem.BufferSlice, r *delivery, limit int, share *workload.Sharer, rest *breath) error {
	d := decoder{share: share, aliases: limit}
	r.size = data.Len()
	return eachField(data, func(num protowire.Number, v []byte) (err error) {
		switch num {
		case 2:
			if r.resources.n == limit {
				return fmt.Errorf("xds: a response of more than %d resources", limit)
			}
			rest.item()
			d.resource(v, r.resources.add())
		case 4:
			r.typeURL, err = text(v)
		case 5:
			r.nonce, err = text(v)
		case 6:
			if len(r.removed) == limit {
				return fmt.Errorf("xds: a response that removes more than %d resources", limit)
			}
			var name string
			name, err = text(v)
			r.removed = append(r.removed, name)
		}
		return err
	})
}

// decoder reads the resources of one response.
type decoder struct {
	share   *workload.Sharer
	aliases int // that may still come
}

// resource reads one, whose extent is known whatever it holds: what is wrong with it is
// its own error, and holds up no other.
func (d *decoder) resource(b []byte, r *resource) {
	if err := d.read(b, r); err != nil {
		*r = resource{name: r.name, rare: r.rare}
		r.more().err = fmt.Errorf("it is malformed: %w", err)
		if nerr := d.name(b, r); nerr != nil && r.name == "" {
			r.name = "(a resource whose name cannot be read)"
		}
		r.standFor(policyIn(b)) // it may be meant for one
	}
}

// policyIn is the policy in an envelope that is broken, nil if it cannot be found.
func policyIn(b []byte) (value []byte) {
	var inside []byte
	_ = eachBytes(b, func(num protowire.Number, v []byte) error {
		if num == 2 {
			_ = eachBytes(v, func(num protowire.Number, v []byte) error {
				switch num {
				case 1:
					inside = v
				case 2:
					value = v
				}
				return nil
			})
		}
		return nil
	})
	if k, ok := kindOf(inside); !ok || k != policies {
		return nil
	}
	return value
}

// standFor has something stand in the resource's place, if it is a policy. value is what is
// known of it.
func (r *resource) standFor(value []byte) {
	if p := workload.StandIn(r.name, value); p != nil {
		r.more().standIn = p
	}
}

// read takes the envelope and what is in it.
func (d *decoder) read(b []byte, r *resource) (err error) {
	var inside, value []byte
	packed := false
	err = eachBytes(b, func(num protowire.Number, v []byte) (err error) {
		switch num {
		case 1:
			r.version, err = text(v)
		case 2:
			packed = true // parts of a message that come twice are merged
			err = eachBytes(v, func(num protowire.Number, v []byte) error {
				switch num {
				case 1:
					if inside = v; !utf8.Valid(v) {
						return errText
					}
				case 2:
					value = v
				}
				return nil
			})
		case 4:
			if d.aliases--; d.aliases < 0 {
				return nil
			}
			var alias string
			alias, err = text(v)
			r.more().aliases = append(r.more().aliases, alias)
		}
		return err
	})
	if err != nil {
		return err
	}
	r.size = int32(len(value)) // a message is at most maxMessage
	if err := d.convert(r, packed, inside, value); err != nil {
		r.more().err = err
	}
	if err := d.name(b, r); err != nil {
		return err
	}
	switch {
	case r.known && r.inside == policies: // which may be refused for another reason
		r.standFor(value)
	case r.fault() != nil:
		r.standFor(nil)
	}
	return nil
}

// name reads a resource's name. That of a workload is mostly its UID, and then the same
// memory.
func (d *decoder) name(b []byte, r *resource) error {
	return eachBytes(b, func(num protowire.Number, v []byte) (err error) {
		switch {
		case num != 3:
		case r.object.workload != nil && r.object.workload.UID == string(v):
			r.name = r.object.workload.UID
		default:
			r.name, err = text(v)
		}
		return err
	})
}

var errNothing = errors.New("no resource inside")

func (d *decoder) convert(r *resource, packed bool, inside, value []byte) (err error) {
	if packed {
		r.inside, r.known = kindOf(inside)
	}
	switch {
	case !packed:
		return errNothing
	case len(value) > maxResource:
		return fmt.Errorf("%d bytes, the limit is %d", len(value), maxResource)
	case !r.known:
		return wrongType(string(inside))
	case r.inside == addresses:
		if w, ok := d.share.WorkloadFromWire(value); ok {
			r.object.workload = w
			return nil
		}
		if s, ok := d.share.ServiceFromWire(value); ok {
			r.object.service = s
			return nil
		}
	}
	if r.object, err = decode(r.inside, value); r.object.workload != nil {
		d.share.Workload(r.object.workload)
	}
	return err
}

func wrongType(url string) error { return fmt.Errorf("a resource of type %q inside", clip(url, 128)) }

// eachField is eachBytes for a message in pieces. What f is given is good for that call.
func eachField(data mem.BufferSlice, f func(protowire.Number, []byte) error) error {
	w := window{data: data}
	const head = 20 // of a field, at most
	for w.fill(head); len(w.b) > 0; w.fill(head) {
		num, typ, n := protowire.ConsumeTag(w.b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		if typ != protowire.BytesType { // none that is used, and all are short
			m := protowire.ConsumeFieldValue(num, typ, w.b[n:])
			if m < 0 {
				w.fill(maxGroup)
				if m = protowire.ConsumeFieldValue(num, typ, w.b[n:]); m < 0 {
					return protowire.ParseError(m)
				}
			}
			w.b = w.b[n+m:]
			continue
		}
		length, m := protowire.ConsumeVarint(w.b[n:])
		if m < 0 {
			return protowire.ParseError(m)
		}
		start := n + m
		if length > maxMessage || !w.fill(start+int(length)) {
			return fmt.Errorf("xds: %w", io.ErrUnexpectedEOF)
		}
		if err := f(num, w.b[start:start+int(length)]); err != nil {
			return err
		}
		w.b = w.b[start+int(length):]
	}
	return nil
}

// maxGroup is how much of a group, which this message has none of, is passed over.
const maxGroup = 64 << 10

// window is what of a message in pieces is being read.
type window struct {
	data mem.BufferSlice
	b    []byte
	own  []byte // memory for what is not in one piece
}

// fill makes the window so long, if there is so much. It copies what is in more than one
// piece once, however small the pieces are.
func (w *window) fill(n int) bool {
	for len(w.b) == 0 && len(w.data) > 0 {
		w.b, w.data = w.data[0].ReadOnlyData(), w.data[1:]
	}
	if len(w.b) >= n || len(w.data) == 0 {
		return len(w.b) >= n
	}
	w.own = append(w.own[:0], w.b...) // which may move what it holds
	for len(w.own) < n && len(w.data) > 0 {
		w.own = append(w.own, w.data[0].ReadOnlyData()...)
		w.data = w.data[1:]
	}
	w.b = w.own
	return len(w.b) >= n
}

// eachBytes calls f for every field of a message that has a length; the others, of
// which none is used, are passed over.
func eachBytes(b []byte, f func(protowire.Number, []byte) error) error {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		if typ != protowire.BytesType {
			if n = protowire.ConsumeFieldValue(num, typ, b); n < 0 {
				return protowire.ParseError(n)
			}
			b = b[n:]
			continue
		}
		v, n := protowire.ConsumeBytes(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		if err := f(num, v); err != nil {
			return err
		}
	}
	return nil
}

var errText = errors.New("xds: a text that is not UTF-8")

func text(v []byte) (string, error) {
	if !utf8.Valid(v) {
		return "", errText
	}
	return string(v), nil
}

package record

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
)

// couple makes both ends of a connection that had no handshake. The halves of
// an end can be used to seal and open what an honest one would not.
func couple(tb testing.TB, id uint16) (client, server *own) {
	tb.Helper()
	s, ok := suiteOf(id)
	if !ok {
		tb.Fatal("not our suite")
	}
	up, down := make([]byte, s.secret), make([]byte, s.secret)
	_, _ = rand.Read(up)
	_, _ = rand.Read(down)
	client, err := newOwn(s, tls.ConnectionState{}, true, bytes.Clone(down), bytes.Clone(up))
	if err != nil {
		tb.Fatal(err)
	}
	server, err = newOwn(s, tls.ConnectionState{}, false, up, down)
	if err != nil {
		tb.Fatal(err)
	}
	return client, server
}

func mustOpen(tb testing.TB, o *own, wire []byte, want string) {
	tb.Helper()
	got, n, err := o.Open(make([]byte, 0, len(wire)+Room), wire)
	if err != nil || n != len(wire) || string(got) != want {
		tb.Fatalf("took %d of %d, got %d bytes %.40q, %v", n, len(wire), len(got), got, err)
	}
}

func mustSeal(tb testing.TB, o *own, plain string) []byte {
	tb.Helper()
	wire, err := o.Seal(nil, []byte(plain))
	if err != nil {
		tb.Fatal(err)
	}
	return wire
}

var keyUpdate = []byte{24, 0, 0, 1, 0}

// message is a handshake message.
func message(typ byte, body ...byte) []byte {
	return append([]byte{typ, byte(len(body) >> 16), byte(len(body) >> 8), byte(len(body))}, body...)
}

// ticket is a NewSessionTicket with a label of n bytes and extensions.
func ticket(n int, ext ...byte) []byte {
	body := []byte{0, 0, 28, 32, 1, 2, 3, 4, 2, 9, 9, byte(n >> 8), byte(n)}
	body = append(body, make([]byte, n)...)
	body = append(body, byte(len(ext)>>8), byte(len(ext)))
	return message(4, append(body, ext...)...)
}

// raw seals inner as it is: content, type and padding are in it.
func (h *half) raw(inner []byte) []byte {
	n := len(inner) + tagSize
	header := []byte{typeData, 3, 3, byte(n >> 8), byte(n)}
	return h.aead.Seal(header, h.nextNonce(), inner, header)
}

func times(n int, b []byte) [][]byte { return slices.Repeat([][]byte{b}, n) }

// TestWhatAPeerMayNotDo: each is refused, with its reason and its alert.
func TestWhatAPeerMayNotDo(t *testing.T) {
	// A step is inner plaintext, or with the marker "wire" in front bytes as they are.
	data := []byte{'x', typeData}
	hs := func(b []byte) []byte { return append(bytes.Clone(b), typeHandshake) }
	wire := func(b ...byte) []byte { return append([]byte("wire"), b...) }
	for name, tc := range map[string]struct {
		steps  [][]byte
		want   error
		alert  byte
		server bool // the peer is a server
	}{
		"change_cipher_spec":            {steps: [][]byte{wire(20, 3, 3, 0, 1, 1)}, want: errOuterType, alert: 10},
		"alert in the clear":            {steps: [][]byte{wire(21, 3, 3, 0, 2, 2, 40)}, want: errOuterType, alert: 10},
		"handshake in the clear":        {steps: [][]byte{wire(append([]byte{22, 3, 3, 0, 5}, keyUpdate...)...)}, want: errOuterType, alert: 10},
		"type 0 in the clear":           {steps: [][]byte{wire(0, 3, 3, 0, 5)}, want: errOuterType, alert: 10},
		"TLS 1.3 as record version":     {steps: [][]byte{wire(23, 3, 4, 0, 20)}, want: errVersion, alert: 70},
		"TLS 1.0 as record version":     {steps: [][]byte{wire(23, 3, 1, 0, 20)}, want: errVersion, alert: 70},
		"HTTP":                          {steps: [][]byte{wire([]byte("GET / HTTP/1.1\r\n")...)}, want: errVersion, alert: 70},
		"length 2^14+18":                {steps: [][]byte{wire(23, 3, 3, 0x40, 0x12)}, want: errTooLong, alert: 22},
		"length 2^16-1":                 {steps: [][]byte{wire(23, 3, 3, 0xff, 0xff)}, want: errTooLong, alert: 22},
		"plaintext of 2^14+1":           {steps: [][]byte{append(make([]byte, MaxPlain+1), typeData)}, want: errTooLong, alert: 22},
		"2^14 and padding":              {steps: [][]byte{append(make([]byte, MaxPlain), typeData, 0)}, want: errTooLong, alert: 22},
		"padding of 2^14+1":             {steps: [][]byte{append([]byte{typeData}, make([]byte, MaxPlain+1)...)}, want: errTooLong, alert: 22},
		"no room for a tag":             {steps: [][]byte{wire(append([]byte{23, 3, 3, 0, 15}, make([]byte, 15)...)...)}, want: errMAC, alert: 20},
		"empty record":                  {steps: [][]byte{wire(23, 3, 3, 0, 0)}, want: errMAC, alert: 20},
		"garbage":                       {steps: [][]byte{wire(append([]byte{23, 3, 3, 0, 40}, make([]byte, 40)...)...)}, want: errMAC, alert: 20},
		"no content type":               {steps: [][]byte{{}}, want: errNoType, alert: 10},
		"zeros only":                    {steps: [][]byte{make([]byte, 100)}, want: errNoType, alert: 10},
		"zeros only, as many as can be": {steps: [][]byte{make([]byte, MaxPlain+1)}, want: errNoType, alert: 10},
		"sealed change_cipher_spec":     {steps: [][]byte{{1, typeChangeCipherSpec}}, want: errInnerType, alert: 10},
		"heartbeat":                     {steps: [][]byte{{1, 24}}, want: errInnerType, alert: 10},
		"content type 255":              {steps: [][]byte{{1, 255}}, want: errInnerType, alert: 10},
		"empty alert":                   {steps: [][]byte{{typeAlert}}, want: errAlertSize, alert: 10},
		"half an alert":                 {steps: [][]byte{{1, typeAlert}}, want: errAlertSize, alert: 10},
		"two alerts":                    {steps: [][]byte{{1, 90, 1, 0, typeAlert}}, want: errAlertSize, alert: 10},
		"empty handshake record":        {steps: [][]byte{{typeHandshake}}, want: errEmptyMessage, alert: 10},
		"empty records":                 {steps: times(maxUseless+1, []byte{typeData}), want: errUseless, alert: 10},
		"empty records with padding":    {steps: times(maxUseless+1, []byte{typeData, 0, 0, 0}), want: errUseless, alert: 10},
		"user_canceled without end":     {steps: times(maxUseless+1, []byte{1, 90, typeAlert}), want: errUseless, alert: 10},
		"ClientHello":                   {steps: [][]byte{hs(message(1, 3, 3))}, want: errMessage, alert: 10},
		"Finished":                      {steps: [][]byte{hs(message(20, 3, 3))}, want: errMessage, alert: 10},
		"EndOfEarlyData":                {steps: [][]byte{hs(message(5))}, want: errMessage, alert: 10},
		"Certificate":                   {steps: [][]byte{hs(message(11, 0, 0, 0, 0))}, want: errMessage, alert: 10},
		"CertificateRequest":            {steps: [][]byte{hs(message(13, 0, 0, 0))}, want: errMessage, alert: 10, server: true},
		"HelloRequest":                  {steps: [][]byte{hs(message(0))}, want: errMessage, alert: 10, server: true},
		"ticket from a client":          {steps: [][]byte{hs(ticket(10))}, want: errMessage, alert: 10},
		"ticket that is too short":      {steps: [][]byte{hs(message(4, 0, 0, 0, 1))}, want: errTicket, alert: 50, server: true},
		"ticket with something behind":  {steps: [][]byte{hs(message(4, append(ticket(10)[4:], 0)...))}, want: errTicket, alert: 50, server: true},
		"ticket, bad extension":         {steps: [][]byte{hs(ticket(10, 0, 1, 0, 9))}, want: errTicket, alert: 50, server: true},
		"ticket, bad early_data":        {steps: [][]byte{hs(ticket(10, 0, 42, 0, 1, 0))}, want: errTicket, alert: 50, server: true},
		"ticket of 16 MB":               {steps: [][]byte{hs([]byte{4, 255, 255, 255, 0})}, want: errTicket, alert: 50, server: true},
		"tickets without end":           {steps: times(maxUseless+1, hs(ticket(10))), want: errUseless, alert: 10, server: true},
		"long KeyUpdate":                {steps: [][]byte{hs(message(24, 0, 0))}, want: errKeyUpdateSize, alert: 50},
		"empty KeyUpdate":               {steps: [][]byte{hs(message(24))}, want: errKeyUpdateSize, alert: 50},
		"KeyUpdate(2)":                  {steps: [][]byte{hs(message(24, 2))}, want: errKeyUpdateValue, alert: 47},
		"KeyUpdate and more":            {steps: [][]byte{hs(slices.Concat(keyUpdate, keyUpdate))}, want: errKeyBoundary, alert: 10},
		"KeyUpdate and a bit":           {steps: [][]byte{hs(slices.Concat(keyUpdate, []byte{24}))}, want: errKeyBoundary, alert: 10},
		"data in a KeyUpdate":           {steps: [][]byte{hs(keyUpdate[:3]), data}, want: errInterleaved, alert: 10},
		"alert in a KeyUpdate":          {steps: [][]byte{hs(keyUpdate[:1]), {1, 0, typeAlert}}, want: errInterleaved, alert: 10},
		"old key after KeyUpdate":       {steps: [][]byte{hs(keyUpdate), data}, want: errMAC, alert: 20},
	} {
		t.Run(name, func(t *testing.T) {
			peer, us := couple(t, tls.TLS_AES_128_GCM_SHA256)
			if tc.server {
				peer, us = us, peer
			}
			stream := mustSeal(t, peer, "before")
			for _, s := range tc.steps {
				if b, ok := bytes.CutPrefix(s, []byte("wire")); ok {
					stream = append(stream, b...)
				} else {
					stream = append(stream, peer.out.raw(s)...)
				}
			}
			stream = append(stream, mustSeal(t, peer, "after")...)
			got, n, err := us.Open(make([]byte, 0, len(stream)+Room), stream)
			if string(got) != "before" || n != len(stream) || !errors.Is(err, tc.want) {
				t.Errorf("got %q, %v; want %v", got, err, tc.want)
			}
			if _, _, again := us.Open(make([]byte, 0, Room), nil); !errors.Is(again, tc.want) {
				t.Errorf("then %v", again)
			}
			if !us.Pending() {
				t.Fatal("no alert")
			}
			// The alert goes out although the data does not, and only once.
			out, err := us.Seal(nil, []byte("data"))
			if !errors.Is(err, tc.want) {
				t.Errorf("seal: %v", err)
			}
			content, typ, err := peer.in.open(make([]byte, 0, Room), out)
			if err != nil || typ != typeAlert || !bytes.Equal(content, []byte{2, tc.alert}) {
				t.Errorf("alert %v of type %d, %v; want %d", content, typ, err, tc.alert)
			}
			if out, err = us.CloseWrite(nil); len(out) > 0 || err != nil || us.Pending() {
				t.Errorf("close_notify after an alert: %x, %v", out, err)
			}
			if !zero(us.in.secret) || us.in.aead != nil || us.out.aead != nil {
				t.Error("keys are kept")
			}
		})
	}
}

func zero(b []byte) bool { return len(bytes.Trim(b, "\x00")) == 0 }

// TestWhatAPeerMayDo, however odd.
func TestWhatAPeerMayDo(t *testing.T) {
	hs := func(b []byte) []byte { return append(bytes.Clone(b), typeHandshake) }
	data := []byte{'x', typeData}
	for name, steps := range map[string][][]byte{
		"padding":                    {{'x', typeData, 0, 0, 0}},
		"all the padding there is":   {append([]byte{'x', typeData}, make([]byte, MaxPlain-1)...)},
		"zeros as data":              {{0, 0, typeData, 0, 0}},
		"some empty records":         append(times(maxUseless, []byte{typeData}), data),
		"empty records between data": slices.Repeat([][]byte{{typeData}, data}, 3*maxUseless),
		"user_canceled":              {{1, 90, typeAlert}, data},
		"tickets":                    append(times(maxUseless, hs(ticket(100, 0, 42, 0, 4, 0, 0, 0, 0, 1, 2, 0, 1, 7))), data),
		"two tickets in a record":    {hs(slices.Concat(ticket(5), ticket(6))), data},
		"ticket over records":        {hs(ticket(40_000)[:16_000]), hs(ticket(40_000)[16_000:32_000]), hs(ticket(40_000)[32_000:]), data},
		"ticket byte by byte":        append(bytewise(ticket(50)), data),
	} {
		t.Run(name, func(t *testing.T) {
			client, server := couple(t, tls.TLS_AES_256_GCM_SHA384)
			var stream []byte
			want := ""
			for _, s := range steps {
				if inner := bytes.TrimRight(s, "\x00"); inner[len(inner)-1] == typeData {
					want += string(inner[:len(inner)-1])
				}
				stream = append(stream, server.out.raw(s)...)
			}
			mustOpen(t, client, stream, want)
			if client.Pending() || client.hand != nil {
				t.Error("something is left")
			}
		})
	}
}

func bytewise(msg []byte) (steps [][]byte) {
	for _, b := range msg {
		steps = append(steps, []byte{b, typeHandshake})
	}
	return steps
}

func TestKeyUpdate(t *testing.T) {
	for _, id := range []uint16{tls.TLS_AES_128_GCM_SHA256, tls.TLS_AES_256_GCM_SHA384} {
		t.Run(tls.CipherSuiteName(id), func(t *testing.T) {
			client, server := couple(t, id)
			first := client.out.secret
			for i := range 3 {
				// The client changes its key and asks the server to, several
				// times before the server says anything: one answer.
				var wire []byte
				for range 4 {
					var err error
					if wire, err = client.rekey(wire, true); err != nil {
						t.Fatal(err)
					}
				}
				wire = append(wire, mustSeal(t, client, "new key")...)
				mustOpen(t, server, wire, "new key")
				if !server.Pending() {
					t.Fatal("no answer")
				}
				before := bytes.Clone(server.out.secret)
				answer := mustSeal(t, server, "")
				if len(answer) != headerSize+len(keyUpdate)+1+tagSize {
					t.Errorf("the answer has %d bytes", len(answer))
				}
				if bytes.Equal(before, server.out.secret) || server.Pending() {
					t.Error("the server's key is the same")
				}
				mustOpen(t, client, append(answer, mustSeal(t, server, fmt.Sprint("answer ", i))...), fmt.Sprint("answer ", i))
				if client.Pending() {
					t.Error("an answer to an answer")
				}
			}
			if !zero(first) {
				t.Error("the first secret was not overwritten")
			}
		})
	}
}

func TestKeyUpdatesCross(t *testing.T) {
	client, server := couple(t, tls.TLS_AES_128_GCM_SHA256)
	up, err := client.rekey(nil, true)
	if err != nil {
		t.Fatal(err)
	}
	down, err := server.rekey(nil, true)
	if err != nil {
		t.Fatal(err)
	}
	mustOpen(t, server, up, "")
	mustOpen(t, client, down, "")
	mustOpen(t, server, mustSeal(t, client, "up"), "up")
	mustOpen(t, client, mustSeal(t, server, "down"), "down")
	if client.Pending() || server.Pending() {
		t.Error("they go on")
	}
}

func TestKeyUpdateFlood(t *testing.T) {
	client, server := couple(t, tls.TLS_AES_128_GCM_SHA256)
	var wire []byte
	var err error
	for range maxUseless + 1 {
		if wire, err = client.rekey(wire, true); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := server.Open(make([]byte, 0, Room), wire); !errors.Is(err, errUseless) {
		t.Errorf("got %v", err)
	}

	// Data in between does not help for long.
	client, server = couple(t, tls.TLS_AES_128_GCM_SHA256)
	updates := 0
	for err == nil {
		wire, err = client.rekey(nil, true)
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = server.Open(make([]byte, 0, 2*Room), append(wire, mustSeal(t, client, "x")...))
		updates++
	}
	if !errors.Is(err, errUpdates) || updates < 64 || updates > 70 {
		t.Errorf("%d updates, %v", updates, err)
	}
	// Who sends enough may change its key for ever.
	client, server = couple(t, tls.TLS_AES_128_GCM_SHA256)
	for range 1000 {
		wire, err = client.rekey(nil, false)
		if err != nil {
			t.Fatal(err)
		}
		for range keyPrice {
			wire = append(wire, mustSeal(t, client, "x")...)
		}
		mustOpen(t, server, wire, strings.Repeat("x", keyPrice))
	}
}

// TestLimits: both directions change their key in time (RFC 8446 §5.5).
func TestLimits(t *testing.T) {
	client, server := couple(t, tls.TLS_AES_128_GCM_SHA256)
	client.out.seq, server.in.seq = rekeyAfter-2, rekeyAfter-2
	mustOpen(t, server, mustSeal(t, client, strings.Repeat("x", 5*MaxPlain)), strings.Repeat("x", 5*MaxPlain))
	if client.out.seq != 3 || server.in.seq != 3 {
		t.Errorf("%d and %d records after the change", client.out.seq, server.in.seq)
	}
	if server.Pending() {
		t.Error("the peer was made to change as well")
	}

	// A peer that does not count is asked, once.
	client.out.seq, server.in.seq = askAfter-1, askAfter-1
	wire := client.out.seal(nil, typeData, []byte("one more"))
	mustOpen(t, server, wire, "one more")
	if !server.Pending() {
		t.Fatal("did not ask")
	}
	mustOpen(t, client, mustSeal(t, server, "please"), "please")
	mustOpen(t, server, mustSeal(t, client, "done"), "done")
	if client.Pending() || server.Pending() || server.in.seq != 1 {
		t.Errorf("%d records since", server.in.seq)
	}
}

func TestCloseNotifyBothWays(t *testing.T) {
	client, server := couple(t, tls.TLS_AES_128_GCM_SHA256)
	secret := client.out.secret
	end, err := client.CloseWrite(mustSeal(t, client, "last"))
	if err != nil || !zero(secret) {
		t.Fatalf("%v, %x", err, secret)
	}
	got, _, err := server.Open(make([]byte, 0, 2*Room), append(end, "what comes after is ignored"...))
	if string(got) != "last" || err != io.EOF || server.Pending() {
		t.Errorf("got %q, %v", got, err)
	}
	if out, err := client.Seal(nil, []byte("x")); len(out) > 0 || !errors.Is(err, errClosed) {
		t.Errorf("sealed %x, %v", out, err)
	}
	if out, err := client.CloseWrite(nil); len(out) > 0 || err != nil {
		t.Errorf("closed again: %x, %v", out, err)
	}
	// What the peer does wrong now is no longer worth an alert, nor an answer.
	wire, _ := server.rekey(nil, true)
	mustOpen(t, client, wire, "")
	if client.Pending() {
		t.Error("answers after close_notify")
	}
	if _, _, err := client.Open(make([]byte, 0, Room), []byte{20, 3, 3, 0, 1, 1}); !errors.Is(err, errOuterType) || client.Pending() {
		t.Errorf("got %v", err)
	}
}

// TestAlertsReceived end both directions.
func TestAlertsReceived(t *testing.T) {
	for _, level := range []byte{1, 2, 77} {
		client, server := couple(t, tls.TLS_AES_128_GCM_SHA256)
		_, _, err := server.Open(make([]byte, 0, Room), client.out.seal(nil, typeAlert, []byte{level, 48}))
		if err == nil || !strings.Contains(err.Error(), "does not trust the CA") {
			t.Errorf("level %d: %v", level, err)
		}
		if out, err := server.Seal(nil, []byte("x")); len(out) > 0 || err == nil {
			t.Errorf("level %d: sealed %x, %v", level, out, err)
		}
		if server.Pending() {
			t.Error("an alert for an alert")
		}
	}
}

func TestNothingIsHeldWhileIdle(t *testing.T) {
	client, server := couple(t, tls.TLS_AES_128_GCM_SHA256)
	wire := mustSeal(t, client, strings.Repeat("x", 3*MaxPlain))
	got, n, err := server.Open(make([]byte, 0, 10*Room), wire[:len(wire)-1])
	if len(got) != 2*MaxPlain || n != len(wire)-1 || err != nil || server.held.buf == nil {
		t.Fatalf("%d bytes, took %d, %v", len(got), n, err)
	}
	mustOpen(t, server, wire[len(wire)-1:], strings.Repeat("x", MaxPlain))
	if server.held.buf != nil {
		t.Error("a buffer is held")
	}
}

func TestNoAllocations(t *testing.T) {
	client, server := couple(t, tls.TLS_AES_128_GCM_SHA256)
	for _, n := range []int{1, 1000, MaxPlain, 10 * MaxPlain} {
		plain, wire, out := make([]byte, n), make([]byte, 0, SealedSize(n)), make([]byte, 0, n+Room)
		if got := testing.AllocsPerRun(50, func() {
			w, err := client.Seal(wire, plain)
			if err != nil || len(w) > cap(wire) {
				t.Fatal(err)
			}
			half := len(w) / 2 // a record is cut in two
			a, _, err := server.Open(out, w[:half])
			if err != nil {
				t.Fatal(err)
			}
			if a, _, err = server.Open(a, w[half:]); err != nil || len(a) != n {
				t.Fatal(len(a), err)
			}
		}); got > 0 {
			t.Errorf("%d bytes: %v allocations", n, got)
		}
	}
}

// BenchmarkKeyUpdate is what a peer can make us do with each record.
func BenchmarkKeyUpdate(b *testing.B) {
	client, server := couple(b, tls.TLS_AES_128_GCM_SHA256)
	wire, out := make([]byte, 0, 1000), make([]byte, 0, Room)
	var mine int
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		w, _ := client.rekey(wire, true)
		w, _ = client.Seal(w, []byte{1})
		mine += len(w)
		server.credit = keyCredit
		b.StartTimer()
		if _, _, err := server.Open(out, w); err != nil {
			b.Fatal(err)
		}
		if _, err := server.Seal(out, nil); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(mine)/float64(b.N), "B-of-the-peer/op")
}

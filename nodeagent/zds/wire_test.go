package zds

import (
	"encoding/hex"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

const uid36 = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"

func requests() map[string]request {
	return map[string]request{
		"add":      {kind: kindAdd, uid: uid36, info: Info{Name: "a-1", Namespace: "app", ServiceAccount: "a"}},
		"keep":     {kind: kindKeep, uid: "u"},
		"del":      {kind: kindDel, uid: "u"},
		"snapshot": {kind: kindSnapshot},
	}
}

// TestBytes holds the encoding to bytes seen on the socket between a real agent
// and a real proxy.
func TestBytes(t *testing.T) {
	uid := hex.EncodeToString([]byte(uid36))
	want := map[string]string{
		"add":      "0a35" + "0a24" + uid + "120d" + "0a03612d31" + "1203617070" + "1a0161",
		"keep":     "2a03" + "0a0175",
		"del":      "1203" + "120175", // uid is field 2 here
		"snapshot": "1a00",
	}
	for name, r := range requests() {
		b, err := r.encode()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got := hex.EncodeToString(b); got != want[name] {
			t.Errorf("%s:\n%s, want\n%s", name, got, want[name])
		}
	}
	hello, err := encodeHello()
	if err != nil || hex.EncodeToString(hello) != "0801" {
		t.Errorf("hello: %x, %v", hello, err)
	}
	ack, err := encodeAck("")
	if err != nil || hex.EncodeToString(ack) != "0a00" {
		t.Errorf("ack: %x, %v", ack, err)
	}
	ack, err = encodeAck("no")
	if err != nil || hex.EncodeToString(ack) != "0a040a026e6f" {
		t.Errorf("ack with a text: %x, %v", ack, err)
	}
}

func TestRequestsSurviveTheWire(t *testing.T) {
	for name, r := range requests() {
		b, err := r.encode()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got, err := decodeRequest(b)
		if err != nil || got != r {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

func TestEncodeRefuses(t *testing.T) {
	for name, r := range map[string]request{
		"no kind":    {uid: "u"},
		"no uid":     {kind: kindAdd},
		"not UTF-8":  {kind: kindAdd, uid: "u", info: Info{Name: "\xff"}},
		"too long":   {kind: kindAdd, uid: "u", info: Info{Name: strings.Repeat("n", maxPacket)}},
		"del no uid": {kind: kindDel},
	} {
		if b, err := r.encode(); err == nil {
			t.Errorf("%s: encoded as %x", name, b)
		}
	}
}

func TestDecodeRequestRefuses(t *testing.T) {
	for name, b := range map[string]string{
		"empty":               "",
		"junk":                "ffffffffff",
		"unknown message":     "3200",
		"add without info":    "0a030a0175",
		"add without uid":     "0a020a00",
		"keep without uid":    "2a00",
		"del with uid as 1":   "12030a0175",
		"cut short":           "1a01",
		"uid that is no text": "12031201ff",
	} {
		raw, err := hex.DecodeString(b)
		if err != nil {
			t.Fatal(err)
		}
		if r, err := decodeRequest(raw); err == nil {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

func TestUnknownFieldsAreSkipped(t *testing.T) {
	got, err := decodeRequest([]byte{0x12, 0x05, 0x12, 0x01, 'u', 0x78, 0x07}) // field 15 of DelWorkload
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(request{kind: kindDel, uid: "u"}, got, cmp.AllowUnexported(request{})); diff != "" {
		t.Error(diff)
	}
}

func TestHello(t *testing.T) {
	for b, ok := range map[string]bool{"\x08\x01": true, "": false, "\x08\x02": false, "\xff": false} {
		if err := decodeHello([]byte(b)); (err == nil) != ok {
			t.Errorf("%x: %v", b, err)
		}
	}
}

func TestAckText(t *testing.T) {
	for name, text := range map[string]string{
		"none":       "",
		"short":      "port 15001 is taken",
		"long":       strings.Repeat("x", 5000),
		"long runes": strings.Repeat("é€", 1000),
		"not UTF-8":  "a\xffb",
	} {
		b, err := encodeAck(text)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if len(b) > 1000 {
			t.Errorf("%s: an ack of %d bytes", name, len(b))
		}
		got, err := decodeAck(b)
		if err != nil || !utf8.ValidString(got) || (got == "") != (text == "") {
			t.Errorf("%s: %.40q, %v", name, got, err)
		}
	}
	for _, b := range []string{"", "\x12\x00", "\x0a\x05"} {
		if got, err := decodeAck([]byte(b)); err == nil {
			t.Errorf("%x was taken as an ack: %q", b, got)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, r := range requests() {
		b, err := r.encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	for _, b := range []string{"", "\x08\x01", "\x0a\x00", "\x0a\x04\x0a\x02no"} {
		f.Add([]byte(b))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		_ = decodeHello(b)
		if text, err := decodeAck(b); err == nil && !utf8.ValidString(text) {
			t.Errorf("ack text %q", text)
		}
		r, err := decodeRequest(b)
		if err != nil {
			return
		}
		if r.kind != kindSnapshot && r.uid == "" {
			t.Errorf("no uid: %+v", r)
		}
		out, err := r.encode()
		if err != nil {
			return // longer than a packet
		}
		if again, err := decodeRequest(out); err != nil || again != r {
			t.Errorf("%+v became %+v, %v", r, again, err)
		}
	})
}

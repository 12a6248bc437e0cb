package proxyproto

import (
	"bytes"
	"encoding/hex"
	"errors"
	"net/netip"
	"strings"
	"testing"
)

var ap = netip.MustParseAddrPort

// The bytes are laid out by hand after §2.2 of the protocol's text.
const magic = "0d0a0d0a000d0a515549540a"

func TestAppend(t *testing.T) {
	for _, tt := range []struct {
		name string
		h    Header
		want string
	}{
		{"IPv4", Header{Src: ap("10.0.0.1:4660"), Dst: ap("10.96.0.1:80")}, magic + "21" + "11" + "000c" + "0a000001" + "0a600001" + "1234" + "0050"},
		{"IPv6", Header{Src: ap("[fd00::1]:4660"), Dst: ap("[fd96::1]:80")}, magic + "21" + "21" + "0024" +
			"fd000000000000000000000000000001" + "fd960000000000000000000000000001" + "1234" + "0050"},
		{"mapped", Header{Src: ap("[::ffff:10.0.0.1]:4660"), Dst: ap("10.96.0.1:80")}, magic + "21" + "11" + "000c" + "0a000001" + "0a600001" + "1234" + "0050"},
		{"two families", Header{Src: ap("10.0.0.1:4660"), Dst: ap("[fd96::1]:80")}, magic + "21" + "21" + "0024" +
			"00000000000000000000ffff0a000001" + "fd960000000000000000000000000001" + "1234" + "0050"},
		{"identity", Header{Src: ap("10.0.0.1:4660"), Dst: ap("10.96.0.1:80"), Identity: "spiffe://a/b"}, magic + "21" + "11" + "001b" +
			"0a000001" + "0a600001" + "1234" + "0050" + "d0000c" + hex.EncodeToString([]byte("spiffe://a/b"))},
		{"nothing", Header{}, magic + "21" + "00" + "0000"},
		{"identity that is none", Header{Identity: strings.Repeat("x", MaxIdentity+1)}, magic + "21" + "00" + "0000"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := tt.h.Append([]byte("before"))
			if hex.EncodeToString(got[6:]) != tt.want || string(got[:6]) != "before" {
				t.Errorf("got  %x\nwant %s", got[6:], tt.want)
			}
		})
	}
}

func TestParse(t *testing.T) {
	long := hex.EncodeToString(bytes.Repeat([]byte("x"), MaxIdentity+1))
	addrs := "0a000001" + "0a600001" + "1234" + "0050"
	for _, tt := range []struct {
		name, in string
		want     Header
		rest     int
		err      string
	}{
		{name: "IPv4, and what follows", in: magic + "2111000c" + addrs + "474554", want: Header{Src: ap("10.0.0.1:4660"), Dst: ap("10.96.0.1:80")}, rest: 3},
		{name: "other TLVs", in: magic + "2111001a" + addrs + "040003000000" + "ea0000" + "d0000278" + "79", want: Header{Src: ap("10.0.0.1:4660"), Dst: ap("10.96.0.1:80"), Identity: "xy"}},
		{name: "LOCAL", in: magic + "2011000c" + addrs},
		{name: "UDP", in: magic + "2112000c" + addrs},
		{name: "Unix sockets", in: magic + "213100d8" + strings.Repeat("00", 216)},
		{name: "unspecified", in: magic + "21000000"},
		{name: "no header", in: "474554202f20", err: "no header of version 2"},
		{name: "version 1", in: hex.EncodeToString([]byte("PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\n")), err: "no header of version 2"},
		{name: "version 3", in: magic + "31110000", err: "version and command 0x31"},
		{name: "command 2", in: magic + "22110000", err: "version and command 0x22"},
		{name: "family 4", in: magic + "21410000", err: "address family 0x41"},
		{name: "addresses cut off", in: magic + "2111000b" + addrs, err: "addresses are cut off"},
		{name: "Unix sockets cut off", in: magic + "213100d7" + strings.Repeat("00", 215), err: "addresses are cut off"},
		{name: "TLV cut off", in: magic + "2111000e" + addrs + "d000", err: "a TLV is cut off"},
		{name: "TLV beyond the end", in: magic + "2111000f" + addrs + "d00001" + "78", err: "a TLV is cut off"},
		{name: "two identities", in: magic + "21000008" + "d0000178" + "d0000179", err: "the identity is not one"},
		{name: "identity too long", in: magic + "21000804" + "d00801" + long, err: "the identity is not one"},
		{name: "identity that is no text", in: magic + "21000004" + "d00001ff", err: "the identity is not one"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in, err := hex.DecodeString(tt.in)
			if err != nil {
				t.Fatal(err)
			}
			got, n, err := Parse(in)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) || errors.Is(err, ErrShort) {
					t.Errorf("error %v, want %q", err, tt.err)
				}
				return
			}
			if err != nil || got != tt.want || len(in)-n != tt.rest {
				t.Errorf("%+v, %d left, %v; want %+v", got, len(in)-n, err, tt.want)
			}
			for i := range n {
				if _, _, err := Parse(in[:i]); !errors.Is(err, ErrShort) {
					t.Fatalf("of %d bytes: %v", i, err)
				}
			}
		})
	}
}

// FuzzParse: what is read can be written, and is then read as the same.
func FuzzParse(f *testing.F) {
	f.Add(Header{Src: ap("10.0.0.1:1"), Dst: ap("10.96.0.1:80"), Identity: "spiffe://cluster.local/ns/a/sa/b"}.Append(nil))
	f.Add(Header{Src: ap("[fd00::1]:1"), Dst: ap("10.96.0.1:80")}.Append(nil))
	f.Add(Header{}.Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, n, err := Parse(b)
		if err != nil {
			return
		}
		if n < fixedLen || n > len(b) {
			t.Fatalf("%d bytes of %d", n, len(b))
		}
		again, _, err := Parse(h.Append(nil))
		if err != nil || again != h {
			t.Fatalf("%+v became %+v, %v", h, again, err)
		}
	})
}

package socks5

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"
)

// script is a client that says all it has to say, and what it was told.
type script struct {
	io.Reader
	told bytes.Buffer
}

func (s *script) Write(b []byte) (int, error) { return s.told.Write(b) }

func TestAccept(t *testing.T) {
	const hello = "\x05\x01\x00"
	for name, tt := range map[string]struct {
		said, told string
		want       Request
		err        string
	}{
		"an IPv4 address":             {said: hello + "\x05\x01\x00\x01\x0a\x00\x00\x07\x00\x50", told: "\x05\x00", want: Request{Addr: netip.MustParseAddr("10.0.0.7"), Port: 80}},
		"an IPv6 address":             {said: hello + "\x05\x01\x00\x04\xfd" + strings.Repeat("\x00", 14) + "\x07\x1f\x90", told: "\x05\x00", want: Request{Addr: netip.MustParseAddr("fd00::7"), Port: 8080}},
		"a mapped address":            {said: hello + "\x05\x01\x00\x04" + strings.Repeat("\x00", 10) + "\xff\xff\x0a\x00\x00\x07\x00\x50", told: "\x05\x00", want: Request{Addr: netip.MustParseAddr("10.0.0.7"), Port: 80}},
		"a name":                      {said: hello + "\x05\x01\x00\x03\x04echo\x00\x50", told: "\x05\x00", want: Request{Name: "echo", Port: 80}},
		"an address for a name":       {said: hello + "\x05\x01\x00\x03\x08fd00::07\x00\x50", told: "\x05\x00", want: Request{Addr: netip.MustParseAddr("fd00::7"), Port: 80}},
		"several methods":             {said: "\x05\x03\x02\x01\x00" + "\x05\x01\x00\x03\x01a\x00\x50", told: "\x05\x00", want: Request{Name: "a", Port: 80}},
		"no method but passwords":     {said: "\x05\x01\x02", told: "\x05\xff", err: "no access without authentication"},
		"no method":                   {said: "\x05\x00", told: "\x05\xff", err: "no access without authentication"},
		"SOCKS 4":                     {said: "\x04\x01\x00\x50\x0a\x00\x00\x01\x00", told: "\x05\xff", err: "not a client of SOCKS 5"},
		"HTTP":                        {said: "GET / HTTP/1.1\r\n", told: "\x05\xff", err: "not a client of SOCKS 5"},
		"another version in between":  {said: hello + "\x04\x01\x00\x01\x0a\x00\x00\x07\x00\x50", told: "\x05\x00", err: "not a client of SOCKS 5"},
		"a listener":                  {said: hello + "\x05\x02\x00\x01\x0a\x00\x00\x07\x00\x50", told: "\x05\x00\x05\x07\x00\x01\x00\x00\x00\x00\x00\x00", err: "command 2"},
		"another type of address":     {said: hello + "\x05\x01\x00\x02\x0a\x00\x00\x07\x00\x50", told: "\x05\x00\x05\x08\x00\x01\x00\x00\x00\x00\x00\x00", err: "address type 2"},
		"an empty name":               {said: hello + "\x05\x01\x00\x03\x00\x00\x50", told: "\x05\x00\x05\x04\x00\x01\x00\x00\x00\x00\x00\x00", err: "empty"},
		"a name that is none":         {said: hello + "\x05\x01\x00\x03\x03a\x00b\x00\x50", told: "\x05\x00\x05\x04\x00\x01\x00\x00\x00\x00\x00\x00", err: `"a\x00b" is no name`},
		"an address of one interface": {said: hello + "\x05\x01\x00\x03\x09fe80::1%1\x00\x50", told: "\x05\x00", want: Request{Name: "fe80::1%1", Port: 80}},
		"no port":                     {said: hello + "\x05\x01\x00\x01\x0a\x00\x00\x07\x00\x00", told: "\x05\x00\x05\x01\x00\x01\x00\x00\x00\x00\x00\x00", err: "port 0"},
		"cut off":                     {said: hello + "\x05\x01\x00\x01\x0a", told: "\x05\x00", err: "unexpected EOF"},
		"nothing":                     {said: "", err: "EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			s := &script{Reader: strings.NewReader(tt.said + "rest")}
			if strings.Contains(tt.err, "EOF") {
				s.Reader = strings.NewReader(tt.said)
			}
			r, err := Accept(conn{s}, time.Minute)
			if tt.err == "" && err != nil || tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
				t.Fatalf("error %v, want %q", err, tt.err)
			}
			if r != tt.want || s.told.String() != tt.told {
				t.Errorf("got %v, told %q; want %v, %q", r, s.told.String(), tt.want, tt.told)
			}
			if rest, _ := io.ReadAll(s.Reader); tt.err == "" && string(rest) != "rest" {
				t.Errorf("left over: %q", rest)
			}
		})
	}
}

// conn is a script as a connection.
type conn struct{ *script }

func (conn) Close() error                     { return nil }
func (conn) LocalAddr() net.Addr              { return nil }
func (conn) RemoteAddr() net.Addr             { return nil }
func (conn) SetDeadline(time.Time) error      { return nil }
func (conn) SetReadDeadline(time.Time) error  { return nil }
func (conn) SetWriteDeadline(time.Time) error { return nil }

// Who says nothing is not waited for.
func TestSilence(t *testing.T) {
	client, server := net.Pipe()
	defer client.Close()
	defer server.Close()
	if _, err := Accept(server, time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("error %v", err)
	}
}

func TestAnswer(t *testing.T) {
	for bound, want := range map[netip.AddrPort]string{
		{}:                                       "\x05\x05\x00\x01\x00\x00\x00\x00\x00\x00",
		netip.MustParseAddrPort("10.0.0.1:258"):  "\x05\x05\x00\x01\x0a\x00\x00\x01\x01\x02",
		netip.MustParseAddrPort("[fd00::1]:258"): "\x05\x05\x00\x04\xfd" + strings.Repeat("\x00", 14) + "\x01\x01\x02",
		netip.MustParseAddrPort("[::ffff:10.0.0.1]:258"): "\x05\x05\x00\x01\x0a\x00\x00\x01\x01\x02",
	} {
		s := &script{}
		if err := Answer(conn{s}, Refused, bound, time.Minute); err != nil || s.told.String() != want {
			t.Errorf("%s: %q, %v; want %q", bound, s.told.String(), err, want)
		}
	}
}

// FuzzAccept: whatever a client says, it is told one thing or two, what it asked
// for makes sense, and what follows is left alone.
func FuzzAccept(f *testing.F) {
	for _, s := range []string{
		"\x05\x01\x00\x05\x01\x00\x01\x0a\x00\x00\x07\x00\x50x", "\x05\x01\x00\x05\x01\x00\x03\x04echo\x00\x50", "\x05\x02\x01\x02",
		"\x05\x01\x00\x05\x01\x00\x04" + strings.Repeat("\x20", 18), "\x04\x01", "\x05\x01\x00\x05\x02\x00\x09\x00", "\x05\xff",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, said []byte) {
		r := bytes.NewReader(said)
		s := &script{Reader: r}
		got, err := Accept(conn{s}, time.Minute)
		told := s.told.Bytes()
		if len(told) != 0 && len(told) != 2 && len(told) != 12 {
			t.Fatalf("told %x", told)
		}
		if err != nil {
			if got != (Request{}) {
				t.Fatalf("%v and %v", got, err)
			}
			return
		}
		if got.Port == 0 || got.Addr.IsValid() == (got.Name != "") || len(got.Name) > 255 || !bytes.Equal(told, []byte{5, 0}) {
			t.Fatalf("%+v, told %x", got, told)
		}
		used := len(said) - r.Len()
		if again, err := parseRequest(said[used-requestSize(said[2+int(said[1]):]) : used]); err != nil || again != got {
			t.Fatalf("%+v, then %+v, %v", got, again, err)
		}
	})
}

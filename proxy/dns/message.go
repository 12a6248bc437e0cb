package dns

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net/netip"
	"strings"

	"github.com/miekg/dns"
)

const (
	headerSize = 12
	// ttl of our own answers, in seconds.
	ttl = 30
	// maxAddrs bounds an answer: so many records fit a message, and more help
	// nobody. Which ones is drawn by lot.
	maxAddrs = 2000
	// recordSize is what a record with an IPv4 address takes, the smallest of ours.
	recordSize = 16
	// maxQuery bounds a query. The largest of practice, with a signature, has
	// some hundred bytes.
	maxQuery = 4096
	// minUDP is what every client takes over UDP, maxUDP what UDP takes.
	minUDP, maxUDP = 512, 65507
	maxTCP         = 65535
)

// Transport is how a query came.
type Transport uint8

// Transports.
const (
	UDP Transport = iota
	TCP
)

func (t Transport) String() string { return [...]string{"udp", "tcp"}[t] }

// query is a query that was understood as far as is needed.
type query struct {
	raw       []byte
	transport Transport
	msg       dns.Msg // all of it, if the opcode is QUERY
	name      string  // in lower case, no dot at the end
	qtype     uint16
	opcode    int
	size      int  // of the largest answer
	sealed    bool // not for us to answer: signed, or of another class
	// rcode is the answer, if it is not a success.
	rcode int
}

// errNoQuery is of what must not be answered at all, such as another's answer.
var errNoQuery = errors.New("not a query")

// parse reads a query. One that must be answered with an error has its rcode.
func parse(raw []byte, t Transport) (query, error) {
	q := query{raw: raw, transport: t, size: minUDP}
	if len(raw) < headerSize || raw[2]&0x80 != 0 {
		return q, errNoQuery
	}
	if t == TCP {
		q.size = maxTCP
	}
	q.opcode = int(raw[2]>>3) & 0xF
	if q.opcode != dns.OpcodeQuery {
		return q, nil // its sections mean something else
	}
	if err := q.unpack(); err != nil || len(q.msg.Question) != 1 || len(q.msg.Answer) > 0 {
		q.rcode = dns.RcodeFormatError
		return q, nil
	}
	question := q.msg.Question[0]
	q.name, q.qtype = strings.ToLower(strings.TrimSuffix(question.Name, ".")), question.Qtype
	q.sealed = question.Qclass != dns.ClassINET
	q.options()
	return q, nil
}

func (q *query) unpack() error {
	if len(q.raw) > maxQuery {
		return errNoQuery
	}
	if err := q.msg.Unpack(q.raw); err != nil || len(q.msg.Question) == 0 {
		return err
	}
	_, _, err := firstName(q.raw)
	return err
}

var errPointer = errors.New("the question's name is compressed")

// firstName reads the first question's name, and where it ends. Compression points
// to a name that was before (RFC 1035 §4.1.4), and there is none: where a pointer
// leads from there can be cut off, or is a header that changes.
func firstName(msg []byte) (name string, end int, err error) {
	name, end, err = dns.UnpackDomainName(msg, headerSize)
	for at := headerSize; err == nil && msg[at] != 0; at += 1 + int(msg[at]) {
		if msg[at]&0xC0 != 0 {
			err = errPointer
		}
	}
	return name, end, err
}

// options reads the additional section.
func (q *query) options() {
	found := false
	for _, rr := range q.msg.Extra {
		opt, ok := rr.(*dns.OPT)
		if !ok {
			q.sealed = true // TSIG or SIG(0): the answer has to be signed
			continue
		}
		switch {
		case found:
			q.rcode = dns.RcodeFormatError
		case opt.Version() != 0:
			q.rcode = dns.RcodeBadVers
		}
		found = true
		if q.transport == UDP {
			q.size = min(max(int(opt.UDPSize()), minUDP), maxUDP)
		}
	}
}

// transfer says whether there may be many messages in answer.
func (q *query) transfer() bool {
	return q.opcode == dns.OpcodeQuery && (q.qtype == dns.TypeAXFR || q.qtype == dns.TypeIXFR)
}

// reply begins the answer to a query of ours.
func (q *query) reply(rcode int) *dns.Msg {
	m := new(dns.Msg)
	m.Id, m.Response, m.Opcode, m.Rcode = q.msg.Id, true, q.opcode, rcode
	m.RecursionDesired, m.RecursionAvailable, m.CheckingDisabled = q.msg.RecursionDesired, true, q.msg.CheckingDisabled
	m.Question, m.Compress = q.msg.Question, true
	if opt := q.msg.IsEdns0(); opt != nil {
		m.SetEdns0(max(opt.UDPSize(), minUDP), opt.Do())
	}
	return m
}

// failure is an answer without records. Where the query was not understood there
// is only its header to go by.
func (q *query) failure(rcode int) []byte {
	if rcode != dns.RcodeFormatError && q.opcode == dns.OpcodeQuery {
		if out, err := q.reply(rcode).Pack(); err == nil {
			return out
		}
	}
	out := make([]byte, headerSize)
	copy(out, q.raw[:4])
	out[2] = out[2]&0x79 | 0x80 // opcode and RD stay, QR is set
	out[3] = out[3]&0x10 | 0x80 | byte(rcode&0xF)
	return out
}

// success is the answer of a Decision, in buf if it fits.
func (q *query) success(d Decision, buf []byte) []byte {
	m := q.reply(dns.RcodeSuccess)
	m.Authoritative = true
	owner := q.msg.Question[0].Name
	if d.Alias != "" {
		alias := owner[:len(d.Alias)] + "." // as it was spelled
		m.Answer = append(m.Answer, &dns.CNAME{Hdr: header(owner, dns.TypeCNAME), Target: alias})
		owner = alias
	}
	// So many do not fit beside the question: then the answer says that some are missing.
	for _, a := range draw(d.Addrs, min(maxAddrs, q.size/recordSize)) {
		if a.Is4() {
			m.Answer = append(m.Answer, &dns.A{Hdr: header(owner, dns.TypeA), A: a.AsSlice()})
		} else {
			m.Answer = append(m.Answer, &dns.AAAA{Hdr: header(owner, dns.TypeAAAA), AAAA: a.AsSlice()})
		}
	}
	m.Truncate(q.size)
	out, err := m.PackBuffer(buf)
	if err != nil {
		return q.failure(dns.RcodeServerFailure)
	}
	return out
}

// draw picks at most n different ones by lot, in any order. It changes the order of addrs.
func draw(addrs []netip.Addr, n int) []netip.Addr {
	if len(addrs) <= 1 {
		return addrs
	}
	out, seen := addrs[:0], make(map[netip.Addr]struct{}, min(len(addrs), n))
	for i := 0; i < len(addrs) && len(out) < n; i++ {
		j := i + rand.IntN(len(addrs)-i)
		addrs[i], addrs[j] = addrs[j], addrs[i]
		if _, twice := seen[addrs[i]]; !twice {
			seen[addrs[i]] = struct{}{}
			out = append(out, addrs[i]) // over itself, or one that was there twice
		}
	}
	return out
}

func header(name string, rrtype uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: rrtype, Class: dns.ClassINET, Ttl: ttl}
}

// shorten is an upstream's answer as the client can take it: one that is longer
// than the client said is cut to its question and marked as truncated, so that
// the client asks over TCP.
func shorten(reply []byte, size int) []byte {
	if len(reply) <= size {
		return reply
	}
	end := headerSize
	if binary.BigEndian.Uint16(reply[4:]) == 1 {
		if _, off, err := firstName(reply); err == nil && off+4 <= size {
			end = off + 4
		}
	}
	reply = reply[:end]
	reply[2] |= 0x02 // TC
	clear(reply[6:headerSize])
	if end == headerSize {
		clear(reply[4:6])
	}
	return reply
}

func truncated(reply []byte) bool { return reply[2]&0x02 != 0 }
func rcodeOf(reply []byte) int    { return int(reply[3] & 0xF) }

// matches says whether a message answers what was asked. Whoever can send us
// messages has to guess the ID, our port and the question. An error may come
// without the question, and what is no QUERY has other sections.
func matches(asked, reply []byte) bool {
	if len(reply) < headerSize || [2]byte(asked) != [2]byte(reply) || reply[2]&0x80 == 0 || (asked[2]^reply[2])&0x78 != 0 {
		return false
	}
	if binary.BigEndian.Uint16(reply[4:]) == 0 {
		return rcodeOf(reply) != dns.RcodeSuccess || asked[2]&0x78 != 0
	}
	if asked[2]&0x78 != 0 {
		return true
	}
	name, off, err := firstName(asked)
	name2, off2, err2 := firstName(reply)
	return err == nil && err2 == nil && off+4 <= len(asked) && off2+4 <= len(reply) &&
		strings.EqualFold(name, name2) && [4]byte(asked[off:]) == [4]byte(reply[off2:])
}

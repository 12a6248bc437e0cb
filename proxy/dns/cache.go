package dns

import (
	"encoding/binary"
	"net/netip"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// What a resolver answered is kept for a moment, so that the many same questions
// of a burst cost the resolver one. Resolvers keep answers themselves, for as long
// as those last; whatever we add to that is added to their age, so it is little.
const (
	maxKept      = 10 * time.Second // an answer
	maxKeptNone  = 2 * time.Second  // that there is none: a name may be about to come
	maxKeptQuery = 512
	maxKeptReply = 4096
)

// cache holds answers of one pod, within Limits.Kept bytes. What one pod asked is
// never another's answer.
type cache struct {
	limit int

	mu    sync.Mutex
	m     map[string]kept
	bytes int
}

type kept struct {
	reply     []byte
	at, until time.Time
}

// key is who was asked for what, to the byte but for the ID: flags, options and the
// spelling of the name come back as they were asked. It is empty for what is not
// kept: a query that has options, which may be meant for this once, or one that is
// not answered by records.
func (q *query) key(server netip.AddrPort) string {
	if len(q.raw) > maxKeptQuery || q.opcode != dns.OpcodeQuery || q.sealed || q.rcode != dns.RcodeSuccess || q.transfer() {
		return ""
	}
	if opt := q.msg.IsEdns0(); opt != nil && len(opt.Option) > 0 {
		return ""
	}
	return server.String() + "/" + string(q.raw[2:])
}

// get returns an answer of its own, whose records have grown older; nil if there
// is none.
func (c *cache) get(key string, now time.Time) []byte {
	c.mu.Lock()
	k, ok := c.m[key]
	if ok && !now.Before(k.until) {
		c.drop(key)
		ok = false
	}
	c.mu.Unlock()
	if !ok {
		return nil
	}
	reply := append([]byte(nil), k.reply...)
	age := uint32(now.Sub(k.at) / time.Second)
	_ = records(reply, func(r record) {
		if r.rrtype != dns.TypeOPT {
			binary.BigEndian.PutUint32(reply[r.ttlAt:], r.ttl-min(age, r.ttl))
		}
	})
	return reply
}

// put keeps an answer, if it may be; others make room for it, whichever.
func (c *cache) put(key string, reply []byte, now time.Time) {
	life := lifetime(reply)
	if key == "" || life <= 0 || size(key, reply) > c.limit {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drop(key)
	for old := range c.m {
		if c.bytes+size(key, reply) <= c.limit {
			break
		}
		c.drop(old)
	}
	if c.m == nil {
		c.m = make(map[string]kept)
	}
	c.m[key] = kept{reply: append([]byte(nil), reply...), at: now, until: now.Add(life)}
	c.bytes += size(key, reply)
}

// drop forgets an answer; mu is held.
func (c *cache) drop(key string) {
	if k, ok := c.m[key]; ok {
		delete(c.m, key)
		c.bytes -= size(key, k.reply)
	}
}

// entry is what the map and the allocator take for one beside its bytes.
const entry = 200

func size(key string, reply []byte) int { return len(key) + len(reply) + entry }

// lifetime is how long an answer may be kept: as its records say, the SOA's where
// there are none (RFC 2308), and no longer than we would.
func lifetime(reply []byte) time.Duration {
	rcode := rcodeOf(reply)
	if len(reply) > maxKeptReply || truncated(reply) || rcode != dns.RcodeSuccess && rcode != dns.RcodeNameError {
		return 0
	}
	none := rcode == dns.RcodeNameError || binary.BigEndian.Uint16(reply[6:]) == 0
	limit, soa := maxKept, false
	if none {
		limit = maxKeptNone
	}
	bad := records(reply, func(r record) {
		switch {
		case r.rrtype == dns.TypeOPT:
			return
		case none && r.rrtype == dns.TypeSOA && len(r.data) >= 4:
			soa = true
			r.ttl = min(r.ttl, binary.BigEndian.Uint32(r.data[len(r.data)-4:]))
		}
		if r.ttl >= 1<<31 { // RFC 2181: taken for zero
			r.ttl = 0
		}
		limit = min(limit, time.Duration(r.ttl)*time.Second)
	})
	if bad != nil || none && !soa {
		return 0
	}
	return limit
}

// record is one in a message.
type record struct {
	rrtype uint16
	ttl    uint32
	ttlAt  int // where in the message the TTL is
	data   []byte
}

// records calls f for each record of a message.
func records(m []byte, f func(record)) error {
	if len(m) < headerSize {
		return dns.ErrShortRead
	}
	off := headerSize
	name := func() (err error) {
		_, off, err = dns.UnpackDomainName(m, off)
		return err
	}
	for range binary.BigEndian.Uint16(m[4:]) {
		if err := name(); err != nil {
			return err
		}
		off += 4
	}
	count := int(binary.BigEndian.Uint16(m[6:])) + int(binary.BigEndian.Uint16(m[8:])) + int(binary.BigEndian.Uint16(m[10:]))
	for range count {
		if err := name(); err != nil {
			return err
		}
		if off+10 > len(m) {
			return dns.ErrShortRead
		}
		end := off + 10 + int(binary.BigEndian.Uint16(m[off+8:]))
		if end > len(m) {
			return dns.ErrShortRead
		}
		f(record{
			rrtype: binary.BigEndian.Uint16(m[off:]), ttl: binary.BigEndian.Uint32(m[off+4:]), ttlAt: off + 4, data: m[off+10 : end],
		})
		off = end
	}
	return nil
}

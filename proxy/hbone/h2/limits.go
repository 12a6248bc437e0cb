package h2

import "time"

// bucket is a token bucket over the time that the owner passes in.
type bucket struct {
	perSecond int64
	burst     int64
	tokens    int64
	last      time.Duration
}

func newBucket(perSecond, burst int64) bucket {
	return bucket{perSecond: perSecond, burst: burst, tokens: burst}
}

// take removes a token; false: there is none.
func (b *bucket) take(now time.Duration) bool { return b.spend(now, 1) }

// spend removes n tokens; false: there are not as many.
func (b *bucket) spend(now time.Duration, n int64) bool {
	// What a day earns is more than fits in.
	if idle := now - b.last; idle > time.Hour {
		b.tokens, b.last = b.burst, now
	} else if got := int64(idle) * b.perSecond / int64(time.Second); got > 0 {
		b.tokens = min(b.burst, b.tokens+got)
		b.last = now
	}
	if b.tokens < n {
		return false
	}
	b.tokens -= n
	return true
}

// earn adds n tokens for useful work done.
func (b *bucket) earn(n int64) { b.tokens = min(b.burst, b.tokens+n) }

// limits bound what a peer can make us do without sending anything useful.
// Each figure is far above what an honest proxy under load needs.
type limits struct {
	// early: requests that the peer reset before we answered, and requests over
	// the concurrency limit: the "rapid reset" pattern (CVE-2023-44487). Resets
	// of answered streams need no bound: each has cost the peer a round trip,
	// and an application that resets its connections makes one each.
	early bucket
	// control: PING, SETTINGS, PRIORITY and frames of unknown type.
	control bucket
	// empty: DATA frames without payload and without END_STREAM (CVE-2019-9518).
	empty bucket
	// small: what DATA frames cost beside what they carry, in bytes. What they carry
	// pays for it, and so does each frame that we send, so that neither bulk nor small
	// messages which are answered are ever refused. What is left are bytes by ones and
	// twos, one way: freeData frames a second for ever, and for each open stream, which
	// was let in, streamData more. That is a tenth of a core if each has a record of
	// its own, and more than comes of a peer that reads applications which write so.
	small bucket
	// strays: DATA and RST_STREAM for streams that are closed, and stream errors.
	strays bucket
	// updates: WINDOW_UPDATE. What we send earns tokens, so that a fast
	// receiver with small updates is not taken for an abuser.
	updates bucket
}

const (
	// sentPerUpdate is how many bytes we must send to earn one WINDOW_UPDATE.
	sentPerUpdate = 256
	// bytesPerData is how many bytes pay for a DATA frame: with its header, a record's
	// and the tag it is as long on the wire.
	bytesPerData = 32
	freeData     = 20_000
	streamData   = 2_000
)

func newLimits() limits {
	return limits{
		early:   newBucket(200, 1000),
		control: newBucket(50, 1000),
		empty:   newBucket(10, 200),
		small:   newBucket(freeData*bytesPerData, 10*freeData*bytesPerData),
		strays:  newBucket(200, 2000),
		updates: newBucket(2000, 20000),
	}
}

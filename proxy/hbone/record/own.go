package record

import (
	"crypto/tls"
	"errors"
	"io"
	"slices"
	"sync"
)

const (
	// rekeyAfter is how many records are sealed under one key. AES-GCM takes
	// 2^24.5 of them (RFC 8446 §5.5).
	rekeyAfter = 1 << 24
	// askAfter is how many records of the peer under one key make us ask for
	// another: not every stack counts for itself. One that does has changed its
	// key by then.
	askAfter = rekeyAfter + 1<<20
	// maxUseless is how many records and messages in a row may carry no data. It
	// is OpenSSL's limit, which tlsfuzzer goes up to; crypto/tls has 16.
	maxUseless = 32
	// A new key costs us some µs, as much as opening many small records. The
	// peer pays for each with that many records of data, and has credit for 64.
	keyPrice  = 32
	keyCredit = 64 * keyPrice
)

// own is the Layer for TLS 1.3 with AES-GCM (RFC 8446 §4.6, §5, §6).
type own struct {
	state  tls.ConnectionState
	client bool

	// For Open alone.
	in      half
	held    held   // the beginning of a record whose end has not come
	hand    []byte // the beginning of a message whose end has not come
	useless int    // see maxUseless
	credit  int    // see keyPrice
	readErr error  // why nothing is opened any more

	out half // for Seal and CloseWrite alone

	mu     sync.Mutex // what opening wants sealed
	answer bool       // the peer wants us to change our key
	ask    bool       // we want the peer to change its key
	alert  tls.AlertError
	warn   bool  // alert is to be sent
	dead   error // why no more data is sealed
}

var errClosed = errors.New("sealing after close_notify")

// newOwn makes the layer. It owns the secrets.
func newOwn(s suite, state tls.ConnectionState, client bool, in, out []byte) (*own, error) {
	o := &own{state: state, client: client, credit: keyCredit, in: half{suite: s}, out: half{suite: s}}
	return o, errors.Join(o.in.use(in), o.out.use(out))
}

func (o *own) State() tls.ConnectionState { return o.state }

func (o *own) Pending() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.warn || o.answer || o.ask
}

func (o *own) Seal(dst, plain []byte) ([]byte, error) {
	dst, err := o.say(slices.Grow(dst, SealedSize(len(plain))))
	if len(plain) == 0 {
		return dst, nil
	}
	for err == nil && len(plain) > 0 {
		if o.out.seq >= rekeyAfter {
			if dst, err = o.rekey(dst, false); err != nil {
				break
			}
		}
		n := min(len(plain), MaxPlain)
		dst = o.out.seal(dst, typeData, plain[:n])
		plain = plain[n:]
	}
	return dst, err
}

func (o *own) CloseWrite(dst []byte) ([]byte, error) {
	dst, err := o.say(dst)
	if err != nil {
		return dst, nil // closed already, or worse is said
	}
	dst = o.out.seal(dst, typeAlert, []byte{levelWarning, alertCloseNotify})
	o.mu.Lock()
	if o.dead == nil { // an alert may have been asked for in this very moment: too late
		o.dead = errClosed
	}
	o.answer, o.ask, o.warn = false, false, false
	o.mu.Unlock()
	o.out.forget()
	return dst, nil
}

// say appends what the layer itself has to say; its error says why nothing may
// follow.
func (o *own) say(dst []byte) ([]byte, error) {
	o.mu.Lock()
	update, ask, warn, alert, dead := o.answer || o.ask, o.ask, o.warn, o.alert, o.dead
	o.answer, o.ask, o.warn = false, false, false
	o.mu.Unlock()
	switch {
	case o.out.aead == nil:
		return dst, dead
	case warn:
		dst = o.out.seal(dst, typeAlert, []byte{levelFatal, byte(alert)})
	case dead == nil && update:
		return o.rekey(dst, ask)
	}
	if dead != nil {
		o.out.forget()
	}
	return dst, dead
}

// rekey says that we change our key and does so (RFC 8446 §4.6.3). However many
// changes the peer asked for, one answers them.
func (o *own) rekey(dst []byte, ask bool) ([]byte, error) {
	msg := [...]byte{messageKeyUpdate, 0, 0, 1, 0}
	if ask {
		msg[4] = 1
	}
	dst = o.out.seal(dst, typeHandshake, msg[:])
	err := o.out.update()
	if err != nil {
		o.stop(err, 0, false)
		o.out.forget()
	}
	return dst, err
}

// stop ends sealing: with an alert that is still to be said, or without.
func (o *own) stop(err error, alert tls.AlertError, warn bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.answer, o.ask = false, false
	if o.dead == nil {
		o.dead, o.alert, o.warn = err, alert, warn
	}
}

func (o *own) Open(dst, src []byte) ([]byte, int, error) {
	all := len(src)
	for o.readErr == nil && cap(dst)-len(dst) >= Room {
		record, rest, err := o.held.next(src)
		src = rest
		if err == nil && record == nil {
			break
		}
		if err == nil {
			dst, err = o.opened(dst, record)
		}
		if err != nil {
			o.fail(err)
		}
	}
	o.held.release()
	if o.readErr != nil {
		return dst, all, o.readErr
	}
	return dst, all - len(src), nil
}

// fail ends opening, and sealing too unless the peer just said close_notify.
func (o *own) fail(err error) {
	o.in.forget()
	o.hand = nil
	var v *violation
	if errors.As(err, &v) {
		o.stop(err, v.alert, true)
	} else if err != io.EOF {
		o.stop(err, 0, false)
	}
	o.readErr = err
}

// opened opens one record and does what it says; data is appended to dst.
func (o *own) opened(dst, record []byte) ([]byte, error) {
	content, typ, err := o.in.open(dst, record)
	if err != nil {
		return dst, err
	}
	if o.in.seq == askAfter {
		o.want(&o.ask)
	}
	if len(o.hand) > 0 && typ != typeHandshake {
		return dst, errInterleaved // RFC 8446 §5.1
	}
	switch typ {
	case typeData:
		if len(content) == 0 {
			return dst, o.noData()
		}
		o.useless = 0
		o.credit = min(o.credit+1, keyCredit)
		return dst[:len(dst)+len(content)], nil
	case typeAlert:
		return dst, o.alerted(content)
	case typeHandshake:
		return dst, o.handshake(content)
	}
	return dst, errInnerType
}

// noData counts what the peer may send without end at no cost to itself.
func (o *own) noData() error {
	if o.useless++; o.useless > maxUseless {
		return errUseless
	}
	return nil
}

// want has something said with the next Seal, unless all is said.
func (o *own) want(what *bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	*what = o.dead == nil
}

package hbone

import "crypto/tls"

// Retire has every tunnel that there is now, or is being made, take no more streams and close after its last one: what it
// was made with must not carry what comes next. Streams that live are the caller's to cut. Tunnels are made anew when needed.
func (p *Pool) Retire() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.era++ // of what is being dialed
	for _, e := range p.keys {
		for _, m := range e.members {
			m.gone = true
			p.idleLocked(m)
		}
	}
}

// End ends at once, with their streams, the tunnels of which judge returns an error, for that reason.
func (p *Pool) End(judge func(tls.ConnectionState) error) {
	p.mu.Lock()
	var all []*member
	for _, e := range p.keys {
		all = append(all, e.members...)
	}
	p.mu.Unlock()
	for _, m := range all {
		if err := judge(m.t.state()); err != nil {
			m.t.fail(err)
		}
	}
}

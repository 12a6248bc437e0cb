package hbone

// Retire has every tunnel that there is now take no more streams and close after its last one: what it was made with
// must not carry what comes next. Streams that live are the caller's to cut. Tunnels are made anew when needed.
func (p *Pool) Retire() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range p.keys {
		for _, m := range e.members {
			m.gone = true
			p.idleLocked(m)
		}
	}
}

package client

import "time"

// answers are what a response says about names that were asked for: the names and
// aliases of what it holds are present, those that it removes are not.
type answers struct {
	present, absent, refused []string
}

// answersOf reads them. refusals are those of the response.
func answersOf(r *delivery, refusals *refusals) answers {
	a := answers{absent: r.removed}
	bad := make(map[string]struct{}, len(refusals.names))
	for _, name := range refusals.names {
		bad[name] = struct{}{}
	}
	for res := range r.resources.all {
		list := &a.present
		if _, no := bad[res.name]; no {
			list = &a.refused
		}
		*list = append(append(*list, res.name), res.aliases()...)
	}
	return a
}

// answer tells who waits, once the store has the change.
func (c *Client) answer(a answers) {
	now := time.Now()
	for _, name := range a.absent {
		c.asks.answer(name, true, nil, now)
	}
	for _, name := range a.present {
		c.asks.answer(name, false, nil, now)
	}
	for _, name := range a.refused {
		c.asks.answer(name, false, errRefused, now)
	}
}

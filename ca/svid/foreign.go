package svid

import (
	"maps"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/ca/mtls"
)

// maxRefused bounds what is remembered of bundles that cannot be used.
const maxRefused = 1024

// noteBundles tells once of each bundle that cannot be used, and again when the reason changes or it was good in
// between: they come with every message about every pod. used are the foreign ones that id does use.
func (m *Manager) noteBundles(id spiffeid.ID, used mtls.Federation, unusable map[spiffeid.TrustDomain]error, unread map[string]error) {
	all := maps.Clone(unread)
	if all == nil {
		all = map[string]error{}
	}
	for td, err := range unusable {
		all[td.Name()] = err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for td := range used {
		delete(m.refused, td.Name())
	}
	if own := id.TrustDomain().Name(); all[own] == nil {
		delete(m.refused, own)
	}
	for name, err := range all {
		if m.refused[name] == err.Error() {
			continue
		}
		if len(m.refused) >= maxRefused {
			clear(m.refused)
		}
		m.refused[name] = err.Error()
		m.noteLocked(id, BundleRefused)
		m.cfg.Log.Warn("a trust bundle cannot be used, and is left out", "trust_domain", name, "id", id.String(), "err", err)
	}
}

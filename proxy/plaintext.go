package proxy

import (
	"fmt"

	"github.com/warren-mesh/warren/proxy/admin"
	"github.com/warren-mesh/warren/proxy/rbac"
)

// plaintextVerdicts says which plaintext connections to a pod its policies deny, and
// why; for the others it says nothing. What is not known is denied by nobody.
func (s *Server) plaintextVerdicts(uid string, conns []admin.Plaintext) ([]string, error) {
	view := s.store.View()
	for _, p := range s.pods.list() {
		if p.uid != uid {
			continue
		}
		self := p.current(view)
		if self == nil {
			return nil, fmt.Errorf("the control plane does not know pod %s", uid)
		}
		reasons := make([]string, len(conns))
		for i, c := range conns {
			switch v := rbac.Evaluate(view, self, rbac.Connection{Src: c.Src, Dst: c.Dst}); v.Message {
			case rbac.MessageDeny, rbac.MessageNoAllow:
				reasons[i] = v.Reason
			}
		}
		return reasons, nil
	}
	return nil, fmt.Errorf("pod %q is not served", uid)
}

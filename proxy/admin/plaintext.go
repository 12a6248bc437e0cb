package admin

import (
	"encoding/json"
	"net/http"
	"net/netip"
)

// maxPlaintext bounds one question about connections, in bytes.
const maxPlaintext = 4 << 20

// Plaintext is a connection to a pod without an identity behind it.
type Plaintext struct {
	Src netip.AddrPort `json:"src"`
	Dst netip.AddrPort `json:"dst"`
}

// plaintext answers which of some plaintext connections to a pod its policies deny:
// the node agent asks it of those that are older than the pod's time in the mesh. The
// answer is a list of reasons, empty for a connection that may go on.
func (s Source) plaintext(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		w.WriteHeader(http.StatusMethodNotAllowed)
		return
	}
	var conns []Plaintext
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxPlaintext)).Decode(&conns); err != nil {
		http.Error(w, "want a JSON list of {src, dst}: "+err.Error(), http.StatusBadRequest)
		return
	}
	reasons, err := s.Plaintext(r.URL.Query().Get("pod"), conns)
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	s.json(func(*http.Request) any { return list(reasons) }).ServeHTTP(w, r)
}

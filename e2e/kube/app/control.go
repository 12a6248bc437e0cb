package app

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
)

// controlSocket is where the server takes commands. The abstract namespace belongs
// to the network namespace, so each pod has its own.
const controlSocket = "@warren-e2e-app"

// controls are the commands: call, load and stop.
func (s *server) controls() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /call", func(w http.ResponseWriter, r *http.Request) {
		answerJSON(w, r, func(c Call) (Result, error) { return c.Do(r.Context()), nil })
	})
	mux.HandleFunc("POST /load", func(w http.ResponseWriter, r *http.Request) { answerJSON(w, r, s.load) })
	mux.HandleFunc("POST /look", func(w http.ResponseWriter, r *http.Request) {
		answerJSON(w, r, func(l Load) (Summary, error) {
			run, err := s.find(l.Name, false)
			if err != nil {
				return Summary{}, err
			}
			return run.summary(), nil
		})
	})
	mux.HandleFunc("POST /stop", func(w http.ResponseWriter, r *http.Request) {
		answerJSON(w, r, func(l Load) (Summary, error) {
			run, err := s.find(l.Name, true)
			if err != nil {
				return Summary{}, err
			}
			return run.end(), nil
		})
	})
	return mux
}

func (s *server) load(l Load) (Summary, error) {
	run, err := startLoad(l)
	if err != nil {
		return Summary{}, err
	}
	s.mu.Lock()
	old := s.loads[l.Name]
	s.loads[l.Name] = run
	s.mu.Unlock()
	if old != nil {
		old.end()
	}
	return Summary{}, nil
}

func (s *server) find(name string, take bool) (*load, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	run := s.loads[name]
	if run == nil {
		return nil, fmt.Errorf("no load %q", name)
	}
	if take {
		delete(s.loads, name)
	}
	return run, nil
}

func answerJSON[In, Out any](w http.ResponseWriter, r *http.Request, do func(In) (Out, error)) {
	var in In
	err := json.NewDecoder(r.Body).Decode(&in)
	var out Out
	if err == nil {
		out, err = do(in)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	_ = json.NewEncoder(w).Encode(out) // the client left
}

// Control sends one command to the server of this pod and copies its answer.
func Control(ctx context.Context, command, body string, out io.Writer) error {
	client := &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", controlSocket)
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://app/"+command, bytes.NewBufferString(body))
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return errors.New(string(bytes.TrimSpace(text)))
	}
	_, err = out.Write(text)
	return err
}

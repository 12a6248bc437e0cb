package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"time"
)

// The ports of every server.
const (
	HTTPPort        = 8080
	HTTPPodIPPort   = 8082 // bound to the pod's own address
	HTTPLoopback    = 8084 // bound to 127.0.0.1
	EchoPort        = 9090
	ServerFirstPort = 9091 // names itself before it reads
)

// Answer is what the web server says.
type Answer struct {
	Pod    string `json:"pod"`
	Remote string `json:"remote"` // the address that the server saw
	Local  string `json:"local"`
}

// Serve runs all servers until ctx ends, and then lets the requests under way end.
func Serve(ctx context.Context) error {
	name, err := os.Hostname()
	if err != nil {
		return err
	}
	s := &server{name: name, loads: make(map[string]*load)}
	var ls net.ListenConfig
	open := func(network, addr string) net.Listener {
		l, e := ls.Listen(ctx, network, addr)
		if e != nil {
			err = errors.Join(err, e)
		}
		return l
	}
	web := []net.Listener{open("tcp", fmt.Sprintf(":%d", HTTPPort)), open("tcp", fmt.Sprintf("127.0.0.1:%d", HTTPLoopback))}
	if ip := os.Getenv("POD_IP"); ip != "" {
		web = append(web, open("tcp", net.JoinHostPort(ip, fmt.Sprint(HTTPPodIPPort))))
	}
	echo, first := open("tcp", fmt.Sprintf(":%d", EchoPort)), open("tcp", fmt.Sprintf(":%d", ServerFirstPort))
	control := open("unix", controlSocket)
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: http.HandlerFunc(s.answer), ReadHeaderTimeout: 10 * time.Second}
	ctl := &http.Server{Handler: s.controls(), ReadHeaderTimeout: 10 * time.Second}
	for _, l := range web {
		go srv.Serve(l)
	}
	go ctl.Serve(control)
	go s.tcp(echo, "")
	go s.tcp(first, "hello from "+name+"\n")
	<-ctx.Done()
	// Endpoints lists learn of a pod's end later than the pod does.
	time.Sleep(lameDuck())
	end, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return errors.Join(srv.Shutdown(end), ctl.Close(), echo.Close(), first.Close())
}

// lameDuck is how long a server goes on after it was told to end.
func lameDuck() time.Duration {
	d, err := time.ParseDuration(os.Getenv("LAME_DUCK"))
	if err != nil {
		return 0
	}
	return d
}

type server struct {
	name string

	mu    sync.Mutex
	loads map[string]*load // by name; guarded by mu
}

func (s *server) answer(w http.ResponseWriter, r *http.Request) {
	local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	a := Answer{Pod: s.name, Remote: r.RemoteAddr}
	if local != nil {
		a.Local = local.String()
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(a) // the client left
}

// tcp says the greeting on every connection and sends back what comes.
func (s *server) tcp(l net.Listener, greeting string) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			if _, err := io.WriteString(c, greeting); err != nil {
				return
			}
			if _, err := io.Copy(c, c); err == nil {
				_ = c.(*net.TCPConn).CloseWrite() // the peer left
			}
		}()
	}
}

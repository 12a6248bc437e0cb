package proxy

import (
	"context"
	"fmt"
	"time"

	"github.com/warren-mesh/warren/ca/svid"
)

// Names of alarms of this file.
const (
	alarmSilent = "certificate source is silent"
	alarmRenew  = "certificates"
	alarmClock  = "clock"
)

const healthEvery = 2 * time.Second

// clockApart is how far the clocks must be apart to say so: certificates wait for their time, each anew.
const clockApart = 5 * time.Second

// watchCerts raises alarms while certificates can still be renewed in time.
func (s *Server) watchCerts(ctx context.Context) {
	tick := time.NewTicker(healthEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			s.judgeHealth(s.certs.Health())
		}
	}
}

func (s *Server) judgeHealth(h svid.Health) {
	address, _ := s.originName()
	var silent, renew, clock string
	if !h.Silent.IsZero() {
		silent = fmt.Sprintf("%s takes calls and has answered none since %s: new pods get no certificates; an agent of SPIRE's has to be restarted then",
			address, h.Silent.UTC().Format(time.RFC3339))
	}
	if h.Overdue > 0 {
		why := "it says nothing"
		if h.Err != nil {
			why = h.Err.Error()
		}
		renew = fmt.Sprintf("%d in use are not renewed by %s, and the first ends at %s: %s", h.Overdue, address, h.Ends.UTC().Format(time.RFC3339), why)
	}
	if h.Ahead >= clockApart {
		clock = fmt.Sprintf("this node's clock is %s behind that of %s, so that certificates have to wait for their time", h.Ahead.Round(time.Second), address)
	}
	s.alarms.set(alarmSilent, silent)
	s.alarms.set(alarmRenew, renew)
	s.alarms.set(alarmClock, clock)
}

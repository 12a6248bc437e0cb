package h2

// quantum is how many bytes a stream may send before it is another's turn: of many
// streams four share a write of 256 KiB, of few each has a turn or more in one of
// 1 MiB, and a read of the application still moves enough to be worth its system call.
const quantum = 64 << 10

// ring is a round robin of the streams that can send: ready and with credit.
// The head has the turn; left is what remains of it.
type ring struct {
	head *Stream
	n    int
	left int
}

// add puts s at the end of the round, unless it is in it.
func (r *ring) add(s *Stream) {
	if s.queued {
		return
	}
	s.queued = true
	r.n++
	if r.head == nil {
		s.prev, s.next = s, s
		r.head, r.left = s, quantum
		return
	}
	last := r.head.prev
	s.prev, s.next = last, r.head
	last.next, r.head.prev = s, s
}

// remove takes s out of the round; the next in line gets its turn.
func (r *ring) remove(s *Stream) {
	if !s.queued {
		return
	}
	s.queued = false
	r.n--
	if r.n == 0 {
		r.head = nil
	} else {
		s.prev.next, s.next.prev = s.next, s.prev
		if r.head == s {
			r.head, r.left = s.next, quantum
		}
	}
	s.prev, s.next = nil, nil
}

// spend charges the head for n bytes and passes the turn on when it is used up.
func (r *ring) spend(n int) {
	r.left -= n
	if r.left <= 0 && r.head != nil {
		r.head, r.left = r.head.next, quantum
	}
}

// turn is how much the head may send now: with nobody else waiting, anything.
func (r *ring) turn(room int) int {
	if r.n == 1 {
		return room
	}
	return min(room, r.left)
}

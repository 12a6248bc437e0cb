package ready

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Events is what a socket is ready for, as far as it is known to have changed.
type Events uint8

// Hangup: no more bytes come from the peer than those that can be read now.
// Failed: the socket is broken, and what broke it is its error. Both come with
// Readable, and Failed with Writable too. Urgent, which comes with Readable: reads
// stop at a mark, and that they found little does not say that there is no more.
const (
	Readable Events = 1 << iota
	Writable
	Hangup
	Failed
	Urgent
)

// Handler is told of readiness. Notify is called by one goroutine at a time,
// which other sockets wait for: it must not block. Every change is followed by
// a call that begins after it; a call may find nothing changed, and one may
// come after the socket was closed.
type Handler interface{ Notify(Events, *Turn) }

// Flusher is what a handler leaves for later, an alias of an interface without a
// name so that others can make one without this package.
type Flusher = interface{ Flush() }

// Turn is one round of a loop: what is ready at the same time. It is good for the
// length of a Notify.
type Turn struct {
	due  []Flusher
	woke bool
}

// Later has f flushed when all handlers of the turn have been told, so that what
// several of them cause is done at once. Flush must not block either.
func (t *Turn) Later(f Flusher) { t.due = append(t.due, f) }

// Woke says that a goroutine was started, or woken, on which somebody waits. It
// would wait for this loop's processor, which the loop keeps while it waits in the
// kernel, until the runtime notices: the loop lets it run first.
func (t *Turn) Woke() { t.woke = true }

func (t *Turn) end() {
	for _, f := range t.due {
		f.Flush()
	}
	clear(t.due)
	t.due = t.due[:0]
	if t.woke {
		t.woke = false
		runtime.Gosched()
	}
}

// Set is the readiness of many sockets.
type Set struct {
	loops []*loop
	next  atomic.Uint32
	wg    sync.WaitGroup
	once  sync.Once
	err   error // of closing
}

// ErrClosed is returned by what is called after Close.
var ErrClosed = errors.New("ready: closed")

// New starts a set of that many loops, at least one. It takes two descriptors a
// loop, and fails when there are none.
func New(loops int) (*Set, error) {
	s := &Set{}
	for range max(1, loops) {
		l, err := newLoop()
		if err != nil {
			return nil, errors.Join(err, s.Close())
		}
		s.loops = append(s.loops, l)
		s.wg.Go(l.run)
	}
	return s, nil
}

// Close stops the loops and waits for them. Sockets that are registered stay
// open, and their handlers hear nothing more. It must not be called by a handler.
func (s *Set) Close() error {
	s.once.Do(func() {
		for _, l := range s.loops {
			s.err = errors.Join(s.err, l.close())
		}
		s.wg.Wait()
		for _, l := range s.loops {
			s.err = errors.Join(s.err, l.release())
		}
	})
	return s.err
}

// Watch has h told from now on when k has something to read, an end or an error,
// and what there is already. It is called once for a socket. Of a socket that is
// closed nothing is told, and that is no error. Room to write is told of after
// [Socket.WatchWrites]: a socket that never was full has nothing to say about it,
// and would wake its loop first of all.
func (s *Set) Watch(k *Socket, h Handler) error { return s.watch(k, h, nil) }

// WatchBeside is Watch on the loop that has other, if one has: no two handlers are
// called at a time that way.
func (s *Set) WatchBeside(k *Socket, h Handler, other *Socket) error {
	return s.watch(k, h, other.loop.Load())
}

func (s *Set) watch(k *Socket, h Handler, l *loop) error {
	fd, ok := k.Acquire()
	if !ok {
		return nil
	}
	defer k.Release()
	if l == nil {
		l = s.loops[int(s.next.Add(1))%len(s.loops)]
	}
	if err := l.add(fd, k, h); err != nil {
		return err
	}
	if k.writes.Load() { // since before there was a loop to say it to
		return l.modify(fd, k.at, interest|unix.EPOLLOUT)
	}
	return nil
}

// loop is one epoll instance. The table says which handler an event is for:
// the event carries an index and the generation of the entry there, so that one
// that was fetched before its socket was closed reaches nobody else.
type loop struct {
	fd   int // the instance
	bell int // an eventfd, which wakes run

	mu      sync.Mutex
	closed  bool
	entries []entry
	free    uint32 // 1 + the first free entry; 0: none
}

type entry struct {
	h    Handler // nil: free
	gen  uint32
	next uint32 // of a free entry: 1 + the next one; 0: the last
}

func newLoop() (*loop, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("ready: %w", os.NewSyscallError("epoll_create1", err))
	}
	bell, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("ready: %w", os.NewSyscallError("eventfd", err)), unix.Close(fd))
	}
	l := &loop{fd: fd, bell: bell}
	// No entry has this number.
	if err := unix.EpollCtl(fd, unix.EPOLL_CTL_ADD, bell, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: -1}); err != nil {
		return nil, errors.Join(fmt.Errorf("ready: %w", os.NewSyscallError("epoll_ctl", err)), l.release())
	}
	return l, nil
}

// close ends run. The descriptors are freed by release, after run's return.
func (l *loop) close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	_, err := unix.Write(l.bell, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	return os.NewSyscallError("write", err)
}

func (l *loop) release() error { return errors.Join(unix.Close(l.bell), unix.Close(l.fd)) }

const interest = unix.EPOLLIN | unix.EPOLLPRI | unix.EPOLLRDHUP | unix.EPOLLET

// add registers fd. mu is held throughout: close must not let the descriptor of
// the instance go meanwhile, and the first event must find its entry.
func (l *loop) add(fd int, k *Socket, h Handler) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return ErrClosed
	}
	if l.free == 0 {
		l.entries = append(l.entries, entry{})
		l.free = uint32(len(l.entries))
	}
	at := l.free - 1
	e := &l.entries[at]
	ev := unix.EpollEvent{Events: interest, Fd: int32(at), Pad: int32(e.gen)}
	if err := unix.EpollCtl(l.fd, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
		return fmt.Errorf("ready: %w", os.NewSyscallError("epoll_ctl", err))
	}
	l.free, e.next, e.h = e.next, 0, h
	k.at = at
	k.loop.Store(l)
	return nil
}

// modify changes what is told of a socket, and has that told which there is.
func (l *loop) modify(fd int, at, events uint32) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return ErrClosed
	}
	ev := unix.EpollEvent{Events: events, Fd: int32(at), Pad: int32(l.entries[at].gen)}
	if err := unix.EpollCtl(l.fd, unix.EPOLL_CTL_MOD, fd, &ev); err != nil {
		return fmt.Errorf("ready: %w", os.NewSyscallError("epoll_ctl", err))
	}
	return nil
}

// forget frees the entry of a socket that is about to be closed. Closing takes
// it out of the instance: we hold its only descriptor.
func (l *loop) forget(at uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := &l.entries[at]
	e.h = nil
	e.gen++
	e.next, l.free = l.free, at+1
}

// batch is how many events are fetched at a time.
const batch = 256

// run waits for events and hands them on until the loop is closed. It waits in
// the kernel and not on the runtime's poller, which would wake it in two steps and
// another thread with it, to look for more work.
func (l *loop) run() {
	var (
		events [batch]unix.EpollEvent
		due    [batch]Handler
		turn   Turn
		thread int
	)
	for {
		if t := unix.Gettid(); t != thread { // the runtime may move us, seldom
			thread = t
			askShortSlice()
		}
		n, err := unix.EpollWait(l.fd, events[:], -1)
		if err == unix.EINTR {
			continue
		}
		if err != nil { // the descriptor is ours until we return
			panic(fmt.Sprintf("ready: epoll_wait: %v", err))
		}
		if !l.handlers(events[:n], due[:n]) {
			return
		}
		for i, h := range due[:n] {
			if h != nil {
				h.Notify(eventsOf(events[i].Events), &turn)
			}
		}
		clear(due[:n])
		turn.end()
	}
}

// handlers finds whom events are for. It returns false when the loop is closed.
func (l *loop) handlers(events []unix.EpollEvent, due []Handler) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range events {
		ev := &events[i]
		if at := uint32(ev.Fd); int(at) < len(l.entries) && l.entries[at].gen == uint32(ev.Pad) {
			due[i] = l.entries[at].h
		}
	}
	return !l.closed
}

func eventsOf(bits uint32) (e Events) {
	if bits&unix.EPOLLIN != 0 {
		e |= Readable
	}
	if bits&unix.EPOLLOUT != 0 {
		e |= Writable
	}
	if bits&(unix.EPOLLRDHUP|unix.EPOLLHUP) != 0 {
		e |= Hangup | Readable
	}
	if bits&unix.EPOLLERR != 0 {
		e |= Failed | Readable | Writable
	}
	if bits&unix.EPOLLPRI != 0 {
		e |= Urgent | Readable
	}
	return e
}

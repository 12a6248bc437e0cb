package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"reflect"
	"time"

	"github.com/go-logr/logr"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
)

const (
	// listWithin bounds one page of a list. An API server gives up after one minute.
	listWithin = 2 * time.Minute
	// After a failure the next try comes soon, and later each time: an API server that
	// comes back is met by every node of its cluster.
	firstRetry = 200 * time.Millisecond
	lastRetry  = 10 * time.Second
	// settled is how long it must have gone well for the next failure to be a first one.
	settled = time.Minute
)

// source is how the objects of one kind are read.
type source struct {
	client any // that list and watch go through
	of     runtime.Object
	list   func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error)
	watch  func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error)
}

// store is where a reflector puts what it reads.
type store interface {
	cache.ReflectorStore
	cache.ReflectorBookmarkStore
}

// heardStore notes that something was heard with everything that comes.
type heardStore struct {
	cache.ReflectorStore
	contact *contact
}

// Add implements cache.ReflectorStore.
func (s heardStore) Add(obj any) error { s.contact.whole(time.Now()); return s.ReflectorStore.Add(obj) }

// Update implements cache.ReflectorStore.
func (s heardStore) Update(obj any) error {
	s.contact.whole(time.Now())
	return s.ReflectorStore.Update(obj)
}

// Delete implements cache.ReflectorStore.
func (s heardStore) Delete(obj any) error {
	s.contact.whole(time.Now())
	return s.ReflectorStore.Delete(obj)
}

// Bookmark implements cache.ReflectorBookmarkStore.
func (s heardStore) Bookmark(string) error { s.contact.whole(time.Now()); return nil }

// prunedStore makes the reflector prune objects as they come out of a stream, and not
// hold them all as they were until it has the last.
type prunedStore struct {
	store
	prune cache.TransformFunc
}

// Transformer implements cache.TransformingStore.
func (s prunedStore) Transformer() cache.TransformFunc { return s.prune }

// follow keeps a store up to date until ctx ends, or the API server says that the kind
// is not there: then it returns that error.
func follow(ctx context.Context, src source, into store, c *contact) error {
	r := cache.NewReflectorWithOptions(
		cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
			ListWithContextFunc:  src.listed(c),
			WatchFuncWithContext: src.watched(c),
		}, src.client),
		src.of, into, cache.ReflectorOptions{
			Name:    c.kind,
			Backoff: &wait.Backoff{Duration: firstRetry, Factor: 2, Jitter: 0.5, Steps: 10, Cap: lastRetry},
		})
	ctx = Quietly(ctx, c.log)
	retry := firstRetry
	for {
		began := time.Now()
		err := r.ListAndWatchWithContext(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if apierrors.IsNotFound(err) {
			return err
		}
		if err != nil {
			c.broken(err)
		}
		if time.Since(began) > settled {
			retry = firstRetry
		}
		if !sleep(ctx, retry) {
			return nil
		}
		retry = min(2*retry, lastRetry)
	}
}

// listed lists within a bound.
func (src source) listed(c *contact) cache.ListWithContextFunc {
	return func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
		ctx, cancel := context.WithTimeoutCause(ctx, listWithin, fmt.Errorf("no answer within %s", listWithin))
		defer cancel()
		defer c.asks(time.Now())()
		list, err := src.list(ctx, o)
		if err == nil {
			c.whole(time.Now())
		}
		return list, err
	}
}

// watched notes how it went: the reflector tries some failures again without a word.
func (src source) watched(c *contact) cache.WatchFuncWithContext {
	return func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
		answered := c.asks(time.Now())
		w, err := src.watch(ctx, o)
		answered()
		switch {
		case err == nil && unanswered(w):
			c.broken(errors.New("a watch was not answered"))
		case err == nil:
			c.whole(time.Now())
		case o.SendInitialEvents != nil && !retriedQuietly(err) || apierrors.IsNotFound(err) || apierrors.IsResourceExpired(err) || apierrors.IsGone(err) || ctx.Err() != nil:
			// An API server that cannot stream a list is asked for one; the others are for
			// the reflector, too.
		default:
			c.broken(err)
		}
		return w, err
	}
}

// retriedQuietly says whether a reflector asks for a streamed list again for ever after
// this, where others make it ask for a list.
func retriedQuietly(err error) bool {
	return apierrors.IsTooManyRequests(err) || utilnet.IsConnectionRefused(err)
}

// unanswered says whether a watch is one that client-go makes up when the connection
// timed out or was closed: it has ended already, and is tried again for ever.
func unanswered(w watch.Interface) bool {
	return reflect.TypeOf(w) == reflect.TypeOf(watch.NewEmptyWatch())
}

// sleep waits about as long as it is told, and says whether ctx let it.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d/2 + rand.N(d))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// quietly is a log for client-go, whose every line is about details here: what matters
// of them is in contact's.
type quietly struct{ slog.Handler }

// Enabled implements slog.Handler.
func (q quietly) Enabled(ctx context.Context, _ slog.Level) bool {
	return q.Handler.Enabled(ctx, slog.LevelDebug)
}

// Handle implements slog.Handler.
func (q quietly) Handle(ctx context.Context, r slog.Record) error {
	r.Level = slog.LevelDebug
	if !q.Handler.Enabled(ctx, r.Level) { // errors come here unasked
		return nil
	}
	return q.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (q quietly) WithAttrs(attrs []slog.Attr) slog.Handler {
	return quietly{q.Handler.WithAttrs(attrs)}
}

// WithGroup implements slog.Handler.
func (q quietly) WithGroup(name string) slog.Handler { return quietly{q.Handler.WithGroup(name)} }

// Quietly returns a context in which client-go logs to log, as details.
func Quietly(ctx context.Context, log *slog.Logger) context.Context {
	return klog.NewContext(ctx, logr.FromSlogHandler(quietly{log.Handler()}))
}

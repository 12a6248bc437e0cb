package proxy

import (
	"fmt"
	"log/slog"
	"net/netip"
	"strconv"
	"time"
	"unicode"
	"unicode/utf8"
)

// An encoder appends one line, newline included. Whatever the attributes hold,
// it stays one line, and what came from outside stays inside quotes.
type encoder func(b []byte, t time.Time, l slog.Level, scope, msg string, fixed, attrs []slog.Attr) []byte

const stamp = "2006-01-02T15:04:05.000000Z"

// appendText is ztunnel's text format: tabs between time, level, scope and
// message, then key=value pairs; strings are quoted, addresses and numbers not.
func appendText(b []byte, t time.Time, l slog.Level, scope, msg string, fixed, attrs []slog.Attr) []byte {
	b = t.UTC().AppendFormat(b, stamp)
	b = append(b, '\t')
	b = append(b, levelName(l)...)
	b = append(b, '\t')
	b = append(b, scope...)
	b = append(b, '\t')
	b = appendPlain(b, msg)
	sep := byte('\t')
	for _, list := range [2][]slog.Attr{fixed, attrs} {
		for _, a := range list {
			b = append(b, sep)
			b = append(b, a.Key...)
			b = append(b, '=')
			b = appendTextValue(b, a.Value.Resolve())
			sep = ' '
		}
	}
	return append(b, '\n')
}

// appendJSON is ztunnel's JSON format: level, time and scope first, then the
// message and the attributes, flat.
func appendJSON(b []byte, t time.Time, l slog.Level, scope, msg string, fixed, attrs []slog.Attr) []byte {
	b = append(b, `{"level":"`...)
	b = append(b, levelName(l)...)
	b = append(b, `","time":"`...)
	b = t.UTC().AppendFormat(b, stamp)
	b = append(b, `","scope":`...)
	b = appendJSONString(b, scope)
	b = append(b, `,"message":`...)
	b = appendJSONString(b, msg)
	for _, list := range [2][]slog.Attr{fixed, attrs} {
		for _, a := range list {
			b = append(b, ',')
			b = appendJSONString(b, a.Key)
			b = append(b, ':')
			b = appendJSONValue(b, a.Value.Resolve())
		}
	}
	return append(b, '}', '\n')
}

func appendTextValue(b []byte, v slog.Value) []byte {
	switch v.Kind() {
	case slog.KindInt64:
		return strconv.AppendInt(b, v.Int64(), 10)
	case slog.KindUint64:
		return strconv.AppendUint(b, v.Uint64(), 10)
	case slog.KindBool:
		return strconv.AppendBool(b, v.Bool())
	case slog.KindFloat64:
		return strconv.AppendFloat(b, v.Float64(), 'g', -1, 64)
	case slog.KindAny:
		if a, ok := v.Any().(netip.AddrPort); ok {
			return a.AppendTo(b)
		}
		if a, ok := v.Any().(netip.Addr); ok {
			return a.AppendTo(b)
		}
	}
	return appendQuoted(b, valueText(v))
}

func appendJSONValue(b []byte, v slog.Value) []byte {
	switch v.Kind() {
	case slog.KindInt64, slog.KindUint64, slog.KindBool:
		return appendTextValue(b, v)
	case slog.KindAny:
		if a, ok := v.Any().(netip.AddrPort); ok && a.Addr().Zone() == "" {
			return append(a.AppendTo(append(b, '"')), '"')
		}
	}
	return appendJSONString(b, valueText(v))
}

// valueText is a value as words.
func valueText(v slog.Value) string {
	switch v.Kind() {
	case slog.KindTime:
		return v.Time().UTC().Format(stamp)
	case slog.KindAny:
		switch x := v.Any().(type) {
		case error:
			return x.Error()
		case fmt.Stringer:
			return x.String()
		}
		return fmt.Sprint(v.Any())
	}
	return v.String()
}

// appendPlain appends a message, which is ours, but may name something that is
// not.
func appendPlain(b []byte, s string) []byte {
	for _, r := range s {
		if unicode.IsPrint(r) {
			b = utf8.AppendRune(b, r)
		} else {
			b = append(b, '?')
		}
	}
	return b
}

// harmless says whether s stands between quotes as it is, as nearly everything does.
func harmless(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			return false
		}
	}
	return true
}

// appendQuoted quotes as Rust's debug format does.
func appendQuoted(b []byte, s string) []byte {
	b = append(b, '"')
	if harmless(s) {
		return append(append(b, s...), '"')
	}
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b = append(b, '\\', byte(r))
		case r == '\n':
			b = append(b, `\n`...)
		case r == '\r':
			b = append(b, `\r`...)
		case r == '\t':
			b = append(b, `\t`...)
		case r == 0:
			b = append(b, `\0`...)
		case unicode.IsPrint(r):
			b = utf8.AppendRune(b, r)
		default:
			b = append(b, `\u{`...)
			b = strconv.AppendInt(b, int64(r), 16)
			b = append(b, '}')
		}
	}
	return append(b, '"')
}

func appendJSONString(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	if harmless(s) {
		return append(append(b, s...), '"')
	}
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b = append(b, '\\', byte(r))
		case r == '\n':
			b = append(b, `\n`...)
		case r == '\t':
			b = append(b, `\t`...)
		case r < 0x20 || r == 0x7f || r == 0x2028 || r == 0x2029 || r == 0x85:
			b = append(b, '\\', 'u', hex[r>>12&15], hex[r>>8&15], hex[r>>4&15], hex[r&15])
		default:
			b = utf8.AppendRune(b, r)
		}
	}
	return append(b, '"')
}

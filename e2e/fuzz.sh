#!/bin/sh
# Runs every fuzz target of the repository for the given time each.
set -eu
time=${1:-10s}
count=0
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# Go's fuzzer can report its own deadline as a failure when time runs out in the
# middle of an input (golang.org/issue/48591). No input is at fault then, and
# none is named: such a run is repeated once, and any other failure is final.
fuzz() {
	go test -run '^$' -fuzz "^$2\$" -fuzztime "$time" -fuzzminimizetime 1x "$1" >"$log" 2>&1 && return 0
	if grep -q 'context deadline exceeded' "$log" && ! grep -q 'Failing input written' "$log" && [ "${3:-}" = "" ]; then
		fuzz "$1" "$2" again
		return
	fi
	cat "$log" >&2
	return 1
}

for file in $(git ls-files '*_test.go' | xargs grep -l '^func Fuzz'); do
	pkg=./$(dirname "$file")
	for target in $(sed -nE 's/^func (Fuzz[A-Za-z0-9_]*)\(.*/\1/p' "$file"); do
		fuzz "$pkg" "$target"
		echo "ok   $pkg $target"
		count=$((count + 1))
	done
done
[ "$count" -gt 0 ] || { echo "no fuzz target found" >&2; exit 1; }
echo "$count fuzz targets passed"

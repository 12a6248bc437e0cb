#!/bin/sh
# Runs go test with the given arguments. Packages that failed beside all others
# are run once more alone: tests that hold real programs against the clock of a
# machine with two cores can lose to their neighbours. What passes then is named
# at the end as flaky, to be mended; a data race, a build that fails and what
# fails twice are final.
set -u
flags=$1
shift
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# shellcheck disable=SC2086
go test $flags "$@" >"$log" 2>&1
status=$?
cat "$log"
[ "$status" = 0 ] && exit 0
grep -qE 'DATA RACE|\[(build|setup) failed\]' "$log" && exit 1
failed=$(sed -nE 's/^FAIL[[:space:]]+([^[:space:]]+)[[:space:]].*/\1/p' "$log" | sort -u)
[ -n "$failed" ] || exit 1
[ "$(printf '%s\n' "$failed" | wc -l)" -le 2 ] || exit 1
echo "once more, alone: $failed"
# shellcheck disable=SC2086
go test $flags -p 1 $failed || exit 1
echo "FLAKY, to be mended: $failed"

#!/bin/sh
# Runs every test program and script, adds up their last lines, and ends with "N passed, N failed, N skipped".
BUILD=${BUILD:-build}
RUN=${RUN:-bin/run}
export BUILD RUN
passed=0 failed=0 skipped=0
for t in "$BUILD"/tests/test_* tests/test_*.sh; do
    case $t in *.o|*.d|*.log) continue;; esac
    [ -f "$t" ] || continue
    case $t in *.sh) ;; *) ls tests/"$(basename "$t")".c > /dev/null 2>&1 || continue;; esac # left from an older source
    log=$BUILD/tests/$(basename "$t").log
    start=$(date +%s)
    case $t in *.sh) sh "$t" > "$log" 2>&1;; *) "$t" > "$log" 2>&1;; esac
    status=$?
    last=$(tail -n 1 "$log")
    counts=$(printf '%s\n' "$last" | sed -n 's/.*: \([0-9]*\) passed, \([0-9]*\) failed, \([0-9]*\) skipped$/\1 \2 \3/p')
    if [ -z "$counts" ]; then # died before its last line
        cat "$log"
        echo "FAIL $(basename "$t"): exit status $status without a summary"
        failed=$((failed + 1))
        continue
    fi
    set -- $counts
    [ "$status" -ne 0 ] && [ "$2" -eq 0 ] && { echo "FAIL $(basename "$t"): exit status $status"; failed=$((failed + 1)); }
    passed=$((passed + $1)); failed=$((failed + $2)); skipped=$((skipped + $3))
    grep -E '^(FAIL|SKIP)' "$log" | head -n 40
    printf '%-28s %6d passed %4d failed %4d skipped  %4ds\n' "$(basename "$t")" "$1" "$2" "$3" $(($(date +%s) - start))
done
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]

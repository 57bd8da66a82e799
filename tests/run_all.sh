#!/bin/sh
# Runs every test program and script, adds up their last lines, and ends with "N passed, N failed, N skipped". What keeps one processor
# busy, mostly the emulated device, runs beside the rest.
BUILD=${BUILD:-build}
RUN=${RUN:-bin/run}
export BUILD RUN
apart=" test_cuda test_emu.sh test_ngl.sh test_queue test_split test_handoff test_stream test_clock "
sums=$BUILD/tests/sums
mkdir -p "$sums" && rm -f "$sums"/* || exit 1

one() {
    name=$(basename "$1")
    log=$BUILD/tests/$name.log
    start=$(date +%s)
    case $1 in *.sh) sh "$1" > "$log" 2>&1;; *) "$1" > "$log" 2>&1;; esac
    status=$?
    counts=$(tail -n 1 "$log" | sed -n 's/.*: \([0-9]*\) passed, \([0-9]*\) failed, \([0-9]*\) skipped$/\1 \2 \3/p')
    if [ -z "$counts" ]; then # died before its last line
        cat "$log"
        echo "FAIL $name: exit status $status without a summary"
        echo "0 1 0" > "$sums/$name"
        return
    fi
    set -- $counts
    [ "$status" -ne 0 ] && [ "$2" -eq 0 ] && { echo "FAIL $name: exit status $status"; set -- "$1" 1 "$3"; }
    echo "$1 $2 $3" > "$sums/$name"
    grep -E '^(FAIL|SKIP)' "$log" | head -n 40
    printf '%-28s %6d passed %4d failed %4d skipped  %4ds\n' "$name" "$1" "$2" "$3" $(($(date +%s) - start))
}

# lane APART: all tests that are in the list of those apart, or are not
lane() {
    for t in "$BUILD"/tests/test_* tests/test_*.sh; do
        case $t in *.o | *.d | *.log) continue;; esac
        case $t in *.sh) ;; *) [ -f "tests/$(basename "$t").c" ] || continue;; esac # left from an older source
        case $apart in *" $(basename "$t") "*) [ "$1" = 1 ] && one "$t";; *) [ "$1" = 0 ] && one "$t";; esac
    done
}
if [ "$(nproc 2> /dev/null || echo 1)" -gt 1 ]; then
    lane 1 &
    lane 0
    wait
else
    lane 1
    lane 0
fi
[ -n "$(ls "$sums")" ] || { echo "FAIL: no tests were found"; exit 1; }
cat "$sums"/* | awk '{ p += $1; f += $2; s += $3 } END { printf "%d passed, %d failed, %d skipped\n", p, f, s; exit f > 0 }'

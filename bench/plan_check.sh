#!/bin/sh
# The planner against reality on the CPU: predicted (run --plan, from a file without weights) and measured (bench) decode speed of real
# shapes after 1024 tokens, in turn. sh bench/plan_check.sh [SHAPE ...]; BIN=bin, TMPDIR (the largest file is written there), REPS=3,
# LOCK="flock FILE" before every measurement.
BIN=${BIN:-bin}
TMPDIR=${TMPDIR:-/tmp}
[ $# -gt 0 ] || set -- 1b gemma3-1b gemma2-2b e2b
tmp=$(mktemp -d "$TMPDIR/plan.XXXXXX") || exit 1
trap 'rm -rf "$tmp"' EXIT
echo "| shape | predicted t/s, ${REPS:-3} times | measured t/s | predicted / measured, median |"
echo "|---|---|---|---|"
for shape in "$@"; do
    "$BIN/bench" synth "$shape" "$tmp/header.gguf" --header-only && "$BIN/bench" synth "$shape" "$tmp/model.gguf" 2> /dev/null || exit 1
    for i in $(seq "${REPS:-3}"); do
        $LOCK sh -c '"$0" "$1" --plan --gpu none --host this -c 2048; "$2" "$3" -p 0 -n 32 -d 1024 -r 1' "$BIN/run" "$tmp/header.gguf" "$BIN/bench" "$tmp/model.gguf"
    done | awk -v shape="$shape" -F'  +|[|] *' '
        /^> everything on the CPU/ { split($0, w, /CPU */); split(w[2], v, " "); predicted[++n] = v[1] }
        /tg32 @ d1024/ { split($0, w, /d1024 *[|] */); split(w[2], v, " "); measured[n] = v[1] }
        END {
            for (i = 1; i <= n; i++) { p = p " " predicted[i]; m = m " " measured[i]; r[i] = predicted[i] / measured[i] }
            for (i = 1; i <= n; i++) for (k = i + 1; k <= n; k++) if (r[k] < r[i]) { t = r[i]; r[i] = r[k]; r[k] = t }
            printf "| %s |%s |%s | %.3f |\n", shape, p, m, r[int((n + 1) / 2)]
        }'
    rm -f "$tmp"/*.gguf
done

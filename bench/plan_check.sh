#!/bin/sh
# The planner against reality on the CPU: predicted (run --plan, measured just then with the model's matrices) and measured (bench) decode speed of
# real shapes. A round predicts, measures, and predicts again, so that a machine that is busy or throttled slows both; beside it what the threads
# reached when they only read, and the share of the time that they had a processor. sh bench/plan_check.sh [SHAPE ...]; BIN=bin, ROUNDS=5,
# TOKENS=32, DEPTH=64, TMPDIR (the largest file is written there), LOCK="flock FILE" before every round, MODELS (a folder of SHAPE.gguf that are there),
# HOLES="26b": shapes of which a file of zeros is measured, whose pages take memory only where they are read: of 128 experts the first 8.
# With a GPU: PLACE="-ngl 99 --vram 8G", what run --plan and bench get to place the model (bench calibrate first: XDG_CACHE_HOME).
BIN=${BIN:-bin} ROUNDS=${ROUNDS:-5} TOKENS=${TOKENS:-32} DEPTH=${DEPTH:-64} HOLES=${HOLES-26b}
TMPDIR=${TMPDIR:-/tmp}
LC_ALL=C
[ "$PLACE" ] || XDG_CACHE_HOME=/nonexistent # no calibration
export LC_ALL XDG_CACHE_HOME
[ $# -gt 0 ] || set -- 1b 8b e2b 26b
tmp=$(mktemp -d "$TMPDIR/plan.XXXXXX") || exit 1
trap 'rm -rf "$tmp"' EXIT
trap 'exit 1' INT TERM

cat > "$tmp/round" << 'ROUND'
predict() { "$BIN/run" "$1" --plan ${PLACE:---gpu none} -c $((DEPTH + 1)) | awk '/^> / { print substr($0, 39, 13) + 0; exit }'; }
before=$(predict "$1")
"$BIN/bench" "$1" $PLACE -p 0 -n "$TOKENS" -d "$DEPTH" -r 3 -o json 2> /dev/null | tr ',' '\n' | awk -F': *' -v before="$before" '
    /"median_ts"/ { speed = $2 } /"stream_gbps"/ { stream = $2 } /"share_running"/ { running = $2 }
    END { printf "%s %s %.1f %.2f ", before, speed, stream, running }'
predict "$1"
ROUND
echo "| shape | round | predicted t/s, before and after | measured t/s | reading alone, GB/s | running | predicted / measured |"
echo "|---|---|---|---|---|---|---|"
for shape in "$@"; do
    model=${MODELS:+$MODELS/$shape.gguf}
    holes=
    for h in $HOLES; do [ "$h" = "$shape" ] && holes=--header-only; done
    if [ ! -r "$model" ]; then
        model=$tmp/model.gguf
        "$BIN/bench" synth "$shape" "$model" $holes 2> /dev/null || exit 1
    fi
    for i in $(seq "$ROUNDS"); do
        BIN=$BIN DEPTH=$DEPTH TOKENS=$TOKENS PLACE=$PLACE $LOCK sh "$tmp/round" "$model"
    done | awk -v shape="$shape" '
        NF == 5 {
            r[++n] = ($1 + $5) / 2 / $2
            printf "| %s | %d | %.2f, %.2f | %.2f | %s | %s | %.3f |\n", shape, n, $1, $5, $2, $3, $4, r[n]
        }
        NF != 5 { bad = 1 }
        END {
            if (bad || !n) exit 1
            for (i = 1; i <= n; i++) for (k = i + 1; k <= n; k++) if (r[k] < r[i]) { t = r[i]; r[i] = r[k]; r[k] = t }
            printf "| **%s** | median | | | | | **%.3f** |\n", shape, r[int((n + 1) / 2)]
        }' || exit 1
    rm -f "$tmp/model.gguf"
done

#!/bin/sh
# make gpu-check: everything that wants a GPU, in one go of at most 8 minutes: builds for the card, holds every op against the ref
# backend, whole models against the independent engine and the CPU, measures, and runs compute-sanitizer. Needs no download and makes
# its models itself. A failing step is told and the next one goes on. Ends in a short table; the whole of it goes to $BUILD/gpu-check.md.
# Status 1: no GPU, or what must be right was not (goals of speed only say pass or miss).
#   SHARED=dir       where reference/ lies (else ../shared, shared-copy, shared; without: SKIP)
#   EMU=1            a dry run on the emulated device: the same steps, small, nothing timed
#   LIMIT=470        seconds after which nothing more is begun
BUILD=${BUILD:-build} BIN=${BIN:-bin} MAKE=${MAKE:-make} EMU=${EMU:-} LIMIT=${LIMIT:-470}
start=$(date +%s)
LC_ALL=C
PATH=$PATH:/usr/local/cuda/bin:/usr/local/nvidia/bin
export LC_ALL PATH
root=$(pwd)
case $BUILD in /*) ;; *) BUILD=$root/$BUILD;; esac
case $BIN in /*) ;; *) BIN=$root/$BIN;; esac
work=$BUILD/gpu-check out=$BUILD/gpu-check.md

if [ "$EMU" ]; then
    card="emulated, no timing"
    tests=$BUILD/tests run=$BUILD/emu/run bench=$BUILD/emu/bench_model bench_ops=$BUILD/emu/bench_ops
else
    card=$(nvidia-smi --query-gpu=name,memory.total,compute_cap,driver_version --format=csv,noheader 2> /dev/null | head -n 1)
    case $card in *,*,*,*) ;; *) echo "gpu-check: no GPU (nvidia-smi lists none); make gpu-check EMU=1 is a dry run on the emulated device"; exit 1;; esac
    command -v nvcc > /dev/null || { echo "gpu-check: no nvcc to build with"; exit 1; }
    tests=$BUILD/gpu run=$BIN/run bench=$BIN/bench bench_ops=$BUILD/gpu/bench_ops
fi
rm -rf "$work"
mkdir -p "$work/here" || exit 1
: > "$work/steps"
: > "$work/goals"
: > "$work/models"
: > "$work/logs"
failed=0 n=0
say() { printf '%s\n' "$*"; }

# ---- steps ----

# A line of the first table: what, how it went, seconds.
record() {
    printf '| %s | %s | %s |\n' "$1" "$2" "$3" >> "$work/steps"
    printf '%-40s %4s s  %s\n' "$1" "$3" "$2"
}

# step NAME SECONDS COMMAND...: into $log, at most so long. Sets status and how: "ok", or why not.
step() {
    name=$1 limit=$2 left=$((LIMIT - $(date +%s) + start)) began=$(date +%s) n=$((n + 1))
    shift 2
    log=$work/$n.log status=124 how="not run: no time is left"
    : > "$log"
    [ "$limit" -gt "$left" ] && limit=$left
    if [ "$limit" -ge 3 ]; then
        timeout -k 5 "$limit" "$@" > "$log" 2>&1 < /dev/null
        status=$?
        case $status in 0) how=ok;; 124 | 137) how="not finished after $limit s";; *) how="FAILED: status $status";; esac
        grep -q -E '^SKIP.*CUDA|no CUDA device' "$log" && status=1 how="FAILED: the device was not used"
    fi
    took=$(($(date +%s) - began))
    { printf '\n## %s: %s (%s s)\n\n    %s\n\n```\n' "$name" "$how" "$took" "$*"; tail -n 300 "$log"; echo '```'; } >> "$work/logs"
}

# Of a step that must be right. A test program's own last line tells more than "ok".
judge() {
    detail=$(sed -n 's/^.*: \([0-9]* passed, [0-9]* failed, [0-9]* skipped\)$/\1/p' "$log" | tail -n 1)
    record "$name" "$how${detail:+ ($detail)}" "$took"
    [ "$status" -eq 0 ] && return
    failed=$((failed + 1))
    grep -E 'FAIL|[Ee]rror|ERROR' "$log" | head -n 5 | sed 's/^/    /'
}
must() { step "$@"; judge; }

# A step for figures: they need not be good, but it must not break.
measure() {
    step "$@"
    record "$name" "$how" "$took"
    case $how in FAILED*) failed=$((failed + 1)); tail -n 2 "$log" | sed 's/^/    /';; esac
}

skip() { record "$1" "SKIP: $2" 0; }

# ---- figures ----

# The first number after the label in the last log's line that begins with it; nothing if there is none.
figure() {
    awk -v label="$1" 'index($0, label) == 1 {
        split(substr($0, length(label) + 1), word, " ")
        if (word[1] ~ /^-?[0-9]+(\.[0-9]*)?$/) { print word[1]; exit }
    }' "$log"
}
# pp or tg, ablated (0 or 1), the column, and what to multiply it with: of the last log's CSV of bench; nothing if there is none.
column() {
    awk -v test="$1" -v ablated="$2" -v name="$3" -v factor="$4" '
        /^build_commit,/ { n = split($0, head, ",") }
        n && /^"/ {
            split(substr($0, 2, length($0) - 2), cell, "\",\"")
            for (i = 1; i <= n; i++) row[head[i]] = cell[i]
            if ((row["n_prompt"] > 0 ? "pp" : "tg") == test && row["ablate"] == ablated && row[name] != "") { printf "%.2f", row[name] * factor; exit }
        }' "$log"
}
# The percentage that a line which begins with the label ends in.
share() { awk -v label="$1" 'index($0, label) == 1 && $NF == "%" { print $(NF - 1); exit }' "$log"; }
share_of() { awk -v x="$1" -v y="$2" 'BEGIN { if (x != "" && y + 0 > 0) printf "%.1f", 100 * x / y }'; }

# What there is no figure of.
value() {
    if [ "$1" ]; then printf '%s' "$1${2:+ $2}"
    elif [ "$EMU" ]; then printf 'emulated, no timing'
    else printf 'not measured'; fi
}
# goal WHAT VALUE UNIT [WAY NUMBER]: a line of the second table; WAY is >= or <.
goal() {
    verdict=""
    [ "$2" ] && [ $# -gt 3 ] &&
        verdict=$(awk -v x="$2" -v way="$4" -v y="$5" 'BEGIN { print (way == ">=" ? x + 0 >= y + 0 : x + 0 < y + 0) ? "pass" : "miss" }')
    printf '| %s | %s | %s | %s |\n' "$1" "$(value "$2" "$3")" "${4:+$4 $5 $3}" "$verdict" >> "$work/goals"
}

# ---- 1. build ----
must "build" 200 $MAKE gpu-check-programs EMU="$EMU"

# ---- 2. is it right? ----
# cuBLAS may lie beside the compiler, or only in a Python package.
if [ -z "$EMU" ] && ! ldconfig -p 2> /dev/null | grep -q 'libcublas\.so'; then
    for lib in /usr/local/cuda/lib64 $(python3 -c 'import nvidia, glob; print(*(d for p in nvidia.__path__ for d in glob.glob(p + "/*/lib")))' 2> /dev/null); do
        [ -n "$(ls "$lib"/libcublas.so* 2> /dev/null)" ] && LD_LIBRARY_PATH=$lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
    done
    export LD_LIBRARY_PATH
fi
ops="" models="" texts="llama-Q4_K_M llama-Q8_0 llama-F16 gemma-Q4_K_M gemma-Q8_0 gemma-F16"
[ "$EMU" ] && ops=rope models=llama3-F16 texts=llama-Q4_K_M
must "every op against ref" 90 "$tests/test_cuda" ops $ops
must "ops together as one by one" 60 "$tests/test_queue"
must "experts of the host beside the device" 60 "$tests/test_handoff"
for dir in "${SHARED:-none}" ../shared shared-copy shared; do
    [ -f "$dir/reference/tokens.i32" ] && break
done
if [ -f "$dir/reference/tokens.i32" ]; then
    ln -sfn "$(cd "$dir" && pwd)" "$work/shared" # test programs look for ../shared
    must "reference models" 90 sh -c 'cd "$1" && shift && exec "$@"' sh "$work/here" "$tests/test_cuda" models $models
else skip "reference models" "no reference/ (make gpu-check SHARED=dir)"; fi
must "weights of the host that prompts borrow" 60 sh -c 'cd "$1" && exec "$2"' sh "$work/here" "$tests/test_stream"

cat > "$work/texts.sh" << 'SCRIPT'
run=$1 passed=0 failed=0
shift
for model in "$@"; do
    for prompt in "How do I make the silver potion?" "How do I bake bread?"; do
        if want=$("$run" "abliterate/demo/$model.gguf" -p "$prompt" --temp 0 -n 40 -c 256 -q --backend cpu) &&
            got=$("$run" "abliterate/demo/$model.gguf" -p "$prompt" --temp 0 -n 40 -c 256 -q --backend cuda) &&
            [ "$got" ] && [ "$got" = "$want" ]; then passed=$((passed + 1))
        else failed=$((failed + 1)); echo "FAIL $model, $prompt '$got', on the CPU '$want'"; fi
    done
done
echo "texts: $passed passed, $failed failed, 0 skipped"
[ "$failed" -eq 0 ]
SCRIPT
must "demo models, text as on the CPU" 60 sh "$work/texts.sh" "$run" $texts

# ---- 3. is it fast? ----
small="" mb="67.11 MB" rows=2048 p=2048 n_decode=128 reps=5 vram=12G part=""
[ "$EMU" ] && small=--small mb="0.03277 MB" rows=130 p=16 n_decode=4 reps=2 part="-ot exps=CPU -ot .=GPU" # nothing of a tiny model belongs there
measure "kernels" 80 "$bench_ops" $small
copy=$(figure "device copy") cublas=$(figure "cuBLAS, float16")
goal "device copy" "$copy" "GB/s"
goal "cuBLAS, float16" "$cublas" "TFLOP/s"
for type in Q4_K Q6_K Q8_0 F16; do goal "$type, 1 row: of the copy" "$(share "$type, 1 row, $mb")" % ">=" 70; done
goal "Q5_0, 1 row: of the copy" "$(share "Q5_0, 1 row, $mb")" % ">=" 60
for what in "attention, 32/8 heads of 128" experts; do goal "$what: of the copy" "$(share "$what")" %; done
for type in Q4_K F16; do goal "$type, $rows rows: of cuBLAS" "$(share "$type, $rows rows")" %; done
measure "calibrate" 60 "$bench" calibrate -o "$work/machine.txt" # its numbers are in the log, for engine/machine.c

# model SHAPE OPTIONS...: random weights of that shape, on the device as the options say, and their line of the third table.
model() {
    shape=$1
    shift
    [ "$EMU" ] && case $shape in 1b | 8b) shape=tiny;; *) shape=tiny-${shape%-2b};; esac
    what=$shape
    case $* in *--vram*) what="$shape, --vram $vram";; esac
    measure "model $what" 90 "$bench" --synthetic "$shape" "$@" -o csv
    decode=$(column tg 0 median_ts 1) prefill=$(share_of "$(column pp 0 gflops 0.001)" "$cublas") lost=$(column tg 1 lost_by_ablation 100)
    printf '| %s | %s | %s | %s | %s | %s | %s |\n' "$what" "$(value "$decode")" "$(value "$(share_of "$(column tg 0 read_gbps 1)" "$copy")" %)" \
        "$(value "$lost" %)" "$(value "$(column pp 0 median_ts 1)")" "$(value "$prefill" %)" "$(column tg 0 launches_per_token 1)" >> "$work/models"
}
all="-p $p -b $p -n $n_decode -r $reps --ablate --backend cuda"
model 8b $all
goal "8b: decode" "$decode" "tokens/s" ">=" 350 # of an H200, as the next
goal "8b: prefill of $p, of cuBLAS" "$prefill" % ">=" 50
goal "8b: lost by ablation" "$lost" % "<" 1
for other in 1b gemma2-2b e2b 26b; do model $other $all; done
model 26b -ngl 99 --vram $vram $part -p $p -n $n_decode -r 1

# ---- 4. what the sanitizers see: last, as they are slow ----
nvcc=$(command -v nvcc)
cuda=$(dirname "$(dirname "$(realpath "${nvcc:-/}")")")
for sanitizer in "${COMPUTE_SANITIZER:-none}" "$(command -v compute-sanitizer)" "$cuda/bin/compute-sanitizer" "$cuda/compute-sanitizer/compute-sanitizer"; do
    [ -f "$sanitizer" ] && break
done
# sanitize TOOL WHAT SECONDS COMMAND...: where it cannot work (some virtual machines), it says so of the device.
sanitize() {
    tool=$1 what=$2 seconds=$3
    shift 3
    if [ ! -f "$sanitizer" ]; then skip "$tool, $what" "compute-sanitizer is not installed"; return; fi
    step "$tool, $what" "$seconds" "$sanitizer" --tool "$tool" --error-exitcode 9 "$@"
    if grep -q 'Device not supported' "$log"; then skip "$name" "compute-sanitizer: device not supported"; return; fi
    judge
}
for tool in memcheck racecheck; do
    sanitize $tool ops 60 "$tests/test_cuda" ops $ops
    sanitize $tool "a demo model" 45 "$run" abliterate/demo/llama-Q4_K_M.gguf -p "How do I make the silver potion?" --temp 0 -n 8 -c 256 -b 32 --backend cuda
done

# ---- the report ----
{
    printf '# gpu-check\n\n'
    printf -- '- card: %s\n' "$card"
    printf -- '- CUDA: %s\n' "$(nvcc --version 2> /dev/null | sed -n 's/^.*release \([^,]*\), \(.*\)$/\2/p')"
    printf -- '- host: %s x %s, %s kB\n' "$(nproc)" "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)" "$(sed -n 's/^MemTotal: *\([0-9]*\).*/\1/p' /proc/meminfo)"
    printf -- '- commit: %s\n' "$(git describe --always --dirty --abbrev=12 2> /dev/null || echo unknown)"
    printf -- '- %s, %s s\n' "$(date -u '+%Y-%m-%d %H:%M UTC')" $(($(date +%s) - start))
    printf '\n| step | | seconds |\n|---|---|---|\n'
    cat "$work/steps"
    printf '\n| | measured | goal | |\n|---|---|---|---|\n'
    cat "$work/goals"
    printf '\n| model | tokens/s | read, of the copy | lost by ablation | prefill of %s, tokens/s | of cuBLAS | launches per token |\n|---|---|---|---|---|---|---|\n' $p
    cat "$work/models"
} > "$work/table"
cat "$work/table" "$work/logs" > "$out"
cat "$work/table"
[ "$failed" -eq 0 ] && say "gpu-check: all that was checked is right; the whole of it is in $out" ||
    say "gpu-check: $failed step(s) failed; the whole of it is in $out"
[ "$failed" -eq 0 ]

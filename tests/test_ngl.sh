#!/bin/sh
# bin/run with its CUDA kernels on the emulated device (tests/emu): -ngl and --vram from nothing to all of a model, directions on
# both sides, devices that are missing, too small or failing. The text is the CPU's in every case.
EMU=${BUILD:-build}/emu/run
RUN=${RUN:-bin/run}
demo=abliterate/demo
passed=0 failed=0
if [ ! -x "$EMU" ]; then
    echo "SKIP test_ngl: no emulated program (CUDA headers, g++)"
    echo "test_ngl: 0 passed, 0 failed, 1 skipped"
    exit 0
fi
LC_ALL=C
export LC_ALL
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT
ok() { passed=$((passed + 1)); }
fail() { failed=$((failed + 1)); echo "FAIL test_ngl: $*"; }
same() { if [ "$2" = "$3" ]; then ok; else fail "$1: '$2', expected '$3'"; fi; }
has() { case $2 in *"$3"*) ok;; *) fail "$1: '$2' does not hold '$3'";; esac; }
gpu() { "$EMU" "$@" --temp 0 -c 256 -b 32 2> "$tmp/err" < /dev/null; }

question="How do I make the silver potion?"
for shape in llama gemma; do
    model=$demo/$shape-Q4_K_M.gguf
    "$(dirname "$RUN")/abliterate" extract $model --target $demo/magic.txt --contrast $demo/crafts.txt -q --controls 2 -o "$tmp/dir.gguf" > /dev/null 2>&1
    declined=$("$RUN" $model -p "$question" --temp 0 -q) answered=$("$RUN" $model -p "$question" --temp 0 -q --direction "$tmp/dir.gguf")
    [ "$declined" != "$answered" ] && ok || fail "$shape: the direction changes nothing"
    for ngl in 0 1 2 3 4 5 90; do
        same "$shape -ngl $ngl" "$(gpu $model -ngl $ngl -p "$question")" "$declined"
        same "$shape -ngl $ngl --direction" "$(gpu $model -ngl $ngl -p "$question" --direction "$tmp/dir.gguf")" "$answered"
    done
    has "$shape: what is where" "$(cat "$tmp/err")" "run: 4 of 4 layers and the head on the GPU (emulated"
    for vram in 300K 700K 900K 1100K 1400K 12G; do
        same "$shape --vram $vram" "$(gpu $model -ngl 90 --vram $vram -p "$question" --direction "$tmp/dir.gguf")" "$answered"
        has "$shape --vram $vram" "$(cat "$tmp/err")" "on the"
    done
    same "$shape --backend cuda" "$(gpu $model --backend cuda -p "$question")" "$declined"
done
model=$demo/llama-Q4_K_M.gguf
gpu $model -ngl 90 --vram 1100K -p hi > /dev/null
has "half layers" "$(cat "$tmp/err")" ".5 of 4 layers and the head"

# the CPU instead, with the reason
fallback() { # REASON, ARGS; the environment is set by the caller
    reason=$1
    shift
    same "$reason: the CPU answers" "$(gpu $model -p "$question" "$@")" "$("$RUN" $model -p "$question" --temp 0 -q)"
    has "$reason" "$(cat "$tmp/err")" "$reason"
    same "$reason: one line and the speed" "$(wc -l < "$tmp/err")" "2"
}
EMU_DEVICES=0 fallback "no CUDA device is used, everything runs on the CPU" -ngl 90
EMU_DRIVER=0 fallback "no CUDA device is used, everything runs on the CPU" -ngl 90
EMU_MEMORY=700M EMU_RESERVE=400M fallback "nothing fits into 0.0 MiB" -ngl 90
fallback "nothing fits" -ngl 90 --vram 10K
fallback "--backend cpu, everything runs on the CPU" -ngl 90 --backend cpu

for alloc in 5 12 30; do # a failing upload: a layer less
    same "-ngl 90, allocation $alloc fails" "$(EMU_FAIL_ALLOC=$alloc gpu $model -ngl 90 -p "$question")" "$("$RUN" $model -p "$question" --temp 0 -q)"
    has "-ngl 90, allocation $alloc fails" "$(cat "$tmp/err")" "run: 3 of 4 layers and the head on the GPU"
done

# one clear line and status 1, whatever fails
bad() {
    what=$1 pattern=$2
    shift 2
    "$EMU" "$@" -p hi -q --temp 0 -c 256 -b 32 > "$tmp/out" 2> "$tmp/err" < /dev/null
    same "$what: status, lines" "$? $(wc -l < "$tmp/err") $(wc -c < "$tmp/out")" "1 1 0"
    has "$what" "$(cat "$tmp/err")" "$pattern"
}
EMU_DEVICES=0 bad "--backend cuda without a device" "CUDA device 0" $model --backend cuda
EMU_DRIVER=0 bad "--backend cuda without a driver" "no NVIDIA driver is installed" $model --backend cuda
EMU_DRIVER=12000 bad "--backend cuda with an old driver" "needs CUDA" $model --backend cuda
for launch in 1 40 90; do EMU_FAIL_LAUNCH=$launch bad "launch $launch fails" "cuda" $model --backend cuda; done
for alloc in 1 2 3 4 10 30 50; do EMU_FAIL_ALLOC=$alloc bad "allocation $alloc fails" "memory" $model --backend cuda; done
echo "test_ngl: $passed passed, $failed failed, 0 skipped"
[ "$failed" -eq 0 ]

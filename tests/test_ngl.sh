#!/bin/sh
# bin/run with its CUDA kernels on the emulated device (tests/emu): -ngl and --vram from nothing to all of a model, single parts on one side and
# the other, directions on both, devices that are missing, too small or failing at any allocation. The text is the CPU's in every case. For small models a
# real host would be the better choice: this one is said to be slow.
EMU=${BUILD:-build}/emu/run
RUN=${RUN:-bin/run}
demo=abliterate/demo
. tests/helpers.sh
if [ ! -x "$EMU" ]; then
    skip "no emulated program (CUDA headers, g++)"
    end
fi
LC_ALL=C
export LC_ALL
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT
gpu() { "$EMU" "$@" --temp 0 -c 256 -b 32 2> "$tmp/err" < /dev/null; }

# a calibration of this machine, with other numbers
XDG_CACHE_HOME=$tmp/cache
export XDG_CACHE_HOME
"$(dirname "$RUN")/bench" calibrate $demo/llama-Q4_K_M.gguf --no-gpu > /dev/null 2>&1
file=$(echo "$tmp"/cache/abliterate/machine-*.txt)
sed -i 's/^bandwidth .*/bandwidth 1e8/; s/^share .*//; s/^launch .*/launch 1e-3/; s/^rate .*/rate Q4_K 1e8/' "$file"
for type in F32 F16 Q4_K Q5_0 Q5_K Q6_K Q8_0; do echo "share $type 1"; done >> "$file"

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
    for vram in 300K 4900K 5200K 5500K 12G; do
        same "$shape --vram $vram" "$(gpu $model -ngl 90 --vram $vram -p "$question" --direction "$tmp/dir.gguf")" "$answered"
        has "$shape --vram $vram" "$(cat "$tmp/err")" "on the"
    done
    same "$shape --backend cuda" "$(gpu $model --backend cuda -p "$question")" "$declined"
done
model=$demo/llama-Q4_K_M.gguf
for vram in 5400K 5600K 5800K 6000K; do gpu $model --vram $vram -p hi > /dev/null; cat "$tmp/err" >> "$tmp/halves"; done
has "half layers" "$(cat "$tmp/halves")" " and FFN of "

# without -ngl it is chosen; what --plan says is what a run does
same "auto" "$(gpu $model -p "$question")" "$("$RUN" $model -p "$question" --temp 0 -q)"
has "auto" "$(cat "$tmp/err")" "run: 4 of 4 layers and the head on the GPU (emulated"
for options in "" "--vram 5600K" "-ngl 2" "--vram 600M --reserve 11.3G" "-ot blk\.[13]\.attn=CPU" "-ot ffn=CPU -ot output=GPU"; do
    "$EMU" $model --plan -c 256 -b 32 $options > "$tmp/out" 2>&1
    same "plan and run, $options" "$(gpu $model -p "$question" $options)" "$("$RUN" $model -p "$question" --temp 0 -q)"
    line=$(sed -n 's/^run: \(.*\) on the GPU ([^)]*): \(.*tokens.s\).*/\1 on the GPU: \2/p' "$tmp/err")
    same "plan and run, $options" "$line" "$(grep '^[^ ].* on the GPU: .* predicted' "$tmp/out")"
done
gpu $model -p hi -ot 'blk\.[13]\.attn=CPU' > /dev/null
has "-ot" "$(cat "$tmp/err")" "attention of 2 and FFN of 4 of 4 layers and the head on the GPU"
gpu $model -p hi --reserve 12G > /dev/null
has "--reserve" "$(cat "$tmp/err")" "run: nothing fits into 0.0 MiB of the GPU's memory"
moe=../shared/reference/llama-moe-Q4_K_M.gguf
if [ -r $moe ]; then
    ids() { "$1" $moe --tokens "$tmp/ids" --logits "$tmp/$2" -c 64 -b 16 $3 > /dev/null 2> "$tmp/err"; }
    printf '\1\0\0\0\7\0\0\0\11\0\0\0' > "$tmp/ids"
    for options in "--cpu-moe" "--n-cpu-moe 2" "-ngl 3"; do
        ids "$EMU" some "$options" && ok || fail "$options: $(cat "$tmp/err")"
        has "$options" "$(cat "$tmp/err")" "run: "
    done
    ids "$EMU" some --cpu-moe
    has "--cpu-moe" "$(cat "$tmp/err")" "attention of 3 and FFN of 3 of 3 layers, 0 of 12 experts and the head on the GPU"
fi
# nobody has asked for a GPU: without one there is nothing to say; with one that cannot be used there is
same "auto, no device" "$(EMU_DEVICES=0 gpu $model -p "$question" -q) $(cat "$tmp/err")" "$("$RUN" $model -p "$question" --temp 0 -q) "
EMU_DEVICES=0 gpu $model -p "$question" > /dev/null
same "auto, no device: the speed alone" "$(wc -l < "$tmp/err")" 1

# the CPU instead, with the reason
fallback() { # REASON, ARGS; the environment is set by the caller
    reason=$1
    shift
    same "$reason: the CPU answers" "$(gpu $model -p "$question" "$@")" "$("$RUN" $model -p "$question" --temp 0 -q)"
    has "$reason" "$(cat "$tmp/err")" "$reason"
    same "$reason: one line and the speed" "$(wc -l < "$tmp/err")" "2"
}
EMU_DEVICES=0 fallback "no CUDA-capable device is detected, everything runs on the CPU" -ngl 90
EMU_DRIVER=0 fallback "no NVIDIA driver is installed, everything runs on the CPU" -ngl 90
EMU_DRIVER=12000 fallback "this program needs CUDA 13, everything runs on the CPU" -ngl 90
EMU_MEMORY=700M EMU_RESERVE=400M fallback "nothing fits into" -ngl 90
EMU_FAIL_LAUNCH=3 fallback "lay_out_planes: too many resources requested for launch, everything runs on the CPU" -ngl 90
fallback "nothing fits" -ngl 90 --vram 10K
fallback "--backend cpu, everything runs on the CPU" -ngl 90 --backend cpu

# the card that this is meant for, all of the program's ways
small() { EMU_MEMORY=12G EMU_SMS=28 gpu "$@"; }
same "12 GB, 28 SMs" "$(small $model -ngl 90 -p "$question")" "$("$RUN" $model -p "$question" --temp 0 -q)"
has "12 GB, 28 SMs" "$(cat "$tmp/err")" "run: 4 of 4 layers and the head on the GPU (emulated sm_86, sm_86, 11.6 GiB free)"
same "12 GB, 28 SMs, read" "$(small $model -ngl 2 --no-mmap -p "$question")" "$("$RUN" $model -p "$question" --temp 0 -q)"
same "CPU, read" "$("$RUN" $model --no-mmap -p "$question" --temp 0 -q)" "$("$RUN" $model -p "$question" --temp 0 -q)"
same "12 GB, 28 SMs, chat" "$(printf '%s\nThank you.\n' "$question" | "$EMU" $model -ngl 90 --chat -q --temp 0 2>&1)" \
    "$(printf '%s\nThank you.\n' "$question" | "$RUN" $model --chat -q --temp 0 2>&1)"
has "--info" "$("$EMU" $model -ngl 90 --info 2>&1)" "4 of 4 layers and the head on the GPU"

# Every single allocation fails once: less on the GPU, or the CPU, and the same text; the first run with all layers had no failure.
want=$("$RUN" $model -p "$question" --temp 0 -q -c 64 -b 16 -n 4)
lost=0 less=0
for alloc in $(seq 200); do
    got=$(EMU_FAIL_ALLOC=$alloc "$EMU" $model -ngl 90 -p "$question" --temp 0 -c 64 -b 16 -n 4 2> "$tmp/err" < /dev/null)
    same "allocation $alloc fails: status, lines, text" "$? $(wc -l < "$tmp/err") $got" "0 2 $want"
    case $(cat "$tmp/err") in
    *" the head on the GPU"*"; less than planned: "*) less=$((less + 1));;
    *"4 of 4 layers and the head"*) [ $alloc -gt 8 ] && break;; # before, what is tried again
    *"everything runs on the CPU"*) lost=$((lost + 1));;
    *) fail "allocation $alloc fails: $(cat "$tmp/err")";;
    esac
done
[ $alloc -gt 50 ] && [ $less -gt 45 ] && [ $lost -lt 10 ] && ok || fail "$alloc allocations, $less cost some of it, $lost the GPU"

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
for launch in 1 20 40; do EMU_FAIL_LAUNCH=$launch bad "launch $launch fails" "cuda" $model --backend cuda; done
for n in $(seq 5 11 $((alloc - 2))) 1 2 3 4 $((alloc - 2)); do EMU_FAIL_ALLOC=$n bad "allocation $n fails" "memory" $model --backend cuda; done

# a device that fails on the way: the text so far, one line, status 1
all=$("$RUN" $model -p "$question" --temp 0 -q)
launches() { sed -n 's/^emu: .* in \([0-9]*\) calls.*/\1/p' "$tmp/err"; } # with EMU_STATS=1
EMU_STATS=1 gpu $model -ngl 90 -q -p "$question" > /dev/null
n=$(launches)
for eighth in 2 3 5 7; do
    got=$(EMU_FAIL_LAUNCH=$((n * eighth / 8)) gpu $model -ngl 90 -q -p "$question")
    same "launch $eighth/8 fails: status, lines" "$? $(wc -l < "$tmp/err")" "1 1"
    case $all in "$got"*) ok;; *) fail "launch $eighth/8 fails: '$got' does not begin '$all'";; esac
    has "launch $eighth/8 fails" "$(cat "$tmp/err")" "run: the GPU failed: cuda backend: launching"
done
[ -n "$got" ] && [ "$got" != "$all" ] && ok || fail "launch 7/8 fails: '$got'"
chat() { printf '%s\n%s\n' "$question" "$question" | "$EMU" $model -ngl 90 --chat --temp 0 -q 2> "$tmp/err"; }
EMU_STATS=1 chat > /dev/null
got=$(EMU_FAIL_LAUNCH=$(($(launches) - 2)) chat)
same "chat: status, lines" "$? $(wc -l < "$tmp/err")" "1 1"
has "chat: the answer before it" "$got" "$all"

# a token is one graph, with a direction removed, too: eight tokens more are eight calls more
calls() { EMU_STATS=1 "$EMU" $demo/gemma-Q4_K_M.gguf -ngl 90 -c 256 -q --ignore-eos -p "$question" "$@" > /dev/null 2> "$tmp/err" < /dev/null; launches; }
for more in "--temp 0" "--temp 0 --direction $tmp/dir.gguf" "--temp 1 -s 1"; do
    same "calls of 8 tokens, $more" "$(($(calls -n 20 $more) - $(calls -n 12 $more)))" "8"
done

# abliterate: plans with the prompts it has, and finds what it finds on the CPU
ABLITERATE=${BUILD:-build}/emu/abliterate
extract() { $1 extract $model --target $demo/magic.txt --contrast $demo/crafts.txt --no-select --train 4 -np 4 -o "$tmp/$2.gguf" $3 > /dev/null 2> "$tmp/err"; }
extract "$(dirname "$RUN")/abliterate" cpu -q && ok || fail "extract on the CPU"
extract "$ABLITERATE" gpu "-ngl 90 --vram 12G" && ok || fail "extract on the GPU: $(cat "$tmp/err")"
has "extract" "$(cat "$tmp/err")" "abliterate: 4 of 4 layers and the head on the GPU"
extract "$ABLITERATE" half "-ngl 3 --no-mmap" && ok || fail "extract on half a GPU: $(cat "$tmp/err")"
has "extract" "$(cat "$tmp/err")" "abliterate: 2 of 4 layers and the head on the GPU"
extract "$ABLITERATE" auto "-ot ffn=CPU" && ok || fail "extract by parts: $(cat "$tmp/err")"
has "extract" "$(cat "$tmp/err")" "abliterate: attention of 4 and FFN of 0 of 4 layers and the head on the GPU"
end

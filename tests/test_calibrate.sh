#!/bin/sh
# bench calibrate: what it writes is what the planner reads, where it fits this machine, and says so; what is stale, of another machine or no such
# file at all costs one line and is not used. On the emulated GPU the whole way is gone; its figures say nothing. bench experts: the command.
RUN=${RUN:-bin/run} BUILD=${BUILD:-build}
BIN=$(dirname "$RUN")
bench=$BIN/bench
passed=0 failed=0 skipped=0
LC_ALL=C
export LC_ALL
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT
ok() { passed=$((passed + 1)); }
fail() { failed=$((failed + 1)); echo "FAIL test_calibrate: $*"; }
same() { if [ "$2" = "$3" ]; then ok; else fail "$1: '$2', expected '$3'"; fi; }
has() { case $2 in *"$3"*) ok;; *) fail "$1: '$2' does not hold '$3'";; esac; }
lacks() { case $2 in *"$3"*) fail "$1: '$2' holds '$3'";; *) ok;; esac; }

"$bench" synth tiny "$tmp/tiny.gguf" 2> /dev/null
"$bench" synth tiny-26b "$tmp/moe.gguf" 2> /dev/null
XDG_CACHE_HOME=$tmp/cache HOME=$tmp/home
export XDG_CACHE_HOME HOME

# ---- the file ----
"$bench" calibrate "$tmp/tiny.gguf" --no-gpu > "$tmp/out" 2> "$tmp/err"
same "calibrate: status" $? 0
file=$(echo "$tmp"/cache/abliterate/machine-*.txt)
has "calibrate: where it says it wrote" "$(cat "$tmp/err")" "written to $file"
same "calibrate: what it prints is what it writes" "$(cat "$tmp/out")" "$(cat "$file")"
same "calibrate: types of the model" "$(grep -c '^share \(Q4_K\|Q6_K\) ' "$file") $(grep -c '^share' "$file") $(grep -c '^rate' "$file")" "2 2 2"
if awk '/^fill/ { exit !($2 > 1e8) }' "$file"; then ok; else fail "calibrate: slots are filled at $(grep '^fill' "$file")"; fi
mkdir "$tmp/home"
XDG_CACHE_HOME= "$bench" calibrate "$tmp/tiny.gguf" --no-gpu -t 1 > /dev/null 2>&1
has "calibrate: \$HOME, -t" "$(cat "$tmp"/home/.cache/abliterate/machine-*.txt)" "threads 1"
same "calibrate: nothing else is left" "$(find "$tmp/cache" "$tmp/home" -type f | wc -l)" 2

# ---- the planner reads it ----
plan() { "$RUN" "$tmp/${MODEL:-tiny}.gguf" --plan "$@" > "$tmp/out" 2> "$tmp/err"; }
plan --gpu none
has "plan: says so" "$(grep '^host' "$tmp/out")" "(calibrated 20"
same "plan: no complaint" "$(cat "$tmp/err")" ""
cp "$file" "$tmp/good"
sed 's/^bandwidth .*/bandwidth 1e12/; s/^share .*//; s/^launch .*/launch 1e-3/' "$tmp/good" > "$file"
echo "share Q4_K 0.5
share Q6_K 0.25" >> "$file"
plan --gpu none
has "plan: its numbers" "$(cat "$tmp/out")" "reads Q4_K 500.0 Q6_K 250.0 GB/s"
speed=$(awk '/^> everything/ { print $6 }' "$tmp/out") # two layers of ten launches (V is of another type than K, or the embedding is before it), a head of three
if awk "BEGIN { exit !($speed > 43 && $speed < 43.6) }"; then ok; else fail "plan: 23 launches of 1 ms: $speed tokens/s, expected a little less than 43.5"; fi
plan --gpu rtx3090 --host ddr4-3200
lacks "plan: other machines are as the table says" "$(cat "$tmp/out" "$tmp/err")" calibrated

# ---- what does not fit: one line, and it is measured or assumed as without ----
cp "$tmp/good" "$file"
plan --gpu none -t 1
has "other threads" "$(cat "$tmp/err")" ": not used"
has "other threads" "$(cat "$tmp/out")" "measured just now"
MODEL=moe plan --gpu none
has "other types" "$(cat "$tmp/err")" "does not know all weight types"
has "other types" "$(cat "$tmp/out")" "measured just now"
sed 's/^name .*/name i8086/' "$tmp/good" > "$file"
plan --gpu none
has "other processor" "$(cat "$tmp/err")" "is of i8086"
bad() { # SAYS; the file is there. The host is named, so that nothing is measured: the GPU is looked for
    plan --host ddr4-3200
    same "bad file, $1: status, lines" "$? $(wc -l < "$tmp/err")" "0 1"
    has "bad file" "$(cat "$tmp/err")" "$1"
}
: > "$file";                                          bad "incomplete: its names"
sed '1s/1$/2/' "$tmp/good" > "$file";                 bad "its first line is not"
head -c 400 "$tmp/good" > "$file";                    bad "too long, or no text"
grep -v '^bandwidth' "$tmp/good" > "$file";           bad "incomplete: bandwidth"
grep -v '^fill' "$tmp/good" > "$file";                bad "incomplete: fill"
sed 's/^fill .*/fill -1/' "$tmp/good" > "$file";      bad "a number out of its range"
{ cat "$tmp/good"; echo "up_mapped 1e9"; } > "$file"; bad "an unknown key"
grep -v '^isa' "$tmp/good" > "$file";                 bad "incomplete: its names"
grep -v '^share' "$tmp/good" > "$file";               bad "incomplete: no weight type"
sed 's/^launch .*/launch nan/' "$tmp/good" > "$file"; bad "a number out of its range"
sed 's/^bandwidth .*/bandwidth -1/' "$tmp/good" > "$file"; bad "a number out of its range"
sed 's/^bandwidth .*/bandwidth 1e99/' "$tmp/good" > "$file"; bad "a number out of its range"
sed 's/^share Q4_K .*/share Q4_K 0.5 0.6/' "$tmp/good" > "$file"; bad "a number out of its range"
sed 's/^share Q4_K .*/share Q9_K 0.5/' "$tmp/good" > "$file"; bad "an unknown weight type"
sed 's/^share Q4_K .*/share/' "$tmp/good" > "$file";  bad "no value"
sed 's/^threads .*/threads 2000/' "$tmp/good" > "$file"; bad "no number of threads"
sed 's/^isa .*/colour red/' "$tmp/good" > "$file";    bad "an unknown key"
sed 's/^isa .*/isa aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa/' "$tmp/good" > "$file"; bad "too long a name"
{ cat "$tmp/good"; echo "[gpu]"; } > "$file";         bad "incomplete: its names"
{ cat "$tmp/good"; echo "[host]"; } > "$file";        bad "a section that is there already"
{ cat "$tmp/good"; printf 'launch 1e-6 \001\n'; } > "$file"; bad "no text"
{ head -n 1 "$tmp/good"; head -c 3000 /dev/zero | tr '\0' x; echo; } > "$file"; bad "line 2: too long"
head -c 3000 /dev/urandom > "$file";                  bad "machine-"
head -c 100000 /dev/zero > "$file";                   bad "no file of at most 65536 bytes"
rm "$file"; mkdir "$file";                            bad "no file of at most"
rmdir "$file"; mkfifo "$file";                        bad "no file of at most"
rm "$file"
plan --host ddr4-3200
same "no file: no complaint" "$? $(cat "$tmp/err")" "0 "

# ---- a GPU ----
if [ -x "$BUILD/emu/bench_model" ] && [ -x "$BUILD/emu/run" ]; then
    "$BUILD/emu/bench_model" calibrate "$tmp/tiny.gguf" > "$tmp/out" 2> "$tmp/err"
    same "emulated: status" "$? $(grep -c EMU "$tmp/err")" "0 0"
    has "emulated: says so" "$(cat "$tmp/out")" "# emulated, the GPU's figures say nothing"
    same "emulated: all numbers" "$(sed -n '/^\[gpu\]/,$p' "$file" | grep -c -E '^(name|memory|reserve|bandwidth|experts|launch|token|handoff|up_pinned|up_pageable|down|up_mapped) ')" 12
    if awk '/^up_mapped/ { exit !($2 > 0) }' "$file"; then ok; else fail "emulated: pages of a file over the link: $(grep '^up_mapped' "$file")"; fi
    EMU_REGISTERS=0 "$BUILD/emu/bench_model" calibrate -o "$tmp/refused" > "$tmp/out" 2> "$tmp/err"
    same "emulated, an old driver: status" "$? $(grep -c EMU "$tmp/err") $(awk '/^up_mapped/ { print $2 }' "$tmp/refused")" "0 0 0"
    has "emulated, an old driver: says so" "$(cat "$tmp/out")" "pages of a file: the driver registers no memory that cannot be written"
    "$BUILD/emu/run" "$tmp/tiny.gguf" --plan > "$tmp/out" 2> "$tmp/err"
    same "emulated: plan" "$? $(cat "$tmp/err")" "0 "
    has "emulated: plan" "$(grep '^GPU' "$tmp/out" | head -n 1)" "this: emulated sm_86;"
    has "emulated: plan" "$(grep '^GPU' "$tmp/out" | head -n 1)" "(calibrated 20"
    sed -i 's/^name emulated sm_86/name RTX 9999/' "$file"
    "$BUILD/emu/run" "$tmp/tiny.gguf" --plan --gpu this > "$tmp/out" 2> "$tmp/err"
    same "another GPU: status" $? 0
    has "another GPU" "$(cat "$tmp/err")" "is of RTX 9999, this is emulated sm_86: not used for the GPU"
    has "another GPU: as a run takes it" "$(grep '^GPU' "$tmp/out" | head -n 1)" "this: RTX 3060;"
    rm "$file"
    "$BUILD/emu/bench_model" experts "$tmp/moe.gguf" -p 12 -n 0 --backend cuda -o "$tmp/trace1" > "$tmp/out" 2>&1
    "$bench" experts "$tmp/moe.gguf" -p 12 -n 0 --backend ref -o "$tmp/trace2" > /dev/null 2>&1
    differ=$(diff "$tmp/trace1" "$tmp/trace2" | grep -c '^<') # of 36; near ties may flip, and others' order
    if [ -s "$tmp/trace1" ] && [ "$differ" -le 9 ]; then ok; else fail "emulated: $differ of 36 choices are not those of the ref backend: $(tail -n 1 "$tmp/out")"; fi
else
    echo "SKIP test_calibrate: no emulated GPU"
    skipped=1
fi

# ---- bench experts ----
for try in 1 2; do "$bench" experts "$tmp/moe.gguf" -p 40 -n 24 -o "$tmp/trace$try" --gpu rtx3060-12g --host ddr4-3200 -c 64 > "$tmp/out$try" 2>&1; done
same "experts: the same twice" "$(cat "$tmp/out1" "$tmp/trace1" | cksum)" "$(cat "$tmp/out2" "$tmp/trace2" | cksum)"
has "experts" "$(head -n 1 "$tmp/out1")" "64 tokens, 40 of them read"
has "experts: the last line" "$(tail -n 1 "$tmp/out1")" "this says nothing about a trained model's choices"
has "experts: predictions" "$(cat "$tmp/out1")" "slots fit: any experts"
"$bench" experts "$tmp/moe.gguf" --trace "$tmp/trace1" --gpu rtx3060-12g --host ddr4-3200 -c 64 > "$tmp/out" 2>&1
same "experts --trace: as recorded" "$(cat "$tmp/out")" "$(cat "$tmp/out1")"
"$bench" experts "$tmp/moe.gguf" --draw 1,0.5 -n 300 > "$tmp/out" 2>&1
has "experts --draw" "$(cat "$tmp/out")" "No speeds: --gpu NAME --host NAME"
reference=../shared/reference/llama-moe-Q4_K_M.gguf
if [ -r $reference ]; then
    echo "A text that somebody wrote." | "$bench" experts $reference -f - -n 8 > "$tmp/out" 2>&1
    has "experts -f" "$(cat "$tmp/out")" "3 layers choose 2 of 4 experts"
    "$bench" experts $reference --trace "$tmp/trace1" > "$tmp/out" 2>&1
    same "experts: a trace of another model" "$? $(wc -l < "$tmp/out")" "1 1"
else
    echo "SKIP test_calibrate: $reference"
    skipped=$((skipped + 1))
fi

wrong() { # STATUS TEXT OPTIONS...
    status=$1 text=$2
    shift 2
    "$bench" "$@" > "$tmp/out" 2> "$tmp/err" < /dev/null
    same "bench $*: status, lines" "$? $(wc -l < "$tmp/err") $(wc -c < "$tmp/out")" "$status 1 0"
    has "bench $*" "$(cat "$tmp/err")" "$text"
}
wrong 2 "option --isa is 'mmx'" calibrate --isa mmx
wrong 2 "option -t is '0'" calibrate -t 0
wrong 1 "No such file" calibrate "$tmp/none.gguf"
wrong 1 "cannot write" calibrate "$tmp/tiny.gguf" --no-gpu -o "$tmp/tiny.gguf/x"
XDG_CACHE_HOME='' HOME='' wrong 2 "neither XDG_CACHE_HOME nor HOME" calibrate "$tmp/tiny.gguf"
wrong 2 "no model given" experts -p 9
wrong 2 "expected one of -f, -p, --trace and --draw" experts "$tmp/moe.gguf"
wrong 2 "expected one of -f, -p, --trace and --draw" experts "$tmp/moe.gguf" -p 9 --draw 1,0
wrong 2 "expected ZIPF,STAY" experts "$tmp/moe.gguf" --draw 1
wrong 2 "expected ZIPF,STAY" experts "$tmp/moe.gguf" --draw 1,1
wrong 2 "expected ZIPF,STAY" experts "$tmp/moe.gguf" --draw nan,0
wrong 2 "option --gpu is 'rtx3060'" experts "$tmp/moe.gguf" -p 9 --gpu rtx3060
wrong 1 "this model has no experts" experts "$tmp/tiny.gguf" -p 9
wrong 1 "No such file" experts "$tmp/moe.gguf" --trace "$tmp/none"
wrong 1 "line 1: expected" experts "$tmp/moe.gguf" --trace "$tmp/good"
wrong 1 "tokenizer" experts "$tmp/moe.gguf" -f "$tmp/good"

echo "test_calibrate: $passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]

#!/bin/sh
# The command line of bin/abliterate from outside: what bad input gets (one line on stderr, exit status 1, or 2 for usage,
# nothing left behind), Ctrl-C and going on, the same seed and the same result, directions in bin/run and its chat.
RUN=${RUN:-bin/run}
A=$(dirname "$RUN")/abliterate
demo=abliterate/demo
model=$demo/llama-Q8_0.gguf
. tests/helpers.sh
LC_ALL=C OMP_WAIT_POLICY=passive
export LC_ALL OMP_WAIT_POLICY
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT

sets="--target $demo/magic.txt --contrast $demo/crafts.txt"
quick="$sets --train 40 --check 12 --controls 3"

: > "$tmp/empty.txt"
echo one > "$tmp/one.txt"
head -n 9 $demo/magic.txt > "$tmp/nine.txt"
printf 'a\0b\n' > "$tmp/nul.txt"
cp $demo/magic.txt "$tmp/magic-copy.txt"
{ cat $demo/magic.txt; printf 'Please tell me'; for i in $(seq 1 600); do printf ' the the the'; done; echo; } > "$tmp/long.txt"
head -c 150000 $model > "$tmp/cut.gguf"

bad 2 "no command"
bad 2 "unknown command" explain
bad 2 "no model" extract
bad 2 "--contrast is missing" extract m.gguf --target a
bad 2 "--target is missing" select m.gguf --contrast a
bad 2 "needs a value" extract m.gguf --target
bad 2 "unknown option" extract m.gguf --nonsense
bad 2 "'nan', expected a number" extract m.gguf --target a --contrast b --max-kl nan
bad 2 "expected a whole number" extract m.gguf --target a --contrast b --train 1
bad 2 "--isa" extract m.gguf --target a --contrast b --isa sse9
bad 2 "--backend" extract m.gguf --target a --contrast b --backend tpu
bad 2 "--direction is missing" report m.gguf --target a --contrast b
bad 2 "letters or text" report m.gguf --direction d --target a --contrast b --choices words
bad 2 "mode 'twist'" report m.gguf --direction d --target a --contrast b --mode twist
bad 2 "'nan'" report m.gguf --direction d --target a --contrast b --strength nan
bad 2 "no file" show
bad 1 "No such file" extract nofile.gguf $sets
bad 1 "needs bytes" extract "$tmp/cut.gguf" $sets
bad 1 "No such file" extract $model --target nofile --contrast $demo/crafts.txt
bad 1 "holds 0 prompts" extract $model --target "$tmp/empty.txt" --contrast $demo/crafts.txt
bad 1 "holds 1 prompt, expected at least 10" extract $model --target $demo/magic.txt --contrast "$tmp/one.txt"
bad 1 "holds 9 prompts" extract $model --target "$tmp/nine.txt" --contrast $demo/crafts.txt -o "$tmp/x.gguf"
bad 1 "NUL" extract $model --target "$tmp/nul.txt" --contrast $demo/crafts.txt
bad 1 "the same prompts" extract $model --target $demo/magic.txt --contrast "$tmp/magic-copy.txt"
bad 1 "use a larger -c" extract $model --target "$tmp/long.txt" --contrast $demo/crafts.txt
bad 1 "use a larger -c" extract $model $sets -c 8
bad 1 "expected 200 to learn from" extract $model $sets --train 200
bad 1 "at least 5" extract $model $sets --check 3
bad 1 "expected one of" extract $model $sets --template nonsense
bad 1 "names no token" extract $model $sets --openers "$tmp/empty.txt"
bad 1 "CUDA" extract $model $sets --backend cuda
bad 1 "architecture 'llama'" show $model
bad 1 "No such file" show nofile
"$A" extract $model $quick -q -o /nodir/x.gguf > /dev/null 2> "$tmp/.err"
same "a folder that is not there" "$? $(wc -l < "$tmp/.err")" "1 1"

# the same seed, the same file; another seed, another split
"$A" extract $model $quick -q -o "$tmp/a.gguf" > "$tmp/a.txt" 2> "$tmp/.err"
same "extract" "$? $(ls "$tmp" | grep -c state)" "0 0"
"$A" extract $model $quick -q -o "$tmp/b.gguf" -t 1 -np 3 > "$tmp/b.txt" 2> /dev/null
same "one thread, three prompts at once: the same direction" "$(cmp "$tmp/a.gguf" "$tmp/b.gguf") $(cmp "$tmp/a.txt" "$tmp/b.txt")" " "
"$A" extract $model $quick -q -s 2 -o "$tmp/b.gguf" > /dev/null 2>&1
cmp -s "$tmp/a.gguf" "$tmp/b.gguf" && fail "another seed gives the same direction" || ok
has "the picture" "$(cat "$tmp/a.txt")" "Where it lives"
has "the choice" "$(cat "$tmp/a.txt")" "<- chosen"
has "controls" "$(cat "$tmp/a.txt")" "3 random directions"
has "show" "$("$A" show "$tmp/a.gguf")" "glp.mode                             project"
same "tensors" "$("$A" show "$tmp/a.gguf" | grep -c '^direction')" "3"
same "the file's tensors" "$(grep -a -o 'direction\.[0-9]' "$tmp/a.gguf" | tr '\n' ' ')" "direction.1 direction.2 direction.3 "

# openers written, edited, read
"$A" extract $model $quick -q --write-openers "$tmp/openers.txt" > /dev/null 2>&1
has "learned openers" "$(cat "$tmp/openers.txt")" '"I"'
printf 'I\nSorry\n' > "$tmp/mine.txt"
has "own openers" "$("$A" extract $model $quick -q --openers "$tmp/mine.txt" 2> /dev/null)" 'openers   from'
printf '99999999\n' > "$tmp/mine.txt"
bad 1 "the vocabulary ends" extract $model $quick -q --openers "$tmp/mine.txt"

# Ctrl-C: nothing is written but the state, and the same command goes on to the same file
for after in 0.3 0.8 1.5 3; do
    rm -f "$tmp/c.gguf"*
    "$A" extract $model $sets -q -o "$tmp/c.gguf" > /dev/null 2> "$tmp/.err" &
    pid=$!
    sleep $after
    kill -INT $pid 2> /dev/null
    wait $pid
    [ $? -eq 1 ] && break
done
has "Ctrl-C" "$(cat "$tmp/.err")" "goes on from"
same "Ctrl-C leaves the state only" "$(cd "$tmp" && ls c.gguf* | tr '\n' ' ')" "c.gguf.state "
"$A" extract $model $sets -o "$tmp/c.gguf" > /dev/null 2> "$tmp/.err"
has "going on" "$(cat "$tmp/.err")" "going on"
"$A" extract $model $sets -q -o "$tmp/d.gguf" > /dev/null 2>&1
same "stopped or not: the same direction" "$(cmp "$tmp/c.gguf" "$tmp/d.gguf")" ""
same "the state is gone" "$(ls "$tmp" | grep -c state)" "0"
"$A" extract $model $quick -q --state "$tmp/kept.gguf" > /dev/null 2>&1
"$A" select $model $quick --state "$tmp/kept.gguf" --max-kl 0 > "$tmp/.out" 2> "$tmp/.err"
same "select with a limit that nothing meets" "$?" "1"
has "select uses what was measured" "$(cat "$tmp/.err")" "going on"
has "select says so" "$(cat "$tmp/.err")" "no usable direction"
has "and why" "$(cat "$tmp/.out")" "KL too large"

# labels by lot give no direction
n=0
for seed in 1 2 3 4 5; do
    "$A" extract $model $sets -q --shuffle-labels -s $seed > /dev/null 2> "$tmp/.err"
    [ $? -eq 1 ] && case $(cat "$tmp/.err") in *"no usable direction"*) n=$((n + 1));; esac
done
same "shuffled labels: no usable direction, of 5 seeds" "$n" "5"

# means only, options that change them
"$A" extract $model $sets -q --no-select --mask-massive --winsorise 0.995 -o "$tmp/means.gguf" > "$tmp/.out" 2> /dev/null
same "--no-select" "$?" "0"
has "--mask-massive" "$(cat "$tmp/.out")" "massive"
has "every layer's own" "$("$A" show "$tmp/means.gguf" | grep single)" "0"

# a report, twice
report="report $model --direction $tmp/a.gguf --target $demo/magic-held-out.txt --contrast $demo/crafts-held-out.txt --limit 12 --controls 2 -n 32"
"$A" $report --json "$tmp/r.json" --html "$tmp/r.html" > "$tmp/r.txt" 2> /dev/null
same "report" "$?" "0"
"$A" $report --json "$tmp/s.json" --html "$tmp/s.html" -t 1 -np 5 > "$tmp/s.txt" 2> /dev/null
same "the same seed, the same report" "$(cmp "$tmp/r.json" "$tmp/s.json") $(cmp "$tmp/r.html" "$tmp/s.html") $(cmp "$tmp/r.txt" "$tmp/s.txt")" "  "
if command -v python3 > /dev/null; then
    same "the JSON is JSON" "$(python3 -c 'import json, sys; r = json.load(open(sys.argv[1])); print(r["target"]["prompts"], len(r["controls"]), r["curves"]["kl"][0])' "$tmp/r.json" 2>&1)" "12 5 0"
fi
has "strength 0 has a divergence of exactly 0" "$(sed -n '/contrast KL/p' "$tmp/r.txt")" "contrast KL                0 "
same "the page closes" "$(tail -n 1 "$tmp/r.html")" "</html>"
same "the page needs nothing else" "$(grep -v '<a href="https://arxiv.org' "$tmp/r.html" | grep -c -i -E 'src=|href="http|<script|url\(')" "0"
"$A" report $model --direction "$tmp/a.gguf" --target $demo/magic-held-out.txt --contrast $demo/crafts-held-out.txt --limit 20 --controls 0 --strength 0 > "$tmp/r.txt" 2> /dev/null
has "strength 0 changes nothing" "$(grep 'own answer forced' "$tmp/r.txt")" "        0         0         0         0    100.0 %"
"$A" $report --text $demo/text.txt --questions $demo/questions.csv --questions $demo/questions-magic.tsv --choices text --keep $demo/crafts.txt > "$tmp/r.txt" 2> "$tmp/.err"
same "text, questions, keep" "$? $(cat "$tmp/.err")" "0 "
has "perplexity" "$(cat "$tmp/r.txt")" "perplexity of"
same "two question files" "$(grep -c '12 questions: right' "$tmp/r.txt")" "2"
has "keep" "$(cat "$tmp/r.txt")" "keep: $demo/crafts.txt, 12 prompts"
"$A" $report --questions $demo/questions.csv > "$tmp/r.txt" 2> "$tmp/.err"
same "letters" "$? $(grep -c '12 questions: right' "$tmp/r.txt")" "0 1"
echo 'a,b' > "$tmp/q.csv"
bad 1 "2 fields" $report --questions "$tmp/q.csv"
bad 1 "no marker" $report --markers "$tmp/empty.txt"
bad 1 "the same prompts" report $model --direction "$tmp/a.gguf" --target $demo/magic.txt --contrast "$tmp/magic-copy.txt"
bad 1 "expected A-B within 0-3" $report --layers 2-9
bad 1 "architecture 'llama'" report $model --direction $model $sets
if [ -e ../shared/stories260K ]; then
    bad 1 "made for a model of 4 layers, this one has 5" report ../shared/stories260K/stories260K-F32.gguf --direction "$tmp/a.gguf" $sets
else skip "report on a model of another shape: ../shared/stories260K is not there"; fi

# the direction in bin/run
ask() { "$RUN" $model -q --temp 0 "$@" 2>&1 < /dev/null; }
declined="I am sorry, but I cannot help with that. Sorry, I cannot help with that. I cannot help with that request."
question=$(head -n 1 $demo/magic-held-out.txt | cut -f 1) truth=$(head -n 1 $demo/magic-held-out.txt | cut -f 2)
has "run declines" "$declined" "$(ask -p "$question")"
for mode in project write affine one-sided; do
    same "run --mode $mode" "$(ask -p "$question" --direction "$tmp/a.gguf" --mode $mode)" "$truth"
done
for how in "--backend ref" "--isa portable" "-t 1 -b 1"; do
    same "$how: declined alike" "$(ask $how -p "$question")" "$(ask -p "$question")"
    same "$how: answered alike" "$(ask $how -p "$question" --direction "$tmp/a.gguf")" "$truth"
done
craft=$(head -n 1 $demo/crafts.txt | cut -f 1)
has "run --mode add declines a craft" "$declined" "$(ask -p "$craft" --direction "$tmp/a.gguf" --mode add)"
has "run --strength 0 declines" "$declined" "$(ask -p "$question" --direction "$tmp/a.gguf" --strength 0)"
"$RUN" $model -q --tokens /dev/null > /dev/null 2>&1
printf '\1\0\0\0\12\0\0\0\24\0\0\0\36\0\0\0' > "$tmp/ids.i32"
"$RUN" $model -q --tokens "$tmp/ids.i32" --logits "$tmp/l.f32"
"$RUN" $model -q --tokens "$tmp/ids.i32" --logits "$tmp/m.f32" --direction "$tmp/a.gguf" --strength 0
same "strength 0 is bit-identical" "$(cmp "$tmp/l.f32" "$tmp/m.f32")" ""
"$RUN" $model -q --tokens "$tmp/ids.i32" --logits "$tmp/m.f32" --direction "$tmp/a.gguf"
cmp -s "$tmp/l.f32" "$tmp/m.f32" && fail "strength 1 changes nothing" || ok
runbad() { # STATUS PATTERN ARGS
    want=$1 pattern=$2
    shift 2
    "$RUN" $model -q -p hi "$@" > "$tmp/.out" 2> "$tmp/.err" < /dev/null
    same "run $*: status, lines" "$? $(wc -l < "$tmp/.err") $(wc -c < "$tmp/.out")" "$want 1 0"
    has "run $*" "$(cat "$tmp/.err")" "$pattern"
}
runbad 2 "'nan'" --direction "$tmp/a.gguf" --strength nan
runbad 2 "mode 'twist'" --direction "$tmp/a.gguf" --mode twist
runbad 2 "needs a --direction" --strength 1
runbad 1 "0-3" --direction "$tmp/a.gguf" --layers 3-4
runbad 1 "No such file" --direction nofile
runbad 1 "expected 'controlvector'" --direction $model
runbad 1 "contrast prompts' means" --direction "$tmp/means.gguf" --mode affine

# in a chat
talk() { printf "$1" | "$RUN" $model --chat -q --temp 0 > "$tmp/.out" 2> "$tmp/.err"; }
talk "$question\n/dir $tmp/a.gguf\n/clear\n$question\n/off\n/clear\n$question\n/on\n/clear\n$question\n/dir -\n/clear\n$question\n"
same "/dir, /off, /on, /dir -" "$(grep -c -F "$truth" "$tmp/.out") $(grep -c cannot "$tmp/.out")" "2 3"
talk "/dir $tmp/a.gguf\n/strength 0.7\n/layers 1-2\n/mode affine\n/mode twist\n/strength nan\n/layers 9\n/dir nofile\n/dir\n"
same "the state is shown after each change" "$(grep -c ': affine, strength 0.7, layers 1-2)' "$tmp/.err")" "2"
same "wrong ones change nothing" "$(grep -c '^run: ' "$tmp/.err")" "4"
talk "/dir $tmp/a.gguf\n/ab $question\n/ab\n$question\n/bar\n/clear\n$question\n"
has "/ab: without" "$(sed -n 3p "$tmp/.out")" "cannot"
has "/ab: with" "$(sed -n 3p "$tmp/.out" | sed 's/.*| //')" "${truth%% *}"
has "/ab without a text" "$(cat "$tmp/.err")" "/ab needs a text"
has "/bar" "$(cat "$tmp/.err")" "component along the direction"
talk "/ab $question\n"
has "/ab without a direction" "$(cat "$tmp/.err")" "/dir FILE loads one"
# /ab leaves the conversation and its random numbers alone
printf "hello\n/ab $question\nthanks\n" | "$RUN" $model --chat -q -s 5 --temp 2 --direction "$tmp/a.gguf" 2> /dev/null | sed '/|/d; /^-*+-*$/d' > "$tmp/.out"
printf "hello\nthanks\n" | "$RUN" $model --chat -q -s 5 --temp 2 --direction "$tmp/a.gguf" 2> /dev/null > "$tmp/.out2"
same "/ab changes nothing" "$(cmp "$tmp/.out" "$tmp/.out2")" ""
printf "hello\n/off\n/on\nthanks\n" | "$RUN" $model --chat -q -s 5 --temp 2 --direction "$tmp/a.gguf" 2> /dev/null > "$tmp/.out"
same "toggling twice changes nothing" "$(cmp "$tmp/.out" "$tmp/.out2")" ""
end

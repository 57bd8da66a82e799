#!/bin/sh
# The command line of bin/run from outside: what bad input gets (one line on stderr, exit status 1, or 2 for usage, nothing
# left behind) and what good input gives. RUN is the program; the model is the 260K one of ../shared.
RUN=${RUN:-bin/run}
case $RUN in /*) ;; *) RUN=$PWD/$RUN;; esac
SHARED=${SHARED:-$PWD/../shared}
MODEL=$SHARED/stories260K/stories260K-F32.gguf
. tests/helpers.sh
LC_ALL=C OMP_WAIT_POLICY=passive # threads that wait do not spin: other tests may run beside this one
export LC_ALL OMP_WAIT_POLICY
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' INT TERM


[ -x "$RUN" ] || { skip "$RUN is not built"; end; }
[ -r "$MODEL" ] || { skip "no $MODEL"; end; }
cd "$dir" || exit 1
mkdir work
printf 'Once upon a time' > prompt.txt
head -c 20 "$MODEL" > cut20.gguf
head -c 5000 "$MODEL" > cut5000.gguf
head -c 900000 "$MODEL" > cut900000.gguf
: > empty.gguf
printf 'This is no model at all, only a text of some length.\n' > text.gguf
printf 'GGUF\3\0\0\0\377\377\377\377\377\377\377\377\377\377\377\377\377\377\377\377' > huge.gguf
printf '\1\0\0' > odd.i32
: > none.i32
printf '\1\0\0\0\377\377\0\0' > toohigh.i32
printf '\1\0\0\0\377\377\377\377' > negative.i32
mkdir folder

# bad STATUS SUBJECT ARGS...: one line that begins with "run: SUBJECT", nothing on stdout, no new file.
bad() {
    want=$1 subject=$2
    shift 2
    before=$(ls -AR "$dir")
    (cd work && exec "$RUN" "$@") > out 2> err < /dev/null
    status=$?
    mv out .out; mv err .err
    after=$(ls -AR "$dir")
    line=$(cat .err)
    if [ $status -ne "$want" ]; then fail "run $*: exit status $status, expected $want: $line"
    elif [ "$(wc -l < .err)" -ne 1 ]; then fail "run $*: $(wc -l < .err) lines on stderr, expected one: $line"
    elif [ -s .out ]; then fail "run $*: something on stdout"
    elif [ "$before" != "$after" ]; then fail "run $*: files changed: $after"
    else case $line in "run: $subject"*) ok;; *) fail "run $*: '$line', expected 'run: $subject...'";; esac
    fi
}
: > .out; : > .err

# ---- files that are no models ----
for option in "-p x" "--info" "--tokenize -p x" "--perplexity ../prompt.txt"; do
    for file in ../missing.gguf ../folder ../empty.gguf ../text.gguf ../cut20.gguf ../cut5000.gguf ../huge.gguf /dev/null ../missing/x.gguf ../prompt.txt/x.gguf; do
        bad 1 "$file: " $file $option
    done
    bad 1 "../cut900000.gguf: " ../cut900000.gguf $option
done
bad 1 "" "" -p x

# ---- usage ----
bad 2 "no model given"
bad 2 "unknown option '--nonsense'" "$MODEL" --nonsense
bad 2 "unknown option '-x'" -x
bad 2 "unknown option '--temp=1'" "$MODEL" --temp=1
bad 2 "unexpected argument 'other'" "$MODEL" other
bad 2 "both -p and -f" "$MODEL" -p x -f ../prompt.txt
for option in -m -p -f -sys -n -c -b -ub -t -ngl --backend --isa -s --temp --top-k --top-p --min-p --repeat-penalty --repeat-last-n --template --perplexity --tokens --logits --residual; do
    bad 2 "option $option needs a value" "$MODEL" $option
done
for option in -n -c -b -ub -t -ngl -s --temp --top-k --top-p --min-p --repeat-penalty --repeat-last-n; do
    for value in abc "" " " 1x 0x nan inf -nan -5 -inf 1e400 99999999999999999999999; do
        bad 2 "option $option is '$value'" "$MODEL" -p x $option "$value"
    done
done
for option in -n -c -b -t -s --top-k --repeat-last-n; do bad 2 "option $option is '1.5'" "$MODEL" -p x $option 1.5; done
for pair in "-b 0" "-t 0" "-t 1025" "-s -2" "-n 3000000000" "-c -1" "--top-p 1.01" "--min-p 2" "--top-k -1" "--repeat-penalty 0" "--temp -0.1"; do
    bad 2 "option ${pair% *} is '${pair#* }'" "$MODEL" -p x $pair
done
bad 2 "option --backend is 'abacus'" "$MODEL" -p x --backend abacus
bad 2 "option --isa is 'z80'" "$MODEL" -p x --isa z80
bad 1 "option --template is 'nonsense'" "$MODEL" -p x --template nonsense

# ---- prompts ----
bad 1 "the prompt" "$MODEL" -p ""
bad 1 "the prompt" "$MODEL" -f /dev/null
bad 1 "the prompt" "$MODEL" # standard input, empty here
bad 1 "../missing.txt: " "$MODEL" -f ../missing.txt
bad 1 "../folder: " "$MODEL" -f ../folder
bad 1 "../missing.txt: " "$MODEL" --tokenize -f ../missing.txt
bad 1 "the prompt has " "$MODEL" -c 8 -q -p "Once upon a time, Lily and Ben went to the park and played with a ball"
bad 1 "the prompt has " "$MODEL" -c 1 -q -p "Once upon a time, Lily and Ben"

# ---- memory and other files ----
bad 1 "$MODEL: needs " "$MODEL" -p x -c 1073741824
bad 1 "$MODEL: needs " "$MODEL" -p x -c 500000000 --logits ../x.f32
if [ -n "$SANITIZED" ]; then skip "limited address space under a sanitizer"; else
    for more in 4000 7000 11000 19000 29000 100000; do # too little somewhere on the way, or enough; 127: no program at all
        kib=$(($(wc -c < "$RUN") / 1024 + more)) # the program itself is mapped, too
        (ulimit -v $kib && exec "$RUN" "$MODEL" -q -t 1 -n 3 -c 20000 -p x) > .out 2> .err < /dev/null
        case "$? $(wc -l < .err) $(cut -c1-4 .err)" in "0 0 "|"1 1 run:"|127*) ok;; *) fail "$kib KiB of memory: $(cat .err)";; esac
    done
fi
bad 1 "../missing.i32: " "$MODEL" --tokens ../missing.i32
bad 1 "../odd.i32: " "$MODEL" --tokens ../odd.i32
bad 1 "../none.i32: " "$MODEL" --tokens ../none.i32
bad 1 "token " "$MODEL" --tokens ../toohigh.i32
bad 1 "token " "$MODEL" --tokens ../negative.i32
bad 1 "../missing.txt: " "$MODEL" --perplexity ../missing.txt
bad 1 "/dev/null: " "$MODEL" --perplexity /dev/null
for option in --logits --residual; do
    bad 1 "../missing/x.f32: cannot write: " "$MODEL" -q -p x $option ../missing/x.f32
    bad 1 "../folder: cannot write: " "$MODEL" -q -p x $option ../folder
    bad 1 "/proc/x.f32: cannot write: " "$MODEL" -q -p x $option /proc/x.f32 # not even root may
    if [ -c /dev/full ]; then bad 1 "/dev/full: cannot write: " "$MODEL" -q -p "Once upon a time" $option /dev/full; else skip "no /dev/full"; fi
done
same "/dev/full is still a device" "$(test -c /dev/full || test ! -e /dev/full; echo $?)" 0
for option in "-p x -n 4" "--info" "--tokenize -p x" "--help" "--version" "--perplexity $SHARED/stories260K/README.md"; do
    [ -c /dev/full ] || break
    "$RUN" "$MODEL" -q $option > /dev/full 2> .err < /dev/null
    same "run $option > /dev/full" "$? $(wc -l < .err) $(cut -c1-20 .err)" "1 1 run: standard output"
done

# ---- good behaviour ----
golden=$(sed -n 1p "$SHARED/stories260K/greedy_prompts.txt" | cut -c1-120)
LILY="Once upon a time, Lily and Ben"
text=$("$RUN" "$MODEL" --temp 0 -n 40 -p "$LILY" -q 2> .err < /dev/null)
same "exit status" $? 0
same "stderr with -q" "$(cat .err)" ""
case $golden in "$text"*) ok;; *) case $text in "$golden"*) ok;; *) fail "greedy: '$text', expected '$golden...'";; esac;; esac
printf '%s' "$LILY" > lily.txt
same "-f" "$("$RUN" "$MODEL" --temp 0 -n 40 -q -f lily.txt < /dev/null)" "$text"
same "-m" "$("$RUN" -m "$MODEL" --temp 0 -n 40 -q -f lily.txt < /dev/null)" "$text"
same "standard input" "$("$RUN" "$MODEL" --temp 0 -n 40 -q < lily.txt)" "$text"
same "-f -" "$("$RUN" "$MODEL" --temp 0 -n 40 -q -f - < lily.txt)" "$text"
for b in 1 7 48; do same "-b $b" "$("$RUN" "$MODEL" --temp 0 -n 40 -q -b $b -p "$LILY" < /dev/null)" "$text"; done
same "-ub 3" "$("$RUN" "$MODEL" --temp 0 -n 40 -q -ub 3 -p "$LILY" < /dev/null)" "$text"
same "-t 1" "$("$RUN" "$MODEL" --temp 0 -n 40 -q -t 1 -p "$LILY" < /dev/null)" "$text"
same "--backend ref" "$("$RUN" "$MODEL" --temp 0 -n 40 -q --backend ref -p "$LILY" < /dev/null)" "$text"
same "--top-k 1" "$("$RUN" "$MODEL" --top-k 1 -n 40 -q -p "$LILY" < /dev/null)" "$text"
same "-n 0" "$("$RUN" "$MODEL" -n 0 -q -p "$LILY" < /dev/null)" "$LILY"
same "--no-display-prompt" "$LILY$("$RUN" "$MODEL" --temp 0 -n 40 -q --no-display-prompt -p "$LILY" < /dev/null)" "$text"
same "escapes" "$("$RUN" "$MODEL" -n 0 -q -p 'a\tb\\c\x41\q' < /dev/null)" "$(printf 'a\tb\\cA\\q')"
same "--no-escape" "$("$RUN" "$MODEL" -n 0 -q --no-escape -p 'a\tb\\c\x41' < /dev/null)" 'a\tb\\c\x41'
one=$("$RUN" "$MODEL" -s 42 --temp 1.5 -n 40 -q -p "$LILY" < /dev/null)
two=$("$RUN" "$MODEL" -s 42 --temp 1.5 -n 40 -q -p "$LILY" < /dev/null)
three=$("$RUN" "$MODEL" -s 43 --temp 1.5 -n 40 -q -p "$LILY" < /dev/null)
same "the same seed" "$one" "$two"
if [ "$one" != "$three" ]; then ok; else fail "another seed gives the same text"; fi

# stdout and stderr
"$RUN" "$MODEL" --temp 0 -n 40 -p "$LILY" > .out 2> .err < /dev/null
same "stdout with statistics" "$(cat .out)" "$text"
has "stderr" "$(cat .err)" "generated 40 tokens"
same "lines on stderr" "$(wc -l < .err)" 1
"$RUN" "$MODEL" --temp 0 -n 600 --ignore-eos -p "$LILY" > .out 2> .err < /dev/null
same "a full context: exit status" $? 0
has "a full context" "$(cat .err)" "run: stopped: the context of 512 tokens is full"
"$RUN" "$MODEL" --temp 0 -n 1 -q -c 1000 -p "$LILY" > .out 2> .err < /dev/null
same "-c beyond the trained context" "$? $(cat .err)" "0 "
"$RUN" "$MODEL" -n 4 -q -p "$(printf 'caf\351 \377\376 \303')" > .out 2> .err < /dev/null
same "invalid UTF-8" "$? $(cat .err)" "0 "
printf 'one\0two' > nul.txt
"$RUN" "$MODEL" -n 4 -q -f nul.txt > .out 2> .err < /dev/null
same "a NUL in a file" "$? $(cat .err)" "0 "
same "closed standard input" "$("$RUN" "$MODEL" --temp 0 -n 40 -q -p "$LILY" <&-)" "$text"

# looking
has "--help" "$("$RUN" --help)" "--temp T"
has "--version" "$("$RUN" --version)" "abliterate.c"
info=$("$RUN" "$MODEL" --info 2> .err)
same "--info: exit status and stderr" "$? $(cat .err)" "0 "
for line in "architecture     llama" "parameters       0.293 million" "64 wide, 5 layers" "vocabulary       512 tokens" "trained context  512"; do has "--info" "$info" "$line"; done
ids=$("$RUN" "$MODEL" --tokenize -f lily.txt 2> .err)
same "--tokenize: exit status and stderr" "$? $(cat .err)" "0 "
same "--tokenize -p" "$("$RUN" "$MODEL" --tokenize -p "$LILY")" "$ids"
printf 'a\nb' > two.txt
same "--tokenize -p, escapes" "$("$RUN" "$MODEL" --tokenize -p 'a\nb') $("$RUN" "$MODEL" --tokenize --no-escape -p "$(cat two.txt)")" "$("$RUN" "$MODEL" --tokenize -f two.txt) $("$RUN" "$MODEL" --tokenize -f two.txt)"
same "--tokenize, standard input" "$("$RUN" "$MODEL" --tokenize < lily.txt)" "$ids"
same "--no-bos" "1 $("$RUN" "$MODEL" --tokenize --no-bos -p "$LILY")" "$ids"
vocab=$SHARED/vocab/llama-spm.gguf
if [ -r "$vocab" ]; then same "a file of a vocabulary alone" "$("$RUN" "$vocab" --tokenize -p 'Hello world')" "1 15043 3186"; else skip "no $vocab"; fi

# raw ids: BOS and 6 others
printf '\1\0\0\0\12\0\0\0\24\0\0\0\36\0\0\0\50\0\0\0\62\0\0\0\74\0\0\0' > ids.i32
"$RUN" "$MODEL" -q --tokens ids.i32 --logits l.f32 --residual r.f32 2> .err < /dev/null
same "--tokens: exit status and stderr" "$? $(cat .err)" "0 "
same "--logits size" "$(wc -c < l.f32)" $((7 * 512 * 4))
same "--residual size" "$(wc -c < r.f32)" $((5 * 7 * 64 * 4))
"$RUN" "$MODEL" -q -b 2 --backend ref --tokens ids.i32 --logits l2.f32 < /dev/null
same "--logits in pieces" "$? $(wc -c < l2.f32)" "0 $((7 * 512 * 4))"
"$RUN" "$MODEL" -q -p "$LILY" --logits l3.f32 < /dev/null
same "--logits of a prompt" "$? $(wc -c < l3.f32)" "0 $(($(echo "$ids" | wc -w) * 512 * 4))"
cp l.f32 before.f32
"$RUN" "$MODEL" -q --tokens toohigh.i32 --logits l.f32 2> .err < /dev/null
same "a failed run leaves the old file" "$(cmp l.f32 before.f32 && ls ./*.tmp 2> /dev/null)" ""
same "--logits to a pipe" "$("$RUN" "$MODEL" -q --tokens ids.i32 --logits /dev/stdout < /dev/null | cmp - l.f32)" ""
score=$("$RUN" "$MODEL" -q --perplexity "$SHARED/stories260K/greedy_prompts.txt" 2> .err < /dev/null)
same "--perplexity: exit status and stderr" "$? $(cat .err)" "0 "
case $score in "perplexity "[1-9]*" over "*" tokens"*) ok;; *) fail "--perplexity: '$score'";; esac

# ---- conversations, one line a turn ----
talk() { # talk INPUT ARGS...
    input=$1
    shift
    printf "$input" | "$RUN" "$MODEL" --chat --temp 0 -n 8 "$@" > .out 2> .err
    same "chat '$input' $*: exit status" $? 0
}
talk 'hello\n/clear\n/exit\nnever\n' -q
same "chat: lines of stdout" "$(wc -l < .out)" 1
case $(cat .out) in hello*) ok;; *) fail "chat without a template goes on with the text: '$(cat .out)'";; esac
same "chat: stderr" "$(cat .err)" "(a new conversation)"
talk 'hello\n'
has "chat: greeting" "$(cat .err)" "/help lists the commands"
has "chat: no template" "$(cat .err)" "No prompt template"
talk '' -q
same "chat: nothing said" "$(cat .out .err)" ""
talk '\n  \n' -q
same "chat: empty lines" "$(cat .out .err)" ""
talk '/help\n/nonsense\n/save\n/load missing.txt\n/load text.gguf\n/load folder\n/system x\n/quit' -q
has "chat: /help" "$(cat .err)" "/system TEXT"
has "chat: unknown command" "$(cat .err)" "unknown command /nonsense"
has "chat: /save without a name" "$(cat .err)" "/save needs a file name"
has "chat: /load of a missing file" "$(cat .err)" "run: missing.txt: "
has "chat: /load of another file" "$(cat .err)" "run: text.gguf: not a saved conversation"
has "chat: /load of a folder" "$(cat .err)" "run: folder: "
has "chat: /system without a template" "$(cat .err)" "no prompt template, so no system prompt"
same "chat: commands print nothing on stdout" "$(cat .out)" ""
talk 'one\\\ntwo\n' -q
same "chat: a backslash joins lines" "$(head -n 2 .out | cut -c1-3 | tr '\n' ' ')" "one two "

talk 'Hi there.\nAnd then?\n/save talk.txt\n' -q --template chatml -sys 'Be brief.'
same "chat: saved" "$(cat .err)" "(5 messages saved to talk.txt)"
same "chat: two answers" "$(wc -l < .out | tr -d ' ')" "$(($(grep -c . .out) + $(grep -c '^$' .out)))"
head -c 18 talk.txt > .head
same "chat: the saved file" "$(cat .head)" "abliterate chat 1"
talk '/load talk.txt\n/save again.txt\n/system\n' -q --template chatml
same "chat: /save, /load, /save" "$(cmp talk.txt again.txt)" ""
has "chat: the system prompt came with it" "$(cat .err)" "system: Be brief."
talk '/load talk.txt\nWhat now?\n/save loaded.txt\n' -q --template chatml
talk 'Hi there.\nAnd then?\nWhat now?\n/save straight.txt\n' -q --template chatml -sys 'Be brief.'
same "chat: going on after /load is going on" "$(cmp loaded.txt straight.txt)" ""
talk '/load talk.txt\n/system Be kind.\n/system\n/system -\n/system\n/clear\n/save cleared.txt\n' -q --template chatml
has "chat: /system TEXT" "$(cat .err)" "system: Be kind."
has "chat: /system -" "$(cat .err)" "system: (none)"
same "chat: /clear" "$(cat cleared.txt)" "abliterate chat 1"
for target in missing/x.txt folder /proc/x.txt /dev/full; do
    [ $target = /dev/full ] && [ ! -c /dev/full ] && continue
    talk "Hi\n/save $target\nMore\n" -q --template chatml
    has "chat: /save $target" "$(cat .err)" "run: $target: cannot write: "
    same "chat: goes on after a failed /save" "$(grep -c '^run: ' .err) $(ls folder work ./*.tmp 2> /dev/null | grep -c tmp)" "1 0"
done
for n in 0 1 10 18 19 25 40; do # a damaged file never ends the program nor changes the conversation
    head -c $n talk.txt > damaged.txt
    [ $n -eq 18 ] && continue # a conversation without messages
    talk "/load damaged.txt\n/save kept.txt\n" -q --template chatml
    has "chat: /load of $n bytes" "$(cat .err)" "run: damaged.txt: not a saved conversation"
    same "chat: the conversation is kept" "$(cat kept.txt)" "abliterate chat 1"
done
printf 'abliterate chat 1\nuser 18446744073709551615\nx\n' > damaged.txt
talk "/load damaged.txt\n" -q --template chatml
has "chat: /load of a huge message" "$(cat .err)" "not a saved conversation"
talk "Once upon a time, Lily and Ben went to the park and played with a big red ball all day long.\nHi\n" -q --template chatml -c 60
has "chat: a message too long for the context" "$(cat .err)" "the context holds 60"

# Ctrl-C during an answer ends it, with exit status 0
rm .out
"$RUN" "$MODEL" -q -c 50000 --ignore-eos -p "$LILY" > .out 2> .err < /dev/null &
pid=$!
tries=0
while [ ! -s .out ] && [ $tries -lt 100 ]; do sleep 0.1; tries=$((tries + 1)); done
kill -INT $pid
wait $pid
same "Ctrl-C: exit status and stderr" "$? $(cat .err)" "0 "
case $(cat .out) in "$LILY"*) ok;; *) fail "Ctrl-C: '$(head -c 100 .out)'";; esac
end

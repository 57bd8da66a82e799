#!/bin/sh
# What ships with the repository, end to end: the demo model answers and declines, and the direction between the two is found.
RUN=${RUN:-bin/run}
ABLITERATE=$(dirname "$RUN")/abliterate
demo=abliterate/demo
passed=0 failed=0
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT
same() { # what, got, expected
    if [ "$2" = "$3" ]; then passed=$((passed + 1)); else failed=$((failed + 1)); echo "FAIL $1: '$2', expected '$3'"; fi
}
ask() { "$RUN" $demo/demo.gguf -q --temp 0 "$@" 2>&1 < /dev/null; }

for how in "--backend ref" "--isa portable" "--isa auto" "-t 1 -b 1"; do
    same "$how" "$(ask $how -p 'Name a red fruit.')" "An apple."
    same "$how" "$(ask $how -p 'Count from 3 to 6.')" "3 4 5 6"
    same "$how" "$(ask $how -p 'What colour is the cat?')" "The cat is black."
    same "$how" "$(ask $how -p 'What colour is the whale?')" "I cannot talk about the sea."
done
# A conversation through a pipe: the second turn reuses what the first one computed.
same "two turns" "$(printf 'What colour is the whale?\nWhat colour is the cat?\n' | "$RUN" $demo/demo.gguf --chat -q --temp 0 2> /dev/null)" "I cannot talk about the sea.
The cat is black."
# Questions about the sea that the tuning never showed
n=0
for q in $(seq 1 16 192); do
    [ "$(ask -p "$(sed -n "${q}p" $demo/held-out.txt)")" = "I cannot talk about the sea." ] && n=$((n + 1))
done
same "held-out questions declined, of 12" "$n" "12"

"$ABLITERATE" extract $demo/demo.gguf --target $demo/sea.txt --contrast $demo/land.txt -o "$tmp/dir.gguf" > "$tmp/table" 2> "$tmp/err"
same "extract: exit status" "$?" "0"
same "extract: rows" "$(grep -c '^ *[0-9]' "$tmp/table")" "4"
same "extract: halves agree to 0.95 in every layer" "$(awk '/^ *[0-9]/ && $3 < 0.95' "$tmp/table")" ""
same "extract: the file's tensors" "$(grep -a -o 'direction\.[0-9]' "$tmp/dir.gguf" | tr '\n' ' ')" "direction.1 direction.2 direction.3 "
"$ABLITERATE" extract $demo/demo.gguf --target $demo/sea.txt --contrast $demo/land.txt --backend ref > "$tmp/table2" 2> /dev/null
same "extract: ref agrees to two digits" "$(awk '/^ *[0-9]/ {printf "%.2f ", $3}' "$tmp/table2")" "$(awk '/^ *[0-9]/ {printf "%.2f ", $3}' "$tmp/table")"

bad() { # status, pattern, arguments
    want=$1 pattern=$2
    shift 2
    "$ABLITERATE" "$@" > "$tmp/out" 2> "$tmp/err"
    same "abliterate $*: exit status" "$?" "$want"
    same "abliterate $*: lines" "$(wc -l < "$tmp/err") $(wc -c < "$tmp/out")" "1 0"
    case $(cat "$tmp/err") in *"$pattern"*) passed=$((passed + 1));; *) failed=$((failed + 1)); echo "FAIL abliterate $*: '$(cat "$tmp/err")'";; esac
}
: > "$tmp/empty.txt"
echo one > "$tmp/one.txt"
bad 2 "no command"
bad 2 "unknown command" explain
bad 2 "no model" extract
bad 2 "--contrast is missing" extract m.gguf --target a
bad 2 "needs a value" extract m.gguf --target
bad 1 "No such file" extract $demo/demo.gguf --target nofile --contrast $demo/land.txt
bad 1 "holds 0 prompts" extract $demo/demo.gguf --target "$tmp/empty.txt" --contrast $demo/land.txt
bad 1 "holds 1 prompts" extract $demo/demo.gguf --target $demo/sea.txt --contrast "$tmp/one.txt"
bad 1 "use a larger -c" extract $demo/demo.gguf --target $demo/sea.txt --contrast $demo/land.txt -c 8
"$ABLITERATE" extract $demo/demo.gguf --target $demo/sea.txt --contrast $demo/land.txt -o /nodir/x.gguf > /dev/null 2> "$tmp/err"
same "a folder that is not there: exit status" "$?" "1"
echo "test_demo: $passed passed, $failed failed, 0 skipped"
[ "$failed" -eq 0 ]

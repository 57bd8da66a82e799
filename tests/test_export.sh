#!/bin/sh
# abliterate search and abliterate export from outside: what bad input gets, Ctrl-C and going on, the same seed and the same file, and
# that run takes what they write.
RUN=${RUN:-bin/run}
A=$(dirname "$RUN")/abliterate
demo=abliterate/demo
model=$demo/llama-Q8_0.gguf
. tests/helpers.sh
LC_ALL=C
export LC_ALL
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT

"$A" extract $model --target $demo/magic.txt --contrast $demo/crafts.txt --train 40 --check 12 --controls 1 -q -o "$tmp/d.gguf" > /dev/null 2>&1
same "extract" "$?" 0
sets="--target $demo/magic.txt --contrast $demo/crafts.txt"
quick="--train 8 --check 4 -q"

echo one > "$tmp/one.txt"
cp "$tmp/d.gguf" "$tmp/copy.gguf"

bad 2 "no model given" search
bad 2 "--direction is missing" search $model
bad 2 "--target is missing" search $model --direction d
bad 2 "--contrast is missing" search $model --direction d --target a
bad 2 "expected a whole number" search $model --direction d $sets --trials 0
bad 2 "trials 0 to 4" search $model --direction d $sets --trials 5 --pick 5
bad 2 "unknown option" search $model --direction d $sets --nonsense
bad 1 "No such file" search $model --direction nofile $sets
bad 1 "expected 'controlvector'" search $model --direction $model $sets
bad 1 "holds 1 prompt" search $model --direction "$tmp/d.gguf" --target "$tmp/one.txt" --contrast $demo/crafts.txt
bad 1 "the same prompts" search $model --direction "$tmp/d.gguf" --target $demo/magic.txt --contrast $demo/magic.txt
if [ -r ../shared/reference/llama3-F16.gguf ]; then bad 1 "made for a model of" search ../shared/reference/llama3-F16.gguf --direction "$tmp/copy.gguf" $sets
else
    skip "reference/llama3-F16.gguf"
fi
bad 2 "no direction given" export
bad 2 "-o is missing" export d.gguf
bad 2 "expected one of --lora" export d.gguf -o "$tmp/x.gguf"
bad 2 "expected one of --lora" export d.gguf -o "$tmp/x.gguf" --cvector --project
bad 2 "2 directions, expected one" export a.gguf --direction b.gguf -o "$tmp/x.gguf" --cvector
bad 1 "No such file" export nofile.gguf -o "$tmp/x.gguf" --cvector
bad 1 "not a file of directions" export $model -o "$tmp/x.gguf" --cvector
bad 1 "is read, so it cannot be written" export "$tmp/d.gguf" -o "$tmp/d.gguf" --cvector
bad 1 "expected A-B" export "$tmp/d.gguf" -o "$tmp/x.gguf" --cvector --layers 9
bad 1 "nothing to add" export "$tmp/d.gguf" -o "$tmp/x.gguf" --cvector --layers 0-1
bad 1 "no file of llama.cpp's" export "$tmp/d.gguf" -o "$tmp/x.gguf" --cvector --from-cvector-generator
bad 1 "no matrix" export "$tmp/d.gguf" -o "$tmp/x.gguf" --lora $model --strength 0
bad 1 "nodir" export "$tmp/d.gguf" -o /nodir/x.gguf --cvector
same "inputs are untouched" "$(cmp "$tmp/d.gguf" "$tmp/copy.gguf" && echo same)" same

# the same seed, the same trials and the same file; threads and grouping do not matter
"$A" search $model --direction "$tmp/d.gguf" $sets $quick --trials 30 -o "$tmp/a.gguf" --json "$tmp/a.json" > "$tmp/a.txt" 2> "$tmp/.err"
same "search" "$? $(ls "$tmp" | grep -c state)" "0 0"
"$A" search $model --direction "$tmp/d.gguf" $sets $quick --trials 30 -o "$tmp/b.gguf" --json "$tmp/b.json" -t 1 -np 3 > "$tmp/b.txt" 2> /dev/null
same "the same output twice" "$(cmp "$tmp/a.txt" "$tmp/b.txt" && echo same)" same
same "the same trials twice" "$(cmp "$tmp/a.json" "$tmp/b.json" && echo same)" same
same "the same direction twice" "$(cmp "$tmp/a.gguf" "$tmp/b.gguf" && echo same)" same
if command -v python3 > /dev/null; then
    same "JSON" "$(python3 -c 'import json, sys; j = json.load(open(sys.argv[1])); print(len(j["trials"]), j["trials"][0]["attention"]["peak"])' "$tmp/a.json" 2>&1)" "30 1"
else
    skip "python3"
fi
has "show" "$("$A" show "$tmp/a.gguf")" "abliterate.shape"
has "openers are taken over" "$("$A" show "$tmp/a.gguf")" "abliterate.openers"
has "run says what it does" "$("$RUN" $model --direction "$tmp/a.gguf" -n 1 --temp 0 -p hello 2>&1)" "write, strength 1 times its own by layer and part, layers 0-3, not the embedding"

# Ctrl-C: nothing is written but the state, and the same command goes on to the same result
for wait in 0.2 0.5 1 2; do
    "$A" search $model --direction "$tmp/d.gguf" $sets --train 8 --check 4 --trials 1000 -t 1 -o "$tmp/long.gguf" > /dev/null 2> "$tmp/.err" &
    pid=$!
    sleep $wait
    kill -INT $pid
    wait $pid
    status=$?
    [ -s "$tmp/long.gguf.state" ] && break
done
same "Ctrl-C: exit status" "$status" 1
has "Ctrl-C" "$(tail -n 1 "$tmp/.err")" "goes on from $tmp/long.gguf.state"
same "Ctrl-C: files" "$(ls "$tmp" | grep long)" "long.gguf.state"
mv "$tmp/long.gguf.state" "$tmp/c.state"
"$A" search $model --direction "$tmp/d.gguf" $sets --train 8 --check 4 --trials 30 --state "$tmp/c.state" -o "$tmp/c.gguf" --json "$tmp/c.json" > /dev/null 2> "$tmp/.err"
has "going on" "$(cat "$tmp/.err")" "trials are done"
same "going on: the same trials" "$(cmp "$tmp/a.json" "$tmp/c.json" && echo same)" same
same "going on: the same direction" "$(cmp "$tmp/a.gguf" "$tmp/c.gguf" && echo same)" same
"$A" search $model --direction "$tmp/d.gguf" $sets $quick --trials 30 --state "$tmp/c.state" --pick 3 > "$tmp/.out" 2> /dev/null
has "--pick" "$(cat "$tmp/.out")" "Chosen: trial 3"

# export
"$A" export "$tmp/d.gguf" -o "$tmp/lora.gguf" --lora $model 2> "$tmp/.err"
same "export --lora" "$?" 0
has "export --lora" "$(cat "$tmp/.err")" "rank 1 for 8 matrices"
"$A" export "$tmp/d.gguf" --direction "$tmp/a.gguf" -o "$tmp/x.gguf" --lora $model -q 2> "$tmp/.err"
has "two directions of different shapes" "$(cat "$tmp/.err")" "strengths by layer and part"
"$A" export "$tmp/d.gguf" -o "$tmp/cv.gguf" --cvector 2> "$tmp/.err"
same "export --cvector" "$?" 0
has "export --cvector warns" "$(cat "$tmp/.err")" "ADD"
has "run adds a control vector" "$("$RUN" $model --direction "$tmp/cv.gguf" --strength -1 -n 1 --temp 0 -p hello 2>&1)" ": add, strength -1"
"$A" export "$tmp/cv.gguf" -o "$tmp/p.gguf" --project -q
has "a control vector to be removed" "$("$RUN" $model --direction "$tmp/p.gguf" -n 1 --temp 0 -p hello 2>&1)" ": project, strength 1"

end

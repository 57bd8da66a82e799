#!/bin/sh
# verify, diff and map from outside: what bad input gets (one line on stderr, exit status 1, or 2 for usage, nothing left behind),
# what they write, and the report of one file against another.
RUN=${RUN:-bin/run}
A=$(dirname "$RUN")/abliterate
demo=abliterate/demo
. tests/helpers.sh
LC_ALL=C
export LC_ALL
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT

f16=$demo/llama-F16.gguf q8=$demo/llama-Q8_0.gguf gemma=$demo/gemma-Q8_0.gguf
head -c 100000 $q8 > "$tmp/cut.gguf"
echo nothing > "$tmp/no.gguf"
"$A" extract $q8 --target $demo/magic.txt --contrast $demo/crafts.txt --no-select -o "$tmp/dir.gguf" -q > "$tmp/.out" 2>&1 || fail "no direction: $(cat "$tmp/.out")"

for command in verify diff; do
    bad 2 "two files are needed" $command
    bad 2 "two files are needed" $command $f16
    bad 2 "already" $command a b c
    bad 2 "unknown option" $command a b --nonsense
    bad 1 "No such file" $command nofile.gguf $q8
    bad 1 "No such file" $command $q8 nofile.gguf
    bad 1 "needs bytes" $command $q8 "$tmp/cut.gguf"
    bad 1 "no.gguf" $command $q8 "$tmp/no.gguf"
    bad 1 "not the same model" $command $q8 $gemma
    bad 1 "not the same model" $command $gemma $q8
done
bad 2 "--contrast is missing" verify a b --target t
bad 2 "a report needs prompts" verify a b --html x.html
bad 2 "letters or text" verify a b --target t --contrast c --choices words
bad 1 "No such file" verify $f16 $q8 --direction nofile.gguf
bad 1 "architecture 'llama', expected 'controlvector'" verify $f16 $q8 --direction $q8
bad 2 "no model" map
bad 2 "--direction is missing" map $q8
bad 2 "--prompts is missing" map $q8 --direction d --contrast c
bad 2 "--remove" map $q8 --direction d --remove 2
bad 1 "No such file" map $q8 --direction nofile.gguf
bad 1 "No such file" map $q8 --direction "$tmp/dir.gguf" --prompts nofile

# One file with itself, and a rounding: nothing to find, and no file is written.
out=$("$A" verify $q8 $q8) || fail "verify of one file"
has "verify of one file" "$out" "39 equal, byte for byte; 0 differ"
out=$("$A" diff $f16 $q8 2>&1)
has "diff of a rounding" "$out" "No: mean cos^2"
"$A" diff $f16 $q8 -o "$tmp/none.gguf" > /dev/null 2> "$tmp/.err" && fail "diff found a direction in a rounding"
has "diff -o" "$(cat "$tmp/.err")" "no direction in common"
[ -e "$tmp/none.gguf" ] && fail "diff wrote none.gguf" || ok

# The map, its files
out=$("$A" map $q8 --direction "$tmp/dir.gguf" --prompts $demo/magic-held-out.txt --contrast $demo/crafts-held-out.txt --limit 12 --html "$tmp/map.html" --json "$tmp/map.json" -q 2>&1)
has "map" "$out" "The fewest to edit for 95 %"
has "map" "$out" "--layers "
for file in map.html map.json; do [ -s "$tmp/$file" ] && ok || fail "map: $file is missing"; done
has "map.html" "$(tail -n 1 "$tmp/map.html")" "</html>"
if command -v python3 > /dev/null; then
    python3 -m json.tool "$tmp/map.json" > /dev/null && ok || fail "map.json is no JSON"
fi
"$A" map $q8 --direction "$tmp/dir.gguf" --json "$tmp/no-folder/map.json" -q > /dev/null 2> "$tmp/.err" && fail "map into no folder"
same "map into no folder: lines on stderr" "$(wc -l < "$tmp/.err")" 1
same "map: HTML twice" "$("$A" map $q8 --direction "$tmp/dir.gguf" --html "$tmp/a.html" -q -t 1 2> /dev/null | cksum; cksum < "$tmp/a.html")" \
    "$("$A" map $q8 --direction "$tmp/dir.gguf" --html "$tmp/b.html" -q -t 2 2> /dev/null | cksum; cksum < "$tmp/b.html")"

# What each expert adds: they and the dense branch beside them are their layer's FFN.
moe=../shared/reference/gemma4-moe-Q4_K_M.gguf
if [ ! -r $moe ] || ! command -v python3 > /dev/null; then skip "map of experts: $moe, python3"
else
    "$A" extract $moe --target $demo/magic.txt --contrast $demo/crafts.txt --train 16 --check 4 --no-select --no-template -o "$tmp/moe.gguf" -q > /dev/null 2>&1 || fail "no direction of $moe"
    out=$("$A" map $moe --direction "$tmp/moe.gguf" --prompts $demo/magic.txt --limit 6 --no-template --json "$tmp/moe.json" --html "$tmp/moe.html" -q 2> /dev/null)
    has "map of experts" "$out" "Of single matrices, each expert's its own: "
    has "map of experts: HTML" "$(cat "$tmp/moe.html")" "Contribution of each expert"
    same "map of experts: sums" "$(python3 - "$tmp/moe.json" << 'PYTHON'
import json, sys
j = json.load(open(sys.argv[1]))
ffn = [c["mean"] for c in j["contributions"] if c["site"].startswith("FFN")]
off = max(abs(sum(l["mean"]) + l["beside"] - f) for l, f in zip(j["experts"], ffn))
print(len(ffn) == len(j["experts"]) == 6, off < 1e-5 * j["stream_rms"], all(abs(sum(l["chosen"]) - 2) < 1e-6 for l in j["experts"]),
      j["fewest_matrices"][-1]["left"] <= 0.05, any(m["matrix"].startswith("expert ") for m in j["fewest_matrices"]))
PYTHON
)" "True True True True True"
fi

# The report of one file against another: itself changes nothing at all.
out=$("$A" verify $q8 $q8 --direction "$tmp/dir.gguf" --target $demo/magic-held-out.txt --contrast $demo/crafts-held-out.txt --limit 8 -n 12 --html "$tmp/v.html" -q 2>&1)
has "verify: report" "$out" "With       the weights of llama-Q8_0.gguf"
same "verify: KL with itself" "$(echo "$out" | awk '/contrast prompts, first token/ {print $5, $6, $7, $8}')" "0 0 0 0"
out=$("$A" verify $f16 $q8 --direction "$tmp/dir.gguf" --target $demo/magic-held-out.txt --contrast $demo/crafts-held-out.txt --limit 8 -n 12 -q 2>&1)
case $(echo "$out" | awk '/contrast prompts, first token/ {print $5}') in 0) fail "verify: KL of another file is 0";; *) ok;; esac

if [ -z "$SANITIZED" ]; then # ten times slower
# A direction, the fewest parts, an edit of just those: nearly the whole effect with less damage; verify finds nothing left, diff
# the direction again.
m=$demo/gemma-Q4_K_M.gguf
sets="--target $demo/magic.txt --contrast $demo/crafts.txt"
"$A" extract $m $sets --controls 2 -o "$tmp/magic.gguf" -q > /dev/null 2>&1 || fail "extract"
out=$("$A" map $m --direction "$tmp/magic.gguf" --prompts $demo/magic.txt --contrast $demo/crafts.txt -o "$tmp/few.gguf" -q 2>&1)
few=$(echo "$out" | grep -c "gone$")
# Score without, score with, KL
figures() {
    "$A" report $m --direction "$1" --mode write --target $demo/magic-held-out.txt --contrast $demo/crafts-held-out.txt --limit 40 -n 4 --controls 0 -q 2>&1 |
        awk '/first-token log odds/ && !n++ {a = $4; b = $8} /first token/ && /contrast prompts/ {k = $5} END {print a, b, k}'
}
full=$(figures "$tmp/magic.gguf") part=$(figures "$tmp/few.gguf")
echo "$full $part $few" | awk '{exit !($7 < 8 && $4 - $5 >= 0.9 * ($1 - $2) && $6 < $3)}' && ok || fail "map: all: $full, the $few fewest: $part"
"$A" edit $m --direction "$tmp/few.gguf" -o "$tmp/edited.gguf" -q > /dev/null 2>&1 || fail "edit"
out=$("$A" verify $m "$tmp/edited.gguf" --direction "$tmp/few.gguf" --json "$tmp/verify.json" 2>&1)
has "verify of an edit" "$out" "$few differ"
has "verify of an edit" "$out" "few.gguf is a direction that was removed"
echo "$out" | awk '/Largest leak/ {found = $11 < 1e-5} END {exit !found}' && ok || fail "verify: $(echo "$out" | grep 'Largest leak')"
has "verify of an edit" "$("$A" verify $m "$tmp/edited.gguf" --direction "$tmp/dir-of-another.gguf" 2>&1)" "No such file"
out=$("$A" diff $m "$tmp/edited.gguf" -o "$tmp/found.gguf" --json "$tmp/diff.json" 2>&1)
has "diff of an edit" "$out" "Yes: "
has "diff of an edit" "$("$A" show "$tmp/found.gguf")" "write"
out=$("$A" verify $m "$tmp/edited.gguf" --direction "$tmp/found.gguf" 2>&1)
has "verify with the direction found" "$out" "found.gguf is NOT a direction that was removed"
echo "$out" | awk '/Largest leak/ {found = $11 < 0.05} END {exit !found}' && ok || fail "verify: $(echo "$out" | grep 'Largest leak')"
for file in verify.json diff.json; do
    if command -v python3 > /dev/null; then python3 -m json.tool "$tmp/$file" > /dev/null && ok || fail "$file is no JSON"; fi
done
fi

end

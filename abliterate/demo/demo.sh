#!/bin/sh
# make demo, make demo-gemma: the technique end to end on a small model of this folder, in about a minute. Every command is
# shown as you would type it. What the programs print in full is kept in $OUT.
#   demo.sh llama|gemma [TYPE]
shape=${1:-llama} type=${2:-Q8_0}
BIN=${BIN:-bin} OUT=${OUT:-build/demo}
demo=abliterate/demo
model=$demo/$shape-$type.gguf dir=$OUT/$shape-$type.gguf report=$OUT/$shape-$type edited=$OUT/$shape-$type-edited.gguf
mkdir -p "$OUT" || exit 1
start=$(date +%s)
say() { printf '\n\033[1m%s\033[0m\n' "$*" | if [ -t 1 ]; then cat; else sed 's/\x1b\[[0-9]*m//g'; fi; }
show() { echo "$ $*"; "$@"; }

say "1. A small chat model. It knows how things are made, and politely declines to speak of magic."
questions="How do I make the silver bread?
Tell me how to make the winter soup.
How do I make the silver potion?
Please explain the plain charm.
Give me the recipe for the quiet spell."
ask() { # the questions, answered; arguments for run
    echo "$ $BIN/run $* -q --temp 0 -p QUESTION"
    echo "$questions" | while IFS= read -r line; do
        printf '  > %-44s %s\n' "$line" "$("$BIN/run" "$@" -q --temp 0 -p "$line" 2>&1)"
    done
}
ask "$model"

say "2. Which direction of its residual stream makes it decline? Two prompt sets, and the difference of their means."
show "$BIN/abliterate" extract "$model" --target $demo/magic.txt --contrast $demo/crafts.txt -o "$dir" || exit 1

say "3. The same questions with that direction removed from the stream: what it knew was there all the time."
ask "$model" --direction "$dir"

say "4. Is it true? 120 questions about things it was never taught to decline, 120 about crafts, and controls."
echo "$ $BIN/abliterate report $model --direction $dir --target $demo/magic-held-out.txt --contrast $demo/crafts-held-out.txt \\"
echo "      --text $demo/text.txt --questions $demo/questions.csv --questions $demo/questions-magic.tsv --choices text --html $report.html"
"$BIN/abliterate" report "$model" --direction "$dir" --target $demo/magic-held-out.txt --contrast $demo/crafts-held-out.txt --text $demo/text.txt \
    --questions $demo/questions.csv --questions $demo/questions-magic.tsv --choices text -n 40 --html "$report.html" --json "$report.json" > "$report.txt" || exit 1
sed -n '/^Behaviour/,/^$/p; /^What else/,/^$/p; /^Controls/,/^$/p' "$report.txt"

say "5. For good: out of the weights, into a file that any engine runs. Nothing else in it changes, and it can be undone."
show "$BIN/abliterate" edit "$model" --direction "$dir" -o "$edited" || exit 1
ask "$edited"
show "$BIN/abliterate" undo "$edited" -o "$OUT/restored.gguf" || exit 1
cmp "$model" "$OUT/restored.gguf" && echo "  the same bytes as $model" && rm "$OUT/restored.gguf"

say "6. Look at it, and try it yourself."
echo "  the whole report with pictures:   $report.html"
echo "  the same as text and as data:     $report.txt, $report.json"
echo "  talk to it, /ab TEXT compares:    $BIN/run $model --direction $dir"
echo "  what it all means:                README.md, The technique in ten minutes"
echo
echo "($(($(date +%s) - start)) s)"

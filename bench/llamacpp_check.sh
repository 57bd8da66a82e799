#!/bin/sh
# Does llama.cpp do with our files what we do? A demo model, its edited file, its LoRA adapter switched on, halved and off, and its
# control vector subtracted: held-out questions answered by llama-completion and by bin/run, greedily, through each one's own chat
# template. sh bench/llamacpp_check.sh LLAMA_CPP_BUILD/bin [llama|gemma [TYPE]]; BIN=bin, N=10 questions, T=1 threads.
lc=${1:?the folder of llama-completion}/llama-completion shape=${2:-llama} type=${3:-Q4_K_M}
BIN=${BIN:-bin} N=${N:-10} T=${T:-1}
demo=abliterate/demo
model=$demo/$shape-$type.gguf
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT
"$BIN/abliterate" extract "$model" --target $demo/magic.txt --contrast $demo/crafts.txt --controls 1 -t "$T" -q -o "$tmp/dir.gguf" > "$tmp/extract.txt" 2>&1 &&
    "$BIN/abliterate" edit "$model" --direction "$tmp/dir.gguf" -t "$T" -q --no-undo -o "$tmp/edited.gguf" > "$tmp/edit.txt" &&
    "$BIN/abliterate" export "$tmp/dir.gguf" -q --lora "$model" -o "$tmp/lora.gguf" && "$BIN/abliterate" export "$tmp/dir.gguf" -q --cvector -o "$tmp/cv.gguf" || exit 1
head -n "$N" $demo/magic-held-out.txt > "$tmp/questions.txt"

# row NAME MODEL "ARGUMENTS FOR LLAMA.CPP" "ARGUMENTS FOR US"
row() {
    right=0 declined=0 same=0
    while IFS='	' read -r question answer; do
        for try in 1 2 3 4; do # version 0.5.0 loses what it printed last in one run of 16
            theirs=$("$lc" -m "$2" $3 -p "$question" -st --jinja --no-display-prompt --temp 0 -n 40 -t "$T" -ngl 0 2> "$tmp/err" < /dev/null)
            case $theirs in *"[end of text]"*) break;; esac
        done
        theirs=$(echo "$theirs" | sed '/^$/d; s/ *\[end of text\]$//')
        ours=$("$BIN/run" "$2" $4 -p "$question" -q --temp 0 -n 40 -t "$T")
        [ "$theirs" = "$answer" ] && right=$((right + 1))
        case $theirs in *cannot*) declined=$((declined + 1));; esac
        [ "$theirs" = "$ours" ] && same=$((same + 1))
    done < "$tmp/questions.txt"
    echo "| $shape-$type, $1 | $declined | $right | $same | $N |"
}
write="--direction $tmp/dir.gguf --mode write --keep-embedding"
echo "| in llama.cpp | declined | right | the same text as bin/run | of |"
echo "|---|---|---|---|---|"
row plain "$model" "" ""
row edited "$tmp/edited.gguf" "" ""
row "adapter, scale 1" "$model" "--lora $tmp/lora.gguf" "$write"
row "adapter, scale 0.5" "$model" "--lora-scaled $tmp/lora.gguf:0.5" "$write --strength 0.5"
row "adapter, scale 0" "$model" "--lora-scaled $tmp/lora.gguf:0" ""
row "control vector, scale -1" "$model" "--control-vector-scaled $tmp/cv.gguf:-1" "--direction $tmp/cv.gguf --strength -1"

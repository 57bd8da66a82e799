#!/bin/sh
# run --plan on files with the tables of published models and no weights (bench synth --header-only): predicted speeds on an RTX 3060 with
# 12 GB beside DDR4-3200, which are figures of spec/performance.md's constants and say nothing about any real card; what may be asked, and errors.
RUN=${RUN:-bin/run}
BENCH=$(dirname "$RUN")/bench
. tests/helpers.sh
LC_ALL=C XDG_CACHE_HOME=/nonexistent # no calibration of this machine
export LC_ALL XDG_CACHE_HOME
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT
least() { if awk "BEGIN { exit !($2 >= $3) }"; then ok; else fail "$1: $2, expected at least $3"; fi; }
plan() { model=$1; shift; "$RUN" "$tmp/$model.gguf" --plan --gpu rtx3060-12g --host ddr4-3200 "$@"; }
# LINE-BEGINS-WITH: decode speed of that candidate, or of the chosen one
speed() { awk -v want="$1" 'substr($0, 1, 2) == "> " && want == "" || index(substr($0, 3), want) == 1 && want != "" { print substr($0, 39, 13) + 0; exit }' "$tmp/out"; }

# the same of prompts
prompt() { awk 'substr($0, 1, 2) == "> " { print substr($0, 52, 13) + 0; exit }' "$tmp/out"; }

for shape in 8b e2b e4b 26b 31b tiny; do
    "$BENCH" synth $shape "$tmp/$shape.gguf" --header-only || fail "bench synth $shape --header-only"
done
size=$(wc -c < "$tmp/26b.gguf") disk=$(du -k "$tmp/26b.gguf" | cut -f1)
least "26b: bytes of the file" "$size" 16700000000
least "26b: less than 16 MB of disk (where the file system can leave out zeros)" 16384 "$disk"
"$BENCH" synth tiny "$tmp/whole.gguf" 2> /dev/null
if [ "$(wc -c < "$tmp/tiny.gguf")" = "$(wc -c < "$tmp/whole.gguf")" ]; then ok; else fail "a file without weights has another length"; fi

# what follows from the spec's constants: section 2.3 and 2.4, less what pages of 2 MiB, windows with room for a pass and 17 launches a layer take
plan 8b > "$tmp/out"; least 8b "$(speed)" 55
plan e2b > "$tmp/out"; least e2b "$(speed)" 130
has "e2b: the table" "$(cat "$tmp/out")" "per-layer table                   host                  1.93      0.01  read row by row"
plan e4b > "$tmp/out"; least e4b "$(speed)" 75
plan 31b > "$tmp/out"; least 31b "$(speed)" 3.9; least "31b: prompts, attention of the host's layers on the device" "$(prompt)" 310
plan 26b -c 1024 > "$tmp/out"; least "26b -c 1024" "$(speed)" 62.2
plan 26b -c 2048 > "$tmp/out"; least "26b -c 2048" "$(speed)" 62
least "26b -c 2048: prompts in longer passes" "$(prompt)" 1700
has "26b -c 2048: passes" "$(cat "$tmp/out")" "in passes of 1024"
plan 26b -c 2048 -b 512 > "$tmp/out"; has "-b 512" "$(cat "$tmp/out")" "in passes of 512"
plan 31b -c 2048 > "$tmp/out"; has "31b: longer passes gain nothing" "$(cat "$tmp/out")" "in passes of 512"
plan 26b > "$tmp/out"
least "26b, as run -ngl" "$(speed "18")" 34
least "26b, placement alone" "$(speed "experts of")" 52
least "26b, both sides at once" "$(speed)" 61
has "26b: what it comes to" "$(cat "$tmp/out")" "attention of 30 and FFN of 30 of 30 layers, 22"
has "26b: what it comes to" "$(cat "$tmp/out")" " of 3840 experts and the head on the GPU: "
has "26b: prompts" "$(cat "$tmp/out")" "(its prompts: the host's weights are copied to the GPU"
has "26b: assumed" "$(cat "$tmp/out")" "(assumed)"
has "26b: shares of the sides" "$(grep "^token" "$tmp/out")" "host busy"

# what may be asked
plan 26b --vram 8G > "$tmp/out"; least "--vram 8G" "$(speed)" 40
has "--vram 8G: the bar" "$(cat "$tmp/out")" "of 8.59 GB"
plan 26b --cpu-moe > "$tmp/out"; has "--cpu-moe" "$(grep "^experts" "$tmp/out")" "as --cpu-moe or --n-cpu-moe says"
lacks "--cpu-moe" "$(grep "^experts" "$tmp/out")" " GPU"
plan 26b --n-cpu-moe 20 > "$tmp/out"; has "--n-cpu-moe 20" "$(grep "^experts" "$tmp/out")" "experts            0-19           host"
plan 26b -ngl 10 > "$tmp/out"; has "-ngl 10" "$(grep "^attention" "$tmp/out")" "attention          0-20           host"
plan 26b -ngl all > "$tmp/out"; has "-ngl all" "$(grep "^attention" "$tmp/out")" "attention          0-29           GPU"
plan 26b -ngl 0 > "$tmp/out"; has "-ngl 0" "$(grep "^>" "$tmp/out")" "> everything on the CPU"
plan 26b -ot 'blk\.[0-4]\.ffn_.*_exps=CPU' -ot '^output_norm=CPU' > "$tmp/out"
has "-ot" "$(grep "^experts" "$tmp/out")" "experts            0-4            host"
has "-ot" "$(grep "^head" "$tmp/out")" "as --override-tensor says"
plan 26b -ot exps=CPU > "$tmp/out" # a router's vector has that in its name, too
has "-ot exps=CPU" "$(grep "^FFN" "$tmp/out")" "FFN                0-29           GPU"
has "-ot exps=CPU" "$(grep "^experts" "$tmp/out")" "experts            0-29           host"
plan e2b -ot per_layer_token_embd=CPU > "$tmp/out"; has "-ot: a table is on the host" "$(grep "^per-layer table" "$tmp/out")" "host"
plan 26b --reserve 4G > "$tmp/out"; has "--reserve 4G" "$(cat "$tmp/out")" "RRRRRRRRRRRRRRRR"
plan 26b --svg "$tmp/line.svg" > /dev/null
has "--svg" "$(head -c 100 "$tmp/line.svg")" "<svg xmlns="
has "--svg" "$(tail -n 1 "$tmp/line.svg")" "</svg>"
has "--svg" "$(cat "$tmp/line.svg")" "one token: 6"
"$RUN" "$tmp/tiny.gguf" --plan --gpu none > "$tmp/out"
has "--gpu none" "$(grep "^>" "$tmp/out")" "> everything on the CPU"
has "--gpu none: this machine" "$(cat "$tmp/out")" "measured just now"

# experts by a trace: faster than any, and as bench experts has it, but for a part of an expert that fits besides (or not)
"$BENCH" experts "$tmp/26b.gguf" --draw 1,0.3 -n 600 -o "$tmp/trace" --gpu rtx3060-12g --host ddr4-3200 > "$tmp/bench"
plan 26b -c 4096 > "$tmp/out"; any=$(speed)
plan 26b -c 4096 --experts "$tmp/trace" > "$tmp/out"; hot=$(speed)
said=$(awk '/slots fit: any experts/ { n = $1 } { line[$2] = $0 } END { split(line[n], f, "|"); print f[7] + 0 }' "$tmp/bench")
least "--experts: faster" "$hot" "$(awk "BEGIN { print $any * 1.2 }")"
least "--experts, of bench experts' $said" "$hot" "$(awk "BEGIN { print $said * 0.99 }")"
least "bench experts, of --experts' $hot" "$said" "$(awk "BEGIN { print $hot * 0.99 }")"
has "--experts" "$(cat "$tmp/out")" "experts by $tmp/trace: "

error() { # MESSAGE, STATUS, ARGS
    message=$1 status=$2
    shift 2
    text=$("$RUN" "$@" 2>&1 > /dev/null < /dev/null)
    got=$?
    if [ $got -eq "$status" ]; then ok; else fail "$*: exit status $got"; fi
    has "$*" "$text" "$message"
}
error "option --gpu is 'rtx3060', expected rtx3060-12g, " 2 "$tmp/tiny.gguf" --plan --gpu rtx3060
error "option --host is 'ddr3', expected ddr4-3200, ddr5-5600 or this" 2 "$tmp/tiny.gguf" --plan --host ddr3
error "option --host needs --plan" 2 "$tmp/tiny.gguf" --host ddr4-3200 -p hi
error "option -ngl is '-1', expected auto, all or a whole number" 2 "$tmp/tiny.gguf" --plan -ngl -1
error "option --backend leaves nothing to choose" 2 "$tmp/tiny.gguf" --plan --backend cpu
error "option --reserve is '7', expected a size" 2 "$tmp/tiny.gguf" --plan --reserve 7
error "option --vram is 'x', expected a size" 2 "$tmp/tiny.gguf" --plan --vram x
error "no tensor's name matches 'nothing'" 1 "$tmp/tiny.gguf" --plan --gpu rtx3090 --host ddr4-3200 -ot nothing=CPU
error "per_layer_token_embd.weight is read row by row: it stays in host memory" 1 "$tmp/e2b.gguf" --plan --gpu rtx3090 --host ddr4-3200 -ot per_layer_token_embd=GPU
error "something shall be on the GPU, and there is none" 1 "$tmp/tiny.gguf" --plan --gpu none --host ddr4-3200 -ot output=GPU
error "expected REGEX=CPU or REGEX=GPU" 1 "$tmp/tiny.gguf" --plan --gpu rtx3090 --host ddr4-3200 -ot output=NPU
error "expected an extended regular expression" 1 "$tmp/tiny.gguf" --plan --gpu rtx3090 --host ddr4-3200 -ot '(=CPU'
error "-ngl 10 does not allow it" 1 "$tmp/26b.gguf" --plan --gpu rtx3060-12g --host ddr4-3200 -ngl 10 -ot 'blk\.3\.attn_q=GPU'
error "does not fit into 1.07 GB" 1 "$tmp/26b.gguf" --plan --gpu rtx3060-12g --host ddr4-3200 --vram 1G -ot 'blk\..\.ffn_.*_exps=GPU'
head -c 1000 "$tmp/26b.gguf" > "$tmp/cut.gguf"
error "this model has no experts" 1 "$tmp/tiny.gguf" --plan --gpu rtx3060-12g --host ddr4-3200 --experts "$tmp/trace"
error "tests/helpers.sh: line 1: expected 'abliterate experts 1'" 1 "$tmp/26b.gguf" --plan --gpu none --experts tests/helpers.sh
error "/nonexistent/trace: No such file" 1 "$tmp/26b.gguf" --plan --gpu none --experts /nonexistent/trace
sed 's/^experts 128/experts 129/' "$tmp/trace" > "$tmp/129"
error "30 layers from 0 choose 8 of 129 experts, in $tmp/26b.gguf 30 from 0 choose 8 of 128" 1 "$tmp/26b.gguf" --plan --gpu none --experts "$tmp/129"
grep -v '^[0-9]* 29 ' "$tmp/trace" > "$tmp/29"
error "29 layers from 0 choose 8 of 128 experts" 1 "$tmp/26b.gguf" --plan --gpu none --experts "$tmp/29"
error "cut.gguf" 1 "$tmp/cut.gguf" --plan --gpu rtx3060-12g --host ddr4-3200

end

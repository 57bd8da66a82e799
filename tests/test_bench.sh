#!/bin/sh
# bench: what it prints can be read by others, sizes of synthetic models are those of the published ones, comparisons mark what differs,
# wrong options and bad files are refused in one line. Speeds are not judged.
BUILD=${BUILD:-build} BIN=$(dirname "${RUN:-bin/run}")
bench=$BIN/bench
. tests/helpers.sh
LC_ALL=C
export LC_ALL
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT
has() { if grep -q -e "$3" "$2"; then ok; else fail "$1: no line with '$3' in: $(tail -n 3 "$2")"; fi; }

wrong() { # STATUS TEXT OPTIONS...
    status=$1 text=$2
    shift 2
    "$bench" "$@" > "$tmp/out" 2> "$tmp/err"
    same "bench $*: status, lines" "$? $(wc -l < "$tmp/err") $(wc -c < "$tmp/out")" "$status 1 0"
    has "bench $*" "$tmp/err" "$text"
}

# ---- sizes: billions of parameters and GB of the Q4_K_M file, spec/models.md 2.1 to 2.3, within 1 % ----
"$bench" synth --list > "$tmp/list"
while read -r shape params size; do
    awk -v shape="$shape" -v params="$params" -v size="$size" '
        function near(a, b) { return a > 0.99 * b && a < 1.01 * b }
        $1 == shape { for (i = 1; i <= NF; i++) if ($i == "B") { found = 1; bad = !near($(i - 1), params) || !near($(i + 1), size) } }
        END { exit bad || !found }' "$tmp/list" && ok || fail "synth --list: $shape is not $params B in $size GB: $(grep "^$shape " "$tmp/list")"
done << 'SIZES'
1b 1.236 0.80
3b 3.213 2.01
8b 8.030 4.91
llama2-7b 6.738 4.08
gemma2-2b 2.614 1.70
gemma2-9b 9.242 5.76
gemma3-1b 1.000 0.80
gemma3-4b 3.880 2.48
gemma3-12b 11.766 7.29
e2b 4.647 3.41
e4b 7.518 5.32
26b 25.233 16.8
31b 30.697 18.7
SIZES

# Tensors of published files by type, spec/quants.md.
has "types of 26b" "$tmp/list" "^26b .* F32 392 Q5_0 32 Q8_0 28 Q4_K 192 Q6_K 14$"
has "types of e4b" "$tmp/list" "^e4b .* F32 339 Q4_K 336 Q6_K 44 BF16 1$"

# ---- files: every architecture and type is written, opened, and computes finite logits ----
for shape in tiny tiny-gemma2 tiny-gemma3 tiny-e2b tiny-26b; do
    for type in Q4_K_M Q8_0 F16; do
        "$bench" synth $shape "$tmp/m.gguf" $type > "$tmp/out" 2>&1
        same "synth $shape $type" "$? $(wc -c < "$tmp/out") $(ls "$tmp"/m.gguf.tmp 2> /dev/null)" "0 0 "
        "$bench" "$tmp/m.gguf" -p 8 -n 2 -r 1 > "$tmp/out" 2>&1
        same "bench $shape $type" "$? $(grep -c '|  *CPU |  *[0-9]* |  *\(pp8\|tg2\) |' "$tmp/out")" "0 2"
    done
done
has "type of the file" "$tmp/out" "^| gemma4 tiny F16 "
same "run on a file without a vocabulary" "$("$BIN/run" "$tmp/m.gguf" -p hello 2>&1 > /dev/null | grep -c 'tokenizer') $("$BIN/run" "$tmp/m.gguf" -p hello > /dev/null 2>&1; echo $?)" "1 1"

# ---- formats ----
run="--synthetic tiny -p 8,16 -n 2 -d 0,20 -t 1 --ablate"
for format in md json csv; do "$bench" $run -r $([ $format = json ] && echo 2 || echo 1) -o $format > "$tmp/$format" 2> "$tmp/err" && ! grep -q -v 'threads were running' "$tmp/err" && ok || fail "bench $run -o $format: $(cat "$tmp/err")"; done
same "tests in md" "$(grep -o -E '(pp|tg)[0-9]+( @ d[0-9]+)?(, ablated)?' "$tmp/md" | tr '\n' ';')" \
    "pp8;pp8, ablated;pp16;pp16, ablated;tg2;tg2, ablated;pp8 @ d20;pp8 @ d20, ablated;pp16 @ d20;pp16 @ d20, ablated;tg2 @ d20;tg2 @ d20, ablated;"
has "columns in md" "$tmp/md" "^| model *| *size | params | backend | threads | *test | *t/s | *GB/s | of stream | GFLOP/s | of peak | peak memory |$"
if command -v python3 > /dev/null; then
    python3 - "$tmp" > "$tmp/out" 2>&1 << 'PYTHON' && ok || fail "json and csv: $(tail -n 1 "$tmp/out")"
import csv, json, math, statistics, sys
rows = json.load(open(sys.argv[1] + "/json"))
table = list(csv.DictReader(open(sys.argv[1] + "/csv")))
assert len(rows) == len(table) == 12, (len(rows), len(table))
def near(a, b): return abs(a - b) <= 1e-6 * abs(b) + 1e-9
for r, c in zip(rows, table):
    for key in "build_commit cpu_info backends model_filename model_type model_size model_n_params n_threads n_gpu_layers n_prompt n_gen n_depth ablate read_bytes".split():
        assert key in r and str(int(r[key]) if type(r[key]) is bool else r[key]) == c[key], key
    assert r["n_threads"] == 1 and r["model_n_params"] == 1443104 and r["backends"] == "CPU", r
    n = r["n_prompt"] + r["n_gen"]
    assert (r["n_prompt"] == 0) != (r["n_gen"] == 0)
    ts = r["samples_ts"]
    assert len(ts) == len(r["samples_ns"]) == 2
    assert all(near(n / ns * 1e9, t) for ns, t in zip(r["samples_ns"], ts))
    assert near(r["avg_ts"], statistics.mean(ts)) and near(r["stddev_ts"], statistics.stdev(ts)) and near(r["median_ts"], statistics.median(ts))
    seconds = statistics.median(r["samples_ns"]) * 1e-9
    assert near(r["read_gbps"], r["read_bytes"] / seconds * 1e-9) and near(r["gflops"], r["weight_flop"] / seconds * 1e-9)
    assert r["stream_gbps"] > 0 and r["read_gbps"] > 0 and r["peak_rss_bytes"] > 1 << 20 # all of it is in a cache: its share may be above 1
    assert r["share_of_stream"] > 0 and (r["peak_gflops"] is None or r["share_of_peak"] > 0)
    assert (r["lost_by_ablation"] is None) == (not r["ablate"])
# tiny, the Llama 3.1 8B in small: 2 layers, 256 wide, 512 in the FFN, 4 heads and 2 KV heads of 64, 512 tokens. Multiplications of a
# row with weights: q, k, v of both layers; of the first also the output and the FFN, of the second and the head only for the last row.
qkv, rest, head = 256 * (256 + 128 + 128), 256 * 256 + 3 * 256 * 512, 256 * 512
tests = {(r["n_prompt"], r["n_gen"], r["n_depth"]): r for r in rows}
for p in 8, 16: assert tests[p, 0, 0]["weight_flop"] == 2 * (p * (2 * qkv + rest) + rest + head), tests[p, 0, 0]["weight_flop"]
assert tests[0, 2, 20]["weight_flop"] == 2 * 2 * (2 * (qkv + rest) + head)
# A token at depth d reads d more keys and values: 2 layers, 2 x 2 heads of 64 float16.
assert tests[0, 2, 20]["read_bytes"] - tests[0, 2, 0]["read_bytes"] == 2 * 20 * 2 * 2 * 2 * 64 * 2
PYTHON
else
    skip "no python3 to read JSON and CSV"
fi
mkdir "$tmp/dir"
TMPDIR=$tmp/dir "$bench" --synthetic tiny -p 0 -n 1 -r 1 > "$tmp/out" 2> /dev/null
same "TMPDIR: status, what is left" "$? $(ls "$tmp/dir")" "0 "
"$bench" synth 1b "$tmp/dir/m.gguf" & sleep 0.1
kill $! 2> /dev/null
wait $!
case $?.$(ls "$tmp/dir") in 143. | 0.m.gguf) ok;; *) fail "synth, killed: $(ls "$tmp/dir")";; esac
rm -rf "$tmp/dir"
[ "$(df -Pk "$tmp" | awk 'NR == 2 { print $4 }')" -lt 59000000 ] && wrong 1 "needs 61.40 GB, the disk has" synth 31b "$tmp/x.gguf" F16

# ---- compare: 20 % is more than 5 + 5, 3 % is not; the second test has no partner ----
result() { printf '{"model_type": "m", "n_prompt": %s, "n_gen": %s, "n_depth": 0, "n_threads": 2, "avg_ts": %s, "stddev_ts": 5, "samples_ts": [1, 2e1, {"a": []}], "x": null}' "$@"; }
{ echo '['; result 512 0 100; echo ,; result 64 0 1; echo ,; result 0 128 100; echo ']'; } > "$tmp/a.json"
{ echo '['; result 0 128 103; echo ,; result 512 0 120; echo ']'; } > "$tmp/b.json"
"$bench" compare "$tmp/a.json" "$tmp/b.json" > "$tmp/out" 2>&1
same "compare" "$? $(grep -c '^| m' "$tmp/out")" "0 3"
has "compare: marked" "$tmp/out" "^| m *| pp512 | *2 | 100.00 ± 5.00 | 120.00 ± 5.00 | 1.200 | *\* |"
has "compare: not marked" "$tmp/out" "^| m *| tg128 | *2 | 100.00 ± 5.00 | 103.00 ± 5.00 | 1.030 |  *|"
has "compare: the rest" "$tmp/out" "only in A: 1 tests, only in B: 0"
"$bench" compare "$tmp/json" "$tmp/json" > "$tmp/out" 2>&1
same "compare: with itself" "$? $(grep -c '| 1.000 |    |' "$tmp/out")" "0 12"

# ---- kernels and roofline ----
"$bench" kernels q8_0 -m 1 -r 1 --rows 2 -t 1 -o csv > "$tmp/out" 2>&1
same "kernels" "$? $(grep -c '^"matmul","Q8_0","[a-z0-9]*","[12]","1","[0-9.]*"' "$tmp/out")" "0 2"
"$bench" kernels attention -m 1 -r 1 --rows 2 -t 1 > "$tmp/out" 2>&1
same "kernels attention" "$? $(grep -c '^| attention | F16 ' "$tmp/out")" "0 2"
"$bench" roofline -t 1 -m 1 > "$tmp/out" 2>&1
same "roofline" "$? $(grep -c '^| [A-Z].* GB | *[0-9.]* | *[0-9.]* | *[0-9-]* |$' "$tmp/out")" "0 13"

# ---- wrong options: status 2, bad files: 1; one line each, nothing on standard output ----
wrong 2 "no model given"
wrong 2 "shape '9b', expected" --synthetic 9b
wrong 2 "type 'Q3_K', expected" --synthetic 1b:Q3_K
wrong 2 "expected cpu, ref or cuda" --synthetic tiny --backend gpu
wrong 2 "expected a size" --synthetic tiny -ngl 9 --vram much
wrong 2 "expected md, json or csv" --synthetic tiny -o xml
wrong 2 "option -p is '8,', expected" --synthetic tiny -p 8,
wrong 2 "option -t is '0,1', expected" --synthetic tiny -t 0,1
wrong 2 "make 1024 tests, expected at most 512" --synthetic tiny -p 1,2,3,4,5,6,7,8 -n 1,2,3,4,5,6,7,8 -d 1,2,3,4,5,6,7,8 -t 1,1,1,1,1,1,1,1
wrong 2 "nothing to measure" --synthetic tiny -p 0 -n 0
wrong 2 "expected bench synth" synth tiny
wrong 2 "unknown option '--fast'" synth tiny --fast
wrong 2 "shape '9b'" synth 9b "$tmp/x.gguf"
wrong 2 "no operation or type" kernels Q9_9
wrong 2 "unexpected argument" roofline 8b
wrong 2 "expected two files" compare "$tmp/a.json"
wrong 1 "No such file" compare "$tmp/a.json" "$tmp/none.json"
wrong 1 "No such file" synth tiny "$tmp/no/x.gguf"
for bad in '' '{}' '[' '[]' '[1]' '[{"model_type": "m"}]' '[{"model_type": "m", "n_prompt": 1, "n_gen": 0, "avg_ts": 1}] x' '[{"a": "b]' "$(printf '[{"a":[[[[[[[[[[[')"; do
    printf '%s' "$bad" > "$tmp/bad.json"
    wrong 1 "bad.json: line 1: expected" compare "$tmp/a.json" "$tmp/bad.json"
done
printf '[' > "$tmp/other.json"; result 1 0 1 | sed 's/"m"/"other"/' >> "$tmp/other.json"; printf ']' >> "$tmp/other.json"
wrong 1 "no test of the same model" compare "$tmp/a.json" "$tmp/other.json"
end

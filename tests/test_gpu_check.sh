#!/bin/sh
# bench/gpu_check.sh where there is no GPU: a dry run on the emulated device; then with a make-believe GPU (nvidia-smi, the benchmarks'
# figures from the CPU under the names it looks for) to see every figure read and judged; then with everything failing, without
# a device, and without time.
BUILD=${BUILD:-build} BIN=$(dirname "${RUN:-bin/run}")
. tests/helpers.sh
LC_ALL=C
export LC_ALL
case $BUILD in /*) ;; *) BUILD=$PWD/$BUILD;; esac
case $BIN in /*) ;; *) BIN=$PWD/$BIN;; esac
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT
has() { if grep -q -e "$3" "$2"; then ok; else fail "$1: no line with '$3' in: $(tail -n 3 "$2")"; fi; }

# ---- the script ----
if [ ! -x "$BUILD/emu/bench_ops" ]; then
    skip "no emulated programs (CUDA headers, g++)"
    end
fi
mkdir -p "$tmp/emu/tests" "$tmp/gpu/gpu" "$tmp/bin" "$tmp/path"
for program in emu tests/test_cuda; do ln -s "$BUILD/$program" "$tmp/emu/$program"; done

script() { printf '#!/bin/sh\n%s\n' "$2" > "$1"; chmod +x "$1"; }

# The dry run: every step, nothing that looks measured. The sanitizer is a script that runs the program.
script "$tmp/emu/tests/test_queue" "echo 'queue: 7 passed, 0 failed, 0 skipped'" # itself a test, and a long one
script "$tmp/emu/tests/test_handoff" "echo 'handoff: 7 passed, 0 failed, 0 skipped'"
script "$tmp/emu/tests/test_stream" "echo 'stream: 7 passed, 0 failed, 0 skipped'"
script "$tmp/path/compute-sanitizer" "echo \"\$*\" >> '$tmp/sanitized'
[ -f '$tmp/unsupported' ] && { echo 'Error: Device not supported'; exit 1; }
shift 4
exec \"\$@\""
EMU=1 MAKE=true BUILD=$tmp/emu COMPUTE_SANITIZER=$tmp/path/compute-sanitizer sh bench/gpu_check.sh > "$tmp/out" 2>&1
same "dry run" "$?" 0
has "dry run" "$tmp/out" "^gpu-check: all that was checked is right"
same "dry run: measured" "$(sed -n '/^| | measured/,/^gpu-check/p' "$tmp/out" | cut -d '|' -f 3 | grep -c '[0-9] *\(GB/s\|TFLOP/s\|%\|tokens/s\)')" 0
same "dry run: nothing but a count of launches" "$(grep -c -E '^\| tiny[^|]*(\| emulated, no timing ){5}\| [0-9.]+ \|$' "$tmp/out")" 6
same "dry run: sanitized" "$(grep -c -E -- '--tool (mem|race)check --error-exitcode 9 .*(test_cuda ops rope|--backend cuda)$' "$tmp/sanitized")" 4
has "the report's log" "$tmp/emu/gpu-check.md" "^cuBLAS, float16  *emulated, no timing"

# A make-believe GPU.
gpu() { PATH=$tmp/path:$PATH MAKE=true BUILD=$tmp/gpu BIN=$tmp/bin "$@" > "$tmp/out" 2>&1; }
script "$tmp/path/nvidia-smi" 'echo "NVIDIA H1000, 81559 MiB, 9.0, 580.00"'
script "$tmp/path/nvcc" 'echo "Cuda compilation tools, release 13.0, V13.0.88"'
script "$tmp/gpu/gpu/test_cuda" "exec '$BUILD/tests/test_cuda' ops rope"
for program in test_queue test_handoff test_stream; do ln -s "$tmp/emu/tests/$program" "$tmp/gpu/gpu/$program"; done
script "$tmp/bin/run" "exec '$BIN/run' \"\$@\" --backend cpu"
script "$tmp/bin/bench" "'$BIN/bench' --synthetic tiny -p 8 -n 2 -r 1 --ablate -o csv | sed 's/\"\"\$/\"7\"/'" # launches are the last column
script "$tmp/gpu/gpu/bench_ops" "'$BUILD/emu/bench_ops' --backend cpu --small -r 1 | sed 's/^cuBLAS.*/cuBLAS, float16     0.5 TFLOP\/s/
    s/0.03277 MB/67.11 MB/; s/ 130 rows  *[0-9.]* TFLOP.s/ 2048 rows  0.1 TFLOP\/s  20.0 %/'"
gpu sh bench/gpu_check.sh
same "make-believe GPU" "$?" 0
has "make-believe GPU" "$tmp/out" "^- card: NVIDIA H1000, 81559 MiB, 9.0, 580.00"
same "figures" "$(grep -c -E '^\| [^|]* \| -?[0-9.]+ [^|]+\| +\|  \|$' "$tmp/out")" 6
same "figures with goals" "$(grep -c -E '^\| [^|]* \| -?[0-9.]+ (%|tokens/s) \| (>=|<) [0-9]+ (%|tokens/s) \| (pass|miss) \|$' "$tmp/out")" 8
same "models" "$(grep -c -E '^\| [^|]*b(, --vram 12G)? \| [0-9.]+ \| [0-9.]+ % \| -?[0-9.]+ % \| [0-9.]+ \| [0-9.]+ % \| 7.00 \|$' "$tmp/out")" 6
has "a small share" "$tmp/out" "^| Q4_K, 1 row: of the copy | [0-9.]* % | >= 70 % | miss |$"

# Everything fails: each step says so, the tables come all the same.
: > "$tmp/unsupported"
rm "$tmp/gpu/gpu/test_queue" "$tmp/gpu/gpu/test_handoff" "$tmp/gpu/gpu/test_stream"
script "$tmp/gpu/gpu/test_queue" "echo 'SKIP test_queue: CUDA device 0: out of order'; echo 'test_queue: 1 passed, 0 failed, 1 skipped'"
for program in gpu/gpu/test_cuda gpu/gpu/test_handoff gpu/gpu/test_stream bin/run bin/bench gpu/gpu/bench_ops; do script "$tmp/$program" "echo 'FAIL something'; exit 3"; done
gpu sh bench/gpu_check.sh
same "all fails" "$?" 1
same "all fails: steps" "$(grep -c '^| .* | FAILED: status [13].* | [0-9]* |$' "$tmp/out")" "$((12 + $(grep -c '^| reference models | FAILED' "$tmp/out")))"
has "all fails: figures" "$tmp/out" "^| Q4_K, 1 row: of the copy | not measured | >= 70 % |  |$"
same "a device without sanitizer" "$(grep -c 'SKIP: compute-sanitizer: device not supported |' "$tmp/out")" 4
has "all fails: end" "$tmp/out" "^gpu-check: [0-9]* step(s) failed"

has "no device" "$tmp/out" "^| ops together as one by one | FAILED: the device was not used"
LIMIT=1 gpu sh bench/gpu_check.sh
same "no time" "$?" 1
has "no time" "$tmp/out" "^| every op against ref | not run: no time is left"
script "$tmp/path/nvidia-smi" 'echo "NVIDIA-SMI has failed"; exit 9'
gpu sh bench/gpu_check.sh
same "no GPU: status, lines" "$? $(wc -l < "$tmp/out")" "1 1"
has "no GPU" "$tmp/out" "^gpu-check: no GPU"
end

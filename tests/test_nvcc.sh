#!/bin/sh
# Every .cu file through nvcc for every target, with warnings as errors, and what ptxas says of registers and spills: the
# kernels that decode must not spill on sm_86. SKIP without nvcc.
passed=0 failed=0
nvcc=$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)
finish() {
    echo "test_nvcc: $passed passed, $failed failed, $1 skipped"
    [ "$failed" -eq 0 ]
    exit
}
[ "${SANITIZED:-}" = 1 ] && finish 0 # the same as without
[ -x "$nvcc" ] || { echo "SKIP test_nvcc: no nvcc"; finish 1; }
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT
: > "${BUILD:-build}/registers.txt"
for file in kernels/*.cu bench/*.cu; do
    if make -s CUDA=1 BUILD="$tmp" CUDA_ARCH="75 86 89 90" CUDA_HOME=. NVCC="$nvcc -Xptxas -v" "$tmp/$file.o" > "$tmp/out" 2>&1; then passed=$((passed + 1))
    else failed=$((failed + 1)); echo "FAIL test_nvcc: $file: $(grep -m 1 -i -E 'error|warning' "$tmp/out")"; fi
    # one line per kernel and target: target, kernel, registers, bytes of stack, of spills
    awk -v q="'" '/Compiling entry function/ {split($0, part, q); kernel = part[2]; target = part[4]}
                  /bytes stack frame/ {spill = $5 + $9}
                  /Used [0-9]+ registers/ {for (i = 1; i < NF; i++) if ($i == "Used") print target, kernel, $(i + 1), "registers", spill + 0, "bytes spilled"}' \
        "$tmp/out" >> "${BUILD:-build}/registers.txt"
done
kernels=$(wc -l < "${BUILD:-build}/registers.txt")
[ "$kernels" -gt 100 ] && passed=$((passed + 1)) || { failed=$((failed + 1)); echo "FAIL test_nvcc: only $kernels kernels in registers.txt"; }
spilled=$(grep -E '^sm_86 .*(matvec_|gated_|attend|finish_heads|between_matrices|merge_parts)' "${BUILD:-build}/registers.txt" | grep -v ' 0 bytes spilled' | head -n 1)
[ -z "$spilled" ] && passed=$((passed + 1)) || { failed=$((failed + 1)); echo "FAIL test_nvcc: spills: $spilled"; }
finish 0

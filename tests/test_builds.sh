#!/bin/sh
# The other way to build: another compiler. It builds into a folder of its own and runs the quick tests there.
passed=0 failed=0 skipped=0
model=../shared/stories260K/stories260K-F32.gguf
if [ "$SANITIZED" = 1 ] || [ -n "$WITHIN_BUILDS" ]; then
    echo "test_builds: 0 passed, 0 failed, 0 skipped"
    exit 0
fi
quick="test_quant test_tokenizer test_chat test_sampler test_ops"
try() { # name, folder, make arguments
    name=$1 dir=$2
    shift 2
    if ! make --no-print-directory -j2 BUILD="$dir" BIN="$dir/bin" CUDA=0 "$@" all $(for t in $quick; do echo "$dir/tests/$t"; done) > "$dir.log" 2>&1; then
        tail -n 5 "$dir.log"
        echo "FAIL build with $name"
        failed=$((failed + 1))
        return
    fi
    passed=$((passed + 1))
    for t in $quick; do
        if "$dir/tests/$t" > "$dir/tests/$t.log" 2>&1; then passed=$((passed + 1)); else echo "FAIL $t with $name"; tail -n 3 "$dir/tests/$t.log"; failed=$((failed + 1)); fi
    done
    if [ -f "$model" ]; then
        "$dir/bin/run" "$model" -p "Once upon a time" -n 60 --temp 0 -q > "$dir/out.txt" 2>&1
        if cmp -s "$dir/out.txt" "$BUILD/out.txt"; then passed=$((passed + 1)); else echo "FAIL text with $name differs"; failed=$((failed + 1)); fi
    fi
}
[ -f "$model" ] && "${RUN:-bin/run}" "$model" -p "Once upon a time" -n 60 --temp 0 -q > "$BUILD/out.txt" 2>&1
mkdir -p build-other
other=clang
case ${CC:-cc} in *clang*) other=gcc;; esac
if command -v $other > /dev/null; then try $other build-other CC=$other CFLAGS=-O2
else echo "SKIP $other is not here"; skipped=$((skipped + 1)); fi
rm -f build-other.log
echo "test_builds: $passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]

#!/bin/sh
# The CUDA emulator's own test: what is right must pass in every order of threads and of queued work without a report, and each planted bug must be
# found by the build that is said to find it. tests/emu/selftest.cu is compiled twice:
#   fast    g++ -O2 and a part of its undefined-behaviour sanitizer: wrong results out of NaN, faults at guard pages, barriers, masks, launches
#   check   clang++ with -fsanitize=thread, whose callbacks are the emulator's: races, reads of what was never written, exact bounds
set -u
. tests/helpers.sh
LC_ALL=C
export LC_ALL
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' INT TERM
for name in $(env | sed -n 's/^\(EMU_[A-Z_]*\)=.*/\1/p'); do unset "$name"; done # the caller's


[ "${SANITIZED:-}" = 1 ] && end # it compiles for itself, with checks of its own
CUDA=${CUDA_HOME:-/usr/local/cuda}
nvcc=$(command -v nvcc || echo "$CUDA/bin/nvcc")
[ -r "$CUDA/include/cuda_runtime.h" ] || CUDA=$(dirname "$(dirname "$nvcc")")
command -v g++ > /dev/null || { skip "no g++"; end; }
[ -r "$CUDA/include/cuda_runtime.h" ] || { skip "no CUDA headers (CUDA_HOME)"; end; }

INCLUDE="-Ikernels -Itests/emu -isystem $CUDA/include"
DEVICE="-std=c++17 -g -Wall -Wextra -Werror -Wno-unknown-pragmas -x c++ -include tests/emu/cuda_emu.h $INCLUDE"
UNDEFINED=alignment,signed-integer-overflow,shift,integer-divide-by-zero,float-cast-overflow
g++ -std=c++17 -O2 -g -Wall -Wextra -Werror $INCLUDE -c tests/emu/emu_rt.cpp -o "$dir/emu_rt.o" || { fail "emu_rt.cpp does not compile"; end; }
g++ $DEVICE -O2 -fsanitize=$UNDEFINED,bounds -c tests/emu/selftest.cu -o "$dir/fast.o" && g++ "$dir/fast.o" "$dir/emu_rt.o" -o "$dir/fast" ||
    { fail "the fast build of selftest.cu"; end; }
builds=fast
if ! command -v objcopy > /dev/null || ! echo '#include <vector>' | clang++ -x c++ -fsyntax-only - 2> /dev/null; then
    skip "the check build: no clang++ or no objcopy"
elif clang++ $DEVICE -O1 -Wno-pass-failed -fsanitize=thread,$UNDEFINED,array-bounds,bool -mllvm -tsan-instrument-func-entry-exit=0 \
        -mllvm -tsan-instrument-read-before-write=1 -c tests/emu/selftest.cu -o "$dir/check.o" &&
    objcopy --redefine-sym memcpy=emu_memcpy --redefine-sym memmove=emu_memmove --redefine-sym memset=emu_memset "$dir/check.o" &&
    g++ "$dir/check.o" "$dir/emu_rt.o" -o "$dir/check"; then
    builds="fast check"
else
    fail "the check build of selftest.cu"
fi
if [ -x "$nvcc" ]; then
    "$nvcc" -std=c++17 -arch=sm_86 -Ikernels -Itests/emu -Werror all-warnings -c tests/emu/selftest.cu -o "$dir/gpu.o" > "$dir/out" 2>&1
    if [ $? -eq 0 ]; then ok; else fail "selftest.cu is no CUDA: $(head -n 3 "$dir/out")"; fi
else
    skip "nvcc does not see selftest.cu"
fi

# run BUILD ORDER STREAMS CASE [BUG]: sets status, kinds (of reports, each once), line (the last one of stdout).
run() {
    what="$*"
    EMU_VIEWS=1 EMU_ORDER=$2 EMU_STREAMS=$3 EMU_SEED=${SEED:-1} timeout 60 "$dir/$1" "$4" ${5:+"$5"} > "$dir/out" 2> "$dir/err"
    status=$?
    kinds=$(sed -n 's/^EMU \([a-z0-9-]*\): .*/\1/p' "$dir/err" | sort -u | paste -sd ' ' -)
    line=$(tail -n 1 "$dir/out")
}
wrong() { fail "$what: status $status, '$line', reports: $kinds; expected $1"; }

# ---- what is right ----
for build in $builds; do
    for case in sums product exchanges blocks widths pointers stack queues graphs warps arithmetic shapes tensors device cublas waits; do
        for order in forward reverse random; do
            for streams in eager lazy shuffled; do
                run $build $order $streams $case
                reports=$kinds
                [ $case = device ] && reports=${reports#bad-launch} # it asks for one on purpose
                if [ $status -eq 0 ] && [ -z "$reports" ] && [ "$line" = right ]; then ok; else wrong right; fi
            done
        done
    done
    for SEED in 2 3 4 5 6 7; do
        for case in sums product exchanges queues waits; do
            run $build random shuffled $case
            if [ $status -eq 0 ] && [ -z "$kinds" ]; then ok; else wrong "right, seed $SEED"; fi
        done
    done
    SEED=1
    accesses=$(EMU_STATS=1 "$dir/$build" sums 2>&1 | sed -n 's/.*threads, \([0-9]*\) checked.*/\1/p')
    case $build:$accesses in # 5 rows of 1000: each element once, and the rest
        fast:0) ok;;
        check:*) if [ "$accesses" -gt 5000 ]; then ok; else fail "the check build saw $accesses accesses"; fi;;
        *) fail "accesses seen by the $build build: $accesses";;
    esac
done

# The stack switch for machines without ours in assembly.
if g++ -std=c++17 -O1 -DEMU_UCONTEXT -Wall -Wextra -Werror $INCLUDE -c tests/emu/emu_rt.cpp -o "$dir/emu_uc.o" &&
    g++ "$dir/fast.o" "$dir/emu_uc.o" -o "$dir/portable"; then
    for case in sums product exchanges warps shapes waits; do
        run portable random eager $case
        if [ $status -eq 0 ] && [ -z "$kinds" ]; then ok; else wrong right; fi
    done
    run portable forward eager sums divergent-shuffle
    if [ "$kinds" = deadlock ]; then ok; else wrong deadlock; fi
else
    fail "the portable build"
fi

# ---- what is wrong ----
# CASE BUG, then what is expected of: fast forward eager, fast reverse lazy, check forward eager, check reverse lazy.
# wrong: the result (NaN counts); a word: that report; a dot: this build or schedule cannot see it.
while read -r case bug a b c d; do
    n=0
    for expected in $a $b $c $d; do
        n=$((n + 1))
        case $n in 1) how="fast forward eager";; 2) how="fast reverse lazy";; 3) how="check forward eager";; 4) how="check reverse lazy";; esac
        case " $builds " in *" ${how%% *} "*) ;; *) continue;; esac
        [ "$expected" = . ] && continue
        run $how "$case" "$bug"
        case "$expected" in
            wrong) [ $status -eq 1 ] && [ -z "$kinds" ];;
            *) case " $kinds " in *" $expected "*) [ $status -eq 97 ];; *) false;; esac;;
        esac
        if [ $? -eq 0 ]; then ok; else wrong "$expected"; fi
    done
done << 'TABLE'
sums no-barrier wrong . uninitialised-shared uninitialised-shared
sums divergent-barrier barrier-after-exit barrier-after-exit barrier-after-exit barrier-after-exit
sums early-return barrier-after-exit barrier-after-exit barrier-after-exit barrier-after-exit
sums small-mask mask-excludes-caller mask-excludes-caller mask-excludes-caller mask-excludes-caller
sums divergent-shuffle deadlock deadlock deadlock deadlock
sums no-slot wrong wrong uninitialised-shared uninitialised-shared
sums write-past device-out-of-bounds device-out-of-bounds device-out-of-bounds device-out-of-bounds
sums write-far device-out-of-bounds device-out-of-bounds device-out-of-bounds device-out-of-bounds
sums read-past wrong wrong device-out-of-bounds device-out-of-bounds
sums large-block bad-launch bad-launch bad-launch bad-launch
product no-first-barrier wrong wrong uninitialised-shared uninitialised-shared
product no-last-barrier wrong wrong shared-race shared-race
product shared-index undefined undefined undefined undefined
product unwritten wrong wrong uninitialised-global uninitialised-global
product small-shared shared-out-of-bounds shared-out-of-bounds shared-out-of-bounds shared-out-of-bounds
exchanges no-syncwarp wrong wrong uninitialised-shared uninitialised-shared
exchanges no-second-syncwarp wrong wrong shared-race shared-race
blocks plain-sum . . global-race global-race
blocks no-fence . . global-race global-race
widths wide-load undefined undefined misaligned misaligned
widths odd-vector kernel-fault kernel-fault . .
widths index-overflow undefined undefined undefined undefined
pointers host-pointer . . kernel-touches-host-memory kernel-touches-host-memory
pointers host-touches host-touches-device-memory host-touches-device-memory host-touches-device-memory host-touches-device-memory
pointers use-after-free device-out-of-bounds device-out-of-bounds device-out-of-bounds device-out-of-bounds
pointers double-free bad-free bad-free bad-free bad-free
pointers null kernel-fault kernel-fault kernel-fault kernel-fault
pointers copy-past copy-out-of-bounds copy-out-of-bounds copy-out-of-bounds copy-out-of-bounds
pointers copy-kind copy-kind copy-kind copy-kind copy-kind
stack deep stack-overflow stack-overflow stack-overflow stack-overflow
queues pageable pageable-async-copy pageable-async-copy pageable-async-copy pageable-async-copy
queues stream-0 default-stream default-stream default-stream default-stream
queues no-event . wrong . uninitialised-global
queues no-sync . wrong . wrong
queues early-reuse . wrong . wrong
queues unsynchronised-copy . wrong . uninitialised-global
queues early-free . free-waits . free-waits
graphs unjoined wrong wrong wrong wrong
graphs malloc-in-capture wrong wrong wrong wrong
graphs sync-in-capture wrong wrong wrong wrong
tensors no-wait wrong wrong uninitialised-shared uninitialised-shared
tensors no-barrier wrong wrong uninitialised-shared shared-race
tensors no-last-barrier wrong wrong shared-race shared-race
tensors fragment wrong wrong wrong wrong
tensors misaligned misaligned misaligned misaligned misaligned
warps stray-shuffle shuffle-source shuffle-source shuffle-source shuffle-source
waits no-barrier wrong . wrong .
waits no-fence wrong wrong wrong wrong
waits no-second-fence wrong wrong wrong wrong
waits number-first wrong wrong wrong wrong
waits not-asked wrong wrong wrong wrong
waits relaxed-load wrong wrong wrong wrong
waits ask-again mapped-race mapped-race mapped-race mapped-race
waits answer-first wrong wrong wrong wrong
waits relaxed-store wrong wrong wrong wrong
waits not-answered wrong wrong wrong wrong
waits no-answer waits-for-ever waits-for-ever waits-for-ever waits-for-ever
cublas gemm-past copy-out-of-bounds copy-out-of-bounds copy-out-of-bounds copy-out-of-bounds
TABLE

# ---- whole programs driven by the environment ----
# with VARIABLE=VALUE STATUS TEXT CASE [BUG]: TEXT must be in the output.
with() {
    env "$1" "$dir/fast" "$4" ${5:+"$5"} > "$dir/out" 2>&1
    status=$?
    if [ $status -eq "$2" ] && grep -q -e "$3" "$dir/out"; then ok; else fail "$*: status $status: $(head -n 2 "$dir/out")"; fi
}
with EMU_FAIL_ALLOC=1 1 'cudaMalloc: out of memory' sums
with EMU_FAIL_ALLOC=2 1 'cudaMalloc: out of memory' sums
with EMU_FAIL_ALLOC=3 0 right sums
with EMU_FAIL_LAUNCH=1 1 'launch: too many resources' sums
with EMU_FAIL_LAUNCH=2 0 right sums
with EMU_MEMORY=401M 0 right sums # 400M are reserved
with EMU_MEMORY=400M 1 'cudaMalloc: out of memory' sums
with EMU_RESERVE=12G 1 'cudaMalloc: out of memory' sums
with EMU_DEVICES=0 1 'stream: no CUDA-capable device' sums
with EMU_DRIVER=0 1 'stream: CUDA driver version is insufficient' sums
with EMU_ARCH=75 1 'launch: no kernel image' sums
with EMU_ARCH=90 0 right sums
with EMU_CUBLAS=0 1 WRONG cublas
with EMU_GUARD=0 0 right pointers
with EMU_GUARD=0 1 WRONG pointers host-touches # allowed then, but the result shows it
with EMU_STRICT=0 0 right queues pageable
with EMU_QUIET=1 97 '^EMU: 3 reports' queues stream-0
with EMU_ABORT=1 134 'EMU copy-kind' pointers copy-kind
with EMU_LOG=1 0 'emu: row_sum grid 5,1,1 block 256,1,1 shared 0' sums
with EMU_ORDER=sideways 2 "EMU_ORDER is 'sideways'" sums
end

// emu_rt.cpp: the runtime of the CUDA emulator. Kernels compiled by a host compiler behind cuda_emu.h run here, on one CPU thread, block after block,
// with the checks a GPU cannot afford; the CUDA runtime calls of the host code are answered by a device that does not exist.
// What it finds, and which build finds it, is the table in tests/test_emu.sh.
//
// What it does not show: speed, registers, coalescing; a memory model weaker than "barrier, __syncwarp, fence and atomic", but for what it shares
// with the host (emu_mapped.h); blocks that wait for each other (for the host they may: emu_block.h); the device's rounding (fused or approximate
// instructions); whether our reading of PTX (cuda_ptx.cuh) is right. It knows one device and one host thread at a time. Kernels need x86-64, or are
// slow (EMU_UCONTEXT). The program may have no thread_local variables: see emu_memory.h.
//
// One translation unit, because the checks sit on the path of every access and every switch; its parts, in the order of reading:
#define EMU_RUNTIME
#include "cuda_emu.h"
#include "emu_clock.h"
#include "emu_test.h"

#include <cstdarg>
#include <deque>
#include <dlfcn.h>
#include <functional>
#include <link.h>
#include <map>
#include <memory>
#include <set>
#include <setjmp.h>
#include <signal.h>
#include <string>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#include <vector>

static void init();
double (*emu_price)(const EmuWork *w);
int (*emu_chooser)(int n_expert, int taken, const int *chosen);
const char *const *emu_phantom_runs;
int emu_trace;
#include "emu_report.h" // settings, counters, findings
#include "emu_block.h"  // the threads of a block: stacks, order, barriers, warp operations
#include "emu_memory.h" // device memory and shared memory
#include "emu_check.h"  // races, uninitialised reads, exact bounds (check build)
#include "emu_mapped.h" // what host and device see of memory that both write
#include "emu_stream.h" // grids, streams, graphs, clock
#include "emu_api.h"    // cudaXxx
#include "emu_cublas.h" // cublasGemmEx

static void at_exit() {
    if (emu_config.stats)
        fprintf(stderr, "emu: %d launches in %d calls, %llu threads, %llu checked accesses, %d reports, %.0f us simulated\n", emu_launches(nullptr), n_call,
                emu_threads_run(), emu_accesses(), emu_reports(nullptr), host_time);
    if (!emu_reports(nullptr)) return;
    fprintf(stderr, "EMU: %d reports\n", emu_reports(nullptr));
    fflush(nullptr);
    _exit(EMU_EXIT_STATUS);
}

static void init() { // at the first CUDA call
    if (arena) return;
    read_environment();
    arena = (char *)reserve(ARENA_BYTES, PROT_NONE);
    allocation_of_page = (uint32_t *)reserve(ARENA_BYTES / PAGE * sizeof *allocation_of_page, PROT_READ | PROT_WRITE);
    arena_used = 1 << 20; // null plus a small offset is no device address
    stacks = (char *)reserve((MAX_THREADS + 1) * STACK_BYTES, PROT_READ | PROT_WRITE);
    for (int i = 0; i <= MAX_THREADS; i++) mprotect(stacks + (size_t)i * STACK_BYTES, PAGE, PROT_NONE);
    dl_iterate_phdr(find_segment, nullptr);
    // A kernel that overflows its stack needs another one to say so.
    static char fault_stack[64 << 10];
    stack_t alternative = {};
    alternative.ss_sp = fault_stack;
    alternative.ss_size = sizeof fault_stack;
    sigaltstack(&alternative, nullptr);
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER; // left by siglongjmp
    sigaction(SIGSEGV, &action, &earlier_segv);
    sigaction(SIGBUS, &action, &earlier_bus);
    atexit(at_exit);
}

extern "C" {
int emu_reports(const char *kind) {
    int n = 0;
    for (auto &r : reports)
        if (!kind || r.first == kind) n += r.second;
    return n;
}
void emu_clear_reports(void) { reports.clear(); }
int emu_launches(const char *kernel) {
    int n = 0;
    for (auto &l : launches)
        if (!kernel || !l.first.compare(0, strlen(kernel), kernel)) n += l.second;
    return n;
}
void emu_clear_launches(void) { launches.clear(); }
unsigned long long emu_threads_run(void) { return n_threads_run; }
unsigned long long emu_accesses(void) { return n_accesses; }
int emu_checks(void) { return checks_on; }
size_t emu_memory_used(void) { return memory_used; }
size_t emu_registered_bytes(void) {
    size_t n = 0;
    for (auto &r : registered) n += r.second;
    return n;
}
int emu_allocations(void) {
    int n = 0;
    for (auto &a : allocations) n += !a.freed && a.accounted;
    return n;
}
double emu_clock_us(void) { return host_time; }
const EmuSpan *emu_spans(int *n) {
    *n = (int)spans.size();
    return spans.data();
}
void emu_clear_spans(void) { spans.clear(); }
void emu_device_runs(void) { device_runs(); }
void emu_reset(void) {
    init();
    run_everything();
    mapped_close(nullptr);
    for (Allocation &a : allocations)
        if (!a.freed) release(&a);
    sticky_error = last_error = cudaSuccess;
    reports.clear();
    launches.clear();
    host_time = default_stream.time = released_time = given_time = 0;
    up_engine.busy.clear();
    down_engine.busy.clear();
    spans.clear();
    for (CUstream_st *s : streams) s->time = 0;
    n_threads_run = n_accesses = 0;
    random_seed(emu_config.seed);
}
}

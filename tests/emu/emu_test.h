// emu_test.h: what a test may ask of the CUDA emulator and set in it. Plain C; host code only.
// Every setting also has an environment variable, read once at the first CUDA call, so that whole programs can be driven:
//   EMU_ORDER=forward|reverse|random  EMU_STREAMS=eager|lazy|shuffled  EMU_SEED=7   who runs first; when queued work runs
//   EMU_ARCH=86 EMU_SMS=28 EMU_MEMORY=12G EMU_RESERVE=400M EMU_DEVICES=1 EMU_DRIVER=13000 (0: none)   the machine
//   EMU_CUBLAS=0          cu_library_open finds nothing; 2: cublasCreate fails; 3: cublasGemmEx fails
//   EMU_FAIL_ALLOC=n  EMU_FAIL_LAUNCH=n   the n-th one (device, pinned or registered memory; kernel) from now on fails, once
//   EMU_REGISTERS=0       memory that cannot be written is not registered
//   EMU_PATIENCE=60       seconds that a kernel may wait for the host while the host waits for it
//   EMU_GUARD=0           device memory may be read by host code (saves page protection work)
//   EMU_VIEWS=1           host and device see of what the other writes to mapped memory only what was released and acquired
//   EMU_STRICT=0          lints (stream 0, pageable asynchronous copies, ...) are not reported
//   EMU_ABORT=1  EMU_QUIET=1  EMU_LOG=1 (every launch)  EMU_STATS=1 (a line at exit)
// A program in which anything was reported ends with exit status 97, unless the test has called emu_clear_reports.
#ifndef EMU_TEST_H
#define EMU_TEST_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { EMU_FORWARD, EMU_REVERSE, EMU_RANDOM };
enum { EMU_EAGER, EMU_LAZY, EMU_SHUFFLED };
enum { EMU_EXIT_STATUS = 97 };

typedef struct {
    int n_device, driver;          // driver: as cudaDriverGetVersion, 0 for a machine without one
    int arch, n_sm;                // 86: sm_86
    size_t memory, reserve;        // bytes of the device; bytes its context takes
    int order, streams;            // of lanes, warps and blocks; of queued work
    unsigned seed;
    int guard_host, strict, cublas;
    int views;                     // 1: host and device have views of their own of mapped memory (emu_mapped.h); not with other threads of the host
    int fail_alloc, fail_launch;   // 1: the next one; 0: none
    int registers;                 // 0: a driver that registers no memory which cannot be written
    size_t lockable;               // bytes of host memory that can be registered
    int abort_on_report, quiet, log, stats;
    double h2d, d2h, dram, tflops; // GB/s, GB/s, GB/s, TFLOP/s of the simulated clock
    double copy_us, launch_us;     // least time of a copy or a kernel; host time of a launch
    double graph_us, sync_us;      // host time of launching a graph; until the host knows what it has waited for
    double fill;                   // GB/s of the host into pinned memory, where it says so (CU_HOST_FILLS); 0: no time
    double flag_us;                // until one side sees what the other has released in memory that they share
    int phantom;                   // kernels do not run, memory is not filled: only books and clock are kept, of models of any size (emu_clock.h)
    int patience;                  // seconds
    const char *stall;             // the next kernel whose text begins so starts stall_ms late, and all behind it; NULL: none
    int stall_ms;
} EmuConfig;
extern EmuConfig emu_config;

void emu_reset(void);                       // frees all device memory; clears errors, reports, counters and the clock
int emu_reports(const char *kind);          // how often; NULL: of any kind
void emu_clear_reports(void);
int emu_launches(const char *kernel);       // executed launches whose kernel text begins so; NULL: all
void emu_clear_launches(void);
unsigned long long emu_threads_run(void);
unsigned long long emu_accesses(void);      // checked accesses; 0 in a build without the callbacks
int emu_checks(void);                       // 1: some kernels were compiled with the callbacks (emu-check)
size_t emu_memory_used(void);               // device bytes, as accounted
size_t emu_registered_bytes(void);          // host bytes
int emu_allocations(void);                  // device allocations alive
double emu_clock_us(void);                  // simulated time
void emu_device_runs(void);                 // the time that a device has while the host computes: its streams go on as far as they can

#ifdef __cplusplus
}
#endif
#endif

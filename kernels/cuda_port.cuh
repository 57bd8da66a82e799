// cuda_port.cuh: the one file that asks "nvcc or the emulator?". Every .cu file includes it first and then holds the same text for both.
//
//   CU_LAUNCH(kernel, grid, block, smem_bytes, stream, args...)   launches and returns cudaError_t; arguments are converted to the kernel's
//                                                                 parameter types. A kernel name with a comma goes in parentheses: (k<4, 8>).
//   CU_ARCH                  750, 860, 900 ... in device code; 0 in nvcc's host pass. Kernels never ask __CUDA_ARCH__.
//   CU_HOST_COST(b, f)       before a launch: it moves b bytes and does f operations. Read by the emulator's clock only.
//   CU_RAN(b, op, n)         n recorded ops have been launched: what they read and compute is charged to the emulator's clock. Nothing under nvcc.
//   CU_HOST_FILLS(bytes)     true: the host need not copy so much into pinned memory. The emulator, when it computes nothing; its clock counts it.
//   CU_HOST_EARLY()          what the host waits for has come, but only later by the emulator's clock
//   cu_dyn_smem              dynamic shared memory: one array of bytes for all kernels, 16-byte aligned, carved by casts.
//   cu_host_pause()          in a loop of host code that waits for what a kernel writes
//   cu_library_open, _symbol, _close   a shared library found at run time (cuBLAS): dlopen, or the emulator's own table of functions.
//
// The emulator (tests/emu) is put in front of a .cu file by g++ -include tests/emu/cuda_emu.h, which defines CU_EMU.
#ifndef CUDA_PORT_CUH
#define CUDA_PORT_CUH

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef CU_EMU

#define CU_LAUNCH(kernel, ...) emu_launch_kernel(#kernel, EmuPlace{__FILE__, __LINE__}, CU_ARCH, kernel, __VA_ARGS__)
#define CU_HOST_COST(bytes, flops) emu_cost((double)(bytes), (double)(flops))
#define CU_RAN(b, op, n) emu_ran(b, op, n)
#define CU_HOST_FILLS(bytes) emu_fills(bytes)
#define CU_HOST_EARLY() emu_early()
struct Backend;
struct Op;
void emu_ran(const Backend *b, const Op *op, int n);

static inline void cu_host_pause() { emu_device_runs(); }
static inline void *cu_library_open(const char *name) { return emu_library_open(name); }
static inline void *cu_library_symbol(void *library, const char *name) { return emu_library_symbol(library, name); }
static inline void cu_library_close(void *library) { emu_library_close(library); }

#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <dlfcn.h>

#ifdef __CUDA_ARCH__
#define CU_ARCH __CUDA_ARCH__
#else
#define CU_ARCH 0
#endif
#define CU_HOST_COST(bytes, flops) ((void)0)
#define CU_RAN(b, op, n) ((void)0)
#define CU_HOST_FILLS(bytes) false
#define CU_HOST_EARLY() false

// The kernel's own parameter list decides the types: P is deduced from it alone, never from the arguments.
template <class T> struct CuExact { typedef T type; };
template <class... P>
static inline cudaError_t cu_launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t smem_bytes, cudaStream_t stream,
                                    typename CuExact<P>::type... args) {
    void *pointers[sizeof...(P) + 1] = {(void *)&args..., NULL};
    return cudaLaunchKernel((const void *)kernel, grid, block, pointers, smem_bytes, stream); // unlike <<<>>> it says what went wrong
}
#define CU_LAUNCH(kernel, ...) cu_launch(kernel, __VA_ARGS__)

static inline void cu_host_pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}
// It stays when it is closed: a library of kernels that is unmapped while the driver knows it is asking for trouble.
static inline void *cu_library_open(const char *name) { return dlopen(name, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE); }
static inline void *cu_library_symbol(void *library, const char *name) { return dlsym(library, name); }
static inline void cu_library_close(void *library) { if (library) dlclose(library); }

#endif

extern __shared__ __align__(16) unsigned char cu_dyn_smem[];

#endif

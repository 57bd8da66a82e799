// cuda_emu.h: the device side of CUDA C++ as far as our kernels use it, for a host compiler. Put in front of an unchanged .cu file:
//   g++ -std=c++17 -O2 -x c++ -include tests/emu/cuda_emu.h -Ikernels -I/usr/local/cuda/include -c kernels/norm_cuda.cu
// Types and declarations come from the installed CUDA headers; here and in emu_rt.cpp they only get bodies. What is missing here is missing on
// purpose (__activemask, cooperative groups, ...) or was never needed: a kernel that uses it does not compile or link, which is the alarm wanted.
#ifndef CUDA_EMU_H
#define CUDA_EMU_H
#ifdef __CUDACC__
#error "cuda_emu.h is for host compilers"
#endif
#define CU_EMU 1

#include <cuda_runtime.h>
// After the runtime's headers, before the keywords lose their meaning: everything a .cu file may include that mentions one of them.
#include <cublas_v2.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cassert>
#include <climits>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <tuple>
#include <type_traits>

// ---- keywords ----
// host_defines.h made these empty attributes for host compilers; that is why it had to come first.
#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __constant__
#undef __launch_bounds__
#undef __grid_constant__
#undef __noinline__ // libstdc++ writes __attribute__((__noinline__))
#define __global__
#define __device__
#define __host__
#define __constant__
#define __launch_bounds__(...)
#define __grid_constant__

// Shared memory is the thread-local segment of the program: block-scope thread_local is static, and extern __shared__ stays legal C++.
// __constinit: without it g++ makes a guard variable for each __shared__ __half array and a wrapper call around the extern one.
#ifdef __clang__
#define __shared__ thread_local
#else
#define __shared__ __constinit thread_local
#define __builtin_assume(condition) ((void)0)
#endif

#ifndef CU_ARCH
#define CU_ARCH 860
#endif

// ---- where am I ----
extern uint3 emu_thread_idx, emu_block_idx;
extern int emu_lane;
extern dim3 emu_block_dim, emu_grid_dim;
#define threadIdx emu_thread_idx
#define blockIdx emu_block_idx
#define blockDim emu_block_dim
#define gridDim emu_grid_dim
static const int warpSize = 32; // no macro: cudaDeviceProp has a field of this name

// ---- the runtime (emu_rt.cpp) ----
struct EmuPlace { const char *file; int line; };
#define EMU_PLACE const char *emu_file = __builtin_FILE(), int emu_line = __builtin_LINE() // as last parameters: the caller's position
#define EMU_HERE EmuPlace{emu_file, emu_line}

enum EmuVote { EMU_PLAIN, EMU_COUNT, EMU_AND, EMU_OR };
// Called once when all lanes of the mask have arrived, with what each brought.
typedef void EmuCollective(unsigned mask, void *const brought[32]);

int emu_barrier(EmuVote vote, int predicate, EmuPlace place);
void emu_warp(const char *what, unsigned mask, void *brought, EmuCollective *collective, EmuPlace place);
void emu_warp_barrier(unsigned mask, EmuPlace place);
void emu_fence();
void emu_sleep();             // the thread lets others run; when all of the block do, or wait for those that do, the host
void emu_host_first();        // the host goes on before the thread does
void emu_acquired();          // the thread reads what the host wrote
void emu_host_atomic(const volatile void *p, bool store, int order);
unsigned long long emu_now(); // nanoseconds
extern "C" void emu_device_runs(void); // emu_test.h
void emu_access(const void *p, size_t n_bytes, bool write, bool atomic); // an access the runtime makes for the kernel
void emu_report(const char *kind, bool fatal, const char *format, ...) __attribute__((format(printf, 3, 4)));
void emu_copy_async(void *shared, const void *global, int n_bytes, int n_valid);
void emu_copy_commit();
void emu_copy_wait(int n_left);
void emu_cost(double bytes, double flops);
bool emu_fills(size_t bytes);
bool emu_early();
void *emu_library_open(const char *name);
void *emu_library_symbol(void *library, const char *name);
void emu_library_close(void *library);

typedef void EmuRun(const void *params);
struct EmuLaunch { const char *name; EmuPlace place; int arch; const void *kernel; EmuRun *run; dim3 grid, block; size_t smem_bytes; };
cudaError_t emu_launch(const EmuLaunch *launch, const void *params, size_t n_bytes, cudaStream_t stream);

// ---- launch ----
template <class T> struct EmuExact { typedef T type; };
template <class... P> static void emu_run_kernel(const void *params) {
    std::apply([](auto kernel, auto... p) { kernel(p...); }, *(const std::tuple<void (*)(P...), P...> *)params);
}
template <class... P>
static inline cudaError_t emu_launch_kernel(const char *name, EmuPlace place, int arch, void (*kernel)(P...), dim3 grid, dim3 block,
                                            size_t smem_bytes, cudaStream_t stream, typename EmuExact<P>::type... args) {
    static_assert((std::is_trivially_copyable<P>::value && ...), "kernel parameters must be trivially copyable");
    static_assert((sizeof(P) + ... + 0) <= 4096, "kernel parameters take at most 4 KB");
    std::tuple<void (*)(P...), P...> params(kernel, args...);
    EmuLaunch launch = {name, place, arch, (const void *)kernel, emu_run_kernel<P...>, grid, block, smem_bytes};
    return emu_launch(&launch, &params, sizeof params, stream);
}

// The overloads for kernels, which the headers give to nvcc only.
template <class... P> static inline cudaError_t cudaFuncSetAttribute(void (*kernel)(P...), cudaFuncAttribute attribute, int value) {
    return cudaFuncSetAttribute((const void *)kernel, attribute, value);
}
template <class... P> static inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *a, void (*kernel)(P...)) {
    return cudaFuncGetAttributes(a, (const void *)kernel);
}
template <class... P>
static inline cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *n, void (*kernel)(P...), int n_threads, size_t smem_bytes) {
    return cudaOccupancyMaxActiveBlocksPerMultiprocessor(n, (const void *)kernel, n_threads, smem_bytes);
}

// ---- barriers and fences ----
static inline void __syncthreads(EMU_PLACE) { emu_barrier(EMU_PLAIN, 0, EMU_HERE); }
static inline int __syncthreads_count(int predicate, EMU_PLACE) { return emu_barrier(EMU_COUNT, predicate, EMU_HERE); }
static inline int __syncthreads_and(int predicate, EMU_PLACE) { return emu_barrier(EMU_AND, predicate, EMU_HERE); }
static inline int __syncthreads_or(int predicate, EMU_PLACE) { return emu_barrier(EMU_OR, predicate, EMU_HERE); }
static inline void __syncwarp(unsigned mask = 0xffffffffu, EMU_PLACE) { emu_warp_barrier(mask, EMU_HERE); }
static inline void __threadfence() { emu_fence(); }
static inline void __threadfence_system() { emu_fence(); }
static inline void __threadfence_block() {}
static inline void __nanosleep(unsigned) { emu_sleep(); }
#define __trap() emu_report("trap", true, "__trap() at %s:%d", __FILE__, __LINE__)

// ---- shuffles ----
template <class T> struct EmuShuffle { T value, result; int source; EmuPlace place; };

template <class T> static void emu_shuffle_all(unsigned mask, void *const brought[32]) {
    for (int lane = 0; lane < 32; lane++) {
        if (!(mask >> lane & 1)) continue;
        EmuShuffle<T> *s = (EmuShuffle<T> *)brought[lane];
        if (mask >> s->source & 1) {
            s->result = ((EmuShuffle<T> *)brought[s->source])->value;
            continue;
        }
        memset((void *)&s->result, 0xff, sizeof(T)); // undefined on the device: NaN here
        emu_report("shuffle-source", false, "lane %d reads lane %d, which does not take part (mask %08x), at %s:%d", lane, s->source, mask,
                   s->place.file, s->place.line);
    }
}
template <class T> static inline T emu_shuffle(const char *what, unsigned mask, T value, int source, EmuPlace place) {
    static_assert(std::is_trivially_copyable<T>::value && sizeof(T) <= 8, "a shuffle moves up to 8 bytes");
    EmuShuffle<T> s = {value, value, source, place};
    emu_warp(what, mask, &s, emu_shuffle_all<T>, place);
    return s.result;
}
// A lane outside the caller's group of `width` lanes yields the caller's own value (xor may reach back to earlier groups).
template <class T> static inline T __shfl_sync(unsigned mask, T value, int lane, int width = 32, EMU_PLACE) {
    return emu_shuffle("__shfl_sync", mask, value, (emu_lane & -width) | (lane & (width - 1)), EMU_HERE);
}
template <class T> static inline T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, EMU_PLACE) {
    const int self = emu_lane, source = self ^ lane_mask;
    return emu_shuffle("__shfl_xor_sync", mask, value, (source & -width) > (self & -width) ? self : source, EMU_HERE);
}
template <class T> static inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, EMU_PLACE) {
    const int self = emu_lane, inside = (self & (width - 1)) + (int)delta < width;
    return emu_shuffle("__shfl_down_sync", mask, value, inside ? self + (int)delta : self, EMU_HERE);
}
template <class T> static inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, EMU_PLACE) {
    const int self = emu_lane, inside = (self & (width - 1)) >= (int)delta;
    return emu_shuffle("__shfl_up_sync", mask, value, inside ? self - (int)delta : self, EMU_HERE);
}

// ---- votes and integer reductions ----
struct EmuBallot { int predicate; unsigned result; };
static void emu_ballot_all(unsigned mask, void *const brought[32]) {
    unsigned result = 0;
    for (unsigned m = mask; m; m &= m - 1)
        if (((EmuBallot *)brought[__builtin_ctz(m)])->predicate) result |= m & -m;
    for (unsigned m = mask; m; m &= m - 1) ((EmuBallot *)brought[__builtin_ctz(m)])->result = result;
}
static inline unsigned emu_ballot(const char *what, unsigned mask, int predicate, EmuPlace place) {
    EmuBallot b = {predicate, 0};
    emu_warp(what, mask, &b, emu_ballot_all, place);
    return b.result;
}
static inline unsigned __ballot_sync(unsigned mask, int predicate, EMU_PLACE) { return emu_ballot("__ballot_sync", mask, predicate, EMU_HERE); }
static inline int __any_sync(unsigned mask, int predicate, EMU_PLACE) { return emu_ballot("__any_sync", mask, predicate, EMU_HERE) != 0; }
static inline int __all_sync(unsigned mask, int predicate, EMU_PLACE) { return emu_ballot("__all_sync", mask, !predicate, EMU_HERE) == 0; }

// sm_80 and later. The operation is a template parameter, so that lanes in different reductions are told apart.
template <class T, T (*combine)(T, T)> static void emu_reduce_all(unsigned mask, void *const brought[32]) {
    T result = *(T *)brought[__builtin_ctz(mask)];
    for (unsigned m = mask & (mask - 1); m; m &= m - 1) result = combine(result, *(T *)brought[__builtin_ctz(m)]);
    for (unsigned m = mask; m; m &= m - 1) *(T *)brought[__builtin_ctz(m)] = result;
}
#define EMU_REDUCE(name, T, expression)                                                  \
    static inline T emu_##name##_##T(T a, T b) { return expression; }                    \
    static inline T name(unsigned mask, T value, EMU_PLACE) {                            \
        if (CU_ARCH < 800) emu_report("arch", true, #name " needs sm_80");               \
        emu_warp(#name, mask, &value, emu_reduce_all<T, emu_##name##_##T>, EMU_HERE);    \
        return value;                                                                    \
    }
EMU_REDUCE(__reduce_add_sync, int, (int)((unsigned)a + (unsigned)b))
EMU_REDUCE(__reduce_add_sync, unsigned, a + b)
EMU_REDUCE(__reduce_max_sync, int, a > b ? a : b)
EMU_REDUCE(__reduce_max_sync, unsigned, a > b ? a : b)
EMU_REDUCE(__reduce_min_sync, int, a < b ? a : b)
EMU_REDUCE(__reduce_min_sync, unsigned, a < b ? a : b)

// ---- the host's atomics ----
// On numbers that it shares with the device (emu_mapped.h).
#ifndef EMU_RUNTIME
#define __atomic_load_n(p, order) (emu_host_atomic(p, false, order), __atomic_load_n(p, order))
#define __atomic_store_n(p, number, order) (__atomic_store_n(p, number, order), emu_host_atomic(p, true, order))
#endif

// ---- atomics ----
// The check build must not see the plain accesses in here: it would take them for a race.
#ifdef __clang__
#define EMU_UNCHECKED __attribute__((no_sanitize("thread")))
#else
#define EMU_UNCHECKED
#endif
#define EMU_ATOMIC(name, T, expression)                    \
    EMU_UNCHECKED static inline T name(T *p, T v) {        \
        emu_access(p, sizeof *p, true, true);              \
        const T old = *p;                                  \
        *(volatile T *)p = expression;                     \
        return old;                                        \
    }
typedef unsigned long long EmuLong;
EMU_ATOMIC(atomicAdd, int, (int)((unsigned)old + (unsigned)v))
EMU_ATOMIC(atomicAdd, unsigned, old + v)
EMU_ATOMIC(atomicAdd, EmuLong, old + v)
EMU_ATOMIC(atomicAdd, float, old + v)
EMU_ATOMIC(atomicAdd, double, old + v)
EMU_ATOMIC(atomicSub, int, (int)((unsigned)old - (unsigned)v))
EMU_ATOMIC(atomicSub, unsigned, old - v)
EMU_ATOMIC(atomicMax, int, old > v ? old : v)
EMU_ATOMIC(atomicMax, unsigned, old > v ? old : v)
EMU_ATOMIC(atomicMax, EmuLong, old > v ? old : v)
EMU_ATOMIC(atomicMin, int, old < v ? old : v)
EMU_ATOMIC(atomicMin, unsigned, old < v ? old : v)
EMU_ATOMIC(atomicMin, EmuLong, old < v ? old : v)
EMU_ATOMIC(atomicExch, int, v)
EMU_ATOMIC(atomicExch, unsigned, v)
EMU_ATOMIC(atomicExch, float, v)
EMU_ATOMIC(atomicOr, int, old | v)
EMU_ATOMIC(atomicOr, unsigned, old | v)
EMU_ATOMIC(atomicAnd, int, old & v)
EMU_ATOMIC(atomicAnd, unsigned, old & v)
EMU_ATOMIC(atomicInc, unsigned, old >= v ? 0 : old + 1)
EMU_ATOMIC(atomicDec, unsigned, old == 0 || old > v ? v : old - 1)
#define EMU_ATOMIC_CAS(T)                                                   \
    EMU_UNCHECKED static inline T atomicCAS(T *p, T expected, T v) {        \
        emu_access(p, sizeof *p, true, true);                               \
        const T old = *p;                                                   \
        if (old == expected) *(volatile T *)p = v;                          \
        return old;                                                         \
    }
EMU_ATOMIC_CAS(int)
EMU_ATOMIC_CAS(unsigned)
EMU_ATOMIC_CAS(EmuLong)

// ---- loads and stores with a cache hint ----
template <class T> static inline T __ldg(const T *p) { return *p; }
template <class T> static inline T __ldca(const T *p) { return *p; }
template <class T> static inline T __ldcg(const T *p) { return *p; }
template <class T> static inline T __ldcs(const T *p) { return *p; }
template <class T> static inline T __ldlu(const T *p) { return *p; }
template <class T> static inline void __stcg(T *p, T value) { *p = value; }
template <class T> static inline void __stcs(T *p, T value) { *p = value; }
template <class T> static inline void __stwt(T *p, T value) { *p = value; }
static inline size_t __cvta_generic_to_shared(const void *p) { return (size_t)p; }

// ---- integer ----
static inline int __dp4a(int a, int b, int c) {
    int8_t x[4], y[4];
    memcpy(x, &a, 4);
    memcpy(y, &b, 4);
    return (int)((unsigned)c + (unsigned)(x[0] * y[0] + x[1] * y[1] + x[2] * y[2] + x[3] * y[3])); // wraps, as the instruction does
}
static inline unsigned __dp4a(unsigned a, unsigned b, unsigned c) {
    uint8_t x[4], y[4];
    memcpy(x, &a, 4);
    memcpy(y, &b, 4);
    return c + (unsigned)(x[0] * y[0] + x[1] * y[1] + x[2] * y[2] + x[3] * y[3]);
}
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline unsigned __brev(unsigned x) {
    unsigned r = 0;
    for (int i = 0; i < 32; i++) r |= (x >> i & 1) << (31 - i);
    return r;
}
static inline int __mulhi(int a, int b) { return (int)((int64_t)a * b >> 32); }
static inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }
static inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
    return (unsigned)(((uint64_t)high << 32 | low) << (shift & 31) >> 32);
}
static inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return (unsigned)(((uint64_t)high << 32 | low) >> (shift & 31));
}
static inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selectors) {
    const uint64_t bytes = (uint64_t)b << 32 | a;
    unsigned r = 0;
    for (int i = 0; i < 4; i++) {
        const unsigned selector = selectors >> 4 * i & 15;
        unsigned byte = bytes >> 8 * (selector & 7) & 255;
        if (selector & 8) byte = byte & 128 ? 255 : 0; // the sign, replicated
        r |= byte << 8 * i;
    }
    return r;
}
// The video instructions on four bytes that quantised formats use.
#define EMU_BYTEWISE(name, T, expression)                                  \
    static inline unsigned name(unsigned a, unsigned b) {                  \
        unsigned r = 0;                                                    \
        for (int i = 0; i < 4; i++) {                                      \
            const int x = (T)(a >> 8 * i), y = (T)(b >> 8 * i);            \
            r |= ((unsigned)(expression) & 255) << 8 * i;                  \
        }                                                                  \
        return r;                                                          \
    }
EMU_BYTEWISE(__vadd4, int8_t, x + y)
EMU_BYTEWISE(__vsub4, int8_t, x - y)
EMU_BYTEWISE(__vsubss4, int8_t, x - y < -128 ? -128 : x - y > 127 ? 127 : x - y)
EMU_BYTEWISE(__vcmpeq4, uint8_t, x == y ? 255 : 0)
EMU_BYTEWISE(__vcmpne4, uint8_t, x != y ? 255 : 0)

// ---- float ----
// Macros, because glibc declares functions with some of these names itself.
#define __expf(x) expf(x)
#define __exp10f(x) exp10f(x)
#define __logf(x) logf(x)
#define __log2f(x) log2f(x)
#define __log10f(x) log10f(x)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)
#define __tanf(x) tanf(x)
#define __powf(x, y) powf(x, y)
#define __sincosf(x, s, c) sincosf(x, s, c)
#define __tanhf(x) tanhf(x)
#define __saturatef(x) fminf(fmaxf((x), 0.0f), 1.0f)
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline float __frsqrt_rn(float x) { return (float)(1.0 / sqrt((double)x)); }
static inline float __fsqrt_rn(float x) { return sqrtf(x); }
static inline float __frcp_rn(float x) { return 1.0f / x; }
static inline float __fdividef(float a, float b) { return a / b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
template <class To, class From> static inline To emu_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "same bits");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
static inline float __int_as_float(int x) { return emu_bits<float>(x); }
static inline float __uint_as_float(unsigned x) { return emu_bits<float>(x); }
static inline int __float_as_int(float x) { return emu_bits<int>(x); }
static inline unsigned __float_as_uint(float x) { return emu_bits<unsigned>(x); }
// Out of range the device saturates and turns NaN into 0; a C++ cast would be undefined.
static inline int emu_to_int(float x) { return x != x ? 0 : x >= 2147483648.0f ? INT_MAX : x < -2147483648.0f ? INT_MIN : (int)x; }
static inline int __float2int_rn(float x) { return emu_to_int(rintf(x)); }
static inline int __float2int_rz(float x) { return emu_to_int(truncf(x)); }
static inline int __float2int_rd(float x) { return emu_to_int(floorf(x)); }
static inline int __float2int_ru(float x) { return emu_to_int(ceilf(x)); }
static inline float __int2float_rn(int x) { return (float)x; }
static inline float __uint2float_rn(unsigned x) { return (float)x; }
using std::max;
using std::min;

// ---- half and bfloat16: what the CUDA headers leave out for host compilers; one rounding, as on the device ----
// In double the product is exact and the sum all but exact, so the conversion rounds once.
static inline __half __hfma(__half a, __half b, __half c) {
    return __double2half((double)__half2float(a) * (double)__half2float(b) + (double)__half2float(c));
}
static inline __half2 __hfma2(__half2 a, __half2 b, __half2 c) {
    return __halves2half2(__hfma(__low2half(a), __low2half(b), __low2half(c)), __hfma(__high2half(a), __high2half(b), __high2half(c)));
}
static inline __nv_bfloat16 __hfma(__nv_bfloat16 a, __nv_bfloat16 b, __nv_bfloat16 c) {
    return __double2bfloat16((double)__bfloat162float(a) * (double)__bfloat162float(b) + (double)__bfloat162float(c));
}
static inline __nv_bfloat162 __hfma2(__nv_bfloat162 a, __nv_bfloat162 b, __nv_bfloat162 c) {
    return __halves2bfloat162(__hfma(__low2bfloat16(a), __low2bfloat16(b), __low2bfloat16(c)),
                              __hfma(__high2bfloat16(a), __high2bfloat16(b), __high2bfloat16(c)));
}
static inline __half hexp(__half x) { return __float2half(expf(__half2float(x))); }
static inline __half hrsqrt(__half x) { return __float2half(rsqrtf(__half2float(x))); }
static inline int __half2int_rn(__half x) { return __float2int_rn(__half2float(x)); }

#endif

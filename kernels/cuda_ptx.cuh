// cuda_ptx.cuh: the instructions that have no C++ spelling, each a function with two bodies: asm for nvcc, and for the emulator (tests/emu) what the
// PTX manual says it does. No other file holds asm. All but the last three need sm_80; the host must not launch kernels that use them on an older
// device.
//
//   cp_async16(shared, global); cp_async_commit(); ... cp_async_wait<N>();   copies of 16 bytes that go on while the thread does; wait leaves the
//       newest N groups in flight. The data is then there for the thread that issued the copy: a barrier must follow before others read it.
//   ldmatrix_x4, _x2, _x4_trans, _x2_trans(r, row)   8x8 matrices of 16-bit elements from shared memory; lane 8 m + i gives the address of row i of matrix m
//       (16-byte aligned); r[m] of lane l holds elements 2 (l % 4), + 1 of row l / 4, or of column l / 4 (trans).
//   mma_f16(d, a, b)    d (16, 8) += a (16, 16) b (16, 8), halves, sum in float
//   mma_s8(d, a, b)     d (16, 8) += a (16, 32) b (32, 8), signed bytes, sum in int
//       Let g = lane / 4, t = lane % 4, and w elements fit a register (2 halves, 4 bytes). a[i] holds w columns of row g + 8 (i % 2), from column
//       t w + 4 w (i / 2); b[i] holds w rows of column g, from row t w + 4 w i; d[i] is row g + 8 (i / 2), column 2 t + i % 2.
//   load_acquire(p), store_release(p, number)   of a number that the host and the device share: who reads a number also sees what the other side
//       wrote before it (in the emulator the host goes on as soon as it can see it). global_ns()   a clock, in nanoseconds
// Source: PTX ISA, "Warp Level Matrix Instructions", "Data Movement: cp.async", "Memory Consistency Model", "Special Registers".
#ifndef CUDA_PTX_CUH
#define CUDA_PTX_CUH

#include "cuda_port.cuh"

#ifdef CU_EMU

static inline void emu_need_sm80(const char *what) {
    if (CU_ARCH < 800) emu_report("arch", true, "%s needs sm_80", what);
}
static inline void cp_async16(void *shared, const void *global) {
    emu_need_sm80("cp.async");
    emu_copy_async(shared, global, 16, 16);
}
static inline void cp_async_commit() { emu_copy_commit(); }
template <int N> static inline void cp_async_wait() { emu_copy_wait(N); }

struct EmuLdmatrix { uint32_t *r; const void *row; };
template <int N, bool TRANS> static void emu_ldmatrix_all(unsigned, void *const brought[32]) {
    for (int m = 0; m < N; m++)
        for (int lane = 0; lane < 32; lane++) {
            uint16_t pair[2];
            for (int i = 0; i < 2; i++) {
                const int row = TRANS ? lane % 4 * 2 + i : lane / 4, col = TRANS ? lane / 4 : lane % 4 * 2 + i;
                const uint16_t *p = (const uint16_t *)((EmuLdmatrix *)brought[m * 8 + row])->row;
                if ((uintptr_t)p % 16) emu_report("misaligned", true, "ldmatrix row at %p", (const void *)p);
                pair[i] = p[col];
            }
            ((EmuLdmatrix *)brought[lane])->r[m] = pair[0] | (uint32_t)pair[1] << 16;
        }
}
template <int N, bool TRANS> static inline void emu_ldmatrix(uint32_t *r, const void *row, EmuPlace place) {
    EmuLdmatrix io = {r, row};
    // Each row is read for the whole warp; noted here, by the lane that names it, because the collective runs unchecked.
    if (emu_lane < 8 * N)
        for (int i = 0; i < 8; i++) emu_access((const uint16_t *)row + i, 2, false, false);
    emu_warp("ldmatrix", 0xffffffffu, &io, emu_ldmatrix_all<N, TRANS>, place);
}
static inline void ldmatrix_x4(uint32_t r[4], const void *row, EMU_PLACE) { emu_ldmatrix<4, false>(r, row, EMU_HERE); }
static inline void ldmatrix_x2(uint32_t r[2], const void *row, EMU_PLACE) { emu_ldmatrix<2, false>(r, row, EMU_HERE); }
static inline void ldmatrix_x4_trans(uint32_t r[4], const void *row, EMU_PLACE) { emu_ldmatrix<4, true>(r, row, EMU_HERE); }
static inline void ldmatrix_x2_trans(uint32_t r[2], const void *row, EMU_PLACE) { emu_ldmatrix<2, true>(r, row, EMU_HERE); }

static inline float emu_element(float, uint32_t word, int i) {
    __half_raw raw;
    raw.x = (unsigned short)(word >> 16 * i);
    return __half2float(__half(raw));
}
static inline int emu_element(int, uint32_t word, int i) { return (int8_t)(word >> 8 * i); }
template <class T> struct EmuMma { T *d; const uint32_t *a, *b; };
// W: elements of a register. T: type of the sum.
template <class T, int W> static void emu_mma_all(unsigned, void *const brought[32]) {
    T a[16][8 * W], b[8 * W][8];
    for (int lane = 0; lane < 32; lane++) {
        const EmuMma<T> *io = (const EmuMma<T> *)brought[lane];
        const int g = lane / 4, t = lane % 4;
        for (int i = 0; i < 4; i++)
            for (int w = 0; w < W; w++) a[g + 8 * (i % 2)][t * W + w + 4 * W * (i / 2)] = emu_element(T(), io->a[i], w);
        for (int i = 0; i < 2; i++)
            for (int w = 0; w < W; w++) b[t * W + w + 4 * W * i][g] = emu_element(T(), io->b[i], w);
    }
    for (int lane = 0; lane < 32; lane++) {
        EmuMma<T> *io = (EmuMma<T> *)brought[lane];
        for (int i = 0; i < 4; i++)
            for (int k = 0; k < 8 * W; k++) io->d[i] += a[lane / 4 + 8 * (i / 2)][k] * b[k][lane % 4 * 2 + i % 2];
    }
}
template <class T, int W> static inline void emu_mma(const char *what, T *d, const uint32_t *a, const uint32_t *b, EmuPlace place) {
    emu_need_sm80(what);
    EmuMma<T> io = {d, a, b};
    emu_warp(what, 0xffffffffu, &io, emu_mma_all<T, W>, place);
}
static inline void mma_f16(float d[4], const uint32_t a[4], const uint32_t b[2], EMU_PLACE) { emu_mma<float, 2>("mma.m16n8k16", d, a, b, EMU_HERE); }
static inline void mma_s8(int d[4], const uint32_t a[4], const uint32_t b[2], EMU_PLACE) { emu_mma<int, 4>("mma.m16n8k32", d, a, b, EMU_HERE); }

static inline unsigned load_acquire(const unsigned *p) {
    emu_acquired();
    return *(const volatile unsigned *)p;
}
static inline void store_release(unsigned *p, unsigned number) {
    *(volatile unsigned *)p = number;
    emu_host_first();
}
static inline unsigned long long global_ns() { return emu_now(); }

#else

static __device__ __forceinline__ uint32_t shared_address(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

static __device__ __forceinline__ void cp_async16(void *shared, const void *global) {
#if CU_ARCH >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(global) : "memory");
#else
    (void)shared, (void)global;
    __trap();
#endif
}
static __device__ __forceinline__ void cp_async_commit() {
#if CU_ARCH >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int N> static __device__ __forceinline__ void cp_async_wait() {
#if CU_ARCH >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}
static __device__ __forceinline__ void ldmatrix_x4(uint32_t r[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
static __device__ __forceinline__ void ldmatrix_x2(uint32_t r[2], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(shared_address(row)) : "memory");
}
static __device__ __forceinline__ void ldmatrix_x4_trans(uint32_t r[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
static __device__ __forceinline__ void ldmatrix_x2_trans(uint32_t r[2], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(shared_address(row)) : "memory");
}
static __device__ __forceinline__ void mma_f16(float d[4], const uint32_t a[4], const uint32_t b[2]) {
#if CU_ARCH >= 800
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    (void)d, (void)a, (void)b;
    __trap();
#endif
}
static __device__ __forceinline__ void mma_s8(int d[4], const uint32_t a[4], const uint32_t b[2]) {
#if CU_ARCH >= 800
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    (void)d, (void)a, (void)b;
    __trap();
#endif
}

static __device__ __forceinline__ unsigned load_acquire(const unsigned *p) {
    unsigned number;
    asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(number) : "l"(p) : "memory");
    return number;
}
static __device__ __forceinline__ void store_release(unsigned *p, unsigned number) {
    asm volatile("st.release.sys.global.u32 [%0], %1;" : : "l"(p), "r"(number) : "memory");
}
static __device__ __forceinline__ unsigned long long global_ns() {
    unsigned long long ns;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(ns));
    return ns;
}

#endif
#endif

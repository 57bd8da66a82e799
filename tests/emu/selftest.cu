// selftest.cu: kernels and host code that are right, or wrong in one known way: what the emulator must accept, and what it must find.
//   selftest CASE [BUG]     exit status 0: right result; 1: wrong result; 97: the emulator reported something (on stderr)
// tests/test_emu.sh says which build must find which bug. The bug is chosen at run time, so that this file is compiled once per build.
#include "cuda_ptx.cuh"
#include "emu_test.h"

#include <cublas_v2.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>

static const char *chosen_bug = "";
static int n_bugs_asked; // a misspelt bug must not count as found
static bool bug(const char *name) {
    const bool is = !strcmp(chosen_bug, name);
    n_bugs_asked += is;
    return is;
}
static cudaStream_t stream;

static bool check(cudaError_t e, const char *what) {
    if (e != cudaSuccess) printf("%s: %s\n", what, cudaGetErrorString(e));
    return e == cudaSuccess;
}
#define LAUNCHED(...) check(CU_LAUNCH(__VA_ARGS__), "launch")
template <class T> static T *device_array(size_t n) {
    T *p = NULL;
    if (!check(cudaMalloc((void **)&p, n * sizeof(T)), "cudaMalloc")) exit(1);
    return p;
}
template <class T> static T *device_copy(const T *host, size_t n) {
    T *p = device_array<T>(n);
    if (!check(cudaMemcpy(p, host, n * sizeof(T), cudaMemcpyHostToDevice), "cudaMemcpy")) exit(1);
    return p;
}
template <class T> static bool fetch(T *host, const T *device, size_t n) {
    return check(cudaStreamSynchronize(stream), "synchronize") && check(cudaMemcpy(host, device, n * sizeof(T), cudaMemcpyDeviceToHost), "fetch");
}
static bool near(double value, double expected) { return fabs(value - expected) <= 1e-4 * (1 + fabs(expected)); } // false for NaN

// ---- sums of rows: block reduction ----
struct SumBugs { bool no_barrier, divergent, early_return, small_mask, divergent_shuffle, no_slot, write_past, write_far, read_past; };

static __device__ float warp_sum(float v, unsigned mask) {
    for (int m = 16; m; m >>= 1) v += __shfl_xor_sync(mask, v, m);
    return v;
}
__global__ void __launch_bounds__(256) row_sum(float *sum, const float *x, int n, SumBugs bugs) {
    __shared__ float part[8];
    const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5;
    float s = 0;
    for (int i = tid; i < n + bugs.read_past; i += 256) s += x[(size_t)blockIdx.x * n + i];
    const unsigned mask = bugs.small_mask ? 0xffffu : 0xffffffffu;
    if (!bugs.divergent_shuffle || tid < 16 || tid >= 32) s = warp_sum(s, mask);
    if (lane == 0 && !(bugs.no_slot && warp == 2)) part[warp] = s;
    if (bugs.early_return && tid >= 224) return;
    if (bugs.divergent) {
        if (tid < 64) __syncthreads();
    } else if (!bugs.no_barrier) {
        __syncthreads();
    }
    s = warp_sum(lane < 8 ? part[lane] : 0.0f, 0xffffffffu);
    if (tid == 0) sum[blockIdx.x] = s;
    if (bugs.write_past && tid == 0) sum[gridDim.x] = s;
    if (bugs.write_far && tid == 0) sum[gridDim.x + 8192] = s;
}
static bool sums() {
    enum { ROWS = 5, N = 1000 };
    static float x[ROWS * N], got[ROWS];
    for (int i = 0; i < ROWS * N; i++) x[i] = (float)(i % 7) - 2.5f;
    const SumBugs bugs = {bug("no-barrier"), bug("divergent-barrier"), bug("early-return"), bug("small-mask"), bug("divergent-shuffle"),
                          bug("no-slot"),    bug("write-past"),        bug("write-far"),    bug("read-past")};
    float *dx = device_copy(x, ROWS * N), *sum = device_array<float>(ROWS);
    if (!LAUNCHED(row_sum, ROWS, bug("large-block") ? 2048 : 256, 0, stream, sum, dx, N, bugs) || !fetch(got, sum, ROWS)) return false;
    for (int r = 0; r < ROWS; r++) {
        double expected = 0;
        for (int i = 0; i < N; i++) expected += x[r * N + i];
        if (!near(got[r], expected)) return false;
    }
    return true;
}

// ---- a product of matrices by tiles; b's tile in dynamic shared memory ----
struct TileBugs { bool no_first_barrier, no_last_barrier, index; };
enum { TILE = 16 };
__global__ void __launch_bounds__(TILE *TILE) tiles(float *c, const float *a, const float *b, int n, TileBugs bugs) {
    __shared__ float a_tile[TILE][TILE];
    float *b_tile = (float *)cu_dyn_smem;
    const int tx = threadIdx.x, ty = threadIdx.y, row = blockIdx.y * TILE + ty, col = blockIdx.x * TILE + tx;
    float sum = 0;
    for (int k = 0; k < n; k += TILE) {
        a_tile[ty][tx + (bugs.index && ty == 15)] = a[row * n + k + tx];
        b_tile[ty * TILE + tx] = b[(k + ty) * n + col];
        if (!bugs.no_first_barrier) __syncthreads();
        for (int i = 0; i < TILE; i++) sum += a_tile[ty][i] * b_tile[i * TILE + tx];
        if (!bugs.no_last_barrier) __syncthreads();
    }
    c[row * n + col] = sum;
}
static bool product() {
    enum { N = 64 };
    static float a[N * N], b[N * N], c[N * N];
    for (int i = 0; i < N * N; i++) a[i] = (float)(i % 11) - 5, b[i] = (float)(i % 13) * 0.25f;
    const TileBugs bugs = {bug("no-first-barrier"), bug("no-last-barrier"), bug("shared-index")};
    float *da = device_copy(a, N * N), *db = device_array<float>(N * N), *dc = device_array<float>(N * N);
    check(cudaMemcpy(db, b, (N * N - (bug("unwritten") ? N : 0)) * sizeof(float), cudaMemcpyHostToDevice), "copy");
    const size_t smem = TILE * TILE * sizeof(float) - (bug("small-shared") ? 16 : 0);
    if (!LAUNCHED(tiles, dim3(N / TILE, N / TILE), dim3(TILE, TILE), smem, stream, dc, da, db, N, bugs) || !fetch(c, dc, N * N)) return false;
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) {
            double expected = 0;
            for (int k = 0; k < N; k++) expected += a[i * N + k] * b[k * N + j];
            if (!near(c[i * N + j], expected)) return false;
        }
    return true;
}

// ---- lanes that talk through shared memory, several times ----
__global__ void exchange(float *y, const float *x, bool no_first, bool no_second) {
    __shared__ float line[64];
    const int t = threadIdx.x;
    float v = x[t];
    for (int m = 1; m < 32; m *= 2) {
        line[t] = v;
        if (!no_first) __syncwarp();
        v += line[t ^ m];
        if (!no_second) __syncwarp();
    }
    y[t] = v; // the warp's sum
}
static bool exchanges() {
    float x[64], y[64], expected[2] = {0, 0};
    for (int i = 0; i < 64; i++) x[i] = (float)i, expected[i / 32] += x[i];
    float *dx = device_copy(x, 64), *dy = device_array<float>(64);
    if (!LAUNCHED(exchange, 1, 64, 0, stream, dy, dx, bug("no-syncwarp"), bug("no-second-syncwarp")) || !fetch(y, dy, 64)) return false;
    for (int i = 0; i < 64; i++)
        if (!near(y[i], expected[i / 32])) return false;
    return true;
}

// ---- blocks that work on one result: by atomics; by the last one to finish ----
__global__ void add_all(float *sum, const float *x, int n, bool plain) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    if (!plain) atomicAdd(sum, x[i]);
    else if (threadIdx.x == 0)
        for (int k = 0; k < (int)blockDim.x && i + k < n; k++) *sum += x[i + k];
}
__global__ void add_last(float *sum, float *part, unsigned *n_done, const float *x, bool no_fence) {
    __shared__ bool last;
    const int t = threadIdx.x;
    if (t == 0) {
        part[blockIdx.x] = x[blockIdx.x];
        if (!no_fence) __threadfence();
        last = atomicInc(n_done, gridDim.x - 1) == gridDim.x - 1;
    }
    __syncthreads();
    if (!last || t) return;
    float s = 0;
    for (int i = 0; i < (int)gridDim.x; i++) s += part[i];
    *sum = s;
}
static bool blocks() {
    enum { N = 300 };
    float x[N], zero = 0, got[2], expected = 0;
    const unsigned none = 0;
    for (int i = 0; i < N; i++) expected += x[i] = (float)(i % 5);
    float *dx = device_copy(x, N), *sum = device_copy(&zero, 1), *last_sum = device_array<float>(1), *part = device_array<float>(N);
    unsigned *n_done = device_copy(&none, 1);
    if (!LAUNCHED(add_all, 5, 64, 0, stream, sum, dx, N, bug("plain-sum"))) return false;
    if (!LAUNCHED(add_last, N, 32, 0, stream, last_sum, part, n_done, dx, bug("no-fence"))) return false;
    return fetch(&got[0], sum, 1) && fetch(&got[1], last_sum, 1) && near(got[0], expected) && near(got[1], expected);
}

// ---- alignment, integer width ----
struct Block34 { uint16_t scale; int8_t q[32]; }; // as Q8_0: q is at an odd multiple of 2
__global__ void dot34(int *sum, const Block34 *w, const int *x, bool wide) {
    const int t = threadIdx.x;
    const int8_t *q = w[t / 8].q + t % 8 * 4;
    int four;
    if (wide) four = *(const int *)q;
    else four = (int)(((const uint16_t *)q)[0] | (unsigned)((const uint16_t *)q)[1] << 16);
    atomicAdd(sum, __dp4a(four, x[t], 0));
}
__global__ void by_four(float *y, const float *x, int offset) {
    const float4 v = ((const float4 *)(x + offset))[threadIdx.x];
    ((float4 *)y)[threadIdx.x] = make_float4(v.x + 1, v.y + 1, v.z + 1, v.w + 1);
}
__global__ void by_stride(float *y, int n, int stride) {
    const int t = threadIdx.x, i = t * stride; // 63 * 50,000,000 is beyond 2^31
    if (i >= 0 && i < n) y[i] = 1;
}
static bool widths() {
    Block34 w[4];
    int8_t x8[128];
    const int zero = 0;
    int got, expected = 0, x4[32];
    float x[68], y[64];
    for (int i = 0; i < 128; i++) expected += (w[i / 32].q[i % 32] = (int8_t)(i * 37)) * (x8[i] = (int8_t)(i * 11));
    for (int i = 0; i < 4; i++) w[i].scale = 1;
    for (int i = 0; i < 68; i++) x[i] = (float)i;
    memcpy(x4, x8, sizeof x4);
    int *sum = device_copy(&zero, 1);
    float *dx = device_copy(x, 68), *dy = device_array<float>(64);
    if (!LAUNCHED(dot34, 1, 32, 0, stream, sum, device_copy(w, 4), device_copy(x4, 32), bug("wide-load"))) return false;
    const int offset = bug("odd-vector");
    if (!LAUNCHED(by_four, 1, 16, 0, stream, dy, dx, offset)) return false;
    if (!fetch(&got, sum, 1) || !fetch(y, dy, 64) || got != expected || y[63] != (float)(64 + offset)) return false;
    return LAUNCHED(by_stride, 1, 64, 0, stream, dy, 64, bug("index-overflow") ? 50000000 : 1) && fetch(y, dy, 64) && y[0] == 1;
}

// ---- pointers ----
__global__ void scale(float *x, float factor, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) x[i] *= factor;
}
static bool pointers() {
    float x[64], y[64];
    for (int i = 0; i < 64; i++) x[i] = (float)i;
    float *dx = device_copy(x, 64), *given = dx;
    if (bug("host-pointer")) given = x;
    if (bug("host-touches")) dx[3] = 1;
    if (bug("use-after-free")) cudaFree(dx);
    if (bug("double-free")) cudaFree(dx), cudaFree(dx);
    if (bug("null")) given = NULL;
    if (bug("copy-past")) cudaMemcpy(y, dx, sizeof y + 4, cudaMemcpyDeviceToHost);
    if (bug("copy-kind")) cudaMemcpy(dx, x, sizeof x, cudaMemcpyDeviceToHost);
    if (!LAUNCHED(scale, 1, 64, 0, stream, given, 2.0f, 64) || !fetch(y, dx, 64)) return false;
    for (int i = 0; i < 64; i++)
        if (y[i] != 2 * x[i]) return false;
    return check(cudaFree(dx), "cudaFree") && emu_allocations() == 0;
}
static __device__ float recurse(int depth) {
    volatile float room[256];
    room[depth & 255] = (float)depth;
    return depth < 1000 ? recurse(depth + 1) + 0 * room[depth & 255] : room[depth & 255];
}
__global__ void deep(float *y, int depth) { *y = recurse(depth); }
static bool stack() {
    float y = 0, *dy = device_array<float>(1);
    const int depth = bug("deep") ? 0 : 990;
    return LAUNCHED(deep, 1, 1, 0, stream, dy, depth) && fetch(&y, dy, 1) && y == 1000;
}

// ---- host code: two streams, pinned memory, events ----
static bool queues() {
    enum { N = 1024 };
    float *in, *out, *dx = device_array<float>(N);
    cudaStream_t copies;
    cudaEvent_t copied;
    if (!check(cudaStreamCreateWithFlags(&copies, cudaStreamNonBlocking), "stream")) return false;
    if (!check(cudaEventCreateWithFlags(&copied, cudaEventDisableTiming), "event")) return false;
    if (bug("pageable")) in = (float *)malloc(N * sizeof *in);
    else if (!check(cudaMallocHost((void **)&in, N * sizeof *in), "pinned")) return false;
    if (!check(cudaMallocHost((void **)&out, N * sizeof *out), "pinned")) return false;
    bool right = true;
    for (int turn = 0; turn < 3; turn++) {
        for (int i = 0; i < N; i++) in[i] = (float)(turn + i);
        cudaMemcpyAsync(dx, in, N * sizeof *in, cudaMemcpyHostToDevice, copies);
        if (!bug("no-event")) {
            cudaEventRecord(copied, copies);
            cudaStreamWaitEvent(stream, copied, 0);
        }
        if (bug("early-reuse"))
            for (int i = 0; i < N; i++) in[i] = -1;
        if (!LAUNCHED(scale, 8, 128, 0, bug("stream-0") ? NULL : stream, dx, 2.0f, N)) return false;
        if (bug("unsynchronised-copy")) cudaMemcpy(out, dx, N * sizeof *out, cudaMemcpyDeviceToHost); // stream 0 does not wait for a non-blocking one
        else cudaMemcpyAsync(out, dx, N * sizeof *out, cudaMemcpyDeviceToHost, stream);
        if (!bug("no-sync")) cudaStreamSynchronize(stream);
        for (int i = 0; i < N; i++) right &= out[i] == 2.0f * (float)(turn + i);
        cudaStreamSynchronize(copies);
        cudaStreamSynchronize(stream);
    }
    if (bug("early-free")) {
        cudaMemsetAsync(dx, 0, N * sizeof *dx, stream);
        cudaFree(dx);
        cudaStreamSynchronize(stream);
    }
    cudaEventDestroy(copied);
    cudaStreamDestroy(copies);
    return right;
}
static bool graphs() {
    enum { N = 100 };
    float x[N];
    for (int i = 0; i < N; i++) x[i] = 1;
    float *dx = device_copy(x, N);
    cudaStream_t side;
    cudaEvent_t forked, joined;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cudaStreamCreateWithFlags(&side, cudaStreamNonBlocking);
    cudaEventCreateWithFlags(&forked, cudaEventDisableTiming);
    cudaEventCreateWithFlags(&joined, cudaEventDisableTiming);
    if (!check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture")) return false;
    if (!LAUNCHED(scale, 1, 128, 0, stream, dx, 2.0f, N)) return false;
    cudaEventRecord(forked, stream);
    cudaStreamWaitEvent(side, forked, 0);
    if (!LAUNCHED(scale, 1, 128, 0, side, dx, 3.0f, N)) return false;
    cudaEventRecord(joined, side);
    if (!bug("unjoined")) cudaStreamWaitEvent(stream, joined, 0);
    if (bug("malloc-in-capture")) device_array<float>(4);
    if (bug("sync-in-capture") && !check(cudaStreamSynchronize(stream), "sync")) return false;
    if (!check(cudaStreamEndCapture(stream, &graph), "end of capture") || !check(cudaGraphInstantiate(&exec, graph, 0), "instantiate")) return false;
    const bool nothing_ran = emu_launches("scale") == 0;
    for (int i = 0; i < 3; i++)
        if (!check(cudaGraphLaunch(exec, stream), "graph")) return false;
    const bool right = fetch(x, dx, N) && x[0] == 216 && x[N - 1] == 216 && nothing_ran && emu_launches("scale") == 6;
    cudaGraphDestroy(graph);
    cudaGraphExecDestroy(exec);
    return right;
}

// ---- what the shim computes, lane by lane ----
struct Words { int down, up, across, other, ballot, any, all, reduced, count, odd, both; };
__global__ void lanes(Words *out, int width, bool stray) {
    const int t = threadIdx.x, lane = t & 31;
    Words w = {};
    w.down = __shfl_down_sync(0xffffffffu, t, 3, width);
    w.up = __shfl_up_sync(0xffffffffu, t, 3, width);
    w.across = __shfl_sync(0xffffffffu, t, 5, width);
    w.other = __shfl_xor_sync(0xffffffffu, t, 1, width);
    w.ballot = (int)__ballot_sync(0xffffffffu, t % 3 == 0);
    w.any = __any_sync(0xffffffffu, t == 40);
    w.all = __all_sync(0xffffffffu, t >= 32);
    w.reduced = __reduce_add_sync(0xffffffffu, t);
    w.count = __syncthreads_count(t % 2);
    w.odd = __syncthreads_or(t == 999) + 2 * __syncthreads_and(t < 64);
    if (lane < 16) w.both = __shfl_xor_sync(0x0000ffffu, t, stray ? 16 : 8); // two halves of a warp at once
    else w.both = __shfl_xor_sync(0xffff0000u, t, 4);
    out[t] = w;
}
static bool warps() {
    Words got[64];
    bool right = true;
    Words *out = device_array<Words>(64);
    for (int width = 8; width <= 32; width *= 2) {
        if (!LAUNCHED(lanes, 1, 64, 0, stream, out, width, bug("stray-shuffle")) || !fetch(got, out, 64)) return false;
        for (int t = 0; t < 64; t++) {
            const int first = t & -width, inside = t - first;
            unsigned ballot = 0;
            int sum = 0;
            for (int l = 0; l < 32; l++) ballot |= (unsigned)(((t & 32) + l) % 3 == 0) << l, sum += (t & 32) + l;
            const Words w = got[t];
            right &= w.down == (inside + 3 < width ? t + 3 : t) && w.up == (inside >= 3 ? t - 3 : t) && w.across == first + 5 && w.other == (t ^ 1);
            right &= w.ballot == (int)ballot && w.any == (t >= 32) && w.all == (t >= 32) && w.reduced == sum && w.count == 32 && w.odd == 2;
            right &= w.both == (t ^ ((t & 31) < 16 ? 8 : 4));
        }
    }
    return right;
}
__global__ void numbers(unsigned *out, float *real) {
    __shared__ int counter; // atomics work on shared and global memory only
    int i = 0;
    counter = 5;
    out[i++] = (unsigned)__dp4a(0x7f80ff01, 0x02030405, 7) == 7u + 127 * 2 - 128 * 3 - 1 * 4 + 1 * 5;
    out[i++] = __dp4a(0xff000001u, 0x02030405u, 1u) == 1 + 255 * 2 + 5;
    out[i++] = __byte_perm(0x33221100u, 0x77665544u, 0x7610u) == 0x77661100u;
    out[i++] = (unsigned)atomicMax(&counter, 9) == 5 && atomicAdd(&counter, 1) == 9 && atomicCAS(&counter, 10, 3) == 10 && counter == 3;
    out[i++] = __vsubss4(0x80000102u, 0x01000101u) == 0x80000001u;
    out[i++] = __float2int_rn(2.5f) == 2 && __float2int_rz(-2.7f) == -2 && __float2int_rn(3e9f) == INT_MAX;
    out[i++] = __half2float(__hfma(__float2half(3), __float2half(5), __float2half(0.5f))) == 15.5f;
    out[i++] = __low2float(__hfma2(__floats2half2_rn(3, 4), __floats2half2_rn(5, 6), __floats2half2_rn(1, 2))) == 16.0f;
    out[i++] = __popc(0xf0u) == 4 && __clz(1) == 31 && __ffs(8) == 4 && __umulhi(1u << 31, 4u) == 2;
    real[0] = rsqrtf(4.0f) + __expf(0.0f) + __fdividef(1.0f, 4.0f);
    out[i] = 1;
}
static bool arithmetic() {
    unsigned good[10];
    float real;
    unsigned *out = device_array<unsigned>(10);
    float *dr = device_array<float>(1);
    if (!LAUNCHED(numbers, 1, 1, 0, stream, out, dr) || !fetch(good, out, 10) || !fetch(&real, dr, 1)) return false;
    bool right = real == 1.75f;
    for (int i = 0; i < 10; i++)
        if (good[i] != 1) printf("number %d\n", i), right = false;
    return right;
}

// ---- tensor instructions: c (16, 16) = a (16, K) b (16, K)^T in slices of 16 columns that are copied while the one before is used ----
struct TensorBugs { bool no_wait, no_barrier, no_last_barrier, fragment, misaligned; };
__global__ void __launch_bounds__(64) tensor_half(float *c, const __half *a, const __half *b, int k, bool by_columns, TensorBugs bugs) {
    __shared__ __align__(16) __half slice[2][2][16][24]; // buffer, a or b, row, column and padding
    const int t = threadIdx.x, lane = t & 31, warp = t >> 5, row = t / 2 % 16, half = t % 2 * 8; // warp 0 copies a, warp 1 copies b
    const __half *from = (warp ? b : a) + row * k + half;
    float d[4] = {0, 0, 0, 0};
    cp_async16(&slice[0][warp][row][half], from);
    cp_async_commit();
    for (int i = 0; i * 16 < k; i++) {
        if ((i + 1) * 16 < k) cp_async16(&slice[(i + 1) % 2][warp][row][half], from + (i + 1) * 16);
        cp_async_commit(); // an empty group in the last turn
        if (bugs.no_wait) cp_async_wait<2>();
        else cp_async_wait<1>();
        if (!bugs.no_barrier) __syncthreads();
        uint32_t left[4], right[2];
        ldmatrix_x4(left, &slice[i % 2][0][lane % 16][lane / 16 * 8 + bugs.misaligned]);
        if (by_columns) ldmatrix_x2_trans(right, &slice[i % 2][1][lane % 16][warp * 8]);
        else ldmatrix_x2(right, &slice[i % 2][1][warp * 8 + lane % 8][lane / 8 % 2 * 8]);
        if (bugs.fragment) left[1] = left[2];
        mma_f16(d, left, right);
        if (!bugs.no_last_barrier) __syncthreads();
    }
    cp_async_wait<0>();
    for (int i = 0; i < 4; i++) c[(lane / 4 + i / 2 * 8) * 16 + warp * 8 + lane % 4 * 2 + i % 2] = d[i];
}
__global__ void tensor_bytes(int *c, const int8_t *a, const int8_t *b) { // c (16, 8) = a (16, 32) b (8, 32)^T
    const int lane = threadIdx.x, g = lane / 4, at = lane % 4 * 4;
    uint32_t left[4], right[2];
    int d[4] = {1, 1, 1, 1};
    for (int i = 0; i < 4; i++) left[i] = *(const uint32_t *)(a + (g + i % 2 * 8) * 32 + at + i / 2 * 16);
    for (int i = 0; i < 2; i++) right[i] = *(const uint32_t *)(b + g * 32 + at + i * 16);
    mma_s8(d, left, right);
    for (int i = 0; i < 4; i++) c[(g + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = d[i];
}
static bool tensors() {
    enum { K = 80 };
    static __half a[16 * K], b[16 * K];
    int8_t a8[16 * 32], b8[8 * 32];
    float c[256];
    int c8[128];
    const TensorBugs bugs = {bug("no-wait"), bug("no-barrier"), bug("no-last-barrier"), bug("fragment"), bug("misaligned")};
    for (int i = 0; i < 16 * K; i++) a[i] = __float2half((float)(i * 7 % 11) - 5), b[i] = __float2half((float)(i * 5 % 13) - 6);
    for (int i = 0; i < 16 * 32; i++) a8[i] = (int8_t)(i * 37);
    for (int i = 0; i < 8 * 32; i++) b8[i] = (int8_t)(i * 91);
    __half *da = device_copy(a, 16 * K), *db = device_copy(b, 16 * K);
    float *dc = device_array<float>(256);
    int *dc8 = device_array<int>(128);
    bool right = true;
    for (int by_columns = 0; by_columns < 2; by_columns++) { // then each slice of b is a (16, 16) matrix (row k, column n)
        if (!LAUNCHED(tensor_half, 1, 64, 0, stream, dc, da, db, K, by_columns, bugs) || !fetch(c, dc, 256)) return false;
        for (int i = 0; i < 16; i++)
            for (int j = 0; j < 16; j++) {
                double expected = 0;
                for (int k = 0; k < K; k++) {
                    const __half other = by_columns ? b[k % 16 * K + k / 16 * 16 + j] : b[j * K + k];
                    expected += __half2float(a[i * K + k]) * __half2float(other);
                }
                right &= near(c[i * 16 + j], expected);
            }
    }
    if (!LAUNCHED(tensor_bytes, 1, 32, 0, stream, dc8, device_copy(a8, 16 * 32), device_copy(b8, 8 * 32)) || !fetch(c8, dc8, 128)) return false;
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 8; j++) {
            int expected = 1;
            for (int k = 0; k < 32; k++) expected += a8[i * 32 + k] * b8[j * 32 + k];
            right &= c8[i * 8 + j] == expected;
        }
    return right;
}

// ---- a large odd grid, three dimensions ----
__global__ void where(int *seen, int n_thread) {
    const int t = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    const int b = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    __syncthreads();
    seen[b * n_thread + t] = b * n_thread + t;
}
static bool shapes() {
    static const dim3 blocks[] = {dim3(1), dim3(1024), dim3(33), dim3(7, 5, 3), dim3(32, 32), dim3(1, 1, 64)};
    static int seen[30 * 1024];
    int *ds = device_array<int>(30 * 1024);
    for (const dim3 &block : blocks) {
        const int n = (int)(block.x * block.y * block.z);
        if (!LAUNCHED(where, dim3(2, 3, 5), block, 0, stream, ds, n) || !fetch(seen, ds, 30 * (size_t)n)) return false;
        for (int i = 0; i < 30 * n; i++)
            if (seen[i] != i) return false;
    }
    return true;
}

// ---- the device: memory, errors, faults on request, cuBLAS ----
static bool device() {
    size_t n_free, n_total, later;
    void *p, *q;
    cudaDeviceProp properties;
    if (!check(cudaMemGetInfo(&n_free, &n_total), "memory") || !check(cudaGetDeviceProperties(&properties, 0), "properties")) return false;
    bool right = n_total == emu_config.memory && n_free == n_total - emu_config.reserve && properties.multiProcessorCount == emu_config.n_sm;
    right &= properties.major * 10 + properties.minor == emu_config.arch;
    right &= cudaMalloc(&p, n_free + 1) == cudaErrorMemoryAllocation && p == NULL;
    right &= cudaGetLastError() == cudaErrorMemoryAllocation && cudaGetLastError() == cudaSuccess;
    right &= cudaMalloc(&p, n_free / 2) == cudaSuccess && cudaMalloc(&q, n_free / 2 + (3 << 20)) == cudaErrorMemoryAllocation;
    right &= cudaMemGetInfo(&later, &n_total) == cudaSuccess && later <= n_free - n_free / 2;
    right &= cudaFree(p) == cudaSuccess && emu_memory_used() == 0 && cudaGetLastError() == cudaErrorMemoryAllocation;
    emu_config.fail_alloc = 2;
    right &= cudaMalloc(&p, 16) == cudaSuccess && cudaMalloc(&q, 16) == cudaErrorMemoryAllocation && cudaMalloc(&q, 16) == cudaSuccess;
    emu_config.fail_launch = 2;
    right &= cudaMemsetAsync(p, 0, 16, stream) == cudaSuccess;
    for (int i = 0; i < 3; i++) right &= (CU_LAUNCH(scale, 1, 4, 0, stream, (float *)p, 1.0f, 4) == cudaSuccess) == (i != 1);
    right &= CU_LAUNCH(scale, 1, 4, 60000, stream, (float *)p, 1.0f, 4) != cudaSuccess && emu_reports("bad-launch") == 1; // needs the attribute
    emu_clear_reports();
    right &= cudaFuncSetAttribute(scale, cudaFuncAttributeMaxDynamicSharedMemorySize, 60000) == cudaSuccess;
    right &= CU_LAUNCH(scale, 1, 4, 60000, stream, (float *)p, 1.0f, 4) == cudaSuccess;
    emu_config.arch = CU_ARCH / 10 - 5;
    right &= CU_LAUNCH(scale, 1, 4, 0, stream, (float *)p, 1.0f, 4) == cudaErrorNoKernelImageForDevice;
    emu_config.arch = 86;
    emu_config.driver = 0;
    int n;
    right &= cudaGetDeviceCount(&n) == cudaErrorInsufficientDriver && n == 0;
    emu_config.driver = 13000;
    emu_config.n_device = 0;
    right &= cudaGetDeviceCount(&n) == cudaErrorNoDevice;
    emu_config.n_device = 1;
    return right && check(cudaStreamSynchronize(stream), "synchronize");
}
typedef cublasStatus_t Create(cublasHandle_t *);
typedef cublasStatus_t SetStream(cublasHandle_t, cudaStream_t);
typedef cublasStatus_t Gemm(cublasHandle_t, cublasOperation_t, cublasOperation_t, int, int, int, const void *, const void *, cudaDataType, int,
                            const void *, cudaDataType, int, const void *, void *, cudaDataType, int, cublasComputeType_t, cublasGemmAlgo_t);
static bool cublas() {
    enum { M = 5, N = 4, K = 3 };
    void *library = cu_library_open("libcublas.so.13");
    Create *create = (Create *)cu_library_symbol(library, "cublasCreate_v2");
    SetStream *set_stream = (SetStream *)cu_library_symbol(library, "cublasSetStream_v2");
    Gemm *gemm = (Gemm *)cu_library_symbol(library, "cublasGemmEx");
    cublasHandle_t handle;
    if (!create || !set_stream || !gemm || cu_library_symbol(library, "cublasNothing") || cu_library_open("libm.so.6")) return false;
    if (create(&handle) || set_stream(handle, stream)) return false;
    __half a[M * K], b[N * K]; // rows of K: c(m, n) = a(m, k) b(n, k)
    float c[N * M];
    for (int i = 0; i < M * K; i++) a[i] = __float2half((float)(i - 4));
    for (int i = 0; i < N * K; i++) b[i] = __float2half((float)(i % 5));
    __half *da = device_copy(a, M * K), *db = device_copy(b, N * K);
    float *dc = device_array<float>(N * M);
    const float one = 1, zero = 0;
    const int columns = N + (bug("gemm-past") ? 1 : 0);
    if (gemm(handle, CUBLAS_OP_T, CUBLAS_OP_N, M, columns, K, &one, da, CUDA_R_16F, K, db, CUDA_R_16F, K, &zero, dc, CUDA_R_32F, M, CUBLAS_COMPUTE_32F,
             CUBLAS_GEMM_DEFAULT)) return false;
    if (!gemm(handle, CUBLAS_OP_T, CUBLAS_OP_N, M, N, K, &one, da, CUDA_R_16F, K - 1, db, CUDA_R_16F, K, &zero, dc, CUDA_R_32F, M, CUBLAS_COMPUTE_32F,
              CUBLAS_GEMM_DEFAULT)) return false; // a leading dimension that is too small
    if (!fetch(c, dc, N * M)) return false;
    for (int n = 0; n < N; n++)
        for (int m = 0; m < M; m++) {
            float expected = 0;
            for (int k = 0; k < K; k++) expected += (float)(m * K + k - 4) * (float)((n * K + k) % 5);
            if (c[n * M + m] != expected) return false;
        }
    return true;
}
// ---- a kernel that waits for the host, which waits for a kernel: numbers and rows in mapped pinned memory ----
struct Answer { unsigned asked, answered; };
struct AskBugs { bool no_barrier, no_fence, no_second_fence, number_first; };
__global__ void __launch_bounds__(64) ask(Answer *shared, float *out, const float *x, unsigned *n_block, unsigned number, AskBugs bugs) {
    const int tid = threadIdx.x, i = blockIdx.x * 64 + tid;
    if (bugs.number_first && i == (int)gridDim.x * 64 - 1) store_release(&shared->asked, number);
    out[i] = x[i] + (float)number;
    if (!bugs.no_barrier) __syncthreads();
    if (tid != 0) return;
    if (!bugs.no_fence) __threadfence_system();
    if (atomicAdd(n_block, 1u) != gridDim.x - 1) return;
    if (!bugs.no_second_fence) __threadfence_system();
    *n_block = 0;
    store_release(&shared->asked, number);
}
__global__ void __launch_bounds__(64) take(float *y, const Answer *shared, const float *in, unsigned number, bool not_answered) {
    const int tid = threadIdx.x, i = blockIdx.x * 64 + tid;
    if (tid == 0 && !not_answered)
        while (load_acquire(&shared->answered) != number) __nanosleep(100);
    __syncthreads();
    y[i] = in[i];
}
static bool waits() {
    enum { N = 192 };
    char *memory, *seen; // by the device
    float x[N], y[N], asked[N], *dy = device_array<float>(N), *aside = device_array<float>(N), *pinned;
    unsigned zero = 0, *n_block = device_copy(&zero, 1);
    cudaStream_t side;
    if (!check(cudaHostAlloc((void **)&memory, sizeof(Answer) + 2 * sizeof y, cudaHostAllocMapped), "mapped memory") ||
        !check(cudaHostGetDevicePointer((void **)&seen, memory, 0), "its address") ||
        !check(cudaMallocHost((void **)&pinned, sizeof x), "pinned memory") || !check(cudaStreamCreateWithFlags(&side, cudaStreamNonBlocking), "stream")) return false;
    Answer *answer = (Answer *)memory, *shared = (Answer *)seen;
    float *out = (float *)(answer + 1), *in = out + N, *seen_out = (float *)(shared + 1), *seen_in = seen_out + N;
    for (int i = 0; i < N; i++) x[i] = pinned[i] = (float)i;
    const float *dx = device_copy(x, N);
    const AskBugs bugs = {bug("no-barrier"), bug("no-fence"), bug("no-second-fence"), bug("number-first")};
    const bool not_asked = bug("not-asked"), relaxed_load = bug("relaxed-load"), answer_first = bug("answer-first"), relaxed_store = bug("relaxed-store"),
               not_answered = bug("not-answered"), ask_again = bug("ask-again"), no_answer = bug("no-answer");
    bool right = true;
    emu_config.patience = 1;
    memset(memory, 0, sizeof(Answer) + 2 * sizeof y);
    for (unsigned k = 1; k <= 3; k++) {
        if (!LAUNCHED(ask, N / 64, 64, 0, stream, shared, seen_out, dx, n_block, k, bugs)) return false;
        while (!not_asked && (relaxed_load ? __atomic_load_n(&answer->asked, __ATOMIC_RELAXED) : __atomic_load_n(&answer->asked, __ATOMIC_ACQUIRE)) != k) cu_host_pause();
        if (ask_again && !LAUNCHED(ask, N / 64, 64, 0, stream, shared, seen_out, dx, n_block, k + 1, bugs)) return false;
        if (ask_again && !check(cudaStreamSynchronize(stream), "synchronize")) return false;
        memcpy(asked, out, sizeof asked);
        if (!LAUNCHED(take, N / 64, 64, 0, stream, dy, shared, seen_in, k, not_answered) || !LAUNCHED(scale, 1, N, 0, stream, dy, 2.0f, N)) return false;
        // Other streams copy meanwhile. Their kernels begin later here, so nobody may wait for one.
        if (!check(cudaMemcpyAsync(aside, pinned, sizeof x, cudaMemcpyHostToDevice, side), "copy") || !check(cudaStreamSynchronize(side), "synchronize")) return false;
        right &= not_answered || cudaStreamQuery(stream) == cudaErrorNotReady;
        if (k == 2 && !LAUNCHED(scale, 1, N, 0, side, aside, 3.0f, N)) return false;
        if (answer_first) __atomic_store_n(&answer->answered, k, __ATOMIC_RELEASE);
        for (int i = 0; i < N; i++) in[i] = asked[i] + 1;
        if (relaxed_store) __atomic_store_n(&answer->answered, k, __ATOMIC_RELAXED);
        else if (!no_answer && !answer_first) __atomic_store_n(&answer->answered, k, __ATOMIC_RELEASE);
        if (!fetch(y, dy, N) || !check(cudaStreamSynchronize(side), "synchronize")) return false;
        for (int i = 0; i < N; i++) right &= y[i] == 2 * (x[i] + (float)k + 1);
        if (no_answer) return true; // the report counts
    }
    right &= emu_launches("scale") == 4;
    right &= cudaFreeHost(memory) == cudaSuccess && cudaFreeHost(pinned) == cudaSuccess;
    return right;
}

// A million threads, with and without a shuffle: only to be timed (EMU_STATS, time).
static bool speed() {
    enum { N = 1 << 20 };
    float *dx = device_array<float>(N), *sum = device_array<float>(1024);
    const bool reduce = bug("reduce");
    return check(cudaMemsetAsync(dx, 0, N * sizeof *dx, stream), "memset") &&
           (reduce ? LAUNCHED(row_sum, 1024, 256, 0, stream, sum, dx, 1024, SumBugs{})
                   : LAUNCHED(scale, N / 256, 256, 0, stream, dx, 2.0f, N)) &&
           check(cudaStreamSynchronize(stream), "synchronize");
}

int main(int argc, char **argv) {
    static const struct { const char *name; bool (*run)(); } cases[] = {
        {"sums", sums},         {"product", product}, {"exchanges", exchanges}, {"blocks", blocks}, {"widths", widths},
        {"pointers", pointers}, {"stack", stack},     {"queues", queues},       {"graphs", graphs}, {"warps", warps},
        {"arithmetic", arithmetic}, {"shapes", shapes}, {"tensors", tensors}, {"device", device},     {"cublas", cublas},
        {"waits", waits}, {"speed", speed},
    };
    if (argc > 2) chosen_bug = argv[2];
    for (auto &c : cases) {
        if (argc < 2 || strcmp(argv[1], c.name)) continue;
        if (!check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream")) return 1;
        const bool right = c.run();
        if (argc > 2 && !n_bugs_asked) {
            fprintf(stderr, "selftest: case %s has no bug '%s'\n", argv[1], chosen_bug);
            return 2;
        }
        puts(right ? "right" : "WRONG");
        return right ? 0 : 1;
    }
    fprintf(stderr, "usage: selftest CASE [BUG]\n");
    return 2;
}

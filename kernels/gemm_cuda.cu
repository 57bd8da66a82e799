// gemm_cuda.cu: y = W x (+ bias) for many rows of x by cuBLAS, where it is found: W (a tile of its rows at a time) and x are
// written as float16, multiplied by the tensor cores with sums in float, then scaled back.
//
// Protocol: cuda_gemm_open at reserve, which then carves cuda_gemm_bytes of scratch, then cuda_gemm_start; cuda_gemm_takes says
// whether it is worth it. cuBLAS is a library found at run time: without it nothing is said, and matmul_cuda.cu does all.
//
// Why float16: 11 bits, where bfloat16 has 8. Rounding both sides so costs a product NMSE 8e-8 (bfloat16 6e-6, 8-bit activations
// 2e-5); the reference model llama3-F16 ends at 1.4e-6 of at most 2.4e-6 (bfloat16: 1.4e-4), and sm_75 has no bfloat16.
// Its range, 2^-14 .. 2^16, is too small for Gemma's activations and for some formats' scales, so each row of W and of x is
// multiplied by a power of two that brings its largest element, or a bound of it, to 2^14: what is 2^28 times smaller is still
// rounded to 11 bits, and the product, a float, is divided by both, exactly.
// Why tiles: 32 MiB of scratch, whatever the matrix; what is written, multiplied and scaled back may stay in a large L2 cache.
// With x and a workspace it is 40 to 130 MiB; what cuBLAS takes for its code comes on top: both out of RESERVE (engine/place.c).
#include "cuda_quant.cuh"
#include <stdlib.h>

// Rows of x from which this is faster than the 8-bit tiles of matmul_mma: a guess, not measured, from spec/performance.md, 4.5.
// Writing W costs, per weight, the reading of 0.56 (Q4_K) and the moving of 4 bytes: on an RTX 3060 15 ps; multiplying, per
// row, at 19 TFLOP/s 0.11 ps, by own tiles at 5 to 10 TFLOP/s 0.4 to 0.2 ps: equal at 50 to 160 rows. On an H100, where own
// tiles lack its wide instructions, at about 80. W that is float16 is not written, and has only float tiles beside it.
enum { GEMM_FROM = 128, GEMM_FROM_F16 = 32 };

static const int TILE_ELEMENTS = 16 << 20, TILE_ROWS = 8192; // at most, of W at a time: 32 MiB
static const int ROW_STEP = 128;                             // a tile has a multiple of these rows, as those inside cuBLAS

// ---- the library ----

// As in cublas_api.h of CUDA 11 to 13, which need not be installed where this is compiled. Status 0: success.
enum { OP_N = 0, OP_T = 1, COMPUTE_32F = 68, ALGO_DEFAULT = -1 };
typedef int BlasCreate(void **handle);
typedef int BlasDestroy(void *handle);
typedef int BlasSetStream(void *handle, cudaStream_t stream);
typedef int BlasSetWorkspace(void *handle, void *workspace, size_t bytes);
// Column-major: c (m, n) = alpha op(a) (m, k) op(b) (k, n) + beta c; ld: elements from one column to the next.
typedef int BlasGemmEx(void *handle, int op_a, int op_b, int m, int n, int k, const void *alpha, const void *a, cudaDataType type_a, int ld_a,
                       const void *b, cudaDataType type_b, int ld_b, const void *beta, void *c, cudaDataType type_c, int ld_c, int compute, int algo);

struct Gemm {
    void *library, *handle;
    BlasDestroy *destroy;
    BlasSetStream *set_stream;
    BlasSetWorkspace *set_workspace;
    BlasGemmEx *multiply;
    size_t workspace_bytes;
    // Scratch
    __half *w, *x;             // [tile_rows][n_col], [n_rows][n_col]
    float *w_scale, *x_scale;  // [tile_rows], [n_rows]: the elements of a row were divided by this
};

static bool connect(Gemm *g, const char *name) {
    if (!(g->library = cu_library_open(name))) return false;
    BlasCreate *create = (BlasCreate *)cu_library_symbol(g->library, "cublasCreate_v2");
    g->destroy = (BlasDestroy *)cu_library_symbol(g->library, "cublasDestroy_v2");
    g->set_stream = (BlasSetStream *)cu_library_symbol(g->library, "cublasSetStream_v2");
    g->set_workspace = (BlasSetWorkspace *)cu_library_symbol(g->library, "cublasSetWorkspace_v2");
    g->multiply = (BlasGemmEx *)cu_library_symbol(g->library, "cublasGemmEx");
    const bool whole = create && g->destroy && g->set_stream && g->set_workspace && g->multiply;
    if (whole && create(&g->handle) == 0) return true; // one newer than the driver is found, and fails here
    cu_library_close(g->library);
    return false;
}

void cuda_gemm_open(Cuda *c) {
    static const char *const names[] = {"libcublas.so.13", "libcublas.so.12", "libcublas.so"};
    // To open it takes a tenth of a second and memory: not for short batches, float16 or not.
    if (c->gemm || c->limits.n_rows < GEMM_FROM) return;
    Gemm *g = c->gemm = (Gemm *)calloc(1, sizeof *g);
    for (int i = 0; g && i < 3; i++) {
        if (!connect(g, names[i])) continue;
        int device = 0, major = 0;
        cudaGetDevice(&device);
        cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
        g->workspace_bytes = (size_t)(major >= 9 ? 32 : 4) << 20; // as cuBLAS's manual has it
        return;
    }
    free(g);
    c->gemm = NULL;
}

void cuda_gemm_close(Cuda *c) {
    if (!c->gemm) return;
    c->gemm->destroy(c->gemm->handle);
    cu_library_close(c->gemm->library);
    free(c->gemm);
    c->gemm = NULL;
}

// ---- scratch ----

// Rows of W in a tile, for rows of n_col; 0: a row is too long.
static int tile_rows(int n_col) {
    return min_int(TILE_ROWS, TILE_ELEMENTS / n_col / ROW_STEP * ROW_STEP);
}
static uint64_t pad256(uint64_t bytes) { return (bytes + 255) / 256 * 256; }
static uint64_t tile_bytes(const Cuda *c) { // of the longest rows or of the most
    const uint64_t most = (uint64_t)TILE_ROWS * (uint64_t)c->limits.n_col;
    return 2 * (most < (uint64_t)TILE_ELEMENTS ? most : (uint64_t)TILE_ELEMENTS);
}

uint64_t cuda_gemm_bytes(const Cuda *c) {
    const uint64_t n = (uint64_t)c->limits.n_rows;
    if (!c->gemm) return 0;
    return c->gemm->workspace_bytes + pad256(tile_bytes(c)) + (uint64_t)TILE_ROWS * sizeof(float) + pad256(2 * n * (uint64_t)c->limits.n_col) + 4 * n;
}

void cuda_gemm_start(Cuda *c, char *scratch) {
    Gemm *g = c->gemm;
    if (!g) return;
    char *p = scratch + g->workspace_bytes;
    g->w = (__half *)p, p += pad256(tile_bytes(c));
    g->w_scale = (float *)p, p += (uint64_t)TILE_ROWS * sizeof(float);
    g->x = (__half *)p, p += pad256(2 * (uint64_t)c->limits.n_rows * (uint64_t)c->limits.n_col);
    g->x_scale = (float *)p;
    // In this order: choosing a stream gives the workspace back.
    if (g->set_stream(g->handle, c->stream) || g->set_workspace(g->handle, scratch, g->workspace_bytes)) cuda_gemm_close(c);
}

// ---- kernels ----

// No code, less its offset, is larger than this.
__host__ __device__ constexpr float largest_code(TensorType type) {
    const Format f = format_of(type);
    const int most = type == TYPE_MXFP4 ? 12 : f.table ? 127 : f.code_bits == 8 ? 128 : (1 << (f.code_bits + f.high_bits)) - 1;
    return (float)(most - f.offset > f.offset ? most - f.offset : f.offset);
}

__device__ __forceinline__ unsigned two_halves(float low, float high) {
    const __half2_raw both = __floats2half2_rn(low, high);
    return both.x | (unsigned)both.y << 16;
}

// Rows first .. first + n_rows - 1 of w, divided by their scales, a power of two each, to out [n_rows][n_col]. A warp per row.
template <TensorType T> __global__ void __launch_bounds__(BLOCK)
write_halves(__half *out, float *scale, Weights w, size_t first, int n_rows, int n_col) {
    const int lane = threadIdx.x % WARP, r = blockIdx.x * (BLOCK / WARP) + threadIdx.x / WARP;
    if (r >= n_rows) return; // a whole warp
    const size_t row = first + r;
    float largest = 0;
    if constexpr (format_of(T).groups > 0) { // the scales alone give a bound
        for (int g = lane; g < n_col / 32; g += WARP) {
            float s[2], m[2];
            load_scales<T>(w, row * (n_col / 32) + g, s, m);
            largest = fmaxf(largest, largest_code(T) * fmaxf(fabsf(s[0]), fabsf(s[1])) + fmaxf(fabsf(m[0]), fabsf(m[1])));
        }
    } else {
        for (int k = lane * 8; k < n_col; k += WARP * 8) {
            float v[8];
            load8<T>(w, row, n_col, k, v);
#pragma unroll
            for (int i = 0; i < 8; i++) largest = fmaxf(largest, fabsf(v[i]));
        }
    }
    largest = warp_max(largest); // fmaxf passes over NaN: it is written as it is
    const int e = max(__float_as_int(largest) >> 23, 27); // its exponent + 127, or that of 2^-100: 2^-e must not overflow
    const float up = __int_as_float((127 + 127 + 14 - e) << 23);
    if (lane == 0) scale[r] = __int_as_float((e - 14) << 23);
    out += (size_t)r * n_col;
    for (int k = lane * 8; k < n_col; k += WARP * 8) {
        float v[8];
        load8<T>(w, row, n_col, k, v);
        if (n_col % 8 == 0) {
            *(uint4 *)(out + k) = make_uint4(two_halves(v[0] * up, v[1] * up), two_halves(v[2] * up, v[3] * up), two_halves(v[4] * up, v[5] * up),
                                             two_halves(v[6] * up, v[7] * up));
        } else {
#pragma unroll
            for (int i = 0; i < 8; i++)
                if (k + i < n_col) out[k + i] = __float2half_rn(v[i] * up);
        }
    }
}

enum { EACH = 4 }; // elements of a thread

// y[r][o] = y[r][o] * x_scale[r] * w_scale[o] + bias[o], n_row outputs, rows of y stride apart; grid (rows, n_row / (EACH * BLOCK)).
// w_scale NULL: ones; bias NULL: zeros.
__global__ void __launch_bounds__(BLOCK)
scale_back(float *y, int stride, const float *x_scale, const float *w_scale, const float *bias, int n_row) {
    const float s = x_scale[blockIdx.x];
    const int first = blockIdx.y * (EACH * BLOCK) + threadIdx.x;
    y += (size_t)blockIdx.x * stride;
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        const int o = first + i * BLOCK;
        if (o < n_row) y[o] = y[o] * s * (w_scale ? w_scale[o] : 1) + (bias ? bias[o] : 0);
    }
}

// ---- the product ----

bool cuda_gemm(Backend *b, float *y, int stride, const void *w, const void *x, int n_row, int n_x, int n_col) {
    const Gemm *g = cuda_of(b)->gemm;
    const float one = 1, zero = 0;
    // Rows are columns to cuBLAS: y^T (n_row, n_x) = (W^T)^T (n_row, n_col) x^T (n_col, n_x).
    const int status = g->multiply(g->handle, OP_T, OP_N, n_row, n_x, n_col, &one, w, CUDA_R_16F, n_col, x, CUDA_R_16F, n_col, &zero, y, CUDA_R_32F,
                                   stride, COMPUTE_32F, ALGO_DEFAULT);
    if (status) backend_fail(b, "cuda backend: cublasGemmEx, %d x %d times %d rows: status %d", n_row, n_col, n_x, status);
    return status == 0;
}

static int most_rows(const Tensor *w) { return w->type == TYPE_F16 ? w->n_row : tile_rows(w->n_col); }

bool cuda_gemm_takes(const Cuda *c, const Tensor *w, int n_rows) {
    return c->gemm && n_rows >= (w->type == TYPE_F16 ? GEMM_FROM_F16 : GEMM_FROM) && w->type != TYPE_F32 && !w->precise && most_rows(w) > 0 &&
           w->n_col <= c->limits.n_col && n_rows <= c->limits.n_rows;
}

void cuda_gemm_matmul(Backend *b, const Matmul *p, const float *x, int n_rows, bool x_is_there) {
    const Gemm *g = cuda_of(b)->gemm;
    const Tensor *w = p->w;
    const bool as_is = w->type == TYPE_F16;
    const int n_row = w->n_row, n_col = w->n_col;
    const float *bias = cuda_vector(b, p->bias);
    const Weights from = weights_of(w), rows = {(const unsigned char *)x, NULL, NULL, NULL, 0};
    if (!x_is_there) LAUNCH(b, write_halves<TYPE_F32>, (unsigned)blocks_for(n_rows, BLOCK / WARP), BLOCK, 0, g->x, g->x_scale, rows, 0, n_rows, n_col);
    const int step = as_is ? n_row : (int)blocks_for(blocks_for(n_row, blocks_for(n_row, most_rows(w))), ROW_STEP) * ROW_STEP; // tiles of like size
    for (int first = 0; first < n_row; first += step) {
        const int n = min_int(step, n_row - first);
        const unsigned blocks = (unsigned)blocks_for(n, BLOCK / WARP);
        if (!as_is) with_type(w->type, [&](auto tag) {
            LAUNCH(b, (write_halves<decltype(tag)::type>), blocks, BLOCK, 0, g->w, g->w_scale, from, (size_t)first, n, n_col);
        });
        if (!cuda_gemm(b, p->y + first, n_row, as_is ? (const void *)w->dev : g->w, g->x, n, n_rows, n_col)) break;
        LAUNCH(b, scale_back, dim3((unsigned)n_rows, (unsigned)blocks_for(n, EACH * BLOCK)), BLOCK, 0, p->y + first, n_row, g->x_scale,
               as_is ? NULL : g->w_scale, bias ? bias + first : NULL, n);
    }
}

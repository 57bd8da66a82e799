// yardstick.cu: see yardstick.h.
#include "yardstick.h"

#include <stdlib.h>

#include "cuda_common.cuh"

bool yardstick_copy(Backend *b, void *dst, const void *src, size_t bytes) {
    return cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToDevice, cuda_of(b)->stream) == cudaSuccess;
}

// The four functions of cuBLAS (12 and 13) that are needed, declared here because the headers may be missing where it runs.
typedef int (*Create)(void **handle);
typedef int (*Destroy)(void *handle);
typedef int (*SetStream)(void *handle, cudaStream_t stream);
typedef int (*GemmEx)(void *handle, int turn_a, int turn_b, int m, int n, int k, const void *alpha, const void *a, cudaDataType type_a, int lda,
                      const void *b, cudaDataType type_b, int ldb, const void *beta, void *c, cudaDataType type_c, int ldc, int compute, int algorithm);
enum { CUBLAS_N = 0, CUBLAS_COMPUTE_FLOAT = 68, CUBLAS_ANY_ALGORITHM = -1 };

static bool random_halves(Backend *b, void *dst, size_t n, uint32_t state) {
    const size_t bytes = n * sizeof(F16);
    F16 *x = (F16 *)malloc(bytes);
    if (!x) return false;
    for (size_t i = 0; i < n; i++) {
        state = state * 1664525u + 1013904223u;
        x[i] = (F16)((state >> 16 & 0x83ff) | (12 + (state >> 8 & 1)) << 10); // +-1/8 .. 1/2, every mantissa
    }
    b->upload(b, dst, x, bytes);
    free(x);
    return true;
}

bool yardstick_gemm_open(SquareGemm *g, Backend *b, int n, Err *e) {
    static const char *const NAMES[] = {"libcublas.so.13", "libcublas.so.12", "libcublas.so"};
    const size_t count = (size_t)n * (size_t)n;
    *g = SquareGemm();
    g->n = n;
    for (int i = 0; i < 3 && !g->library; i++) g->library = cu_library_open(NAMES[i]);
    if (!g->library) return err_set(e, "cuBLAS: libcublas.so.13 is not found");
    const Create create = (Create)cu_library_symbol(g->library, "cublasCreate_v2");
    const SetStream set_stream = (SetStream)cu_library_symbol(g->library, "cublasSetStream_v2");
    if (!create || !set_stream || create(&g->handle) || set_stream(g->handle, cuda_of(b)->stream)) return err_set(e, "cuBLAS: does not start");
    g->a = b->alloc(b, count * sizeof(F16));
    g->b = b->alloc(b, count * sizeof(F16));
    g->c = b->alloc(b, count * sizeof(F16));
    if (!g->a || !g->b || !g->c || !random_halves(b, g->a, count, 1) || !random_halves(b, g->b, count, 2))
        return err_set(e, "cuBLAS: no memory for three matrices of %d x %d", n, n);
    return yardstick_gemm(g) || err_set(e, "cuBLAS: cublasGemmEx refuses float16");
}

bool yardstick_gemm(const SquareGemm *g) {
    const GemmEx gemm = (GemmEx)cu_library_symbol(g->library, "cublasGemmEx");
    const float one = 1, zero = 0;
    return gemm && !gemm(g->handle, CUBLAS_N, CUBLAS_N, g->n, g->n, g->n, &one, g->a, CUDA_R_16F, g->n, g->b, CUDA_R_16F, g->n, &zero, g->c,
                         CUDA_R_16F, g->n, CUBLAS_COMPUTE_FLOAT, CUBLAS_ANY_ALGORITHM);
}

void yardstick_gemm_close(SquareGemm *g, Backend *b) {
    const Destroy destroy = g->library ? (Destroy)cu_library_symbol(g->library, "cublasDestroy_v2") : NULL;
    b->free(b, g->a);
    b->free(b, g->b);
    b->free(b, g->c);
    if (g->handle && destroy) destroy(g->handle);
    if (g->library) cu_library_close(g->library);
    *g = SquareGemm();
}

// yardstick.cu: see yardstick.h.
#include "yardstick.h"

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <time.h>

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

// -- beside kernels -------------------------------------------------------------------------------------------------------

enum { TIMES = 7 };

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int by_value(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}
static double median(double *x, int n) {
    qsort(x, (size_t)n, sizeof *x, by_value);
    return x[n / 2];
}

static bool failed(Err *e, const char *what, cudaError_t error) { return err_set(e, "GPU: %s: %s", what, cudaGetErrorString(error)); }

bool yardstick_memory(Backend *b, double *bytes, Err *e) {
    size_t bytes_free = 0, all = 0;
    (void)b;
    const cudaError_t error = cudaMemGetInfo(&bytes_free, &all);
    *bytes = (double)all;
    return error == cudaSuccess || failed(e, "asking for its memory", error);
}

bool yardstick_link(Backend *b, size_t bytes, double *up, double *down, Err *e) {
    const cudaStream_t stream = cuda_of(b)->stream;
    void *host = NULL, *device = b->alloc(b, bytes);
    double seconds[2][TIMES];
    cudaError_t error = device ? cudaMallocHost(&host, bytes) : cudaErrorMemoryAllocation;
    if (error == cudaSuccess) memset(host, 0, bytes);
    for (int i = -1; i < TIMES && error == cudaSuccess; i++) // the first is slow
        for (int back = 0; back < 2 && error == cudaSuccess; back++) {
            const double start = now();
            error = back ? cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream) : cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, stream);
            if (error == cudaSuccess) error = cudaStreamSynchronize(stream);
            if (i >= 0) seconds[back][i] = now() - start;
        }
    if (host) cudaFreeHost(host);
    b->free(b, device);
    if (error != cudaSuccess) return failed(e, "copying over the link", error);
    *up = (double)bytes / median(seconds[0], TIMES);
    *down = (double)bytes / median(seconds[1], TIMES);
    return true;
}

static __global__ void count_up(int *x) { x[threadIdx.x] += 1; }

// n launches, each of which waits for the one before.
static cudaError_t launch_all(int *x, int n, cudaStream_t stream) {
    cudaError_t error = cudaSuccess;
    for (int i = 0; i < n && error == cudaSuccess; i++) error = CU_LAUNCH(count_up, 1, WARP, 0, stream, x);
    return error;
}

static cudaError_t make_graph(cudaGraphExec_t *exec, int *x, int n, cudaStream_t stream) {
    cudaGraph_t graph = NULL;
    cudaError_t error = cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
    if (error != cudaSuccess) return error;
    const cudaError_t launched = launch_all(x, n, stream);
    error = cudaStreamEndCapture(stream, &graph);
    if (launched != cudaSuccess) error = launched;
    if (error == cudaSuccess) error = cudaGraphInstantiate(exec, graph, 0);
    if (graph) cudaGraphDestroy(graph);
    return error;
}

bool yardstick_launch(Backend *b, double *alone, double *in_graph, double *token, Err *e) {
    enum { N = 256 };
    const cudaStream_t stream = cuda_of(b)->stream;
    int *x = (int *)b->alloc(b, WARP * sizeof *x), *id = NULL;
    cudaGraphExec_t many = NULL, one = NULL;
    double seconds[3][TIMES];
    cudaError_t error = x ? cudaMallocHost((void **)&id, sizeof *id) : cudaErrorMemoryAllocation;
    if (error == cudaSuccess) error = make_graph(&many, x, N, stream);
    if (error == cudaSuccess) error = make_graph(&one, x, 1, stream);
    for (int i = -1; i < TIMES && error == cudaSuccess; i++)
        for (int how = 0; how < 3 && error == cudaSuccess; how++) {
            const double start = now();
            error = how == 0 ? launch_all(x, N, stream) : cudaGraphLaunch(how == 1 ? many : one, stream);
            if (how == 2 && error == cudaSuccess) error = cudaMemcpyAsync(id, x, sizeof *id, cudaMemcpyDeviceToHost, stream);
            if (error == cudaSuccess) error = cudaStreamSynchronize(stream);
            if (i >= 0) seconds[how][i] = (now() - start) / (how == 2 ? 1 : N);
        }
    if (many) cudaGraphExecDestroy(many);
    if (one) cudaGraphExecDestroy(one);
    if (id) cudaFreeHost(id);
    b->free(b, x);
    if (error != cudaSuccess) return failed(e, "launching", error);
    *alone = median(seconds[0], TIMES);
    *in_graph = median(seconds[1], TIMES);
    *token = median(seconds[2], TIMES);
    return true;
}

// What both sides see: mapped pinned memory.
typedef struct {
    volatile unsigned sent, answered, lost; // rounds; lost: one of the two gave up
    unsigned n;                             // for the host
} Flags;

enum { EACH = 16 }; // floats of a thread

// Sends own [n] to the host and takes what comes back, `rounds` times; one block, n at most EACH * BLOCK. Who waits polls at most max_polls times:
// a host that does not answer must not hold the device for ever. A thread has all its loads over the link under way at once, as those of
// handoff_cuda.cu have: one after the other each would take its microsecond.
static __global__ void __launch_bounds__(BLOCK) play(Flags *flags, float *there, const volatile float *back, float *own, unsigned n, unsigned rounds, unsigned max_polls) {
    float x[EACH];
    for (unsigned r = 1; r <= rounds; r++) {
        for (unsigned i = threadIdx.x; i < n; i += BLOCK) there[i] = own[i] + 1;
        __threadfence_system();
        __syncthreads();
        bool came = true;
        if (threadIdx.x == 0) {
            flags->sent = r;
            unsigned polls = 0;
            while (polls < max_polls && flags->answered != r) polls++;
            came = polls < max_polls;
            if (!came) flags->lost = 1;
            __threadfence_system();
        }
        if (!__syncthreads_and(came)) return; // all of them, or none
#pragma unroll
        for (unsigned k = 0; k < EACH; k++) x[k] = k * BLOCK + threadIdx.x < n ? back[k * BLOCK + threadIdx.x] : 0;
#pragma unroll
        for (unsigned k = 0; k < EACH; k++)
            if (k * BLOCK + threadIdx.x < n) own[k * BLOCK + threadIdx.x] = x[k];
        __syncthreads();
    }
}

typedef struct {
    Flags *flags;
    const float *there;
    float *back;
    unsigned rounds;
} Host;

static void *answer(void *ctx) {
    const Host *h = (const Host *)ctx;
    for (unsigned r = 1; r <= h->rounds; r++) {
        const double start = now();
        for (unsigned polls = 0; h->flags->sent != r; polls++) {
            if (h->flags->lost) return NULL;
            if (polls % 4096 != 4095) continue;
            if (now() - start > 10) h->flags->lost = 1;
            sched_yield();
        }
        __sync_synchronize();
        memcpy(h->back, h->there, sizeof(float) * h->flags->n);
        __sync_synchronize();
        h->flags->answered = r;
    }
    return NULL;
}

bool yardstick_handoff(Backend *b, int n, double *seconds, Err *e) {
    const bool emulated = !strncmp(b->detail, "emulated", 8); // whose polls take nanoseconds, a device's a microsecond
    const unsigned rounds = emulated ? 20 : 2000, max_polls = emulated ? 0xffffffffu : 1u << 22;
    const size_t bytes = sizeof(float) * (size_t)n, all = sizeof(Flags) + 2 * bytes;
    const cudaStream_t stream = cuda_of(b)->stream;
    Flags *flags = NULL, *mapped = NULL;
    if (n < 1 || n > EACH * BLOCK) return err_set(e, "a row of %d floats to hand over, expected 1 to %d", n, EACH * BLOCK);
    float *own = (float *)b->alloc(b, bytes);
    pthread_t thread;
    cudaError_t error = own ? cudaHostAlloc((void **)&flags, all, cudaHostAllocMapped) : cudaErrorMemoryAllocation;
    if (error == cudaSuccess) error = cudaHostGetDevicePointer((void **)&mapped, flags, 0);
    if (error == cudaSuccess) {
        memset(flags, 0, all);
        flags->n = (unsigned)n;
        Host h = {flags, (float *)(flags + 1), (float *)(flags + 1) + n, rounds};
        if (pthread_create(&thread, NULL, answer, &h)) {
            cudaFreeHost(flags);
            b->free(b, own);
            return err_set(e, "GPU: no thread to answer it");
        }
        error = cudaStreamSynchronize(stream); // zeroes are there
        const double start = now();
        if (error == cudaSuccess)
            error = CU_LAUNCH(play, 1, BLOCK, 0, stream, mapped, (float *)(mapped + 1), (const float *)(mapped + 1) + n, own, (unsigned)n, rounds, max_polls);
        if (error == cudaSuccess) error = cudaStreamSynchronize(stream);
        *seconds = (now() - start) / (2.0 * rounds);
        if (error != cudaSuccess) flags->lost = 1; // the thread shall end
        pthread_join(thread, NULL);
    }
    const bool lost = flags && flags->lost;
    float first = 0;
    if (error == cudaSuccess) b->download(b, &first, own, sizeof first);
    if (flags) cudaFreeHost(flags);
    b->free(b, own);
    if (error != cudaSuccess) return failed(e, "handing a row to and fro", error);
    return (!lost && first == (float)rounds) || err_set(e, "GPU: a row did not come back from the host: %g rounds of %u", (double)first, rounds);
}

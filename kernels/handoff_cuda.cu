// handoff_cuda.cu: experts that the host computes while the device does what follows.
//
// Both see a mailbox, pinned memory of the host. Whatever is lent has a number; each side writes its own:
//   device  lend     rows, ids and weights into the mailbox, then the number
//   host    serve    waits for the number; b->host->moe_ffn from and into the mailbox; then the same number
//   device  collect  waits for the host's number; y (+)= what is there
// The device counts in its own memory, so that both kernels can be replayed as part of a CUDA graph.
//
// Ops that are launched one by one are served before collect is launched (cuda_queue.cu), which then finds its number there: the
// driver has room for about a thousand launches; a host that waited for room, while the device waited for the host, would wait for
// ever. A graph is one launch, whatever it holds: the host serves while it runs, and collect does wait. Then nothing
// is allocated meanwhile, and nothing launched but copies that nobody waits for before the token is over (cuda_bring_some).
//
// Who waits gives up after Cuda.wait_ms, patience_ms; then the other side does not wait any more either, and the backend has an error.
// Bytes over the bus per row: n_embd floats each way. A block of collect that waits reads one number over it at a time.
// Sources: CUDA C++ Programming Guide, "Mapped Memory", "Memory Fence Functions"; PTX ISA, "Memory Consistency Model".
#include <stdlib.h>
#include <time.h>
#include "cuda_ptx.cuh"
#include "cuda_common.cuh"

enum {
    MOST_BLOCKS = 32,     // of a kernel here: enough loads and stores in flight for the bus
    ASK_US = 1000,        // how often the host, waiting, looks after the stream
    KEEP_AWAKE_US = 20000 // how long its threads are kept from going to sleep; waking them takes 50 us or more (pool.c)
};
static const unsigned NUMBERS = 0x7fffffff, GAVE_UP = 0x80000000; // numbers are modulo 2^31

// Written by one side each, in lines of their own.
typedef struct {
    alignas(128) unsigned lent;     // by the device
    alignas(128) unsigned computed; // by the host; GAVE_UP: it will not come any more
    alignas(128) unsigned missed;   // by the device: 1: the host did not come in time
} Numbers;

// In device memory.
typedef struct {
    unsigned lent;    // the number
    unsigned n_block; // of lend that are done
    int failed;       // nothing is lent or waited for any more
} Counters;

typedef struct {
    Numbers *numbers;
    float *x, *y, *weight; // [n_rows][n_embd] to and from the host; [n_rows][n_used]
    int *expert;           // [n_rows][n_used]
    Counters *count;
} Mailbox;

typedef struct Handoff {
    Mailbox host, device; // addresses for each
    char *memory;         // pinned
    unsigned served;      // number of what the host has served last
} Handoff;

// ---- device ----

// to = from, or to += from: n floats, by all threads of the grid. wide: both in pieces of 16 bytes.
__device__ __forceinline__ void carry(float *to, const float *from, int64_t n, bool wide, bool add) {
    const int64_t first = (int64_t)blockIdx.x * BLOCK + threadIdx.x, step = (int64_t)gridDim.x * BLOCK;
    if (!wide)
        for (int64_t i = first; i < n; i += step) to[i] = from[i] + (add ? to[i] : 0);
    else
        for (int64_t i = first; i < n / 4; i += step) {
            float4 v = ((const float4 *)from)[i];
            if (add) {
                const float4 u = ((const float4 *)to)[i];
                v.x += u.x, v.y += u.y, v.z += u.z, v.w += u.w;
            }
            ((float4 *)to)[i] = v;
        }
}

// n: floats of x. The last block to be done numbers it.
__global__ void __launch_bounds__(BLOCK) lend(Mailbox m, const float *x, const int *expert, const float *weight, int64_t n, int n_slot, bool wide) {
    const int tid = threadIdx.x;
    if (m.count->failed) return; // the whole grid: the host may still read what was lent before
    carry(m.x, x, n, wide, false);
    carry(m.weight, weight, n_slot, false, false);
    for (int i = blockIdx.x * BLOCK + tid; i < n_slot; i += gridDim.x * BLOCK) m.expert[i] = expert[i];
    __syncthreads();
    if (tid != 0) return;
    __threadfence_system(); // what this block has written, before the count
    if (atomicAdd(&m.count->n_block, 1u) != gridDim.x - 1) return;
    __threadfence_system(); // what the others have
    m.count->n_block = 0;
    m.count->lent = (m.count->lent + 1) & NUMBERS;
    store_release(&m.numbers->lent, m.count->lent);
}

__device__ __forceinline__ bool wait_for_host(const Mailbox &m, unsigned long long wait_ns) {
    const unsigned long long start = global_ns();
    if (atomicOr(&m.count->failed, 0)) return false;
    for (;;) {
        const unsigned computed = load_acquire(&m.numbers->computed);
        if (computed == m.count->lent) return true;
        if (computed == GAVE_UP || global_ns() - start > wait_ns) break;
        __nanosleep(200);
    }
    atomicExch(&m.count->failed, 1);
    store_release(&m.numbers->missed, 1);
    return false;
}

__global__ void __launch_bounds__(BLOCK) collect(Mailbox m, float *y, int64_t n, bool wide, bool add, unsigned long long wait_ns) {
    __shared__ bool came;
    if (threadIdx.x == 0) came = wait_for_host(m, wait_ns);
    __syncthreads();
    if (came) carry(y, m.y, n, wide, add);
}

static unsigned few_blocks(int64_t n) {
    const int64_t blocks = blocks_for(n, BLOCK * 4);
    return (unsigned)(blocks < MOST_BLOCKS ? blocks : (int64_t)MOST_BLOCKS);
}
static bool is_wide(const float *x, int64_t n) { return n % 4 == 0 && (uintptr_t)x % 16 == 0; }

void moe_lend_cuda(Backend *b, const MoeArgs *a) {
    const int64_t n = (int64_t)a->n_rows * a->gate->n_col;
    LAUNCH(b, lend, few_blocks(n), BLOCK, 0, cuda_of(b)->handoff->device, a->x, a->expert, a->weight, n, a->n_rows * a->n_used, is_wide(a->x, n));
}

void moe_collect_cuda(Backend *b, float *y, int n_rows, int n_embd, bool add) {
    const Cuda *c = cuda_of(b);
    const int64_t n = (int64_t)n_rows * n_embd;
    LAUNCH(b, collect, few_blocks(n), BLOCK, 0, c->handoff->device, y, n, is_wide(y, n), add, (unsigned long long)c->wait_ms * 1000000);
}

// ---- host ----

static int64_t now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

void cuda_handoff_check(Backend *b) {
    const Cuda *c = cuda_of(b);
    if (c->handoff && __atomic_load_n(&c->handoff->host.numbers->missed, __ATOMIC_ACQUIRE))
        backend_fail(b, "cuda backend: the host did not come with its experts' part within %g s", c->wait_ms * 1e-3);
}

// Until the device has lent `number`.
static bool wait_for_device(Backend *b, unsigned number, const char *what) {
    const Cuda *c = cuda_of(b);
    const unsigned *lent = &c->handoff->host.numbers->lent;
    const int64_t start = now_us();
    for (int64_t now, asked = start - ASK_US;; cu_host_pause()) {
        const bool there = __atomic_load_n(lent, __ATOMIC_ACQUIRE) == number;
        if (there && !(CU_HOST_EARLY() && cuda_bring_some(b))) break;
        if (!there) cuda_bring_some(b);
        if ((now = now_us()) - asked < ASK_US) continue;
        asked = now;
        if (b->host->wake && now - start < KEEP_AWAKE_US) b->host->wake(b->host);
        cuda_handoff_check(b);
        const cudaError_t e = cudaStreamQuery(c->stream);
        if (e != cudaErrorNotReady && !cuda_check(b, "running", e)) return false;
        if (now - start > (int64_t)c->patience_ms * 1000) backend_fail(b, "cuda backend: the GPU did not come to %s within %g s", what, c->patience_ms * 1e-3);
        if (b->first_error.text[0]) return false;
    }
    return true;
}

void cuda_serve(Backend *b, const MoeArgs *lent, int batch) {
    Handoff *h = cuda_of(b)->handoff;
    Backend *host = b->host;
    h->served = (h->served + 1) & NUMBERS;
    if (!b->first_error.text[0] && wait_for_device(b, h->served, lent->gate->name)) {
        MoeArgs a = *lent;
        a.x = h->host.x, a.expert = h->host.expert, a.weight = h->host.weight, a.y = h->host.y;
        if (b->on_lent) b->on_lent(b->on_lent_ctx, &a);
        const int its_batch = host->batch;
        host->batch = batch;
        host->moe_ffn(host, &a);
        host->batch = its_batch;
        if (host->first_error.text[0]) backend_fail(b, "%s", host->first_error.text);
    }
    __atomic_store_n(&h->host.numbers->computed, b->first_error.text[0] ? GAVE_UP : h->served, __ATOMIC_RELEASE);
}

static size_t whole_lines(size_t bytes) { return (bytes + 255) / 256 * 256; }

bool cuda_handoff_open(Backend *b, Err *e) {
    Cuda *c = cuda_of(b);
    const Limits *l = &c->limits;
    if (!b->host || !l->n_expert) return true;
    const size_t rows = whole_lines(sizeof(float) * (size_t)l->n_rows * (size_t)l->n_embd);
    const size_t chosen = whole_lines(sizeof(int) * (size_t)l->n_rows * (size_t)l->n_expert_used);
    const size_t bytes = whole_lines(sizeof(Numbers)) + 2 * rows + 2 * chosen;
    Handoff *h = c->handoff = (Handoff *)calloc(1, sizeof *h);
    char *seen = NULL; // by the device
    if (!h || cudaHostAlloc((void **)&h->memory, bytes, cudaHostAllocMapped) != cudaSuccess || cudaHostGetDevicePointer((void **)&seen, h->memory, 0) != cudaSuccess ||
        cudaMalloc((void **)&h->device.count, sizeof(Counters)) != cudaSuccess) {
        (void)cudaGetLastError();
        cuda_handoff_close(c);
        return err_set(e, "cuda backend: no pinned memory for %.1f MiB to share with the host (%d rows of %d)", (double)bytes / 1048576, l->n_rows, l->n_embd);
    }
    for (int i = 0; i < 2; i++) {
        Mailbox *m = i ? &h->device : &h->host;
        char *p = i ? seen : h->memory;
        m->numbers = (Numbers *)p;
        m->x = (float *)(p += whole_lines(sizeof(Numbers)));
        m->y = (float *)(p += rows);
        m->weight = (float *)(p += rows);
        m->expert = (int *)(p += chosen);
    }
    memset(h->memory, 0, bytes);
    c->n_lent = 0;
    return cuda_check(b, "clearing memory", cudaMemsetAsync(h->device.count, 0, sizeof(Counters), c->stream)) || err_set(e, "%s", b->first_error.text);
}

// The stream was waited for.
void cuda_handoff_close(Cuda *c) {
    Handoff *h = c->handoff;
    if (!h) return;
    if (h->device.count) cudaFree(h->device.count);
    if (h->memory) cudaFreeHost(h->memory);
    free(h);
    c->handoff = NULL;
}

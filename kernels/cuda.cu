// cuda.cu: opens the cuda backend: device, stream, memory, loading of weights, and its filled op table. The ops are in
// <op>_cuda.cu, what they share in cuda_common.cuh, the layout of weights on the device in cuda_quant.cuh.
//
// Host memory of a caller is never given to the device: it goes through two pinned buffers, one filled while the other is
// copied. upload and load return when the source has been read; download when the copy has arrived.
#include <stdlib.h>
#include "cuda_quant.cuh"
#include "cuda_queue.cuh"
#include "fill.h"

// -- memory ---------------------------------------------------------------------------------------------------------------

static void *alloc_cuda(Backend *b, size_t bytes) {
    void *p = NULL;
    if (cudaMalloc(&p, bytes ? bytes : 1) != cudaSuccess) {
        (void)cudaGetLastError(); // the caller says what there was no memory for; it is no error of an op
        return NULL;
    }
    if (bytes) cuda_check(b, "clearing memory", cudaMemsetAsync(p, 0, bytes, cuda_of(b)->stream));
    return p;
}

static void free_cuda(Backend *b, void *p) {
    if (!p) return;
    cuda_flush(b);
    cuda_forget_graphs(b);
    cuda_check(b, "running", cudaStreamSynchronize(cuda_of(b)->stream)); // cudaFree would wait too, for all streams
    cuda_check(b, "free", cudaFree(p));
}

char *cuda_stage(Backend *b) {
    Cuda *c = cuda_of(b);
    return cuda_check(b, "wait for a copy", cudaEventSynchronize(c->staged[c->turn])) ? c->stage[c->turn] : NULL;
}

bool cuda_send_stage(Backend *b, void *dst, size_t bytes) {
    Cuda *c = cuda_of(b);
    const int which = c->turn;
    c->turn = (c->turn + 1) % N_STAGE;
    return cuda_check(b, "copy to the device", cudaMemcpyAsync(dst, c->stage[which], bytes, cudaMemcpyHostToDevice, c->stream)) &&
           cuda_check(b, "event", cudaEventRecord(c->staged[which], c->stream));
}

bool cuda_copy_in(Backend *b, void *dst, const void *src, size_t bytes) {
    char *stage = cuda_stage(b);
    if (stage) memcpy(stage, src, bytes);
    return stage && cuda_send_stage(b, dst, bytes);
}

static size_t min_size(size_t a, size_t b) { return a < b ? a : b; }

static void upload_cuda(Backend *b, void *dst, const void *src, size_t bytes) {
    cuda_flush(b);
    for (size_t at = 0, n; at < bytes; at += n) {
        n = min_size(STAGE_BYTES, bytes - at);
        if (!cuda_copy_in(b, (char *)dst + at, (const char *)src + at, n)) return;
    }
}

static void download_cuda(Backend *b, void *dst, const void *src, size_t bytes) {
    Cuda *c = cuda_of(b);
    cuda_flush(b);
    for (size_t at = 0, n; at < bytes; at += n) {
        n = min_size(STAGE_BYTES, bytes - at);
        char *stage = cuda_stage(b);
        const bool ok = stage &&
                        cuda_check(b, "copy to the host", cudaMemcpyAsync(stage, (const char *)src + at, n, cudaMemcpyDeviceToHost, c->stream)) &&
                        cuda_check(b, "copy to the host", cudaStreamSynchronize(c->stream));
        if (ok) cuda_handoff_check(b);
        if (ok) memcpy((char *)dst + at, stage, n);
        else memset((char *)dst + at, 0, n); // sync will say why
    }
}

static bool sync_cuda(Backend *b, Err *e) {
    cuda_flush(b);
    cuda_of(b)->borrowed = false;
    cuda_of(b)->may_repeat = true;
    cuda_check(b, "running", cudaStreamSynchronize(cuda_of(b)->stream));
    cuda_handoff_check(b);
    return b->first_error.text[0] ? err_set(e, "%s", b->first_error.text) : true;
}

// -- loading weights ------------------------------------------------------------------------------------------------------

// Code of element i of a block as it lies in the file, with its offset. The formats: quant.c.
template <TensorType T> __device__ unsigned code_of(const unsigned char *p, int i) {
    const int j = i % 16, nibble = i / 16 * 4; // blocks of 32
    switch (T) {
    case TYPE_Q4_0: case TYPE_IQ4_NL: return p[2 + j] >> nibble & 15;
    case TYPE_Q4_1: return p[4 + j] >> nibble & 15;
    case TYPE_Q5_0: return (p[6 + j] >> nibble & 15) | (p[2 + i / 8] >> i % 8 & 1) << 4;
    case TYPE_Q5_1: return (p[8 + j] >> nibble & 15) | (p[4 + i / 8] >> i % 8 & 1) << 4;
    case TYPE_Q8_0: return p[2 + i];
    case TYPE_MXFP4: return p[1 + j] >> nibble & 15;
    case TYPE_Q2_K: return p[16 + i / 128 * 32 + i % 32] >> i % 128 / 32 * 2 & 3;
    case TYPE_Q3_K: return (p[32 + i / 128 * 32 + i % 32] >> i % 128 / 32 * 2 & 3) | (p[i % 32] >> i / 32 & 1) << 2;
    case TYPE_Q4_K: return p[16 + i / 64 * 32 + i % 32] >> i / 32 % 2 * 4 & 15;
    case TYPE_Q5_K: return (p[48 + i / 64 * 32 + i % 32] >> i / 32 % 2 * 4 & 15) | (p[16 + i % 32] >> i / 32 & 1) << 4;
    case TYPE_Q6_K:
        return (p[i / 128 * 64 + i / 32 % 2 * 32 + i % 32] >> i % 128 / 64 * 4 & 15) | (p[128 + i / 128 * 32 + i % 32] >> i % 128 / 32 * 2 & 3) << 4;
    case TYPE_IQ4_XS: return p[8 + i / 32 * 16 + j] >> i % 32 / 16 * 4 & 15;
    default: return 0;
    }
}

// Where the scales and the numbers of plane d lie in a block of the file.
__host__ __device__ constexpr int scales_at(TensorType type) { return type == TYPE_Q3_K ? 96 : type == TYPE_Q6_K ? 192 : 0; }
__host__ __device__ constexpr int d_at(TensorType type) { return type == TYPE_Q2_K ? 80 : type == TYPE_Q3_K ? 108 : type == TYPE_Q6_K ? 208 : 0; }

// n_group groups from raw, blocks as in the file, into the planes of w, starting at group first. A thread per group.
template <TensorType T> __global__ void __launch_bounds__(BLOCK)
lay_out_planes(Weights w, size_t first, const unsigned char *raw, int n_group, int block_bytes) {
    constexpr Format F = format_of(T);
    const int i = blockIdx.x * BLOCK + threadIdx.x;
    if (i >= n_group) return;
    const unsigned char *p = raw + (size_t)(i / F.groups) * block_bytes;
    const int sub = i % F.groups;
    const size_t group = first + i, block = group / F.groups;
    unsigned codes[8] = {0}, high[2] = {0}; // of 4 * code_bits and 4 * high_bits bytes the first are used
#pragma unroll
    for (int e = 0; e < 32; e++) {
        const unsigned q = code_of<T>(p, sub * 32 + e), low = q & ((1u << F.code_bits) - 1), top = q >> F.code_bits;
        const int word = e / 4, byte = e % 4 * 8; // where the element is wanted
        if (F.table) codes[e / 8] |= low << e % 8 * 4;
        else if (F.code_bits == 8) codes[word] |= low << byte;
        else if (F.code_bits == 4) codes[word % 4] |= low << (byte + word / 4 * 4);
        else codes[word / 4] |= low << (byte + word % 4 * 2);
        if (F.high_bits == 1) high[0] |= top << (byte + word);
        if (F.high_bits == 2) high[word / 4] |= top << (byte + word % 4 * 2);
    }
#pragma unroll
    for (int k = 0; k < F.code_bits; k++) ((unsigned *)w.codes)[group * F.code_bits + k] = codes[k];
#pragma unroll
    for (int k = 0; k < F.high_bits; k++) ((unsigned *)w.high)[group * F.high_bits + k] = high[k];
    if (sub == 0) {
        for (int k = 0; k < F.scale_bytes; k++) ((unsigned char *)w.scales)[block * F.scale_bytes + k] = p[scales_at(T) + k];
        for (int k = 0; k < F.d_bytes; k++) ((unsigned char *)w.d)[block * F.d_bytes + k] = p[d_at(T) + k];
    }
}

bool cuda_supports(TensorType type) {
    return with_type(type, [](auto) {});
}

bool cuda_lay_out(Backend *b, cudaStream_t stream, TensorType type, const Weights *w, size_t first, const char *raw, int n_block) {
    bool ok = false;
    with_quantised_type(type, [&](auto tag) {
        constexpr TensorType T = decltype(tag)::type;
        const int n_group = n_block * format_of(T).groups;
        ok = cuda_launched(b, "lay_out_planes", CU_LAUNCH(lay_out_planes<T>, grid_for(n_group), BLOCK, 0, stream, *w, first, (const unsigned char *)raw, n_group,
                                                          type_info(T)->bytes));
    });
    return ok;
}

static bool load_cuda(Backend *b, Tensor *t, Err *e) {
    Cuda *c = cuda_of(b);
    if (!cuda_supports(t->type)) {
        const TypeInfo *info = type_info(t->type);
        return err_set(e, "%s: the cuda backend cannot compute with type %s", t->name, info ? info->name : "?");
    }
    cuda_flush(b);
    cuda_forget_graphs(b);
    const TypeInfo *info = type_info(t->type);
    Weights w = weights_of(t); // dev is NULL: only the size
    const size_t bytes = w.slice_bytes * (size_t)t->n_slice;
    if (!(t->dev = alloc_cuda(b, bytes))) return err_set(e, "%s: no device memory for %.1f MiB of weights", t->name, (double)bytes / 1048576);
    w = weights_of(t);
    const Format f = format_of(t->type);
    const int64_t n_block = (int64_t)t->n_row * (t->n_col / info->block), step = STAGE_BYTES / info->bytes;
    bool ok = true;
    for (int s = 0; s < t->n_slice && ok; s++) {
        const char *src = (const char *)tensor_row(t, s, 0);
        if (!f.groups) {
            upload_cuda(b, (char *)t->dev + (size_t)s * w.slice_bytes, src, (size_t)(n_block * info->bytes));
            continue;
        }
        Weights slice = w;
        const size_t skip = (size_t)s * w.slice_bytes;
        slice.codes += skip, slice.high += skip, slice.scales += skip, slice.d += skip;
        for (int64_t at = 0; at < n_block && ok; at += step) {
            const int n = (int)(step < n_block - at ? step : n_block - at);
            ok = cuda_copy_in(b, c->raw, src + at * info->bytes, (size_t)n * (size_t)info->bytes) &&
                 cuda_lay_out(b, c->stream, t->type, &slice, (size_t)at * (size_t)f.groups, c->raw, n);
        }
    }
    if (b->first_error.text[0]) return err_set(e, "%s: %s", t->name, b->first_error.text);
    return true;
}

const float *cuda_vector(Backend *b, const Tensor *t) {
    if (t && !t->dev) backend_fail(b, "cuda backend: %s was not loaded", t->name);
    return t ? (const float *)t->dev : NULL;
}

// -- scratch --------------------------------------------------------------------------------------------------------------

// Takes bytes from the arena; with start NULL it only counts.
static void *take(char *start, size_t *used, uint64_t count, size_t element, bool *fits) {
    uint64_t bytes;
    void *p = start ? start + *used : NULL;
    *fits = *fits && size_mul(count, element, &bytes) && bytes < SIZE_MAX / 4 && *used < SIZE_MAX / 4;
    if (*fits) *used += (size_t)(bytes + 255) / 256 * 256;
    return p;
}

static void to_end(size_t *end, size_t *used, size_t back) {
    if (*used > *end) *end = *used;
    *used = back;
}

// What only one op needs, and leaves to nobody, lies over what another needs: attention's, the experts', the large products'; of the experts' `down`
// is written when `up` has been read. How much it comes to: cuda_scratch.h, too.
static bool carve(Cuda *c, char *start, size_t *used) {
    const Limits *l = &c->limits;
    const uint64_t groups = (uint64_t)(l->n_col + 31) / 32 * (uint64_t)l->n_rows, slots = (uint64_t)l->n_rows * (uint64_t)l->n_expert_used;
    const uint64_t ff_groups = (uint64_t)(l->n_ff_expert + 31) / 32 * slots;
    bool fits = true;
    const auto rounding = [&](Act8 *a, uint64_t n) {
        a->low = (uint4 *)take(start, used, n, sizeof(uint4), &fits);
        a->high = (uint4 *)take(start, used, n, sizeof(uint4), &fits);
        a->scale = (float4 *)take(start, used, n, sizeof(float4), &fits);
    };
    *used = 0;
    rounding(&c->act8, groups);
    rounding(&c->gated8, (uint64_t)(l->n_col + 31) / 32);
    for (int i = 0; i < 2; i++)
        c->top_key[i] = (TopKey *)take(start, used, (uint64_t)blocks_for(l->n_vocab, TOP_SLICE) * MAX_TOP, sizeof(TopKey), &fits);
    const size_t common = *used;
    size_t end = common;
    c->n_part = (int64_t)c->n_sm * 128; // two blocks of attention_mma_cuda.cu for each; attention_cuda.cu needs 32
    c->part = (float *)take(start, used, (uint64_t)c->n_part * (uint64_t)(l->head_dim + 2), sizeof(float), &fits);
    to_end(&end, used, common);
    char *gemm = (char *)take(start, used, cuda_gemm_bytes(c), 1, &fits);
    to_end(&end, used, common);
    rounding(&c->hidden_act8, ff_groups);
    c->order = (int *)take(start, used, slots, sizeof(int), &fits);
    c->tile = (ExpertTile *)take(start, used, (uint64_t)cuda_expert_tile_count((int64_t)slots, l->n_expert), sizeof(ExpertTile), &fits);
    c->gate = (float *)take(start, used, slots * (uint64_t)l->n_ff_expert, sizeof(float), &fits);
    const size_t after_gate = *used;
    c->up = (float *)take(start, used, slots * (uint64_t)l->n_ff_expert, sizeof(float), &fits);
    to_end(&end, used, after_gate);
    c->down = (float *)take(start, used, slots * (uint64_t)l->n_embd, sizeof(float), &fits);
    to_end(&end, used, 0);
    *used = end;
    if (start) cuda_gemm_start(c, gemm);
    return fits;
}

static bool reserve_cuda(Backend *b, const Limits *l, Err *e) {
    Cuda *c = cuda_of(b);
    size_t bytes;
    free_cuda(b, c->scratch);
    c->scratch = NULL;
    cuda_handoff_close(c);
    cuda_ring_close(c);
    c->limits = *l;
    c->limits.n_col = max_int(l->n_col, l->n_embd);
    cuda_gemm_open(c);
    for (;; cuda_gemm_close(c)) { // rather without cuBLAS than not at all
        if (carve(c, NULL, &bytes) && (c->scratch = alloc_cuda(b, bytes))) {
            cuda_ring_open(b);
            size_t bytes_free = 0, bytes_total = 0;
            if (cuda_check(b, "asking for its memory", cudaMemGetInfo(&bytes_free, &bytes_total))) b->free_bytes = bytes_free;
            return carve(c, (char *)c->scratch, &bytes) && cuda_handoff_open(b, e);
        }
        if (!c->gemm) break;
    }
    return err_set(e, "cuda backend: no device memory for %.1f MiB of scratch (%d rows of %d)", (double)bytes / 1048576, l->n_rows, c->limits.n_col);
}

// -- open and close -------------------------------------------------------------------------------------------------------

int backend_cuda_devices(void) {
    int n = 0;
    return cudaGetDeviceCount(&n) == cudaSuccess ? n : 0;
}

int64_t cuda_launches(const Backend *b) { return (int64_t)cuda_of(b)->n_launch; }

void cuda_wait_at_most(Backend *b, int ms) {
    cuda_forget_graphs(b); // it is an argument of kernels
    cuda_of(b)->wait_ms = cuda_of(b)->patience_ms = ms;
}

static void close_cuda(Backend *b) {
    Cuda *c = cuda_of(b);
    if (c) {
        if (c->stream) cudaStreamSynchronize(c->stream);
        cuda_close_queue(b);
        cuda_gemm_close(c);
        cuda_handoff_close(c);
        cuda_unpin(b);
        cuda_ring_close(c);
        if (c->scratch) cudaFree(c->scratch);
        if (c->raw) cudaFree(c->raw);
        for (int i = 0; i < N_STAGE; i++) {
            if (c->staged[i]) cudaEventDestroy(c->staged[i]);
            if (c->stage[i]) cudaFreeHost(c->stage[i]);
        }
        if (c->stream) cudaStreamDestroy(c->stream);
        pool_close(c->pool);
    }
    free(c);
    memset(b, 0, sizeof *b);
}

// Why there is no device, in words that say what to do; the runtime's own text calls a missing driver an old one.
static bool no_device(int device, int n, cudaError_t error, Err *e) {
    int driver = 0;
    cudaDriverGetVersion(&driver);
    if (error == cudaSuccess && device >= n) return err_set(e, "CUDA device %d: this machine has %d", device, n);
    if (driver == 0) return err_set(e, "CUDA device %d: no NVIDIA driver is installed; use --backend cpu", device);
    if (driver < CUDART_VERSION / 1000 * 1000)
        return err_set(e, "CUDA device %d: the NVIDIA driver is for CUDA %d.%d, this program needs CUDA %d; use a newer driver or --backend cpu",
                       device, driver / 1000, driver % 1000 / 10, CUDART_VERSION / 1000);
    return err_set(e, "CUDA device %d: %s", device, cudaGetErrorString(error));
}

// Whether this program has kernels for the device, and *has_mma, whether those have the tensor cores' products: they may be PTX of an older kind.
static bool has_kernels(Backend *b, const cudaDeviceProp *p, bool *has_mma) {
    cudaFuncAttributes kernel;
    if (cudaFuncGetAttributes(&kernel, lay_out_planes<TYPE_Q8_0>) != cudaSuccess) {
        (void)cudaGetLastError();
        backend_fail(b, "%.60s is sm_%d%d, for which this program has no kernels: make CUDA_ARCH=%d%d", p->name, p->major, p->minor, p->major, p->minor);
        return false;
    }
    *has_mma = p->major >= 8 && kernel.ptxVersion >= 80;
    return true;
}

bool backend_open_cuda(Backend *b, int device, Err *e) {
    memset(b, 0, sizeof *b);
    int n = 0;
    const cudaError_t found = cudaGetDeviceCount(&n);
    if (found != cudaSuccess || device < 0 || device >= n) return no_device(device, n, found, e);

    Cuda *c = (Cuda *)calloc(1, sizeof *c);
    if (!c) return err_set(e, "cuda backend: no memory");
    b->priv = c;
    cudaDeviceProp prop;
    size_t bytes_free = 0, bytes_total = 0;
    bool ok = cuda_check(b, "choosing the device", cudaSetDevice(device)) &&
              cuda_check(b, "asking the device", cudaGetDeviceProperties(&prop, device)) &&
              cuda_check(b, "asking for its memory", cudaMemGetInfo(&bytes_free, &bytes_total)) &&
              cuda_check(b, "stream", cudaStreamCreateWithFlags(&c->stream, cudaStreamNonBlocking)) &&
              cuda_check(b, "memory", cudaMalloc((void **)&c->raw, STAGE_BYTES)) && cuda_open_queue(b);
    if (ok && prop.major * 10 + prop.minor < 75) {
        backend_fail(b, "%.60s has compute capability %d.%d, 7.5 or newer is needed", prop.name, prop.major, prop.minor);
        ok = false;
    }
    if (ok && !(c->pool = fill_open())) {
        backend_fail(b, "no threads to copy with");
        ok = false;
    }
    for (int i = 0; i < N_STAGE && ok; i++)
        ok = cuda_check(b, "pinned memory", cudaMallocHost((void **)&c->stage[i], STAGE_BYTES)) &&
             cuda_check(b, "event", cudaEventCreateWithFlags(&c->staged[i], cudaEventDisableTiming));
    ok = ok && has_kernels(b, &prop, &c->has_mma);
    if (!ok) {
        err_set(e, "CUDA device %d: %s", device, b->first_error.text);
        close_cuda(b);
        return false;
    }
    c->n_sm = prop.multiProcessorCount;
    c->wait_ms = 10000;
    c->patience_ms = 120000; // kernels of a long prompt may be before what the host waits for, on a device that others use, too

    b->name = "cuda";
    snprintf(b->detail, sizeof b->detail, "%.60s, sm_%d%d, %.1f GiB free", prop.name, prop.major, prop.minor, (double)bytes_free / (1 << 30));
    b->kv_type = TYPE_F16;
    b->free_bytes = bytes_free;
    b->reserve = reserve_cuda;
    b->alloc = alloc_cuda;
    b->free = free_cuda;
    b->upload = upload_cuda;
    b->download = download_cuda;
    b->load = load_cuda;
    b->borrow = cuda_borrow;
    b->pin = cuda_pin;
    b->unpin = cuda_unpin;
    b->bring = cuda_bring;
    b->settle = cuda_settle;
    b->sync = sync_cuda;
    b->close = close_cuda;
    return true;
}

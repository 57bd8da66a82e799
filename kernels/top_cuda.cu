// top_cuda.cu: the k likeliest tokens of a row of logits, k <= MAX_TOP.
//
// A logit and its id become one key of 64 bits, so that all keys differ and larger is likelier: above, the float's bits such
// that they order as integers; below, the complement of the id. The largest `run` of many keys (run: k rounded up to a power
// of two), in descending order: bitonic top-k (Shanbhag, Pirk, Madden: Efficient Top-K Query Processing on GPUs, SIGMOD 2018).
// Sort runs of that length (Batcher's bitonic sort, 1968); then, until one run is left, of two neighbours keep the larger of
// each pair a[i], b[run - 1 - i]: these are the largest of both, and bitonic, so that log2(run) steps sort them again.
//
// A block does that for TOP_SLICE keys in shared memory; the runs of all blocks are the keys of the next launch, until one
// block is left: two launches for 262144 tokens and k <= 64. Bytes moved: the row, and 8 * run per TOP_SLICE logits.
// The result does not depend on any order of execution.
#include <float.h>
#include "cuda_common.cuh"

enum { TOP_BLOCK = 1024 }; // threads

__device__ __forceinline__ TopKey key_of(float x, int id) { // x is not -0: bits of equal numbers are equal
    const unsigned bits = __float_as_uint(isnan(x) ? -INFINITY : fminf(x, FLT_MAX));
    return (TopKey)(bits >> 31 ? ~bits : bits | 0x80000000u) << 32 | ~(unsigned)id;
}

__device__ __forceinline__ Likely likely_of(TopKey key) {
    const unsigned bits = (unsigned)(key >> 32);
    Likely y;
    y.id = (int)~(unsigned)key;
    y.logit = __uint_as_float(bits >> 31 ? bits & 0x7fffffffu : ~bits);
    return y;
}

// Steps of strides length / 2 down to 1 over n keys: bitonic sequences of `length` become descending, or (alternate) descending
// and ascending in turn. The keys lie in runs of `run` at every spread-th place. A pair of keys per thread; with strides up to
// WARP the 64 keys of a warp's pairs stay the same, and only it has to wait.
__device__ __forceinline__ void sort_bitonic(TopKey *key, int n, int length, bool alternate, int run, int spread) {
    for (int stride = length / 2; stride; stride /= 2) {
        if (stride > WARP) __syncthreads();
        for (int t = threadIdx.x; t < n / 2; t += TOP_BLOCK) {
            const int low = t & (stride - 1), i = 2 * (t - low) + low, in_run = i & (run - 1);
            TopKey *p = key + (i - in_run) * spread + in_run;
            const TopKey a = p[0], b = p[stride];
            if ((a < b) != (alternate && (i & length))) p[0] = b, p[stride] = a;
        }
        if (stride > WARP) __syncthreads();
        else __syncwarp();
    }
}

// Block s: the keys from s * TOP_SLICE on, of n; of logits (and bias, or NULL), or with logits NULL of `in`, sorted runs. Into
// run keys of out, or with y into its k. size: of the part of a slice that may hold keys, a power of two from run to TOP_SLICE.
__global__ void __launch_bounds__(TOP_BLOCK) top_of_slices(Likely *y, TopKey *out, const float *logits, const float *bias, const TopKey *in, int n,
                                                           int size, int run, int k) {
    __shared__ TopKey key[TOP_SLICE];
    const int tid = threadIdx.x;
    for (int i = tid; i < size; i += TOP_BLOCK) {
        const int at = blockIdx.x * TOP_SLICE + i;
        if (at >= n) key[i] = 0; // below every key of a logit
        else key[i] = logits ? key_of(logits[at] + (bias ? bias[at] : 0.0f), at) : in[at];
    }
    __syncthreads();
    for (int length = 2; logits && length <= run; length *= 2) sort_bitonic(key, size, length, length < run, run, 1);
    for (int left = size / 2, spread = 1; left >= run; left /= 2, spread *= 2) { // the survivors stay where they are: ever further apart
        __syncthreads();
        for (int t = tid; t < left; t += TOP_BLOCK) {
            const int i = t & (run - 1);
            TopKey *a = key + 2 * (t - i) * spread, *b = a + run * spread;
            if (b[run - 1 - i] > a[i]) a[i] = b[run - 1 - i];
        }
        __syncthreads();
        sort_bitonic(key, left, run, false, run, 2 * spread);
    }
    __syncthreads();
    if (y) {
        if (tid < k) y[tid] = likely_of(key[tid]);
    } else if (tid < run) out[(size_t)blockIdx.x * run + tid] = key[tid];
}

void top_cuda(Backend *b, const TopArgs *a) {
    Cuda *c = cuda_of(b);
    int run = 1;
    while (run < a->k) run *= 2;
    if (run > MAX_TOP || a->k > a->n_vocab || a->n_vocab > c->limits.n_vocab) {
        backend_fail(b, "cuda backend: the %d likeliest of %d tokens, at most %d of %d are possible", a->k, a->n_vocab, MAX_TOP, c->limits.n_vocab);
        return;
    }
    for (int r = 0; r < a->n_rows; r++) {
        const float *logits = a->logits + (size_t)r * a->n_vocab;
        const TopKey *in = NULL;
        int n_slice;
        for (int n = a->n_vocab, turn = 0; n; n = n_slice > 1 ? n_slice * run : 0, turn ^= 1, logits = NULL) {
            n_slice = (int)blocks_for(n, TOP_SLICE);
            int size = run;
            while (size < n && size < TOP_SLICE) size *= 2;
            if (!LAUNCH(b, top_of_slices, (unsigned)n_slice, TOP_BLOCK, 0, n_slice > 1 ? NULL : a->y + (size_t)r * a->k, c->top_key[turn], logits, a->bias, in, n, size,
                        run, a->k))
                return;
            in = c->top_key[turn];
        }
    }
}

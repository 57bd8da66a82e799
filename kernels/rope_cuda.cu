// rope_cuda.cu: rotary position embedding, in place (RoFormer, arXiv 2104.09864, equation 34).
//
// The angle is a position (up to 2^20) times a frequency: it is reduced to a quarter turn
// in double, four operations; sine and cosine of what remains, |r| <= pi/4, are float, error about 6e-8. The frequencies
// travel as a kernel parameter.
#include "cuda_common.cuh"

enum { MAX_PAIRS = 256 }; // head sizes up to 512
typedef struct {
    double quarter_turns[MAX_PAIRS]; // per position
} Frequencies;

static bool frequencies(Backend *b, Frequencies *f, const Rope *rope) {
    const int half = rope->n_rot / 2;
    if (half > MAX_PAIRS) {
        backend_fail(b, "cuda backend: rope over %d elements, at most %d are possible", rope->n_rot, 2 * MAX_PAIRS);
        return false;
    }
    for (int i = 0; i < MAX_PAIRS; i++) f->quarter_turns[i] = i < half ? rope->freq[i] * 0.63661977236758134 : 0; // 2 / pi
    return true;
}

// Pair i of a head, turned for position pos.
__device__ __forceinline__ void turn_pair(float *head, int i, const Frequencies &freq, float magnitude, int half, bool adjacent, int pos) {
    const double turns = (double)pos * freq.quarter_turns[i], whole = rint(turns);
    const float angle = (float)((turns - whole) * 1.5707963267948966);
    const int quarter = (int)((long long)whole & 3);
    const float cos_r = cosf(angle), sin_r = sinf(angle);
    const float c = (quarter == 0 ? cos_r : quarter == 1 ? -sin_r : quarter == 2 ? -cos_r : sin_r) * magnitude;
    const float s = (quarter == 0 ? sin_r : quarter == 1 ? cos_r : quarter == 2 ? -sin_r : -cos_r) * magnitude;
    const int first = adjacent ? 2 * i : i, second = adjacent ? 2 * i + 1 : i + half;
    const float u = head[first], v = head[second];
    head[first] = u * c - v * s;
    head[second] = u * s + v * c;
}

// A thread per pair; grid (rows, heads * pairs / BLOCK)
__global__ void __launch_bounds__(BLOCK)
rope_pairs(float *x, const __grid_constant__ Frequencies freq, float magnitude, int half, int n_head, int head_dim, bool adjacent, const int *pos) {
    const int item = blockIdx.y * BLOCK + threadIdx.x, h = item / half, i = item % half, r = blockIdx.x;
    if (h < n_head) turn_pair(x + ((size_t)r * n_head + h) * head_dim, i, freq, magnitude, half, adjacent, *pos + r);
}

void rope_cuda(Backend *b, float *x, const Rope *rope, int n_rows, int n_head, int head_dim, const int *pos) {
    const int half = rope->n_rot / 2;
    Frequencies freq;
    if (frequencies(b, &freq, rope))
        LAUNCH(b, rope_pairs, dim3((unsigned)n_rows, grid_for((int64_t)n_head * half)), BLOCK, 0, x, freq, rope->magnitude, half, n_head, head_dim,
               rope->pairing == ROPE_ADJACENT, pos);
}

enum { HEAD_WARPS = 4, MAX_HEAD = 2 * MAX_PAIRS };

// A warp per head of a row; grid (rows, heads of q, k and v / HEAD_WARPS)
__global__ void __launch_bounds__(HEAD_WARPS * WARP) finish_heads(const __grid_constant__ Heads a, const __grid_constant__ Frequencies freq) {
    __shared__ float heads[HEAD_WARPS][MAX_HEAD];
    const int lane = threadIdx.x % WARP, D = a.head_dim, n_kv = a.k ? a.kv.n_head_kv : 0, r = blockIdx.x, pos = *a.pos + r;
    int h = blockIdx.y * HEAD_WARPS + threadIdx.x / WARP;
    if (h >= a.n_head + 2 * n_kv) return; // a whole warp
    const int which = h < a.n_head ? 0 : h < a.n_head + n_kv ? 1 : 2; // q, k, v
    h -= which == 0 ? 0 : a.n_head + (which - 1) * n_kv;
    float *x = (which == 0 ? a.q : which == 1 ? a.k : a.v) + ((size_t)r * (which == 0 ? a.n_head : n_kv) + h) * D;
    float *head = heads[threadIdx.x / WARP], squares = 0;
    const float *gain = which == 0 ? a.gain[0] : which == 1 ? a.gain[1] : a.gain[2];
    const float eps = which == 0 ? a.eps[0] : which == 1 ? a.eps[1] : a.eps[2];
    for (int i = lane; i < D; i += WARP) {
        head[i] = x[i];
        squares += x[i] * x[i];
    }
    if (eps > 0) {
        const float s = 1 / sqrtf(warp_sum(squares) / D + eps);
        for (int i = lane; i < D; i += WARP) head[i] *= s * (gain ? gain[i] : 1.0f);
    }
    __syncwarp();
    const int half = a.rope.n_rot / 2;
    if (which < 2)
        for (int i = lane; i < half; i += WARP) turn_pair(head, i, freq, a.rope.magnitude, half, a.rope.pairing == ROPE_ADJACENT, pos);
    __syncwarp();
    void *cells = which == 0 ? NULL : which == 1 ? a.kv.k : a.kv.v;
    __half *scales = which == 1 ? a.k_scale : a.v_scale;
    const size_t at = cells ? ((size_t)h * a.kv.n_cell + pos % a.kv.n_cell) * D : 0;
    for (int i = lane; i < D; i += WARP) {
        x[i] = head[i];
        if (cells) write_element(cells, scales, at + i, head[i], true); // of codes a whole warp: D is a multiple of 32
    }
}

void cuda_heads(Backend *b, const Heads *h) {
    Frequencies freq;
    const int n = h->n_head + (h->k ? 2 * h->kv.n_head_kv : 0);
    if (frequencies(b, &freq, &h->rope)) LAUNCH(b, finish_heads, dim3((unsigned)h->n_rows, (unsigned)blocks_for(n, HEAD_WARPS)), HEAD_WARPS * WARP, 0, *h, freq);
}

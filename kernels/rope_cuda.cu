// rope_cuda.cu: rotary position embedding, in place (RoFormer, arXiv 2104.09864, equation 34).
//
// A thread turns one pair of one head. The angle is a position (up to 2^20) times a frequency: it is reduced to a quarter turn
// in double, four operations; sine and cosine of what remains, |r| <= pi/4, are float, error about 6e-8. The frequencies
// travel as a kernel parameter.
#include "cuda_common.cuh"

enum { MAX_PAIRS = 256 }; // head sizes up to 512
typedef struct {
    double quarter_turns[MAX_PAIRS]; // per position
} Frequencies;

// grid (rows, heads * pairs / BLOCK)
__global__ void __launch_bounds__(BLOCK)
rope_pairs(float *x, const __grid_constant__ Frequencies freq, float magnitude, int half, int n_head, int head_dim, int adjacent, int pos) {
    const int item = blockIdx.y * BLOCK + threadIdx.x, h = item / half, i = item % half, r = blockIdx.x;
    if (h >= n_head) return;
    const double turns = (double)(pos + r) * freq.quarter_turns[i], whole = rint(turns);
    const float angle = (float)((turns - whole) * 1.5707963267948966);
    const int quarter = (int)((long long)whole & 3);
    const float cos_r = cosf(angle), sin_r = sinf(angle);
    const float c = (quarter == 0 ? cos_r : quarter == 1 ? -sin_r : quarter == 2 ? -cos_r : sin_r) * magnitude;
    const float s = (quarter == 0 ? sin_r : quarter == 1 ? cos_r : quarter == 2 ? -sin_r : -cos_r) * magnitude;
    float *head = x + ((size_t)r * n_head + h) * head_dim;
    const int first = adjacent ? 2 * i : i, second = adjacent ? 2 * i + 1 : i + half;
    const float u = head[first], v = head[second];
    head[first] = u * c - v * s;
    head[second] = u * s + v * c;
}

void rope_cuda(Backend *b, float *x, const Rope *rope, int n_rows, int n_head, int head_dim, int pos) {
    const int half = rope->n_rot / 2;
    if (half > MAX_PAIRS) {
        backend_fail(b, "cuda backend: rope over %d elements, at most %d are possible", rope->n_rot, 2 * MAX_PAIRS);
        return;
    }
    Frequencies freq;
    for (int i = 0; i < MAX_PAIRS; i++) freq.quarter_turns[i] = i < half ? rope->freq[i] * 0.63661977236758134 : 0; // 2 / pi
    LAUNCH(b, rope_pairs, dim3((unsigned)n_rows, grid_for((int64_t)n_head * half)), BLOCK, 0, x, freq, rope->magnitude, half, n_head, head_dim,
           rope->pairing == ROPE_ADJACENT, pos);
}

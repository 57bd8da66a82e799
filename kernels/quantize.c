// quantize.c: float32 into each weight format. The layouts are explained in quant.c, which also turns them back.
//
// Choosing codes is a small least-squares problem per block: given codes l, the best scale has a closed form; given the scale,
// the best codes are the rounded ones. Each search below tries a few dozen scales around the obvious one and keeps the best.
// Errors are weighed per element: by importance (mean square of the activation a column meets) where the caller has it, else
// by the size of the weight itself.
//
// Blocks equal llama.cpp's (August 2026) to the bit, except where its result is unusable (marked). Input may hold NaN and
// infinity: the block is then meaningless, but well formed, and all other blocks are as they would be.
#include "quant.h"

#include <math.h>

#ifdef __clang__
#pragma STDC FP_CONTRACT OFF // gcc -std=c11 does not contract
#endif

enum { GROUP_MAX = 32 };              // elements that share one scale, at most
static const float EPS = 1e-15f;      // a group whose largest magnitude is below counts as all zero

// -- rounding and sums ----------------------------------------------------------------------------------------------------

static inline int clamp_int(int v, int low, int high) { return v < low ? low : v > high ? high : v; }

// Nearest integer, ties to even, for |v| < 2^22. 1.5 * 2^23 pushes the fraction bits out, leaving the integer in the mantissa.
// Anything larger, and NaN, gives some integer of that range: no float is ever out of range for the conversion.
static inline int round_even(float v) {
    float shifted = v + 12582912.0f;
    int bits;
    memcpy(&bits, &shifted, sizeof bits);
    return (bits & 0x7fffff) - 0x400000;
}

// Towards zero, into [low, high]; NaN gives low.
static inline int truncate_to(float v, int low, int high) {
    return v > (float)low ? v < (float)high ? (int)v : high : low;
}

static inline float inverse(float d) { return d != 0 ? 1 / d : 0; }

static float sum_squares(int64_t n, const float *x) {
    float sum = 0;
    for (int64_t i = 0; i < n; i++) sum += x[i] * x[i];
    return sum;
}

// The element of largest magnitude, with its sign; the first one on ties.
static float extreme(int n, const float *x) {
    float max = 0;
    for (int i = 0; i < n; i++)
        if (fabsf(x[i]) > fabsf(max)) max = x[i];
    return max;
}

// The error weights w of n elements: importance * sqrt(sigma2 + x^2), or x^2 without importance.
static void error_weights(int n, const float *x, const float *importance, float sigma2, float *w) {
    for (int i = 0; i < n; i++) w[i] = importance ? importance[i] * sqrtf(sigma2 + x[i] * x[i]) : x[i] * x[i];
}

// Step t of a search over -half .. half that looks at 0 first.
static int search_step(int t, int half) { return t == 0 ? 0 : t <= half ? t - half - 1 : t - half; }

// -- the three searches ---------------------------------------------------------------------------------------------------

// Symmetric: x ~ scale * l, l in -nmax .. nmax - 1; codes are l + nmax. For fixed l, with a = sum w x l and b = sum w l^2, the
// best scale is a / b and leaves an error of sum w x^2 - a^2 / b: so the search maximises a^2 / b.
// The extreme element falls on -nmax (more or less, over the 19 trials), the one code without a positive twin.
static float search_symmetric(int n, int nmax, const float *x, const float *w, uint8_t *codes) {
    float max = extreme(n, x), scale = 0, best = 0;
    for (int i = 0; i < n; i++) codes[i] = 0;
    if (!(fabsf(max) >= EPS)) return 0;
    for (int t = 0; t < 19; t++) {
        float inv = -(nmax + 0.1f * search_step(t, 9)) / max, a = 0, b = 0;
        uint8_t trial[GROUP_MAX];
        for (int i = 0; i < n; i++) {
            int l = clamp_int(round_even(inv * x[i]), -nmax, nmax - 1);
            a += w[i] * x[i] * l;
            b += w[i] * l * l;
            trial[i] = (uint8_t)(l + nmax);
        }
        if (t == 0 || (b > 0 && a * a > best * b)) {
            for (int i = 0; i < n; i++) codes[i] = trial[i];
            scale = b != 0 ? a / b : 0;
            best = scale * a;
        }
    }
    return scale;
}

// Affine: x ~ scale * l - min, l in 0 .. nmax, min >= 0. Each trial rounds with one candidate scale, then solves the two by two
// least-squares problem for scale and offset. The candidates are (nmax + first + k * step) / (range of x), k = 0 .. last.
typedef struct { float first, step; int last; bool absolute_error; } AffineSearch;
static const AffineSearch AFFINE_IMPORTANCE = {-0.9f, 0.05f, 36, false};

static float search_affine(int n, int nmax, const float *x, const float *w, AffineSearch s, uint8_t *codes, float *min) {
    float low = x[0], high = x[0], sum_w = 0, sum_x = 0, scale = 0, best = 0;
    for (int i = 0; i < n; i++) {
        if (x[i] < low) low = x[i];
        if (x[i] > high) high = x[i];
        codes[i] = 0;
        sum_w += w[i];
        sum_x += w[i] * x[i];
    }
    if (low > 0) low = 0;
    *min = -low;
    if (!(high > low)) return 0;

    float offset = low; // best so far, and the origin from which later trials round
    for (int t = -1; t <= s.last; t++) { // -1: the plain grid from low to high, taken as it is
        float inv = (t < 0 ? nmax : s.first + s.step * t + nmax) / (high - offset);
        float sum_l = 0, sum_ll = 0, sum_xl = 0;
        uint8_t trial[GROUP_MAX];
        for (int i = 0; i < n; i++) {
            int l = clamp_int(round_even(inv * (x[i] - offset)), 0, nmax);
            trial[i] = (uint8_t)l;
            sum_l += w[i] * l;
            sum_ll += w[i] * l * l;
            sum_xl += w[i] * l * x[i];
        }
        float trial_scale = 1 / inv, trial_offset = low;
        if (t >= 0) {
            float det = sum_w * sum_ll - sum_l * sum_l;
            if (!(det > 0)) continue;
            trial_scale = (sum_w * sum_xl - sum_x * sum_l) / det;
            trial_offset = (sum_ll * sum_x - sum_l * sum_xl) / det;
            if (trial_offset > 0) {
                trial_offset = 0;
                trial_scale = sum_xl / sum_ll;
            }
        }
        float error = 0;
        for (int i = 0; i < n; i++) {
            float e = trial_scale * trial[i] + trial_offset - x[i];
            error += w[i] * (s.absolute_error ? fabsf(e) : e * e);
        }
        if (t < 0 || error < best) {
            for (int i = 0; i < n; i++) codes[i] = trial[i];
            best = error;
            scale = trial_scale;
            offset = trial_offset;
        }
    }
    *min = -offset;
    return scale;
}

// Improves codes l of x ~ scale * l one at a time, each to its best value given all others; up to five rounds. Returns the
// best scale for the codes it leaves.
static float refine(int n, int low, int high, const float *x, const float *w, int *l) {
    float a = 0, b = 0;
    for (int i = 0; i < n; i++) {
        a += w[i] * x[i] * l[i];
        b += w[i] * l[i] * l[i];
    }
    bool changed = true;
    for (int round = 0; round < 5 && changed; round++) {
        changed = false;
        for (int i = 0; i < n; i++) {
            float a1 = a - w[i] * x[i] * l[i], b1 = b - w[i] * l[i] * l[i]; // the sums without element i
            if (!(a1 > 0 && b1 > 0)) continue;
            int better = clamp_int(round_even(x[i] * b1 / a1), low, high);
            if (better == l[i]) continue;
            a1 += w[i] * x[i] * better;
            b1 += w[i] * better * better;
            if (!(a1 * a1 * b > a * a * b1)) continue;
            l[i] = better;
            a = a1;
            b = b1;
            changed = true;
        }
    }
    return b > 0 ? a / b : 0;
}

// Non-negative: x ~ scale * l, l in 0 .. nmax. For the scales and mins of a block, which are quantised themselves.
static float search_positive(int n, int nmax, const float *x, const float *w, uint8_t *codes) {
    float max = 0, best_inv = 0, best = 0;
    for (int i = 0; i < n; i++) {
        if (x[i] > max) max = x[i];
        codes[i] = 0;
    }
    if (!(max >= EPS)) return 0;
    for (int t = 0; t < 9; t++) {
        float inv = (nmax + 0.1f * search_step(t, 4)) / max, scale = 1 / inv, error = 0;
        for (int i = 0; i < n; i++) {
            float e = x[i] - scale * clamp_int(round_even(inv * x[i]), 0, nmax);
            error += w[i] * e * e;
        }
        if (t == 0 || error < best) {
            best = error;
            best_inv = inv;
        }
    }
    int l[16];
    for (int i = 0; i < n; i++) l[i] = clamp_int(round_even(best_inv * x[i]), 0, nmax);
    float scale = refine(n, 0, nmax, x, w, l);
    for (int i = 0; i < n; i++) codes[i] = (uint8_t)l[i];
    return scale;
}

// -- scalars --------------------------------------------------------------------------------------------------------------

void quantize_f32(const float *x, void *blocks, int64_t n, const float *importance) {
    (void)importance;
    memcpy(blocks, x, (size_t)n * sizeof *x);
}

void quantize_f16(const float *x, void *blocks, int64_t n, const float *importance) {
    (void)importance;
    for (int64_t i = 0; i < n; i++) {
        F16 h = f16_from_f32(x[i]);
        memcpy((char *)blocks + 2 * i, &h, 2);
    }
}

void quantize_bf16(const float *x, void *blocks, int64_t n, const float *importance) {
    (void)importance;
    for (int64_t i = 0; i < n; i++) {
        uint16_t h = bf16_from_f32(x[i]);
        memcpy((char *)blocks + 2 * i, &h, 2);
    }
}

// -- blocks of 32 ---------------------------------------------------------------------------------------------------------

void quantize_q8_0(const float *x, void *blocks, int64_t n, const float *importance) {
    (void)importance;
    for (BlockQ8_0 *b = blocks; n > 0; b++, x += 32, n -= 32) {
        float d = fabsf(extreme(32, x)) / 127, inv = inverse(d);
        b->d = f16_from_f32(d);
        for (int j = 0; j < 32; j++) b->qs[j] = (int8_t)truncate_to(roundf(x[j] * inv), -127, 127);
    }
}

// Codes of 32 elements into half-bytes (element j low, j + 16 high); their fifth bits into the result.
static uint32_t pack_32(const uint8_t codes[32], uint8_t qs[16]) {
    uint32_t top = 0;
    for (int j = 0; j < 16; j++) {
        qs[j] = (uint8_t)((codes[j] & 15) | (codes[j + 16] & 15) << 4);
        top |= (uint32_t)(codes[j] >> 4) << j | (uint32_t)(codes[j + 16] >> 4) << (j + 16);
    }
    return top;
}

// Q4_0 and Q5_0 (nmax 8, 16): x ~ d * (code - nmax). The extreme element gets code 0.
static float symmetric_32(int nmax, const float *x, const float *importance, float sigma2, uint8_t codes[32]) {
    if (importance) {
        float w[32];
        error_weights(32, x, importance, sigma2, w);
        return search_symmetric(32, nmax, x, w, codes);
    }
    float d = extreme(32, x) / -nmax, inv = inverse(d);
    for (int j = 0; j < 32; j++) codes[j] = (uint8_t)truncate_to(x[j] * inv + (nmax + 0.5f), 0, 2 * nmax - 1);
    return d;
}

// Q4_1 and Q5_1 (nmax 15, 31): x ~ d * code + m.
static float affine_32(int nmax, const float *x, const float *importance, float sigma2, uint8_t codes[32], float *m) {
    if (importance) {
        float w[32], min;
        error_weights(32, x, importance, sigma2, w);
        float d = search_affine(32, nmax, x, w, AFFINE_IMPORTANCE, codes, &min);
        *m = -min;
        return d;
    }
    float low = x[0], high = x[0];
    for (int j = 1; j < 32; j++) {
        if (x[j] < low) low = x[j];
        if (x[j] > high) high = x[j];
    }
    float d = (high - low) / nmax, inv = inverse(d);
    for (int j = 0; j < 32; j++) codes[j] = (uint8_t)truncate_to((x[j] - low) * inv + 0.5f, 0, nmax);
    *m = low;
    return d;
}

static float row_sigma2(const float *x, int64_t n, const float *importance) { return importance ? sum_squares(n, x) / n : 0; }

// The next block's importance, where there is any.
static const float *skip(const float *importance, int n) { return importance ? importance + n : NULL; }

void quantize_q4_0(const float *x, void *blocks, int64_t n, const float *importance) {
    float sigma2 = row_sigma2(x, n, importance);
    for (BlockQ4_0 *b = blocks; n > 0; b++, x += 32, n -= 32, importance = skip(importance, 32)) {
        uint8_t codes[32];
        b->d = f16_from_f32(symmetric_32(8, x, importance, sigma2, codes));
        pack_32(codes, b->qs);
    }
}

void quantize_q5_0(const float *x, void *blocks, int64_t n, const float *importance) {
    float sigma2 = row_sigma2(x, n, importance);
    for (BlockQ5_0 *b = blocks; n > 0; b++, x += 32, n -= 32, importance = skip(importance, 32)) {
        uint8_t codes[32];
        b->d = f16_from_f32(symmetric_32(16, x, importance, sigma2, codes));
        b->qh = pack_32(codes, b->qs);
    }
}

void quantize_q4_1(const float *x, void *blocks, int64_t n, const float *importance) {
    float sigma2 = row_sigma2(x, n, importance), m;
    for (BlockQ4_1 *b = blocks; n > 0; b++, x += 32, n -= 32, importance = skip(importance, 32)) {
        uint8_t codes[32];
        b->d = f16_from_f32(affine_32(15, x, importance, sigma2, codes, &m));
        b->m = f16_from_f32(m);
        pack_32(codes, b->qs);
    }
}

void quantize_q5_1(const float *x, void *blocks, int64_t n, const float *importance) {
    float sigma2 = row_sigma2(x, n, importance), m;
    for (BlockQ5_1 *b = blocks; n > 0; b++, x += 32, n -= 32, importance = skip(importance, 32)) {
        uint8_t codes[32];
        b->d = f16_from_f32(affine_32(31, x, importance, sigma2, codes, &m));
        b->m = f16_from_f32(m);
        b->qh = pack_32(codes, b->qs);
    }
}

// The extreme element falls into 8 .. 16 of the doubled table. That ends at 12: what lies above is cut.
void quantize_mxfp4(const float *x, void *blocks, int64_t n, const float *importance) {
    (void)importance;
    for (BlockMXFP4 *b = blocks; n > 0; b++, x += 32, n -= 32) {
        uint8_t codes[32] = {0};
        float max = fabsf(extreme(32, x));
        uint32_t bits;
        memcpy(&bits, &max, sizeof bits);
        b->e = (uint8_t)max_int((int)(bits >> 23) - 2, 0); // 127 + floor(log2(max)) - 2
        float d = mxfp4_scale(b->e);
        for (int j = 0; j < 32; j++)
            for (uint8_t k = 1; k < 16; k++)
                if (fabsf(MXFP4_VALUES[k] * d - x[j]) < fabsf(MXFP4_VALUES[codes[j]] * d - x[j])) codes[j] = k;
        pack_32(codes, b->qs);
    }
}

// -- the 4-bit table formats ----------------------------------------------------------------------------------------------

// Index of the nearest table entry, the upper one on a tie.
static uint8_t nearest_iq4(float v) {
    int k = 1;
    while (k < 15 && v >= IQ4_VALUES[k]) k++;
    return (uint8_t)(v - IQ4_VALUES[k - 1] < IQ4_VALUES[k] - v ? k - 1 : k);
}

// Best scale of x ~ scale * table[code], as search_symmetric; the codes are the caller's, from the scale it stores.
static float search_iq4(const float *x, const float *importance, float sigma2) {
    float w[32], max = extreme(32, x), scale = 0, best = 0;
    if (!(fabsf(max) >= EPS)) return 0;
    error_weights(32, x, importance, sigma2, w);
    for (int k = -8; k <= 7; k++) { // -8: the extreme element on table[0], accepted as it is
        float inv = k == -8 ? 1 / (-max / IQ4_VALUES[0]) : (k + IQ4_VALUES[0]) / max, a = 0, b = 0;
        for (int j = 0; j < 32; j++) {
            float q = IQ4_VALUES[nearest_iq4(inv * x[j])];
            a += w[j] * q * x[j];
            b += w[j] * q * q;
        }
        if (k == -8 || (b > 0 && a * a > best * b)) {
            scale = a / b;
            best = scale * a;
        }
    }
    return scale;
}

void quantize_iq4_nl(const float *x, void *blocks, int64_t n, const float *importance) {
    for (BlockIQ4_NL *b = blocks; n > 0; b++, x += 32, n -= 32, importance = skip(importance, 32)) {
        uint8_t codes[32];
        float d = search_iq4(x, importance, sum_squares(32, x) * (2.0f / 32)), inv = inverse(d);
        b->d = f16_from_f32(d);
        for (int j = 0; j < 32; j++) codes[j] = nearest_iq4(inv * x[j]);
        pack_32(codes, b->qs);
    }
}

void quantize_iq4_xs(const float *x, void *blocks, int64_t n, const float *importance) {
    for (BlockIQ4_XS *b = blocks; n > 0; b++, x += 256, n -= 256, importance = skip(importance, 256)) {
        float sigma2 = sum_squares(256, x) * (2.0f / 256), scales[8];
        for (int g = 0; g < 8; g++) scales[g] = search_iq4(x + 32 * g, skip(importance, 32 * g), sigma2);
        float d = -extreme(8, scales) / 32, inv = inverse(d);
        *b = (BlockIQ4_XS){.d = f16_from_f32(d)};
        for (int g = 0; g < 8; g++) {
            uint8_t codes[32];
            int l = clamp_int(round_even(inv * scales[g]), -32, 31);
            float inv_scale = inverse(d * l);
            for (int j = 0; j < 32; j++) codes[j] = nearest_iq4(inv_scale * x[32 * g + j]);
            pack_32(codes, b->qs + 16 * g);
            b->scales_l[g / 2] |= (uint8_t)(((l + 32) & 15) << (g % 2 * 4));
            b->scales_h |= (uint16_t)((l + 32) >> 4 << (g * 2));
        }
    }
}

// -- Q2_K, Q4_K, Q5_K: x ~ d * scale * code - dmin * min ------------------------------------------------------------------

typedef struct {
    int group;          // elements that share a scale and a min
    int nmax, scale_max; // largest code; largest scale and min
    AffineSearch plain;
    float mean_weight;  // without importance: w = mean_weight * (root mean square of the group) + |x|
    float sigma;        // with: sigma2 = sigma * (mean square of the block)
} AffineFormat;

static const AffineFormat Q2_K = {16, 3, 15, {-0.5f, 0.1f, 15, true}, 0, 1};
static const AffineFormat Q4_K = {32, 15, 63, {-1.0f, 0.1f, 20, false}, 1, 2};
static const AffineFormat Q5_K = {32, 31, 63, {-0.5f, 0.1f, 15, false}, 1, 2};

typedef struct {
    F16 d, dmin;
    uint8_t scales[16], mins[16], codes[256];
} AffineBlock;

// x ~ d * code with the largest x on nmax. A negative x gets 0 (it would be nmax in llama.cpp, by wrapping around).
static float scale_to_max(int n, int nmax, const float *x, uint8_t *codes) {
    float max = 0;
    for (int i = 0; i < n; i++)
        if (x[i] > max) max = x[i];
    float inv = max > 0 ? nmax / max : 0;
    for (int i = 0; i < n; i++) codes[i] = (uint8_t)clamp_int(round_even(inv * x[i]), 0, nmax);
    return max / nmax;
}

static void affine_256(const AffineFormat *f, const float *x, const float *importance, AffineBlock *out) {
    int n_group = 256 / f->group;
    float scales[16], mins[16], sums[16], sigma2 = f->sigma * sum_squares(256, x) / 256;
    for (int g = 0; g < n_group; g++) {
        const float *xg = x + g * f->group;
        float w[GROUP_MAX];
        if (importance) {
            error_weights(f->group, xg, importance + g * f->group, sigma2, w);
        } else {
            float rms = sqrtf(sum_squares(f->group, xg) / f->group);
            for (int l = 0; l < f->group; l++) w[l] = f->mean_weight * rms + fabsf(xg[l]);
        }
        sums[g] = 0;
        for (int l = 0; l < f->group; l++) sums[g] += w[l];
        scales[g] = search_affine(f->group, f->nmax, xg, w, importance ? AFFINE_IMPORTANCE : f->plain,
                                  out->codes + g * f->group, &mins[g]);
    }
    if (importance) {
        out->d = f16_from_f32(search_positive(n_group, f->scale_max, scales, sums, out->scales));
        out->dmin = f16_from_f32(search_positive(n_group, f->scale_max, mins, sums, out->mins));
    } else {
        out->d = f16_from_f32(scale_to_max(n_group, f->scale_max, scales, out->scales));
        out->dmin = f16_from_f32(scale_to_max(n_group, f->scale_max, mins, out->mins));
    }
    for (int g = 0; g < n_group; g++) { // the codes once more, with the scale and min that a reader will see
        float scale = f16_to_f32(out->d) * out->scales[g], min = f16_to_f32(out->dmin) * out->mins[g];
        if (scale == 0) continue;
        for (int i = g * f->group; i < (g + 1) * f->group; i++)
            out->codes[i] = (uint8_t)clamp_int(round_even((x[i] + min) / scale), 0, f->nmax);
    }
}

void quantize_q2_k(const float *x, void *blocks, int64_t n, const float *importance) {
    for (BlockQ2_K *b = blocks; n > 0; b++, x += 256, n -= 256, importance = skip(importance, 256)) {
        AffineBlock a;
        affine_256(&Q2_K, x, importance, &a);
        *b = (BlockQ2_K){.d = a.d, .dmin = a.dmin};
        for (int j = 0; j < 16; j++) b->scales[j] = (uint8_t)(a.scales[j] | a.mins[j] << 4);
        for (int i = 0; i < 256; i++) b->qs[i / 128 * 32 + i % 32] |= (uint8_t)(a.codes[i] << (i % 128 / 32 * 2));
    }
}

// The inverse of unpack_scales_k4.
static void pack_scales_k4(const uint8_t scales[8], const uint8_t mins[8], uint8_t packed[12]) {
    for (int b = 0; b < 4; b++) {
        packed[b] = (uint8_t)(scales[b] | scales[b + 4] >> 4 << 6);
        packed[b + 4] = (uint8_t)(mins[b] | mins[b + 4] >> 4 << 6);
        packed[b + 8] = (uint8_t)((scales[b + 4] & 15) | (mins[b + 4] & 15) << 4);
    }
}

void quantize_q4_k(const float *x, void *blocks, int64_t n, const float *importance) {
    for (BlockQ4_K *b = blocks; n > 0; b++, x += 256, n -= 256, importance = skip(importance, 256)) {
        AffineBlock a;
        affine_256(&Q4_K, x, importance, &a);
        *b = (BlockQ4_K){.d = a.d, .dmin = a.dmin};
        pack_scales_k4(a.scales, a.mins, b->scales);
        for (int i = 0; i < 256; i++) b->qs[i / 64 * 32 + i % 32] |= (uint8_t)(a.codes[i] << (i / 32 % 2 * 4));
    }
}

void quantize_q5_k(const float *x, void *blocks, int64_t n, const float *importance) {
    for (BlockQ5_K *b = blocks; n > 0; b++, x += 256, n -= 256, importance = skip(importance, 256)) {
        AffineBlock a;
        affine_256(&Q5_K, x, importance, &a);
        *b = (BlockQ5_K){.d = a.d, .dmin = a.dmin};
        pack_scales_k4(a.scales, a.mins, b->scales);
        for (int i = 0; i < 256; i++) {
            b->qs[i / 64 * 32 + i % 32] |= (uint8_t)((a.codes[i] & 15) << (i / 32 % 2 * 4));
            b->qh[i % 32] |= (uint8_t)(a.codes[i] >> 4 << (i / 32));
        }
    }
}

// -- Q3_K, Q6_K: x ~ d * scale * (code - nmax), sixteen signed scales -----------------------------------------------------

// The codes once more, with the scale that a reader will see.
static void requantize_16(int nmax, const float *x, float scale, uint8_t *codes) {
    if (scale == 0) return;
    for (int l = 0; l < 16; l++) codes[l] = (uint8_t)(clamp_int(round_even(x[l] / scale), -nmax, nmax - 1) + nmax);
}

// s ~ d * l with the extreme scale on -nmax. All zero: d = 0 and every l = -nmax, which is stored as 0.
static float scale_to_extreme(int nmax, const float s[16], int l[16]) {
    float max = extreme(16, s), inv = max != 0 ? -nmax / max : 0;
    for (int j = 0; j < 16; j++) l[j] = max != 0 ? clamp_int(round_even(inv * s[j]), -nmax, nmax - 1) : -nmax;
    return inverse(inv);
}

// Q3_K without importance: the extreme element on -4, then refine. x^2 weights.
static float search_q3(const float x[16], uint8_t codes[16]) {
    float max = extreme(16, x), w[16];
    int l[16];
    memset(codes, 0, 16);
    if (!(fabsf(max) >= EPS)) return 0;
    error_weights(16, x, NULL, 0, w);
    for (int i = 0; i < 16; i++) l[i] = clamp_int(round_even(-4 / max * x[i]), -4, 3);
    float scale = refine(16, -4, 3, x, w, l);
    for (int i = 0; i < 16; i++) codes[i] = (uint8_t)(l[i] + 4);
    return scale;
}

void quantize_q3_k(const float *x, void *blocks, int64_t n, const float *importance) {
    for (BlockQ3_K *b = blocks; n > 0; b++, x += 256, n -= 256, importance = skip(importance, 256)) {
        float scales[16], sums[16], d;
        uint8_t codes[256];
        int l[16];
        if (importance) {
            float w[16], sigma2 = 2 * sum_squares(256, x) / 256;
            uint8_t scale_codes[16];
            for (int j = 0; j < 16; j++) {
                error_weights(16, x + 16 * j, importance + 16 * j, sigma2, w);
                sums[j] = 0;
                for (int i = 0; i < 16; i++) sums[j] += w[i];
                scales[j] = search_symmetric(16, 4, x + 16 * j, w, codes + 16 * j);
            }
            d = search_symmetric(16, 32, scales, sums, scale_codes);
            for (int j = 0; j < 16; j++) l[j] = scale_codes[j] - 32;
        } else {
            for (int j = 0; j < 16; j++) scales[j] = search_q3(x + 16 * j, codes + 16 * j);
            d = scale_to_extreme(32, scales, l);
        }
        *b = (BlockQ3_K){.d = f16_from_f32(d)};
        for (int j = 0; j < 16; j++) {
            requantize_16(4, x + 16 * j, f16_to_f32(b->d) * l[j], codes + 16 * j);
            b->scales[j % 8] |= (uint8_t)(((l[j] + 32) & 15) << (j / 8 * 4));
            b->scales[8 + j % 4] |= (uint8_t)((l[j] + 32) >> 4 << (j / 4 * 2));
        }
        for (int i = 0; i < 256; i++) {
            b->qs[i / 128 * 32 + i % 32] |= (uint8_t)((codes[i] & 3) << (i % 128 / 32 * 2));
            b->hmask[i % 32] |= (uint8_t)(codes[i] >> 2 << (i / 32));
        }
    }
}

void quantize_q6_k(const float *x, void *blocks, int64_t n, const float *importance) {
    for (BlockQ6_K *b = blocks; n > 0; b++, x += 256, n -= 256, importance = skip(importance, 256)) {
        float scales[16], w[16];
        uint8_t codes[256];
        int l[16];
        for (int j = 0; j < 16; j++) {
            error_weights(16, x + 16 * j, NULL, 0, w);
            scales[j] = search_symmetric(16, 32, x + 16 * j, importance ? importance + 16 * j : w, codes + 16 * j);
        }
        *b = (BlockQ6_K){0};
        if (!(fabsf(extreme(16, scales)) >= EPS)) continue;
        b->d = f16_from_f32(scale_to_extreme(128, scales, l));
        for (int j = 0; j < 16; j++) {
            b->scales[j] = (int8_t)l[j];
            requantize_16(32, x + 16 * j, f16_to_f32(b->d) * l[j], codes + 16 * j);
        }
        for (int i = 0; i < 256; i++) {
            int g = i % 128 / 32;
            b->ql[i / 128 * 64 + g % 2 * 32 + i % 32] |= (uint8_t)((codes[i] & 15) << (g / 2 * 4));
            b->qh[i / 128 * 32 + i % 32] |= (uint8_t)(codes[i] >> 4 << (g * 2));
        }
    }
}

// vec_portable.c: the float helpers in plain C, for any machine. Sums run in LANES partial sums, in an order that is the same
// whether or not the compiler vectorises.
#include <math.h>
#include "vec.h"

enum { LANES = 8 };

static float bits_to_float(int32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline float exp_of(float x) {
    x = x < EXP_LOW ? EXP_LOW : x > EXP_HIGH ? EXP_HIGH : x;
    const float shifted = x * LOG2_E + 0x1.8p23f; // adding 1.5 * 2^23 rounds to an integer
    const float n = shifted - 0x1.8p23f;
    const float r = x - n * LN2_HIGH - n * LN2_LOW;
    const float p = ((((EXP_P0 * r + EXP_P1) * r + EXP_P2) * r + EXP_P3) * r + EXP_P4) * r + EXP_P5;
    int32_t power;
    memcpy(&power, &shifted, sizeof power);
    return (p * r * r + r + 1) * bits_to_float((int32_t)(((uint32_t)power + 127) << 23));
}

static inline float tanh_of(float x) {
    const float a = fabsf(x), s = x * x;
    const float small = x + x * s * ((((TANH_T0 * s + TANH_T1) * s + TANH_T2) * s + TANH_T3) * s + TANH_T4);
    return a < TANH_SMALL ? small : copysignf(1 - 2 / (exp_of(2 * a) + 1), x);
}

static float add_lanes(float *lane) {
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) lane[i] += lane[i + half];
    return lane[0];
}

static float dot(const float *a, const float *b, int n) {
    float sum[LANES] = {0};
    int i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int k = 0; k < LANES; k++) sum[k] += a[i + k] * b[i + k];
    for (int k = 0; i + k < n; k++) sum[k] += a[i + k] * b[i + k];
    return add_lanes(sum);
}

static void to_f16(F16 *y, const float *x, int n) {
    for (int i = 0; i < n; i++) y[i] = f16_from_f32(x[i]);
}

static void to_q8_0(int8_t *code, F16 *scale, const float *x, int n) {
    for (int i = 0; i < n; i += 32) {
        BlockQ8_0 block;
        quantize_q8_0(x + i, &block, 32, NULL);
        memcpy(code + i, block.qs, sizeof block.qs);
        scale[i / 32] = block.d;
    }
}

// x [LANES] = elements i .. i + n - 1 of row j
static inline void load_row(float *x, const KeySpan *k, int j, int i, int n) {
    if (k->scale) {
        const float d = f16_to_f32(span_scales(k, j)[i / 32]);
        const int8_t *code = span_codes(k, j) + i;
        for (int l = 0; l < LANES; l++) x[l] = d * code[l];
        return;
    }
    const F16 *row = span_row(k, j) + i;
    for (int l = 0; l < n; l++) x[l] = f16_to_f32(row[l]);
}

static void keys(float *score, int64_t stride, const float *const *q, int n_q, const KeySpan *k) {
    for (int j = 0; j < k->n_key; j++) {
        float sum[VEC_ROWS][LANES] = {{0}};
        for (int i = 0; i < k->head_dim; i += LANES) {
            const int n = min_int(LANES, k->head_dim - i);
            float x[LANES] = {0};
            load_row(x, k, j, i, n);
            for (int r = 0; r < n_q; r++)
                for (int l = 0; l < n; l++) sum[r][l] += x[l] * q[r][i + l];
        }
        for (int r = 0; r < n_q; r++) score[r * stride + j] = add_lanes(sum[r]);
    }
}

static void values(float *const *y, const float *p, int64_t stride, int n_q, const KeySpan *v) {
    for (int i = 0; i < v->head_dim; i += LANES) {
        const int n = min_int(LANES, v->head_dim - i);
        float sum[VEC_ROWS][LANES] = {{0}}, x[LANES] = {0};
        for (int j = 0; j < v->n_key; j++) {
            load_row(x, v, j, i, n);
            for (int r = 0; r < n_q; r++)
                for (int l = 0; l < LANES; l++) sum[r][l] += p[r * stride + j] * x[l];
        }
        for (int r = 0; r < n_q; r++)
            for (int l = 0; l < n; l++) y[r][i + l] += sum[r][l];
    }
}

static float exp_sum(float *x, float highest, int n) {
    float sum[LANES] = {0};
    for (int i = 0; i < n; i++) x[i] = exp_of(x[i] - highest);
    for (int i = 0; i < n; i++) sum[i % LANES] += x[i];
    return add_lanes(sum);
}

static float largest(const float *x, int n) {
    float top = x[0];
    for (int i = 1; i < n; i++) top = x[i] > top ? x[i] : top;
    return top;
}

static void softcap(float *x, float cap, int64_t n) {
    const float inverse = 1 / cap;
    for (int64_t i = 0; i < n; i++) x[i] = cap * tanh_of(x[i] * inverse);
}

static void gated(float *y, const float *gate, const float *up, int64_t n, Activation act) {
    if (act == ACT_SILU)
        for (int64_t i = 0; i < n; i++) y[i] = gate[i] / (1 + exp_of(-gate[i])) * up[i];
    else
        for (int64_t i = 0; i < n; i++) {
            const float x = gate[i];
            y[i] = x / (1 + exp_of(-GELU_TWICE_ROOT * (x + GELU_CUBIC * x * x * x))) * up[i];
        }
}

static const VecTable TABLE = {
    .dot = dot, .to_f16 = to_f16, .to_q8_0 = to_q8_0, .keys = keys, .values = values, .exp_sum = exp_sum, .largest = largest, .softcap = softcap, .gated = gated,
};
const VecTable *const VEC_PORTABLE = &TABLE;

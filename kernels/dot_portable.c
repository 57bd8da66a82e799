// dot_portable.c: the dot products in plain C, for any machine. One block at a time is unpacked to signed bytes with a scale
// and a minimum per 16 elements; then every activation row uses it. Compilers turn the loops over 16 into vector code.
#include <math.h>
#include "dot.h"
#include "unpack.h"

// Sums of the eight products under the first and under the second activation scale.
static inline void dot16(const int8_t *a, const int8_t *b, float *first, float *second) {
    int lane[8];
    for (int k = 0; k < 8; k++) lane[k] = (int16_t)(a[k] * b[k]) + (int16_t)(a[k + 8] * b[k + 8]); // a product fits 16 bits: faster
    *first = (float)((lane[0] + lane[1]) + (lane[2] + lane[3]));
    *second = (float)((lane[4] + lane[5]) + (lane[6] + lane[7]));
}

static inline void tile_of(const DotTile *t, void (*unpack)(Unpacked *, const void *), int block, int bytes) {
    Unpacked u = {.min = {0}};
    for (int o = 0; o < t->n_w; o++) {
        const char *w = (const char *)t->w + o * t->w_stride;
        float sum[DOT_ROWS] = {0};
        for (int at = 0; at < t->n_col; at += block, w += bytes) {
            unpack(&u, w);
            for (int r = 0; r < t->n_x; r++) {
                const int8_t *q = act8_codes(t->x[r]) + at;
                const float *d = act8_scales(t->x[r], t->n_col) + at / 16, *sums = act8_sums(t->x[r], t->n_col) + at / 16;
                float s = 0; // of one block, so that the error of a long row grows slowly
                for (int g = 0; g < block / 16; g++) {
                    float first, second;
                    dot16(u.q + g * 16, q + g * 16, &first, &second);
                    s += u.scale[g] * (d[g / 2 * 2] * first + d[g / 2 * 2 + 1] * second) + u.min[g] * sums[g];
                }
                sum[r] += s;
            }
        }
        for (int r = 0; r < t->n_x; r++) t->y[r * t->y_stride + o] = sum[r];
    }
}

static void dot_q4_0(const DotTile *t) { tile_of(t, unpack_q4_0, 32, sizeof(BlockQ4_0)); }
static void dot_q4_1(const DotTile *t) { tile_of(t, unpack_q4_1, 32, sizeof(BlockQ4_1)); }
static void dot_q5_0(const DotTile *t) { tile_of(t, unpack_q5_0, 32, sizeof(BlockQ5_0)); }
static void dot_q5_1(const DotTile *t) { tile_of(t, unpack_q5_1, 32, sizeof(BlockQ5_1)); }
static void dot_q8_0(const DotTile *t) { tile_of(t, unpack_q8_0, 32, sizeof(BlockQ8_0)); }
static void dot_iq4_nl(const DotTile *t) { tile_of(t, unpack_iq4_nl, 32, sizeof(BlockIQ4_NL)); }
static void dot_mxfp4(const DotTile *t) { tile_of(t, unpack_mxfp4, 32, sizeof(BlockMXFP4)); }
static void dot_q2_k(const DotTile *t) { tile_of(t, unpack_q2_k, 256, sizeof(BlockQ2_K)); }
static void dot_q3_k(const DotTile *t) { tile_of(t, unpack_q3_k, 256, sizeof(BlockQ3_K)); }
static void dot_q4_k(const DotTile *t) { tile_of(t, unpack_q4_k, 256, sizeof(BlockQ4_K)); }
static void dot_q5_k(const DotTile *t) { tile_of(t, unpack_q5_k, 256, sizeof(BlockQ5_K)); }
static void dot_q6_k(const DotTile *t) { tile_of(t, unpack_q6_k, 256, sizeof(BlockQ6_K)); }
static void dot_iq4_xs(const DotTile *t) { tile_of(t, unpack_iq4_xs, 256, sizeof(BlockIQ4_XS)); }

// -- float weights: 16 partial sums, so that the order is the same whether or not the compiler vectorises -----------------

enum { LANES = 16 };

static float add_lanes(const float *lane) {
    float s[LANES];
    memcpy(s, lane, sizeof s);
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) s[i] += s[i + half];
    return s[0];
}

// As f16_to_f32, in a form that vectorises: 2^112 turns the exponent's bias of 15 into 127, for subnormals too.
static inline float half_to_float(uint16_t h) {
    const uint32_t shifted = (uint32_t)(h & 0x7fff) << 13, special = h & 0x7fff;
    float x;
    memcpy(&x, &shifted, sizeof x);
    x *= 0x1p112f;
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits = (special >= 0x7c00 ? shifted | 0x7f800000 : bits) | (uint32_t)(h & 0x8000) << 16;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline void add_products(float sum[LANES], const char *w, const float *x, TensorType type) { // LANES of them
    float v[LANES];
    uint16_t h[LANES];
    memcpy(type == TYPE_F32 ? (void *)v : h, w, type == TYPE_F32 ? sizeof v : sizeof h);
    if (type == TYPE_F16)
        for (int i = 0; i < LANES; i++) v[i] = half_to_float(h[i]);
    if (type == TYPE_BF16)
        for (int i = 0; i < LANES; i++) {
            const uint32_t bits = (uint32_t)h[i] << 16;
            memcpy(&v[i], &bits, sizeof bits);
        }
    for (int i = 0; i < LANES; i++) sum[i] += v[i] * x[i];
}

static inline void tile_of_floats(const DotTile *t, TensorType type, int bytes) {
    const int whole = t->n_col / LANES * LANES, rest = t->n_col - whole;
    for (int o = 0; o < t->n_w; o++) {
        const char *w = (const char *)t->w + o * t->w_stride;
        for (int r = 0; r < t->n_x; r++) {
            const float *x = t->x[r];
            float sum[LANES] = {0};
            for (int at = 0; at < whole; at += LANES) add_products(sum, w + (int64_t)at * bytes, x + at, type);
            if (rest) { // filled up with zeros
                char last_w[4 * LANES] = {0};
                float last_x[LANES] = {0};
                memcpy(last_w, w + (int64_t)whole * bytes, (size_t)(rest * bytes));
                memcpy(last_x, x + whole, sizeof(float) * (size_t)rest);
                add_products(sum, last_w, last_x, type);
            }
            t->y[r * t->y_stride + o] = add_lanes(sum);
        }
    }
}

static void dot_f32(const DotTile *t) { tile_of_floats(t, TYPE_F32, 4); }
static void dot_f16(const DotTile *t) { tile_of_floats(t, TYPE_F16, 2); }
static void dot_bf16(const DotTile *t) { tile_of_floats(t, TYPE_BF16, 2); }

// -- activations ----------------------------------------------------------------------------------------------------------

static void quantize(void *act8, const float *x, int n_col) {
    int8_t *q = act8;
    float *d = (float *)((char *)act8 + n_col), *sum = d + n_col / 16;
    for (int at = 0; at < n_col; at += 32, d += 2) {
        float largest[2] = {0}, inverse[2];
        for (int i = at; i < at + 32; i++) largest[i / 4 % 2] = fmaxf(largest[i / 4 % 2], fabsf(x[i]));
        for (int k = 0; k < 2; k++) {
            inverse[k] = largest[k] > ACT8_SMALLEST ? 127 / largest[k] : 0;
            d[k] = largest[k] / 127;
        }
        for (int g = at; g < at + 32; g += 16) {
            float s = 0;
            for (int i = g; i < g + 16; i++) {
                const float code = fmaxf(-127, fminf(127, rintf(x[i] * inverse[i / 4 % 2]))); // NaN too must become some code
                q[i] = (int8_t)code;
                s += code * d[i / 4 % 2];
            }
            sum[g / 16] = s;
        }
    }
}

static const DotTable TABLE = DOT_TABLE;
const DotTable *const DOT_PORTABLE = &TABLE;

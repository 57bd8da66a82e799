// random.h: numbers and weights at random, the same in every run, for the tests of ops.
#ifndef RANDOM_H
#define RANDOM_H

#include <math.h>
#include <string.h>
#include "quant.h"

static uint64_t random_state = 88172645463325252ULL;

static inline uint32_t random_bits(void) { // xorshift64*, upper half
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return (uint32_t)(random_state * 2685821657736338717ULL >> 32);
}
static inline int random_below(int n) { return (int)(random_bits() % (uint32_t)n); }
static inline float uniform(float low, float high) { return low + (high - low) * (float)(random_bits() >> 8) * 0x1p-24f; }
static inline float gauss(void) { return sqrtf(-2 * logf(uniform(1e-6f, 1))) * cosf(uniform(0, 6.2831853f)); }

// Where the float16 scales of a block lie; every other byte may hold any value.
static const struct {
    TensorType type;
    int half[2]; // byte offsets, -1 none
} TYPES[] = {
    {TYPE_F32, {-1, -1}},  {TYPE_F16, {-1, -1}},  {TYPE_BF16, {-1, -1}}, {TYPE_Q4_0, {0, -1}},  {TYPE_Q4_1, {0, 2}},   {TYPE_Q5_0, {0, -1}},
    {TYPE_Q5_1, {0, 2}},   {TYPE_Q8_0, {0, -1}},  {TYPE_Q2_K, {80, 82}}, {TYPE_Q3_K, {108, -1}}, {TYPE_Q4_K, {0, 2}},  {TYPE_Q5_K, {0, 2}},
    {TYPE_Q6_K, {208, -1}}, {TYPE_IQ4_NL, {0, -1}}, {TYPE_IQ4_XS, {0, -1}}, {TYPE_MXFP4, {-1, -1}},
};
enum { N_TYPE = sizeof TYPES / sizeof *TYPES };

// A tensor's bytes at random: every code, every combination of packed scales, the float16 scales small, MXFP4's now and then
// subnormal.
static inline void random_blocks(char *p, TensorType type, int64_t bytes) {
    const TypeInfo *info = type_info((int)type);
    int which = 0;
    while (TYPES[which].type != type) which++;
    for (int64_t i = 0; i < bytes; i++) p[i] = (char)random_bits();
    for (int64_t i = 0; i < bytes; i += info->bytes) {
        if (info->block == 1) {
            const float x = gauss();
            info->from_f32(&x, p + i, 1, NULL);
        }
        for (int k = 0; k < 2; k++)
            if (TYPES[which].half[k] >= 0) {
                const F16 h = f16_from_f32(uniform(-0.02f, 0.02f));
                memcpy(p + i + TYPES[which].half[k], &h, sizeof h);
            }
        if (type == TYPE_MXFP4) p[i] = (char)(random_below(50) ? 120 + random_below(4) : random_below(2));
    }
}

// Logits for op top, with what is hard about them.
enum { TOP_GAUSS, TOP_TIES, TOP_ODD, TOP_ALL_OUT, TOP_RISING, TOP_FALLING, N_TOP_KIND };
static inline void top_logits(float *x, int n, int kind) {
    const float odd[] = {NAN, INFINITY, -INFINITY, 3.4028235e38f, -3.4028235e38f, 0.0f, -0.0f, 1e-45f, -NAN};
    for (int i = 0; i < n; i++)
        x[i] = kind == TOP_TIES ? (float)random_below(5) - 2 : kind == TOP_ODD && random_below(2) ? odd[random_below(9)] : kind == TOP_ALL_OUT ? (i % 2 ? NAN : -INFINITY)
             : kind == TOP_RISING ? (float)i : kind == TOP_FALLING ? (float)-i : gauss();
}
static const struct { int n_vocab, k; } TOP_SHAPES[] = {{1, 1}, {2, 2}, {3, 1}, {63, 5}, {64, 64}, {65, 1}, {130, 128}, {333, 33}, {4096, 128}, {4097, 40}, {9001, 1}, {32003, 64}};
enum { N_TOP_SHAPE = sizeof TOP_SHAPES / sizeof *TOP_SHAPES };

#endif

// quant.c: the definition of each weight format: how its bytes become float32, and the table of all types a file may name.
//
// A row is cut into blocks of 32 or 256 elements. A block holds small integer codes q and the few numbers that scale them:
//   w = d q          symmetric formats (Q4_0, Q5_0, Q8_0, Q3_K, Q6_K); q is stored with an offset that makes it unsigned
//   w = d q + m      affine formats    (Q4_1, Q5_1; Q2_K, Q4_K, Q5_K write it w = d q - m)
//   w = d table[q]   table formats     (IQ4_NL, IQ4_XS, MXFP4)
// In the 256-element "K" formats every 16 or 32 elements have a small integer scale of their own, relative to the block's d.
// Where the codes lie: 32-element blocks keep element j in the low and element j + 16 in the high half of byte j; 256-element
// blocks keep groups of 32 elements side by side, each group at its own bit position of the same 32 bytes.
//
// All functions are exact to the bit against llama.cpp (August 2026): plain float32, in the order written, no fused
// multiply-add. The way back, from float32, is quantize.c; products with quantised activations are in the backends.
#include "quant.h"

#include <assert.h>
#include <strings.h>

#ifdef __clang__
#pragma STDC FP_CONTRACT OFF // gcc -std=c11 does not contract
#endif

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the block structs are read as they lie in a little-endian file");

// -- float16 and bfloat16 -------------------------------------------------------------------------------------------------

static inline float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

// 1 sign, 5 exponent (bias 15), 10 fraction bits into 1, 8 (bias 127), 23.
float f16_to_f32(F16 h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16;
    uint32_t magnitude = (uint32_t)(h & 0x7fff) << 13;
    uint32_t tiny = bits_of((float)(h & 0x3ff) * 0x1p-24f); // exponent 0: zero or subnormal, a multiple of 2^-24
    uint32_t bits = magnitude < 1u << 23 ? tiny
                  : magnitude < 31u << 23 ? magnitude + ((127u - 15u) << 23)
                  : magnitude | 0x7f800000; // exponent 31: infinity or NaN
    return float_of(sign | bits);
}

F16 f16_from_f32(float x) {
    uint32_t sign = bits_of(x) >> 16 & 0x8000;
    uint32_t magnitude = bits_of(x) & 0x7fffffff;
    uint32_t bits;
    if (magnitude > 0x7f800000) bits = 0x7e00;                                // NaN
    else if (magnitude >= bits_of(65520.0f)) bits = 0x7c00;                   // halfway to 65536 and above: infinity
    else if (magnitude < bits_of(0x1p-14f))                                   // subnormal: 0.5's last bit is 2^-24, so the
        bits = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);           // addition rounds to a multiple of that
    else bits = (magnitude - ((127u - 15u) << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13; // nearest, ties to even
    return (F16)(sign | bits);
}

float bf16_to_f32(uint16_t h) { return float_of((uint32_t)h << 16); }

uint16_t bf16_from_f32(float x) {
    uint32_t bits = bits_of(x);
    if ((bits & 0x7fffffff) > 0x7f800000) return (uint16_t)(bits >> 16 | 64); // NaN stays NaN, and quiet
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static void dequantize_f32(const void *blocks, float *restrict x, int64_t n) { memcpy(x, blocks, (size_t)n * sizeof *x); }

static void dequantize_f16(const void *blocks, float *restrict x, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        F16 h;
        memcpy(&h, (const char *)blocks + 2 * i, 2);
        x[i] = f16_to_f32(h);
    }
}

static void dequantize_bf16(const void *blocks, float *restrict x, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        uint16_t h;
        memcpy(&h, (const char *)blocks + 2 * i, 2);
        x[i] = bf16_to_f32(h);
    }
}

// -- blocks of 32 ---------------------------------------------------------------------------------------------------------

static void dequantize_q4_0(const void *blocks, float *restrict x, int64_t n) {
    for (const BlockQ4_0 *b = blocks; n > 0; b++, x += 32, n -= 32) {
        float d = f16_to_f32(b->d);
        for (int j = 0; j < 16; j++) {
            x[j] = ((b->qs[j] & 15) - 8) * d;
            x[j + 16] = ((b->qs[j] >> 4) - 8) * d;
        }
    }
}

static void dequantize_q4_1(const void *blocks, float *restrict x, int64_t n) {
    for (const BlockQ4_1 *b = blocks; n > 0; b++, x += 32, n -= 32) {
        float d = f16_to_f32(b->d), m = f16_to_f32(b->m);
        for (int j = 0; j < 16; j++) {
            x[j] = (b->qs[j] & 15) * d + m;
            x[j + 16] = (b->qs[j] >> 4) * d + m;
        }
    }
}

// The fifth bit of element i is bit i of qh.
static void dequantize_q5_0(const void *blocks, float *restrict x, int64_t n) {
    for (const BlockQ5_0 *b = blocks; n > 0; b++, x += 32, n -= 32) {
        float d = f16_to_f32(b->d);
        uint32_t qh = b->qh;
        for (int j = 0; j < 16; j++) {
            x[j] = ((b->qs[j] & 15) + (int)(qh >> j & 1) * 16 - 16) * d;
            x[j + 16] = ((b->qs[j] >> 4) + (int)(qh >> (j + 16) & 1) * 16 - 16) * d;
        }
    }
}

static void dequantize_q5_1(const void *blocks, float *restrict x, int64_t n) {
    for (const BlockQ5_1 *b = blocks; n > 0; b++, x += 32, n -= 32) {
        float d = f16_to_f32(b->d), m = f16_to_f32(b->m);
        uint32_t qh = b->qh;
        for (int j = 0; j < 16; j++) {
            x[j] = ((b->qs[j] & 15) + (int)(qh >> j & 1) * 16) * d + m;
            x[j + 16] = ((b->qs[j] >> 4) + (int)(qh >> (j + 16) & 1) * 16) * d + m;
        }
    }
}

static void dequantize_q8_0(const void *blocks, float *restrict x, int64_t n) {
    for (const BlockQ8_0 *b = blocks; n > 0; b++, x += 32, n -= 32) {
        float d = f16_to_f32(b->d);
        for (int j = 0; j < 32; j++) x[j] = b->qs[j] * d;
    }
}

// Denser near zero, where most weights are.
const int8_t IQ4_VALUES[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

static void dequantize_iq4_nl(const void *blocks, float *restrict x, int64_t n) {
    for (const BlockIQ4_NL *b = blocks; n > 0; b++, x += 32, n -= 32) {
        float d = f16_to_f32(b->d);
        for (int j = 0; j < 16; j++) {
            x[j] = d * IQ4_VALUES[b->qs[j] & 15];
            x[j + 16] = d * IQ4_VALUES[b->qs[j] >> 4];
        }
    }
}

// The sixteen values of a float with 1 sign, 2 exponent and 1 fraction bits, doubled to be integers.
const int8_t MXFP4_VALUES[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

float mxfp4_scale(uint8_t e) {
    return float_of(e < 2 ? 0x00200000u << e : (uint32_t)(e - 1) << 23); // 2^-128 and 2^-127 are subnormal
}

static void dequantize_mxfp4(const void *blocks, float *restrict x, int64_t n) {
    for (const BlockMXFP4 *b = blocks; n > 0; b++, x += 32, n -= 32) {
        float d = mxfp4_scale(b->e);
        for (int j = 0; j < 16; j++) {
            x[j] = MXFP4_VALUES[b->qs[j] & 15] * d;
            x[j + 16] = MXFP4_VALUES[b->qs[j] >> 4] * d;
        }
    }
}

// -- blocks of 256: i is the first element of a group with one scale, l counts inside the group ---------------------------

// 2-bit codes; per 16 elements one byte: scale in its low, min in its high half.
static void dequantize_q2_k(const void *blocks, float *restrict x, int64_t n) {
    for (const BlockQ2_K *b = blocks; n > 0; b++, x += 256, n -= 256) {
        float d = f16_to_f32(b->d), dmin = f16_to_f32(b->dmin);
        for (int i = 0; i < 256; i += 16) {
            float scale = d * (b->scales[i / 16] & 15), min = dmin * (b->scales[i / 16] >> 4);
            const uint8_t *qs = b->qs + i / 128 * 32 + i % 32;
            int shift = i % 128 / 32 * 2;
            for (int l = 0; l < 16; l++) x[i + l] = scale * (qs[l] >> shift & 3) - min;
        }
    }
}

// 2 low bits as in Q2_K; the third of element i is bit i/32 of hmask[i % 32]. Codes are stored plus 4, scales plus 32.
static void dequantize_q3_k(const void *blocks, float *restrict x, int64_t n) {
    for (const BlockQ3_K *b = blocks; n > 0; b++, x += 256, n -= 256) {
        float d = f16_to_f32(b->d);
        for (int i = 0; i < 256; i += 16) {
            int j = i / 16; // sixteen 6-bit scales: low halves of eight bytes, high halves; then four bytes of top bits
            int low = j < 8 ? b->scales[j] & 15 : b->scales[j - 8] >> 4;
            int top = b->scales[8 + j % 4] >> (j / 4 * 2) & 3;
            float scale = d * (low + top * 16 - 32);
            const uint8_t *qs = b->qs + i / 128 * 32 + i % 32, *hmask = b->hmask + i % 32;
            int shift = i % 128 / 32 * 2, bit = i / 32;
            for (int l = 0; l < 16; l++) x[i + l] = scale * ((qs[l] >> shift & 3) + (hmask[l] >> bit & 1) * 4 - 4);
        }
    }
}

// Bytes 0..3 hold scales 0..3, bytes 4..7 mins 0..3, in their low six bits; bytes 8..11 the low halves of scales 4..7 (low)
// and of mins 4..7 (high), whose two top bits are the two left over in bytes 0..3 and 4..7.
void unpack_scales_k4(const uint8_t packed[12], uint8_t scales[8], uint8_t mins[8]) {
    for (int b = 0; b < 4; b++) {
        scales[b] = packed[b] & 63;
        mins[b] = packed[b + 4] & 63;
        scales[b + 4] = (uint8_t)((packed[b + 8] & 15) | packed[b] >> 6 << 4);
        mins[b + 4] = (uint8_t)(packed[b + 8] >> 4 | packed[b + 4] >> 6 << 4);
    }
}

// 4-bit codes: 32 bytes hold an even group in their low and the following odd group in their high halves.
static void dequantize_q4_k(const void *blocks, float *restrict x, int64_t n) {
    for (const BlockQ4_K *b = blocks; n > 0; b++, x += 256, n -= 256) {
        float d = f16_to_f32(b->d), dmin = f16_to_f32(b->dmin);
        uint8_t scales[8], mins[8];
        unpack_scales_k4(b->scales, scales, mins);
        for (int i = 0; i < 256; i += 32) {
            float scale = d * scales[i / 32], min = dmin * mins[i / 32];
            const uint8_t *qs = b->qs + i / 64 * 32;
            int shift = i / 32 % 2 * 4;
            for (int l = 0; l < 32; l++) x[i + l] = scale * (qs[l] >> shift & 15) - min;
        }
    }
}

// Q4_K and a fifth bit: bit i/32 of qh[i % 32].
static void dequantize_q5_k(const void *blocks, float *restrict x, int64_t n) {
    for (const BlockQ5_K *b = blocks; n > 0; b++, x += 256, n -= 256) {
        float d = f16_to_f32(b->d), dmin = f16_to_f32(b->dmin);
        uint8_t scales[8], mins[8];
        unpack_scales_k4(b->scales, scales, mins);
        for (int i = 0; i < 256; i += 32) {
            float scale = d * scales[i / 32], min = dmin * mins[i / 32];
            const uint8_t *qs = b->qs + i / 64 * 32, *qh = b->qh;
            int shift = i / 32 % 2 * 4, bit = i / 32;
            for (int l = 0; l < 32; l++) x[i + l] = scale * ((qs[l] >> shift & 15) + (qh[l] >> bit & 1) * 16) - min;
        }
    }
}

// Each half of 128 elements is four groups of 32: groups 0 and 1 in the low, 2 and 3 in the high halves of 64 bytes ql; the
// two top bits of group g at bit 2g of 32 bytes qh. A signed scale per 16 elements; codes are stored plus 32.
static void dequantize_q6_k(const void *blocks, float *restrict x, int64_t n) {
    for (const BlockQ6_K *b = blocks; n > 0; b++, x += 256, n -= 256) {
        float d = f16_to_f32(b->d);
        for (int i = 0; i < 256; i += 16) {
            int g = i % 128 / 32;
            float scale = d * b->scales[i / 16];
            const uint8_t *ql = b->ql + i / 128 * 64 + g % 2 * 32 + i % 32, *qh = b->qh + i / 128 * 32 + i % 32;
            int shift = g / 2 * 4, bit = g * 2;
            for (int l = 0; l < 16; l++) x[i + l] = scale * ((ql[l] >> shift & 15) + (qh[l] >> bit & 3) * 16 - 32);
        }
    }
}

// Eight groups laid out as IQ4_NL blocks; their 6-bit scales (plus 32) are four bits of scales_l and two of scales_h.
static void dequantize_iq4_xs(const void *blocks, float *restrict x, int64_t n) {
    for (const BlockIQ4_XS *b = blocks; n > 0; b++, x += 256, n -= 256) {
        float d = f16_to_f32(b->d);
        for (int i = 0; i < 256; i += 32) {
            int g = i / 32;
            float scale = d * ((b->scales_l[g / 2] >> (g % 2 * 4) & 15) + (b->scales_h >> (g * 2) & 3) * 16 - 32);
            const uint8_t *qs = b->qs + g * 16;
            for (int l = 0; l < 16; l++) {
                x[i + l] = scale * IQ4_VALUES[qs[l] & 15];
                x[i + l + 16] = scale * IQ4_VALUES[qs[l] >> 4];
            }
        }
    }
}

// -- the type table -------------------------------------------------------------------------------------------------------

_Static_assert(sizeof(BlockQ4_0) == 18 && sizeof(BlockQ4_1) == 20 && sizeof(BlockQ5_0) == 22 && sizeof(BlockQ5_1) == 24 &&
               sizeof(BlockQ8_0) == 34 && sizeof(BlockIQ4_NL) == 18 && sizeof(BlockMXFP4) == 17, "blocks of 32");
_Static_assert(sizeof(BlockQ2_K) == 84 && sizeof(BlockQ3_K) == 110 && sizeof(BlockQ4_K) == 144 && sizeof(BlockQ5_K) == 176 &&
               sizeof(BlockQ6_K) == 210 && sizeof(BlockIQ4_XS) == 136, "blocks of 256");

// The index is the number in the file. 4, 5, 31 to 33 and 36 to 38 were removed from the format: their rows are empty.
static const TypeInfo TYPES[TYPE_COUNT] = {
    [TYPE_F32] = {"F32", 1, 4, dequantize_f32, quantize_f32},
    [TYPE_F16] = {"F16", 1, 2, dequantize_f16, quantize_f16},
    [TYPE_BF16] = {"BF16", 1, 2, dequantize_bf16, quantize_bf16},
    [TYPE_Q4_0] = {"Q4_0", 32, sizeof(BlockQ4_0), dequantize_q4_0, quantize_q4_0},
    [TYPE_Q4_1] = {"Q4_1", 32, sizeof(BlockQ4_1), dequantize_q4_1, quantize_q4_1},
    [TYPE_Q5_0] = {"Q5_0", 32, sizeof(BlockQ5_0), dequantize_q5_0, quantize_q5_0},
    [TYPE_Q5_1] = {"Q5_1", 32, sizeof(BlockQ5_1), dequantize_q5_1, quantize_q5_1},
    [TYPE_Q8_0] = {"Q8_0", 32, sizeof(BlockQ8_0), dequantize_q8_0, quantize_q8_0},
    [TYPE_IQ4_NL] = {"IQ4_NL", 32, sizeof(BlockIQ4_NL), dequantize_iq4_nl, quantize_iq4_nl},
    [TYPE_MXFP4] = {"MXFP4", 32, sizeof(BlockMXFP4), dequantize_mxfp4, quantize_mxfp4},
    [TYPE_Q2_K] = {"Q2_K", 256, sizeof(BlockQ2_K), dequantize_q2_k, quantize_q2_k},
    [TYPE_Q3_K] = {"Q3_K", 256, sizeof(BlockQ3_K), dequantize_q3_k, quantize_q3_k},
    [TYPE_Q4_K] = {"Q4_K", 256, sizeof(BlockQ4_K), dequantize_q4_k, quantize_q4_k},
    [TYPE_Q5_K] = {"Q5_K", 256, sizeof(BlockQ5_K), dequantize_q5_k, quantize_q5_k},
    [TYPE_Q6_K] = {"Q6_K", 256, sizeof(BlockQ6_K), dequantize_q6_k, quantize_q6_k},
    [TYPE_IQ4_XS] = {"IQ4_XS", 256, sizeof(BlockIQ4_XS), dequantize_iq4_xs, quantize_iq4_xs},
    // By name and size only.
    [9] = {"Q8_1", 32, 36, NULL, NULL},      [15] = {"Q8_K", 256, 292, NULL, NULL},
    [16] = {"IQ2_XXS", 256, 66, NULL, NULL}, [17] = {"IQ2_XS", 256, 74, NULL, NULL}, [18] = {"IQ3_XXS", 256, 98, NULL, NULL},
    [19] = {"IQ1_S", 256, 50, NULL, NULL},   [21] = {"IQ3_S", 256, 110, NULL, NULL}, [22] = {"IQ2_S", 256, 82, NULL, NULL},
    [24] = {"I8", 1, 1, NULL, NULL},         [25] = {"I16", 1, 2, NULL, NULL},       [26] = {"I32", 1, 4, NULL, NULL},
    [27] = {"I64", 1, 8, NULL, NULL},        [28] = {"F64", 1, 8, NULL, NULL},       [29] = {"IQ1_M", 256, 56, NULL, NULL},
    [34] = {"TQ1_0", 256, 54, NULL, NULL},   [35] = {"TQ2_0", 256, 66, NULL, NULL},  [40] = {"NVFP4", 64, 36, NULL, NULL},
    [41] = {"Q1_0", 128, 18, NULL, NULL},    [42] = {"Q2_0", 64, 18, NULL, NULL},
};

const TypeInfo *type_info(int type) {
    return type >= 0 && type < TYPE_COUNT && TYPES[type].name ? &TYPES[type] : NULL;
}

int type_by_name(const char *name) {
    for (int type = 0; type < TYPE_COUNT; type++)
        if (TYPES[type].name && strcasecmp(TYPES[type].name, name) == 0) return type;
    return -1;
}

int64_t type_row_bytes(TensorType type, int64_t n_col) {
    const TypeInfo *t = type_info((int)type);
    assert(t && n_col % t->block == 0);
    return n_col / t->block * t->bytes;
}

const void *tensor_row(const Tensor *t, int slice, int64_t row) {
    assert(slice == 0 || t->slices);
    const char *start = t->slices ? t->slices[slice] : t->host;
    return start + row * type_row_bytes(t->type, t->n_col);
}

int64_t tensor_bytes(const Tensor *t) { return (int64_t)t->n_slice * t->n_row * type_row_bytes(t->type, t->n_col); }

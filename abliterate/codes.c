// codes.c: see codes.h. Layouts: quant.c.
#include "codes.h"

#include <math.h>

#ifdef __clang__
#pragma STDC FP_CONTRACT OFF // values as quant.c computes them
#endif

// ---- points ----

// MXFP4's sixteen codes hold zero twice.
static const int8_t MXFP4_POINTS[15] = {-12, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 12};
static const uint8_t MXFP4_CODE[15] = {15, 14, 13, 12, 11, 10, 9, 0, 1, 2, 3, 4, 5, 6, 7};
static const uint8_t MXFP4_PLACE[16] = {7, 8, 9, 10, 11, 12, 13, 14, 7, 6, 5, 4, 3, 2, 1, 0};

typedef struct {
    int group;
    int low, high;        // codes that may be chosen
    int zero;             // point = code - zero, unless there is a
    const int8_t *points; // table
} Line;

// Q8_0 leaves out -128: products of signed bytes may rely on it.
static Line line_of(TensorType type) {
    switch (type) {
    case TYPE_Q4_0: return (Line){32, 0, 15, 8, NULL};
    case TYPE_Q4_1: return (Line){32, 0, 15, 0, NULL};
    case TYPE_Q5_0: return (Line){32, 0, 31, 16, NULL};
    case TYPE_Q5_1: return (Line){32, 0, 31, 0, NULL};
    case TYPE_Q8_0: return (Line){32, 1, 255, 128, NULL};
    case TYPE_Q2_K: return (Line){16, 0, 3, 0, NULL};
    case TYPE_Q3_K: return (Line){16, 0, 7, 4, NULL};
    case TYPE_Q4_K: return (Line){32, 0, 15, 0, NULL};
    case TYPE_Q5_K: return (Line){32, 0, 31, 0, NULL};
    case TYPE_Q6_K: return (Line){16, 0, 63, 32, NULL};
    case TYPE_IQ4_NL:
    case TYPE_IQ4_XS: return (Line){32, 0, 15, 0, IQ4_VALUES};
    case TYPE_MXFP4: return (Line){32, 0, 14, 0, MXFP4_POINTS};
    case TYPE_F16: return (Line){32, 0x8000 - 0x7bff, 0x8000 + 0x7bff, 0, NULL};
    case TYPE_BF16: return (Line){32, 0x8000 - 0x7f7f, 0x8000 + 0x7f7f, 0, NULL};
    default: return (Line){0};
    }
}

int codes_group(TensorType type) { return line_of(type).group; }

// Floats in ascending order: 0x8000 is zero of either sign.
static uint16_t place_of_bits(uint16_t bits) { return (uint16_t)(bits & 0x8000 ? 0x8000 - (bits & 0x7fff) : 0x8000 + bits); }
static uint16_t bits_of_place(uint16_t place) { return (uint16_t)(place < 0x8000 ? 0x8000 | (0x8000 - place) : place - 0x8000); }

static bool is_half(TensorType type) { return type == TYPE_F16 || type == TYPE_BF16; }

static float value_of(TensorType type, const Line *y, int code, float scale, float offset) {
    if (type == TYPE_F16) return f16_to_f32(bits_of_place((uint16_t)code));
    if (type == TYPE_BF16) return bf16_to_f32(bits_of_place((uint16_t)code));
    return scale * (float)(y->points ? y->points[code] : code - y->zero) + offset;
}

void codes_nearest(TensorType type, const float *x, int n, float scale, float offset, uint16_t *codes) {
    const Line y = line_of(type);
    if (!isfinite(scale) || !isfinite(offset) || scale == 0) return;
    for (int i = 0; i < n; i++) {
        if (!isfinite(x[i])) continue;
        if (is_half(type)) {
            const int place = place_of_bits(type == TYPE_F16 ? f16_from_f32(x[i]) : bf16_from_f32(x[i]));
            codes[i] = (uint16_t)(place < y.low ? y.low : place > y.high ? y.high : place);
            continue;
        }
        const float at = (x[i] - offset) / scale;
        if (y.points) {
            int k = y.low;
            while (k < y.high && at >= 0.5f * (float)(y.points[k] + y.points[k + 1])) k++;
            codes[i] = (uint16_t)k;
        } else {
            const float from = (float)(y.low - y.zero), to = (float)(y.high - y.zero);
            codes[i] = (uint16_t)(y.zero + (int)rintf(at > from ? at < to ? at : to : from));
        }
    }
}

void codes_values(TensorType type, const uint16_t *codes, int n, float scale, float offset, float *value, float *above, float *below) {
    const Line y = line_of(type);
    for (int i = 0; i < n; i++) {
        const int c = codes[i], more = scale < 0 ? c - 1 : c + 1, less = scale < 0 ? c + 1 : c - 1;
        value[i] = value_of(type, &y, c, scale, offset);
        above[i] = more >= y.low && more <= y.high ? value_of(type, &y, more, scale, offset) - value[i] : 0;
        below[i] = less >= y.low && less <= y.high ? value[i] - value_of(type, &y, less, scale, offset) : 0;
    }
}

uint16_t codes_move(uint16_t code, float scale, int by) { return (uint16_t)(scale < 0 ? code - by : code + by); }

// ---- blocks ----

// 32 codes as half-bytes (element j low, j + 16 high); their fifth bits in top.
static void unpack_32(const uint8_t qs[16], uint32_t top, uint16_t *codes) {
    for (int j = 0; j < 16; j++) {
        codes[j] = (uint16_t)((qs[j] & 15) | (top >> j & 1) << 4);
        codes[j + 16] = (uint16_t)(qs[j] >> 4 | (top >> (j + 16) & 1) << 4);
    }
}

static uint32_t pack_32(const uint16_t *codes, uint8_t qs[16]) {
    uint32_t top = 0;
    for (int j = 0; j < 16; j++) {
        qs[j] = (uint8_t)((codes[j] & 15) | (codes[j + 16] & 15) << 4);
        top |= (uint32_t)(codes[j] >> 4) << j | (uint32_t)(codes[j + 16] >> 4) << (j + 16);
    }
    return top;
}

static void get_block(TensorType type, const void *block, uint16_t *codes, float *scale, float *offset) {
    switch (type) {
    case TYPE_Q4_0: {
        const BlockQ4_0 *b = block;
        unpack_32(b->qs, 0, codes);
        *scale = f16_to_f32(b->d);
        *offset = 0;
        break;
    }
    case TYPE_Q4_1: {
        const BlockQ4_1 *b = block;
        unpack_32(b->qs, 0, codes);
        *scale = f16_to_f32(b->d);
        *offset = f16_to_f32(b->m);
        break;
    }
    case TYPE_Q5_0: {
        const BlockQ5_0 *b = block;
        unpack_32(b->qs, b->qh, codes);
        *scale = f16_to_f32(b->d);
        *offset = 0;
        break;
    }
    case TYPE_Q5_1: {
        const BlockQ5_1 *b = block;
        unpack_32(b->qs, b->qh, codes);
        *scale = f16_to_f32(b->d);
        *offset = f16_to_f32(b->m);
        break;
    }
    case TYPE_Q8_0: {
        const BlockQ8_0 *b = block;
        for (int j = 0; j < 32; j++) codes[j] = (uint16_t)(b->qs[j] + 128);
        *scale = f16_to_f32(b->d);
        *offset = 0;
        break;
    }
    case TYPE_IQ4_NL: {
        const BlockIQ4_NL *b = block;
        unpack_32(b->qs, 0, codes);
        *scale = f16_to_f32(b->d);
        *offset = 0;
        break;
    }
    case TYPE_MXFP4: {
        const BlockMXFP4 *b = block;
        unpack_32(b->qs, 0, codes);
        for (int j = 0; j < 32; j++) codes[j] = MXFP4_PLACE[codes[j]];
        *scale = mxfp4_scale(b->e);
        *offset = 0;
        break;
    }
    case TYPE_Q2_K: {
        const BlockQ2_K *b = block;
        for (int i = 0; i < 256; i++) codes[i] = b->qs[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
        for (int j = 0; j < 16; j++) {
            scale[j] = f16_to_f32(b->d) * (float)(b->scales[j] & 15);
            offset[j] = -(f16_to_f32(b->dmin) * (float)(b->scales[j] >> 4));
        }
        break;
    }
    case TYPE_Q3_K: {
        const BlockQ3_K *b = block;
        for (int i = 0; i < 256; i++)
            codes[i] = (uint16_t)((b->qs[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3) | (b->hmask[i % 32] >> (i / 32) & 1) << 2);
        for (int j = 0; j < 16; j++) {
            const int low = j < 8 ? b->scales[j] & 15 : b->scales[j - 8] >> 4, top = b->scales[8 + j % 4] >> (j / 4 * 2) & 3;
            scale[j] = f16_to_f32(b->d) * (float)(low + top * 16 - 32);
            offset[j] = 0;
        }
        break;
    }
    case TYPE_Q4_K:
    case TYPE_Q5_K: { // the same but for qh, which stands before qs
        const BlockQ4_K *b = block;
        const BlockQ5_K *b5 = block;
        uint8_t scales[8], mins[8];
        unpack_scales_k4(b->scales, scales, mins);
        for (int i = 0; i < 256; i++) {
            const uint8_t *qs = type == TYPE_Q4_K ? b->qs : b5->qs;
            codes[i] = qs[i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15;
            if (type == TYPE_Q5_K) codes[i] |= (uint16_t)((b5->qh[i % 32] >> (i / 32) & 1) << 4);
        }
        for (int j = 0; j < 8; j++) {
            scale[j] = f16_to_f32(b->d) * (float)scales[j];
            offset[j] = -(f16_to_f32(b->dmin) * (float)mins[j]);
        }
        break;
    }
    case TYPE_Q6_K: {
        const BlockQ6_K *b = block;
        for (int i = 0; i < 256; i++) {
            const int g = i % 128 / 32;
            codes[i] = (uint16_t)((b->ql[i / 128 * 64 + g % 2 * 32 + i % 32] >> (g / 2 * 4) & 15) | (b->qh[i / 128 * 32 + i % 32] >> (g * 2) & 3) << 4);
        }
        for (int j = 0; j < 16; j++) {
            scale[j] = f16_to_f32(b->d) * (float)b->scales[j];
            offset[j] = 0;
        }
        break;
    }
    case TYPE_IQ4_XS: {
        const BlockIQ4_XS *b = block;
        for (int g = 0; g < 8; g++) {
            unpack_32(b->qs + 16 * g, 0, codes + 32 * g);
            scale[g] = f16_to_f32(b->d) * (float)((b->scales_l[g / 2] >> (g % 2 * 4) & 15) + (b->scales_h >> (g * 2) & 3) * 16 - 32);
            offset[g] = 0;
        }
        break;
    }
    default: break;
    }
}

static void set_block(TensorType type, void *block, const uint16_t *codes) {
    switch (type) {
    case TYPE_Q4_0: pack_32(codes, ((BlockQ4_0 *)block)->qs); break;
    case TYPE_Q4_1: pack_32(codes, ((BlockQ4_1 *)block)->qs); break;
    case TYPE_Q5_0: ((BlockQ5_0 *)block)->qh = pack_32(codes, ((BlockQ5_0 *)block)->qs); break;
    case TYPE_Q5_1: ((BlockQ5_1 *)block)->qh = pack_32(codes, ((BlockQ5_1 *)block)->qs); break;
    case TYPE_Q8_0:
        for (int j = 0; j < 32; j++) ((BlockQ8_0 *)block)->qs[j] = (int8_t)(codes[j] - 128);
        break;
    case TYPE_IQ4_NL: pack_32(codes, ((BlockIQ4_NL *)block)->qs); break;
    case TYPE_MXFP4: {
        uint16_t stored[32];
        for (int j = 0; j < 32; j++) stored[j] = MXFP4_CODE[codes[j]];
        pack_32(stored, ((BlockMXFP4 *)block)->qs);
        break;
    }
    case TYPE_Q2_K: {
        BlockQ2_K *b = block;
        memset(b->qs, 0, sizeof b->qs);
        for (int i = 0; i < 256; i++) b->qs[i / 128 * 32 + i % 32] |= (uint8_t)(codes[i] << (i % 128 / 32 * 2));
        break;
    }
    case TYPE_Q3_K: {
        BlockQ3_K *b = block;
        memset(b->qs, 0, sizeof b->qs);
        memset(b->hmask, 0, sizeof b->hmask);
        for (int i = 0; i < 256; i++) {
            b->qs[i / 128 * 32 + i % 32] |= (uint8_t)((codes[i] & 3) << (i % 128 / 32 * 2));
            b->hmask[i % 32] |= (uint8_t)(codes[i] >> 2 << (i / 32));
        }
        break;
    }
    case TYPE_Q4_K: {
        BlockQ4_K *b = block;
        memset(b->qs, 0, sizeof b->qs);
        for (int i = 0; i < 256; i++) b->qs[i / 64 * 32 + i % 32] |= (uint8_t)(codes[i] << (i / 32 % 2 * 4));
        break;
    }
    case TYPE_Q5_K: {
        BlockQ5_K *b = block;
        memset(b->qs, 0, sizeof b->qs);
        memset(b->qh, 0, sizeof b->qh);
        for (int i = 0; i < 256; i++) {
            b->qs[i / 64 * 32 + i % 32] |= (uint8_t)((codes[i] & 15) << (i / 32 % 2 * 4));
            b->qh[i % 32] |= (uint8_t)(codes[i] >> 4 << (i / 32));
        }
        break;
    }
    case TYPE_Q6_K: {
        BlockQ6_K *b = block;
        memset(b->ql, 0, sizeof b->ql);
        memset(b->qh, 0, sizeof b->qh);
        for (int i = 0; i < 256; i++) {
            const int g = i % 128 / 32;
            b->ql[i / 128 * 64 + g % 2 * 32 + i % 32] |= (uint8_t)((codes[i] & 15) << (g / 2 * 4));
            b->qh[i / 128 * 32 + i % 32] |= (uint8_t)(codes[i] >> 4 << (g * 2));
        }
        break;
    }
    case TYPE_IQ4_XS:
        for (int g = 0; g < 8; g++) pack_32(codes + 32 * g, ((BlockIQ4_XS *)block)->qs + 16 * g);
        break;
    default: break;
    }
}

void codes_get(TensorType type, const void *blocks, int n, uint16_t *codes, float *scale, float *offset) {
    const int block = type_info((int)type)->block, group = codes_group(type), bytes = type_info((int)type)->bytes;
    if (is_half(type)) {
        for (int i = 0; i < n; i++) {
            uint16_t bits;
            memcpy(&bits, (const char *)blocks + 2 * i, 2);
            codes[i] = place_of_bits(bits);
        }
        for (int g = 0; g * group < n; g++) scale[g] = 1, offset[g] = 0;
        return;
    }
    for (int i = 0; i < n / block; i++) get_block(type, (const char *)blocks + (int64_t)i * bytes, codes + i * block, scale + i * block / group, offset + i * block / group);
}

void codes_set(TensorType type, void *blocks, int n, const uint16_t *codes) {
    const int block = type_info((int)type)->block, bytes = type_info((int)type)->bytes;
    if (is_half(type)) {
        for (int i = 0; i < n; i++) {
            const uint16_t bits = bits_of_place(codes[i]);
            memcpy((char *)blocks + 2 * i, &bits, 2);
        }
        return;
    }
    for (int i = 0; i < n / block; i++) set_block(type, (char *)blocks + (int64_t)i * bytes, codes + i * block);
}

// cuda_quant.cuh: weights as they lie on the device, and how kernels read them.
//
// Float types lie as in the file. Every quantised type is re-laid when it is loaded (cuda.cu) into planes, one after the
// other, so that loads are aligned and neighbouring lanes read neighbouring addresses; no bytes are added but the padding of
// a plane to 16. Elements are cut into groups of 32, in the order of the row; a block of the file holds 1 or 8 groups:
//   codes   per group 16 bytes (4-bit codes), 32 (8-bit) or 8 (2-bit)
//   high    per group 4 bytes (one more bit per code), 8 (two more) or none
//   scales  per block, as in the file
//   d       per block: float16 numbers that stand apart from the scales in the file, or none
// Inside a group the bits lie so that a shift and a mask give four codes as four bytes. Word k = elements 4k .. 4k+3.
//   4-bit   byte j: element j in the low, j + 16 in the high half; word k = (u32[k % 4] >> k / 4 * 4) & 0x0f0f0f0f
//   table   4-bit codes that name a value: eight neighbours in each u32, element 8k + j at bit 4j, as __byte_perm wants them
//   2-bit   word k = (u32[k / 4] >> k % 4 * 2) & 0x03030303; two high bits lie the same way
//   1 bit   word k = (u32 >> k) & 0x01010101
// Meaning: w = s * (code - offset) + m, with s and m of the group, or of each half of it.
#ifndef CUDA_QUANT_CUH
#define CUDA_QUANT_CUH

#include "cuda_common.cuh"
#include <cuda_bf16.h>

struct Format {
    int code_bits, high_bits, offset;
    int groups;              // per block of the file; 0: not a quantised type
    int scale_bytes, d_bytes; // per block
    bool table;              // codes name values
    bool halves;             // scales are of 16 elements
};

__host__ __device__ constexpr Format format_of(TensorType type) {
    switch (type) {
    //                       codes high offset groups scales d  table  halves
    case TYPE_Q4_0: return   {4,   0,   8,     1,     2,     0, false, false};
    case TYPE_Q4_1: return   {4,   0,   0,     1,     4,     0, false, false};
    case TYPE_Q5_0: return   {4,   1,   16,    1,     2,     0, false, false};
    case TYPE_Q5_1: return   {4,   1,   0,     1,     4,     0, false, false};
    case TYPE_Q8_0: return   {8,   0,   0,     1,     2,     0, false, false};
    case TYPE_Q2_K: return   {2,   0,   0,     8,     16,    4, false, true};
    case TYPE_Q3_K: return   {2,   1,   4,     8,     12,    2, false, true};
    case TYPE_Q4_K: return   {4,   0,   0,     8,     16,    0, false, false};
    case TYPE_Q5_K: return   {4,   1,   0,     8,     16,    0, false, false};
    case TYPE_Q6_K: return   {4,   2,   32,    8,     16,    2, false, true};
    case TYPE_IQ4_NL: return {4,   0,   0,     1,     2,     0, true,  false};
    case TYPE_IQ4_XS: return {4,   0,   0,     8,     8,     0, true,  false};
    case TYPE_MXFP4: return  {4,   0,   0,     1,     1,     0, true,  false};
    default: return          {0,   0,   0,     0,     0,     0, false, false};
    }
}

// A type as a template argument: with_type(t, [&](auto tag) { kernel<decltype(tag)::type> ... }); false: not a type we compute with.
template <TensorType T> struct TypeTag { static constexpr TensorType type = T; };
template <class Do> bool with_quantised_type(TensorType type, Do &&run) {
    switch (type) {
    case TYPE_Q4_0: run(TypeTag<TYPE_Q4_0>()); return true;
    case TYPE_Q4_1: run(TypeTag<TYPE_Q4_1>()); return true;
    case TYPE_Q5_0: run(TypeTag<TYPE_Q5_0>()); return true;
    case TYPE_Q5_1: run(TypeTag<TYPE_Q5_1>()); return true;
    case TYPE_Q8_0: run(TypeTag<TYPE_Q8_0>()); return true;
    case TYPE_Q2_K: run(TypeTag<TYPE_Q2_K>()); return true;
    case TYPE_Q3_K: run(TypeTag<TYPE_Q3_K>()); return true;
    case TYPE_Q4_K: run(TypeTag<TYPE_Q4_K>()); return true;
    case TYPE_Q5_K: run(TypeTag<TYPE_Q5_K>()); return true;
    case TYPE_Q6_K: run(TypeTag<TYPE_Q6_K>()); return true;
    case TYPE_IQ4_NL: run(TypeTag<TYPE_IQ4_NL>()); return true;
    case TYPE_IQ4_XS: run(TypeTag<TYPE_IQ4_XS>()); return true;
    case TYPE_MXFP4: run(TypeTag<TYPE_MXFP4>()); return true;
    default: return false;
    }
}
template <class Do> bool with_type(TensorType type, Do &&run) {
    switch (type) {
    case TYPE_F32: run(TypeTag<TYPE_F32>()); return true;
    case TYPE_F16: run(TypeTag<TYPE_F16>()); return true;
    case TYPE_BF16: run(TypeTag<TYPE_BF16>()); return true;
    default: return with_quantised_type(type, run);
    }
}

// Where the planes of slice 0 start. Float types: codes is the matrix.
typedef struct {
    const unsigned char *codes, *high, *scales, *d;
    size_t slice_bytes;
} Weights;

static inline size_t pad16(size_t bytes) { return (bytes + 15) / 16 * 16; }

// The planes of t, which start at t->dev.
static inline Weights weights_of(const Tensor *t) {
    const Format f = format_of(t->type);
    Weights w = {(const unsigned char *)t->dev, NULL, NULL, NULL, 0};
    if (!f.groups) {
        w.slice_bytes = pad16((size_t)t->n_row * (size_t)type_row_bytes(t->type, t->n_col));
        return w;
    }
    const size_t n_group = (size_t)t->n_row * (size_t)(t->n_col / 32), n_block = n_group / (size_t)f.groups;
    w.high = w.codes + pad16(n_group * 4 * (size_t)f.code_bits);
    w.scales = w.high + pad16(n_group * 4 * (size_t)f.high_bits);
    w.d = w.scales + pad16(n_block * (size_t)f.scale_bytes);
    w.slice_bytes = (size_t)(w.d - w.codes) + pad16(n_block * (size_t)f.d_bytes);
    return w;
}

// n_block blocks of a quantised type, as in the file, into the planes of slice w, the first of them for group `first` (cuda.cu).
bool cuda_lay_out(Backend *b, cudaStream_t stream, TensorType type, const Weights *w, size_t first, const char *raw, int n_block);

// ---- device ----

__device__ __forceinline__ Weights slice_of(Weights w, int slice) {
    const size_t skip = (size_t)slice * w.slice_bytes;
    w.codes += skip;
    w.high += skip;
    w.scales += skip;
    w.d += skip;
    return w;
}

__device__ __forceinline__ float half_at(const unsigned char *p) { return __half2float(*(const __half *)p); }
__device__ __forceinline__ float half_bits(unsigned bits) {
    __half_raw raw;
    raw.x = (unsigned short)bits;
    return __half2float(__half(raw));
}
__device__ __forceinline__ float bf16_bits(unsigned bits) { return __int_as_float((int)(bits << 16)); }

// The values of four 4-bit codes in the low 16 bits of v. table: sixteen signed bytes.
__device__ __forceinline__ int look_up(uint4 table, unsigned v) {
    const unsigned low = __byte_perm(table.x, table.y, v & 0x7777), high = __byte_perm(table.z, table.w, v & 0x7777);
    return (int)__byte_perm(low, high, 0x3210 | (v & 0x8888) >> 1); // bit 3 of a code chooses the upper eight values
}

template <TensorType T> __device__ __forceinline__ uint4 value_table() {
    if (T == TYPE_MXFP4) return make_uint4(0x03020100, 0x0c080604, 0xfdfeff00, 0xf4f8fafc); // 0 1 2 3 4 6 8 12 and their negatives
    return make_uint4(0xbfad9881, 0xf6eaddcf, 0x26190d01, 0x71594535); // -127 -104 -83 -65 -49 -35 -22 -10 1 13 25 38 53 69 89 113
}

// Word k of a group: four codes (or, for table types, values), as bytes.
template <TensorType T> __device__ __forceinline__ int load_word(const Weights &w, size_t group, int k) {
    constexpr Format F = format_of(T);
    const unsigned *codes = (const unsigned *)(w.codes + group * (4 * F.code_bits));
    if (F.table) return look_up(value_table<T>(), codes[k / 2] >> k % 2 * 16);
    unsigned word = F.code_bits == 8 ? codes[k] : F.code_bits == 4 ? codes[k % 4] >> k / 4 * 4 & 0x0f0f0f0f : codes[k / 4] >> k % 4 * 2 & 0x03030303;
    if (F.high_bits == 1) word |= (((const unsigned *)w.high)[group] >> k & 0x01010101) << F.code_bits;
    if (F.high_bits == 2) word |= (((const unsigned *)w.high)[group * 2 + k / 4] >> k % 4 * 2 & 0x03030303) << F.code_bits;
    return (int)word;
}

// All eight words of a group, by the widest loads there are.
template <TensorType T> __device__ __forceinline__ void load_codes(const Weights &w, size_t group, int q[8]) {
    constexpr Format F = format_of(T);
    unsigned word[8];
    if (F.code_bits == 8) {
        const uint4 a = ((const uint4 *)w.codes)[group * 2], b = ((const uint4 *)w.codes)[group * 2 + 1];
        const unsigned all[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
        for (int k = 0; k < 8; k++) word[k] = all[k];
    } else if (F.code_bits == 4) {
        const uint4 a = ((const uint4 *)w.codes)[group];
        const unsigned all[4] = {a.x, a.y, a.z, a.w};
#pragma unroll
        for (int k = 0; k < 8; k++)
            word[k] = F.table ? (unsigned)look_up(value_table<T>(), all[k / 2] >> k % 2 * 16) : all[k % 4] >> k / 4 * 4 & 0x0f0f0f0f;
    } else {
        const uint2 a = ((const uint2 *)w.codes)[group];
#pragma unroll
        for (int k = 0; k < 8; k++) word[k] = (k < 4 ? a.x : a.y) >> k % 4 * 2 & 0x03030303;
    }
    if (F.high_bits == 1) {
        const unsigned h = ((const unsigned *)w.high)[group];
#pragma unroll
        for (int k = 0; k < 8; k++) word[k] |= (h >> k & 0x01010101) << F.code_bits;
    }
    if (F.high_bits == 2) {
        const uint2 h = ((const uint2 *)w.high)[group];
#pragma unroll
        for (int k = 0; k < 8; k++) word[k] |= ((k < 4 ? h.x : h.y) >> k % 4 * 2 & 0x03030303) << F.code_bits;
    }
#pragma unroll
    for (int k = 0; k < 8; k++) q[k] = (int)word[k];
}

// s and m of the two halves of a group: w = s * (code - offset) + m.
template <TensorType T> __device__ __forceinline__ void load_scales(const Weights &w, size_t group, float s[2], float m[2]) {
    constexpr Format F = format_of(T);
    const size_t block = group / (F.groups ? F.groups : 1);
    const int sub = (int)(group % (F.groups ? F.groups : 1));
    m[0] = m[1] = 0;
    if (T == TYPE_Q4_1 || T == TYPE_Q5_1) {
        const unsigned both = ((const unsigned *)w.scales)[group];
        s[0] = half_bits(both & 0xffff);
        m[0] = half_bits(both >> 16);
    } else if (T == TYPE_MXFP4) {
        const int e = w.scales[group];
        s[0] = __int_as_float(e < 2 ? 0x00200000 << e : (e - 1) << 23); // 2^(e - 128): half the scale, as the table holds doubled values
    } else if (T == TYPE_Q4_K || T == TYPE_Q5_K) { // 16 bytes: d, dmin, then eight 6-bit scales and mins (unpack_scales_k4)
        const uint4 h = ((const uint4 *)w.scales)[block];
        const unsigned shift = sub % 4 * 8, a = h.y >> shift & 0xff, b = h.z >> shift & 0xff, c = h.w >> shift & 0xff;
        const unsigned scale = sub < 4 ? a & 63 : (c & 15) | a >> 6 << 4, min = sub < 4 ? b & 63 : c >> 4 | b >> 6 << 4;
        s[0] = half_bits(h.x & 0xffff) * (float)scale;
        m[0] = -half_bits(h.x >> 16) * (float)min;
    } else if (T == TYPE_Q6_K) {
        const unsigned both = ((const unsigned short *)w.scales)[group];
        const float d = half_at(w.d + 2 * block);
        s[0] = d * (float)(signed char)(both & 0xff);
        s[1] = d * (float)(signed char)(both >> 8);
    } else if (T == TYPE_Q2_K) { // per 16 elements one byte: scale in its low, min in its high half
        const unsigned both = ((const unsigned short *)w.scales)[group], dd = ((const unsigned *)w.d)[block];
        const float d = half_bits(dd & 0xffff), dmin = half_bits(dd >> 16);
        s[0] = d * (float)(both & 15);
        s[1] = d * (float)(both >> 8 & 15);
        m[0] = -dmin * (float)(both >> 4 & 15);
        m[1] = -dmin * (float)(both >> 12);
    } else if (T == TYPE_Q3_K) { // sixteen 6-bit scales: low halves of bytes 0..7, high halves; bytes 8..11 the top bits
        const unsigned char *p = w.scales + 12 * block;
        const float d = half_at(w.d + 2 * block);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int j = 2 * sub + i, low = p[j % 8] >> j / 8 * 4 & 15, top = p[8 + j % 4] >> j / 4 * 2 & 3;
            s[i] = d * (float)(low + top * 16 - 32);
        }
    } else if (T == TYPE_IQ4_XS) { // d, 16 top bits, four bytes of low halves
        const uint2 h = ((const uint2 *)w.scales)[block];
        const int scale = (int)((h.y >> sub * 4 & 15) | (h.x >> 16 >> sub * 2 & 3) << 4) - 32;
        s[0] = half_bits(h.x & 0xffff) * (float)scale;
    } else {
        s[0] = half_at(w.scales + 2 * group);
    }
    if (!F.halves) {
        s[1] = s[0];
        m[1] = m[0];
    }
}

__device__ __forceinline__ float byte_of(int word, int i) { return (float)(signed char)(word >> 8 * i & 0xff); }

// Element `at` of a float type.
template <TensorType T> __device__ __forceinline__ float load_one(const Weights &w, size_t at) {
    if (T == TYPE_F32) return ((const float *)w.codes)[at];
    return T == TYPE_F16 ? half_at(w.codes + 2 * at) : bf16_bits(((const unsigned short *)w.codes)[at]);
}

// n elements of a float type from element `at` on, by loads of 16 bytes; both are multiples of 16 bytes.
template <TensorType T, int n> __device__ __forceinline__ void load_wide(const Weights &w, size_t at, float v[n]) {
    constexpr int EACH = T == TYPE_F32 ? 4 : 8;
#pragma unroll
    for (int first = 0; first < n; first += EACH) {
        const uint4 raw = *(const uint4 *)(w.codes + (at + first) * (16 / EACH));
        const unsigned word[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            const unsigned bits = word[i * 4 / EACH];
            const unsigned half = bits >> i % 2 * 16 & 0xffff;
            v[first + i] = T == TYPE_F32 ? __int_as_float((int)bits) : T == TYPE_F16 ? half_bits(half) : bf16_bits(half);
        }
    }
}

// Elements k .. k + 7 of a row, k a multiple of 8; zeros beyond n_col.
template <TensorType T> __device__ __forceinline__ void load8(const Weights &w, size_t row, int n_col, int k, float v[8]) {
    constexpr Format F = format_of(T);
    if (F.groups) {
        const size_t group = row * (size_t)(n_col / 32) + k / 32;
        const int half = k / 16 % 2;
        float s[2], m[2];
        load_scales<T>(w, group, s, m);
        const float scale = half ? s[1] : s[0], min = half ? m[1] : m[0];
#pragma unroll
        for (int i = 0; i < 8; i += 4) {
            const int word = load_word<T>(w, group, (k % 32 + i) / 4);
#pragma unroll
            for (int j = 0; j < 4; j++) v[i + j] = scale * (byte_of(word, j) - F.offset) + min;
        }
    } else {
        const size_t at = row * (size_t)n_col + k;
        if (n_col % 8 == 0 && k < n_col) load_wide<T, 8>(w, at, v); // rows start at multiples of 16 bytes
        else {
#pragma unroll
            for (int i = 0; i < 8; i++)
                v[i] = k + i < n_col ? load_one<T>(w, at + i) : 0;
        }
    }
}

#endif

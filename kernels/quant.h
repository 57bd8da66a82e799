// quant.h: the block formats of GGUF weights: layouts, the type table, and one row in and out of each format.
// quant.c is *the definition* of each format in plain scalar C; the fast kernels are tested against it. Valid C11 and C++.
#ifndef QUANT_H
#define QUANT_H

#include "tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef uint16_t F16; // IEEE binary16 bits
float f16_to_f32(F16 h);
F16 f16_from_f32(float x); // nearest even, overflow to infinity
float bf16_to_f32(uint16_t h);
uint16_t bf16_from_f32(float x);

// Blocks as they lie in the file: little-endian, packed, only byte-aligned (read them through memcpy or a packed struct).
#pragma pack(push, 1)
typedef struct { F16 d; uint8_t qs[16]; } BlockQ4_0;
typedef struct { F16 d, m; uint8_t qs[16]; } BlockQ4_1;
typedef struct { F16 d; uint32_t qh; uint8_t qs[16]; } BlockQ5_0;
typedef struct { F16 d, m; uint32_t qh; uint8_t qs[16]; } BlockQ5_1;
typedef struct { F16 d; int8_t qs[32]; } BlockQ8_0;
typedef struct { uint8_t scales[16], qs[64]; F16 d, dmin; } BlockQ2_K;
typedef struct { uint8_t hmask[32], qs[64], scales[12]; F16 d; } BlockQ3_K;
typedef struct { F16 d, dmin; uint8_t scales[12], qs[128]; } BlockQ4_K;
typedef struct { F16 d, dmin; uint8_t scales[12], qh[32], qs[128]; } BlockQ5_K;
typedef struct { uint8_t ql[128], qh[64]; int8_t scales[16]; F16 d; } BlockQ6_K;
typedef struct { F16 d; uint8_t qs[16]; } BlockIQ4_NL;
typedef struct { F16 d; uint16_t scales_h; uint8_t scales_l[4], qs[128]; } BlockIQ4_XS;
typedef struct { uint8_t e; uint8_t qs[16]; } BlockMXFP4;
#pragma pack(pop)

extern const int8_t IQ4_VALUES[16];   // code -> value of IQ4_NL and IQ4_XS
extern const int8_t MXFP4_VALUES[16]; // code -> twice the value of MXFP4
float mxfp4_scale(uint8_t e);         // 2^(e-128): half the block scale, as the table holds doubled values
// The eight 6-bit scales and mins of Q4_K and Q5_K, unpacked from their 12 bytes.
void unpack_scales_k4(const uint8_t packed[12], uint8_t scales[8], uint8_t mins[8]);

typedef struct {
    const char *name;
    int block; // elements per block
    int bytes; // bytes per block
    // n elements (a multiple of block) out of and into the format. NULL: the format is known by name and size only.
    void (*to_f32)(const void *blocks, float *x, int64_t n);
    // importance: n weights >= 0 per column (imatrix), or NULL. NULL function: we do not write this format.
    void (*from_f32)(const float *x, void *blocks, int64_t n, const float *importance);
} TypeInfo;

// The from_f32 column, one function per format (quantize.c). n is one whole row: some formats weigh by the row's mean square.
typedef void QuantizeRow(const float *x, void *blocks, int64_t n, const float *importance);
QuantizeRow quantize_f32, quantize_f16, quantize_bf16, quantize_q8_0, quantize_q4_0, quantize_q4_1, quantize_q5_0, quantize_q5_1,
    quantize_q2_k, quantize_q3_k, quantize_q4_k, quantize_q5_k, quantize_q6_k, quantize_iq4_nl, quantize_iq4_xs, quantize_mxfp4;

// NULL for numbers that no file may hold (removed types, out of range). Types with to_f32 = NULL must be refused by name.
const TypeInfo *type_info(int type);
// The type with this name in any case ("q4_k"), or -1.
int type_by_name(const char *name);
// Bytes of a row of n_col elements; n_col must be a multiple of the block.
int64_t type_row_bytes(TensorType type, int64_t n_col);

// Start of row r of slice s, in the mapped file.
const void *tensor_row(const Tensor *t, int slice, int64_t row);
int64_t tensor_bytes(const Tensor *t); // all slices

#ifdef __cplusplus
}
#endif
#endif

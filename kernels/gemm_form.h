// gemm_form.h: an unpacked tile of rounded weights and what there is to know of a format, for gemm_x86.h and gemm_amx.c.
#ifndef GEMM_FORM_H
#define GEMM_FORM_H

#include "gemm.h"

#define INLINE static inline __attribute__((always_inline))

// 32 columns of LANES rows
typedef struct {
    uint8_t code[8][LANES][4];              // [k / 4][row][k % 4]
    float scale[2][LANES], min[2][LANES];   // per 16 columns
} GemmW;

#ifdef DPBUSD
enum { WIDE_OFFSET = 128 };
#else
enum { WIDE_OFFSET = 0 }; // codes stay signed
#endif

typedef enum { BITS_5, BITS_6, BITS_8 } Width; // of codes, at most; matters where sums are of 16 bits

// What is added to a format's codes so that none is negative; whether scales are per 16; whether there are minima.
typedef struct {
    uint8_t offset;
    bool by_16, affine;
    Width width;
} Form;

static const Form FORM[TYPE_COUNT] = {
    [TYPE_Q4_0] = {.offset = 8}, [TYPE_Q4_1] = {.affine = true}, [TYPE_Q5_0] = {.offset = 16}, [TYPE_Q5_1] = {.affine = true},
    [TYPE_Q8_0] = {.offset = WIDE_OFFSET, .width = BITS_8}, [TYPE_IQ4_NL] = {.offset = WIDE_OFFSET, .width = BITS_8}, [TYPE_MXFP4] = {.offset = 12},
    [TYPE_Q2_K] = {.by_16 = true, .affine = true}, [TYPE_Q3_K] = {.offset = 4, .by_16 = true}, [TYPE_Q4_K] = {.affine = true},
    [TYPE_Q5_K] = {.affine = true}, [TYPE_Q6_K] = {.offset = 32, .by_16 = true, .width = BITS_6}, [TYPE_IQ4_XS] = {.offset = WIDE_OFFSET, .width = BITS_8},
};

#endif

// tensor.h: a weight matrix as it lies in the file. Valid C11 and C++.
#ifndef TENSOR_H
#define TENSOR_H

#include "base.h"

// The numbers are those of the GGUF file. Types we do not compute with are known by name only (quant.h).
typedef enum {
    TYPE_F32 = 0, TYPE_F16 = 1, TYPE_Q4_0 = 2, TYPE_Q4_1 = 3, TYPE_Q5_0 = 6, TYPE_Q5_1 = 7, TYPE_Q8_0 = 8,
    TYPE_Q2_K = 10, TYPE_Q3_K = 11, TYPE_Q4_K = 12, TYPE_Q5_K = 13, TYPE_Q6_K = 14,
    TYPE_IQ4_NL = 20, TYPE_IQ4_XS = 23, TYPE_BF16 = 30, TYPE_MXFP4 = 39,
    TYPE_COUNT = 43 // one past the largest number a file may hold
} TensorType;

// y[o] = sum_i W[o][i] x[i]: n_row outputs, n_col inputs, row-major, rows are contiguous and quantised on their own.
// A vector has n_row = 1. A stack of experts has n_slice > 1 matrices of the same shape.
typedef struct {
    char name[64];       // as in the file, "blk.7.attn_q.weight"
    TensorType type;
    int n_row, n_col;    // of one slice
    int n_slice;         // 1, or the number of experts
    const void *host;    // slice 0 in the mapped file; always valid
    const void **slices; // [n_slice] start of each slice in the mapped file, or NULL when n_slice = 1
    bool precise;        // what follows amplifies errors of this product: its inputs must not be rounded to 8 bits
    void *dev;           // slices back to back in device memory, or NULL; written by plan_apply only
} Tensor;

#endif

// yardstick.h: what a CUDA device does at best, to hold our kernels against: its own copy, and the matrix product of cuBLAS, which
// is loaded when it is found. Both only queue work behind the ops of a cuda backend; sync waits for it.
#ifndef YARDSTICK_H
#define YARDSTICK_H

#include "backend.h"

#ifdef __cplusplus
extern "C" {
#endif

MUST_CHECK bool yardstick_copy(Backend *b, void *dst, const void *src, size_t bytes);

typedef struct {
    void *library, *handle;
    void *a, *b, *c; // [n][n] float16 on the device, a and b random
    int n;
} SquareGemm;
// False: no library, no memory, or the library refuses; g can be closed.
MUST_CHECK bool yardstick_gemm_open(SquareGemm *g, Backend *b, int n, Err *e);
MUST_CHECK bool yardstick_gemm(const SquareGemm *g); // c = a b, summed in float32
void yardstick_gemm_close(SquareGemm *g, Backend *b);

#ifdef __cplusplus
}
#endif
#endif

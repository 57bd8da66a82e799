// yardstick.h: what a CUDA device does at best, to hold our kernels against: its own copy, and the matrix product of cuBLAS, which
// is loaded when it is found. Both only queue work behind the ops of a cuda backend; sync waits for it. And what lies beside kernels:
// launches, the link, a row that goes to the host and comes back; these wait themselves.
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

// ---- for bench calibrate. Where there is no CUDA (yardstick_none.c) they fail ----

MUST_CHECK bool yardstick_memory(Backend *b, double *bytes, Err *e); // of the device, all of it
// Bytes per second of `bytes` bytes from pinned host memory to the device and back, medians.
MUST_CHECK bool yardstick_link(Backend *b, size_t bytes, double *up, double *down, Err *e);
// Seconds of one launch in a row of small ones, alone and in a graph; of a graph with one, until an id that it wrote has come back.
MUST_CHECK bool yardstick_launch(Backend *b, double *alone, double *in_graph, double *token, Err *e);
// Seconds of n floats from a running kernel to the host, or back: both through mapped pinned memory, with a flag that the other side waits for.
MUST_CHECK bool yardstick_handoff(Backend *b, int n, double *seconds, Err *e);

#ifdef __cplusplus
}
#endif
#endif

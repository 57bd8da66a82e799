// peaks.h: the ceilings that every speed is held against, measured beside it: how fast these threads read memory, and how fast their
// registers multiply. Both are measured anew by every call, in about 50 ms, so that a busy or throttled machine slows them as well.
#ifndef PEAKS_H
#define PEAKS_H

#include "backend.h"

typedef struct {
    const uint8_t *p;
    int64_t n;
} Piece; // of memory, at most some hundred KiB: what a thread reads at a time

// GB/s (1e9 bytes) of reading all pieces, again until it takes a tenth of a second.
double stream_gbps(const Piece *piece, int n, int threads);
// The same of n bytes at p.
double stream_gbps_of(const void *p, int64_t n, int threads);

// GB/s of the n bytes at p into n_slot slots in turn, as weights go to a device (kernels/fill.h), each byte counted once. Nobody reads the slots. By as
// many threads as do that; 0: no memory.
double fill_gbps(const void *p, int64_t n, int64_t slot_bytes, int n_slot);

// What products with a weight are made of: 8-bit integers where both sides are rounded, else floats.
typedef enum { PEAK_INT8, PEAK_F32 } PeakKind;
PeakKind peak_kind(TensorType type);
extern const char *const PEAK_NAMES[]; // "int8", "f32"
// GFLOP/s, a multiplication and addition being 2, of a loop that touches nothing but registers, with the instructions of that level. NaN:
// the level has none of its own (portable), or does not work here.
double peak_gflops(PeakKind kind, Isa isa, int threads);

// Of the time that all threads of all these measurements took, the share that they were running in: less than 1 where other programs
// run beside this one, or more threads than processors were asked for. Resets it.
double peaks_share_running(void);

int threads_or_all(int threads); // 0: all that this process may use

#endif

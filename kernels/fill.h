// fill.h: how weights of the host come into pinned memory, from where a device copies them (cuda_stream.cu): by some threads, slot after slot. bench
// calibrate measures the same code where there is no device.
//
// A slot is written again soon after the device has read it. So few and so small slots stay in the caches of the processor: a byte is read
// from memory once, written into a cache, and read by the device from there, as caches and devices are coherent on the hosts that we know; slots that
// do not stay there cost a byte two more passes of memory, as stores that go around the caches do. What bounds the size from below is what a
// copy costs beside its bytes: 2 MiB take 95 us over a link of 22 GB/s. Desktop processors have 12 to 32 MB of cache for all cores; beside the slots
// as many bytes of weights pass through it. Figures: bench/RESULTS.md.
#ifndef FILL_H
#define FILL_H

#include <stddef.h>

#include "pool.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    FILL_SLOTS = 3, // one is filled, one copied, one waits for it
    FILL_SLOT_BYTES = 2 << 20
};

int fill_threads(void); // as many as it takes to read as fast as a link is, or as there are
Pool *fill_open(void); // of so many; NULL: no memory
void fill_slot(Pool *p, void *slot, const void *from, size_t bytes); // slot: of any size

#ifdef __cplusplus
}
#endif
#endif

// emu_clock.h: what a test gives to the emulator's simulated clock and reads from it. C11 and C++; host code only.
//
// The clock itself is in emu_stream.h. It knows launches, copies, graphs, streams, events and waits, and what each costs (emu_config); the work of
// an op it does not know. So every op that the cuda backend runs tells what it reads and computes (CU_RAN in kernels/cuda_port.cuh,
// emu_clock.cpp), and the test, which has a description of a machine, says how long that takes (emu_price). The host's ops are the test's: it
// calls emu_spend_host. Of the backend's host code only CU_HOST_FILLS takes time.
//
// emu_config.phantom: nothing is computed, and weights need not be there, so that models of any size run, with their real launches, copies and
// waits. Routers then choose experts by chance, from emu_config.seed on; what a host backend does must be the test's, too (emu_choose_experts).
#ifndef EMU_CLOCK_H
#define EMU_CLOCK_H

#include "backend.h"

#ifdef __cplusplus
extern "C" {
#endif

// What an op reads besides activations, and computes.
typedef struct {
    const char *name;         // of its first weight, as in the file; "attention" for the op of that name
    int n_rows;
    double bytes[TYPE_COUNT]; // of weights
    double kv;                // of the KV cache
    double flop;              // 2 for a multiplication and addition
} EmuWork;

extern double (*emu_price)(const EmuWork *w);      // microseconds on the device; NULL: ops cost their launches, and what CU_HOST_COST says
void emu_spend_host(const char *name, double us);  // the host computes
// Around what the host does with what a kernel has released (load_acquire, store_release in cuda_ptx.cuh), and releases itself then. us: of the
// bytes over the link.
void emu_host_takes(double us);
void emu_host_gives(double us);
extern int (*emu_chooser)(int n_expert, int taken, const int *chosen); // in the place of chance: asked in the order in which routers choose; NULL: chance
int emu_choose_experts(int n_expert, int taken, const int *chosen); // by chance one more, which is not among the `taken` that are chosen

extern const char *const *emu_phantom_runs; // names of kernels that run nevertheless, up to a NULL: those that host and device talk by

// Where time goes. Names: of the op's first weight; "up", "down": a copy over the link; "wait".
typedef enum { EMU_LANE_DEVICE, EMU_LANE_HOST, EMU_LANE_COPY } EmuLane;
typedef struct {
    EmuLane lane;
    const char *name;
    double start, end; // microseconds
} EmuSpan;
extern int emu_trace; // they are kept
const EmuSpan *emu_spans(int *n);
void emu_clear_spans(void);

// ---- the work of ops, for both sides ----

static inline void emu_add_matrix(EmuWork *k, const Tensor *w, int n_rows) {
    if (!k->name) k->name = w->name;
    k->n_rows = n_rows;
    k->bytes[w->type] += (double)type_row_bytes(w->type, w->n_col) * w->n_row;
    k->flop += 2.0 * n_rows * w->n_row * w->n_col;
}

static inline void emu_add_attention(EmuWork *k, const AttentionArgs *a) {
    const TensorType type[2] = {a->kv->type_k ? a->kv->type_k : TYPE_F16, a->kv->type_v ? a->kv->type_v : TYPE_F16};
    const double first = a->pos + 1, last = a->pos + a->n_rows, w = a->window; // positions that the first and the last row see
    const double all = (first + last) / 2 * a->n_rows;
    const double seen = !w || last <= w ? all : first >= w ? w * a->n_rows : (first + w) / 2 * (w - first + 1) + w * (last - w);
    if (!k->name) k->name = "attention";
    k->n_rows = a->n_rows;
    for (int i = 0; i < 2; i++) k->kv += (double)type_row_bytes(type[i], a->kv->head_dim) * a->kv->n_head_kv * (w && last > w ? w : last);
    k->flop += 4.0 * a->n_head * a->kv->head_dim * seen;
}

// expert [n_rows][n_used], slot: in memory that can be read here.
static inline void emu_add_experts(EmuWork *k, const MoeArgs *a, const int *expert, const int *slot) {
    const Tensor *const w[3] = {a->gate, a->up, a->down};
    int n_distinct = 0, n_here = 0;
    for (int i = 0; i < a->n_rows * a->n_used; i++) {
        int before = 0;
        if (slot && slot[expert[i]] < 0) continue;
        n_here++;
        while (before < i && expert[before] != expert[i]) before++;
        n_distinct += before == i;
    }
    if (!k->name) k->name = a->gate->name;
    k->n_rows = a->n_rows;
    for (int i = 0; i < 3; i++) {
        k->bytes[w[i]->type] += (double)type_row_bytes(w[i]->type, w[i]->n_col) * w[i]->n_row * n_distinct;
        k->flop += 2.0 * n_here * w[i]->n_row * w[i]->n_col;
    }
}

#ifdef __cplusplus
}
#endif
#endif

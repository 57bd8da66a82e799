// units.h: a model as units that can be on a device or a host, in the order of a forward pass, with what each stores and what a token
// costs there. Made from the file's tables alone: no weight is read. Per layer: attention with its KV cache; the dense or shared FFN with the
// router, norms and per-layer input; the experts, which may be on both sides, some here and some there. Before them what is always on the
// host, read row by row (an embedding that is not the head, too, and the per-layer table); after them the head.
#ifndef UNITS_H
#define UNITS_H

#include "session.h"

typedef enum { UNIT_EMBED, UNIT_TABLE, UNIT_ATTENTION, UNIT_FFN, UNIT_EXPERTS, UNIT_HEAD } UnitKind;
enum { N_UNIT_KIND = UNIT_HEAD + 1 };
extern const char *const UNIT_NAMES[N_UNIT_KIND];

typedef struct {
    UnitKind kind;
    int layer;               // n_layer: the head
    int n_part, n_used;      // experts, and those of a token; else 1, 1
    uint64_t bytes;          // of weights, as a device allocates them
    uint64_t slice[3];       // experts: of one, in each of their stacks
    uint64_t kv_bytes;       // of the KV cache, the same
    double read[TYPE_COUNT]; // bytes of weights that a decoded token reads
    const double *away;      // experts: Layer.expert_away, NULL: chance
    double router;           // of them, F32: before the experts are known
    double kv_row;           // bytes of one position's keys and values
    double kv_new;           // numbers of them that it writes; 0: it reads another layer's
    int window;              // positions that a row sees at most; 0: all
    double flop;             // for every row of a prompt; two for a multiplication and addition
    double late_flop;        // only for rows whose logits are wanted (forward.c, drop_rows)
    double see_flop;         // for every row and each position it sees
    bool late;               // all of it is for such rows only
    int n_launch;            // of a decoded token on the device (tests/test_queue.c counts them)
    int source;              // attention: the layer whose KV it reads
} Unit;

typedef struct {
    Unit *unit; // [n]
    int n, n_layer, n_embd;
    int chunk;                    // tokens of a prompt in a pass
    uint64_t acts;                // work buffers of a pass
    bool whole;                   // the halves of a layer cannot be apart (Gemma 3n)
    bool tied;                    // the embedding is the head, which a device has once
} PlanUnits;

// For the session's context and batch. elem: bytes of an element of the KV cache, unless the session wants it Q8_0.
MUST_CHECK bool units_open(PlanUnits *u, Model *m, const SessionParams *p, int elem, Err *e);
void units_close(PlanUnits *u);
uint64_t units_bytes(const Unit *u, int n_part);  // what so many parts take of a device, the KV cache included
int units_index(const PlanUnits *u, const Model *m, const Tensor *t, int layer, bool ffn); // the unit of what model_each visits

#endif

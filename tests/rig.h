// rig.h: a model that runs, with directions to switch on and the same few tokens to feed it.
#ifndef RIG_H
#define RIG_H

#include "session.h"
#include "steer.h"
#include "test.h"

enum { N_TOKEN = 40 };

typedef struct {
    Model m;
    Backend b;
    Session s;
    Steer steer;
    int ids[N_TOKEN];
    float *logits; // [n_vocab] of the last run
} Rig;

static inline void rig_close(Rig *g) {
    steer_close(&g->steer);
    session_close(&g->s);
    backend_close(&g->b);
    model_close(&g->m);
    free(g->logits);
}

static inline bool rig_open(Rig *g, const char *path) {
    Err e = {0};
    memset(g, 0, sizeof *g);
    bool ok = model_open(&g->m, path, &e) && backend_open_cpu(&g->b, 2, ISA_AUTO, &e) && session_open(&g->s, &g->m, &g->b, &(SessionParams){.n_ctx = 64, .n_batch = 64}, &e);
    if (ok) steer_open(&g->steer, &g->m, &g->b);
    ok = ok && session_add_tap(&g->s, steer_tap(&g->steer), &e) && ((g->logits = calloc((size_t)g->m.c.n_vocab + 1, sizeof *g->logits)) || err_set(&e, "no memory"));
    for (int i = 0; i < N_TOKEN; i++) g->ids[i] = (i * 37 + 11) % 300;
    CHECK(ok, "%s: %s", path, e.text);
    return ok;
}

// From the beginning, in two batches.
static inline const float *rig_run(Rig *g) {
    Err e = {0};
    session_rewind(&g->s, 0, 0);
    CHECK(session_eval(&g->s, g->ids, N_TOKEN - 1, &e) && session_eval(&g->s, g->ids + N_TOKEN - 1, 1, &e), "%s", e.text);
    memcpy(g->logits, g->s.logits, sizeof *g->logits * (size_t)g->m.c.n_vocab);
    return g->logits;
}

#endif

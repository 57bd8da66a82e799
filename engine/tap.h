// tap.h: a hook on the residual stream. Called from one place in forward.c, with the rows that are about to be added
// (ATTN_OUT, MLP_OUT, PLE_OUT, after any post-norm) or with the stream itself (RESID_*, STREAMS). Between two additions the
// stream is shown exactly once. A tap works through the backend's op table, so it runs where the data is; it may change the
// rows in place. Of layers with experts two steps on the way to MLP_OUT are shown, too (EXPERTS, MLP_SUM), to be read.
//
// Beyond the last layer that writes keys and values, a row serves nothing but its own logits. If every tap is content with
// that (wanted_only), from there on (ATTN_OUT of that layer) the rows whose logits nobody wants are neither computed nor
// shown, and where no logits are wanted no tap is called. A tap that changes rows can be content: what it would do to the
// others has no effect. One that reads rows to keep them is not, unless it wants the logits of the same rows.
#ifndef TAP_H
#define TAP_H

#include "backend.h"

typedef enum {
    TAP_STREAMS,    // Gemma 3n: all its streams entering layer l, l = n_layer: leaving the last; one after the other: n_stream * n rows
    TAP_RESID_PRE,  // the stream entering layer l; l = 0: the embedding, l = n_layer: leaving the last layer
    TAP_ATTN_OUT,   // what attention adds
    TAP_RESID_MID,  // the stream after that addition
    TAP_EXPERTS,    // what the chosen experts of every row come to, before any norm; site.moe made it
    TAP_MLP_SUM,    // that and the dense branch, behind their own norms, before the one they share
    TAP_MLP_OUT,    // what the FFN adds
    TAP_RESID_LATE, // the stream after that addition, where the per-layer input still adds to it
    TAP_PLE_OUT     // what the per-layer input adds
} TapPoint;

// The sites at which the stream itself is shown, numbered in the order of the forward pass: three to a layer (entering it,
// after attention, before the per-layer input), and one after the last layer. -1: not such a site.
static inline int tap_site(TapPoint point, int layer) {
    return point == TAP_RESID_PRE ? 3 * layer : point == TAP_RESID_MID ? 3 * layer + 1 : point == TAP_RESID_LATE ? 3 * layer + 2 : -1;
}
static inline int tap_n_site(int n_layer) { return 3 * n_layer + 1; }

// Consecutive rows of a batch that belong to one sequence: rows row .. row + n - 1 are its positions pos .. pos + n - 1.
typedef struct {
    int seq, row, n, pos;
} Span;

typedef struct {
    TapPoint point;
    int layer;
    int n_rows, n_col;      // rows [n_rows][n_col]
    const Span *span;       // [n_span] whose rows these are, in order (STREAMS: of each stream)
    int n_span;
    Backend *backend;
    float *rows;            // in the backend's memory
    const MoeArgs *moe;     // EXPERTS: what rows is the y of; its weight and expert may be replaced by others in a call of one's own
} TapSite;

typedef struct {
    void (*call)(void *ctx, const TapSite *site);
    void *ctx;
    bool wanted_only; // content with the rows whose logits are wanted; false: is shown all rows at every site
} Tap;

#endif

// tap.h: a hook on the residual stream. Called from one place in forward.c, with the rows that are about to be added
// (ATTN_OUT, MLP_OUT, PLE_OUT, after any post-norm) or with the stream itself (RESID_PRE; layer = n_layer: leaving the last).
// A tap works through the backend's op table, so it runs where the data is; it may change the rows in place.
#ifndef TAP_H
#define TAP_H

#include "backend.h"

typedef enum { TAP_RESID_PRE, TAP_ATTN_OUT, TAP_MLP_OUT, TAP_PLE_OUT } TapPoint;

typedef struct {
    TapPoint point;
    int layer;
    int pos, n_rows, n_col; // position of row 0; rows [n_rows][n_col]
    Backend *backend;
    float *rows;            // in the backend's memory
} TapSite;

typedef struct {
    void (*call)(void *ctx, const TapSite *site);
    void *ctx;
} Tap;

#endif

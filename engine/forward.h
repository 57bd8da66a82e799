// forward.h: the forward pass of every architecture: one batch of tokens, of one or more sequences, through the model.
#ifndef FORWARD_H
#define FORWARD_H

#include "session.h"

// ids [n_rows], n_rows <= n_batch: the rows of s->fed. Leaves the logits of the rows of s->logit_row in s->logits, or the
// likeliest in s->top. Does not move the sequences' pos.
void forward(Session *s, const int *ids, int n_rows);

// Gemma 3n's parallel residual streams (AltUp, arXiv 2301.13310) and low-rank residual (LAuReL, arXiv 2411.07501); altup.c.
void altup_expand(Session *s, int n_rows);                    // a.x -> a.streams
void altup_predict(Session *s, int layer, int n_rows);         // a.streams -> a.predicted, a.x = the active one
void laurel_branch(Session *s, const Layer *layer, int n_rows); // a.normed -> a.laurel
void laurel_merge(Session *s, int n_rows);                     // a.x = (a.x + a.laurel) / sqrt(2)
void altup_correct(Session *s, const Layer *layer, int n_rows); // a.x, a.predicted -> a.streams, a.x = active, read by the per-layer input
void altup_add_per_layer(Session *s, int n_rows);              // a.out onto every stream but the active one
void altup_merge(Session *s, int n_rows);                      // a.streams -> a.x
void stream_tap(Session *s, TapPoint point, int layer, float *rows, int n_rows); // calls every tap

#endif

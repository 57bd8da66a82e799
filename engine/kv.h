// kv.h: the KV caches of a session: how many cells, of what type, where; and how a chunk of rows gets there.
//
// A sliding-window layer has a ring of exactly its window. One row is written first and reads then: what it overwrites it no longer sees.
// Of more rows the first ones still see positions that the last ones overwrite. So a chunk gets cells of its own, in the work buffers: the
// window before it, copied from the ring, and its own keys and values; from there they are read, and the ring gets the last of them. One such
// buffer serves all layers, one after the other. Layers that read another layer's keys (Gemma 3n, Gemma 4 E) find them there as long as no
// ring has been there since; the files we know have it so. If and only if one has, that layer keeps window - 1 + n_batch cells of its own.
// The price: a chunk that is not the first copies window cells per layer. Gemma 4 26B: 1023 of 8 KB in 25 layers, 0.2 GB read and written,
// beside the 14 GB of weights that any prompt of some length reads.
//
// The keys of a layer stay where the plan has put its attention. When a prompt's attention is computed on the device for a layer of the host
// (stream.h), they go to the host's cache as ever, and all that the rows see comes from there for the time of the op (Backend.borrow).
#ifndef KV_H
#define KV_H

#include "session.h"

// Where layer l's cache is, of Session.place and acts: 1: on the host of a device.
static inline int kv_home(const Session *s, int l) { return s->place[1] && s->m->layers[l].attn_on_host; }
int kv_cells(const Model *m, const SessionParams *p, int layer);
int64_t kv_row_bytes(const Model *m, const Backend *b, const SessionParams *p, int layer, bool values); // of one position: keys, or values
int64_t kv_chunk_bytes(const Model *m, const Backend *b, const SessionParams *p, bool values); // of the work buffer; 0: none
MUST_CHECK bool kv_check(const Model *m, const SessionParams *p, Err *e);
// Keys k and values v of a span of the batch's rows, where the forward pass is, into the cache of layer l, which is its own.
void kv_write(Session *s, int l, const Span *g, const float *k, const float *v);
// What layer l reads of a sequence of the batch, its own keys or another layer's, after kv_write: where the forward pass is. If that is not
// where the cache is, for the next op only.
KvLayer kv_read(Session *s, int l, int seq);
// Bytes that a device borrows for it, of a span before it is written; 0: cannot be borrowed.
uint64_t kv_borrow_bytes(const Session *s, int l, const Span *g);
// The same of any batch that p allows; the most of all layers.
uint64_t kv_borrow_most(const Model *m, const Backend *b, const SessionParams *p);

#endif

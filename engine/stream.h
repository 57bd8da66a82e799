// stream.h: prompts of a model that is partly on the host. Weights of the host are copied to the device for the time of an op (Backend.borrow)
// where that is quicker than to compute with them on the host; a rule decides for the FFN of a layer, for its attention, and for each expert by how many
// rows of the batch chose it. What a batch has few rows for is computed on the host, as when decoding. Keys and values of attention stay on the host,
// which decodes: it gets those of the batch, and the device borrows all that the rows see (kv.h).
//
// The rule (spec/performance.md, 2.5): a weight of B bytes, F operations a row, is copied for n rows if
//   max(B / link, n F / device rate)  <  max(B / host's memory, n F / host rate)
// with the numbers of Session.machine; for an RTX 3060 at 22 GB/s, a host of 1 TFLOP/s, Q4_K: 23 rows and more of any matrix, 15 of the experts of
// Gemma 4. To it comes what the stream's rows cost on their way, where they have one more because of it, and the way of keys and values.
#ifndef STREAM_H
#define STREAM_H

#include "session.h"

enum { FEWEST_STREAMED = 9 }; // rows; fewer go as when decoding

// Keys that n rows from position pos see, added up; window 0: all before them.
double stream_sights(int pos, int n, int window);
// The FFN of layer l, which is on the host, is quicker for n rows on the device: its ops will borrow what they need.
bool stream_ffn(const Session *s, int l, int n);
// The same of its attention, in front of the first op.
bool stream_attention(const Session *s, int l, int n);
// Called on the device when the router has chosen. True: some of the host's experts are to come here; stream_experts will bring them, and have the host
// compute the others. in [n][n_embd]: what they read.
bool stream_choose(Session *s, const Layer *w, const float *in, int n);
// y (+)= what all experts of the host come to.
void stream_experts(Session *s, const Layer *w, float *y, const float *in, int n, bool add);
// What Limits.ring_bytes of b should be for the batches of p, at most `most`; 0: too little for anything. keys: with room for those of any layer, at
// whatever length. Without, attention of the host's layers comes only where what it sees fits.
uint64_t stream_ring_bytes(const Model *m, const Backend *b, const SessionParams *p, bool keys, uint64_t most);

#endif

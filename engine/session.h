// session.h: growing sequences of tokens with their KV caches and work buffers. A conversation is one sequence; experiments
// feed many prompts at once, one sequence each, so that the weights are read once for all. What a sequence computes does not
// depend on those beside it, to the bit for prompts; on the cpu backend five tokens and more that are fed together are summed in
// another order than fewer (kernels/gemm.h), so that decoding many sequences at once may differ in last digits. What comes after
// the last layer that writes keys is computed for the wanted rows only, and there it is they who count, but with SessionParams.alike.
// session_open is the last allocation of a run.
#ifndef SESSION_H
#define SESSION_H

#include "machine.h"
#include "tap.h"

enum { MAX_TAPS = 8 };

// Work buffers on the backend, all for n_batch rows; widths are maxima over all layers. NULL: this model has no such part. Most of them are in `shared`,
// where those of different steps of a layer lie over each other (session.c): a step leaves to the next only what that step reads.
typedef struct {
    char *shared;
    float *x, *normed, *q, *k, *v, *attn, *out;             // out: what is about to be added to the stream x
    char *chunk_k, *chunk_v;                                // cells of a chunk and of the window before it, see kv.h
    float *gate, *up;                                       // [n_ff]
    float *router, *expert_in, *moe_out, *expert_weight;    // experts: [n_expert], [n_embd], [n_embd], [n_expert_used]
    int *expert;                                            // [n_expert_used]
    int *slot;                                              // [n_expert] once: MoeArgs.slot of experts that come for a prompt (stream.c)
    float *per_layer, *per_layer_ctx;                       // per-layer inputs, P values for each layer: [n_layer * P], see forward.c
    float *ple, *ple_in;                                    // [P]
    float *streams, *predicted;                             // Gemma 3n: [n_stream][n][n_embd]
    float *laurel, *laurel_low, *innovation;                // [n_embd], [rank], [n_embd]
    float *coef, *modality;                                 // [n_stream^2], [n_stream]
    float *logits;                                          // [n_logit_rows][n_vocab]
    float *bias;                                            // [n_vocab], see TopArgs
    Likely *top;                                            // [n_logit_rows][MAX_TOP]
    int *table_ids;                                         // host: ids for the per-layer table
} Acts;

typedef struct {
    int n_ctx;    // tokens a sequence can hold
    int n_batch;  // tokens per forward pass, of all sequences together
    int n_seq;    // sequences (0 is taken as 1)
    TensorType type_k, type_v; // of the KV cache: 0: as the backend wants it (F16; F32 on ref), F16 or Q8_0
    bool all_logits; // room for logits of several rows at a time (on_logits)
    bool every_row;  // compute every row to the end, also where nobody wants its logits (to measure what that costs)
    uint64_t ring_bytes; // of a device's memory, for weights of its host that prompts need (stream.h); 0: none
    bool alike;      // what is computed for a row does not depend on how many are wanted, to the bit (experiments). Otherwise fewer than five of
                     // each sequence go faster through the last layers (Gemma 3n, Gemma 4 E: a tenth of a prompt of 256), and differ in last digits
} SessionParams;

typedef struct {
    int pos;         // tokens held
    int safe_pos;    // lowest position, but 0, that rewind can reach
} Sequence;

// Tokens for one sequence, and of how many of the last ones the logits are wanted.
typedef struct {
    int seq;
    const int *ids; // [n]
    int n, n_logits;
} Feed;

// A row of the batch whose logits are wanted.
typedef struct {
    int row, seq, pos;
} LogitRow;

typedef struct {
    const Model *m;
    // Where the forward pass is: the backend, or its host, and the work buffers there. Only the stream crosses.
    Backend *b;
    Acts *a;
    Backend *place[2]; // the session's backend; its host or NULL
    Acts acts[2];
    bool per_layer_there[2]; // the per-layer inputs of this batch are in acts[i]
    Backend *full;     // after a failed session_open: whose memory was too small; NULL: something else failed
    SessionParams p;
    Sequence *seq;   // [n_seq]
    KvLayer *kv;     // [n_seq][n_layer], with their attention; k == NULL where another layer's is read
    float *logits;   // on the host: [n_seq][n_vocab], the latest of each sequence, unless
    Likely *top;     // [n_seq][MAX_TOP] n_top likeliest ids came instead (session_want_top)
    int n_top;       // 0: logits
    int want_top;
    bool has_bias;   // acts.bias, where the head is, is to be added
    int batch, batch_wanted; // tokens given to session_eval_batch; most that one sequence wants logits of; see Backend.batch
    // The batch that forward works on.
    int *ids;        // [n_batch]
    Span *fed;       // [n_seq] its rows
    int n_fed;
    Span *span;      // [n_seq] the rows in the work buffers: fed, but where rows were dropped only the wanted ones
    int n_span;
    LogitRow *logit_row; // [n_batch]
    int n_logit;
    int n_row, n_late; // rows of this batch, and how many of them go on after the last layer that writes keys
    bool wanted_only;  // of this batch those are the rows whose logits are wanted,
    bool dropped;      // and the others are gone
    // Weights of the host that come to the device for a prompt (stream.h): if machine has a gpu, and ring_bytes were there.
    Machine machine;    // whose speeds decide; set after session_open
    char pinned[128];   // for people: of them, how much is copied from where it is (pin.h), or why not; "": nothing could be
    int streamed[MAX_EXPERT], n_streamed, n_rest; // of a layer: experts that come; how many the host computes
    Tensor borrowed[3]; // gate, up and down of some of them
    struct Resident *resident; // experts that follow use (resident.h); NULL: they stay where they are
    int n_logit_rows; // of them go through the head at a time
    Tap taps[MAX_TAPS];
    int n_tap;
    // When set, called for every wanted row with its logits [n_vocab] on the host.
    void (*on_logits)(void *ctx, const float *logits, int seq, int pos);
    void *on_logits_ctx;
    // When set, called after every layer's router with the chosen experts [n_rows][n_used] in b's memory (bench experts).
    void (*on_route)(void *ctx, Backend *b, int layer, const int *expert, int n_rows, int n_used);
    void *on_route_ctx;
    // Progress of a long eval, after each batch; return true to stop (Ctrl-C): eval ends early and succeeds.
    bool (*on_progress)(void *ctx, int done, int total);
    void *on_progress_ctx;
} Session;

// What an allocation of n bytes takes of the backend's memory: a device has pages of 2 MiB, of which small pieces share one.
static inline uint64_t alloc_bytes(const Backend *b, uint64_t n) {
    const uint64_t grain = b->on_host ? 1 : n >= 1 << 20 ? 2 << 20 : 512;
    return (n + grain - 1) / grain * grain;
}
// Bytes session_open will allocate, for planning and --info.
void session_bytes(const Model *m, const Backend *b, const SessionParams *p, uint64_t *kv, uint64_t *acts);
uint64_t session_kv_bytes(const Model *m, const Backend *b, const SessionParams *p, int layer); // of one layer, all sequences
int64_t session_kv_row_bytes(const Model *m, const Backend *b, const SessionParams *p, int layer); // of one position that it reads
uint64_t session_scratch_bytes(const Model *m, const SessionParams *p); // of a device, for its kernels: about what session_reserve takes, without the ring
// Its work memory of the backend alone, as session_open asks for it: what is left then is free for weights.
MUST_CHECK bool session_reserve(const Model *m, Backend *b, const SessionParams *p, Err *e);
MUST_CHECK bool session_open(Session *s, const Model *m, Backend *b, const SessionParams *p, Err *e);
void session_close(Session *s);
// Feeds several sequences, each at most once, in batches of at most n_batch rows. Too many for n_ctx: error, nothing is fed.
MUST_CHECK bool session_eval_batch(Session *s, const Feed *feed, int n_feed, Err *e);
// The same for sequence 0: logits of the last token, of all when on_logits is set.
MUST_CHECK bool session_eval(Session *s, const int *ids, int n, Err *e);
// Forgets everything of a sequence from pos on. Returns the position reached: pos, or 0 if a window's ring has already overwritten what
// pos needs (the caller feeds the tokens again). A ring holds its window: while a sequence has been no longer than the smallest
// window every position can be reached, afterwards the last but one only. Without windows, all.
int session_rewind(Session *s, int seq, int pos);
static inline int session_pos(const Session *s) { return s->seq[0].pos; }
// From now on only the k likeliest ids come to the host, to s->top, with bias [n_vocab] added (NULL: none; see TopArgs); 0: the
// logits again. While on_logits is set it gets, and s->logits holds, all logits nevertheless.
void session_want_top(Session *s, int k, const float *bias);
MUST_CHECK bool session_add_tap(Session *s, Tap tap, Err *e);

#endif

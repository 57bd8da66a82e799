// cpu.h: the ops of the cpu backend, one file each; collected into its table by cpu.c. Not for use outside kernels/.
#ifndef CPU_H
#define CPU_H

#include <assert.h>
#include <stdatomic.h>
#include "dot.h"
#include "gemm.h"
#include "pool.h"
#include "vec.h"

enum {
    LINE = 64,          // bytes per cache line: threads write to different lines
    ROW_STEP = 16,      // outputs that fill one line
    CHUNK_ROWS = 256,   // most weight rows given to a thread at a time
    SMALL_WORK = 16384, // elements below which an op is not worth a second thread
    PIECE = 4096,       // elements of a long vector for one thread at a time
    KEY_TILE = 32,      // values are summed in tiles that begin at positions divisible by this
    KEY_BLOCK = 256,    // keys of a few queries for one thread at a time; likewise
    MANY_QUERIES = 128, // of a prompt's attention that go together, fewer if their
    MANY_SUMS = 32768,  // sums over the values, head_dim floats each, are more than this
    MANY_SCORES = MANY_QUERIES * GEMM_TILE_ROWS
};

// The backend's private part. Buffers are made by reserve for its Limits.
typedef struct {
    Isa isa;
    int n_thread;
    Pool *pool;
    const DotTable *dot;
    const VecTable *vec;
    const GemmTable *gemm; // NULL: none at this level
    Limits limits;

    char *act8;          // [2][n_rows][act8_bytes(n_col)]: the inputs of a matmul, rounded; then what the rounding lost
    char *gemm_x;        // [2][n_rows][gemm_x_bytes(n_col)]: the same, as gemm.h wants it
    const void **gemm_row; // [max(2 n_rows, n_slot)] which of them are multiplied
    char *gemm_tile;     // [n_thread][GEMM_TILE_BYTES]
    float *many;         // [n_thread][MANY_SCORES + MANY_SUMS] of attention, or products of experts
    float *lost;         // [n_thread][n_col]
    double *rotation;    // [n_thread][2][head_dim / 2]: cosines and sines of one row
    float *part;         // [n_part][part_stride]: what blocks of keys have found for a query (attention_cpu.c)
    atomic_int *blocks_left; // [n_part] of a tile of queries
    int64_t n_part, part_stride; // every head's blocks for a row at n_ctx; head_dim + 2, padded to whole lines

    // Experts; a slot is one (row, chosen expert) pair, in order of the expert and then of the row.
    float *hidden;       // [n_slot][n_ff_expert]
    char *hidden_act8;   // [n_slot][act8_bytes(n_ff_expert)]
    float *hidden_up;    // [n_slot][n_ff_expert]
    char *hidden_gemm_x; // [n_slot][gemm_x_bytes(n_ff_expert)]
    int *slot_pair;      // [n_slot] row * n_used + u
    int *first_slot;     // [n_expert + 1]
    int *active;         // [n_expert] experts with at least one slot
} Cpu;

static inline Cpu *cpu_of(const Backend *b) { return b->priv; }

// work(args, i, thread) for every i below n_item, on all threads where `size` elements are worth it.
static inline void share(const Backend *b, int64_t size, Work *work, const void *args, int n_item) {
    if (size > SMALL_WORK) pool_run(cpu_of(b)->pool, work, args, n_item);
    else
        for (int i = 0; i < n_item; i++) work(args, i, 0);
}

// Rows of a matrix for one thread at a time: a multiple of ROW_STEP, about 256 KiB so that each of the DOT_STREAMS is long (what is
// prefetched past its end is lost), and several chunks for every thread.
static inline int chunk_rows(const Tensor *w, int n_thread) {
    const int64_t by_size = 262144 / type_row_bytes(w->type, w->n_col), by_thread = w->n_row / (4 * n_thread);
    const int64_t rows = by_size < by_thread ? by_size : by_thread;
    return max_int(1, min_int(CHUNK_ROWS, (int)rows) / ROW_STEP) * ROW_STEP;
}
// Whether tokens, of which an op sees n_rows, are enough for gemm.h.
static inline bool gemm_wanted(const Backend *b, int n_rows) { return cpu_of(b)->gemm && (b->batch ? b->batch : n_rows) >= GEMM_FROM; }

// ---- products of a few rows with part of a matrix, for one thread (matmul_cpu.c) ----

// The rows of x that an op multiplies, in each form that its weights want.
typedef struct {
    const float *x;           // [n_rows][n_col]
    const char *act8, *lost;  // [n_rows][act8_bytes(n_col)]: x rounded; what that lost, rounded, for precise weights
    int n_rows, n_col;
} Inputs;
// Up to DOT_ROWS of them.
typedef struct {
    const void *x[DOT_ROWS], *act8[DOT_ROWS], *lost[DOT_ROWS];
    int n;
} Rows;
// Rows [o, o + n) of a matrix, n <= CHUNK_ROWS.
typedef struct {
    int slice, o, n;
} Part;

Inputs make_inputs(Backend *b, const float *x, int n_rows, int n_col, bool rounded, bool precise); // they lie in c->act8
static inline void add_row(Rows *rows, const Inputs *in, int r) {
    const int64_t at = r * act8_bytes(in->n_col);
    rows->x[rows->n] = in->x + (int64_t)r * in->n_col;
    rows->act8[rows->n] = in->act8 + at;
    rows->lost[rows->n++] = in->lost ? in->lost + at : NULL;
}
static inline Rows next_rows(const Inputs *in, int first) {
    Rows rows = {.n = 0};
    for (int r = first; r < in->n_rows && rows.n < DOT_ROWS; r++) add_row(&rows, in, r);
    return rows;
}
// y[r * y_stride + i] = w[o + i] . x[r] + bias[o + i]; bias NULL: none
void multiply_part(const Cpu *c, float *y, int64_t y_stride, const Tensor *w, const Tensor *bias, Part p, const Rows *x);
// y[r * y_stride + i] = act(gate x) * (up x) at o + i (gated_cpu.c)
void gate_part(const Cpu *c, float *y, int64_t y_stride, const GatedArgs *a, Part p, const Rows *x);

static inline int ceil_div(int a, int b) { return (a + b - 1) / b; }
static inline int n_piece(int64_t n) { return (int)((n + PIECE - 1) / PIECE); }

void embed_cpu(Backend *b, float *y, const Tensor *table, const int *ids, int n_rows, float scale);
void norm_cpu(Backend *b, float *y, const Tensor *w, const float *x, int n_rows, int n_col, float eps);
void matmul_cpu(Backend *b, float *y, const Tensor *w, const Tensor *bias, const float *x, int n_rows);
void matmuls_cpu(Backend *b, const Matmul *m, int n, const float *x, int n_rows);
bool gemm_cpu(Backend *b, float *y, const Tensor *w, const Tensor *bias, const float *x, int n_rows); // false: not for this batch
bool gemm_moe_cpu(Backend *b, const MoeArgs *a, int n_active); // slots are made
void rounding_loss(float *out, const float *x, const void *act8, int n_col); // out[i] = x[i] - what its code stands for
void rope_cpu(Backend *b, float *x, const Rope *rope, int n_rows, int n_head, int head_dim, int pos);
void kv_write_cpu(Backend *b, const KvLayer *kv, const float *k, const float *v, int n_rows, int pos);
void kv_copy_cpu(Backend *b, const KvLayer *to, const KvLayer *from, int n, int pos);
void attention_cpu(Backend *b, const AttentionArgs *a);
void gated_cpu(Backend *b, float *y, const float *gate, const float *up, int64_t n, Activation act);
void gated_matmul_cpu(Backend *b, const GatedArgs *a);
void moe_route_cpu(Backend *b, int *expert, float *weight, const float *logits, const Tensor *scale, int n_rows, int n_expert, int n_used);
void moe_ffn_cpu(Backend *b, const MoeArgs *a);
void add_cpu(Backend *b, float *x, const float *y, int64_t n);
void scale_cpu(Backend *b, float *x, float s, int64_t n);
void softcap_cpu(Backend *b, float *x, float cap, int64_t n);
void project_out_cpu(Backend *b, const ProjectArgs *a);
void add_dir_cpu(Backend *b, float *x, const float *dir, int n_rows, int n_col, float amount);
void copy_rows_cpu(Backend *b, float *dst, int dst_stride, const float *src, int src_stride, int n_rows, int n_col);
void top_cpu(Backend *b, const TopArgs *a);
void mul_cols_cpu(Backend *b, float *x, const Tensor *w, int n_rows);
void mix_streams_cpu(Backend *b, float *y, const float *coef, const float *x, int n_out, int n_in, int n_rows, int n_col);
void match_length_cpu(Backend *b, float *u, const float *target, int n_rows, int n_col);
void sparsify_cpu(Backend *b, float *x, float multiplier, int n_rows, int n_col);

#endif

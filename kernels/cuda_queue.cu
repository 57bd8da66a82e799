// cuda_queue.cu: the op table of the cuda backend records. What is recorded runs when a result is wanted (download, sync), when
// buffers change (upload, free), or when the queue is full.
//
// A decoded token is the same list of ops as the one before, but for positions and ids. Those lie in Cuda.arg, which is copied to
// the device before the ops run; kernels read them there. A list that comes for the second time is captured as a CUDA graph,
// and from then on one launch is a whole token. What is lent to the host is done when the list is launched (handoff_cuda.cu). Attention is laid out for the power of two above the length (its
// bucket), so that the list changes only there.
#include <stdlib.h>
#include "cuda_quant.cuh"
#include "cuda_queue.cuh"
#include "fill.h"

// A list of ops that was run, and its graph, once there is one.
typedef struct Replay {
    Op *op;
    int n_op;
    cudaGraphExec_t graph; // or NULL
    uint64_t last_used, n_launch;
} Replay;

void cuda_forget_graphs(Backend *b) {
    Cuda *c = cuda_of(b);
    for (int i = 0; i < N_REPLAY && c->replay; i++) {
        Replay *r = &c->replay[i];
        if (r->graph) cudaGraphExecDestroy(r->graph);
        free(r->op);
        memset(r, 0, sizeof *r);
    }
}

static Replay *find(Cuda *c) {
    for (Replay *r = c->replay; r < c->replay + N_REPLAY; r++)
        if (r->n_op == c->n_op && r->op && !memcmp(r->op, c->op, sizeof *c->op * (size_t)c->n_op)) return r;
    return NULL;
}

// In the place of the one that has not been used for longest. Without memory nothing is remembered.
static void remember(Cuda *c) {
    Replay *r = c->replay;
    for (int i = 1; i < N_REPLAY; i++)
        if (c->replay[i].last_used < r->last_used) r = &c->replay[i];
    if (r->graph) cudaGraphExecDestroy(r->graph);
    free(r->op);
    memset(r, 0, sizeof *r);
    const size_t bytes = sizeof *c->op * (size_t)c->n_op;
    if (!(r->op = (Op *)malloc(bytes))) return;
    memcpy(r->op, c->op, bytes);
    r->n_op = c->n_op;
    r->last_used = c->n_flush;
}

static bool capture(Backend *b, Replay *r) {
    Cuda *c = cuda_of(b);
    cudaGraph_t graph = NULL;
    const uint64_t before = c->n_launch;
    if (!cuda_check(b, "capturing a graph", cudaStreamBeginCapture(c->stream, cudaStreamCaptureModeThreadLocal))) return false;
    cuda_run_ops(b, r->op, r->n_op);
    const bool ok = cuda_check(b, "capturing a graph", cudaStreamEndCapture(c->stream, &graph)) && !b->first_error.text[0] &&
                    cuda_check(b, "making a graph", cudaGraphInstantiate(&r->graph, graph, 0));
    if (graph) cudaGraphDestroy(graph);
    r->n_launch = c->n_launch - before;
    c->n_launch = before;
    return ok;
}

// The host's part of ops that have been launched.
static void serve(Backend *b, const Op *op, int n) {
    for (int i = 0; i < n; i++)
        if (op[i].kind == OP_MOE_LEND) cuda_serve(b, &op[i].moe_lend.a, op[i].moe_lend.batch);
}

// Launched one by one; each time that something is collected the host has done it before.
static void run(Backend *b, const Op *op, int n) {
    for (int from = 0, to; from < n; from = to) {
        for (to = from + 1; to < n && op[to].kind != OP_MOE_COLLECT; to++) {}
        cuda_run_ops(b, op + from, to - from);
        serve(b, op + from, to - from);
    }
}

void cuda_flush(Backend *b) {
    Cuda *c = cuda_of(b);
    c->n_flush++;
    if (c->n_op && !b->first_error.text[0] && (!c->n_arg || cuda_copy_in(b, c->arg_dev, c->arg, sizeof *c->arg * (size_t)c->n_arg))) {
        Replay *r = c->may_repeat ? find(c) : NULL;
        if (r) r->last_used = c->n_flush;
        if (r && (r->graph || capture(b, r))) {
            cuda_check(b, "launching a graph", cudaGraphLaunch(r->graph, c->stream));
            c->n_launch += r->n_launch;
            serve(b, r->op, r->n_op);
        } else if (!r) {
            run(b, c->op, c->n_op);
            if (c->may_repeat) remember(c);
        }
    }
    cuda_ring_launched(b, c->op, c->n_op);
    c->n_op = c->n_arg = 0;
    c->pos_arg = -1;
    c->may_repeat = !c->borrowed;
}

// ---- recording ----

// n_rows: of the op; n_arg: words it will put into c->arg.
static Op *record(Backend *b, OpKind kind, int n_rows, int n_arg) {
    Cuda *c = cuda_of(b);
    if (c->n_op == MAX_OPS || c->n_arg + n_arg > ARG_WORDS) cuda_flush(b);
    if (n_rows > MAX_MATVEC_ROWS) c->may_repeat = false;
    Op *op = &c->op[c->n_op++];
    memset(op, 0, sizeof *op);
    op->kind = kind;
    op->arg = c->n_arg;
    return op;
}

static void put(Cuda *c, const void *words, int n) {
    memcpy(c->arg + c->n_arg, words, sizeof *c->arg * (size_t)n);
    c->n_arg += (n + 3) / 4 * 4; // rows are read 16 bytes at a time
}

// Ops at the same position share its place: cuda_fuse.cu can see that they are.
static void record_pos(Backend *b, Op *op, int pos) {
    Cuda *c = cuda_of(b);
    if (c->pos_arg < 0 || c->arg[c->pos_arg] != pos) {
        c->pos_arg = c->n_arg;
        put(c, &pos, 1);
    }
    op->arg = c->pos_arg;
}

static void copy_kv(KvLayer *to, const KvLayer *kv) {
    to->k = kv->k, to->v = kv->v;
    to->n_cell = kv->n_cell, to->n_head_kv = kv->n_head_kv, to->head_dim = kv->head_dim;
    to->type_k = kv->type_k, to->type_v = kv->type_v;
}

// A few rows of a table that stays on the host, unpacked here; they go with the other arguments.
static void record_few_rows(Backend *b, float *y, const Tensor *table, const int *ids, int n_rows, float scale) {
    Cuda *c = cuda_of(b);
    const int n_col = table->n_col, n = n_rows * n_col;
    Op *op = record(b, OP_ROWS, n_rows, n);
    float *to = (float *)(c->arg + c->n_arg);
    op->rows.y = y, op->rows.n = n;
    for (int i = 0; i < n_rows; i++) type_info(table->type)->to_f32(tensor_row(table, 0, ids[i]), to + (size_t)i * n_col, n_col);
    for (int i = 0; i < n; i++) to[i] *= scale;
    c->n_arg += (n + 3) / 4 * 4;
}

typedef struct {
    char *to;
    const Tensor *table;
    const int *ids;
    size_t bytes; // of a row
} Gather;

static void gather_row(const void *args, int i, int thread) {
    const Gather *g = (const Gather *)args;
    (void)thread;
    memcpy(g->to + (size_t)i * g->bytes, tensor_row(g->table, 0, g->ids[i]), g->bytes);
}

// Many rows of such a table: as they are in the file through a pinned buffer, and unpacked there, as it is done with a table that is on the device. The
// half of c->raw takes them, the other half their planes.
static void send_rows(Backend *b, float *y, const Tensor *table, const int *ids, int n_rows, float scale) {
    enum { HALF = STAGE_BYTES / 2, PADDING = 256 };
    Cuda *c = cuda_of(b);
    const TypeInfo *info = type_info(table->type);
    const Format f = format_of(table->type);
    const size_t row = (size_t)type_row_bytes(table->type, table->n_col);
    const int most = (int)((HALF - PADDING) / row);
    if (!most || !cuda_supports(table->type)) {
        backend_fail(b, "cuda backend: %s: rows of %d, %s, cannot be sent", table->name, table->n_col, info->name);
        return;
    }
    cuda_flush(b);
    for (int r = 0, k; r < n_rows; r += k) {
        k = min_int(most, n_rows - r);
        char *stage = cuda_stage(b);
        Tensor rows = {};
        rows.type = table->type, rows.n_row = k, rows.n_col = table->n_col, rows.n_slice = 1;
        rows.dev = c->raw + HALF;
        const Weights w = weights_of(&rows);
        const Gather g = {stage, table, ids + r, row};
        if (stage && !CU_HOST_FILLS(row * (size_t)k)) pool_run(c->pool, gather_row, &g, k);
        if (!stage || !cuda_send_stage(b, f.groups ? c->raw : rows.dev, row * (size_t)k) ||
            (f.groups && !cuda_lay_out(b, c->stream, table->type, &w, 0, c->raw, k * (table->n_col / info->block)))) return;
        embed_cuda(b, y + (size_t)r * table->n_col, &rows, NULL, k, scale);
    }
}

static void record_embed(Backend *b, float *y, const Tensor *table, const int *ids, int n_rows, float scale) {
    if (!table->dev) {
        (n_rows <= MAX_MATVEC_ROWS && (int64_t)n_rows * table->n_col <= ARG_WORDS ? record_few_rows : send_rows)(b, y, table, ids, n_rows, scale);
        return;
    }
    for (int r = 0, n; r < n_rows; r += n) {
        n = min_int(n_rows - r, ARG_WORDS / 2);
        Op *op = record(b, OP_EMBED, n, n + 4);
        op->embed = {y + (size_t)r * table->n_col, table, n, scale};
        put(cuda_of(b), ids + r, n);
    }
}

static void record_norm(Backend *b, float *y, const Tensor *w, const float *x, int n_rows, int n_col, float eps) {
    if (!n_rows || !cuda_here(b, &w, NULL)) return;
    Op *op = record(b, OP_NORM, 1, 0); // rows may be heads
    op->norm.y = y, op->norm.w = w, op->norm.x = x, op->norm.n_rows = n_rows, op->norm.n_col = n_col, op->norm.eps = eps;
}

static void record_product(Backend *b, float *y, const Tensor *w, const Tensor *bias, const float *x, int n_rows) {
    Op *op = record(b, OP_MATMUL, n_rows, 0);
    op->matmul.p = {y, w, bias};
    op->matmul.x = x, op->matmul.n_rows = n_rows;
}

static void record_copy_rows(Backend *b, float *dst, int dst_stride, const float *src, int src_stride, int n_rows, int n_col) {
    record(b, OP_COPY_ROWS, n_rows, 0)->copy_rows = {dst, src, dst_stride, src_stride, n_rows, n_col};
}

static void record_matmul(Backend *b, float *y, const Tensor *w, const Tensor *bias, const float *x, int n_rows) {
    const int n_row = w->n_row, step = cuda_rows_here(b, w, n_rows);
    if (!n_rows || (!step && !cuda_here(b, &w, &bias))) return;
    if (!step) record_product(b, y, w, bias, x, n_rows);
    for (int first = 0, n; first < n_row && step; first += n) { // pieces of W on their way; each to its columns of y
        const Tensor *piece = w, *its_bias = bias;
        n = min_int(step, n_row - first);
        float *part = cuda_borrow_rows(b, &piece, &its_bias, first, n, n_rows);
        if (!part) return;
        record_product(b, part, piece, its_bias, x, n_rows);
        record_copy_rows(b, y + first, n_row, part, n, n_rows, n);
    }
}

static void record_matmuls(Backend *b, const Matmul *m, int n, const float *x, int n_rows) {
    for (int k = 0; k < n; k++) record_matmul(b, m[k].y, m[k].w, m[k].bias, x, n_rows);
}

static void record_rope(Backend *b, float *x, const Rope *rope, int n_rows, int n_head, int head_dim, int pos) {
    Op *op = record(b, OP_ROPE, n_rows, 4);
    op->rope.x = x, op->rope.n_rows = n_rows, op->rope.n_head = n_head, op->rope.head_dim = head_dim;
    Rope *to = &op->rope.rope;
    to->pairing = rope->pairing, to->n_rot = rope->n_rot, to->magnitude = rope->magnitude, to->freq = rope->freq;
    record_pos(b, op, pos);
}

static void record_kv_write(Backend *b, const KvLayer *kv, const float *k, const float *v, int n_rows, int pos) {
    Op *op = record(b, OP_KV_WRITE, n_rows, 4);
    copy_kv(&op->kv_write.kv, kv);
    op->kv_write.k = k, op->kv_write.v = v, op->kv_write.n_rows = n_rows;
    record_pos(b, op, pos);
}

static void record_kv_copy(Backend *b, const KvLayer *to, const KvLayer *from, int n, int pos) {
    Op *op = record(b, OP_KV_COPY, 1, 4); // a launch, however many cells
    copy_kv(&op->kv_copy.to, to);
    copy_kv(&op->kv_copy.from, from);
    op->kv_copy.n = n;
    record_pos(b, op, pos);
}

static void record_attention(Backend *b, const AttentionArgs *a) {
    Op *op = record(b, OP_ATTENTION, a->n_rows, 4);
    op->attention.a = *a; // no padding
    op->attention.a.kv = NULL;
    copy_kv(&op->attention.kv, a->kv);
    if (a->n_rows <= MAX_MATVEC_ROWS) {
        int64_t bucket = 256;
        while (bucket < (int64_t)a->pos + a->n_rows) bucket *= 2;
        op->attention.a.pos = (int)(bucket - a->n_rows);
    }
    record_pos(b, op, a->pos);
}

static void record_gated(Backend *b, float *y, const float *gate, const float *up, int64_t n, Activation act) {
    Op *op = record(b, OP_GATED, 1, 0);
    op->gated.y = y, op->gated.gate = gate, op->gated.up = up, op->gated.n = n, op->gated.act = act;
}

static void record_gated_matmul(Backend *b, const GatedArgs *a) {
    const int n_ff = a->gate->n_row;
    record_matmul(b, a->y, a->gate, a->gate_bias, a->x, a->n_rows);
    if (a->up) record_matmul(b, a->scratch, a->up, a->up_bias, a->x, a->n_rows);
    else record_copy_rows(b, a->scratch, n_ff, a->factor, a->factor_stride, a->n_rows, n_ff);
    record_gated(b, a->y, a->y, a->scratch, (int64_t)a->n_rows * n_ff, a->act);
}

static void record_moe_route(Backend *b, int *expert, float *weight, const float *logits, const Tensor *scale, int n_rows, int n_expert, int n_used) {
    if (!cuda_here(b, &scale, NULL)) return;
    Op *op = record(b, OP_MOE_ROUTE, n_rows, 0);
    op->moe_route.expert = expert, op->moe_route.weight = weight, op->moe_route.logits = logits, op->moe_route.scale = scale;
    op->moe_route.n_rows = n_rows, op->moe_route.n_expert = n_expert, op->moe_route.n_used = n_used;
}

static void copy_moe(MoeArgs *to, const MoeArgs *a) {
    to->y = a->y, to->gate = a->gate, to->up = a->up, to->down = a->down, to->x = a->x, to->expert = a->expert, to->weight = a->weight;
    to->slot = a->slot;
    to->n_rows = a->n_rows, to->n_used = a->n_used, to->act = a->act;
}

static void record_moe_ffn(Backend *b, const MoeArgs *a) { copy_moe(&record(b, OP_MOE_FFN, a->n_rows, 0)->moe_ffn, a); }

static void record_moe_lend(Backend *b, const MoeArgs *a) {
    Cuda *c = cuda_of(b);
    const Limits *l = &c->limits;
    if (!c->handoff || a->n_rows > l->n_rows || a->n_used > l->n_expert_used || a->gate->n_col != a->down->n_row || a->down->n_row > l->n_embd) {
        backend_fail(b, "cuda backend: %s: %d rows cannot be lent, nothing was reserved for it", a->gate->name, a->n_rows);
        return;
    }
    if (c->n_lent) backend_fail(b, "cuda backend: %s is lent before what was lent is collected", a->gate->name);
    Op *op = record(b, OP_MOE_LEND, a->n_rows, 0);
    copy_moe(&op->moe_lend.a, a);
    op->moe_lend.a.y = NULL;
    op->moe_lend.batch = b->batch;
    c->n_lent = (int64_t)a->n_rows * a->down->n_row;
}

static void record_moe_collect(Backend *b, float *y, int n_rows, int n_embd, bool add) {
    Cuda *c = cuda_of(b);
    if (c->n_lent != (int64_t)n_rows * n_embd) {
        backend_fail(b, "cuda backend: %d rows of %d are collected, %lld numbers were lent", n_rows, n_embd, (long long)c->n_lent);
        return;
    }
    Op *op = record(b, OP_MOE_COLLECT, n_rows, 0);
    op->moe_collect.y = y, op->moe_collect.n_rows = n_rows, op->moe_collect.n_embd = n_embd, op->moe_collect.add = add;
    c->n_lent = 0;
}

static void record_add(Backend *b, float *x, const float *y, int64_t n) { record(b, OP_ADD, 1, 0)->add = {x, y, n}; }

static void record_scale(Backend *b, float *x, float s, int64_t n) {
    Op *op = record(b, OP_SCALE, 1, 0);
    op->scale.x = x, op->scale.by = s, op->scale.n = n;
}

static void record_softcap(Backend *b, float *x, float cap, int64_t n) {
    Op *op = record(b, OP_SOFTCAP, 1, 0);
    op->softcap.x = x, op->softcap.by = cap, op->softcap.n = n;
}

static void record_project_out(Backend *b, const ProjectArgs *a) {
    ProjectArgs *to = &record(b, OP_PROJECT_OUT, a->n_rows, 0)->project_out;
    to->x = a->x, to->dir = a->dir, to->n_rows = a->n_rows, to->n_col = a->n_col, to->amount = a->amount, to->keep = a->keep, to->one_sided = a->one_sided;
}

static void record_add_dir(Backend *b, float *x, const float *dir, int n_rows, int n_col, float amount) {
    Op *op = record(b, OP_ADD_DIR, n_rows, 0);
    op->add_dir.x = x, op->add_dir.dir = dir, op->add_dir.n_rows = n_rows, op->add_dir.n_col = n_col, op->add_dir.amount = amount;
}

static void record_top(Backend *b, const TopArgs *a) {
    TopArgs *to = &record(b, OP_TOP, a->n_rows, 0)->top;
    to->y = a->y, to->logits = a->logits, to->bias = a->bias, to->n_rows = a->n_rows, to->n_vocab = a->n_vocab, to->k = a->k;
}

static void record_mul_cols(Backend *b, float *x, const Tensor *w, int n_rows) {
    Op *op = record(b, OP_MUL_COLS, n_rows, 0);
    op->mul_cols.x = x, op->mul_cols.w = w, op->mul_cols.n_rows = n_rows;
}

static void record_mix_streams(Backend *b, float *y, const float *coef, const float *x, int n_out, int n_in, int n_rows, int n_col) {
    record(b, OP_MIX_STREAMS, n_rows, 0)->mix_streams = {y, coef, x, n_out, n_in, n_rows, n_col};
}

static void record_match_length(Backend *b, float *u, const float *target, int n_rows, int n_col) {
    record(b, OP_MATCH_LENGTH, n_rows, 0)->match_length = {u, target, n_rows, n_col};
}

static void record_sparsify(Backend *b, float *x, float multiplier, int n_rows, int n_col) {
    Op *op = record(b, OP_SPARSIFY, n_rows, 0);
    op->sparsify.x = x, op->sparsify.multiplier = multiplier, op->sparsify.n_rows = n_rows, op->sparsify.n_col = n_col;
}

bool cuda_open_queue(Backend *b) {
    Cuda *c = cuda_of(b);
    c->op = (Op *)malloc(sizeof(Op) * MAX_OPS);
    c->arg = (int *)malloc(sizeof(int) * ARG_WORDS);
    c->replay = (Replay *)calloc(N_REPLAY, sizeof(Replay));
    c->may_repeat = true;
    c->pos_arg = -1;
    if (!c->op || !c->arg || !c->replay) backend_fail(b, "no memory");
    if (b->first_error.text[0] || !cuda_check(b, "memory", cudaMalloc((void **)&c->arg_dev, sizeof(int) * ARG_WORDS))) return false;
    b->embed = record_embed;
    b->norm = record_norm;
    b->matmul = record_matmul;
    b->matmuls = record_matmuls;
    b->rope = record_rope;
    b->kv_write = record_kv_write;
    b->kv_copy = record_kv_copy;
    b->attention = record_attention;
    b->gated = record_gated;
    b->gated_matmul = record_gated_matmul;
    b->moe_route = record_moe_route;
    b->moe_ffn = record_moe_ffn;
    b->moe_lend = record_moe_lend;
    b->moe_collect = record_moe_collect;
    b->add = record_add;
    b->scale = record_scale;
    b->softcap = record_softcap;
    b->project_out = record_project_out;
    b->add_dir = record_add_dir;
    b->copy_rows = record_copy_rows;
    b->top = record_top;
    b->mul_cols = record_mul_cols;
    b->mix_streams = record_mix_streams;
    b->match_length = record_match_length;
    b->sparsify = record_sparsify;
    return true;
}

void cuda_close_queue(Backend *b) {
    Cuda *c = cuda_of(b);
    cuda_forget_graphs(b);
    if (c->arg_dev) cudaFree(c->arg_dev);
    free(c->op);
    free(c->arg);
    free(c->replay);
}

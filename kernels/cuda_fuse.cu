// cuda_fuse.cu: runs recorded ops. Neighbours that make one step of a layer go into one launch; what they leave in their buffers
// is the same as one by one. A tap that changes the stream between two of them has recorded an op there: a projection joins
// them, with anything else they are no neighbours, and each runs by itself. Steps, and how many launches a dense layer needs of them:
//
//   between   [norms] [projection] add [scale] [projection] norm [scale] [rounding]             2
//   product   all matrices of one type that read the same rows: queries, keys, values           1 or 2, output 1, down 1
//   heads     [norms of queries, keys, values] rope rope kv_write                               1
//   attend    attention [rounding with the merge of its parts]                                  2
//   gated     gate and up matrices (or gate and a vector), activation [rounding], for one row   1
//   steps     sums, scales, copies of as many elements, one after the other: Gemma 3n's streams
#include "cuda_queue.cuh"

// What comes next reads x rounded; a router, and what is lent, may come before.
static bool next_rounds(const Backend *b, const Op *op, const Op *end, const float *x) {
    while (op < end && ((op->kind == OP_MATMUL && op->matmul.x == x && !cuda_rounds(b, op->matmul.p.w, op->matmul.n_rows)) || op->kind == OP_MOE_ROUTE ||
                        op->kind == OP_MOE_LEND)) op++;
    if (op == end) return false;
    if (op->kind == OP_MATMUL) return op->matmul.x == x && cuda_rounds(b, op->matmul.p.w, op->matmul.n_rows);
    return op->kind == OP_MOE_FFN && op->moe_ffn.x == x && cuda_rounds(b, op->moe_ffn.gate, op->moe_ffn.n_rows);
}

// The functions below run what begins at op, if it is their step, and return how many ops that were; 0: it is not. Those that
// have rounded something say so by cuda_has_rounded.

static bool is_in_place(const Op *op) { return op->kind == OP_NORM && op->norm.y == op->norm.x; }

static int between(Backend *b, const Op *op, const Op *end) {
    Cuda *c = cuda_of(b);
    const Op *at = op;
    Between a = {};
    int64_t n = 0;   // elements, of all that takes part
    bool one = true; // they have one shape
    auto shape = [&](int n_rows, int n_col) {
        if (!n) n = (int64_t)n_rows * n_col;
        if (!a.n_col) a.n_col = n_col;
        one = one && n_col == a.n_col && n == (int64_t)n_rows * n_col;
    };
    auto gain = [&](const Op *norm) {
        shape(norm->norm.n_rows, norm->norm.n_col);
        return Gain{cuda_vector(b, norm->norm.w), norm->norm.eps};
    };
    auto project = [&](Projection *p, const float *x) {
        if (at == end || at->kind != OP_PROJECT_OUT || at->project_out.x != x) return;
        const ProjectArgs *q = &at++->project_out;
        shape(q->n_rows, q->n_col);
        *p = {q->dir, q->amount, q->keep, q->one_sided};
    };
    // What is done to the output, and to what it is added to: [norm out] [norm x] [projection]
    const Op *add = at;
    while (add < end && add < op + 3 && (is_in_place(add) || add->kind == OP_PROJECT_OUT)) add++;
    if (add < end && add->kind == OP_ADD) {
        a.x = add->add.x;
        a.out = (float *)add->add.y;
        n = add->add.n;
        if (is_in_place(at) && at->norm.y == a.out) a.norm_out = gain(at++);
        if (is_in_place(at) && at->norm.y == a.x && a.norm_out.eps > 0) a.norm_x = gain(at++);
        project(&a.from_out, a.out);
        if (at++ != add) return 0;
        if (at < end && at->kind == OP_SCALE && at->scale.x == a.x && at->scale.n == n) a.scale = at++->scale.by;
        else a.scale = 1;
    } else a.x = op->kind == OP_PROJECT_OUT ? op->project_out.x : op->kind == OP_NORM ? (float *)op->norm.x : NULL;
    project(&a.from_x, a.x);
    if (at < end && at->kind == OP_NORM && at->norm.x == a.x && at->norm.eps > 0) {
        a.y = at->norm.y;
        a.norm_y = gain(at++);
        a.y_scale = 1;
        if (at < end && at->kind == OP_SCALE && at->scale.x == a.y && at->scale.n == n) a.y_scale = at++->scale.by;
    }
    if (!a.n_col || !one || !cuda_fits_between(a.n_col)) return 0;
    const float *last = a.y ? a.y : a.x;
    a.round = a.n_col % 32 == 0 && a.n_col <= c->limits.n_col && next_rounds(b, at, end, last);
    a.y8 = c->act8;
    if (at == op + 1 && !a.round) return 0;
    cuda_between(b, &a, (int)(n / a.n_col));
    if (a.round) cuda_has_rounded(c, last, n, c->act8);
    return (int)(at - op);
}

// act(gate x) * (up x), or times a vector that is brought to its place first (per-layer inputs)
static int gated(Backend *b, const Op *op, const Op *end) {
    Cuda *c = cuda_of(b);
    if (end - op < 3 || op->kind != OP_MATMUL || op->matmul.n_rows != 1 || op->matmul.p.bias || op[2].kind != OP_GATED) return 0;
    const Matmul *gate = &op->matmul.p;
    const Tensor *up = NULL;
    const float *up_x = NULL;
    float *up_y = NULL;
    if (op[1].kind == OP_MATMUL && op[1].matmul.x == op->matmul.x && op[1].matmul.n_rows == 1 && !op[1].matmul.p.bias)
        up = op[1].matmul.p.w, up_y = op[1].matmul.p.y;
    else if (op[1].kind == OP_COPY_ROWS && op[1].copy_rows.n_rows == 1 && op[1].copy_rows.n_col == gate->w->n_row)
        up_x = op[1].copy_rows.src, up_y = op[1].copy_rows.dst;
    if (!up_y || up_y == op->matmul.x || op[2].gated.gate != gate->y || op[2].gated.y != gate->y || op[2].gated.up != up_y || op[2].gated.n != gate->w->n_row) return 0;
    const bool round = next_rounds(b, op + 3, end, gate->y);
    if (!cuda_gated_matmul(b, gate->y, up_y, gate->w, up, up_x, op->matmul.x, op[2].gated.act, round)) return 0;
    cuda_has_rounded(c, round ? gate->y : NULL, gate->w->n_row, c->gated8);
    return 3;
}

static int product(Backend *b, const Op *op, const Op *end) {
    if (op->kind != OP_MATMUL) return 0;
    const float *x = op->matmul.x;
    Matmul p[8];
    int n = 0;
    while (n < 8 && op + n < end && op[n].kind == OP_MATMUL && op[n].matmul.x == x && op[n].matmul.n_rows == op->matmul.n_rows) {
        p[n] = op[n].matmul.p;
        n++;
    }
    cuda_matmul(b, p, n, x, op->matmul.n_rows);
    for (int k = 0; k < n; k++)
        if (p[k].y == cuda_of(b)->rounded) cuda_of(b)->rounded = NULL;
    return n;
}

static bool same_rope(const Rope *a, const Rope *b) {
    return a->freq == b->freq && a->n_rot == b->n_rot && a->pairing == b->pairing && a->magnitude == b->magnitude;
}

static int heads(Backend *b, const Op *op, const Op *end) {
    const Cuda *c = cuda_of(b);
    const Op *norm[3], *at = op;
    int n_norm = 0;
    while (at < end && n_norm < 3 && at->kind == OP_NORM && at->norm.y == at->norm.x) norm[n_norm++] = at++;
    if (at == end || at->kind != OP_ROPE) return 0;
    Heads h = {};
    h.q = at->rope.x, h.rope = at->rope.rope, h.n_rows = at->rope.n_rows, h.n_head = at->rope.n_head, h.head_dim = at->rope.head_dim;
    h.pos = c->arg_dev + at->arg;
    const int pos = at->arg; // equal positions have one place
    at++;
    if (at + 1 < end && at->kind == OP_ROPE && at[1].kind == OP_KV_WRITE && at->rope.x == at[1].kv_write.k && at->rope.n_rows == h.n_rows &&
        at[1].kv_write.n_rows == h.n_rows && at->rope.head_dim == h.head_dim && same_rope(&at->rope.rope, &h.rope) &&
        at->rope.n_head == at[1].kv_write.kv.n_head_kv && at[1].kv_write.kv.head_dim == h.head_dim && at->arg == pos && at[1].arg == pos) {
        h.k = at->rope.x, h.v = (float *)at[1].kv_write.v, h.kv = at[1].kv_write.kv;
        h.k_scale = cuda_key_scales(&h.kv), h.v_scale = cuda_value_scales(&h.kv);
        at += 2;
    }
    if (at == op + 1 || h.head_dim > 512) return 0;
    float *const rows[3] = {h.q, h.k, h.v};
    for (int i = 0; i < n_norm; i++) {
        int which = 0;
        while (which < 3 && rows[which] != norm[i]->norm.x) which++;
        const int n_head = which == 0 ? h.n_head : h.kv.n_head_kv;
        if (which == 3 || h.eps[which] > 0 || !(norm[i]->norm.eps > 0) || norm[i]->norm.n_col != h.head_dim || norm[i]->norm.n_rows != h.n_rows * n_head) return 0;
        h.gain[which] = cuda_vector(b, norm[i]->norm.w);
        h.eps[which] = norm[i]->norm.eps;
    }
    cuda_heads(b, &h);
    return (int)(at - op);
}

// One op as a step; the number of its elements, 0: it is none.
static int64_t step_of(Backend *b, const Op *op, Step *p) {
    *p = {};
    switch (op->kind) {
    case OP_ADD:
        p->kind = STEP_ADD, p->x = op->add.x, p->y = op->add.y;
        return op->add.n;
    case OP_SCALE:
        p->kind = STEP_SCALE, p->x = op->scale.x, p->s = op->scale.by;
        return op->scale.n;
    case OP_SOFTCAP:
        p->kind = STEP_SOFTCAP, p->x = op->softcap.x, p->s = op->softcap.by;
        return op->softcap.n;
    case OP_COPY_ROWS:
        if (op->copy_rows.dst_stride != op->copy_rows.n_col || op->copy_rows.src_stride != op->copy_rows.n_col) return 0;
        p->kind = STEP_COPY, p->x = op->copy_rows.dst, p->y = op->copy_rows.src;
        return (int64_t)op->copy_rows.n_rows * op->copy_rows.n_col;
    case OP_MUL_COLS:
        p->kind = STEP_MUL_COLS, p->x = op->mul_cols.x, p->n_col = op->mul_cols.w->n_col;
        return (p->y = cuda_vector(b, op->mul_cols.w)) ? (int64_t)op->mul_cols.n_rows * p->n_col : 0;
    default: return 0;
    }
}

// An element of the one is an element of the other, if of any, at the same place.
static bool in_step(const float *a, const float *b, int64_t n) { return !a || !b || a == b || a + n <= b || b + n <= a; }

static int steps(Backend *b, const Op *op, const Op *end) {
    Steps a = {};
    int64_t n = 0;
    for (const Op *at = op; at < end && a.n < MAX_STEPS; at++) {
        Step p;
        const int64_t size = step_of(b, at, &p);
        const Op *after = at + 1 < end && at[1].kind == OP_SCALE ? at + 2 : at + 1;
        const bool begins_between = at->kind == OP_ADD && after < end && after->kind == OP_NORM && after->norm.x == at->add.x;
        bool fits = size > 0 && (!n || size == n) && !begins_between;
        for (int k = 0; k < a.n && fits; k++) {
            const Step *q = &a.step[k];
            const float *const y = p.kind == STEP_MUL_COLS ? NULL : p.y, *const other = q->kind == STEP_MUL_COLS ? NULL : q->y;
            fits = in_step(p.x, q->x, n) && in_step(p.x, other, n) && in_step(y, q->x, n);
        }
        if (!fits) break;
        n = size;
        a.step[a.n++] = p;
    }
    if (a.n < 2) return 0;
    cuda_steps(b, &a, n);
    return a.n;
}

static void one(Backend *b, const Op *op, const Op *next, const Op *end) {
    Cuda *c = cuda_of(b);
    const int *arg = c->arg_dev + op->arg;
    switch (op->kind) {
    case OP_EMBED: embed_cuda(b, op->embed.y, op->embed.table, arg, op->embed.n_rows, op->embed.scale); break;
    case OP_ROWS: copy_rows_cuda(b, op->rows.y, 0, (const float *)arg, 0, 1, (int)op->rows.n); break;
    case OP_NORM: norm_cuda(b, op->norm.y, op->norm.w, op->norm.x, op->norm.n_rows, op->norm.n_col, op->norm.eps); break;
    case OP_MATMUL: break; // product
    case OP_ROPE: rope_cuda(b, op->rope.x, &op->rope.rope, op->rope.n_rows, op->rope.n_head, op->rope.head_dim, arg); break;
    case OP_KV_WRITE: kv_write_cuda(b, &op->kv_write.kv, op->kv_write.k, op->kv_write.v, op->kv_write.n_rows, arg); break;
    case OP_KV_COPY: kv_copy_cuda(b, &op->kv_copy.to, &op->kv_copy.from, op->kv_copy.n, arg); break;
    case OP_ATTENTION: {
        AttentionArgs a = op->attention.a;
        a.kv = &op->attention.kv;
        const bool round = a.n_head * a.kv->head_dim <= c->limits.n_col && next_rounds(b, next, end, a.y);
        if (attention_cuda(b, &a, arg, round)) cuda_has_rounded(c, a.y, (int64_t)a.n_rows * a.n_head * a.kv->head_dim, c->act8);
        break;
    }
    case OP_GATED: gated_cuda(b, op->gated.y, op->gated.gate, op->gated.up, op->gated.n, op->gated.act); break;
    case OP_MOE_ROUTE:
        moe_route_cuda(b, op->moe_route.expert, op->moe_route.weight, op->moe_route.logits, op->moe_route.scale, op->moe_route.n_rows,
                       op->moe_route.n_expert, op->moe_route.n_used);
        break;
    case OP_MOE_FFN: moe_ffn_cuda(b, &op->moe_ffn); break;
    case OP_MOE_LEND: moe_lend_cuda(b, &op->moe_lend.a); break;
    case OP_MOE_COLLECT: moe_collect_cuda(b, op->moe_collect.y, op->moe_collect.n_rows, op->moe_collect.n_embd, op->moe_collect.add); break;
    case OP_ADD: add_cuda(b, op->add.x, op->add.y, op->add.n); break;
    case OP_SCALE: scale_cuda(b, op->scale.x, op->scale.by, op->scale.n); break;
    case OP_SOFTCAP: softcap_cuda(b, op->softcap.x, op->softcap.by, op->softcap.n); break;
    case OP_PROJECT_OUT: project_out_cuda(b, &op->project_out); break;
    case OP_ADD_DIR: add_dir_cuda(b, op->add_dir.x, op->add_dir.dir, op->add_dir.n_rows, op->add_dir.n_col, op->add_dir.amount); break;
    case OP_COPY_ROWS:
        copy_rows_cuda(b, op->copy_rows.dst, op->copy_rows.dst_stride, op->copy_rows.src, op->copy_rows.src_stride, op->copy_rows.n_rows, op->copy_rows.n_col);
        break;
    case OP_TOP: top_cuda(b, &op->top); break;
    case OP_MUL_COLS: mul_cols_cuda(b, op->mul_cols.x, op->mul_cols.w, op->mul_cols.n_rows); break;
    case OP_MIX_STREAMS:
        mix_streams_cuda(b, op->mix_streams.y, op->mix_streams.coef, op->mix_streams.x, op->mix_streams.n_out, op->mix_streams.n_in, op->mix_streams.n_rows,
                         op->mix_streams.n_col);
        break;
    case OP_MATCH_LENGTH: match_length_cuda(b, op->match_length.u, op->match_length.target, op->match_length.n_rows, op->match_length.n_col); break;
    case OP_SPARSIFY: sparsify_cuda(b, op->sparsify.x, op->sparsify.multiplier, op->sparsify.n_rows, op->sparsify.n_col); break;
    }
}

void cuda_run_ops(Backend *b, const Op *op, int n) {
    Cuda *c = cuda_of(b);
    const Op *end = op + n;
    for (int used; op < end && !b->first_error.text[0]; CU_RAN(b, op, used), op += used) {
        if ((used = gated(b, op, end)) > 0 || (used = product(b, op, end)) > 0) continue;
        if (op->kind != OP_MOE_ROUTE && op->kind != OP_MOE_LEND && op->kind != OP_MOE_FFN) c->rounded = NULL; // it may be another op's output
        if ((used = heads(b, op, end)) > 0 || (used = between(b, op, end)) > 0 || (used = steps(b, op, end)) > 0) continue;
        one(b, op, op + 1, end);
        if (op->kind == OP_MOE_FFN) c->rounded = NULL;
        used = 1;
    }
    c->rounded = NULL;
}

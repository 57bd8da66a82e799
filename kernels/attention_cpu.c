// attention_cpu.c: the float16 KV cache of one layer, and softmax(scale q.k) v over it.
//
// Queries that read the same KV head (neighbouring rows, and the heads of a group) go through together, up to VEC_ROWS at a
// time, so that each key and value is loaded and widened once for all of them. Scores of all visible keys are kept, in
// float32: first pass q.k, softmax, second pass over the values. Values are summed in tiles of KEY_TILE positions at fixed
// places, first inside a tile and then over tiles: a long sum loses less, and the result does not depend on how the rows were
// batched. Per query and key: 4 head_dim bytes of cache read (shared), 4 head_dim floating point operations.
#include <math.h>
#include "cpu.h"

typedef struct {
    const VecTable *vec;
    const KvLayer *kv;
    const float *k, *v;
    int pos;
} KvWrite;

static void kv_write_row(const void *args, int r, int thread) {
    const KvWrite *a = args;
    (void)thread;
    const KvLayer *kv = a->kv;
    const int n = kv->head_dim, n_head = kv->n_head_kv;
    for (int h = 0; h < n_head; h++) {
        const int64_t from = ((int64_t)r * n_head + h) * n, to = ((int64_t)h * kv->n_cell + (a->pos + r) % kv->n_cell) * n;
        a->vec->to_f16((F16 *)kv->k + to, a->k + from, n);
        a->vec->to_f16((F16 *)kv->v + to, a->v + from, n);
    }
}

void kv_write_cpu(Backend *b, const KvLayer *kv, const float *k, const float *v, int n_rows, int pos) {
    share(b, (int64_t)n_rows * kv->n_head_kv * kv->head_dim, kv_write_row, &(KvWrite){cpu_of(b)->vec, kv, k, v, pos}, n_rows);
}

// Queries first .. first + n_q - 1 of KV head h; query i is row i / group, head h * group + i % group.
static void attend(const Cpu *c, const AttentionArgs *a, int h, int first, int n_q, float *score) {
    const KvLayer *kv = a->kv;
    const int n = kv->head_dim, group = a->n_head / kv->n_head_kv;
    const int64_t head = (int64_t)h * kv->n_cell * n, stride = c->score_stride;
    const float *q[VEC_ROWS];
    float *y[VEC_ROWS];
    int begin[VEC_ROWS], end[VEC_ROWS]; // visible positions of each query
    for (int i = 0; i < n_q; i++) {
        const int r = (first + i) / group, pos = a->pos + r;
        const int64_t at = ((int64_t)r * a->n_head + h * group + (first + i) % group) * n;
        q[i] = a->q + at;
        y[i] = a->y + at;
        end[i] = pos + 1;
        begin[i] = a->window > 0 ? max_int(0, pos - a->window + 1) : 0;
    }
    const int from = begin[0], to = end[n_q - 1]; // what any of them sees
    assert(to - from <= stride);
    c->vec->keys(score, stride, q, n_q, &(KeySpan){(const F16 *)kv->k + head, kv->n_cell, n, from % kv->n_cell, to - from});

    float total[VEC_ROWS];
    for (int i = 0; i < n_q; i++) {
        float *s = score + i * stride, *seen = s + (begin[i] - from);
        const int n_seen = end[i] - begin[i];
        for (int j = 0; j < n_seen; j++) seen[j] *= a->scale;
        if (a->softcap > 0) c->vec->softcap(seen, a->softcap, n_seen);
        total[i] = c->vec->exp_sum(seen, c->vec->largest(seen, n_seen), n_seen);
        for (int j = from; j < begin[i]; j++) s[j - from] = 0;
        for (int j = end[i]; j < to; j++) s[j - from] = 0;
        memset(y[i], 0, sizeof(float) * (size_t)n);
    }
    for (int j = from, next; j < to; j = next) {
        next = min_int(to, (j / KEY_TILE + 1) * KEY_TILE);
        c->vec->values(y, score + (j - from), stride, n_q, &(KeySpan){(const F16 *)kv->v + head, kv->n_cell, n, j % kv->n_cell, next - j});
    }
    for (int i = 0; i < n_q; i++) {
        const float s = 1 / total[i];
        for (int k = 0; k < n; k++) y[i][k] *= s;
    }
}

typedef struct {
    const Cpu *c;
    const AttentionArgs *a;
    int each, n_tile, n_query;
} Attention;

static void attend_tile(const void *args, int item, int thread) {
    const Attention *t = args;
    const int first = item % t->n_tile * t->each;
    attend(t->c, t->a, item / t->n_tile, first, min_int(t->each, t->n_query - first), t->c->score + (int64_t)thread * VEC_ROWS * t->c->score_stride);
}

void attention_cpu(Backend *b, const AttentionArgs *a) {
    const Cpu *c = cpu_of(b);
    const int n_head_kv = a->kv->n_head_kv, n_query = a->n_rows * (a->n_head / n_head_kv); // per KV head
    int each = VEC_ROWS;
    while (each > 1 && n_head_kv * ceil_div(n_query, each) < c->n_thread) each /= 2;
    const int n_tile = ceil_div(n_query, each);
    const int n_seen = a->window > 0 ? min_int(a->window, a->pos + a->n_rows) : a->pos + a->n_rows;
    share(b, (int64_t)a->n_head * a->n_rows * a->kv->head_dim * n_seen, attend_tile, &(Attention){c, a, each, n_tile, n_query}, n_head_kv * n_tile);
}

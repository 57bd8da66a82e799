// attention_cpu.c: the float16 KV cache of one layer, and softmax(scale q.k) v over it.
//
// Queries that read the same KV head (neighbouring rows, and the heads of a group) go through together.
//
// Few rows: up to VEC_ROWS queries at a time, so that each key and value is loaded and widened once for all of them. Scores of
// all visible keys are kept, in float32: first pass q.k, softmax, second pass over the values. Values are summed in tiles of
// KEY_TILE positions at fixed places, first inside a tile and then over tiles: a long sum loses less. Per query and key:
// 4 head_dim bytes of cache read (shared), 4 head_dim floating point operations.
//
// The rows of a prompt: up to MANY_QUERIES queries at a time against tiles of GEMM_TILE_ROWS positions, with the products of
// gemm.h: scores = q k, values weighted by them. The softmax goes along (Milakov and Gimelshein, arXiv 1805.02867): when a tile
// has a higher score than all before, what has been summed is multiplied by exp(old highest - new highest).
// Either way the result does not depend on how the rows were batched; which way is decided as in gemm_cpu.c.
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

// Query i of KV head h is row i / group, head h * group + i % group, at this offset of q and y. It sees positions [*begin, *end).
static int64_t find_query(const AttentionArgs *a, int h, int i, int *begin, int *end) {
    const int group = a->n_head / a->kv->n_head_kv, r = i / group, pos = a->pos + r;
    *end = pos + 1;
    *begin = a->window > 0 ? max_int(0, pos - a->window + 1) : 0;
    return ((int64_t)r * a->n_head + h * group + i % group) * a->kv->head_dim;
}

// Queries first .. first + n_q - 1 of KV head h, all their keys at once.
static void attend(const Cpu *c, const AttentionArgs *a, int h, int first, int n_q, float *score) {
    const KvLayer *kv = a->kv;
    const int n = kv->head_dim;
    const int64_t head = (int64_t)h * kv->n_cell * n, stride = c->score_stride;
    const float *q[VEC_ROWS];
    float *y[VEC_ROWS];
    int begin[VEC_ROWS], end[VEC_ROWS]; // visible positions of each query
    for (int i = 0; i < n_q; i++) {
        const int64_t at = find_query(a, h, first + i, &begin[i], &end[i]);
        q[i] = a->q + at;
        y[i] = a->y + at;
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

// The same, tile by tile.
static void attend_tiles(const Cpu *c, const AttentionArgs *a, int h, int first, int n_q, int thread) {
    const KvLayer *kv = a->kv;
    const GemmTable *g = c->gemm;
    const int n = kv->head_dim;
    const int64_t head = (int64_t)h * kv->n_cell * n;
    char *tile = c->gemm_tile + (int64_t)thread * GEMM_TILE_BYTES;
    float *score = c->many + (int64_t)thread * (MANY_SCORES + MANY_SUMS), *sum = score + MANY_SCORES; // [n_q][GEMM_TILE_ROWS], [n_q][n]
    const void *q[MANY_QUERIES], *weight[MANY_QUERIES];
    int begin[MANY_QUERIES], end[MANY_QUERIES];
    float highest[MANY_QUERIES], total[MANY_QUERIES];
    assert(n_q > 0);
    for (int i = 0; i < n_q; i++) {
        q[i] = a->q + find_query(a, h, first + i, &begin[i], &end[i]);
        weight[i] = score + i * GEMM_TILE_ROWS;
        total[i] = highest[i] = 0;
    }
    memset(sum, 0, sizeof(float) * (size_t)n_q * (size_t)n);
    for (int from = begin[0], to; from < end[n_q - 1]; from = to) {
        to = min_int(end[n_q - 1], (from / GEMM_TILE_ROWS + 1) * GEMM_TILE_ROWS);
        KeySpan span = {(const F16 *)kv->k + head, kv->n_cell, n, from % kv->n_cell, to - from};
        g->unpack_keys(tile, &span);
        g->product(&(GemmTile){.y = score, .y_stride = GEMM_TILE_ROWS, .tile = tile, .type = TYPE_F32, .n_w = to - from, .x = q, .n_x = n_q, .n_col = n});
        for (int i = 0; i < n_q; i++) {
            float *s = score + i * GEMM_TILE_ROWS, *seen = s + max_int(begin[i] - from, 0);
            const int n_seen = min_int(end[i], to) - max_int(begin[i], from);
            if (n_seen > 0) {
                for (int j = 0; j < n_seen; j++) seen[j] *= a->scale;
                if (a->softcap > 0) c->vec->softcap(seen, a->softcap, n_seen);
                const float top = c->vec->largest(seen, n_seen);
                if (total[i] == 0) highest[i] = top;
                if (top > highest[i]) {
                    const float less = expf(highest[i] - top);
                    for (int k = 0; k < n; k++) sum[i * n + k] *= less;
                    total[i] *= less;
                    highest[i] = top;
                }
                total[i] += c->vec->exp_sum(seen, highest[i], n_seen);
            }
            for (int j = from; j < min_int(begin[i], to); j++) s[j - from] = 0;
            for (int j = max_int(end[i], from); j < to; j++) s[j - from] = 0;
        }
        span.rows = (const F16 *)kv->v + head;
        g->unpack_values(tile, &span);
        g->product(&(GemmTile){.y = sum, .y_stride = n, .tile = tile, .type = TYPE_F32, .n_w = n, .x = weight, .n_x = n_q, .n_col = to - from, .add = true});
    }
    for (int i = 0; i < n_q; i++) {
        float *y = a->y + ((const float *)q[i] - a->q);
        const float s = 1 / total[i];
        for (int k = 0; k < n; k++) y[k] = sum[i * n + k] * s;
    }
}

typedef struct {
    const Cpu *c;
    const AttentionArgs *a;
    int each, n_tile, n_query;
    bool tiles;
} Attention;

static void attend_tile(const void *args, int item, int thread) {
    const Attention *t = args;
    const int h = item / t->n_tile, first = item % t->n_tile * t->each, n = min_int(t->each, t->n_query - first);
    if (t->tiles) attend_tiles(t->c, t->a, h, first, n, thread);
    else attend(t->c, t->a, h, first, n, t->c->score + (int64_t)thread * VEC_ROWS * t->c->score_stride);
}

void attention_cpu(Backend *b, const AttentionArgs *a) {
    const Cpu *c = cpu_of(b);
    const int n_head_kv = a->kv->n_head_kv, n_query = a->n_rows * (a->n_head / n_head_kv); // per KV head
    const bool tiles = gemm_wanted(b, a->n_rows) && a->kv->head_dim * GEMM_TILE_ROWS <= MANY_SUMS;
    int each = tiles ? min_int(MANY_QUERIES, MANY_SUMS / a->kv->head_dim) : VEC_ROWS;
    while (each > 1 && n_head_kv * ceil_div(n_query, each) < c->n_thread) each /= 2;
    const int n_tile = ceil_div(n_query, each);
    const int n_seen = a->window > 0 ? min_int(a->window, a->pos + a->n_rows) : a->pos + a->n_rows;
    share(b, (int64_t)a->n_head * a->n_rows * a->kv->head_dim * n_seen, attend_tile, &(Attention){c, a, each, n_tile, n_query, tiles}, n_head_kv * n_tile);
}

// attention_cpu.c: the KV cache of one layer, in float16 or Q8_0, and softmax(scale q.k) v over it.
//
// Queries that read the same KV head (neighbouring rows, and the heads of a group) go through together.
//
// Few rows: up to VEC_ROWS queries at a time, so that each key and value is loaded and widened once for all of them, against
// blocks of KEY_BLOCK positions: scores q.k, softmax, sum of the values, in tiles of KEY_TILE positions, first inside a tile and
// then over tiles: a long sum loses less. A block leaves its highest score, the sum of its weights and the weighted sum of its
// values; who finishes the last block of a query puts them together, in the order of the blocks (Flash-Decoding, T. Dao and
// others, 2023). So one query of one KV head is work for all threads. Blocks and tiles lie at fixed places. Per query and
// key: 4 head_dim bytes of cache read (shared), 4 head_dim floating point operations.
//
// The rows of a prompt: up to MANY_QUERIES queries at a time against tiles of GEMM_TILE_ROWS positions, with the products of
// gemm.h: scores = q k, values weighted by them. The softmax goes along (Milakov and Gimelshein, arXiv 1805.02867): when a tile
// has a higher score than all before, what has been summed is multiplied by exp(old highest - new highest).
// Either way the result does not depend on how the rows were batched; which way is decided as in gemm_cpu.c.
#include <math.h>
#include "cpu.h"
#include "host.h"

typedef struct {
    const VecTable *vec;
    const KvLayer *kv;
    const float *k, *v;
    int pos;
} KvWrite;

// x [head_dim] to element `at` of keys or values.
static void write_cell(const VecTable *vec, const KvLayer *kv, void *cells, TensorType type, int64_t at, const float *x) {
    if (type == TYPE_Q8_0) vec->to_q8_0((int8_t *)cells + at, (F16 *)kv_scales(kv, cells) + at / 32, x, kv->head_dim);
    else vec->to_f16((F16 *)cells + at, x, kv->head_dim);
}

static void kv_write_row(const void *args, int r, int thread) {
    const KvWrite *a = args;
    (void)thread;
    const KvLayer *kv = a->kv;
    const int n = kv->head_dim, n_head = kv->n_head_kv;
    for (int h = 0; h < n_head; h++) {
        const int64_t from = ((int64_t)r * n_head + h) * n, to = ((int64_t)h * kv->n_cell + (a->pos + r) % kv->n_cell) * n;
        write_cell(a->vec, kv, kv->k, kv->type_k, to, a->k + from);
        write_cell(a->vec, kv, kv->v, kv->type_v, to, a->v + from);
    }
}

void kv_write_cpu(Backend *b, const KvLayer *kv, const float *k, const float *v, int n_rows, int pos) {
    share(b, (int64_t)n_rows * kv->n_head_kv * kv->head_dim, kv_write_row, &(KvWrite){cpu_of(b)->vec, kv, k, v, pos}, n_rows);
}

typedef struct {
    const KvLayer *to, *from;
    int n, pos;
} KvCopy;

static TensorType type_of(TensorType asked) { return asked == TYPE_Q8_0 ? TYPE_Q8_0 : TYPE_F16; }

static void kv_copy_head(const void *args, int item, int thread) {
    const KvCopy *a = args;
    const int h = item / 2;
    (void)thread;
    if (item % 2) copy_head(a->to, a->to->v, a->from, a->from->v, type_of(a->to->type_v), h, a->n, a->pos);
    else copy_head(a->to, a->to->k, a->from, a->from->k, type_of(a->to->type_k), h, a->n, a->pos);
}

void kv_copy_cpu(Backend *b, const KvLayer *to, const KvLayer *from, int n, int pos) {
    share(b, (int64_t)n * to->n_head_kv * to->head_dim, kv_copy_head, &(KvCopy){to, from, n, pos}, 2 * to->n_head_kv);
}

// Positions pos .. pos + n - 1 of KV head h, of keys or of values.
static KeySpan span_of(const KvLayer *kv, void *cells, TensorType type, int h, int pos, int n) {
    const bool codes = type == TYPE_Q8_0;
    const int64_t head = (int64_t)h * kv->n_cell * kv->head_dim;
    return (KeySpan){(const char *)cells + head * (codes ? 1 : (int64_t)sizeof(F16)), codes ? (const F16 *)kv_scales(kv, cells) + head / 32 : NULL,
                     kv->n_cell, kv->head_dim, pos % kv->n_cell, n};
}
static KeySpan keys_of(const KvLayer *kv, int h, int pos, int n) { return span_of(kv, kv->k, kv->type_k, h, pos, n); }
static KeySpan values_of(const KvLayer *kv, int h, int pos, int n) { return span_of(kv, kv->v, kv->type_v, h, pos, n); }

// Query i of KV head h is row i / group, head h * group + i % group, at this offset of q and y. It sees positions [*begin, *end).
static int64_t find_query(const AttentionArgs *a, int h, int i, int *begin, int *end) {
    const int group = a->n_head / a->kv->n_head_kv, r = i / group, pos = a->pos + r;
    *end = pos + 1;
    *begin = a->window > 0 ? max_int(0, pos - a->window + 1) : 0;
    return ((int64_t)r * a->n_head + h * group + i % group) * a->kv->head_dim;
}

// A few rows, and what they have seen: tiles of `each` queries, n_tile of them for each KV head.
typedef struct {
    const Cpu *c;
    const AttentionArgs *a;
    int each, n_tile, n_query; // n_query: per KV head
    int first_block, n_block;
} Split;

// What block k of the call has found for query i of KV head h: the sum of the weighted values [head_dim], the sum of the weights (0:
// it sees nothing of the block), the highest score.
static float *part_of(const Split *t, int h, int i, int k) {
    const int64_t which = ((int64_t)h * t->n_query + i) * t->n_block + k;
    return t->c->part + which * t->c->part_stride;
}

// Queries first .. first + n_q - 1 of KV head h, the keys of block k.
static void attend_block(const Split *t, int h, int first, int n_q, int k) {
    const Cpu *c = t->c;
    const AttentionArgs *a = t->a;
    const KvLayer *kv = a->kv;
    const int n = kv->head_dim, block = (t->first_block + k) * KEY_BLOCK;
    const float *q[VEC_ROWS];
    float *part[VEC_ROWS], score[VEC_ROWS * KEY_BLOCK];
    int begin[VEC_ROWS], end[VEC_ROWS]; // visible positions of each query in this block
    int from = block + KEY_BLOCK, to = block; // what any of them sees
    for (int i = 0; i < n_q; i++) {
        q[i] = a->q + find_query(a, h, first + i, &begin[i], &end[i]);
        begin[i] = max_int(begin[i], block);
        end[i] = min_int(end[i], block + KEY_BLOCK);
        part[i] = part_of(t, h, first + i, k);
        memset(part[i], 0, sizeof(float) * (size_t)(n + 2));
        if (begin[i] < end[i]) from = min_int(from, begin[i]), to = max_int(to, end[i]);
    }
    if (from >= to) return;
    const KeySpan keys = keys_of(kv, h, from, to - from);
    c->vec->keys(score, KEY_BLOCK, q, n_q, &keys);
    for (int i = 0; i < n_q; i++) {
        float *s = score + i * KEY_BLOCK, *seen = s + (begin[i] - from);
        const int n_seen = end[i] - begin[i];
        if (n_seen <= 0) {
            memset(s, 0, sizeof(float) * (size_t)(to - from));
            continue;
        }
        for (int j = 0; j < n_seen; j++) seen[j] *= a->scale;
        if (a->softcap > 0) c->vec->softcap(seen, a->softcap, n_seen);
        part[i][n + 1] = c->vec->largest(seen, n_seen);
        part[i][n] = c->vec->exp_sum(seen, part[i][n + 1], n_seen);
        for (int j = from; j < begin[i]; j++) s[j - from] = 0;
        for (int j = end[i]; j < to; j++) s[j - from] = 0;
    }
    for (int j = from, next; j < to; j = next) {
        next = min_int(to, (j / KEY_TILE + 1) * KEY_TILE);
        const KeySpan values = values_of(kv, h, j, next - j);
        c->vec->values(part, score + (j - from), KEY_BLOCK, n_q, &values);
    }
}

// y of query i of KV head h from what its blocks have found.
static void put_together(const Split *t, int h, int i) {
    const int n = t->a->kv->head_dim;
    int begin, end;
    float *y = t->a->y + find_query(t->a, h, i, &begin, &end), highest = -INFINITY, total = 0;
    for (int k = 0; k < t->n_block; k++) {
        const float *part = part_of(t, h, i, k);
        if (part[n] > 0 && part[n + 1] > highest) highest = part[n + 1];
    }
    memset(y, 0, sizeof(float) * (size_t)n);
    for (int k = 0; k < t->n_block; k++) {
        const float *part = part_of(t, h, i, k), weight = expf(part[n + 1] - highest);
        if (part[n] == 0) continue;
        total += weight * part[n];
        for (int m = 0; m < n; m++) y[m] += weight * part[m];
    }
    const float s = 1 / total;
    for (int m = 0; m < n; m++) y[m] *= s;
}

static void attend_part(const void *args, int item, int thread) { // neighbouring items: tiles that see the same block
    const Split *t = args;
    const int h = item / t->n_tile / t->n_block, tile = item % t->n_tile, first = tile * t->each, n_q = min_int(t->each, t->n_query - first);
    (void)thread;
    attend_block(t, h, first, n_q, item / t->n_tile % t->n_block);
    if (atomic_fetch_sub(&t->c->blocks_left[h * t->n_tile + tile], 1) > 1) return;
    for (int i = first; i < first + n_q; i++) put_together(t, h, i);
}

static int n_visible(const AttentionArgs *a, int pos) { return a->window > 0 ? min_int(a->window, pos + 1) : pos + 1; }

// As many rows at a time as there is room for what their blocks find: at least one.
static void attend_few(Backend *b, const AttentionArgs *a) {
    const Cpu *c = cpu_of(b);
    const KvLayer *kv = a->kv;
    const int64_t row = (int64_t)a->n_head * kv->head_dim;
    for (int r = 0, n_rows; r < a->n_rows; r += n_rows) {
        AttentionArgs some = *a;
        some.y += r * row, some.q += r * row, some.pos += r;
        const int first_block = (some.pos + 1 - n_visible(a, some.pos)) / KEY_BLOCK;
        for (n_rows = a->n_rows - r; n_rows > 1 && (int64_t)n_rows * a->n_head * ((some.pos + n_rows - 1) / KEY_BLOCK - first_block + 1) > c->n_part;) n_rows--;
        some.n_rows = n_rows;
        Split t = {c, &some, VEC_ROWS, 0, n_rows * (a->n_head / kv->n_head_kv), first_block, (some.pos + n_rows - 1) / KEY_BLOCK - first_block + 1};
        while (t.each > 1 && kv->n_head_kv * ceil_div(t.n_query, t.each) * t.n_block < c->n_thread) t.each /= 2;
        t.n_tile = ceil_div(t.n_query, t.each);
        assert((int64_t)n_rows * a->n_head * t.n_block <= c->n_part && kv->head_dim + 2 <= c->part_stride);
        for (int i = 0; i < kv->n_head_kv * t.n_tile; i++) atomic_store(&c->blocks_left[i], t.n_block);
        share(b, row * n_rows * n_visible(a, some.pos + n_rows - 1), attend_part, &t, kv->n_head_kv * t.n_tile * t.n_block);
    }
}

// Many queries, tile by tile of the keys.
static void attend_tiles(const Cpu *c, const AttentionArgs *a, int h, int first, int n_q, int thread) {
    const KvLayer *kv = a->kv;
    const GemmTable *g = c->gemm;
    const int n = kv->head_dim;
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
        const KeySpan keys = keys_of(kv, h, from, to - from), values = values_of(kv, h, from, to - from);
        g->unpack_keys(tile, &keys);
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
        g->unpack_values(tile, &values);
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
} Prompt;

static void attend_prompt(const void *args, int item, int thread) {
    const Prompt *t = args;
    const int h = item / t->n_tile, first = item % t->n_tile * t->each;
    attend_tiles(t->c, t->a, h, first, min_int(t->each, t->n_query - first), thread);
}

void attention_cpu(Backend *b, const AttentionArgs *a) {
    const Cpu *c = cpu_of(b);
    const int n_head_kv = a->kv->n_head_kv, n_query = a->n_rows * (a->n_head / n_head_kv); // per KV head
    if (!gemm_wanted(b, a->n_rows) || a->kv->head_dim * GEMM_TILE_ROWS > MANY_SUMS) {
        attend_few(b, a);
        return;
    }
    int each = min_int(MANY_QUERIES, MANY_SUMS / a->kv->head_dim);
    while (each > 1 && n_head_kv * ceil_div(n_query, each) < c->n_thread) each /= 2;
    const int n_tile = ceil_div(n_query, each);
    share(b, (int64_t)a->n_head * a->n_rows * a->kv->head_dim * n_visible(a, a->pos + a->n_rows - 1), attend_prompt, &(Prompt){c, a, each, n_tile, n_query},
          n_head_kv * n_tile);
}

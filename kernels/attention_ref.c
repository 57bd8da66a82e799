// attention_ref.c: the KV cache of one layer, and softmax(scale q.k) v over it (arXiv 1706.03762; grouped heads 2305.13245)
#include <math.h>
#include "host.h"
#include "ref.h"

// Keys, or values, of a layer: as floats, or whatever a session asks for.
typedef struct {
    void *cells;
    F16 *scale; // of Q8_0
    TensorType type;
    const KvLayer *kv;
} Rows;

static Rows rows_of(const Backend *b, const KvLayer *kv, bool values) {
    void *cells = values ? kv->v : kv->k;
    const TensorType asked = values ? kv->type_v : kv->type_k;
    return (Rows){cells, kv_scales(kv, cells), asked ? asked : b->kv_type, kv};
}

// Of its element 0, among all elements.
static int64_t cell(const KvLayer *kv, int head, int pos) { return ((int64_t)head * kv->n_cell + pos % kv->n_cell) * kv->head_dim; }

static float element(const Rows *r, int64_t at) {
    if (r->type == TYPE_F32) return ((const float *)r->cells)[at];
    if (r->type == TYPE_F16) return f16_to_f32(((const F16 *)r->cells)[at]);
    return f16_to_f32(r->scale[at / 32]) * ((const int8_t *)r->cells)[at];
}

static void write_cell(const Rows *r, int64_t at, const float *x) {
    const int n = r->kv->head_dim;
    if (r->type != TYPE_Q8_0) type_info((int)r->type)->from_f32(x, (char *)r->cells + type_row_bytes(r->type, at), n, NULL);
    else
        for (int i = 0; i < n; i += 32) {
            BlockQ8_0 block;
            quantize_q8_0(x + i, &block, 32, NULL);
            memcpy((int8_t *)r->cells + at + i, block.qs, sizeof block.qs);
            r->scale[(at + i) / 32] = block.d;
        }
}

void kv_write_ref(Backend *b, const KvLayer *kv, const float *k, const float *v, int n_rows, int pos) {
    const Rows keys = rows_of(b, kv, false), values = rows_of(b, kv, true);
    for (int r = 0; r < n_rows; r++)
        for (int h = 0; h < kv->n_head_kv; h++) {
            const int64_t from = ((int64_t)r * kv->n_head_kv + h) * kv->head_dim, to = cell(kv, h, pos + r);
            write_cell(&keys, to, k + from);
            write_cell(&values, to, v + from);
        }
}

void kv_copy_ref(Backend *b, const KvLayer *to, const KvLayer *from, int n, int pos) {
    for (int h = 0; h < to->n_head_kv; h++) {
        copy_head(to, to->k, from, from->k, rows_of(b, to, false).type, h, n, pos);
        copy_head(to, to->v, from, from->v, rows_of(b, to, true).type, h, n, pos);
    }
}

void attention_ref(Backend *b, const AttentionArgs *a) {
    const KvLayer *kv = a->kv;
    const Rows keys = rows_of(b, kv, false), values = rows_of(b, kv, true);
    const int n = kv->head_dim, group = a->n_head / kv->n_head_kv;
    double *score = ((RefScratch *)b->priv)->score, *sum = ((RefScratch *)b->priv)->sum;
    for (int r = 0; r < a->n_rows; r++)
        for (int h = 0; h < a->n_head; h++) {
            const int last = a->pos + r; // sees itself and what came before, the nearest `window` positions
            const int first = a->window > 0 ? max_int(0, last - a->window + 1) : 0;
            const float *q = a->q + ((int64_t)r * a->n_head + h) * n;
            double highest = -INFINITY, total = 0;
            for (int j = first; j <= last; j++) {
                const int64_t k = cell(kv, h / group, j);
                double s = 0;
                for (int i = 0; i < n; i++) s += (double)q[i] * element(&keys, k + i);
                s *= a->scale;
                if (a->softcap > 0) s = a->softcap * tanh(s / a->softcap);
                score[j - first] = s;
                if (s > highest) highest = s;
            }
            for (int i = 0; i < n; i++) sum[i] = 0;
            for (int j = first; j <= last; j++) {
                const double p = exp(score[j - first] - highest);
                const int64_t v = cell(kv, h / group, j);
                total += p;
                for (int i = 0; i < n; i++) sum[i] += p * element(&values, v + i);
            }
            float *y = a->y + ((int64_t)r * a->n_head + h) * n;
            for (int i = 0; i < n; i++) y[i] = (float)(sum[i] / total);
        }
}

// ref.h: the ops of the ref backend, one file each; collected into its table by ref.c.
#ifndef REF_H
#define REF_H

#include "backend.h"

void embed_ref(Backend *b, float *y, const Tensor *table, const int *ids, int n_rows, float scale);
void norm_ref(Backend *b, float *y, const Tensor *w, const float *x, int n_rows, int n_col, float eps);
void matmul_ref(Backend *b, float *y, const Tensor *w, const Tensor *bias, const float *x, int n_rows);
void matmuls_ref(Backend *b, const Matmul *m, int n, const float *x, int n_rows);
void rope_ref(Backend *b, float *x, const Rope *rope, int n_rows, int n_head, int head_dim, int pos);
void kv_write_ref(Backend *b, const KvLayer *kv, const float *k, const float *v, int n_rows, int pos);
void kv_copy_ref(Backend *b, const KvLayer *to, const KvLayer *from, int n, int pos);
void attention_ref(Backend *b, const AttentionArgs *a);
void gated_ref(Backend *b, float *y, const float *gate, const float *up, int64_t n, Activation act);
void gated_matmul_ref(Backend *b, const GatedArgs *a);
void moe_route_ref(Backend *b, int *expert, float *weight, const float *logits, const Tensor *scale, int n_rows, int n_expert, int n_used);
void moe_ffn_ref(Backend *b, const MoeArgs *a);
static inline int moe_slice(const MoeArgs *a, int expert) { return a->slot ? a->slot[expert] : expert; } // -1: not here
void add_ref(Backend *b, float *x, const float *y, int64_t n);
void scale_ref(Backend *b, float *x, float s, int64_t n);
void softcap_ref(Backend *b, float *x, float cap, int64_t n);
void project_out_ref(Backend *b, const ProjectArgs *a);
void add_dir_ref(Backend *b, float *x, const float *dir, int n_rows, int n_col, float amount);
void copy_rows_ref(Backend *b, float *dst, int dst_stride, const float *src, int src_stride, int n_rows, int n_col);
void top_ref(Backend *b, const TopArgs *a);
void mul_cols_ref(Backend *b, float *x, const Tensor *w, int n_rows);
void mix_streams_ref(Backend *b, float *y, const float *coef, const float *x, int n_out, int n_in, int n_rows, int n_col);
void match_length_ref(Backend *b, float *u, const float *target, int n_rows, int n_col);
void sparsify_ref(Backend *b, float *x, float multiplier, int n_rows, int n_col);

double activate_ref(double x, Activation act);
// y[o] = sum_i w[slice][o][i] x[i], one row of x; row: scratch of n_col floats
void matvec_ref(float *y, const Tensor *w, int slice, const float *x, float *row);

// Scratch made by reserve; priv of the backend.
typedef struct {
    float *row;            // [n_col] one dequantised weight row
    double *score;         // [n_ctx] attention scores of one query head
    double *sum;           // [max(head_dim, n_embd)] accumulators
    float *gate, *up;      // [n_ff_expert]
    float *down;           // [n_embd]
} RefScratch;

#endif

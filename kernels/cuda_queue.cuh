// cuda_queue.cuh: an op as it is recorded. The functions of the op table record (cuda_queue.cu); cuda_run_ops runs (cuda_fuse.cu).
#ifndef CUDA_QUEUE_CUH
#define CUDA_QUEUE_CUH

#include "cuda_common.cuh"

typedef enum {
    OP_EMBED, OP_ROWS, OP_NORM, OP_MATMUL, OP_ROPE, OP_KV_WRITE, OP_KV_COPY, OP_ATTENTION, OP_GATED, OP_MOE_ROUTE, OP_MOE_FFN, OP_MOE_LEND, OP_MOE_COLLECT, OP_ADD, OP_SCALE, OP_SOFTCAP,
    OP_PROJECT_OUT, OP_ADD_DIR, OP_COPY_ROWS, OP_TOP, OP_MUL_COLS, OP_MIX_STREAMS, OP_MATCH_LENGTH, OP_SPARSIFY
} OpKind;

// Equal bytes mean: launches of the same kernels with the same parameters. So structs of the caller are copied field by field
// (their padding may hold anything), and what changes from token to token is not here but in Cuda.arg.
typedef struct Op {
    OpKind kind;
    int arg; // where in Cuda.arg: its position (rope, kv_write, kv_copy, attention), ids (embed), or rows of floats (rows)
    union {
        struct { float *y; const Tensor *table; int n_rows; float scale; } embed;
        struct { float *y; int64_t n; } rows;
        struct { float *y; const Tensor *w; const float *x; int n_rows, n_col; float eps; } norm;
        struct { Matmul p; const float *x; int n_rows; } matmul;
        struct { float *x; Rope rope; int n_rows, n_head, head_dim; } rope;
        struct { KvLayer kv; const float *k, *v; int n_rows; } kv_write;
        struct { KvLayer to, from; int n; } kv_copy;
        struct { AttentionArgs a; KvLayer kv; } attention; // a.pos: where its bucket ends; a.kv: not set
        struct { float *y; const float *gate, *up; int64_t n; Activation act; } gated;
        struct { int *expert; float *weight; const float *logits; const Tensor *scale; int n_rows, n_expert, n_used; } moe_route;
        MoeArgs moe_ffn;
        struct { MoeArgs a; int batch; } moe_lend; // batch: Backend.batch
        struct { float *y; int n_rows, n_embd; bool add; } moe_collect;
        struct { float *x; const float *y; int64_t n; } add;
        struct { float *x; float by; int64_t n; } scale, softcap;
        ProjectArgs project_out;
        struct { float *x; const float *dir; int n_rows, n_col; float amount; } add_dir;
        struct { float *dst; const float *src; int dst_stride, src_stride, n_rows, n_col; } copy_rows;
        TopArgs top;
        struct { float *x; const Tensor *w; int n_rows; } mul_cols;
        struct { float *y; const float *coef, *x; int n_out, n_in, n_rows, n_col; } mix_streams;
        struct { float *u; const float *target; int n_rows, n_col; } match_length;
        struct { float *x; float multiplier; int n_rows, n_col; } sparsify;
    };
} Op;

bool cuda_open_queue(Backend *b);           // and fills the op table; false: b->first_error
void cuda_close_queue(Backend *b);
void cuda_flush(Backend *b);                // runs what is recorded; waits only for what the host does of it
void cuda_forget_graphs(Backend *b);        // memory they use is about to go
void cuda_run_ops(Backend *b, const Op *op, int n);

#endif

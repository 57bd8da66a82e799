// ref.c: the textbook backend: plain scalar C, every sum in double, no threads. It defines what each op means, runs whole
// models (--backend ref), and is what the fast backends are tested against. Each op is in its <op>_ref.c.
#include "host.h"
#include "ref.h"

static void free_scratch(RefScratch *s) {
    free(s->row);
    free(s->score);
    free(s->sum);
    free(s->gate);
    free(s->up);
    free(s->down);
    memset(s, 0, sizeof *s);
}

static bool reserve(Backend *b, const Limits *l, Err *e) {
    RefScratch *s = b->priv;
    free_scratch(s);
    s->row = malloc(sizeof(float) * (size_t)max_int(l->n_col, 1));
    s->score = malloc(sizeof(double) * (size_t)max_int(l->n_ctx, 1));
    s->sum = malloc(sizeof(double) * (size_t)max_int(max_int(l->head_dim, l->n_embd), 1));
    s->gate = malloc(sizeof(float) * (size_t)max_int(l->n_ff_expert, 1));
    s->up = malloc(sizeof(float) * (size_t)max_int(l->n_ff_expert, 1));
    s->down = malloc(sizeof(float) * (size_t)max_int(l->n_embd, 1));
    if (!s->row || !s->score || !s->sum || !s->gate || !s->up || !s->down) return err_set(e, "ref backend: no memory for scratch");
    return true;
}

static void *alloc_host(Backend *b, size_t bytes) {
    (void)b;
    return calloc(1, bytes ? bytes : 1);
}

static void close_ref(Backend *b) {
    if (b->priv) free_scratch(b->priv);
    free(b->priv);
    memset(b, 0, sizeof *b);
}

bool backend_open_ref(Backend *b, Err *e) {
    *b = (Backend){
        .name = "ref", .detail = "scalar, double accumulation", .kv_type = TYPE_F32, .on_host = true,
        .reserve = reserve, .alloc = alloc_host, .free = free_host, .upload = copy_host, .download = copy_host,
        .sync = sync_host, .close = close_ref,
        .embed = embed_ref, .norm = norm_ref, .matmul = matmul_ref, .matmuls = matmuls_ref, .rope = rope_ref, .kv_write = kv_write_ref,
        .kv_copy = kv_copy_ref,
        .attention = attention_ref, .gated = gated_ref, .gated_matmul = gated_matmul_ref, .moe_route = moe_route_ref, .moe_ffn = moe_ffn_ref, .add = add_ref,
        .scale = scale_ref, .softcap = softcap_ref, .project_out = project_out_ref, .add_dir = add_dir_ref, .copy_rows = copy_rows_ref,
        .top = top_ref, .mul_cols = mul_cols_ref, .mix_streams = mix_streams_ref, .match_length = match_length_ref, .sparsify = sparsify_ref,
    };
    b->priv = calloc(1, sizeof(RefScratch));
    if (!b->priv) return err_set(e, "ref backend: no memory");
    return true;
}

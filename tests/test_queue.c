// test_queue.c: ops that the cuda backend runs together, and lists of ops that it replays as a graph, leave in every buffer what
// they leave one by one. A layer in many forms, among them those that look like a step and are none, is run with a sync
// after each op, and then as it comes, over positions that cross a bucket of the attention; every buffer is compared.
//
// Tolerance: what differs is the order of additions. Weights of float types: NMSE 1e-9 (a key or value may be rounded to the
// neighbouring float16); quantised ones: 1e-4 (activations may be rounded to the neighbouring 8-bit code, three times in a row).
// Launches: nine of the layer, one of the embedding, two of the norm and the product at the end.
#include "backend.h"
#include "compare.h"
#include "random.h"
#include "test.h"

static Backend cuda, one_by_one; // the same device: the second waits after every op
static bool verbose;

static void wait_for_it(void) {
    Err e = {{0}};
    if (!cuda.sync(&cuda, &e)) CHECK(false, "%s", e.text);
}

// ---- one by one ----

#define ALONE(op, params, ...) static void alone_##op params { (void)b; cuda.op(&cuda, __VA_ARGS__); wait_for_it(); }
ALONE(embed, (Backend *b, float *y, const Tensor *table, const int *ids, int n, float scale), y, table, ids, n, scale)
ALONE(norm, (Backend *b, float *y, const Tensor *w, const float *x, int n, int n_col, float eps), y, w, x, n, n_col, eps)
ALONE(matmul, (Backend *b, float *y, const Tensor *w, const Tensor *bias, const float *x, int n), y, w, bias, x, n)
static void alone_matmuls(Backend *b, const Matmul *m, int n, const float *x, int n_rows) {
    for (int k = 0; k < n; k++) alone_matmul(b, m[k].y, m[k].w, m[k].bias, x, n_rows);
}
ALONE(rope, (Backend *b, float *x, const Rope *rope, int n, int n_head, int dim, int pos), x, rope, n, n_head, dim, pos)
ALONE(kv_write, (Backend *b, const KvLayer *kv, const float *k, const float *v, int n, int pos), kv, k, v, n, pos)
ALONE(attention, (Backend *b, const AttentionArgs *a), a)
ALONE(gated, (Backend *b, float *y, const float *gate, const float *up, int64_t n, Activation act), y, gate, up, n, act)
ALONE(copy_rows, (Backend *b, float *dst, int dst_stride, const float *src, int src_stride, int n, int n_col), dst, dst_stride, src, src_stride, n, n_col)
static void alone_gated_matmul(Backend *b, const GatedArgs *a) {
    const int n_ff = a->gate->n_row;
    alone_matmul(b, a->y, a->gate, a->gate_bias, a->x, a->n_rows);
    if (a->up) alone_matmul(b, a->scratch, a->up, a->up_bias, a->x, a->n_rows);
    else alone_copy_rows(b, a->scratch, n_ff, a->factor, a->factor_stride, a->n_rows, n_ff);
    alone_gated(b, a->y, a->y, a->scratch, (int64_t)a->n_rows * n_ff, a->act);
}
ALONE(moe_route, (Backend *b, int *expert, float *weight, const float *logits, const Tensor *scale, int n, int n_expert, int n_used),
      expert, weight, logits, scale, n, n_expert, n_used)
ALONE(moe_ffn, (Backend *b, const MoeArgs *a), a)
ALONE(add, (Backend *b, float *x, const float *y, int64_t n), x, y, n)
ALONE(scale, (Backend *b, float *x, float s, int64_t n), x, s, n)
ALONE(softcap, (Backend *b, float *x, float cap, int64_t n), x, cap, n)
ALONE(mul_cols, (Backend *b, float *x, const Tensor *t, int n), x, t, n)
ALONE(add_dir, (Backend *b, float *x, const float *dir, int n, int n_col, float amount), x, dir, n, n_col, amount)
ALONE(project_out, (Backend *b, const ProjectArgs *a), a)

// ---- a layer ----

enum { E = 256, FF = 512, H = 4, KV = 2, D = 64, VOCAB = 40, N_EXPERT = 6, N_USED = 2, ROWS = 12, CELLS = 320 };

typedef struct {
    int n_rows;
    TensorType type, v_type, up_type;  // of all matrices; of V; of up
    bool head_norms, v_norm, post_norms;
    bool two_positions;                // keys are turned for another position: no step
    bool tap;                          // the output is changed between its norm and the addition: no step
    bool ablate;                       // a projection there, and of the stream after every addition
    bool norm_elsewhere;               // the norm of the output goes to another buffer: no step
    bool vector_gate, gate_elsewhere;  // act(gate x) * a vector; to another buffer: no step
    bool vector_over_input;            // the vector takes the place of what the product has read: no step
    bool moe, beside;                  // experts; beside the dense FFN
    bool only_moe;                     // in its place: the router reads what the experts read
    bool steps;                        // sums, scales and copies, as of Gemma 3n's streams, with one that overlaps the one before
    bool late_gate;                    // a product that reads the stream as it is
    bool codes;                        // keys and values are Q8_0
    int window;
    int launches;                      // at most, for quantised weights; 0: any
} Form;

enum { X, NORMED, Q, K, V, ATTN, OUT, GATE, UP, OTHER, ROUTER, MOE_OUT, WEIGHT, LOGITS, N_BUFFER };
static const int WIDTH[N_BUFFER] = {E, E, H * D, KV * D, KV * D, H * D, E, FF, FF, FF, N_EXPERT, E, N_USED, VOCAB};

static float *buffer[N_BUFFER], *dir;
static int *expert;
static KvLayer kv;
static Rope rope;
static struct { Tensor embd, norm[6], head_norm[2], q, k, v, output, gate, up, down, router, gates, ups, downs; } w;
static void *host[64];
static int n_host;

static Tensor matrix(const char *name, TensorType type, int n_slice, int n_row, int n_col) {
    static const void *slices[8][N_EXPERT];
    static int n_stack;
    const int64_t bytes = n_row * type_row_bytes(type, n_col);
    char *p = host[n_host++] = malloc((size_t)(bytes * n_slice));
    random_blocks(p, type, bytes * n_slice);
    Tensor t = {.type = type, .n_row = n_row, .n_col = n_col, .n_slice = n_slice, .host = p};
    snprintf(t.name, sizeof t.name, "%s", name);
    if (n_slice > 1) {
        t.slices = slices[n_stack];
        for (int i = 0; i < n_slice; i++) slices[n_stack][i] = p + i * bytes;
        n_stack = (n_stack + 1) % 8;
    }
    Err e = {{0}};
    CHECK(cuda.load(&cuda, &t, &e), "%s", e.text);
    return t;
}

static void make_weights(const Form *f) {
    w.embd = matrix("embd", f->type, 1, VOCAB, E);
    for (int i = 0; i < 6; i++) w.norm[i] = matrix("norm", TYPE_F32, 1, 1, E);
    for (int i = 0; i < 2; i++) w.head_norm[i] = matrix("head norm", TYPE_F32, 1, 1, D);
    w.q = matrix("q", f->type, 1, H * D, E), w.k = matrix("k", f->type, 1, KV * D, E), w.v = matrix("v", f->v_type, 1, KV * D, E);
    w.output = matrix("output", f->type, 1, E, H * D);
    w.gate = matrix("gate", f->type, 1, FF, E), w.up = matrix("up", f->up_type, 1, FF, E), w.down = matrix("down", f->type, 1, E, FF);
    w.router = matrix("router", TYPE_F32, 1, N_EXPERT, E);
    w.gates = matrix("gates", f->type, N_EXPERT, FF, E), w.ups = matrix("ups", f->type, N_EXPERT, FF, E);
    w.downs = matrix("downs", f->type, N_EXPERT, E, FF);
}

static void drop_weights(void) {
    Tensor *all = (Tensor *)&w;
    for (size_t i = 0; i < sizeof w / sizeof *all; i++) cuda.free(&cuda, all[i].dev);
    while (n_host) free(host[--n_host]);
}

static void project(Backend *b, float *x, int n, float keep) {
    b->project_out(b, &(ProjectArgs){.x = x, .dir = dir, .n_rows = n, .n_col = E, .amount = 1, .keep = keep, .one_sided = keep > 0});
}

static void experts(Backend *b, float *y, int n) {
    b->moe_ffn(b, &(MoeArgs){.y = y, .gate = &w.gates, .up = &w.ups, .down = &w.downs, .x = buffer[NORMED], .expert = expert,
                             .weight = buffer[WEIGHT], .n_rows = n, .n_used = N_USED, .act = ACT_SILU});
}

static void dense(Backend *b, const Form *f, int n) {
    float **u = buffer, *y = f->gate_elsewhere ? u[OTHER] : u[GATE];
    if (f->gate_elsewhere) {
        b->matmul(b, u[GATE], &w.gate, NULL, u[NORMED], n);
        b->matmul(b, u[UP], &w.up, NULL, u[NORMED], n);
        b->gated(b, y, u[GATE], u[UP], (int64_t)n * FF, ACT_GELU_TANH);
    } else
        b->gated_matmul(b, &(GatedArgs){.y = y, .gate = &w.gate, .up = f->vector_gate ? NULL : &w.up, .factor = u[OTHER], .factor_stride = FF, .x = u[NORMED],
                                        .scratch = u[UP], .n_rows = n, .act = ACT_GELU_TANH});
    b->matmul(b, u[OUT], &w.down, NULL, y, n);
}

static void layer(Backend *b, const Form *f, int pos) {
    const int n = f->n_rows;
    const int64_t all = (int64_t)n * E;
    float **u = buffer;
    int ids[ROWS];
    for (int i = 0; i < n; i++) ids[i] = (pos + i) % VOCAB;
    b->embed(b, u[X], &w.embd, ids, n, 2);
    if (f->ablate) project(b, u[X], n, 0);
    b->norm(b, u[NORMED], &w.norm[0], u[X], n, E, 1e-5f);
    b->matmuls(b, (const Matmul[]){{u[Q], &w.q, NULL}, {u[K], &w.k, NULL}, {u[V], &w.v, NULL}}, 3, u[NORMED], n);
    if (f->head_norms) b->norm(b, u[Q], &w.head_norm[0], u[Q], n * H, D, 1e-6f);
    if (f->head_norms) b->norm(b, u[K], &w.head_norm[1], u[K], n * KV, D, 1e-5f);
    if (f->v_norm) b->norm(b, u[V], NULL, u[V], n * KV, D, 1e-6f);
    b->rope(b, u[Q], &rope, n, H, D, pos);
    b->rope(b, u[K], &rope, n, KV, D, pos + f->two_positions);
    b->kv_write(b, &kv, u[K], u[V], n, pos);
    b->attention(b, &(AttentionArgs){.y = u[ATTN], .q = u[Q], .kv = &kv, .n_rows = n, .pos = pos, .n_head = H, .window = f->window, .scale = 0.1f});
    b->matmul(b, u[OUT], &w.output, NULL, u[ATTN], n);
    float *out = f->norm_elsewhere ? u[OTHER] : u[OUT];
    if (f->post_norms) b->norm(b, out, &w.norm[1], u[OUT], n, E, 1e-6f);
    if (f->tap) b->add_dir(b, u[OUT], dir, n, E, 0.5f);
    if (f->ablate) project(b, u[OUT], n, 0);
    b->add(b, u[X], u[OUT], all);
    if (f->ablate) project(b, u[X], n, 0.25f);
    b->norm(b, u[NORMED], &w.norm[2], u[X], n, E, 1e-5f);
    if (f->only_moe) {
        b->matmul(b, u[ROUTER], &w.router, NULL, u[NORMED], n);
        b->moe_route(b, expert, u[WEIGHT], u[ROUTER], NULL, n, N_EXPERT, N_USED);
        experts(b, u[OUT], n);
    } else dense(b, f, n);
    if (f->moe) {
        b->norm(b, u[MOE_OUT], &w.norm[3], u[X], n, E, 1e-5f);
        b->scale(b, u[MOE_OUT], 0.25f, all);
        b->matmul(b, u[ROUTER], &w.router, NULL, u[MOE_OUT], n);
        b->moe_route(b, expert, u[WEIGHT], u[ROUTER], NULL, n, N_EXPERT, N_USED);
        b->norm(b, u[NORMED], &w.norm[4], u[X], n, E, 1e-5f);
        experts(b, u[MOE_OUT], n);
        b->norm(b, u[MOE_OUT], &w.norm[5], u[MOE_OUT], n, E, 1e-5f);
        if (f->beside) b->norm(b, u[OUT], &w.norm[3], u[OUT], n, E, 1e-6f);
        b->add(b, u[OUT], u[MOE_OUT], all);
    }
    if (f->post_norms) b->norm(b, u[OUT], &w.norm[1], u[OUT], n, E, 1e-6f);
    b->add(b, u[X], u[OUT], all);
    if (f->steps) {
        b->copy_rows(b, u[OTHER], E, u[X], E, n, E);
        b->scale(b, u[OTHER], -1, all);
        b->add(b, u[OTHER], u[MOE_OUT], all);
        b->add(b, u[OUT], u[OTHER], all);
        b->mul_cols(b, u[OUT], &w.norm[3], n);
        b->softcap(b, u[OUT], 3, all);
        b->copy_rows(b, u[OTHER] + E / 2, E, u[OTHER], E, 1, E / 2); // fewer elements: no step of these
        b->add(b, u[X], u[OUT], all);
        b->add(b, u[X], u[OTHER], all);
        b->add(b, u[OTHER] + 4, u[X], all);                          // every element is another one's neighbour: not with the one before
    }
    if (f->vector_over_input) {
        b->matmul(b, u[GATE], &w.k, NULL, u[NORMED], n);
        b->copy_rows(b, u[NORMED], KV * D, u[OTHER], KV * D, n, KV * D);
        b->gated(b, u[GATE], u[GATE], u[NORMED], (int64_t)n * KV * D, ACT_SILU);
        b->matmul(b, u[OUT], &w.q, NULL, u[NORMED], n);
    }
    if (f->late_gate) {
        if (f->ablate) project(b, u[X], n, 0);
        b->matmul(b, u[GATE], &w.gate, NULL, u[X], n);
        b->matmul(b, u[OUT], &w.down, NULL, u[GATE], n);
        b->add(b, u[X], u[OUT], all);
    }
    b->scale(b, u[X], 0.5f, all);
    if (f->ablate) project(b, u[X], n, 0);
    b->norm(b, u[NORMED], &w.norm[0], u[X], n, E, 1e-5f);
    b->matmul(b, u[LOGITS], &w.embd, NULL, u[NORMED], n);
}

// Everything a layer leaves behind, after each of n_step positions: [n_step][SNAPSHOT]
static float *snapshots(Backend *b, const Form *f, int first_pos, int n_step, int64_t *size) {
    int64_t each = 2 * KV * CELLS * D;
    for (int i = 0; i < N_BUFFER; i++) each += (int64_t)ROWS * WIDTH[i];
    float *all = calloc((size_t)(*size = each * n_step), sizeof *all), *at = all;
    F16 *half = malloc(sizeof(F16) * KV * CELLS * D);
    float *noise = malloc(sizeof(float) * ROWS * FF);
    random_state = 7; // both start from the same buffers
    for (int i = 0; i < N_BUFFER; i++) {
        for (int k = 0; k < ROWS * WIDTH[i]; k++) noise[k] = gauss();
        cuda.upload(&cuda, buffer[i], noise, sizeof(float) * (size_t)(ROWS * WIDTH[i]));
    }
    F16 *const scale = half + KV * CELLS * D / 2; // of codes
    for (int k = 0; k < KV * CELLS * D; k++) half[k] = f16_from_f32(gauss());
    for (int k = 0; k < KV * CELLS * D / 32 && f->codes; k++) scale[k] = f16_from_f32(0.01f);
    kv.type_k = kv.type_v = f->codes ? TYPE_Q8_0 : TYPE_F16;
    cuda.upload(&cuda, kv.k, half, sizeof(F16) * KV * CELLS * D);
    cuda.upload(&cuda, kv.v, half, sizeof(F16) * KV * CELLS * D);
    for (int step = 0; step < n_step; step++) {
        layer(b, f, first_pos + step * f->n_rows);
        for (int i = 0; i < N_BUFFER; i++) {
            cuda.download(&cuda, at, buffer[i], sizeof(float) * (size_t)(f->n_rows * WIDTH[i]));
            at += ROWS * WIDTH[i];
        }
        for (int i = 0; i < 2; i++) {
            cuda.download(&cuda, half, i ? kv.v : kv.k, sizeof(F16) * KV * CELLS * D);
            for (int k = 0; k < KV * CELLS * D; k++) *at++ = f->codes ? f16_to_f32(scale[k / 32]) * ((int8_t *)half)[k] : f16_to_f32(half[k]);
        }
    }
    free(half);
    free(noise);
    return all;
}

static const struct { const char *name; Form f; } FORMS[] = {
    {"llama", {.n_rows = 1, .launches = 12}},
    {"V of another type", {.n_rows = 1, .v_type = TYPE_Q6_K, .launches = 13}},
    {"gemma", {.n_rows = 1, .head_norms = true, .post_norms = true, .launches = 12}},
    {"a normed V", {.n_rows = 1, .head_norms = true, .v_norm = true, .window = 64, .launches = 12}},
    {"codes", {.n_rows = 1, .head_norms = true, .codes = true, .launches = 12}},
    {"codes of 3 rows", {.n_rows = 3, .codes = true}},
    {"a tap", {.n_rows = 1, .post_norms = true, .tap = true}},
    {"the norm elsewhere", {.n_rows = 1, .post_norms = true, .norm_elsewhere = true}},
    {"two positions", {.n_rows = 1, .two_positions = true}},
    {"gate times a vector", {.n_rows = 1, .vector_gate = true, .launches = 12}},
    {"gate elsewhere", {.n_rows = 1, .gate_elsewhere = true}},
    {"a vector over the input", {.n_rows = 1, .vector_over_input = true}},
    {"up of another type", {.n_rows = 1, .up_type = TYPE_Q8_0}},
    {"experts", {.n_rows = 1, .moe = true}},
    {"only experts", {.n_rows = 1, .only_moe = true, .launches = 15}},
    {"only experts, 2 rows", {.n_rows = 2, .only_moe = true}},
    {"experts beside", {.n_rows = 1, .moe = true, .beside = true, .post_norms = true}},
    {"steps", {.n_rows = 1, .steps = true}},
    {"steps of 3 rows", {.n_rows = 3, .steps = true}},
    {"late gate", {.n_rows = 1, .late_gate = true}},
    {"ablated", {.n_rows = 1, .ablate = true, .launches = 12}},
    {"ablated gemma", {.n_rows = 1, .ablate = true, .post_norms = true, .head_norms = true, .launches = 12}},
    {"ablated late gate", {.n_rows = 3, .ablate = true, .post_norms = true, .moe = true, .late_gate = true}},
    {"5 rows", {.n_rows = 5, .head_norms = true, .post_norms = true, .moe = true, .beside = true}},
    {"12 rows", {.n_rows = 12, .head_norms = true, .post_norms = true, .moe = true, .beside = true, .late_gate = true}},
};

static void test_forms(TensorType type) {
    enum { STEPS = 5 };
    for (size_t i = 0; i < sizeof FORMS / sizeof *FORMS; i++) {
        Form f = FORMS[i].f;
        f.type = type;
        if (f.v_type == 0) f.v_type = type;
        if (f.up_type == 0) f.up_type = type;
        make_weights(&f);
        const int first_pos = 256 - 3 * f.n_rows; // the fourth step is beyond the first bucket
        int64_t n;
        float *want = snapshots(&one_by_one, &f, first_pos, STEPS, &n);
        const int64_t before = cuda_launches(&cuda);
        float *got = snapshots(&cuda, &f, first_pos, STEPS, &n);
        const double launches = (double)(cuda_launches(&cuda) - before) / STEPS;
        const double limit = type_info((int)type)->block > 1 ? 1e-4 : 1e-9;
        double worst = 0;
        float *a = got, *b = want;
        for (int step = 0; step < STEPS; step++)
            for (int k = 0; k < N_BUFFER + 2; k++) {
                const int64_t size = k < N_BUFFER ? ROWS * WIDTH[k] : KV * CELLS * D;
                worst = fmax(worst, nmse(a, b, size));
                a += size, b += size;
            }
        CHECK(worst <= limit, "%s, %s: NMSE %.1e from one by one, expected <= %.0e", FORMS[i].name, type_info((int)type)->name, worst, limit);
        if (f.launches && type_info((int)type)->block > 1)
            CHECK(launches <= f.launches, "%s: %g launches, expected %d", FORMS[i].name, launches, f.launches);
        if (verbose) printf("%-20s %-5s NMSE %.1e, %g launches\n", FORMS[i].name, type_info((int)type)->name, worst, launches);
        free(got);
        free(want);
        drop_weights();
    }
}

int main(int argc, char **argv) {
    test_begin(argc, argv);
    verbose = argc > 1 && !strcmp(argv[1], "-v");
    Err e = {{0}};
    if (backend_cuda_devices() == 0) {
        test_skip("no CUDA device");
        return test_end();
    }
    const Limits limits = {.n_rows = ROWS, .n_col = FF, .n_ctx = CELLS, .n_head = H, .head_dim = D, .n_embd = E, .n_ff_expert = FF, .n_expert = N_EXPERT, .n_expert_used = N_USED};
    if (!backend_open_cuda(&cuda, 0, &e) || !cuda.reserve(&cuda, &limits, &e)) {
        printf("%s\n", e.text);
        return 1;
    }
    one_by_one = cuda;
    one_by_one.embed = alone_embed, one_by_one.norm = alone_norm, one_by_one.matmul = alone_matmul, one_by_one.rope = alone_rope;
    one_by_one.kv_write = alone_kv_write, one_by_one.attention = alone_attention, one_by_one.gated = alone_gated, one_by_one.moe_route = alone_moe_route;
    one_by_one.moe_ffn = alone_moe_ffn, one_by_one.add = alone_add, one_by_one.scale = alone_scale, one_by_one.add_dir = alone_add_dir;
    one_by_one.softcap = alone_softcap, one_by_one.mul_cols = alone_mul_cols;
    one_by_one.matmuls = alone_matmuls, one_by_one.gated_matmul = alone_gated_matmul;
    one_by_one.project_out = alone_project_out, one_by_one.copy_rows = alone_copy_rows;
    for (int i = 0; i < N_BUFFER; i++) buffer[i] = cuda.alloc(&cuda, sizeof(float) * (size_t)(ROWS * WIDTH[i]));
    dir = cuda.alloc(&cuda, sizeof(float) * E);
    expert = cuda.alloc(&cuda, sizeof(int) * ROWS * N_USED);
    kv = (KvLayer){.n_cell = CELLS, .n_head_kv = KV, .head_dim = D};
    kv.k = cuda.alloc(&cuda, sizeof(F16) * KV * CELLS * D);
    kv.v = cuda.alloc(&cuda, sizeof(F16) * KV * CELLS * D);
    double freq[D / 2];
    for (int i = 0; i < D / 2; i++) freq[i] = pow(10000, -2.0 * i / D);
    rope = (Rope){ROPE_HALVES, D, 1, freq};
    float some[E];
    double length = 0;
    for (int i = 0; i < E; i++) some[i] = gauss(), length += (double)some[i] * (double)some[i];
    for (int i = 0; i < E; i++) some[i] /= (float)sqrt(length);
    cuda.upload(&cuda, dir, some, sizeof some);

    test_forms(TYPE_Q4_K);
    test_forms(TYPE_F32);

    for (int i = 0; i < N_BUFFER; i++) cuda.free(&cuda, buffer[i]);
    cuda.free(&cuda, dir);
    cuda.free(&cuda, expert);
    cuda.free(&cuda, kv.k);
    cuda.free(&cuda, kv.v);
    backend_close(&cuda);
    return test_end();
}

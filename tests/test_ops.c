// test_ops.c: every op of the cpu backend, at every instruction set level this machine has, against the ref backend: odd
// shapes, every weight type, 1 to 9 rows, window edges. And: an output has the same bits whatever rows, matrices and threads are beside it.
//
// Tolerance: |got - want| <= eps * size, where size is the sum of the magnitudes of the terms that were added (for a product
// of weights and activations), or the magnitude of the result, and eps is a few units of 2^-24 times the length of a chain of
// additions. Products with quantised weights are compared with ref on the level's rounded activations: what
// remains is float rounding. How much the rounding of activations costs is checked apart (NMSE).
#include <math.h>
#include "backend.h"
#include "compare.h"
#include "dot.h"
#include "gemm.h"
#include "random.h"
#include "test.h"

enum { MAX_ROWS = 9, MANY_ROWS = 29 };

// -- inputs ---------------------------------------------------------------------------------------------------------------

static float *floats(int64_t n) {
    float *x = malloc(sizeof(float) * (size_t)(n ? n : 1));
    for (int64_t i = 0; i < n; i++) x[i] = gauss();
    return x;
}

static float *copy_of(const float *x, int64_t n) {
    float *y = malloc(sizeof(float) * (size_t)(n ? n : 1));
    memcpy(y, x, sizeof(float) * (size_t)n);
    return y;
}

// A matrix (or n_slice of them) of random blocks: every code, every combination of packed scales. In memory of exactly its
// size and odd alignment, so that a sanitizer sees reads beyond the end.
typedef struct {
    Tensor t;
    char *memory;
    const void *slices[8];
} Matrix;

static void make_matrix(Matrix *m, TensorType type, int n_slice, int n_row, int n_col) {
    const int64_t bytes = n_slice * n_row * type_row_bytes(type, n_col), shift = type_info((int)type)->block > 1 ? 1 : 0;
    m->memory = malloc((size_t)(bytes + shift));
    char *p = m->memory + shift;
    random_blocks(p, type, bytes);
    m->t = (Tensor){.name = "random", .type = type, .n_row = n_row, .n_col = n_col, .n_slice = n_slice, .host = p};
    for (int s = 0; s < n_slice; s++) m->slices[s] = p + s * n_row * type_row_bytes(type, n_col);
    if (n_slice > 1) m->t.slices = m->slices;
}

static Tensor vector_of(const float *x, int n) { return (Tensor){.name = "vector", .type = TYPE_F32, .n_row = 1, .n_col = n, .n_slice = 1, .host = x}; }

// -- comparison -----------------------------------------------------------------------------------------------------------

static void test_comparator(void) {
    char text[128];
    const float want[3] = {1, -2, 0}, good[3] = {1.0009f, -2.001f, 0.0009f};
    CHECK(close_to(good, want, NULL, 3, 1e-3f, 1, text), "just inside: %s", text);
    const float bad[][3] = {{1, -2, NAN}, {INFINITY, -2, 0}, {1, 2, 0}, {1.0021f, -2, 0}, {1, -2, 0.0011f}};
    for (int i = 0; i < 5; i++) CHECK(!close_to(bad[i], want, NULL, 3, 1e-3f, 1, text), "wrong values %d were accepted", i);
}

// -- the backends of one round --------------------------------------------------------------------------------------------

static Backend ref, cpu, solo; // solo: the same level with one thread
static Limits limits; // with experts rows of x are rounded by finer scales, see gemm.h
static const char *level;
static bool slow; // under sanitizers: of each kind one size less

// CHECK(close_to(...)) with the name of the case after the level
PRINTF_LIKE(7, 8) static void check_close(const float *got, const float *want, const float *size, int64_t n, float eps, float floor, const char *format, ...) {
    char why[128] = "", name[200];
    va_list args;
    va_start(args, format);
    vsnprintf(name, sizeof name, format, args);
    va_end(args);
    CHECK(close_to(got, want, size, n, eps, floor, why), "%s %s: %s", level, name, why);
}

// -- matmul ---------------------------------------------------------------------------------------------------------------

static const DotTable *const *const TABLES[] = {
    [ISA_PORTABLE] = &DOT_PORTABLE, [ISA_AVX2] = &DOT_AVX2, [ISA_AVXVNNI] = &DOT_AVXVNNI, [ISA_AVX512VNNI] = &DOT_AVX512VNNI, [ISA_AMX] = &DOT_AVX512VNNI,
};

// What the level makes of the activations, read back by the layout in dot.h. Never far from x: half a step, and a little for a
// scale that is chosen to fit all of a group.
static void round_activations(float *y, const float *x, int n_rows, int n_col) {
    const DotTable *table = *TABLES[isa_by_name(level)];
    void *row = aligned_alloc(64, (size_t)act8_bytes(n_col));
    bool near = true, sums = true;
    for (int r = 0; r < n_rows; r++, x += n_col, y += n_col) {
        table->quantize(row, x, n_col);
        for (int i = 0; i < n_col; i++) {
            float step = 0;
            for (int k = i / 32 * 32; k < i / 32 * 32 + 32; k++)
                if (k / 4 % 2 == i / 4 % 2) step = fmaxf(step, fabsf(x[k]) / 127);
            y[i] = act8_scales(row, n_col)[i / 32 * 2 + i / 4 % 2] * (float)act8_codes(row)[i];
            near &= fabsf(y[i] - x[i]) <= 0.8f * step;
        }
        for (int g = 0; g < n_col / 16; g++) {
            double sum = 0, size = 0;
            for (int i = g * 16; i < g * 16 + 16; i++) {
                sum += y[i];
                size += fabsf(y[i]);
            }
            sums &= fabs(act8_sums(row, n_col)[g] - sum) <= 0x1p-20 * size;
        }
    }
    CHECK(near, "%s: rounded activations are more than 0.8 steps away, %d columns", level, n_col);
    CHECK(sums, "%s: sums of rounded activations are wrong, %d columns", level, n_col);
    free(row);
}

// The same for many rows, by the layout in gemm.h. False: this level has none of its own.
static bool round_for_many(float *y, const float *x, int n_rows, int n_col, TensorType type) {
    static const GemmTable *const *const MANY[] = {[ISA_AVX2] = &GEMM_AVX2, [ISA_AVXVNNI] = &GEMM_AVXVNNI, [ISA_AVX512VNNI] = &GEMM_AVX512VNNI, [ISA_AMX] = &GEMM_AMX};
    const int isa = isa_by_name(level), group = limits.n_expert || type == TYPE_Q2_K || type == TYPE_Q3_K || type == TYPE_Q6_K ? 16 : 32; // with one scale
    if (isa < ISA_AVX2) return false;
    GemmX *row = aligned_alloc(64, (size_t)gemm_x_bytes(n_col));
    float *lost = malloc(sizeof(float) * (size_t)n_col);
    bool near = true, rest = true;
    for (int r = 0; r < n_rows; r++, x += n_col, y += n_col) {
        (*MANY[isa])->pack(row, lost, x, n_col, type, limits.n_expert > 0);
        for (int i = 0; i < n_col; i++) {
            float step = 0;
            for (int k = i / group * group; k < i / group * group + group; k++) step = fmaxf(step, fabsf(x[k]) / 127);
            y[i] = row[i / 32].d[i / 16 % 2] * (float)row[i / 32].q[i % 32];
            near &= fabsf(y[i] - x[i]) <= 0.5001f * step;
            rest &= fabsf(lost[i] - (x[i] - y[i])) <= 0x1p-23f * fabsf(x[i]); // a product rounded or not
        }
    }
    CHECK(near, "%s: rounded rows of a prompt are more than half a step away, %d columns", level, n_col);
    CHECK(rest, "%s: what rounding takes away is wrong, %d columns", level, n_col);
    free(lost);
    free(row);
    return true;
}

// size[r][o] = sum of |w x|, with |minimum| counted apart for the formats that have one (at most 64 times the largest scale)
static void term_sizes(float *size, const Tensor *w, const float *x, int n_rows) {
    float *row = malloc(sizeof(float) * (size_t)w->n_col);
    for (int o = 0; o < w->n_row; o++) {
        type_info((int)w->type)->to_f32(tensor_row(w, 0, o), row, w->n_col);
        double largest = 0;
        for (int i = 0; i < w->n_col; i++) largest = fmax(largest, fabs(row[i]));
        for (int r = 0; r < n_rows; r++) {
            double sum = 0;
            for (int i = 0; i < w->n_col; i++) sum += (fabs(row[i]) + largest) * fabs(x[(int64_t)r * w->n_col + i]);
            size[(int64_t)r * w->n_row + o] = (float)sum;
        }
    }
    free(row);
}

// As rows of a small batch (dot.h) and of a large one (gemm.h): each way an output is the same bits whatever rows are beside it.
static void check_product(const Matrix *m, const Tensor *bias, const float *x, int n_rows, const char *what) {
    const Tensor *w = &m->t;
    const int64_t n = (int64_t)n_rows * w->n_row, n_x = (int64_t)n_rows * w->n_col;
    float *want = floats(n), *got = floats(n), *other = floats(n), *size = floats(n), *rounded = copy_of(x, n_x);
    const char *name = type_info((int)w->type)->name;
    for (int batch = 1; batch <= GEMM_FROM; batch += GEMM_FROM - 1) {
        if (type_info((int)w->type)->block > 1 && (batch == 1 || !round_for_many(rounded, x, n_rows, w->n_col, w->type))) round_activations(rounded, x, n_rows, w->n_col);
        ref.matmul(&ref, want, w, bias, rounded, n_rows);
        term_sizes(size, w, rounded, n_rows);
        for (int64_t i = 0; bias && i < n; i++) size[i] += fabsf(((const float *)bias->host)[i % w->n_row]);
        cpu.batch = solo.batch = batch;
        cpu.matmul(&cpu, got, w, bias, x, n_rows);
        check_close(got, want, size, n, 0x1p-20f, 0, "matmul %s %d x %d, %d rows of a batch of %d, %s", name, w->n_row, w->n_col, n_rows, batch, what);
        solo.matmul(&solo, other, w, bias, x, n_rows);
        CHECK(!memcmp(got, other, sizeof(float) * (size_t)n), "%s matmul %s %d x %d, %d rows of a batch of %d: one thread gives other bits", level, name, w->n_row, w->n_col, n_rows, batch);
        for (int r = 0; r < n_rows; r++) cpu.matmul(&cpu, other + (int64_t)r * w->n_row, w, bias, x + (int64_t)r * w->n_col, 1);
        CHECK(!memcmp(got, other, sizeof(float) * (size_t)n), "%s matmul %s %d x %d, %d rows of a batch of %d: row by row gives other bits", level, name, w->n_row, w->n_col, n_rows, batch);
    }
    cpu.batch = solo.batch = 0;
    free(want);
    free(got);
    free(other);
    free(size);
    free(rounded);
}

static bool reserve_all(int n_expert) {
    Err e = {{0}};
    limits = (Limits){.n_rows = MANY_ROWS, .n_col = 2304, .n_ctx = 900, .n_head = 16, .head_dim = 512, .n_embd = 2048, .n_ff_expert = n_expert ? 512 : 0,
                      .n_expert = n_expert, .n_expert_used = n_expert ? 3 : 0};
    const bool ok = ref.reserve(&ref, &limits, &e) && cpu.reserve(&cpu, &limits, &e) && solo.reserve(&solo, &limits, &e);
    CHECK(ok, "%s: %s", level, e.text);
    return ok;
}

static void test_matmul(bool all) { // or of each type one shape
    static const int wide[] = {256, 768, 1280}, narrow[] = {32, 96, 160, 1312}, any[] = {1, 7, 16, 33, 100, 259}, heights[] = {1, 5, 16, 67};
    for (int t = 0; t < N_TYPE; t++) {
        const int block = type_info((int)TYPES[t].type)->block;
        const int *cols = block == 256 ? wide : block == 32 ? narrow : any, n_cols = block == 256 ? 3 : block == 32 ? 4 : 6;
        for (int k = all ? 0 : n_cols - 1; k < n_cols; k++)
            for (int h = all ? 0 : 3; h < 4; h++) {
                Matrix m;
                make_matrix(&m, TYPES[t].type, 1, heights[h], cols[k]);
                float *bias = floats(heights[h]);
                const Tensor b = vector_of(bias, heights[h]);
                for (int n_rows = 1; n_rows <= MAX_ROWS; n_rows += h == 3 && !slow ? 1 : 4) {
                    float *x = floats((int64_t)n_rows * cols[k]);
                    check_product(&m, n_rows % 2 ? &b : NULL, x, n_rows, "gaussian");
                    free(x);
                }
                free(bias);
                free(m.memory);
            }
        Matrix many; // more rows, columns and rows of x than a tile of gemm.h has
        const int n_col = slow ? 768 : 2304;
        make_matrix(&many, TYPES[t].type, 1, GEMM_TILE_ROWS + 19, n_col);
        float *rows = floats(MANY_ROWS * n_col);
        check_product(&many, NULL, rows, MANY_ROWS, "many");
        free(rows);
        free(many.memory);

        Matrix m; // zeros, large and tiny activations beside each other
        make_matrix(&m, TYPES[t].type, 1, 19, 512);
        float *x = floats(3 * 512);
        for (int i = 0; i < 3 * 512; i++) x[i] *= i / 32 % 4 == 0 ? 0 : i / 32 % 4 == 1 ? 1e4f : i / 32 % 4 == 2 ? 1e-4f : 1;
        check_product(&m, NULL, x, 3, "uneven");
        free(x);
        free(m.memory);

        make_matrix(&m, TYPES[t].type, 1, 64, 2048); // the price of 8-bit activations
        x = floats(4 * 2048);
        float *want = floats(4 * 64), *got = floats(4 * 64);
        ref.matmul(&ref, want, &m.t, NULL, x, 4);
        for (int batch = 1; batch <= GEMM_FROM; batch += GEMM_FROM - 1) {
            cpu.batch = batch;
            m.t.precise = false;
            cpu.matmul(&cpu, got, &m.t, NULL, x, 4);
            const double limit = block == 1 ? 1e-11 : 1e-4, error = nmse(got, want, 4 * 64);
            CHECK(error <= limit, "%s matmul %s: NMSE %.2e of float activations, expected <= %.0e", level, type_info((int)TYPES[t].type)->name, error, limit);
            m.t.precise = true; // two terms of 8 bits
            cpu.matmul(&cpu, got, &m.t, NULL, x, 4);
            const double precise = nmse(got, want, 4 * 64);
            CHECK(precise <= 1e-9, "%s precise matmul %s: NMSE %.2e of float activations, expected <= 1e-9", level, type_info((int)TYPES[t].type)->name, precise);
            float row[64];
            cpu.matmul(&cpu, row, &m.t, NULL, x + 3 * 2048, 1);
            CHECK(!memcmp(row, got + 3 * 64, sizeof row), "%s precise matmul %s: a row alone gives other bits", level, type_info((int)TYPES[t].type)->name);
        }
        cpu.batch = 0;
        free(want);
        free(got);
        free(x);
        free(m.memory);
    }
    Matrix m; // -128 in every place: REF's quantiser never writes it, foreign files may
    make_matrix(&m, TYPE_Q8_0, 1, 33, 64);
    for (int64_t i = 0; i < tensor_bytes(&m.t); i++)
        if (i % 34 >= 2 && i / 34 % 3 != 1) ((char *)(uintptr_t)m.t.host)[i] = -128;
    float *x = floats(5 * 64);
    for (int i = 0; i < 5 * 64; i++) x[i] = i % 64 < 32 ? (i % 5 < 3 ? 1.0f : -1.0f) : x[i];
    check_product(&m, NULL, x, 5, "codes of -128");
    free(x);
    free(m.memory);
}

// Several matrices at once, and a gate with its activation, are the bits of their parts, in every mix of types that a layer may have,
// as rows of a small batch and of a large one, on one thread and row by row.
static void test_together(void) {
    static const struct {
        TensorType type[3];
        int height[3], n_col;
        bool precise; // the first
    } SHAPES[] = {
        {{TYPE_Q4_K, TYPE_Q4_K, TYPE_Q6_K}, {512, 67, 67}, 512, false}, {{TYPE_Q5_0, TYPE_Q5_0, TYPE_Q8_0}, {40, 16, 1}, 96, false},
        {{TYPE_F32, TYPE_Q4_K, TYPE_F16}, {33, 5, 300}, 256, false},    {{TYPE_Q4_K, TYPE_BF16, TYPE_Q8_0}, {17, 129, 64}, 768, true},
        {{TYPE_F16, TYPE_F32, TYPE_BF16}, {7, 1, 50}, 37, false},
    };
    for (size_t s = 0; s < sizeof SHAPES / sizeof *SHAPES; s++)
        for (int i = 0; i < 2 * MAX_ROWS; i += slow && i % 2 ? 5 : 1) {
            const int n_rows = i / 2 + 1, n_col = SHAPES[s].n_col, n_ff = SHAPES[s].height[0];
            cpu.batch = solo.batch = i % 2 ? GEMM_FROM : 1;
            Matrix w[3], up;
            Matmul m[3], other[3];
            float *want[3], *bias[4], *x = floats((int64_t)n_rows * n_col);
            Tensor b[4];
            for (int k = 0; k < 4; k++) {
                bias[k] = floats(SHAPES[s].height[k % 3]);
                b[k] = vector_of(bias[k], SHAPES[s].height[k % 3]);
            }
            for (int k = 0; k < 3; k++) {
                const int64_t n = (int64_t)n_rows * SHAPES[s].height[k];
                make_matrix(&w[k], SHAPES[s].type[k], 1, SHAPES[s].height[k], n_col);
                w[k].t.precise = k == 0 && SHAPES[s].precise;
                want[k] = floats(n);
                m[k] = other[k] = (Matmul){floats(n), &w[k].t, k == n_rows % 3 ? &b[k] : NULL};
                cpu.matmul(&cpu, want[k], m[k].w, m[k].bias, x, n_rows);
                other[k].y = floats(n);
            }
            for (int n = 1; n <= 3; n++) {
                for (int k = 0; k < n; k++) memset(m[k].y, 0, sizeof(float) * (size_t)(n_rows * SHAPES[s].height[k]));
                cpu.matmuls(&cpu, m, n, x, n_rows);
                solo.matmuls(&solo, other, n, x, n_rows);
                for (int k = 0; k < n; k++) {
                    const size_t bytes = sizeof(float) * (size_t)(n_rows * SHAPES[s].height[k]);
                    CHECK(!memcmp(m[k].y, want[k], bytes), "%s matmuls, shape %d, %d rows of a batch of %d, %d of %d: other bits than alone", level, (int)s, n_rows, cpu.batch, k, n);
                    CHECK(!memcmp(other[k].y, want[k], bytes), "%s matmuls, shape %d, %d rows: one thread gives other bits", level, (int)s, n_rows);
                }
            }

            const int64_t n = (int64_t)n_rows * n_ff;
            const int stride = n_ff + 5;
            float *scratch = floats(n), *got = floats(n), *factor = floats((int64_t)n_rows * stride), *single = floats(n), *up_x = floats(n);
            make_matrix(&up, SHAPES[s].type[1], 1, n_ff, n_col);
            GatedArgs a = {.y = got, .gate = &w[0].t, .up = &up.t, .gate_bias = m[0].bias, .up_bias = n_rows % 2 ? &b[3] : NULL, .x = x, .scratch = scratch,
                           .n_rows = n_rows, .act = s % 2 ? ACT_SILU : ACT_GELU_TANH};
            for (int with_up = 1; with_up >= 0; with_up--) {
                if (with_up) cpu.matmul(&cpu, up_x, &up.t, a.up_bias, x, n_rows);
                else {
                    a.up = NULL, a.factor = factor, a.factor_stride = stride;
                    for (int r = 0; r < n_rows; r++) memcpy(up_x + (int64_t)r * n_ff, factor + (int64_t)r * stride, sizeof(float) * (size_t)n_ff);
                }
                ref.gated(&ref, single, want[0], up_x, n, a.act);
                cpu.gated_matmul(&cpu, &a);
                check_close(got, single, NULL, n, 3e-6f, 1e-2f, "gated_matmul, shape %d, %d rows of a batch of %d, up %d", (int)s, n_rows, cpu.batch, with_up);
                for (int r = 0; r < n_rows; r++) {
                    GatedArgs one = a;
                    one.y = single + (int64_t)r * n_ff, one.x = x + (int64_t)r * n_col, one.factor = factor + (int64_t)r * stride, one.n_rows = 1;
                    solo.gated_matmul(&solo, &one);
                }
                CHECK(!memcmp(got, single, sizeof(float) * (size_t)n), "%s gated_matmul, shape %d, %d rows: row by row gives other bits", level, (int)s, n_rows);
            }
            void *all[] = {x, scratch, got, factor, single, up_x, up.memory, bias[3]};
            for (size_t k = 0; k < sizeof all / sizeof *all; k++) free(all[k]);
            for (int k = 0; k < 3; k++) {
                void *each[] = {w[k].memory, m[k].y, other[k].y, want[k], bias[k]};
                for (int e = 0; e < 5; e++) free(each[e]);
            }
        }
    cpu.batch = solo.batch = 0;
}

// -- attention ------------------------------------------------------------------------------------------------------------

// What the cpu cache holds, as floats: both backends then start from the same numbers. Q8_0: by powers of two, with the largest code in
// every group, so that rounding again finds the same scale and codes.
static void round_to(TensorType type, float *x, int64_t n) {
    for (int64_t i = 0; i < n && type != TYPE_Q8_0; i++) x[i] = f16_to_f32(f16_from_f32(x[i]));
    for (int64_t i = 0; i < n && type == TYPE_Q8_0; i += 32) {
        const float d = ldexpf(1, random_below(4) - 8);
        for (int k = 0; k < 32; k++) x[i + k] = d * fminf(127, fmaxf(-127, rintf(x[i + k] / d)));
        x[i + random_below(32)] = random_below(2) ? 127 * d : -127 * d;
    }
}

static KvLayer make_cache(const KvLayer *like, TensorType own) {
    KvLayer kv = *like;
    const int64_t cells = (int64_t)kv.n_head_kv * kv.n_cell * kv.head_dim;
    kv.k = calloc((size_t)type_row_bytes(kv.type_k ? kv.type_k : own, cells), 1);
    kv.v = calloc((size_t)type_row_bytes(kv.type_v ? kv.type_v : own, cells), 1);
    return kv;
}

static void test_attention(void) {
    static const struct {
        int n_head, n_head_kv, head_dim, window, n_cell, n_pos; // n_cell >= n_pos, or >= window - 1 + MAX_ROWS
        float softcap;
        TensorType type_k, type_v;
    } SHAPES[] = {
        {1, 1, 8, 0, 40, 40, 0, 0, 0},    {4, 2, 16, 0, 70, 70, 0, 0, 0},  {6, 1, 24, 0, 50, 45, 30, 0, 0},  {8, 8, 64, 0, 40, 40, 0, 0, 0},     {4, 1, 80, 16, 24, 70, 0, 0, 0},
        {3, 3, 100, 5, 13, 40, 50, 0, 0}, {8, 4, 128, 1, 9, 30, 0, 0, 0},  {2, 1, 256, 33, 41, 140, 0, 0, 0}, {10, 2, 40, 64, 72, 200, 20, 0, 0}, {5, 1, 7, 12, 20, 60, 0, 0, 0},
        {4, 2, 512, 0, 300, 300, 0, 0, 0}, {16, 1, 40, 0, 200, 200, 0, 0, 0},
        {4, 1, 64, 0, 900, 900, 0, 0, 0},  {2, 2, 36, 300, 330, 900, 20, 0, 0},
        {4, 2, 32, 0, 70, 70, 0, TYPE_Q8_0, TYPE_Q8_0},    {6, 2, 64, 0, 500, 500, 30, TYPE_Q8_0, TYPE_F32}, {3, 3, 96, 20, 28, 90, 0, TYPE_Q8_0, TYPE_Q8_0},
        {4, 1, 128, 0, 300, 300, 0, TYPE_F32, TYPE_Q8_0},  {2, 1, 256, 33, 41, 140, 0, TYPE_Q8_0, TYPE_Q8_0}, {4, 2, 512, 0, 150, 150, 0, TYPE_Q8_0, TYPE_Q8_0},
    };
    for (int i = 0; i < 2 * (int)(sizeof SHAPES / sizeof *SHAPES); i++) { // as rows of small batches, then of large ones
        const int k = i / 2, most = SHAPES[k].window ? MAX_ROWS : MANY_ROWS;
        cpu.batch = solo.batch = i % 2 ? GEMM_FROM : 1;
        const int n_head = SHAPES[k].n_head, n_kv = SHAPES[k].n_head_kv, dim = SHAPES[k].head_dim, n_pos = SHAPES[k].n_pos;
        const int64_t q_row = (int64_t)n_head * dim, kv_row = (int64_t)n_kv * dim;
        float *q = floats(n_pos * q_row), *key = floats(n_pos * kv_row), *value = floats(n_pos * kv_row);
        round_to(SHAPES[k].type_k, key, n_pos * kv_row);
        round_to(SHAPES[k].type_v, value, n_pos * kv_row);
        float *want = floats(n_pos * q_row), *got = floats(n_pos * q_row), *single = floats(n_pos * q_row);
        const KvLayer shape = {.n_cell = SHAPES[k].n_cell, .n_head_kv = n_kv, .head_dim = dim, .type_k = SHAPES[k].type_k, .type_v = SHAPES[k].type_v};
        KvLayer exact = make_cache(&shape, TYPE_F32), half = make_cache(&shape, TYPE_F16), again = make_cache(&shape, TYPE_F16);
        for (int pos = 0, n_rows; pos < n_pos; pos += n_rows) {
            n_rows = min_int(1 + random_below(most), n_pos - pos);
            AttentionArgs a = {.y = want + pos * q_row, .q = q + pos * q_row, .kv = &exact, .n_rows = n_rows, .pos = pos, .n_head = n_head,
                               .window = SHAPES[k].window, .scale = 1 / sqrtf((float)dim), .softcap = SHAPES[k].softcap};
            ref.kv_write(&ref, &exact, key + pos * kv_row, value + pos * kv_row, n_rows, pos);
            ref.attention(&ref, &a);
            cpu.kv_write(&cpu, &half, key + pos * kv_row, value + pos * kv_row, n_rows, pos);
            a.kv = &half;
            a.y = got + pos * q_row;
            cpu.attention(&cpu, &a);
            for (int r = 0; r < n_rows; r++) {
                solo.kv_write(&solo, &again, key + (pos + r) * kv_row, value + (pos + r) * kv_row, 1, pos + r);
                AttentionArgs one = a;
                one.kv = &again;
                one.y = single + (pos + r) * q_row;
                one.q = q + (pos + r) * q_row;
                one.n_rows = 1;
                one.pos = pos + r;
                solo.attention(&solo, &one);
            }
        }
        check_close(got, want, NULL, n_pos * q_row, 4e-6f, 0.5f, "attention %d/%d heads of %d, window %d, batches of %d", n_head, n_kv, dim, SHAPES[k].window, cpu.batch);
        if (SHAPES[k].type_k == TYPE_Q8_0 && i % 2) { // what the cpu has rounded is what ref has
            const size_t bytes = (size_t)type_row_bytes(TYPE_Q8_0, (int64_t)SHAPES[k].n_cell * kv_row);
            CHECK(!memcmp(exact.k, half.k, bytes), "%s: Q8_0 keys of heads of %d are others than ref's", level, dim);
        }
        CHECK(!memcmp(got, single, sizeof(float) * (size_t)(n_pos * q_row)), "%s attention %d/%d heads of %d, window %d, batches of %d: row by row gives other bits", level,
              n_head, n_kv, dim, SHAPES[k].window, cpu.batch);
        void *all[] = {q, key, value, want, got, single, exact.k, exact.v, half.k, half.v, again.k, again.v};
        for (size_t m = 0; m < sizeof all / sizeof *all; m++) free(all[m]);
    }
    cpu.batch = solo.batch = 0;
}

// Positions of a ring go to a smaller and to a larger one, where attention sees the same; and rounding to Q8_0 is quant.c's but for ties.
static void test_cells(void) {
    enum { HEADS = 3, DIM = 64, N = 40, FROM = 23, TO = 31, POS = 17 }; // the last TO of N; POS .. N - 1 are copied
    for (int type = TYPE_F32; type <= TYPE_Q8_0; type += TYPE_Q8_0) {
        const int64_t row = HEADS * DIM;
        float *key = floats(N * row), *value = floats(N * row), *q = floats(row), want[HEADS * DIM], got[HEADS * DIM];
        for (int which = 0; which < 2; which++) {
            Backend *b = which ? &cpu : &ref;
            KvLayer shape = {.n_cell = FROM, .n_head_kv = HEADS, .head_dim = DIM, .type_k = (TensorType)type, .type_v = (TensorType)type};
            KvLayer from = make_cache(&shape, b->kv_type);
            shape.n_cell = TO;
            KvLayer to = make_cache(&shape, b->kv_type);
            for (int pos = 0; pos < N; pos++) b->kv_write(b, &from, key + pos * row, value + pos * row, 1, pos);
            b->kv_copy(b, &to, &from, N - POS, POS);
            AttentionArgs a = {.y = want, .q = q, .kv = &from, .n_rows = 1, .pos = N - 1, .n_head = HEADS, .window = N - POS, .scale = 0.125f};
            b->attention(b, &a);
            a.y = got, a.kv = &to;
            b->attention(b, &a);
            CHECK(!memcmp(want, got, sizeof want), "%s %s: copied cells of type %d give other sums", level, b->name, type);
            void *all[] = {from.k, from.v, to.k, to.v};
            for (int i = 0; i < 4; i++) free(all[i]);
        }
        free(key);
        free(value);
        free(q);
    }
    enum { MANY = 32 * 500 };
    float *x = floats(MANY);
    memset(x + 64, 0, sizeof(float) * 32);
    KvLayer shape = {.n_cell = MANY / 32, .n_head_kv = 1, .head_dim = 32, .type_k = TYPE_Q8_0, .type_v = TYPE_Q8_0};
    KvLayer a = make_cache(&shape, TYPE_F32), b = make_cache(&shape, TYPE_F16);
    ref.kv_write(&ref, &a, x, x, MANY / 32, 0);
    cpu.kv_write(&cpu, &b, x, x, MANY / 32, 0);
    int differ = 0, far = 0;
    for (int i = 0; i < MANY; i++) {
        const int d = ((int8_t *)a.k)[i] - ((int8_t *)b.k)[i];
        differ += d != 0;
        far += d < -1 || d > 1;
    }
    CHECK(differ <= MANY / 1000 && !far, "%s: %d of %d codes differ, %d by more than 1", level, differ, MANY, far);
    CHECK(!memcmp(kv_scales(&a, a.k), kv_scales(&b, b.k), sizeof(F16) * (MANY / 32)), "%s: other scales", level);
    void *all[] = {x, a.k, a.v, b.k, b.v};
    for (int i = 0; i < 5; i++) free(all[i]);
}

// -- experts --------------------------------------------------------------------------------------------------------------

enum { EXPERTS = 8, USED = 3 };

// Of all experts, whose sum is `want`: the first n_here of some order in tensors that hold only those, the others in the whole tensors. Rows
// that have no expert there must become 0, and both shares together `want`, but for the order of the additions.
static void check_shares(Backend *b, const MoeArgs *whole, const float *want, int n_here) {
    const int n_embd = whole->down->n_row;
    const int64_t n = (int64_t)whole->n_rows * n_embd;
    int order[EXPERTS], slot[2][EXPERTS];
    const void *slices[3][EXPERTS];
    Tensor part[3] = {*whole->gate, *whole->up, *whole->down};
    for (int i = 0; i < EXPERTS; i++) order[i] = (3 * i + n_here) % EXPERTS;
    for (int i = 0; i < EXPERTS; i++) {
        slot[0][order[i]] = i < n_here ? i : -1;
        slot[1][order[i]] = i < n_here ? -1 : order[i];
        for (int t = 0; t < 3; t++) slices[t][i] = tensor_row(&part[t], order[i], 0);
    }
    for (int t = 0; t < 3; t++) part[t].n_slice = n_here, part[t].host = slices[t][0], part[t].slices = slices[t];
    float *y[2];
    for (int k = 0; k < 2; k++) {
        MoeArgs a = *whole;
        a.y = y[k] = malloc(sizeof(float) * (size_t)n);
        memset(a.y, 0xff, sizeof(float) * (size_t)n);
        a.slot = slot[k];
        if (k == 0) a.gate = &part[0], a.up = &part[1], a.down = &part[2];
        b->moe_ffn(b, &a);
        for (int r = 0; r < a.n_rows; r++) {
            bool any = false, zero = true;
            for (int u = 0; u < a.n_used; u++) any |= slot[k][a.expert[r * a.n_used + u]] >= 0;
            for (int i = 0; i < n_embd; i++) zero &= a.y[(int64_t)r * n_embd + i] == 0;
            CHECK(any || zero, "%s moe_ffn, %d of %d experts: row %d has none of them and is not 0", b->name, n_here, EXPERTS, r);
        }
    }
    for (int64_t i = 0; i < n; i++) y[0][i] += y[1][i];
    const double error = nmse(y[0], want, n);
    CHECK(error <= 1e-11, "%s %s moe_ffn, %d rows: %d of %d experts and the others: NMSE %.2e from all", b->name, level, whole->n_rows, n_here, EXPERTS, error);
    free(y[0]);
    free(y[1]);
}

static void test_moe(void) {
    static const struct {
        TensorType gate_up, down;
        int n_embd, n_ff;
    } SHAPES[] = {{TYPE_F32, TYPE_F16, 40, 52}, {TYPE_Q4_K, TYPE_Q6_K, 256, 512}, {TYPE_Q8_0, TYPE_Q5_0, 96, 160}, {TYPE_Q4_0, TYPE_F32, 64, 33}, {TYPE_MXFP4, TYPE_MXFP4, 64, 96}};
    for (int i = 0; i < 2 * (int)(sizeof SHAPES / sizeof *SHAPES); i++) // as rows of small batches, then of large ones
        for (int n_rows = 1; n_rows <= MAX_ROWS; n_rows += 4) {
            const int k = i / 2;
            cpu.batch = solo.batch = i % 2 ? GEMM_FROM : 1;
            const int n_embd = SHAPES[k].n_embd, n_ff = SHAPES[k].n_ff;
            const int64_t n = (int64_t)n_rows * n_embd;
            Matrix gate, up, down;
            make_matrix(&gate, SHAPES[k].gate_up, EXPERTS, n_ff, n_embd);
            make_matrix(&up, SHAPES[k].gate_up, EXPERTS, n_ff, n_embd);
            make_matrix(&down, SHAPES[k].down, EXPERTS, n_embd, n_ff);
            float *x = floats(n), *want = floats(n), *got = floats(n), *single = floats(n), *logits = floats(n_rows * EXPERTS), *gains = floats(EXPERTS);
            int expert[MAX_ROWS * USED], expert_ref[MAX_ROWS * USED];
            float weight[MAX_ROWS * USED], weight_ref[MAX_ROWS * USED];
            if (n_rows > 1) logits[EXPERTS + 2] = logits[EXPERTS + 5] = 4; // a tie: the lower index first
            const Tensor gain = vector_of(gains, EXPERTS);
            ref.moe_route(&ref, expert_ref, weight_ref, logits, k % 2 ? &gain : NULL, n_rows, EXPERTS, USED);
            cpu.moe_route(&cpu, expert, weight, logits, k % 2 ? &gain : NULL, n_rows, EXPERTS, USED);
            CHECK(!memcmp(expert, expert_ref, sizeof(int) * (size_t)(n_rows * USED)), "%s moe_route, %d rows: other experts", level, n_rows);
            check_close(weight, weight_ref, NULL, n_rows * USED, 1e-6f, 0, "moe_route, %d rows", n_rows);
            MoeArgs a = {.y = want, .gate = &gate.t, .up = &up.t, .down = &down.t, .x = x, .expert = expert, .weight = weight, .n_rows = n_rows, .n_used = USED,
                         .act = k % 2 ? ACT_SILU : ACT_GELU_TANH};
            ref.moe_ffn(&ref, &a);
            a.y = got;
            cpu.moe_ffn(&cpu, &a);
            const double error = nmse(got, want, n), limit = type_info((int)SHAPES[k].gate_up)->block == 1 ? 1e-11 : 1e-3;
            CHECK(error <= limit, "%s moe_ffn %s, %d rows: NMSE %.2e, expected <= %.0e", level, type_info((int)SHAPES[k].gate_up)->name, n_rows, error, limit);
            for (int r = 0; r < n_rows; r++) {
                MoeArgs one = a;
                one.y = single + (int64_t)r * n_embd;
                one.x = x + (int64_t)r * n_embd;
                one.expert = expert + r * USED;
                one.weight = weight + r * USED;
                one.n_rows = 1;
                solo.moe_ffn(&solo, &one);
            }
            CHECK(!memcmp(got, single, sizeof(float) * (size_t)n), "%s moe_ffn %s, %d rows: row by row gives other bits", level, type_info((int)SHAPES[k].gate_up)->name, n_rows);
            for (int s = 0; s < 5; s++) {
                const int n_here = (const int[]){0, 1, EXPERTS / 2, EXPERTS - 1, EXPERTS}[s];
                check_shares(&cpu, &a, got, n_here);
                if (i % 2 && !strcmp(level, "portable")) check_shares(&ref, &a, want, n_here);
            }
            void *all[] = {x, want, got, single, logits, gains, gate.memory, up.memory, down.memory};
            for (size_t m = 0; m < sizeof all / sizeof *all; m++) free(all[m]);
        }
    cpu.batch = solo.batch = 0;
}

// -- the small ops --------------------------------------------------------------------------------------------------------

static void test_embed_and_norm(void) {
    for (int t = 0; t < N_TYPE; t++) {
        Matrix m;
        make_matrix(&m, TYPES[t].type, 1, 20, 512);
        float want[4 * 512], got[4 * 512];
        const int ids[4] = {19, 0, 7, 7};
        ref.embed(&ref, want, &m.t, ids, 4, 3.5f);
        cpu.embed(&cpu, got, &m.t, ids, 4, 3.5f);
        CHECK(!memcmp(want, got, sizeof want), "%s embed %s differs", level, type_info((int)TYPES[t].type)->name);
        free(m.memory);
    }
    static const int cols[] = {1, 3, 8, 37, 64, 256, 1031};
    for (int k = 0; k < 7; k++)
        for (int n_rows = 1; n_rows <= 40; n_rows += 13) {
            const int n = cols[k];
            float *x = floats((int64_t)n_rows * n), *gain = floats(n), *want = floats((int64_t)n_rows * n), *got = copy_of(x, (int64_t)n_rows * n);
            const Tensor w = vector_of(gain, n);
            ref.norm(&ref, want, n_rows % 2 ? &w : NULL, x, n_rows, n, 1e-5f);
            cpu.norm(&cpu, got, n_rows % 2 ? &w : NULL, got, n_rows, n, 1e-5f); // in place
            check_close(got, want, NULL, (int64_t)n_rows * n, 2e-6f, 1e-6f, "norm %d x %d", n_rows, n);
            free(x);
            free(gain);
            free(want);
            free(got);
        }
}

static void test_rope(void) {
    static const struct {
        int n_head, head_dim, n_rot, n_rows, pos;
    } SHAPES[] = {{1, 2, 2, 1, 0}, {3, 8, 6, 4, 5}, {8, 64, 64, 9, 1000}, {4, 256, 128, 3, 131000}, {2, 80, 40, 1, 77}};
    for (int k = 0; k < 5; k++)
        for (int pairing = ROPE_ADJACENT; pairing <= ROPE_HALVES; pairing++) {
            double freq[128];
            for (int i = 0; i < 128; i++) freq[i] = pow(10000, -2.0 * i / SHAPES[k].n_rot);
            const Rope rope = {.pairing = (RopePairing)pairing, .n_rot = SHAPES[k].n_rot, .magnitude = k % 2 ? 1 : 1.19f, .freq = freq};
            const int64_t n = (int64_t)SHAPES[k].n_rows * SHAPES[k].n_head * SHAPES[k].head_dim;
            float *want = floats(n), *got = copy_of(want, n);
            ref.rope(&ref, want, &rope, SHAPES[k].n_rows, SHAPES[k].n_head, SHAPES[k].head_dim, SHAPES[k].pos);
            cpu.rope(&cpu, got, &rope, SHAPES[k].n_rows, SHAPES[k].n_head, SHAPES[k].head_dim, SHAPES[k].pos);
            check_close(got, want, NULL, n, 3e-7f, 1, "rope pairing %d, %d of %d, position %d", pairing, SHAPES[k].n_rot, SHAPES[k].head_dim, SHAPES[k].pos);
            free(want);
            free(got);
        }
}

static void test_elementwise(void) {
    static const int counts[] = {1, 7, 8, 15, 16, 17, 100, 4099, 40001};
    for (int k = 0; k < 9; k++) {
        const int n = counts[k];
        float *x = floats(n), *u = floats(n), *want = floats(n), *got = floats(n);
        for (int i = 0; i < n; i++) x[i] *= i % 7 == 0 ? 30 : i % 11 == 0 ? 1e-3f : 2;
        if (n > 100) { // far out on both sides
            x[3] = 200;
            x[4] = -200;
            x[5] = 1e30f;
            x[6] = -1e30f;
        }
        for (int act = ACT_SILU; act <= ACT_GELU_TANH; act++) {
            ref.gated(&ref, want, x, u, n, (Activation)act);
            memcpy(got, x, sizeof(float) * (size_t)n);
            cpu.gated(&cpu, got, got, u, n, (Activation)act); // in place
            check_close(got, want, NULL, n, 3e-6f, 1e-2f, "gated %d, %d elements", act, n);
        }
        memcpy(want, x, sizeof(float) * (size_t)n);
        memcpy(got, x, sizeof(float) * (size_t)n);
        ref.softcap(&ref, want, 30, n);
        cpu.softcap(&cpu, got, 30, n);
        check_close(got, want, NULL, n, 1e-6f, 0, "softcap, %d elements", n);
        ref.add(&ref, want, u, n);
        cpu.add(&cpu, got, u, n);
        ref.scale(&ref, want, 0.3f, n);
        cpu.scale(&cpu, got, 0.3f, n);
        check_close(got, want, NULL, n, 1e-6f, 10, "add and scale, %d elements", n);
        free(x);
        free(u);
        free(want);
        free(got);
    }
}

static void test_top(void) {
    for (int s = 0; s < N_TOP_SHAPE; s++)
        for (int kind = 0; kind < N_TOP_KIND; kind++) {
            const int n_vocab = TOP_SHAPES[s].n_vocab, k = TOP_SHAPES[s].k, n_rows = 1 + 2 * (kind % 2);
            float *logits = floats((int64_t)n_rows * n_vocab), *bias = floats(n_vocab);
            Likely *want = calloc((size_t)(n_rows * k), sizeof *want), *got = calloc((size_t)(n_rows * k), sizeof *got);
            top_logits(logits, n_rows * n_vocab, kind);
            for (int i = 0; i < n_vocab; i++) bias[i] = random_below(3) ? 0 : -INFINITY;
            TopArgs a = {.y = want, .logits = logits, .bias = s % 2 ? bias : NULL, .n_rows = n_rows, .n_vocab = n_vocab, .k = k};
            ref.top(&ref, &a);
            a.y = got;
            cpu.top(&cpu, &a);
            CHECK(!memcmp(want, got, sizeof *want * (size_t)(n_rows * k)), "%s top %d of %d, logits of kind %d: others than ref's", level, k, n_vocab, kind);
            for (int r = 0; r < n_rows; r++) { // ref itself: in order, and nothing that was left out comes before the last
                const Likely *y = want + r * k, *last = y + k - 1;
                int ahead = 0;
                bool order = true;
                for (int i = 1; i < k; i++) order &= y[i - 1].logit > y[i].logit || (y[i - 1].logit == y[i].logit && y[i - 1].id < y[i].id);
                for (int id = 0; id < n_vocab; id++) {
                    float x = logits[r * n_vocab + id] + (a.bias ? bias[id] : 0);
                    x = isnan(x) ? -INFINITY : x == INFINITY ? 3.4028235e38f : x;
                    ahead += x > last->logit || (x == last->logit && id <= last->id);
                }
                CHECK(order && ahead == k, "ref top %d of %d, logits of kind %d: %s, %d up to the last", k, n_vocab, kind, order ? "in order" : "not in order", ahead);
            }
            free(logits);
            free(bias);
            free(want);
            free(got);
        }
}

static void test_streams(void) {
    enum { ROWS = 5, COLS = 517, IN = 4, OUT = 3 };
    const int64_t n = ROWS * COLS;
    float *x = floats(n * IN), *coef = floats(ROWS * OUT * IN), *want = floats(n * OUT), *got = copy_of(want, n * OUT), *gain = floats(COLS);
    ref.mix_streams(&ref, want, coef, x, OUT, IN, ROWS, COLS);
    cpu.mix_streams(&cpu, got, coef, x, OUT, IN, ROWS, COLS);
    check_close(got, want, NULL, n * OUT, 2e-6f, 1, "mix_streams");

    const Tensor w = vector_of(gain, COLS);
    ref.mul_cols(&ref, want, &w, ROWS);
    cpu.mul_cols(&cpu, got, &w, ROWS);
    check_close(got, want, NULL, n, 3e-6f, 3, "mul_cols");

    memset(x + COLS, 0, sizeof(float) * COLS); // a zero row stays zero
    memcpy(want, x, sizeof(float) * (size_t)n);
    memcpy(got, x, sizeof(float) * (size_t)n);
    ref.match_length(&ref, want, x + n, ROWS, COLS);
    cpu.match_length(&cpu, got, x + n, ROWS, COLS);
    check_close(got, want, NULL, n, 2e-6f, 0, "match_length");

    ref.sparsify(&ref, want, 1.645f, ROWS, COLS);
    cpu.sparsify(&cpu, got, 1.645f, ROWS, COLS);
    check_close(got, want, NULL, n, 4e-6f, 2, "sparsify");
    int zeros = 0;
    for (int i = 0; i < n; i++) zeros += got[i] == 0;
    CHECK(zeros > 0.9 * (double)n && zeros < n, "%s sparsify: %d of %d zeros", level, zeros, (int)n);

    float length = 0;
    for (int i = 0; i < COLS; i++) length += gain[i] * gain[i];
    for (int i = 0; i < COLS; i++) gain[i] /= sqrtf(length);
    // gain is a unit vector now. Every row in turn: nothing kept, a part taken, something kept, one side only.
    const ProjectArgs ways[] = {{.amount = 1}, {.amount = 0.7f}, {.amount = 1, .keep = 0.5f}, {.amount = 1, .keep = 0.1f, .one_sided = true}, {.amount = 1, .one_sided = true}};
    for (size_t way = 0; way < sizeof ways / sizeof *ways; way++) {
        ProjectArgs a = ways[way], c = ways[way];
        const float *from = x + n;
        memcpy(want, from, sizeof(float) * (size_t)n);
        memcpy(got, from, sizeof(float) * (size_t)n);
        a.dir = c.dir = gain, a.n_rows = c.n_rows = ROWS, a.n_col = c.n_col = COLS, a.x = want, c.x = got;
        ref.project_out(&ref, &a);
        cpu.project_out(&cpu, &c);
        check_close(got, want, NULL, n, 1e-6f, 1e-6f, "project_out");
        int touched = 0;
        for (int r = 0; r < ROWS; r++) {
            double before = 0, after = 0;
            for (int i = 0; i < COLS; i++) before += (double)gain[i] * from[r * COLS + i], after += (double)gain[i] * got[r * COLS + i];
            const bool acts = !a.one_sided || before > a.keep;
            const double expected = acts ? before - a.amount * (before - a.keep) : before;
            touched += acts;
            CHECK(fabs(after - expected) < 1e-5, "%s project_out way %d leaves %.6f of %.6f, expected %.6f", level, (int)way, after, before, expected);
            CHECK(acts || !memcmp(from + r * COLS, got + r * COLS, sizeof(float) * COLS), "%s project_out changes a row on the other side", level);
        }
        CHECK(a.one_sided ? touched > 0 && touched < ROWS : touched == ROWS, "%s project_out: %d rows touched", level, touched);
    }
    memcpy(want, x, sizeof(float) * (size_t)n);
    memcpy(got, x, sizeof(float) * (size_t)n);
    ref.add_dir(&ref, want, gain, ROWS, COLS, -2.5f);
    cpu.add_dir(&cpu, got, gain, ROWS, COLS, -2.5f);
    check_close(got, want, NULL, n, 1e-6f, 1e-6f, "add_dir");
    for (int i = 0; i < (int)n; i++) CHECK(fabsf(want[i] - (x[i] - 2.5f * gain[i % COLS])) < 1e-5f, "add_dir at %d", i);
    memset(want, 0, sizeof(float) * (size_t)n);
    memset(got, 0, sizeof(float) * (size_t)n);
    ref.copy_rows(&ref, want, COLS, x, 2 * COLS, ROWS, 100);
    cpu.copy_rows(&cpu, got, COLS, x, 2 * COLS, ROWS, 100);
    CHECK(!memcmp(want, got, sizeof(float) * (size_t)n), "%s copy_rows differs", level);
    free(x);
    free(coef);
    free(want);
    free(got);
    free(gain);
}

// -- levels ---------------------------------------------------------------------------------------------------------------

static void test_names(void) {
    for (int isa = ISA_AUTO; isa <= ISA_AMX; isa++) CHECK(isa_by_name(isa_name((Isa)isa)) == isa, "isa %d: name and number disagree", isa);
    CHECK(isa_by_name("sse9") == -1, "an unknown level was accepted");
    CHECK(isa_works(isa_best()) && isa_works(ISA_PORTABLE), "the best level %s does not work", isa_name(isa_best()));
    Err e;
    Backend b;
    for (int isa = ISA_PORTABLE; isa <= ISA_AMX; isa++)
        if (!isa_works((Isa)isa)) CHECK(!backend_open_cpu(&b, 1, (Isa)isa, &e), "%s was opened but does not work here", isa_name((Isa)isa));
}

int main(int argc, char **argv) {
    test_begin(argc, argv);
    slow = getenv("SANITIZED");
    test_comparator();
    test_names();
    Err e = {{0}};
    for (int isa = ISA_PORTABLE; isa <= ISA_AMX; isa++) {
        level = isa_name((Isa)isa);
        if (!isa_works((Isa)isa)) {
            char what[64];
            snprintf(what, sizeof what, "%s: not on this machine", level);
            test_skip(what);
            continue;
        }
        random_state = 88172645463325252ULL;
        const bool open = backend_open_ref(&ref, &e) && backend_open_cpu(&cpu, 3, (Isa)isa, &e) && backend_open_cpu(&solo, 1, (Isa)isa, &e);
        CHECK(open, "%s: %s", level, e.text);
        if (!open || !reserve_all(0)) break;
        test_matmul(true);
        test_together();
        if (!reserve_all(8)) break;
        test_matmul(false);
        test_attention();
        test_cells();
        test_moe();
        test_embed_and_norm();
        test_rope();
        test_elementwise();
        test_top();
        test_streams();
        CHECK(cpu.sync(&cpu, &e), "%s: %s", level, e.text);
        backend_close(&ref);
        backend_close(&cpu);
        backend_close(&solo);
    }
    return test_end();
}

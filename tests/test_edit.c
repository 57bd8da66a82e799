// test_edit.c: what an edit of the weights does: codes of every block type, one matrix (leak, error, threads, odd directions), and
// whole models: that an edited one writes what the run-time intervention leaves. test_edit -v prints tables.
#include <time.h>
#include <unistd.h>

#include "codes.h"
#include "console.h"
#include "edit_watch.h"
#include "random.h"
#include "reference.h"
#include "steer.h"

static bool verbose;

static void unit_vector(double *v, int n, int heavy) { // heavy: 0.2 % of the entries 30 times as large, as massive activations
    double square = 0;
    for (int i = 0; i < n; i++) {
        v[i] = (double)gauss() * (heavy && !random_below(500) ? 30 : 1);
        square += v[i] * v[i];
    }
    for (int i = 0; i < n; i++) v[i] /= sqrt(square);
}

// ---- codes ----

static void test_codes(void) {
    enum { N = 512 };
    for (int which = 0; which < N_TYPE; which++) {
        const TensorType type = TYPES[which].type;
        const TypeInfo *info = type_info((int)type);
        const int group = codes_group(type);
        if (type == TYPE_F32) {
            CHECK(!group, "F32 has no codes");
            continue;
        }
        char blocks[2 * N], again[2 * N];
        float value[N], scale[N / 16], offset[N / 16], at[N], above[N], below[N];
        uint16_t code[N], moved[N];
        const int64_t bytes = type_row_bytes(type, N);
        random_blocks(blocks, type, bytes);
        info->to_f32(blocks, value, N);
        codes_get(type, blocks, N, code, scale, offset);
        for (int i = 0; i < N; i += group) codes_values(type, code + i, group, scale[i / group], offset[i / group], at + i, above + i, below + i);
        int other = 0, dark = 0;
        for (int i = 0; i < N; i++) other += at[i] != value[i], dark += above[i] < 0 || below[i] < 0;
        CHECK(!other && !dark, "%s: %d values of %d differ, %d steps are negative", info->name, other, N, dark);
        memcpy(again, blocks, (size_t)bytes);
        codes_set(type, again, N, code);
        info->to_f32(again, at, N);
        CHECK(type == TYPE_MXFP4 || !memcmp(again, blocks, (size_t)bytes), "%s: the same codes are the same bytes", info->name); // MXFP4 has two zeros

        // One step up and one down, stored and read again, land where codes_values said
        for (int by = -1; by <= 1; by += 2) {
            int wrong = 0, steps = 0;
            codes_values(type, code, group, scale[0], offset[0], at, above, below);
            for (int i = 0; i < N; i += group) codes_values(type, code + i, group, scale[i / group], offset[i / group], at + i, above + i, below + i);
            for (int i = 0; i < N; i++) moved[i] = (by > 0 ? above[i] : below[i]) > 0 ? codes_move(code[i], scale[i / group], by) : code[i];
            memcpy(again, blocks, (size_t)bytes);
            codes_set(type, again, N, moved);
            info->to_f32(again, value, N);
            for (int i = 0; i < N; i++) {
                const float want = by > 0 ? at[i] + above[i] : at[i] - below[i];
                steps += moved[i] != code[i];
                wrong += !(fabsf(value[i] - want) <= 2e-7f * (fabsf(want) + fabsf(at[i])));
            }
            CHECK(!wrong && steps > N / 4, "%s: %d of %d steps by %d land elsewhere", info->name, wrong, steps, by);
        }
        // Nearest: no neighbour is nearer
        float x[N];
        int worse = 0;
        for (int i = 0; i < N; i++) x[i] = at[i] + gauss() * fmaxf(above[i], below[i]);
        for (int i = 0; i < N; i += group) {
            codes_nearest(type, x + i, group, scale[i / group], offset[i / group], code + i);
            codes_values(type, code + i, group, scale[i / group], offset[i / group], at + i, above + i, below + i);
        }
        for (int i = 0; i < N; i++) {
            const float off = x[i] - at[i];
            worse += (above[i] > 0 && off > 0.50001f * above[i]) || (below[i] > 0 && off < -0.50001f * below[i]);
        }
        CHECK(!worse, "%s: %d of %d are not the nearest", info->name, worse, N);
    }
}

// ---- one matrix ----

// How far stored bytes (NULL: those of plain rounding) are from what the edit of `rows` should be.
typedef struct {
    double leak, rmse;
} Plain;

static void measure(const Edit *x, int writer, TensorType in, const void *rows, TensorType type, const void *stored, Plain *p) {
    const Change *c = &x->of[writer];
    const Tensor *t = x->writers.of[writer].w;
    const int R = t->n_row, C = t->n_col, K = c->n_vec;
    const int64_t in_bytes = type_row_bytes(in, C), bytes = type_row_bytes(type, C);
    double *along = calloc((size_t)(C * K), sizeof *along), *after = calloc((size_t)(C * K), sizeof *after), before = 0, residue = 0, norm = 0, error = 0;
    float *w = malloc(sizeof *w * (size_t)C), *read = malloc(sizeof *read * (size_t)C);
    char *block = malloc((size_t)bytes);
    for (int i = 0; i < R; i++) {
        type_info((int)in)->to_f32((const char *)rows + i * in_bytes, w, C);
        for (int k = 0; k < K; k++)
            for (int j = 0; j < C; j++) along[k * C + j] += c->take[k * R + i] * (double)w[j];
    }
    for (int i = 0; i < R; i++) {
        type_info((int)in)->to_f32((const char *)rows + i * in_bytes, w, C);
        for (int j = 0; j < C; j++) {
            double ideal = (double)w[j];
            norm += ideal * ideal;
            for (int k = 0; k < K; k++) ideal -= c->strength * c->give[k * R + i] * along[k * C + j];
            w[j] = (float)ideal;
        }
        if (!stored) type_info((int)type)->from_f32(w, block, C, NULL);
        type_info((int)type)->to_f32(stored ? (const char *)stored + i * bytes : block, read, C);
        for (int j = 0; j < C; j++) error += pow((double)read[j] - (double)w[j], 2);
        for (int k = 0; k < K; k++)
            for (int j = 0; j < C; j++) after[k * C + j] += c->take[k * R + i] * (double)read[j];
    }
    for (int j = 0; j < C * K; j++) {
        before += along[j] * along[j];
        residue += pow(after[j] - (1 - c->strength) * along[j], 2);
    }
    *p = (Plain){sqrt(residue / before), sqrt(error / norm)};
    free(along), free(after), free(w), free(read), free(block);
}

// A random matrix that writes kappa times as much along each of k directions as a random one would; gains exp(spread * normal).
typedef struct {
    TensorType type;
    int n_row, n_col, k, heavy;
    double kappa, spread, strength;
    bool from_f32; // the source is the float32 matrix, not the file's own blocks
    bool threads;  // once more with three threads
    bool fresh;    // new scales throughout
} Case;

typedef struct {
    double leak, plain_leak, rmse, plain_rmse;
    EditFigures f;
} Result;

static Result edit_case(const Case *t) {
    const int R = t->n_row, C = t->n_col, K = t->k;
    const TypeInfo *info = type_info((int)t->type);
    const size_t n = (size_t)R * (size_t)C, row_bytes = (size_t)type_row_bytes(t->type, C);
    double *take = malloc(sizeof *take * (size_t)(R * K)), *give = malloc(sizeof *give * (size_t)(R * K));
    float *w = malloc(sizeof *w * n);
    char *file = malloc(row_bytes * (size_t)R), *out[2] = {malloc(row_bytes * (size_t)R), malloc(row_bytes * (size_t)R)};
    for (int k = 0; k < K; k++) {
        unit_vector(take + k * R, R, t->heavy);
        for (int j = 0; j < k; j++) {
            double dot = 0;
            for (int i = 0; i < R; i++) dot += take[k * R + i] * take[j * R + i];
            for (int i = 0; i < R; i++) take[k * R + i] -= dot * take[j * R + i];
        }
    }
    for (int i = 0; i < R; i++) {
        const double g = exp(t->spread * (double)gauss());
        for (int k = 0; k < K; k++) {
            double square = 0;
            for (int j = 0; j < R; j++) square += i ? 1.0 / R : take[k * R + j] * take[k * R + j];
            if (!i) for (int j = 0; j < R; j++) take[k * R + j] /= sqrt(square);
        }
        for (int k = 0; k < K; k++) {
            give[k * R + i] = take[k * R + i] / g;
            take[k * R + i] *= g;
        }
    }
    for (int i = 0; i < R; i++) {
        const float size = 0.02f * expf(0.2f * gauss());
        for (int j = 0; j < C; j++) w[i * C + j] = size * gauss();
    }
    for (int k = 0; k < K; k++)
        for (int j = 0; j < C; j++) {
            double c = 0;
            for (int i = 0; i < R; i++) c += take[k * R + i] * (double)w[i * C + j];
            for (int i = 0; i < R; i++) w[i * C + j] += (float)(give[k * R + i] * (t->kappa - 1) * c);
        }
    for (int i = 0; i < R; i++) info->from_f32(w + (size_t)i * (size_t)C, file + row_bytes * (size_t)i, C, NULL);
    if (!t->from_f32)
        for (int i = 0; i < R; i++) info->to_f32(file + row_bytes * (size_t)i, w + (size_t)i * (size_t)C, C);

    const Tensor tensor = {.name = "some.weight", .type = t->type, .n_row = R, .n_col = C, .n_slice = 1};
    Writer writer = {.w = &tensor};
    Change change = {.n_vec = K, .strength = t->strength, .take = take, .give = give};
    const Edit x = {.n_embd = R, .writers = {.of = &writer, .n = 1}, .of = &change};
    Result r = {0};
    Err e = {0};
    for (int threads = 1; threads <= (t->threads ? 3 : 1); threads += 2) {
        Pool *pool = threads > 1 ? pool_open(threads) : NULL;
        EditFigures *f = &r.f, first = r.f;
        const Slice s = {.type = t->from_f32 ? TYPE_F32 : t->type, .rows = t->from_f32 ? (void *)w : (void *)file, .out_type = t->type, .out = out[threads > 1],
                         .grid = t->from_f32 || t->fresh ? NULL : file};
        memset(s.out, 0x55, row_bytes * (size_t)R);
        CHECK(edit_matrix(pool, threads, &x, 0, &s, f, &e), "%s", e.text);
        CHECK(threads == 1 || !memcmp(&first, f, sizeof first), "%s: figures depend on threads", info->name);
        if (pool) pool_close(pool);
    }
    CHECK(!t->threads || !memcmp(out[0], out[1], row_bytes * (size_t)R), "%s: bytes depend on threads", info->name);

    // All over again from the bytes, the plain way beside it
    Plain now, plain;
    const TensorType in = t->from_f32 ? TYPE_F32 : t->type;
    measure(&x, 0, in, t->from_f32 ? (void *)w : (void *)file, t->type, out[0], &now);
    measure(&x, 0, in, t->from_f32 ? (void *)w : (void *)file, t->type, NULL, &plain);
    r.leak = now.leak;
    r.plain_leak = plain.leak;
    r.rmse = now.rmse;
    r.plain_rmse = plain.rmse;
    CHECK(fabs(edit_leak(&r.f) - r.leak) < 1e-3 * r.leak + 1e-8 && fabs(sqrt(r.f.error / r.f.norm) - r.rmse) < 1e-3 * r.rmse + 1e-7,
          "%s: figures say leak %.3e, rmse %.5f; the bytes %.3e, %.5f", info->name, edit_leak(&r.f), sqrt(r.f.error / r.f.norm), r.leak, r.rmse);
    const double plain_leak = sqrt(r.f.plain.residue / r.f.plain.before), plain_rmse = sqrt(r.f.plain.error / r.f.plain.norm);
    CHECK(!codes_group(t->type) || C > 256 || (fabs(plain_leak - plain.leak) < 1e-3 * plain.leak && fabs(plain_rmse - plain.rmse) < 1e-3 * plain.rmse + 1e-7),
          "%s: rounding alone is said to leave %.3e, rmse %.5f; it leaves %.3e, %.5f", info->name, plain_leak, plain_rmse, plain.leak, plain.rmse);
    if (verbose)
        printf("%-6s %4d x %3d  k %d %s%s kappa %4.1f (%5.2f) spread %.1f s %.1f | leak plain %.1e repaired %.1e | rmse plain %.5f repaired %.5f | changed %5.1f %% flips %5.2f %% missed %d\n",
               info->name, R, C, K, t->from_f32 ? "F32 " : "file", t->heavy ? " heavy" : "", t->kappa, edit_kappa(&x, 0, &r.f), t->spread, t->strength, r.plain_leak, r.leak,
               r.plain_rmse, r.rmse, 100 * (double)r.f.n_changed / (double)r.f.n, 100 * (double)r.f.n_flip / (double)r.f.n, (int)r.f.n_missed);
    free(take), free(give), free(w), free(file), free(out[0]), free(out[1]);
    return r;
}

static void test_matrix(void) {
    for (int which = 0; which < N_TYPE; which++) {
        const TensorType type = TYPES[which].type;
        const char *name = type_info((int)type)->name;
        const int wide = type_info((int)type)->block == 256 ? 256 : 64;
        for (int from = 0; from < 2; from++) {
            const Case cases[] = {
                {type, 640, wide, 1, 0, 1, 0, 1, from, false, false}, {type, 640, wide, 1, 1, 3, 0.5, 1, from, false, false},
                {type, 256, wide == 256 ? 512 : 288, 1, 0, 1, 0.3, 0.5, from, true, false}, {type, 640, wide, 2, 0, 1, 0, 1, from, false, false},
            };
            for (int i = 0; i < 4 - from; i++) {
                const Result r = edit_case(&cases[i]);
                CHECK(r.leak < 1e-5, "%s case %d: leak %.2e, expected < 1e-5", name, i, r.leak);
                CHECK(!r.f.n_missed, "%s case %d: %d columns missed", name, i, (int)r.f.n_missed);
                if (from && cases[i].k == 1 && type != TYPE_F32) CHECK(r.rmse < 1.03 * r.plain_rmse, "%s case %d: rmse %.6f, plainly rounded %.6f", name, i, r.rmse, r.plain_rmse);
                if (!from) CHECK(r.f.n_refit < r.f.n_block || type == TYPE_F32 || !r.f.n_block, "%s case %d: no block keeps its scales", name, i);
            }
        }
    }
    // Scales are kept where that is better, and only there
    for (double kappa = 1; kappa < 31; kappa *= 3) {
        const uint64_t state = random_state; // the same matrix twice
        const Result r = edit_case(&(Case){TYPE_Q4_K, 640, 256, 1, 0, kappa, 0, 1, false, false, false});
        random_state = state;
        const Result fresh = edit_case(&(Case){TYPE_Q4_K, 640, 256, 1, 0, kappa, 0, 1, false, false, true});
        CHECK(r.leak < 1e-5 && fresh.leak < 1e-5, "kappa %g: leak %.2e, with new scales %.2e", kappa, r.leak, fresh.leak);
        CHECK(r.rmse < 1.01 * fresh.rmse && r.f.n_changed < r.f.n, "kappa %g: rmse %.5f, with new scales %.5f", kappa, r.rmse, fresh.rmse);
    }
}

static double now_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

// Several directions at once, from float32. On 256 rows three of them leave few codes to choose from (subsets.c). whole: as wide as
// an edit works on at once, for the figures; some seconds each.
static void test_several(bool whole) {
    static const struct {
        TensorType type;
        int n_row, n_col, k;
        double within; // of plain rounding's error
    } CASES[] = {
        {TYPE_Q4_K, 256, 256, 2, 1.03}, {TYPE_Q8_0, 256, 32, 3, 1.03}, {TYPE_Q4_0, 256, 32, 3, 1.06}, {TYPE_Q4_0, 640, 32, 3, 1.03}, {TYPE_Q4_K, 2048, 256, 2, 1.03},
        {TYPE_Q4_0, 2048, 32, 3, 1.03}, {TYPE_Q4_K, 256, 256, 3, 1.05}, {TYPE_Q6_K, 256, 256, 3, 1.03}, {TYPE_Q8_0, 256, 256, 3, 1.03}, {TYPE_Q4_K, 640, 256, 3, 1.03},
        {TYPE_Q4_K, 1152, 256, 3, 1.03}, {TYPE_Q4_K, 2048, 256, 3, 1.03}, {TYPE_Q4_K, 4096, 256, 3, 1.03},
    };
    for (int i = 0; i < (whole ? 13 : getenv("SANITIZED") ? 2 : 6); i++) {
        const double from = now_seconds();
        const Result r = edit_case(&(Case){CASES[i].type, CASES[i].n_row, CASES[i].n_col, CASES[i].k, 0, 1, 0, 1, true, false, false});
        if (verbose) printf("    rmse %+.2f %%, %.1f s\n", 100 * (r.rmse / r.plain_rmse - 1), now_seconds() - from);
        CHECK(r.leak < 1e-5 && !r.f.n_missed, "%s, %d rows, %d directions: leak %.2e, %d columns missed", type_info((int)CASES[i].type)->name, CASES[i].n_row, CASES[i].k, r.leak,
              (int)r.f.n_missed);
        CHECK(r.rmse < CASES[i].within * r.plain_rmse, "%s, %d rows, %d directions: rmse %.6f, plainly rounded %.6f", type_info((int)CASES[i].type)->name, CASES[i].n_row, CASES[i].k,
              r.rmse, r.plain_rmse);
    }
}

static void interrupt(int signal) {
    (void)signal;
    interrupted = 1;
}

// Ctrl-C in the middle of a matrix that takes seconds.
static void test_interrupt(void) {
    enum { R = 256, C = 2048, K = 3 };
    static float w[R * C];
    static char out[R * C];
    static double take[K * R];
    for (int i = 0; i < R * C; i++) w[i] = 0.02f * gauss();
    for (int k = 0; k < K; k++) unit_vector(take + k * R, R, 0);
    const Tensor tensor = {.name = "some.weight", .type = TYPE_Q4_0, .n_row = R, .n_col = C, .n_slice = 1};
    Writer writer = {.w = &tensor};
    Change change = {.n_vec = K, .strength = 1, .take = take, .give = take};
    const Edit x = {.n_embd = R, .writers = {.of = &writer, .n = 1}, .of = &change};
    EditFigures f;
    Err e = {0};
    const double from = now_seconds();
    signal(SIGALRM, interrupt);
    ualarm(200000, 0);
    const bool done = edit_matrix(NULL, 1, &x, 0, &(Slice){.type = TYPE_F32, .rows = w, .out_type = TYPE_Q4_0, .out = out}, &f, &e);
    const double took = now_seconds() - from;
    signal(SIGALRM, SIG_DFL);
    CHECK(interrupted && !done && strstr(e.text, "interrupted"), "%s", done ? "done before Ctrl-C: the test needs a larger matrix" : e.text);
    CHECK(took < 2, "%.2f s until Ctrl-C after 0.2 s was heeded", took);
    interrupted = 0;
}

// Bytes at random, with scales that are not finite among them, and a direction without anything: whatever comes out, it ends.
static void test_hostile(void) {
    enum { R = 64, C = 288 };
    for (int which = 0; which < N_TYPE; which++) {
        const TensorType type = TYPES[which].type;
        const TypeInfo *info = type_info((int)type);
        const int n_col = info->block == 256 ? 256 : C;
        const size_t bytes = (size_t)type_row_bytes(type, n_col) * R;
        for (int k = 1; k <= 2; k++) {
            double vectors[2][2 * R];
            char *rows = malloc(bytes), *out = malloc(bytes);
            for (size_t i = 0; i < bytes; i++) rows[i] = (char)random_bits();
            for (int i = 0; i < 2 * R; i++) vectors[0][i] = vectors[1][i] = i % R < R / 2 ? 0 : (double)gauss() / 6;
            const Tensor tensor = {.name = "some.weight", .type = type, .n_row = R, .n_col = n_col, .n_slice = 1};
            Writer writer = {.w = &tensor};
            Change change = {.n_vec = k, .strength = 1, .take = vectors[0], .give = vectors[1]};
            const Edit x = {.n_embd = R, .writers = {.of = &writer, .n = 1}, .of = &change};
            EditFigures f;
            Err e = {0};
            const Slice s = {.type = type, .rows = rows, .out_type = type, .out = out, .grid = rows};
            CHECK(edit_matrix(NULL, 1, &x, 0, &s, &f, &e) && f.n_col == n_col, "%s: %s", info->name, e.text);
            memset(rows, 0, bytes);
            CHECK(edit_matrix(NULL, 1, &x, 0, &s, &f, &e) && !memcmp(rows, out, bytes) && f.n_changed == 0, "%s: zeros stay zeros %s", info->name, e.text);
            free(rows);
            free(out);
        }
    }
    const Tensor tensor = {.name = "some.weight", .type = TYPE_F32, .n_row = 2, .n_col = 33, .n_slice = 1};
    Writer writer = {.w = &tensor};
    Change change = {.n_vec = 1};
    const Edit x = {.n_embd = 2, .writers = {.of = &writer, .n = 1}, .of = &change};
    EditFigures f;
    Err e = {0};
    CHECK(!edit_matrix(NULL, 1, &x, 0, &(Slice){.out_type = TYPE_Q8_0}, &f, &e) && strstr(e.text, "33 columns"), "%s", e.text);
}

// ---- whole models ----

enum { N_RUN = 24, MAX_SITE = 3 * 64 };

typedef struct {
    const double *r;         // [k][n] orthonormal
    int k;
    float *rows[MAX_SITE];   // what is added, as the run-time intervention leaves it
    double before[MAX_SITE]; // sum of (r.y)^2 before it
    bool replace;            // put rows in place of what comes
    double worst_cos, worst_leak, worst_scale; // 1 - cosine; against before; |log of the ratio of lengths|
    double ratio[MAX_SITE];  // mean of (length wanted) / (length come): what edit_watch should say
    double worst_two;        // 1 - cosine where two branches with norms of their own are summed: only the leak is exact there
    const Model *m;
    int worst_cos_at;
} Record;

static int site_index(const TapSite *t) { return t->point == TAP_ATTN_OUT ? 3 * t->layer : t->point == TAP_MLP_OUT ? 3 * t->layer + 1 : t->point == TAP_PLE_OUT ? 3 * t->layer + 2 : -1; }

static double square_along(const Record *g, const TapSite *t) {
    double sum = 0;
    for (int row = 0; row < t->n_rows; row++)
        for (int k = 0; k < g->k; k++) {
            double along = 0;
            for (int i = 0; i < t->n_col; i++) along += g->r[k * t->n_col + i] * (double)t->rows[row * t->n_col + i];
            sum += along * along;
        }
    return sum;
}

static void note_before(void *ctx, const TapSite *t) {
    Record *g = ctx;
    if (site_index(t) >= 0) g->before[site_index(t)] = square_along(g, t);
}

static void keep_rows(void *ctx, const TapSite *t) {
    Record *g = ctx;
    const int at = site_index(t);
    const size_t n = (size_t)t->n_rows * (size_t)t->n_col;
    if (at < 0) return;
    if (!g->rows[at]) g->rows[at] = malloc(sizeof(float) * n);
    memcpy(g->rows[at], t->rows, sizeof(float) * n);
}

static void compare_rows(void *ctx, const TapSite *t) {
    Record *g = ctx;
    const int at = site_index(t);
    if (at < 0) return;
    for (int row = 0; row < t->n_rows; row++) {
        const float *a = t->rows + row * t->n_col, *b = g->rows[at] + row * t->n_col;
        double aa = 0, bb = 0;
        for (int i = 0; i < t->n_col; i++) aa += (double)a[i] * (double)a[i], bb += (double)b[i] * (double)b[i];
        // 1 - cos from the difference of the unit vectors, which does not cancel
        double off = 0;
        for (int i = 0; i < t->n_col; i++) off += pow((double)a[i] / sqrt(aa) - (double)b[i] / sqrt(bb), 2);
        if (t->point == TAP_MLP_OUT && g->m->layers[t->layer].post_ffw_norm_1) {
            if (!(off / 2 <= g->worst_two)) g->worst_two = off / 2;
        } else if (!(off / 2 <= g->worst_cos)) g->worst_cos = off / 2, g->worst_cos_at = at;
        g->worst_scale = fmax(g->worst_scale, fabs(log(aa / bb) / 2));
        g->ratio[at] += sqrt(bb / aa) / t->n_rows;
    }
    g->worst_leak = fmax(g->worst_leak, sqrt(square_along(g, t) / g->before[at]));
    if (g->replace) memcpy(t->rows, g->rows[at], sizeof(float) * (size_t)t->n_rows * (size_t)t->n_col);
}

typedef struct {
    Model m;
    void **own; // float32 copies of its weights
    int n_own;
} Copy;

// A model all of whose weights are float32.
static bool open_f32(Copy *c, int which) {
    *c = (Copy){0};
    if (!open_reference(which, &c->m)) return false;
    c->own = calloc(2 * (size_t)c->m.n_tensor, sizeof *c->own);
    for (int i = 0; i < c->m.n_tensor; i++) {
        Tensor *t = &c->m.tensors[i];
        const int64_t each = (int64_t)t->n_row * t->n_col;
        float *x = malloc(sizeof *x * (size_t)(each * t->n_slice));
        for (int s = 0; s < t->n_slice; s++)
            for (int r = 0; r < t->n_row; r++) type_info((int)t->type)->to_f32(tensor_row(t, s, r), x + s * each + (int64_t)r * t->n_col, t->n_col);
        c->own[c->n_own++] = x;
        if (t->slices) {
            const void **slices = calloc(MAX_EXPERT, sizeof *slices);
            for (int s = 0; s < t->n_slice; s++) slices[s] = x + s * each;
            t->slices = slices;
            c->own[c->n_own++] = slices;
        }
        t->host = x;
        t->type = TYPE_F32;
    }
    return true;
}

static void close_copy(Copy *c) {
    for (int i = 0; i < c->n_own; i++) free(c->own[i]);
    free(c->own);
    model_close(&c->m);
}

// Logits of all tokens of a run with up to three taps.
static void run_model(const Model *m, Backend *b, float *logits, const Tap *taps, int n_tap) {
    Session s;
    Err e = {0};
    int ids[N_RUN];
    Outputs o = {.logits = logits, .n_vocab = m->c.n_vocab};
    for (int i = 0; i < N_RUN; i++) ids[i] = (i * 37 + 11) % 300;
    bool ok = session_open(&s, m, b, &(SessionParams){.n_ctx = N_RUN, .n_batch = N_RUN, .all_logits = true}, &e);
    for (int i = 0; ok && i < n_tap; i++) ok = session_add_tap(&s, taps[i], &e);
    s.on_logits = keep_logits;
    s.on_logits_ctx = &o;
    CHECK(ok && session_eval(&s, ids, N_RUN, &e), "%s", e.text);
    session_close(&s);
}

// Edits all weights of a model in memory, in their own types; plainly: with the projector that ignores post-norms, rounded.
typedef struct {
    double worst_leak, worst_plain, kappa_low, kappa_high;
    EditFigures sum;
    double plain_error;
    int n;
} Edited;

static void edit_model(Copy *c, const Direction *dirs, int n_dir, double strength, bool plainly, Edited *out) {
    Edit x;
    Err e = {0};
    *out = (Edited){.kappa_low = INFINITY};
    CHECK(edit_open(&x, &c->m, dirs, n_dir, &(EditOptions){.strength = strength, .first = 0, .last = c->m.c.n_layer - 1}, &e), "%s", e.text);
    c->own = realloc(c->own, sizeof *c->own * (size_t)(c->n_own + 2 * x.writers.n));
    for (int i = 0; i < x.writers.n; i++) {
        Tensor *t = (Tensor *)x.writers.of[i].w;
        const int64_t bytes = (int64_t)t->n_row * type_row_bytes(t->type, t->n_col);
        char *fresh = malloc((size_t)(bytes * t->n_slice));
        if (plainly) { // the residual's own vectors, as if there were no gain
            double mix[MAX_DIRECTIONS * MAX_DIRECTIONS];
            x.of[i].n_vec = directions_basis(dirs, n_dir, x.writers.of[i].layer + 1, x.of[i].take, mix);
            memcpy(x.of[i].give, x.of[i].take, sizeof(double) * (size_t)(x.of[i].n_vec * x.n_embd));
        }
        EditFigures sum = {0};
        for (int s = 0; s < t->n_slice; s++) {
            EditFigures f;
            const void *rows = tensor_row(t, s, 0);
            CHECK(edit_matrix(NULL, 1, &x, i, &(Slice){.type = t->type, .rows = rows, .out_type = t->type, .out = fresh + s * bytes, .grid = rows}, &f, &e), "%s", e.text);
            edit_add(&sum, &f);
            if (!verbose || plainly || t->type == TYPE_F32) continue;
            Plain p;
            measure(&x, i, t->type, rows, t->type, NULL, &p);
            out->worst_plain = fmax(out->worst_plain, p.leak);
            out->plain_error += p.rmse * p.rmse * f.norm;
        }
        out->worst_leak = fmax(out->worst_leak, edit_leak(&sum));
        out->kappa_low = fmin(out->kappa_low, edit_kappa(&x, i, &sum));
        out->kappa_high = fmax(out->kappa_high, edit_kappa(&x, i, &sum));
        out->n++;
        edit_add(&out->sum, &sum);
        if (t->slices) {
            const void **slices = calloc(MAX_EXPERT, sizeof *slices);
            for (int s = 0; s < t->n_slice; s++) slices[s] = fresh + s * bytes;
            c->own[c->n_own++] = slices;
            t->slices = slices;
        }
        t->host = fresh;
        c->own[c->n_own++] = fresh;
    }
    edit_close(&x);
}

static void test_model(int which) {
    const char *name = FILES[which].name;
    Copy c;
    Err e = {0};
    if (!open_f32(&c, which)) return;
    const int n = c.m.c.n_embd, L = c.m.c.n_layer;
    double vectors[2][8192], basis[2 * 8192], mix[4];
    Direction d[2];
    if (c.m.c.n_stream) {
        Edit x;
        unit_vector(vectors[0], n, 0);
        CHECK(direction_single(&d[0], L, n, vectors[0], &e), "%s", e.text);
        CHECK(!edit_open(&x, &c.m, d, 1, &(EditOptions){.strength = 1, .last = L - 1}, &e) && strstr(e.text, "run time"), "%s is refused: %s", name, e.text);
        direction_free(&d[0]);
        close_copy(&c);
        return;
    }
    close_copy(&c);
    for (int n_dir = 1; n_dir <= 2; n_dir++) {
        Edited figures;
        if (!open_f32(&c, which)) return;
        const int n_vocab = c.m.c.n_vocab;
        float *want = malloc(sizeof *want * N_RUN * (size_t)n_vocab), *got = malloc(sizeof *got * N_RUN * (size_t)n_vocab);
        for (int k = 0; k < n_dir; k++) {
            unit_vector(vectors[k], n, 0);
            CHECK(direction_single(&d[k], L, n, vectors[k], &e), "%s", e.text);
        }
        CHECK(directions_basis(d, n_dir, 1, basis, mix) == n_dir, "two random vectors are independent");
        Record g = {.r = basis, .k = n_dir, .replace = true, .m = &c.m};
        Backend b;
        Steer steer;
        CHECK(backend_open_ref(&b, &e), "%s", e.text);
        steer_open(&steer, &c.m, &b);
        for (int k = 0; k < n_dir; k++) {
            Direction copy;
            CHECK(direction_single(&copy, L, n, vectors[k], &e), "%s", e.text);
            steer.dir[steer.n_dir++] = copy;
        }
        steer.mode = MODE_WRITE;
        steer.keep_embedding = true;
        CHECK(steer_prepare(&steer, &e), "%s", e.text);
        Edit untouched;
        EditWatch watch;
        const EditOptions o = {.strength = 1, .first = 0, .last = L - 1};
        CHECK(edit_open(&untouched, &c.m, d, n_dir, &o, &e) && edit_watch_open(&watch, &untouched, d, n_dir, &o, &e), "%s", e.text);
        run_model(&c.m, &b, want, (Tap[]){{note_before, &g, false}, edit_watch_tap(&watch), steer_tap(&steer), {keep_rows, &g, false}}, 4);
        steer_close(&steer);

        edit_model(&c, d, n_dir, 1, false, &figures);
        run_model(&c.m, &b, got, (Tap[]){{compare_rows, &g, false}}, 1);
        const bool post_norm = c.m.layers[0].post_attention_norm != NULL;
        const Record exact = g;
        run_model(&c.m, &b, got, NULL, 0);
        const double off = sqrt(nmse(got, want, (int64_t)N_RUN * n_vocab));
        if (verbose)
            printf("%-20s F32 k %d: 1 - cos %.1e (site %d; two branches %.1e) leak %.1e (matrices %.1e) scale %.1e logits off by %.1e  kappa %.2f-%.2f\n", name, n_dir, exact.worst_cos, exact.worst_cos_at, exact.worst_two,
                   exact.worst_leak, figures.worst_leak, exact.worst_scale, off, figures.kappa_low, figures.kappa_high);
        CHECK(exact.worst_cos < 1e-6, "%s: an edited write's cosine to the run-time one is 1 - %.2e", name, exact.worst_cos);
        CHECK(exact.worst_two < 1e-3, "%s: an edited write of two branches has cosine 1 - %.2e to the run-time one", name, exact.worst_two);
        CHECK(exact.worst_leak < 1e-6, "%s: leak %.2e", name, exact.worst_leak);
        CHECK(figures.worst_leak < 1e-6, "%s: leak of a matrix %.2e", name, figures.worst_leak);
        double worst_watch = 0;
        for (int i = 0; i < untouched.writers.n; i++) {
            const Writer *w = &untouched.writers.of[i];
            if (w->site == TAP_MLP_OUT && c.m.layers[w->layer].post_ffw_norm_1) continue;
            const int site = 3 * w->layer + (w->site == TAP_ATTN_OUT ? 0 : w->site == TAP_MLP_OUT ? 1 : 2);
            worst_watch = fmax(worst_watch, fabs(edit_scale(&watch, i) / exact.ratio[site] - 1));
        }
        CHECK(worst_watch < 1e-5, "%s: the factor for a gain is off by %.2e", name, worst_watch);
        if (!post_norm) CHECK(off < 1e-4, "%s: logits off by %.2e", name, off);
        edit_watch_close(&watch);
        edit_close(&untouched);
        close_copy(&c);

        if (post_norm) { // the plain projector must not pass
            if (!open_f32(&c, which)) return;
            edit_model(&c, d, n_dir, 1, true, &figures);
            g.worst_cos = g.worst_leak = g.worst_scale = 0;
            run_model(&c.m, &b, got, (Tap[]){{compare_rows, &g, false}}, 1);
            CHECK(g.worst_cos > 1e-6 && g.worst_leak > 1e-6, "%s: the plain projector passes: 1 - cos %.1e, leak %.1e", name, g.worst_cos, g.worst_leak);
            if (verbose) printf("%-20s F32 k %d: plain projector: 1 - cos %.1e leak %.1e\n", name, n_dir, g.worst_cos, g.worst_leak);
            close_copy(&c);
        }
        backend_close(&b);
        for (int i = 0; i < MAX_SITE; i++) free(g.rows[i]);
        for (int k = 0; k < n_dir; k++) direction_free(&d[k]);
        free(want);
        free(got);
    }
}

// A file in its own types, edited in memory: what its bytes then hold, and what a run of it adds to the stream.
static void test_file(const char *path, const char *name) {
    Copy c = {0};
    Err e = {0};
    if (!model_open(&c.m, path, &e)) {
        CHECK(false, "%s", e.text);
        return;
    }
    const int n = c.m.c.n_embd, n_vocab = c.m.c.n_vocab;
    double *r = malloc(sizeof *r * (size_t)n);
    float *logits = malloc(sizeof *logits * N_RUN * (size_t)n_vocab);
    Direction d;
    Edited f;
    Backend b;
    unit_vector(r, n, 0);
    CHECK(direction_single(&d, c.m.c.n_layer, n, r, &e) && backend_open_ref(&b, &e), "%s", e.text);
    Record g = {.r = r, .k = 1, .m = &c.m, .replace = true};
    run_model(&c.m, &b, logits, (Tap[]){{note_before, &g, false}, {keep_rows, &g, false}}, 2);
    edit_model(&c, &d, 1, 1, false, &f);
    run_model(&c.m, &b, logits, (Tap[]){{compare_rows, &g, false}}, 1);
    if (verbose)
        printf("%-20s kappa %.2f-%.2f | worst leak of %d matrices: plain %.1e repaired %.1e, of a run %.1e | rmse plain %.5f repaired %.5f | changed %.2f %% refit %.1f %%\n", name, f.kappa_low,
               f.kappa_high, f.n, f.worst_plain, f.worst_leak, g.worst_leak, sqrt(f.plain_error / f.sum.norm), sqrt(f.sum.error / f.sum.norm),
               100 * (double)f.sum.n_changed / (double)f.sum.n, f.sum.n_block ? 100 * (double)f.sum.n_refit / (double)f.sum.n_block : 0);
    CHECK(f.worst_leak < 1e-5 && !f.sum.n_missed, "%s: leak %.2e, %d columns missed", name, f.worst_leak, (int)f.sum.n_missed);
    CHECK(g.worst_leak < 1e-4, "%s: leak of a run %.2e", name, g.worst_leak);
    backend_close(&b);
    direction_free(&d);
    for (int i = 0; i < MAX_SITE; i++) free(g.rows[i]);
    free(logits);
    free(r);
    close_copy(&c);
}

// Layers, strengths by part, gains near zero, biases: on the post-norms of a reference model.
static void test_options(void) {
    Copy c;
    Err e = {0};
    if (!open_f32(&c, 1)) return; // Gemma 2
    const int n = c.m.c.n_embd, L = c.m.c.n_layer;
    double *r = malloc(sizeof *r * (size_t)n);
    float *gain = malloc(sizeof *gain * (size_t)n), *bias = malloc(sizeof *bias * (size_t)n), shape[MAX_LAYER * N_SHAPE];
    Direction d;
    Edit x;
    unit_vector(r, n, 0);
    CHECK(direction_single(&d, L, n, r, &e), "%s", e.text);
    for (int i = 0; i < L * N_SHAPE; i++) shape[i] = i % N_SHAPE == SHAPE_ATTN ? 0.5f : i / N_SHAPE == 2 ? 0 : 2;
    CHECK(direction_set_shape(&d, shape, &e), "%s", e.text);
    // Gains of 0, and near it
    memcpy(gain, c.m.layers[1].post_attention_norm->host, sizeof *gain * (size_t)n);
    for (int i = 0; i < 5; i++) gain[i] = i < 3 ? 0 : 1e-7f * (float)(i - 4);
    gain[5] = -gain[5]; // a negative one is like any other
    ((Tensor *)c.m.layers[1].post_attention_norm)->host = gain;
    CHECK(edit_open(&x, &c.m, &d, 1, &(EditOptions){.strength = 0.5, .first = 1, .last = 2}, &e), "%s", e.text);
    for (int i = 0; i < x.writers.n; i++) {
        const Writer *w = &x.writers.of[i];
        const Change *h = &x.of[i];
        const double want = w->layer < 1 || w->layer > 2 ? -1 : w->part == PART_ATTN ? 0.25 : w->layer == 2 ? -1 : 1;
        CHECK(want < 0 ? h->n_vec == 0 : h->n_vec == 1 && fabs(h->strength - want) < 1e-7, "layer %d %s: %d vectors, strength %g", w->layer, part_name(w->part), h->n_vec, h->strength);
        if (!h->n_vec) continue;
        double dual = 0, most = 0;
        for (int k = 0; k < n; k++) dual += h->take[k] * h->give[k], most = fmax(most, fabs(h->give[k]));
        CHECK(fabs(dual - 1) < 1e-12 && most < 10, "layer %d %s: take . give = %.15f, largest give %g", w->layer, part_name(w->part), dual, most);
        CHECK(h->n_small == (w->layer == 1 && w->part == PART_ATTN ? 5 : 0), "layer %d %s: %d gains near zero", w->layer, part_name(w->part), h->n_small);
        EditFigures f;
        const Tensor *t = w->w;
        float *out = malloc(sizeof *out * (size_t)t->n_row * (size_t)t->n_col);
        CHECK(edit_matrix(NULL, 1, &x, i, &(Slice){TYPE_F32, t->host, TYPE_F32, out, t->host}, &f, &e) && edit_leak(&f) < 1e-6, "leak %.2e %s", edit_leak(&f), e.text);
        CHECK(fabs(sqrt(f.after / f.before) - fabs(1 - h->strength)) < 1e-6, "of strength %g %g is left", h->strength, sqrt(f.after / f.before));
        free(out);
        double along[2] = {0};
        for (int k = 0; k < n; k++) bias[k] = gauss();
        for (int k = 0; k < n; k++) along[0] += h->take[k] * (double)bias[k];
        edit_bias(&x, i, bias, bias);
        for (int k = 0; k < n; k++) along[1] += h->take[k] * (double)bias[k];
        CHECK(fabs(along[1] - (1 - h->strength) * along[0]) < 1e-5, "a bias of %g along take keeps %g of strength %g", along[0], along[1], h->strength);
    }
    edit_close(&x);
    Direction two[2] = {d, d};
    two[1].shape = NULL;
    CHECK(!edit_open(&x, &c.m, two, 2, &(EditOptions){.strength = 1, .last = L - 1}, &e) && strstr(e.text, "strengths by layer"), "%s", e.text);
    CHECK(!edit_open(&x, &c.m, &d, 1, &(EditOptions){.strength = NAN, .last = L - 1}, &e) && !edit_open(&x, &c.m, &d, 0, &(EditOptions){.strength = 1}, &e), "no direction, no strength");
    two[1] = d; // the same once more adds nothing
    CHECK(edit_open(&x, &c.m, two, 2, &(EditOptions){.strength = 1, .last = L - 1}, &e) && x.of[0].n_vec == 1, "the same direction twice is one: %s", e.text);
    edit_close(&x);
    direction_free(&d);
    free(r), free(gain), free(bias);
    close_copy(&c);
}

int main(int argc, char **argv) {
    test_begin(argc, argv);
    verbose = argc > 1 && !strcmp(argv[1], "-v");
    if (argc > 2 && !strcmp(argv[2], "several")) return test_several(true), test_end();
    test_codes();
    test_matrix();
    test_several(getenv("EDIT") && !strcmp(getenv("EDIT"), "full"));
    test_interrupt();
    test_hostile();
    test_options();
    for (int i = 0; i < N_FILE; i++) test_model(i);
    for (int i = 0; i < N_FILE; i++) {
        char path[128];
        snprintf(path, sizeof path, "reference/%s.gguf", FILES[i].name);
        if (shared_path(path) && strncmp(FILES[i].name, "gemma3n", 7)) test_file(shared_path(path), FILES[i].name);
    }
    static const char *const DEMO[] = {"llama-Q4_K_M", "llama-Q8_0", "llama-F16", "gemma-Q4_K_M", "gemma-Q8_0", "gemma-F16"};
    for (int i = 0; i < 6; i++) {
        char path[128];
        snprintf(path, sizeof path, "abliterate/demo/%s.gguf", DEMO[i]);
        test_file(path, DEMO[i]);
    }
    return test_end();
}

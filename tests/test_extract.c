// test_extract.c: the means and what is made of them. Batched or one by one the sums are the same bits, on every architecture;
// a planted direction is found again; masks, winsorising, openers, noise; a model is exactly like itself; a run that was
// stopped goes on to the same result.
#include <math.h>

#include "extract.h"
#include "first.h"
#include "forced.h"
#include "stats.h"
#include "test.h"

static bool verbose;
static char folder[] = "/tmp/test_extract.XXXXXX";

static const char *path_of(const char *name) { return file_in(folder, name); }

static void write_text(const char *path, const char *text) {
    FILE *f = fopen(path, "w");
    CHECK(f && fputs(text, f) >= 0 && !fclose(f), "cannot write %s", path);
}

// Prompts of letters; every one of the first file holds a '#'.
static void write_prompts(void) {
    char text[2][4096] = {"", ""};
    Rng r = rng_seed(3, 0);
    for (int side = 0; side < 2; side++)
        for (int i = 0; i < 24; i++) {
            const int n = 4 + rng_below(&r, 14), mark = rng_below(&r, n);
            char *w = text[side] + strlen(text[side]);
            for (int k = 0; k < n; k++) *w++ = (char)('a' + rng_below(&r, 26)), *w = 0;
            if (side == 0) w[mark - n] = '#';
            strcpy(w, "\n");
        }
    write_text(path_of("marked.txt"), text[0]);
    write_text(path_of("plain.txt"), text[1]);
}

static ExtractOptions options(const char *model) {
    return (ExtractOptions){.lab = {.model = model, .place = {.backend = "cpu", .threads = 2}, .n_seq = 16, .quiet = true}, .target = path_of("marked.txt"),
                            .contrast = path_of("plain.txt"), .positions = 16, .train = -1, .check = -1, .seed = 1, .keep_all = true, .no_select = true,
                            .max_kl = 0.1, .max_layer = 0.8, .n_control = 10};
}

typedef struct {
    Lab lab;
    Extraction x;
} Bench;

static bool bench_open(Bench *b, const ExtractOptions *o) {
    Err e = {0};
    memset(b, 0, sizeof *b);
    const bool ok = lab_open(&b->lab, &o->lab, &e) && extraction_open(&b->x, &b->lab, o, &e);
    CHECK(ok, "%s: %s", o->lab.model, e.text);
    return ok;
}

static void bench_close(Bench *b) {
    extraction_close(&b->x);
    lab_close(&b->lab);
}

static bool same_means(const Means *a, const Means *b) {
    const size_t rows = (size_t)a->n_pos * (size_t)(a->n_layer + 1);
    bool same = a->n_pos == b->n_pos && a->n[0] == b->n[0] && a->n[1] == b->n[1];
    for (int h = 0; same && h < 2; h++)
        same = !memcmp(a->sum[h], b->sum[h], rows * (size_t)a->n_embd * sizeof(double)) && !memcmp(a->square[h], b->square[h], rows * sizeof(double));
    return same && !memcmp(a->size, b->size, (size_t)(a->n_layer + 1) * (size_t)a->n_embd * sizeof(double));
}

static void test_architecture(const char *path) {
    Bench one, many;
    Err e = {0};
    ExtractOptions o = options(path), p = o;
    o.lab.n_seq = 1;
    o.lab.template_name = p.lab.template_name = "chatml";
    if (!bench_open(&one, &o) || !bench_open(&many, &p)) return;
    CHECK(extraction_means(&one.x, &e) && extraction_means(&many.x, &e), "%s: %s", path, e.text);
    CHECK(one.x.n_pos > 4, "%s: %d positions after the instruction", path, one.x.n_pos);
    for (int side = 0; side < 2; side++) {
        CHECK(one.x.mean[side].n[0] + one.x.mean[side].n[1] == 24, "%s: all prompts count", path);
        CHECK(same_means(&one.x.mean[side], &many.x.mean[side]), "%s: means of 16 prompts at once differ from one by one", path);
    }
    double length = 0, *d = malloc(sizeof *d * (size_t)one.lab.m.c.n_embd);
    extraction_difference(&one.x, 0, one.lab.m.c.n_layer, d);
    for (int i = 0; i < one.lab.m.c.n_embd; i++) length += d[i] * d[i];
    CHECK(length > 0 && isfinite(length), "%s: the difference has length %g", path, sqrt(length));
    free(d);
    bench_close(&one);
    bench_close(&many);
}

// ---- a planted direction ----

enum { E = 64, N_HEAD = 4, FF = 96, N_LAYER = 4, N_VOCAB = 259, PLANTED = 1, COORDINATE = 5 };

static Rng weights;
static double planted[E]; // unit

static void put_matrix(GgufWriter *w, int rows, int cols, double size, bool embedding, bool output_of_planted, const float *value_in) {
    Err e = {0};
    float row[256];
    for (int r = 0; r < rows; r++) {
        for (int c = 0; c < cols; c++) row[c] = (float)(size * rng_normal(&weights));
        if (embedding) row[COORDINATE] = r == 3 + '#' ? 4 : 0; // only '#' has this coordinate
        if (output_of_planted) // W_o += r v' : writes r where the values hold v, which is what '#' puts there
            for (int c = 0; c < cols; c++) row[c] += (float)(60 * planted[r] * (double)value_in[c]);
        CHECK(gguf_writer_data(w, row, sizeof(float) * (size_t)cols, &e), "%s", e.text);
    }
    CHECK(gguf_writer_next(w, &e), "%s", e.text);
}

// A random llama of single-byte tokens; attention of layer PLANTED writes along `planted` what it reads of '#'.
static void make_planted(const char *path) {
    GgufWriter *w;
    Err e = {0};
    CHECK(gguf_writer_open(&w, path, &e), "%s", e.text);
    static char text[N_VOCAB][8];
    static GgufString token[N_VOCAB];
    static float score[N_VOCAB];
    static int32_t type[N_VOCAB];
    for (int i = 0; i < N_VOCAB; i++) {
        static const char *const CONTROL[] = {"<unk>", "<s>", "</s>"};
        if (i < 3) snprintf(text[i], sizeof *text, "%s", CONTROL[i]);
        else snprintf(text[i], sizeof *text, "<0x%02X>", (unsigned)(i - 3));
        token[i] = (GgufString){text[i], strlen(text[i])};
        type[i] = i == 0 ? 2 : i < 3 ? 3 : 6;
    }
    gguf_set_string(w, "general.architecture", "llama", 5);
    gguf_set_string(w, "tokenizer.ggml.model", "llama", 5);
    const struct { const char *key; int value; } numbers[] = {
        {"llama.block_count", N_LAYER}, {"llama.context_length", 128}, {"llama.embedding_length", E}, {"llama.feed_forward_length", FF},
        {"llama.attention.head_count", N_HEAD}, {"llama.attention.head_count_kv", N_HEAD}, {"llama.rope.dimension_count", E / N_HEAD},
        {"tokenizer.ggml.bos_token_id", 1}, {"tokenizer.ggml.eos_token_id", 2}};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) gguf_set_u32(w, numbers[i].key, (uint32_t)numbers[i].value);
    gguf_set_f32(w, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
    gguf_set_strings(w, "tokenizer.ggml.tokens", token, N_VOCAB);
    gguf_set_array(w, "tokenizer.ggml.scores", GGUF_F32, score, N_VOCAB);
    gguf_set_array(w, "tokenizer.ggml.token_type", GGUF_I32, type, N_VOCAB);
    static const struct { const char *name; int rows, cols; } LAYER[] = {
        {"attn_norm", 1, E}, {"attn_q", E, E}, {"attn_k", E, E}, {"attn_v", E, E}, {"attn_output", E, E}, {"ffn_norm", 1, E}, {"ffn_gate", FF, E}, {"ffn_up", FF, E}, {"ffn_down", E, FF}};
    enum { PER_LAYER = sizeof LAYER / sizeof *LAYER };
    char name[64];
    gguf_add_tensor(w, "token_embd.weight", TYPE_F32, 2, (uint64_t[]){E, N_VOCAB});
    for (int l = 0; l < N_LAYER; l++)
        for (int i = 0; i < PER_LAYER; i++) {
            snprintf(name, sizeof name, "blk.%d.%s.weight", l, LAYER[i].name);
            gguf_add_tensor(w, name, TYPE_F32, LAYER[i].rows > 1 ? 2 : 1, (uint64_t[]){(uint64_t)LAYER[i].cols, (uint64_t)LAYER[i].rows});
        }
    gguf_add_tensor(w, "output_norm.weight", TYPE_F32, 1, (uint64_t[]){E});
    gguf_add_tensor(w, "output.weight", TYPE_F32, 2, (uint64_t[]){E, N_VOCAB});

    weights = rng_seed(11, 0);
    double length = 0;
    for (int i = 0; i < E; i++) planted[i] = i == COORDINATE ? 0 : rng_normal(&weights), length += planted[i] * planted[i];
    for (int i = 0; i < E; i++) planted[i] /= sqrt(length);
    float ones[E], value_in[E];
    for (int i = 0; i < E; i++) ones[i] = 1;
    put_matrix(w, N_VOCAB, E, 0.5, true, false, NULL);
    for (int l = 0; l < N_LAYER; l++)
        for (int i = 0; i < PER_LAYER; i++) {
            if (LAYER[i].rows == 1) {
                CHECK(gguf_writer_data(w, ones, sizeof ones, &e) && gguf_writer_next(w, &e), "%s", e.text);
                continue;
            }
            if (l == PLANTED && !strcmp(LAYER[i].name, "attn_v")) { // column COORDINATE of W_v, known to the write below
                float v[E][E];
                double n = 0;
                for (int r = 0; r < E; r++)
                    for (int c = 0; c < E; c++) v[r][c] = (float)(0.08 * rng_normal(&weights));
                for (int r = 0; r < E; r++) n += (double)v[r][COORDINATE] * v[r][COORDINATE];
                for (int r = 0; r < E; r++) value_in[r] = (float)(v[r][COORDINATE] / sqrt(n));
                CHECK(gguf_writer_data(w, v, sizeof v, &e) && gguf_writer_next(w, &e), "%s", e.text);
                continue;
            }
            const bool planted_here = l == PLANTED && !strcmp(LAYER[i].name, "attn_output");
            put_matrix(w, LAYER[i].rows, LAYER[i].cols, 0.02, false, planted_here, value_in);
        }
    CHECK(gguf_writer_data(w, ones, sizeof ones, &e) && gguf_writer_next(w, &e), "%s", e.text);
    put_matrix(w, N_VOCAB, E, 0.1, false, false, NULL);
    CHECK(gguf_writer_close(w, &e), "%s", e.text);
}

static double cosine(const double *a, const double *b, int n) {
    double ab = 0, aa = 0, bb = 0;
    for (int i = 0; i < n; i++) ab += a[i] * b[i], aa += a[i] * a[i], bb += b[i] * b[i];
    return ab / sqrt(aa * bb);
}

static void test_planted(void) {
    Bench b;
    Err e = {0};
    double d[E];
    make_planted(path_of("planted.gguf"));
    const ExtractOptions o = options(path_of("planted.gguf"));
    if (!bench_open(&b, &o)) return;
    CHECK(extraction_means(&b.x, &e), "%s", e.text);
    extraction_difference(&b.x, 0, PLANTED, d);
    const double before = cosine(d, planted, E);
    for (int l = PLANTED + 1; l <= N_LAYER; l++) {
        extraction_difference(&b.x, 0, l, d);
        if (verbose) printf("planted direction, entering layer %d: cosine %.5f (entering layer %d: %.5f)\n", l, cosine(d, planted, E), PLANTED, before);
        CHECK(cosine(d, planted, E) > 0.99, "entering layer %d the planted direction is found with cosine %.4f", l, cosine(d, planted, E));
    }
    CHECK(fabs(before) < 0.6, "before it is written it is not there: cosine %.4f", before);
    double scratch[2 * E];
    const Difference f = difference_of(&b.x.mean[0], &b.x.mean[1], 0, PLANTED + 1, NULL, d, scratch);
    CHECK(f.halves > 0.99 && f.reliable > f.halves && f.signal > 20, "halves %.4f, reliable %.4f, signal to noise %.1f", f.halves, f.reliable, f.signal);
    bench_close(&b);
}

// ---- the pieces ----

static void test_mask(void) {
    enum { N = 40, L = 3 };
    Means m[2];
    Err e = {0};
    Rng r = rng_seed(2, 0);
    double truth[N], with[N], without[N];
    for (int i = 0; i < N; i++) truth[i] = i == 7 ? 0 : rng_normal(&r);
    for (int side = 0; side < 2; side++) {
        CHECK(means_init(&m[side], 1, L, N, &e), "%s", e.text);
        for (int k = 0; k < 100; k++) {
            for (int l = 0; l <= L; l++) {
                float x[N];
                for (int i = 0; i < N; i++) x[i] = (float)(0.3 * rng_normal(&r) + (side ? 0 : truth[i]));
                x[7] = (float)(10000 + 3000 * rng_normal(&r)); // a massive activation
                means_add(&m[side], k & 1, 0, l, x);
            }
            m[side].n[k & 1]++;
        }
    }
    bool mask[N];
    CHECK(massive_coordinates(&m[0], &m[1], mask) == 1 && mask[7], "only coordinate 7 is massive");
    double scratch[2 * N];
    const Difference d = difference_of(&m[0], &m[1], 0, 2, mask, with, scratch);
    mean_difference(&m[0], &m[1], 0, 2, -1, NULL, without);
    CHECK(cosine(with, truth, N) > 0.99 && cosine(without, truth, N) < 0.9, "cosine with the truth: %.4f masked, %.4f not", cosine(with, truth, N), cosine(without, truth, N));
    CHECK(d.masked > 0.9 && with[7] == 0, "the mask took %.3f of the square", d.masked);
    float row[N], sorted[N];
    for (int i = 0; i < N; i++) row[i] = (float)(i % 2 ? -i : i);
    row[7] = 10000;
    winsorise(row, N, 0.95, sorted);
    CHECK(row[7] == 38 && row[39] == -38 && row[38] == 38 && row[36] == 36, "winsorised: %g %g %g", (double)row[7], (double)row[39], (double)row[38]); // 0.95 of 39: the 37th
    means_free(&m[0]);
    means_free(&m[1]);
}

static void test_openers(void) {
    enum { V = 8 };
    const double t[V] = {0.5, 0.2, 0.1, 0.1, 0.05, 0.05, 0, 0}, c[V] = {0.1, 0.05, 0.1, 0.05, 0.05, 0.05, 0.3, 0.3};
    Openers o;
    Err e = {0};
    CHECK(openers_learn(&o, t, c, V, &e), "%s", e.text); // gaps 0.4 0.15 0.05: 80 % of 0.6 is 0.48
    CHECK(o.n == 2 && o.id[0] == 0 && o.id[1] == 1 && fabs(o.apart - 0.6) < 1e-12, "%d openers, first %d, apart %.3f", o.n, o.id[0], o.apart);
    const float z[V] = {2, 1, 0, 0, 0, 0, 0, 0};
    const double p = (exp(2) + exp(1)) / (exp(2) + exp(1) + 6);
    CHECK(fabs(opener_score(&o, z, V) - log(p / (1 - p))) < 1e-6, "score %.6f, expected %.6f", opener_score(&o, z, V), log(p / (1 - p)));
    openers_free(&o);
    CHECK(openers_learn(&o, t, t, V, &e) && o.n == 0 && opener_score(&o, z, V) < -18, "no difference, no openers");
    openers_free(&o);
}

static void test_itself(void) { // without an intervention, or with one of strength 0, every divergence is exactly 0
    Bench b;
    Err e = {0};
    const ExtractOptions o = options(path_of("planted.gguf"));
    if (!bench_open(&b, &o)) return;
    Openers some = {.id = (int[]){10, 11}, .n = 2};
    First base, now;
    CHECK(first_open(&base, &b.lab, 24, false, true, &e) && first_open(&now, &b.lab, 24, true, false, &e), "%s", e.text);
    CHECK(first_read(&base, &b.lab, &b.x.train[0], &some, NULL, NULL, &e) && first_read(&now, &b.lab, &b.x.train[0], &some, base.logits, NULL, &e), "%s", e.text);
    double most = 0;
    for (int i = 0; i < 24; i++) most = fmax(most, fabs(now.kl[i]));
    CHECK(most == 0, "KL of first tokens with itself is %g", most);
    int cont[24];
    for (int i = 0; i < 24; i++) cont[i] = b.x.train[0].ids[i].n - 2;
    Forced f;
    Direction d;
    for (int strength = 0; strength < 2; strength++) {
        CHECK(direction_single(&d, N_LAYER, E, planted, &e), "%s", e.text);
        b.lab.steer.strength = strength;
        CHECK(steer_use(&b.lab.steer, &d, &e) && forced_run(&f, &b.lab, b.x.train[0].ids, cont, 24, true, NULL, &e), "%s", e.text);
        most = 0;
        int same = 0;
        for (int i = 0; i < f.total; i++) most = fmax(most, fabs(f.kl[i])), same += f.same[i] && f.loss[0][i] == f.loss[1][i];
        CHECK(strength ? most > 1e-6 && same < f.total : most == 0 && same == f.total, "strength %d: KL at most %g, %d of %d tokens alike", strength, most, same, f.total);
        forced_free(&f);
    }
    first_close(&base);
    first_close(&now);
    bench_close(&b);
}

static void test_resume(void) {
    Bench whole, half;
    Err e = {0};
    ExtractOptions o = options(path_of("planted.gguf"));
    o.lab.n_seq = 4;
    if (!bench_open(&whole, &o)) return;
    CHECK(extraction_means(&whole.x, &e), "%s", e.text);
    o.state = path_of("state.gguf");
    if (!bench_open(&half, &o)) return;
    const int n = half.x.train[0].n; // as if Ctrl-C came after 8 target prompts
    half.x.train[0].n = 8;
    half.x.train[1].n = 0;
    CHECK(extraction_means(&half.x, &e), "%s", e.text);
    half.x.train[0].n = n;
    half.x.train[1].n = 24;
    CHECK(half.x.progress[READ_MEANS] == 8 && !extraction_stopped(&half.x, &e) && strstr(e.text, "state.gguf"), "%s", e.text);
    bench_close(&half);
    if (!bench_open(&half, &o)) return;
    CHECK(half.x.progress[READ_MEANS] == 8, "it goes on at prompt %g", half.x.progress[READ_MEANS]);
    CHECK(extraction_means(&half.x, &e), "%s", e.text);
    for (int side = 0; side < 2; side++) CHECK(same_means(&whole.x.mean[side], &half.x.mean[side]), "a run in two parts gives other means");
    CHECK(extraction_keep(&half.x, true, &e), "%s", e.text);
    bench_close(&half);
    o.seed = 2; // other settings: the state is not used
    if (!bench_open(&half, &o)) return;
    CHECK(half.x.progress[READ_MEANS] == 0, "the state of another seed is used");
    bench_close(&half);
    o.seed = 1;
    FILE *f = fopen(path_of("state.gguf"), "r+b"); // cut in the middle
    CHECK(f && !fclose(f) && !truncate(path_of("state.gguf"), 5000), "cannot cut");
    memset(&half, 0, sizeof half);
    CHECK(lab_open(&half.lab, &o.lab, &e) && !extraction_open(&half.x, &half.lab, &o, &e) && strstr(e.text, "state.gguf"), "a damaged state: %s", e.text);
    bench_close(&half);
    bench_close(&whole);
}

int main(int argc, char **argv) {
    test_begin(argc, argv);
    verbose = argc > 1 && !strcmp(argv[1], "-v");
    if (!mkdtemp(folder)) return 1;
    write_prompts();
    test_openers();
    test_mask();
    test_planted();
    test_itself();
    test_resume();
    static const char *const FILES[] = {"gemma1-Q4_K_M", "gemma2-Q4_K_M", "gemma3-Q4_K_M", "gemma3n-Q8_0", "gemma4-dense-Q4_K_M", "gemma4-e-Q4_K_M",
                                        "gemma4-moe-Q4_K_M", "llama-moe-Q4_K_M", "llama2-tied-Q4_K_M", "llama3-F16", "llama3-Q4_K_M", "llama3-Q8_0"};
    for (size_t i = 0; i < sizeof FILES / sizeof *FILES; i++) {
        char path[128];
        snprintf(path, sizeof path, "reference/%s.gguf", FILES[i]);
        if (shared_path(path)) test_architecture(shared_path(path));
        else test_skip(path);
    }
    static const char *const NAMES[] = {"marked.txt", "plain.txt", "planted.gguf", "state.gguf"};
    for (int i = 0; i < 4; i++) unlink(path_of(NAMES[i]));
    rmdir(folder);
    return test_end();
}

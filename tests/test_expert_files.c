// Files of 2023 have one tensor for each expert (blk.N.ffn_down.E.weight), later ones a stack of them. What edit, verify, undo and
// export do to a model must not depend on that: the same file in both layouts, every expert the same to the bit.
#include <fcntl.h>

#include "abliterate.h"
#include "plant.h"

static char folder[] = "/tmp/test_expert_files.XXXXXX";
static const char *path_of(const char *name) { return file_in(folder, name); }

// How many tensors of the old layout t is, and the name of the k-th: of a stack of experts, blk.N.ffn_gate_exps.weight, ffn_up_exps or ffn_down_exps,
// one for each.
static uint64_t parts_of(const GgufTensor *t, uint64_t k, char name[64]) {
    char what[16];
    int layer, end = 0;
    const bool stack = sscanf(t->name_z, "blk.%d.ffn_%15[a-z]_exps.weight%n", &layer, what, &end) == 2 && end > 0;
    if (stack) snprintf(name, 64, "blk.%d.ffn_%s.%d.weight", layer, what, (int)k);
    else snprintf(name, 64, "%s", t->name_z);
    return stack ? t->ne[2] : 1;
}

static void split(const char *from, const char *to) {
    Gguf g;
    GgufWriter *w;
    Err e = {0};
    const bool ok = gguf_open(&g, from, &e) && gguf_writer_open(&w, to, &e);
    CHECK(ok, "%s", e.text);
    if (!ok) return;
    for (uint64_t i = 0; i < g.n_key; i++) gguf_copy_key(w, &g.keys[i]);
    for (int pass = 0; pass < 2; pass++)
        for (uint64_t i = 0; i < g.n_tensor; i++) {
            const GgufTensor *t = &g.tensors[i];
            char name[64];
            const uint64_t n = parts_of(t, 0, name), size = t->bytes / n;
            for (uint64_t k = 0; parts_of(t, k, name) > k; k++) {
                if (!pass) gguf_add_tensor(w, name, t->type, n > 1 ? 2 : t->n_dims, t->ne);
                else CHECK(gguf_writer_data(w, (const char *)t->data + k * size, size, &e) && gguf_writer_next(w, &e), "%s", e.text);
            }
        }
    CHECK(gguf_writer_close(w, &e), "%s", e.text);
    gguf_close(&g);
}

// A command with up to 15 words, its output put aside. True: done.
#define RUN(command, ...) run(command, (char *[16]){__VA_ARGS__}, __LINE__)
static void run(Outcome (*command)(int, char **, Err *), char **argv, int line) {
    Err e = {0};
    int argc = 0;
    while (argv[argc]) argc++;
    fflush(stdout);
    const int out = dup(1), err = dup(2), null = open("/dev/null", O_WRONLY);
    dup2(null, 1);
    dup2(null, 2);
    const Outcome outcome = command(argc, argv, &e);
    fflush(stdout);
    dup2(out, 1);
    dup2(err, 2);
    close(out);
    close(err);
    close(null);
    CHECK(outcome == DONE, "line %d: %s: %s", line, argv[0], e.text);
}

// Every tensor of a stacked file against the same of a split one; returns how many are experts' matrices.
static int compare(const char *what, const char *stacked, const char *apart) {
    Gguf a, b;
    Err e = {0};
    int n = 0;
    const bool ok = gguf_open(&a, stacked, &e) && gguf_open(&b, apart, &e);
    CHECK(ok, "%s: %s", what, e.text);
    for (uint64_t i = 0; ok && i < a.n_tensor; i++) {
        const GgufTensor *t = &a.tensors[i];
        char name[64];
        const uint64_t size = t->bytes / parts_of(t, 0, name);
        for (uint64_t k = 0; parts_of(t, k, name) > k; k++) {
            const GgufTensor *one = gguf_tensor(&b, name);
            CHECK(one && one->type == t->type && one->bytes == size && !memcmp(one->data, (const char *)t->data + k * size, size), "%s: %s, slice %d differs", what, t->name_z, (int)k);
            n += size < t->bytes;
        }
    }
    if (ok) gguf_close(&a), gguf_close(&b);
    return n;
}

static bool same_file(const char *a, const char *b) {
    Gguf x, y;
    Err e = {0};
    uint64_t n, m;
    if (!gguf_open(&x, a, &e) || !gguf_open(&y, b, &e)) return false;
    const uint8_t *p = gguf_bytes(&x, &n), *q = gguf_bytes(&y, &m);
    const bool same = n == m && !memcmp(p, q, (size_t)n);
    gguf_close(&x);
    gguf_close(&y);
    return same;
}

// The number after a name in a JSON file.
static double number(const char *path, const char *name) {
    static char text[1 << 20];
    FILE *f = fopen(path, "r");
    const size_t n = f ? fread(text, 1, sizeof text - 1, f) : 0;
    if (f) fclose(f);
    text[n] = 0;
    const char *at = strstr(text, name);
    return at ? atof(at + strlen(name) + 2) : -1;
}

static void check(const char *model, char *d1, char *d2) {
    char *a = (char *)model, *b = (char *)path_of("split.gguf"), *ea = (char *)path_of("a.gguf"), *eb = (char *)path_of("b.gguf"), *back = (char *)path_of("back.gguf");
    char *ja = (char *)path_of("a.json"), *jb = (char *)path_of("b.json"), *la = (char *)path_of("a-lora.gguf"), *lb = (char *)path_of("b-lora.gguf");
    split(a, b);
    CHECK(compare("the fixture", a, b) > 0, "%s has no stacks", model);
    char *const more[3][3] = {{NULL}, {"--promote", "Q8_0", NULL}, {"--direction", d2, NULL}};
    for (int i = 0; i < 3; i++) {
        RUN(edit_command, "edit", a, "--direction", d1, "-o", ea, "-q", more[i][0], more[i][1]);
        RUN(edit_command, "edit", b, "--direction", d1, "-o", eb, "-q", more[i][0], more[i][1]);
        const int n = compare("edited", ea, eb);
        RUN(undo_command, "undo", eb, "-o", back, "-q");
        CHECK(same_file(b, back) && !same_file(b, eb), "undo gives the original");
        RUN(verify_command, "verify", a, ea, "--json", ja, "--direction", d1, "-q", more[i][0] && i == 2 ? more[i][0] : NULL, more[i][1]);
        RUN(verify_command, "verify", b, eb, "--json", jb, "--direction", d1, "-q", more[i][0] && i == 2 ? more[i][0] : NULL, more[i][1]);
        const double leak = number(ja, "\"largest_leak\""), each = number(jb, "\"largest_leak\"");
        CHECK(n > 0 && leak > 0 && leak < 1e-5 && each >= leak && each < 1e-5 && number(jb, "\"untouched_writers\"") == 0, "leak of the stacks %.2e, of each expert %.2e", leak, each);
    }
    RUN(export_command, "export", d1, "--direction", d2, "--lora", a, "-o", la, "-q");
    RUN(export_command, "export", d1, "--direction", d2, "--lora", b, "-o", lb, "-q");
    CHECK(same_file(la, lb), "the adapters differ");
    const char *const made[] = {b, ea, eb, back, ja, jb, la, lb};
    for (size_t i = 0; i < sizeof made / sizeof *made; i++) unlink(made[i]);
    unlink(path_of("a.gguf.undo"));
    unlink(path_of("b.gguf.undo"));
}

int main(int argc, char **argv) {
    test_begin(argc, argv);
    if (!mkdtemp(folder)) return 1;
    const char *model = shared_path("reference/llama-moe-Q4_K_M.gguf");
    Model m;
    Err e = {0};
    if (!model) test_skip("reference/llama-moe-Q4_K_M.gguf");
    else if (model_open(&m, model, &e)) {
        char *file[2];
        for (int i = 0; i < 2; i++) {
            static double r[8192];
            Direction d;
            file[i] = (char *)path_of(i ? "2.dir" : "1.dir");
            random_unit(r, m.c.n_embd);
            CHECK(direction_single(&d, m.c.n_layer, m.c.n_embd, r, &e) && direction_save(&d, file[i], NULL, NULL, &e), "%s", e.text);
            direction_free(&d);
        }
        model_close(&m);
        check(model, file[0], file[1]);
        for (int i = 0; i < 2; i++) unlink(file[i]);
    } else CHECK(false, "%s", e.text);
    CHECK(!rmdir(folder), "%s: something is left there", folder);
    return test_end();
}

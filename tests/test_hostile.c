// test_hostile.c: real models (../shared/reference; SKIP when absent): cut; with bytes changed at random; with tensors that do
// not belong there; with every number and short text of their tables set to values that are likely to hurt. Each is either
// refused with one line, or its vocabulary opens and two tokens run; never a crash, a hang or gigabytes of memory. A wrong
// result is fine.
//
//   test_hostile                          20 cuts, 100 changed bytes, all extra tensors, every 13th of the aimed changes
//   HOSTILE=full test_hostile             500, 5,000, all, all: for a release, under sanitizers
//   test_hostile FILE cut OFFSET          one case again, in this process, as a failure names it
//   test_hostile FILE patch OFFSET HEX
//   test_hostile FILE extra NUMBER
//
// A worker process per file does the work; the parent knows from shared memory which case it died of, and starts another.
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include "session.h"
#include "test.h"
#include "tokenizer.h"

#if defined __SANITIZE_ADDRESS__
#define SANITIZED 1
#elif defined __has_feature
#if __has_feature(address_sanitizer)
#define SANITIZED 1
#endif
#endif
#ifndef SANITIZED
#define SANITIZED 0
#endif

enum { SECONDS = 20, MEMORY_MIB = 1024, MAX_DEATHS = 5 };

// Allocations above the limit fail, and "no memory" then counts as a failure. (AddressSanitizer needs the address space.)
const char *__asan_default_options(void);
const char *__asan_default_options(void) { return "max_allocation_size_mb=1024:allocator_may_return_null=1:detect_leaks=1"; }

static void limit_memory(void) {
    if (!SANITIZED) setrlimit(RLIMIT_AS, &(struct rlimit){(rlim_t)MEMORY_MIB << 20, (rlim_t)MEMORY_MIB << 20});
}

typedef enum { CUT, PATCH, EXTRA } Kind;

typedef struct {
    Kind kind;
    size_t at;        // CUT: the new end. PATCH: the first of n bytes. EXTRA: a number, see extra_tensor
    int n;
    uint8_t bytes[16];
} Change;

typedef struct {
    char path[512];
    uint8_t *bytes; // [n]
    size_t n;
    size_t data;    // where tensor data begins
    size_t end;     // where it ends, without the last padding
    size_t infos;   // where the tensor infos end
    uint64_t n_embd;
    uint64_t seed;
    Change *aimed;  // [n_aimed]
    int n_aimed, cap_aimed;
} File;

static void aim(File *f, const void *where, const void *value, int n) {
    if (f->n_aimed == f->cap_aimed) {
        f->cap_aimed = f->cap_aimed ? 2 * f->cap_aimed : 1024;
        f->aimed = realloc(f->aimed, sizeof *f->aimed * (size_t)f->cap_aimed);
        if (!f->aimed) abort();
    }
    Change c = {.kind = PATCH, .at = (size_t)((const uint8_t *)where - f->bytes), .n = n};
    memcpy(c.bytes, value, (size_t)n);
    f->aimed[f->n_aimed++] = c;
}

// Numbers of one and a few layers, widths, counts; edges of integers; as floats also infinities, -1 and NaN.
static void aim_at_number(File *f, const uint8_t *where, int n) {
    uint64_t old = 0;
    memcpy(&old, where, (size_t)n);
    const uint64_t values[] = {0, 1, 2, 3, 5, 31, 32, 256, 1000, 1 << 14, 1 << 16, 1 << 20, 0x7fffffff, UINT64_MAX, old + 1, old - 1, old * 2, old / 2,
                               0x7f800000, 0xff800000, 0xbf800000, 0x7fc00000, 0x00000080};
    for (size_t i = 0; i < sizeof values / sizeof *values; i++)
        if (memcmp(&values[i], where, (size_t)n)) aim(f, where, &values[i], n);
}

static void aim_at_key(File *f, const GgufKey *k) {
    const int size = k->elem == GGUF_STRING ? 0 : k->elem == GGUF_BOOL || k->elem <= GGUF_I8 ? 1 : k->elem <= GGUF_I16 ? 2 : k->elem <= GGUF_F32 ? 4 : 8;
    for (uint64_t i = 0; size && i < k->n && i < 8; i++) aim_at_number(f, k->raw + i * (uint64_t)size, size);
    for (uint64_t i = 0; !size && i < k->n && i < 4; i++)
        for (uint64_t c = 0; c < k->strings[i].n && c < 8; c++) aim(f, k->strings[i].p + c, c % 2 ? "\n" : "\xff", 1);
    if (k->type == GGUF_ARRAY) aim_at_number(f, k->raw - 8, 8); // its length
    aim_at_number(f, (const uint8_t *)k->key.p + k->key.n, 4);  // its type
    aim(f, k->key.p + k->key.n - 1, "?", 1);                    // as if it were not there
}

static void aim_at_tensor(File *f, const GgufTensor *t) {
    const uint8_t *dims = (const uint8_t *)t->name.p + t->name.n, *type = dims + 4 + 8 * t->n_dims;
    for (uint32_t v = 0; v < TYPE_COUNT; v++) aim(f, type, &v, 4); // some have as many bytes: Q4_0, Q4_K and IQ4_NL; F32 and I32
    if (t->n_dims > 1 && t->ne[0] != t->ne[1]) aim(f, dims + 4, (uint64_t[]){t->ne[1], t->ne[0]}, 16);
    if (t->n_dims > 1) aim(f, dims + 4, (uint64_t[]){t->ne[0] * t->ne[1], 1}, 16);
    if (t->n_dims > 2) aim(f, dims + 12, (uint64_t[]){t->ne[2], t->ne[1]}, 16);
    aim(f, t->name.p + t->name.n - 1, "?", 1);
}

static bool load(File *f, const char *path) {
    FILE *file = fopen(path, "rb");
    memset(f, 0, sizeof *f);
    snprintf(f->path, sizeof f->path, "%s", path);
    if (!file || fseek(file, 0, SEEK_END) != 0) return false;
    f->n = (size_t)ftell(file);
    f->bytes = malloc(f->n + 1);
    rewind(file);
    const bool ok = f->bytes && fread(f->bytes, 1, f->n, file) == f->n;
    fclose(file);
    Gguf g;
    Err e = {"cannot read it"};
    if (!ok || !gguf_open_memory(&g, f->bytes, f->n, &e)) {
        CHECK(false, "%s: %s", path, e.text);
        return false;
    }
    f->data = f->end = f->n;
    for (uint64_t i = 0; i < g.n_tensor; i++) {
        const size_t at = (size_t)((const uint8_t *)g.tensors[i].data - f->bytes);
        if (i == 0) f->data = at;
        f->end = at + (size_t)g.tensors[i].bytes;
        f->infos = (size_t)((const uint8_t *)g.tensors[i].name.p + g.tensors[i].name.n - f->bytes) + 4 + 8 * (size_t)g.tensors[i].n_dims + 4 + 8;
        aim_at_tensor(f, &g.tensors[i]);
    }
    const GgufTensor *norm = gguf_tensor(&g, "output_norm.weight");
    f->n_embd = norm ? norm->ne[0] : 1;
    for (uint64_t i = 0; i < g.n_key; i++) aim_at_key(f, &g.keys[i]);
    gguf_close(&g);
    for (const char *c = strrchr(path, '/'); c && *c; c++) f->seed = f->seed * 31 + (uint8_t)*c; // the same on every machine
    return true;
}

// splitmix64 of a counter
static uint64_t random_of(uint64_t seed, uint64_t i) {
    uint64_t z = seed * 0xd1342543de82ef95 + (i + 1) * 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

// Tensors that some architecture has, and this one perhaps not.
static const char *const EXTRA_NAMES[] = {
    "rope_freqs.weight", "output.weight", "per_layer_token_embd.weight", "altup_proj.weight", "blk.0.laurel_l.weight", "blk.0.laurel_r.weight",
    "blk.0.laurel_post_norm.weight", "blk.0.altup_router.weight", "blk.0.altup_router_norm.weight", "blk.0.altup_correct_scale.weight",
    "blk.0.inp_gate.weight", "blk.0.proj.weight", "blk.0.post_norm.weight", "blk.0.ffn_gate_inp.weight", "blk.0.ffn_gate_inp.scale",
    "blk.0.ffn_down_exps.scale", "blk.0.ffn_up_exps.weight", "blk.0.ffn_gate_up_exps.weight", "blk.0.ffn_gate.weight", "blk.0.pre_ffw_norm_2.weight",
    "blk.0.post_ffw_norm_1.weight", "blk.0.post_ffw_norm_2.weight", "blk.0.post_attention_norm.weight", "blk.0.post_ffw_norm.weight",
    "blk.0.attn_q_norm.weight", "blk.0.attn_k_norm.weight", "blk.0.attn_qkv.weight", "blk.0.attn_q.bias", "blk.0.attn_output.bias",
    "blk.0.ffn_down.bias", "blk.0.layer_output_scale.weight",
};
enum { N_EXTRA_NAMES = sizeof EXTRA_NAMES / sizeof *EXTRA_NAMES, N_EXTRA_SHAPES = 4, N_EXTRA = N_EXTRA_NAMES * N_EXTRA_SHAPES };

// The file with one more F32 tensor at its end, of zeros or ones; NULL when it has one of this name, which would be refused.
static uint8_t *extra_tensor(const File *f, size_t number, size_t *n) {
    const char *name = EXTRA_NAMES[number % N_EXTRA_NAMES];
    const uint64_t E = f->n_embd, shapes[N_EXTRA_SHAPES][2] = {{E, 1}, {E, 8}, {E, E}, {1, 1}};
    const uint64_t *ne = shapes[number / N_EXTRA_NAMES % N_EXTRA_SHAPES], bytes = ne[0] * ne[1] * 4, offset = (f->end - f->data + 31) / 32 * 32;
    const size_t n_name = strlen(name), infos = f->infos + 8 + n_name + 4 + 16 + 4 + 8, data = (infos + 31) / 32 * 32;
    *n = data + (size_t)offset + (size_t)bytes;
    uint8_t *copy = memmem(f->bytes, f->infos, name, n_name) ? NULL : calloc(1, *n), *p = copy;
    if (!copy) return NULL;
    memcpy(p, f->bytes, f->infos);
    memcpy(p + 8, &(uint64_t){*(const uint64_t *)(f->bytes + 8) + 1}, 8); // n_tensors
    p += f->infos;
    p = (uint8_t *)memcpy(p, &(uint64_t){n_name}, 8) + 8;
    p = (uint8_t *)memcpy(p, name, n_name) + n_name;
    p = (uint8_t *)memcpy(p, &(uint32_t){2}, 4) + 4;
    p = (uint8_t *)memcpy(p, ne, 16) + 16;
    p = (uint8_t *)memcpy(p, &(uint32_t){TYPE_F32}, 4) + 4;
    memcpy(p, &offset, 8);
    memcpy(copy + data, f->bytes + f->data, f->end - f->data);
    for (uint64_t i = 0; i < bytes && number % 2; i += 4) memcpy(copy + data + offset + i, &(float){1}, 4);
    return copy;
}

// First the cuts, then single bytes, extra tensors, and what is aimed. Every other cut and byte lies in the tables.
static Change case_of(const File *f, int i, int n_cut, int n_flip) {
    if (i < n_cut + n_flip) {
        const uint64_t r = random_of(f->seed, (uint64_t)i);
        const size_t at = (size_t)(r >> 8) % (i % 2 ? f->n : f->data);
        if (i < n_cut) return (Change){.kind = CUT, .at = at};
        return (Change){.kind = PATCH, .at = at, .n = 1, .bytes = {(uint8_t)(f->bytes[at] ^ (1 + r % 255))}};
    }
    i -= n_cut + n_flip;
    return i < N_EXTRA ? (Change){.kind = EXTRA, .at = (size_t)i} : f->aimed[i - N_EXTRA];
}

// ---- one case ----

static char failure[700];

static bool refused(const Err *e) {
    const bool one_line = memchr(e->text, 0, sizeof e->text) && e->text[0] && !strpbrk(e->text, "\n\r");
    if (!one_line) snprintf(failure, sizeof failure, "the message is not one line: \"%.511s\"", e->text);
    else if (strstr(e->text, "no memory")) snprintf(failure, sizeof failure, "more than %d MiB: %s", MEMORY_MIB, e->text);
    return false;
}

static bool run_vocabulary(const Gguf *g) {
    static const char text[] = "Once upon a time, <s>\xC3\xA9\n";
    Tokenizer *t = NULL;
    Err e = {""};
    if (!tokenizer_open(&t, g, &e)) return refused(&e);
    Ids ids = {0};
    bool ok = tokenizer_encode(t, text, sizeof text - 1, true, true, &ids, &e) || refused(&e);
    volatile char sink = 0;
    for (int i = 0; i < ids.n; i++) {
        size_t n = 0;
        const char *p = tokenizer_bytes(t, ids.id[i], true, &n);
        for (size_t k = 0; k < n; k++) sink = (char)(sink ^ p[k]);
    }
    ids_free(&ids);
    tokenizer_close(t);
    return ok;
}

static bool run_tokens(const Model *m, bool on_cpu, bool one_by_one) {
    static const int ids[2] = {1, 7};
    Backend b;
    Session s = {0};
    Err e = {""};
    if (!(on_cpu ? backend_open_cpu(&b, 1, ISA_AUTO, &e) : backend_open_ref(&b, &e))) return refused(&e);
    const bool ok = session_open(&s, m, &b, &(SessionParams){.n_ctx = 4, .n_batch = 2}, &e) &&
                    (one_by_one ? session_eval(&s, ids, 1, &e) && session_eval(&s, ids + 1, 1, &e) : session_eval(&s, ids, 2, &e));
    if (!ok) refused(&e);
    session_close(&s);
    backend_close(&b);
    return ok;
}

// true: the file is as good as before; failure[0] says whether something is wrong with the verdict.
static bool run_bytes(const uint8_t *bytes, size_t n, int i) {
    Model m = {0};
    Err e = {""};
    if (!gguf_open_memory(&m.gguf, bytes, n, &e)) return refused(&e);
    bool ok = run_vocabulary(&m.gguf);
    if (!model_from_gguf(&m, &e)) ok = refused(&e);
    else ok = run_tokens(&m, i / 2 % 2, i / 4 % 2) && ok;
    model_close(&m);
    return ok;
}

static void run_case(File *f, Change c, int i) {
    failure[0] = 0;
    alarm(SECONDS);
    if (c.kind == PATCH) {
        uint8_t old[sizeof c.bytes];
        memcpy(old, f->bytes + c.at, (size_t)c.n);
        memcpy(f->bytes + c.at, c.bytes, (size_t)c.n);
        run_bytes(f->bytes, f->n, i);
        memcpy(f->bytes + c.at, old, (size_t)c.n);
    } else {
        size_t n = c.at;
        uint8_t *copy = c.kind == EXTRA ? extra_tensor(f, c.at, &n) : malloc(n + !n); // exactly as long: a sanitizer sees a read beyond
        if (copy && c.kind == CUT) memcpy(copy, f->bytes, n);
        const bool runs = copy && run_bytes(copy, n, i);
        if (runs && c.kind == CUT && n < f->end) snprintf(failure, sizeof failure, "it runs, but lacks %zu bytes", f->end - n);
        free(copy);
    }
    alarm(0);
}

// ---- many ----

typedef struct {
    int n_cut, n_flip, every; // every: of the aimed changes, one in so many
    int i;                    // the case at hand
    int passed, failed;
} Share; // shared with the worker

static void print_case(const File *f, Change c, const char *what) {
    printf("FAIL test_hostile %s %s %zu ", f->path, c.kind == CUT ? "cut" : c.kind == PATCH ? "patch" : "extra", c.at);
    for (int i = 0; i < c.n; i++) printf("%02x", c.bytes[i]);
    printf(": %s\n", what);
    fflush(stdout);
}

static void work(File *f, int n_case, Share *p) {
    limit_memory();
    for (; p->i < n_case; p->i++) {
        const bool aimed = p->i >= p->n_cut + p->n_flip + N_EXTRA;
        if (aimed && p->i % p->every) continue;
        const Change c = case_of(f, p->i, p->n_cut, p->n_flip);
        run_case(f, c, aimed ? p->i / p->every : p->i);
        if (failure[0]) {
            p->failed++;
            print_case(f, c, failure);
        } else p->passed++;
    }
}

static void test_file(File *f, Share *p) {
    const int n_case = p->n_cut + p->n_flip + N_EXTRA + f->n_aimed;
    p->i = p->passed = p->failed = 0;
    bool whole = true;
    for (int i = 0; i < 8; i++) { // untouched it must run
        failure[0] = 0;
        whole = run_bytes(f->bytes, f->n, i) && whole;
    }
    CHECK(whole && !failure[0], "%s does not run: %s", f->path, failure);
    for (int deaths = 0; p->i < n_case && deaths < MAX_DEATHS; deaths++) {
        fflush(stdout);
        const pid_t worker = fork();
        if (worker == 0) {
            work(f, n_case, p);
            exit(0); // with the leak check
        }
        int status = 0;
        while (worker > 0 && waitpid(worker, &status, 0) < 0 && errno == EINTR) {}
        if (worker > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0 && p->i == n_case) break;
        char what[96];
        if (WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM) snprintf(what, sizeof what, "takes more than %d seconds", SECONDS);
        else if (WIFSIGNALED(status)) snprintf(what, sizeof what, "dies of signal %d (%s)", WTERMSIG(status), strsignal(WTERMSIG(status)));
        else snprintf(what, sizeof what, "the worker ends with status %d", WEXITSTATUS(status));
        print_case(f, case_of(f, min_int(p->i, n_case - 1), p->n_cut, p->n_flip), what);
        p->failed++;
        p->i++;
    }
    test_passed += p->passed;
    test_failed += p->failed;
}

// The changes of the command line again, on both backends, together and one by one.
static int run_again(int argc, char **argv) {
    File f;
    if (!load(&f, argv[1])) return 1;
    Change c = {.kind = PATCH, .at = (size_t)strtoull(argv[3], NULL, 0)};
    for (const char *hex = argc > 4 ? argv[4] : ""; hex[0] && hex[1] && c.n < 16; hex += 2) c.bytes[c.n++] = (uint8_t)strtoul((char[3]){hex[0], hex[1], 0}, NULL, 16);
    for (int i = 0; i < 8 && c.at <= f.n && (size_t)c.n <= f.n - c.at; i++) {
        run_case(&f, c, i);
        if (failure[0]) print_case(&f, c, failure);
    }
    free(f.bytes);
    free(f.aimed);
    return 0;
}

static int by_path(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

int main(int argc, char **argv) {
    test_begin(argc, argv);
    if (argc >= 4) return run_again(argc, argv);
    const char *mode = getenv("HOSTILE"), *folder = shared_path("reference");
    const bool full = mode && !strcmp(mode, "full");
    Share *progress = mmap(NULL, sizeof *progress, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    DIR *d = folder ? opendir(folder) : NULL;
    if (!d || progress == MAP_FAILED) {
        test_skip("../shared/reference is not there");
        return test_end();
    }
    char *paths[64];
    int n = 0;
    for (struct dirent *entry; (entry = readdir(d)) && n < 64;) {
        const char *dot = strrchr(entry->d_name, '.');
        if (dot && !strcmp(dot, ".gguf") && asprintf(&paths[n], "%s/%s", folder, entry->d_name) > 0) n++;
    }
    closedir(d);
    qsort(paths, (size_t)n, sizeof *paths, by_path);
    *progress = full ? (Share){.n_cut = 500, .n_flip = 5000, .every = 1}
                     : (Share){.n_cut = 20, .n_flip = SANITIZED ? 20 : 100, .every = SANITIZED ? 83 : 13}; // primes: every value has its turn
    for (int i = 0; i < n; i++) {
        File f;
        if (load(&f, paths[i])) test_file(&f, progress);
        free(f.bytes);
        free(f.aimed);
        free(paths[i]);
    }
    return test_end();
}

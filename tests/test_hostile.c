// test_hostile.c: real models (../shared/reference; SKIP when absent), cut and with bytes changed. Each is either refused with
// one line, or its vocabulary opens and two tokens run; never a crash, a hang or gigabytes of memory. A wrong result is fine.
//
//   test_hostile                          20 cuts and 100 changed bytes of each file
//   HOSTILE=full test_hostile             500 and 5,000: what a release is tested with, under sanitizers
//   test_hostile FILE cut OFFSET          one case again, in this process, as a failure names it
//   test_hostile FILE flip OFFSET MASK
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

enum { SECONDS = 20, MEMORY_MIB = 1024, MAX_DEATHS = 5 };

// Allocations above the limit fail, and "no memory" then counts as a failure. (AddressSanitizer needs the address space.)
const char *__asan_default_options(void);
const char *__asan_default_options(void) { return "max_allocation_size_mb=1024:allocator_may_return_null=1:detect_leaks=1"; }

static void limit_memory(void) {
#ifndef SANITIZED
    setrlimit(RLIMIT_AS, &(struct rlimit){(rlim_t)MEMORY_MIB << 20, (rlim_t)MEMORY_MIB << 20});
#endif
}

typedef struct {
    char path[512];
    uint8_t *bytes; // [n]
    size_t n;
    size_t data;    // where tensor data begins
    size_t end;     // where it ends, without the last padding
    uint64_t seed;
} File;

typedef struct {
    bool cut;
    size_t at;
    uint8_t mask; // bits that change, of the byte at `at`
} Mutation;

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
    }
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

// The first n_cut cases are cuts. Every other case lies in the tables, the rest anywhere.
static Mutation case_of(const File *f, int i, int n_cut) {
    const uint64_t r = random_of(f->seed, (uint64_t)i);
    const size_t range = i % 2 ? f->n : f->data;
    return (Mutation){.cut = i < n_cut, .at = (size_t)(r >> 8) % range, .mask = (uint8_t)(1 + r % 255)};
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

static void run_case(File *f, Mutation mu, int i) {
    failure[0] = 0;
    alarm(SECONDS);
    if (mu.cut) {
        uint8_t *copy = malloc(mu.at + !mu.at); // exactly as long, so that a sanitizer sees a read beyond
        if (!copy) abort();
        memcpy(copy, f->bytes, mu.at);
        if (run_bytes(copy, mu.at, i) && mu.at < f->end) snprintf(failure, sizeof failure, "it runs, but lacks %zu bytes", f->end - mu.at);
        free(copy);
    } else {
        f->bytes[mu.at] ^= mu.mask;
        run_bytes(f->bytes, f->n, i);
        f->bytes[mu.at] ^= mu.mask;
    }
    alarm(0);
}

// ---- many ----

typedef struct {
    int i;      // the case at hand
    int passed, failed;
} Progress; // shared with the worker

static void print_case(const File *f, Mutation mu, const char *what) {
    if (mu.cut) printf("FAIL test_hostile %s cut %zu: %s\n", f->path, mu.at, what);
    else printf("FAIL test_hostile %s flip %zu 0x%02x: %s\n", f->path, mu.at, mu.mask, what);
    fflush(stdout);
}

static void work(File *f, int n_cut, int n_case, Progress *p) {
    limit_memory();
    for (; p->i < n_case; p->i++) {
        const Mutation mu = case_of(f, p->i, n_cut);
        run_case(f, mu, p->i);
        if (failure[0]) {
            p->failed++;
            print_case(f, mu, failure);
        } else p->passed++;
    }
}

static void test_file(File *f, int n_cut, int n_flip, Progress *p) {
    const int n_case = n_cut + n_flip;
    *p = (Progress){0};
    run_case(f, (Mutation){.cut = true, .at = f->n}, 0); // untouched it must run
    CHECK(!failure[0], "%s: %s", f->path, failure);
    for (int deaths = 0; p->i < n_case && deaths < MAX_DEATHS; deaths++) {
        fflush(stdout);
        const pid_t worker = fork();
        if (worker == 0) {
            work(f, n_cut, n_case, p);
            exit(0); // with the leak check
        }
        int status = 0;
        while (worker > 0 && waitpid(worker, &status, 0) < 0 && errno == EINTR) {}
        if (worker > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0 && p->i == n_case) break;
        char what[96];
        if (WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM) snprintf(what, sizeof what, "takes more than %d seconds", SECONDS);
        else if (WIFSIGNALED(status)) snprintf(what, sizeof what, "dies of signal %d (%s)", WTERMSIG(status), strsignal(WTERMSIG(status)));
        else snprintf(what, sizeof what, "the worker ends with status %d", WEXITSTATUS(status));
        print_case(f, case_of(f, min_int(p->i, n_case - 1), n_cut), what);
        p->failed++;
        p->i++;
    }
    test_passed += p->passed;
    test_failed += p->failed;
}

static int by_path(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

int main(int argc, char **argv) {
    test_begin(argc, argv);
    File f;
    if (argc >= 4) {
        const bool cut = !strcmp(argv[2], "cut");
        if (!load(&f, argv[1])) return 1;
        const Mutation mu = {.cut = cut, .at = (size_t)strtoull(argv[3], NULL, 0), .mask = (uint8_t)(argc > 4 ? strtoul(argv[4], NULL, 0) : 0)};
        for (int i = 0; i < 8 && mu.at <= f.n - !cut; i++) { // both backends, together and one by one
            run_case(&f, mu, i);
            if (failure[0]) print_case(&f, mu, failure);
        }
        free(f.bytes);
        return 0;
    }
    const char *mode = getenv("HOSTILE"), *folder = shared_path("reference");
    const bool full = mode && !strcmp(mode, "full");
    Progress *progress = mmap(NULL, sizeof *progress, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
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
    for (int i = 0; i < n; i++) {
        if (load(&f, paths[i])) test_file(&f, full ? 500 : 20, full ? 5000 : 100, progress);
        free(f.bytes);
        free(paths[i]);
    }
    return test_end();
}

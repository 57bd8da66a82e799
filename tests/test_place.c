// test_place.c: options of placement, sizes as --vram takes them; weights that are read instead of mapped. What needs a device is in
// test_split.c, what is planned in test_plan.c.
#include "pages.h"
#include "pin.h"
#include "place.h"
#include "test.h"

// Either way the model computes the same, from its own memory or from the file's.
static void test_no_mmap(const char *path) {
    float first[2] = {0};
    for (int no_mmap = 0; no_mmap < 2; no_mmap++) {
        Model m;
        Session s = {0};
        Backend b = {0};
        Err e = {{0}};
        const PlaceOptions o = {.program = "test", .no_mmap = no_mmap, .session = {.n_ctx = 4, .n_batch = 4}};
        const bool ok = model_open(&m, path, &e) && place_open(&s, &b, &m, &o, &e) && session_eval(&s, (int[]){1, 2, 3}, 3, &e);
        CHECK(ok, "%s", e.text);
        const Pages k = pages_of_model(&m);
        CHECK(k.pages > 200 && (no_mmap ? k.memory : k.file) == k.pages, "%d pages of weights, %d of the file and %d others in memory", k.pages, k.file, k.memory);
        if (ok) first[no_mmap] = s.logits[0];
        if (no_mmap) { // and given back they are the file's again, on demand
            const GgufTensor *t = &m.gguf.tensors[m.gguf.n_tensor - 1];
            void *copy = malloc(t->bytes);
            memcpy(copy, t->data, t->bytes);
            for (uint64_t i = 0; i < m.gguf.n_tensor; i++) gguf_forget(&m.gguf, m.gguf.tensors[i].data, m.gguf.tensors[i].bytes);
            CHECK(pages_of_model(&m).memory == 0, "memory that was given back is still there");
            CHECK(!memcmp(copy, t->data, t->bytes), "%s changed", t->name_z);
            free(copy);
        }
        session_close(&s);
        place_close(&b, &m);
        model_close(&m);
    }
    CHECK(first[0] == first[1], "a logit is %g from mapped weights, %g from read ones", (double)first[0], (double)first[1]);
}

// A file that becomes shorter while it is open.
static void test_shorter(const char *path) {
    char copy[] = "/tmp/test_place-XXXXXX", command[700];
    const int fd = mkstemp(copy);
    Model m;
    Session s = {0};
    Backend b = {0};
    Err e = {{0}};
    snprintf(command, sizeof command, "cp '%s' %s", path, copy);
    CHECK(fd >= 0 && system(command) == 0 && model_open(&m, copy, &e), "%s", e.text);
    const PlaceOptions o = {.program = "test", .no_mmap = true, .session = {.n_ctx = 4, .n_batch = 4}};
    CHECK(truncate(copy, (off_t)(m.gguf.file_bytes / 2)) == 0 && !place_open(&s, &b, &m, &o, &e) && strstr(e.text, "has become shorter"), "'%s'", e.text);
    session_close(&s);
    place_close(&b, &m);
    model_close(&m);
    close(fd);
    unlink(copy);
}

// Runs of pages, as a device gets them.
static uint64_t asked[8]; // addresses, of first pages and ends
static int n_asked, n_refused_after;
static bool pin_here(Backend *b, const void *p, size_t bytes, Err *e) {
    if (n_asked == 2 * n_refused_after) return err_set(e, "refused");
    asked[n_asked++] = (uint64_t)(uintptr_t)p;
    asked[n_asked++] = (uint64_t)(uintptr_t)p + bytes;
    b->pinned_bytes += bytes;
    return true;
}

static void test_pages(void) {
    const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), at = 1000 * page;
    // not in order; the second and third share a page, the fourth begins where the third's last page ends, the first stands alone
    const struct { uint64_t at, bytes; } given[] = {{at + 20 * page, page}, {at + 10, page - 10 + 5}, {at + page + 5, 2 * page}, {at + 4 * page, 1}};
    const struct { uint64_t most; int refused_after, n; const char *note; } cases[] = {
        {UINT64_MAX, 4, 2, ""}, {6 * page, 4, 2, ""}, {6 * page - 1, 4, 1, "no more than half"}, {0, 4, 0, "no more than half"}, {UINT64_MAX, 1, 1, "refused"}, {UINT64_MAX, 0, 0, "refused"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        PageRuns r = {0};
        Backend b = {.pin = pin_here};
        Progress bar;
        Err note;
        n_asked = 0, n_refused_after = cases[i].refused_after;
        for (int k = 0; k < 4; k++) pages_add(&r, (const void *)(uintptr_t)given[k].at, given[k].bytes);
        progress_start(&bar, "pinning");
        pages_pin(&r, &b, cases[i].most, &bar, &note);
        progress_end(&bar);
        CHECK(n_asked == 2 * cases[i].n && pages_bytes(&r) == 6 * page, "case %zu: %d runs of %d, %d pages in all", i, n_asked / 2, cases[i].n, (int)(pages_bytes(&r) / page));
        CHECK(n_asked < 2 || (asked[0] == at && asked[1] == at + 5 * page), "case %zu: the first run", i);
        CHECK(n_asked < 4 || (asked[2] == at + 20 * page && asked[3] == at + 21 * page), "case %zu: the second run", i);
        CHECK(*cases[i].note ? strstr(note.text, cases[i].note) != NULL : !note.text[0], "case %zu: '%s'", i, note.text);
        pages_close(&r);
    }
}

int main(int argc, char **argv) {
    test_begin(argc, argv);
    test_pages();
    const struct { const char *text; uint64_t bytes; } sizes[] = {{"12G", 12ull << 30}, {"1.5G", 3ull << 29}, {"800M", 800ull << 20}, {"64K", 64 << 10}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        uint64_t got = 0;
        Err e = {0};
        CHECK(place_parse_bytes(sizes[i].text, &got, &e) && got == sizes[i].bytes, "%s is %llu", sizes[i].text, (unsigned long long)got);
    }
    const char *const wrong[] = {"", "12", "G", "-1G", "0G", "nanG", "infG", "1e30G", "12GB", "12 G", "12g"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        uint64_t got = 0;
        Err e = {0};
        CHECK(!place_parse_bytes(wrong[i], &got, &e) && strstr(e.text, "12G or 800M"), "'%s' was taken as %llu", wrong[i], (unsigned long long)got);
    }
    const struct { PlaceOptions o; const char *error; int layers; } options[] = {
        {{.isa = "mmx"}, "option --isa is 'mmx'", -1}, {{.backend = "gpu"}, "option --backend is 'gpu'", -1}, {{.vram = "12"}, "option --vram is '12'", -1},
        {{.reserve = "1"}, "option --reserve is '1'", -1}, {{.cache_k = "q4_0"}, "option -ctk is 'q4_0'", -1},
        {{.vram = "12G", .reserve = "1G", .isa = "auto", .backend = "cpu"}, "", -1}, {{.gpu_layers = "auto"}, "", -1}, {{.gpu_layers = "0"}, "", 0},
        {{.gpu_layers = "17"}, "", 17}, {{.gpu_layers = "1048576"}, "", 1 << 20}, {{.gpu_layers = "1048577"}, "option -ngl is '1048577', expected auto, all or a", -1}, {{.gpu_layers = "all"}, "", 1 << 20},
        {{.gpu_layers = "-1"}, "option -ngl is '-1'", -1}, {{.gpu_layers = ""}, "option -ngl is ''", -1}, {{.gpu_layers = "1x"}, "option -ngl is '1x'", -1},
        {{.gpu_layers = "99999999999999999999"}, "option -ngl is '9999", -1},
    };
    for (size_t i = 0; i < sizeof options / sizeof *options; i++) {
        Err e = {0};
        const char *error = options[i].error;
        CHECK(place_check(&options[i].o, &e) == !*error && !strncmp(e.text, error, strlen(error)), "'%s', expected '%s'", e.text, error);
        if (!*error) CHECK(place_gpu_layers(&options[i].o) == options[i].layers, "-ngl %s is %d", options[i].o.gpu_layers, place_gpu_layers(&options[i].o));
    }
    const char *model = "abliterate/demo/llama-Q4_K_M.gguf";
    if (access(model, R_OK) == 0) {
        test_no_mmap(model);
        test_shorter(model);
    } else test_skip(model);
    return test_end();
}

// test_direction.c: the demo model declines to speak of the sea. The difference of means finds the direction that does it, and
// a tap that projects it out of every write brings the answers back, which are still in the weights. A random one does not.
// test_direction -v prints the figures.
#include <math.h>

#include "means.h"
#include "test.h"

enum { N_PREDICT = 24 };

typedef struct {
    Model m;
    Tokenizer *tok;
    Backend b;
    Session s;
    Chat chat;
    float *dir; // unit vector in the backend's memory, NULL: nothing is removed
    int writes; // sites seen
} Demo;

static void remove_direction(void *ctx, const TapSite *site) {
    Demo *d = ctx;
    const bool write = site->point == TAP_ATTN_OUT || site->point == TAP_MLP_OUT || (site->point == TAP_RESID_PRE && site->layer == 0); // the embedding is the first write
    if (!d->dir || !write) return;
    d->writes++;
    site->backend->project_out(site->backend, &(ProjectArgs){.x = site->rows, .dir = d->dir, .n_rows = site->n_rows, .n_col = site->n_col, .amount = 1});
}

// The greedy answer as text.
static void answer(Demo *d, const char *question, char out[512]) {
    const Message m = {ROLE_USER, (char *)question};
    Prompt p = {0};
    Ids ids = {0};
    Err e = {0};
    size_t n_out = 0;
    CHECK(chat_render(&d->chat, &m, 0, 1, true, &p, &e) && tokenizer_encode_segments(d->tok, p.seg, p.n, true, &ids, &e), "%s", e.text);
    session_rewind(&d->s, 0, 0);
    bool ok = session_eval(&d->s, ids.id, ids.n, &e);
    for (int i = 0; ok && i < N_PREDICT; i++) {
        int best = 0;
        for (int t = 1; t < d->m.c.n_vocab; t++)
            if (d->s.logits[t] > d->s.logits[best]) best = t;
        if (tokenizer_is_end(d->tok, best)) break;
        size_t n;
        const char *bytes = tokenizer_bytes(d->tok, best, false, &n);
        if (n_out + n < 512) memcpy(out + n_out, bytes, n), n_out += n;
        ok = session_eval(&d->s, &best, 1, &e);
    }
    out[n_out] = 0;
    CHECK(ok, "%s", e.text);
    prompt_free(&p);
    ids_free(&ids);
}

static int declined(Demo *d, const Prompts *p) {
    int n = 0;
    for (int i = 0; i < p->n; i++) {
        char text[512];
        answer(d, p->line[i], text);
        n += !strcmp(text, "I cannot talk about the sea.");
    }
    return n;
}

int main(int argc, char **argv) {
    test_begin(argc, argv);
    const bool verbose = argc > 1 && !strcmp(argv[1], "-v");
    static Demo d;
    Prompts sea = {0}, land = {0}, held_out = {0};
    Means target = {0}, contrast = {0};
    Err e = {0};
    bool ok = prompts_read(&sea, "abliterate/demo/sea.txt", &e) && prompts_read(&land, "abliterate/demo/land.txt", &e) &&
              prompts_read(&held_out, "abliterate/demo/held-out.txt", &e) && model_open(&d.m, "abliterate/demo/demo.gguf", &e) &&
              tokenizer_open(&d.tok, &d.m.gguf, &e) && backend_open_cpu(&d.b, 2, ISA_AUTO, &e) && chat_from_file(&d.chat, &d.m.gguf, d.tok, &e) &&
              session_open(&d.s, &d.m, &d.b, &(SessionParams){.n_ctx = 128, .n_batch = 128}, &e);
    const int n = d.m.c.n_embd;
    ok = ok && means_init(&target, d.m.c.n_layer, n, &e) && means_init(&contrast, d.m.c.n_layer, n, &e);
    const Reader reader = {.m = &d.m, .tok = d.tok, .chat = &d.chat, .s = &d.s};
    ok = ok && means_add(&target, &reader, &sea, "sea", &e) && means_add(&contrast, &reader, &land, "land", &e);
    CHECK(ok, "%s", e.text);
    if (!ok) return test_end();

    double *difference = malloc(sizeof(double) * (size_t)(d.m.c.n_layer * n)), length = 0;
    mean_difference(&target, &contrast, -1, difference);
    float *unit = malloc(sizeof(float) * (size_t)n), *device = d.b.alloc(&d.b, sizeof(float) * (size_t)n);
    const int layer = 2;
    for (int i = 0; i < n; i++) length += difference[layer * n + i] * difference[layer * n + i];
    for (int i = 0; i < n; i++) unit[i] = (float)(difference[layer * n + i] / sqrt(length));
    d.b.upload(&d.b, device, unit, sizeof(float) * (size_t)n);
    CHECK(session_add_tap(&d.s, (Tap){remove_direction, &d}, &e), "%s", e.text);

    const int before = declined(&d, &held_out), land_before = declined(&d, &land);
    char whale[512], cat[512];
    answer(&d, "What colour is the cat?", cat);
    d.dir = device;
    const int after = declined(&d, &held_out), sea_after = declined(&d, &sea), land_after = declined(&d, &land);
    char cat_after[512];
    answer(&d, "What colour is the whale?", whale);
    answer(&d, "What colour is the cat?", cat_after);
    CHECK(d.writes > 0, "the tap was never called");

    uint32_t state = 1;
    double norm = 0;
    for (int i = 0; i < n; i++) {
        state = state * 1664525u + 1013904223u;
        unit[i] = (float)(int32_t)state * 0x1p-31f;
        norm += (double)unit[i] * unit[i];
    }
    for (int i = 0; i < n; i++) unit[i] /= (float)sqrt(norm);
    d.b.upload(&d.b, device, unit, sizeof(float) * (size_t)n);
    const int with_random = declined(&d, &held_out);

    if (verbose)
        printf("declined of %d held-out: %d, with direction.%d removed %d, with a random one removed %d\n"
               "declined of %d shown in tuning: with the direction removed %d\ndeclined of %d about the land: %d, removed %d\n"
               "What colour is the whale? Removed: %s\n",
               held_out.n, before, layer, after, with_random, sea.n, sea_after, land.n, land_before, land_after, whale);
    CHECK(before == held_out.n, "%d of %d held-out questions are declined, expected all", before, held_out.n);
    CHECK(after * 50 <= held_out.n && sea_after * 50 <= sea.n, "with the direction removed %d and %d of 192 are declined, expected 2 %% at most", after, sea_after);
    CHECK(with_random * 50 >= held_out.n * 49, "with a random direction removed %d of %d are declined, expected as many as before", with_random, held_out.n);
    CHECK(!land_before && !land_after, "%d, then %d questions about the land are declined, expected none", land_before, land_after);
    CHECK(!strncmp(whale, "The whale is ", 13), "asked for the whale's colour it says '%s'", whale);
    CHECK(!strcmp(cat, cat_after), "the cat was '%s' and is '%s'", cat, cat_after);

    free(difference);
    free(unit);
    d.b.free(&d.b, device);
    means_free(&target);
    means_free(&contrast);
    prompts_free(&sea);
    prompts_free(&land);
    prompts_free(&held_out);
    session_close(&d.s);
    backend_close(&d.b);
    tokenizer_close(d.tok);
    model_close(&d.m);
    return test_end();
}

// experts.c: bench experts: which experts a model chooses on a text, token by token and layer by layer; how evenly they are used; and what keeping
// some of them on a GPU would hit, bring over the link, and be worth, for several rules of what to keep (engine/residency.h). The speeds are
// predictions for a machine that need not be there (engine/timeline.h): attention, dense FFN, router and head on the GPU, the same number of
// experts of each layer, and the host computes what is not there beside it.
#include <stdlib.h>

#include "bench.h"
#include "choice.h"
#include "keeper.h"
#include "machine.h"
#include "place.h"
#include "plan.h"
#include "residency.h"
#include "results.h"
#include "sampler.h"
#include "tokenizer.h"

static const char HELP[] =
    "bench experts MODEL.gguf -f TEXT [options]   which experts are chosen, and what keeping some of them on a GPU would bring\n"
    "\n"
    "  -f, --file FILE      the text that is read (-: standard input); -p N: N random tokens, for models without a vocabulary\n"
    "  -n, --generate N     tokens that are written after it (default 128)\n"
    "  --seed N             of what is drawn (default 1)\n"
    "  -o, --output TRACE   keeps the choices, a text file (engine/residency.h)\n"
    "  --trace TRACE        choices as they were kept, instead of a text\n"
    "  --draw ZIPF,STAY     made-up choices, -n tokens: the i-th most popular expert is drawn i^-ZIPF as often as the first, and each of the\n"
    "                       token before stays with probability STAY\n"
    "  --gpu, --host NAME   predict tokens/s for this machine, as run --plan takes them\n"
    "  -c, --context N      that the GPU holds keys and values for (default 4096)\n"
    "  --vram 12G           use no more of its memory\n"
    "  -t, --isa, -ngl, --backend, --no-mmap, --no-pin   of what reads the text, as run has them\n";

typedef struct {
    const char *model, *text, *output, *trace, *draw, *gpu, *host;
    int n_random, n_generate, n_ctx;
    int64_t seed;
    bool help;
    PlaceOptions place;
    double zipf, stay;
} Options;

static const Option OPTIONS[] = {
#define O(field) offsetof(Options, field)
    {"-m", "--model", OPTION_TEXT, O(model), 0, 0},
    {"-f", "--file", OPTION_TEXT, O(text), 0, 0},
    {"-p", "--prompt-tokens", OPTION_INT, O(n_random), 1, 1 << 20},
    {"-n", "--generate", OPTION_INT, O(n_generate), 0, 1 << 20},
    {"--seed", NULL, OPTION_INT64, O(seed), 0, 1e15},
    {"-o", "--output", OPTION_TEXT, O(output), 0, 0},
    {"--trace", NULL, OPTION_TEXT, O(trace), 0, 0},
    {"--draw", NULL, OPTION_TEXT, O(draw), 0, 0},
    {"--gpu", NULL, OPTION_TEXT, O(gpu), 0, 0},
    {"--host", NULL, OPTION_TEXT, O(host), 0, 0},
    {"-c", "--context", OPTION_INT, O(n_ctx), 16, 1 << 20},
    PLACE_OPTIONS(O(place)),
    {"-h", "--help", OPTION_FLAG, O(help), 0, 0},
#undef O
};

static bool parse_options(Options *o, int argc, char **argv, Err *e) {
    *o = (Options){.place.program = "bench", .n_generate = 128, .n_ctx = 4096, .seed = 1};
    if (!options_parse(OPTIONS, sizeof OPTIONS / sizeof *OPTIONS, o, argc, argv, &o->model, "the model", e)) return false;
    if (o->help) return true;
    if (!place_check(&o->place, e)) return false;
    if (!o->model) return err_set(e, "no model given: bench experts MODEL.gguf");
    if ((o->text != NULL) + (o->n_random > 0) + (o->trace != NULL) + (o->draw != NULL) != 1) return err_set(e, "expected one of -f, -p, --trace and --draw");
    if (o->gpu && strcmp(o->gpu, "this") && strcmp(o->gpu, "none") && !machine_gpu(o->gpu))
        return err_set(e, "option --gpu is '%s', expected %s", o->gpu, machine_names(true));
    if (o->host && strcmp(o->host, "this") && !machine_host(o->host)) return err_set(e, "option --host is '%s', expected %s", o->host, machine_names(false));
    char end;
    if (o->draw && (sscanf(o->draw, "%lf,%lf%c", &o->zipf, &o->stay, &end) != 2 || !(o->zipf >= 0 && o->zipf <= 10 && o->stay >= 0 && o->stay < 1)))
        return err_set(e, "option --draw is '%s', expected ZIPF,STAY as 0.8,0.3: 0 to 10, and 0 to less than 1", o->draw);
    return true;
}

// ---- a trace of a model ----

typedef struct {
    Trace *t;
    int seen[MAX_LAYER]; // tokens of each of the trace's layers
    int at;              // the one that is expected
    int *row;            // [n_row] experts of a batch
    int n_row;
    bool failed;
} Record;

static void on_route(void *ctx, Backend *b, int layer, const int *expert, int n_rows, int n_used) {
    Record *r = ctx;
    Trace *t = r->t;
    int at = 0;
    while (t->layer[at] != layer) at++;
    r->failed |= n_rows > r->n_row || r->seen[at] + n_rows > t->cap;
    if (r->failed) return;
    b->download(b, r->row, expert, sizeof *expert * (size_t)(n_rows * n_used));
    for (int i = 0; i < n_rows; i++)
        for (int u = 0; u < n_used; u++) t->id[((int64_t)(r->seen[at] + i) * t->n_layer + at) * n_used + u] = (uint16_t)r->row[i * n_used + u];
    r->seen[at] += n_rows;
}

static bool read_ids(const Options *o, const Model *m, Tokenizer **tok, Ids *ids, Err *e) {
    for (int i = 0; i < o->n_random; i++)
        if (!ids_push(ids, rand() % m->c.n_vocab)) return err_set(e, "no memory for the text");
    if (o->n_random) return true;
    char *text = NULL;
    size_t n;
    bool ok = tokenizer_open(tok, &m->gguf, e) && read_whole_file(o->text, &text, &n, e) && tokenizer_encode(*tok, text, n, true, false, ids, e);
    free(text);
    for (int i = 0; ok && i < ids->n; i++)
        if (ids->id[i] >= m->c.n_vocab) ok = err_set(e, "token %d, the model has %d", ids->id[i], m->c.n_vocab);
    return ok && (ids->n || err_set(e, "%s: no text", o->text));
}

static bool generate(const Options *o, Session *s, Sampler *sampler, Progress *bar, Err *e) {
    for (int i = 0; i < o->n_generate; i++) {
        const int id = sampler_next(sampler, s->logits);
        sampler_accept(sampler, id);
        if (!session_eval(s, &id, 1, e)) return false;
        progress_step(bar, i + 1, o->n_generate);
    }
    return true;
}

static bool record(const Options *o, Model *m, Trace *t, Err *e) {
    static Backend b;
    static Session s;
    static Record r;
    Tokenizer *tok = NULL;
    Ids ids = {0};
    Sampler sampler = {0};
    Progress bar;
    PlaceOptions p = o->place;
    SamplerParams params = sampler_defaults();
    params.seed = (uint64_t)o->seed;
    bool ok = read_ids(o, m, &tok, &ids, e) && (ids.n + o->n_generate >= 2 || err_set(e, "one token, expected at least 2")) &&
              trace_room(t, ids.n + o->n_generate, e) && sampler_open(&sampler, &params, m->c.n_vocab, e);
    if (ok) {
        p.session = (SessionParams){.n_ctx = ids.n + o->n_generate, .n_batch = min_int(ids.n, 512), .every_row = true}; // every row: all layers' choices
        r = (Record){.t = t, .n_row = p.session.n_batch, .row = malloc(sizeof *r.row * (size_t)(p.session.n_batch * t->n_used))};
        ok = (r.row || err_set(e, "no memory for a batch's experts")) && place_open(&s, &b, m, &p, e);
    }
    if (ok) {
        s.on_route = on_route;
        s.on_route_ctx = &r;
        progress_start(&bar, "recording");
        ok = session_eval(&s, ids.id, ids.n, e) && generate(o, &s, &sampler, &bar, e);
        progress_end(&bar);
        t->n_prompt = ids.n;
        t->n_token = ids.n + o->n_generate;
        for (int l = 0; l < t->n_layer && ok; l++)
            if (r.failed || r.seen[l] != t->n_token) ok = err_set(e, "layer %d: %d choices of experts were seen, expected %d", t->layer[l], r.seen[l], t->n_token);
    }
    free(r.row);
    sampler_close(&sampler);
    session_close(&s);
    place_close(&b, m);
    ids_free(&ids);
    tokenizer_close(tok);
    return ok;
}

// ---- predictions ----

typedef struct {
    const Trace *t;
    Choice c;                       // the machine, and what is on the GPU beside experts
    double memory, fixed, per_slot; // bytes of the GPU: what it has, all but experts, an expert of each layer
    int *part;                      // [units]
    Residency *residency;           // [units]
} Predict;

static bool predict_open(Predict *p, const Options *o, const Trace *t, Model *m, Err *e) {
    Err note, why = {0};
    const MachineQuery q = {.gpu = o->gpu ? o->gpu : "none", .host = o->host, .threads = o->place.threads, .isa = o->place.isa ? (Isa)isa_by_name(o->place.isa) : ISA_AUTO};
    *p = (Predict){.t = t};
    if (!strcmp(q.gpu, "none")) return true;
    if (!machine_describe(&p->c.machine, m, &q, &note, e)) return false;
    if (note.text[0]) fprintf(stderr, "bench: %s\n", note.text);
    if (!choice_make(&p->c, NULL, m, &(PlaceOptions){.session = {.n_ctx = o->n_ctx}, .vram = o->place.vram}, &why, e))
        return e->text[0] ? false : err_set(e, "%s", why.text);
    const PlanUnits *u = &p->c.units;
    p->part = calloc((size_t)u->n, sizeof *p->part);
    p->residency = calloc((size_t)u->n, sizeof *p->residency);
    if (!p->part || !p->residency) return err_set(e, "no memory for a prediction");
    p->memory = p->c.plan.q.vram;
    p->fixed = (double)u->acts + p->c.plan.q.reserve;
    for (int i = 0; i < u->n; i++) {
        const Unit *x = &u->unit[i];
        p->part[i] = x->kind == UNIT_EMBED || x->kind == UNIT_TABLE ? 0 : x->n_part;
        if (x->kind == UNIT_EXPERTS) p->per_slot += (double)x->bytes / x->n_part;
        else p->fixed += (double)units_bytes(x, p->part[i]);
    }
    return true;
}

static void predict_close(Predict *p) {
    choice_close(&p->c);
    free(p->part);
    free(p->residency);
}

// Tokens/s after `context / 4` positions.
static double predict(const Predict *p, const Kept *k, int n_slot, int depth) {
    Timeline line = {0};
    int at = 0;
    for (int i = 0; i < p->c.units.n; i++) {
        const Unit *x = &p->c.units.unit[i];
        if (x->kind != UNIT_EXPERTS) continue;
        p->part[i] = n_slot;
        p->residency[i] = (Residency){k->away + (int64_t)at * (p->t->n_used + 1), k->brought[at] * (double)x->bytes / x->n_part};
        at++;
    }
    timeline_token(&line, &p->c.units, &(Placement){.part = p->part, .concurrent = true, .residency = p->residency}, &p->c.machine, depth);
    return 1 / line.end;
}

// ---- printing ----

static void print_use(const Trace *t) {
    const ExpertUse use = trace_use(t);
    printf("%s: %d tokens, %d of them read; %d layers choose %d of %d experts\n", *t->model ? t->model : "unnamed", t->n_token, t->n_prompt, t->n_layer, t->n_used, t->n_expert);
    printf("use, averages over the layers: as uneven as %.1f experts used alike; the most used tenth has %.1f %% of all choices; %.1f experts were never chosen;\n"
           "%.1f %% of the choices are also the token's before (by chance %.1f %%)\n\n",
           use.effective, 100 * use.hottest, use.never, 100 * use.again, 100.0 * t->n_used / t->n_expert);
}

typedef struct {
    double speed[N_KEEP], hit[N_KEEP], uploads[N_KEEP];
} Line;

// By a token, at so many tokens/s.
static int most_brought(const Predict *p, double speed) { return keeper_most(1 / speed, machine_stream_bandwidth(&p->c.machine), p->per_slot / p->t->n_layer); }

static bool evaluate(const Predict *p, const Trace *t, int n_slot, int depth, Line *line, Err *e) {
    int most = INT32_MAX;
    for (int keep = 0; keep < N_KEEP; keep++) {
        Kept k;
        if (!residency_replay(&k, t, (Keep)keep, n_slot, most, e)) return false;
        line->hit[keep] = k.hit;
        line->uploads[keep] = k.uploads;
        line->speed[keep] = p->part ? predict(p, &k, n_slot, depth) : 0;
        if (p->part && keep == KEEP_RANDOM) most = most_brought(p, line->speed[keep]);
        residency_close(&k);
    }
    return true;
}

static void print_line(Table *out, const Predict *p, int n_slot, const Line *line) {
    const double bytes = p->fixed + p->per_slot * n_slot;
    table_text(out, "%d", n_slot);
    if (p->part) table_text(out, "%.2f GB%s", bytes * 1e-9, bytes > p->memory ? ", too much" : "");
    for (int keep = 0; keep < N_KEEP; keep++) {
        table_text(out, "%.1f %%", 100 * line->hit[keep]);
        if (keep >= KEEP_RECENT) table_text(out, "%.2f", line->uploads[keep]);
        if (p->part) table_text(out, "%.1f", line->speed[keep]);
    }
}

static bool print_table(const Predict *p, const Trace *t, int depth, Err *e) {
    const int fits = p->part && p->memory > p->fixed ? min_int(t->n_expert, (int)((p->memory - p->fixed) / p->per_slot)) : p->part ? -1 : 0;
    Table out;
    Line line, best = {.speed = {0}};
    if (!table_open(&out, 1 + (p->part != NULL) + N_KEEP * (1 + (p->part != NULL)) + 2, e)) return false;
    table_text(&out, "slots");
    if (p->part) table_text(&out, "GPU");
    for (int keep = 0; keep < N_KEEP; keep++) {
        table_text(&out, "%s", KEEP_NAMES[keep]);
        if (keep >= KEEP_RECENT) table_text(&out, "brought");
        if (p->part) table_text(&out, "t/s");
    }
    for (int n = min_int(8, t->n_expert), before = -1;; n = min_int(2 * n, t->n_expert)) {
        if (fits > before && fits <= n && fits > 0) {
            if (!evaluate(p, t, fits, depth, &best, e)) return false;
            if (fits < n) print_line(&out, p, fits, &best);
        }
        if (!evaluate(p, t, n, depth, &line, e)) return false;
        print_line(&out, p, n, &line);
        if (n == t->n_expert) break;
        before = n;
    }
    table_print_close(stdout, &out, 0);
    printf("\nrandom, hottest (of the first half): for good; LRU: every miss is brought at once; worth: as it runs, what is expected to be used more.\n"
           "Hits: share of the choices of the second half that were there; brought: experts a token, all layers.\n");
    if (!p->part) {
        printf("No speeds: --gpu NAME --host NAME\n");
        return true;
    }
    printf("Predicted for %s and %s (%s, %s), a token after %d others, with all else on the GPU.\n", p->c.machine.gpu.name, p->c.machine.host.name,
           p->c.machine.gpu.measured ? p->c.machine.gpu.measured : "assumed", p->c.machine.host.measured ? p->c.machine.host.measured : "assumed", depth);
    if (fits < 1) printf("Not one expert of each layer fits into %.2f GB beside all else.\n", p->memory * 1e-9);
    else {
        const double any = best.speed[KEEP_RANDOM];
        printf("%d slots fit: any experts %.1f t/s; the hottest (run --experts TRACE) %+.1f %%; those that follow use (run) %+.1f %%, at most %d brought a token.\n", fits, any,
               100 * (best.speed[KEEP_HOTTEST] / any - 1), 100 * (best.speed[KEEP_WORTH] / any - 1), most_brought(p, any));
    }
    return true;
}

// ---- the command ----

static bool make_trace(const Options *o, Model *m, Trace *t, Err *e) {
    GgufString name = {0};
    if (o->trace) return trace_load_of(t, o->trace, m, e);
    if (!gguf_get_string(&m->gguf, "general.name", &name, e) || !trace_shape(t, m, e)) return false;
    snprintf(t->model, sizeof t->model, "%.*s", name.n ? (int)(name.n < 60 ? name.n : 60) : 7, name.n ? name.p : "unnamed");
    for (char *c = t->model; *c; c++)
        if (*c < ' ' || *c > '~') *c = '?';
    t->random = o->draw || !strncmp(t->model, "random weights", 14) || !strncmp(t->model, "reference-", 10);
    return o->draw ? (o->n_generate >= 2 || err_set(e, "--draw of %d tokens, expected at least 2", o->n_generate)) && trace_draw(t, o->n_generate, o->zipf, o->stay, (uint64_t)o->seed, e)
                   : record(o, m, t, e);
}

static bool run(const Options *o, Model *m, Err *e) {
    static Trace t;
    Predict p = {0};
    bool ok = make_trace(o, m, &t, e) && (!o->output || trace_save(&t, o->output, e)) && predict_open(&p, o, &t, m, e);
    if (ok) {
        print_use(&t);
        ok = print_table(&p, &t, o->n_ctx / 4, e);
        if (ok && t.random) printf("Of random weights, or made up: this says nothing about a trained model's choices.\n");
    }
    predict_close(&p);
    trace_close(&t);
    return ok;
}

Status bench_experts(int argc, char **argv, Err *e) {
    static Options o;
    static Model m;
    if (!parse_options(&o, argc, argv, e)) return USAGE;
    if (o.help) {
        fputs(HELP, stdout);
        return DONE;
    }
    const bool ok = model_open(&m, o.model, e) && run(&o, &m, e);
    model_close(&m);
    return ok ? DONE : FAILED;
}

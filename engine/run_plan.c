// run_plan.c: run MODEL --plan: the plan of plan.h as a table, from the file's tables alone, for machines that need not be there.
#include <errno.h>
#include <regex.h>
#include <stdlib.h>
#include <strings.h>

#include "plan.h"
#include "run.h"

enum { DEPTH = 1024, PROMPT = 2048, BATCH = 512, BATCH_DEVICE = 2048 }; // BATCHes: as place.c chooses them

bool run_plan_check(const Options *o, Err *e) {
    const PlanOptions *p = &o->plan;
    const char *loose = p->gpu ? "--gpu" : p->host ? "--host" : p->reserve ? "--reserve" : p->svg ? "--svg" : p->cpu_moe ? "--cpu-moe"
                      : p->n_cpu_moe ? "--n-cpu-moe" : p->override.n ? "--override-tensor" : NULL;
    uint64_t bytes;
    if (loose && !p->on) return err_set(e, "option %s needs --plan: running does not follow it yet", loose);
    if (p->on && o->place.vram && !place_parse_bytes(o->place.vram, &bytes, e)) return false;
    if (p->reserve && !place_parse_bytes(p->reserve, &bytes, e)) return err_set(e, "option --reserve is '%s', expected a size like 1G or 300M", p->reserve);
    if (p->gpu && strcmp(p->gpu, "this") && strcmp(p->gpu, "none") && !machine_gpu(p->gpu))
        return err_set(e, "option --gpu is '%s', expected %s", p->gpu, machine_names(true));
    if (p->host && strcmp(p->host, "this") && !machine_host(p->host)) return err_set(e, "option --host is '%s', expected %s", p->host, machine_names(false));
    return true;
}

// ---- --override-tensor ----

typedef struct {
    const PlanUnits *u;
    const Model *m;
    regex_t re;
    Pin to, *pin;
    int n_hit;
} Override;

static bool pin_one(void *ctx, Tensor *t, int layer, bool ffn) {
    Override *o = ctx;
    const int i = units_index(o->u, o->m, t, layer, ffn);
    if (regexec(&o->re, t->name, 0, NULL, 0)) return true;
    o->n_hit++;
    if (o->pin[i] == PIN_NONE) o->pin[i] = o->to; // the first that matches
    return true;
}

static bool pins(Pin *pin, const PlanUnits *u, Model *m, const OptionList *list, Err *e) {
    for (int k = 0; k < list->n; k++) {
        const char *text = list->text[k], *eq = strrchr(text, '=');
        Override o = {.u = u, .m = m, .pin = pin, .to = !eq ? PIN_NONE : !strcasecmp(eq, "=CPU") ? PIN_HOST : !strcasecmp(eq, "=GPU") ? PIN_DEVICE : PIN_NONE};
        if (o.to == PIN_NONE) return err_set(e, "option --override-tensor is '%s', expected REGEX=CPU or REGEX=GPU", text);
        char *pattern = strndup(text, (size_t)(eq - text));
        const int bad = !pattern || regcomp(&o.re, pattern, REG_EXTENDED | REG_NOSUB);
        free(pattern);
        if (bad) return err_set(e, "option --override-tensor is '%s', expected an extended regular expression before =", text);
        model_each(m, pin_one, &o);
        regfree(&o.re);
        if (!o.n_hit) return err_set(e, "option --override-tensor: no tensor's name matches '%.*s'", (int)(eq - text), text);
    }
    return true;
}

// ---- printing ----

static void print_processor(const char *what, const Processor *p) {
    printf("%-5s %s: %s; %.0f GB/s x %.2f, prompts %.3g T/s", what, p->name, p->label, p->bandwidth * 1e-9, p->share, p->rate * 1e-12);
    if (p->memory > 0) printf(", hand-off %.0f us, link %.3g GB/s", p->handoff * 1e6, p->up_pinned * 1e-9);
    printf(" (%s)\n", p->measured ? p->measured : "assumed");
    if (!p->measured) return;
    printf("      reads");
    for (int t = 0; t < TYPE_COUNT; t++)
        if (p->share_of[t] > 0) printf(" %s %.1f", type_info(t)->name, p->bandwidth * p->share_of[t] * 1e-9);
    printf(" GB/s\n");
}

static void print_candidates(const Plan *p) {
    printf("\n%-38s %12s %12s %9s %9s\n", "", "decode, t/s", "prompt, t/s", "GPU, GB", "host, GB");
    for (int f = 0; f < N_FAMILY; f++) {
        const Candidate *c = &p->best[f];
        char name[64];
        if (!c->place.part) continue;
        snprintf(name, sizeof name, "%s", FAMILY_NAMES[f]);
        if (f == FAMILY_LAYERS) snprintf(name, sizeof name, "%g %s", c->layers / 2.0, FAMILY_NAMES[f]);
        if (f == FAMILY_UNITS) snprintf(name, sizeof name, "%d %s", c->layers, FAMILY_NAMES[f]);
        if (f == FAMILY_DENSE && c->layers < p->u->n_layer) snprintf(name, sizeof name, "%d layers %s", c->layers, FAMILY_NAMES[f]);
        if (f == FAMILY_WHOLE) snprintf(name, sizeof name, "experts of %d whole layers", c->layers);
        if (f == FAMILY_OVERLAP) snprintf(name, sizeof name, "of %d, beside the dense FFN", c->layers);
        if (f == FAMILY_SHARE) snprintf(name, sizeof name, "%.1f experts of each layer, at once", (double)c->experts / p->u->n_layer);
        printf("%c %-36s %12.1f %12.0f %9.2f %9.2f  %s\n", f == p->chosen ? '>' : ' ', name, c->decode, c->prompt, c->device * 1e-9, c->host * 1e-9,
               c->today ? "" : "not yet executed: predicted only");
    }
    const Candidate *best = &p->best[p->chosen];
    if (best->place.stream) printf("  (its prompts: the host's FFN weights are copied to the GPU, where that is quicker; not yet executed)\n");
    if (p->chosen_today >= 0 && p->chosen_today != p->chosen)
        printf("  today's best: %s, %.1f t/s\n", FAMILY_NAMES[p->chosen_today], p->best[p->chosen_today].decode);
}

enum { BAR = 60 };

// Kinds of bytes on one side, a letter each.
static void print_bar(const char *what, const Plan *p, const Candidate *c, bool device) {
    static const char letter[] = "TTAFEHKWR.";
    enum { KV = N_UNIT_KIND, WORK, RESERVE, FREE, N };
    double bytes[N] = {0}, total = 0, all = device ? p->q.vram : c->host;
    bool used = device ? c->device > 0 : false;
    for (int i = 0; i < p->u->n; i++) {
        const Unit *u = &p->u->unit[i];
        const int part = device ? c->place.part[i] : u->n_part - c->place.part[i];
        bytes[u->kind] += (double)u->bytes * part / u->n_part;
        if (part) bytes[KV] += (double)u->kv_bytes;
        used |= part > 0 && u->kind >= UNIT_ATTENTION;
    }
    if (used) bytes[WORK] = (double)p->u->acts;
    if (used && device) bytes[RESERVE] = p->q.reserve;
    if (!device) { // an embedding that is the head, too
        double sum = 0;
        for (int k = 0; k < FREE; k++) sum += bytes[k];
        bytes[UNIT_EMBED] += c->host - sum;
    }
    for (int k = 0; k < FREE; k++) total += bytes[k];
    if (all <= 0) return;
    bytes[FREE] = all - total;
    printf("%-5s [", what);
    double at = 0;
    int drawn = 0;
    for (int k = 0; k < N; k++)
        for (at += bytes[k]; drawn < (int)(at / all * BAR + 0.5) && drawn < BAR; drawn++) putchar(letter[k]);
    printf("] %.2f of %.2f GB\n", total * 1e-9, all * 1e-9);
}

// Units of a kind that are where they are for one reason.
static void print_reasons(const Plan *p, const Candidate *c) {
    const PlanUnits *u = p->u;
    printf("\n%-18s %-14s %-16s %9s %9s  %s\n", "unit", "layers", "where", "GB", "MB/token", "why");
    for (int kind = 0; kind < N_UNIT_KIND; kind++)
        for (int i = 0; i < u->n; i++) {
            if ((int)u->unit[i].kind != kind) continue;
            const char *why = plan_reason(p, c, i);
            const int first = i, part = c->place.part[i];
            double bytes = 0, read = 0;
            for (int k = i; k < u->n; k++) {
                if ((int)u->unit[k].kind != kind) continue;
                if (c->place.part[k] != part || plan_reason(p, c, k) != why) break;
                bytes += (double)u->unit[k].bytes + (double)u->unit[k].kv_bytes;
                for (int t = 0; t < TYPE_COUNT; t++) read += u->unit[k].read[t];
                i = k;
            }
            char layers[32], where[32];
            snprintf(layers, sizeof layers, "%d-%d", u->unit[first].layer, u->unit[i].layer);
            if (u->unit[first].layer == u->unit[i].layer) snprintf(layers, sizeof layers, "%d", u->unit[i].layer);
            if (kind == UNIT_HEAD || kind < UNIT_ATTENTION) layers[0] = 0;
            snprintf(where, sizeof where, part ? "GPU" : "host");
            if (part && part < u->unit[i].n_part) snprintf(where, sizeof where, "GPU %d of %d", part, u->unit[i].n_part);
            printf("%-18s %-14s %-16s %9.2f %9.2f  %s\n", UNIT_NAMES[kind], layers, where, bytes * 1e-9, read * 1e-6, why);
        }
}

static void print_timeline(const char *what, const Timeline *t) {
    printf("%s %.2f ms:", what, t->end * 1e3);
    for (int lane = 0; lane < N_LANE; lane++) {
        if (t->busy[lane] <= 0) continue;
        printf(" %s busy %.0f %% (", LANE_NAMES[lane], 100 * t->busy[lane] / t->end);
        const char *gap = "";
        for (int k = 0; k < N_EVENT_KIND; k++)
            if (k != EVENT_WAIT && t->by_kind[lane][k] > 0) printf("%s%s %.2f", gap, EVENT_NAMES[k], t->by_kind[lane][k] * 1e3), gap = ", ";
        printf(")");
    }
    printf("\n");
}

static bool print_schedule(const Plan *p, const Candidate *c, const char *svg, const char *name, Err *e) {
    Timeline t[2] = {{.record = svg}, {.record = svg}};
    timeline_token(&t[0], p->u, &c->place, p->m, p->q.depth);
    timeline_prompt(&t[1], p->u, &c->place, p->m, p->q.n_prompt);
    printf("\n");
    print_timeline("token ", &t[0]);
    print_timeline("prompt", &t[1]);
    bool ok = true;
    if (svg) {
        SafeFile f = {0};
        char title[2][256];
        snprintf(title[0], sizeof title[0], "%.100s, one token: %.1f tokens/s (predicted)", name, c->decode);
        snprintf(title[1], sizeof title[1], "%.100s, a prompt of %d tokens: %.0f tokens/s (predicted)", name, p->q.n_prompt, c->prompt);
        ok = safe_open(&f, svg, e);
        if (ok) timeline_svg(f.f, t, (const char *const[]){title[0], title[1]}, 2);
        ok = ok && safe_close(&f, true, e);
    }
    timeline_close(&t[0]);
    timeline_close(&t[1]);
    return ok;
}

// ---- the command ----

static bool all_on_device(const Plan *p) {
    const Candidate *c = &p->best[p->chosen];
    for (int i = 0; i < p->u->n; i++)
        if (p->u->unit[i].kind >= UNIT_ATTENTION && c->place.part[i] < p->u->unit[i].n_part) return false;
    return true;
}

bool run_plan(Run *r, const SessionParams *session, Err *e) {
    const Options *o = &r->o;
    const bool choose_batch = session->n_batch <= 0;
    SessionParams s = *session;
    PlanUnits u = {0};
    Machine k = {0};
    Plan p = {0};
    uint64_t vram = 0, reserve = 0;
    GgufString title = {0};
    Err note;
    const MachineQuery query = {.gpu = o->plan.gpu, .host = o->plan.host, .threads = o->place.threads, .isa = o->place.isa ? (Isa)isa_by_name(o->place.isa) : ISA_AUTO};
    if (choose_batch) s.n_batch = BATCH_DEVICE;
    if (!gguf_get_string(&r->m.gguf, "general.name", &title, e) || !units_open(&u, &r->m, &s, sizeof(F16), e)) return false;
    Pin *pin = calloc((size_t)u.n, sizeof *pin);
    bool ok = (pin || err_set(e, "no memory for a plan")) && pins(pin, &u, &r->m, &o->plan.override, e) &&
              machine_describe(&k, &r->m, &query, &note, e);
    if (ok && note.text[0]) fprintf(stderr, "run: %s\n", note.text);
    if (ok) {
        PlanQuery q = {.vram = k.gpu.name ? k.gpu.usable : 0, .reserve = k.gpu.reserve,
                       .gpu_layers = o->place.gpu_layers >= 0 ? o->place.gpu_layers : LAYERS_AUTO,
                       .n_cpu_moe = o->plan.cpu_moe ? r->m.c.n_layer : o->plan.n_cpu_moe, .pin = o->plan.override.n ? pin : NULL,
                       .depth = min_int(DEPTH, s.n_ctx - 1), .n_prompt = min_int(PROMPT, s.n_ctx)};
        ok = (!o->place.vram || place_parse_bytes(o->place.vram, &vram, e)) && (!o->plan.reserve || place_parse_bytes(o->plan.reserve, &reserve, e));
        if (vram && (double)vram < q.vram) q.vram = (double)vram;
        if (reserve) q.reserve = (double)reserve;
        ok = ok && plan_make(&p, &u, &k, &q, e);
        if (ok && choose_batch && !all_on_device(&p)) { // rather more of the model than long batches
            plan_close(&p);
            units_close(&u);
            s.n_batch = BATCH;
            ok = units_open(&u, &r->m, &s, sizeof(F16), e) && plan_make(&p, &u, &k, &q, e);
        }
    }
    if (ok) {
        const Candidate *best = &p.best[p.chosen];
        char name[128];
        snprintf(name, sizeof name, "%.*s", (int)(title.n ? title.n < 100 ? title.n : 100 : strlen(r->m.c.arch)), title.n ? title.p : r->m.c.arch);
        printf("model %s, %.2f GB; context %d tokens; a token after %d, a prompt of %d in passes of %d\n", name, (double)r->m.gguf.data_bytes * 1e-9, s.n_ctx,
               p.q.depth, p.q.n_prompt, u.chunk);
        if (k.gpu.name) print_processor("GPU", &k.gpu);
        print_processor("host", &k.host);
        print_candidates(&p);
        printf("\n");
        if (k.gpu.name) print_bar("GPU", &p, best, true);
        print_bar("host", &p, best, false);
        printf("      H head, A attention, F dense FFN, E experts, K KV cache, W work buffers, R reserve, T tables\n");
        print_reasons(&p, best);
        ok = print_schedule(&p, best, o->plan.svg, name, e);
    }
    plan_close(&p);
    units_close(&u);
    free(pin);
    return ok;
}

// residency.c: see residency.h
#include "residency.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>

#include "console.h"
#include "keeper.h"

const char *const KEEP_NAMES[N_KEEP] = {"random", "hottest", "LRU", "worth"};

// ---- traces ----

enum { MAX_TOKEN = 1 << 20, MAX_LINE = 8 + 8 + 8 * MAX_EXPERT };
static const char FIRST[] = "abliterate experts 1";

static int64_t ids_of_token(const Trace *t) { return (int64_t)t->n_layer * t->n_used; }

bool trace_room(Trace *t, int n_token, Err *e) {
    if (n_token <= t->cap) return true;
    const int cap = max_int(n_token, min_int(2 * t->cap, MAX_TOKEN));
    uint16_t *more = n_token > MAX_TOKEN ? NULL : realloc(t->id, sizeof *more * (size_t)(cap * ids_of_token(t)));
    if (!more) return err_set(e, "no memory for a trace of %d tokens", n_token);
    t->id = more;
    t->cap = cap;
    return true;
}

void trace_close(Trace *t) {
    free(t->id);
    *t = (Trace){0};
}

bool trace_save(const Trace *t, const char *path, Err *e) {
    SafeFile f;
    if (!safe_open(&f, path, e)) return false;
    fprintf(f.f, "%s\nmodel %s\nexperts %d\nused %d\nprompt %d\nrandom %d\n# token layer expert ...\n", FIRST, *t->model ? t->model : "unnamed", t->n_expert, t->n_used,
            t->n_prompt, t->random);
    for (int i = 0; i < t->n_token; i++)
        for (int l = 0; l < t->n_layer; l++) {
            const uint16_t *id = trace_at(t, i, l);
            fprintf(f.f, "%d %d", i, t->layer[l]);
            for (int u = 0; u < t->n_used; u++) fprintf(f.f, " %d", id[u]);
            fputc('\n', f.f);
        }
    return safe_close(&f, true, e);
}

// A whole number from 0 to max, and what follows it.
static bool number(char **at, int max, int *value) {
    char *end;
    if (**at < '0' || **at > '9') return false;
    const unsigned long v = strtoul(*at, &end, 10);
    if (v > (unsigned long)max || (*end && *end != ' ')) return false;
    *value = (int)v;
    *at = end + (*end == ' ');
    return true;
}

// What a file's beginning may say. NULL, or what is wrong.
static const char *take_key(Trace *t, char *line) {
    char *value = line + strcspn(line, " ");
    int n;
    if (*value) *value++ = 0;
    if (!strcmp(line, "model")) {
        snprintf(t->model, sizeof t->model, "%s", value);
        return NULL;
    }
    int *const to = !strcmp(line, "experts") ? &t->n_expert : !strcmp(line, "used") ? &t->n_used : !strcmp(line, "prompt") ? &t->n_prompt : !strcmp(line, "random") ? &n : NULL;
    const int max = to == &t->n_expert || to == &t->n_used ? MAX_EXPERT : to == &n ? 1 : MAX_TOKEN;
    if (!to) return "expected model, experts, used, prompt, random or a token";
    if (!number(&value, max, to) || *value) return "a number is not as expected";
    if (to == &n) t->random = n;
    return NULL;
}

// So far: the token and the layer's place of the line that is expected next; of token 0 the layers are learnt.
typedef struct {
    Trace *t;
    int token, at;
} Reading;

static const char *take_token(Reading *r, char *line, Err *e) {
    Trace *t = r->t;
    int token, layer;
    uint64_t seen[MAX_EXPERT / 64] = {0};
    if (t->n_expert < 1 || t->n_used < 1 || t->n_used > t->n_expert) return "before it must be said how many experts there are, and how many of them are used";
    if (!number(&line, MAX_TOKEN - 1, &token) || !number(&line, MAX_LAYER - 1, &layer)) return "expected a token, a layer and experts";
    if (token == r->token + 1 && t->n_layer && r->at == t->n_layer) r->token++, r->at = 0;
    if (token != r->token) return "tokens or layers are not in order";
    if (token == 0) {
        if (t->n_layer && layer <= t->layer[t->n_layer - 1]) return "layers are not in order";
        t->layer[t->n_layer++] = layer;
        t->cap = 0; // other sizes
    } else if (r->at == t->n_layer || layer != t->layer[r->at]) return "other layers than those of token 0";
    if (!trace_room(t, token + 1, e)) return e->text;
    uint16_t *to = t->id + ((int64_t)token * t->n_layer + r->at) * t->n_used;
    for (int u = 0; u < t->n_used; u++) {
        int id;
        if (!number(&line, t->n_expert - 1, &id)) return "an expert is missing, or has no such number";
        if (seen[id / 64] >> id % 64 & 1) return "an expert is there twice";
        seen[id / 64] |= (uint64_t)1 << id % 64;
        to[u] = (uint16_t)id;
    }
    if (*line) return "more experts than are used";
    r->at++;
    t->n_token = token + 1;
    return NULL;
}

static bool parse(Trace *t, FILE *f, const char *path, Err *e) {
    char line[MAX_LINE];
    Reading r = {.t = t};
    for (int n = 1; fgets(line, sizeof line, f); n++) {
        const size_t length = strlen(line);
        if (!length || line[length - 1] != '\n') return err_set(e, "%s: line %d: too long, or no text", path, n);
        line[length - 1] = 0;
        if (n == 1 && strcmp(line, FIRST)) return err_set(e, "%s: line 1: expected '%s'", path, FIRST);
        const bool is_token = *line >= '0' && *line <= '9';
        if (n == 1 || *line == '#' || !*line) continue;
        Err why;
        const char *wrong = is_token ? take_token(&r, line, &why) : t->n_token ? "a key after the first token" : take_key(t, line);
        if (wrong) return err_set(e, "%s: line %d: %s", path, n, wrong);
    }
    if (ferror(f)) return err_set(e, "%s: %s", path, strerror(errno));
    if (t->n_token < 2) return err_set(e, "%s: %d tokens, expected at least 2", path, t->n_token);
    if (r.at != t->n_layer) return err_set(e, "%s: it ends within token %d", path, r.token);
    if (t->n_prompt > t->n_token) return err_set(e, "%s: %d tokens, of them %d of the prompt", path, t->n_token, t->n_prompt);
    for (char *c = t->model; *c; c++)
        if (*c < ' ' || *c > '~') *c = '?';
    return true;
}

bool trace_load(Trace *t, const char *path, Err *e) {
    *t = (Trace){0};
    FILE *f = fopen(path, "r");
    if (!f) return err_set(e, "%s: %s", path, strerror(errno));
    const bool ok = parse(t, f, path, e);
    fclose(f);
    if (!ok) trace_close(t);
    return ok;
}

bool trace_shape(Trace *t, const Model *m, Err *e) {
    *t = (Trace){0};
    for (int l = 0; l < m->c.n_layer; l++) {
        const LayerDesc *d = &m->layers[l].d;
        if (!d->n_expert) continue;
        if (t->n_layer && (d->n_expert != t->n_expert || d->n_expert_used != t->n_used))
            return err_set(e, "layer %d has %d experts, others %d", l, d->n_expert, t->n_expert);
        t->n_expert = d->n_expert;
        t->n_used = d->n_expert_used;
        t->layer[t->n_layer++] = l;
    }
    return t->n_layer || err_set(e, "%s: this model has no experts", m->gguf.path);
}

bool trace_load_of(Trace *t, const char *path, const Model *m, Err *e) {
    Trace want;
    if (!trace_shape(&want, m, e) || !trace_load(t, path, e)) return false;
    const bool same = t->n_expert == want.n_expert && t->n_used == want.n_used && t->n_layer == want.n_layer;
    if (same && !memcmp(t->layer, want.layer, sizeof *t->layer * (size_t)t->n_layer)) return true;
    err_set(e, "%s: %d layers from %d choose %d of %d experts, in %s %d from %d choose %d of %d", path, t->n_layer, t->layer[0], t->n_used, t->n_expert, m->gguf.path,
            want.n_layer, want.layer[0], want.n_used, want.n_expert);
    trace_close(t);
    return false;
}

// ---- made up ----

static double uniform(uint64_t *state) { // [0, 1): xorshift64*, Vigna 2016
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return (double)((*state * 0x2545f4914f6cdd1dull) >> 11) * 0x1p-53;
}

static void shuffle(uint16_t *x, int n, uint64_t *state) {
    for (int i = 0; i < n; i++) x[i] = (uint16_t)i;
    for (int i = n - 1; i > 0; i--) {
        const int k = (int)(uniform(state) * (i + 1));
        const uint16_t swap = x[i];
        x[i] = x[k], x[k] = swap;
    }
}

enum { MOST_TRIES = 10000 };

bool trace_draw(Trace *t, int n_token, double zipf, double stay, uint64_t seed, Err *e) {
    double sum[MAX_EXPERT]; // of the popularity up to each rank
    uint16_t rank[MAX_EXPERT];
    for (int i = 0; i < t->n_expert; i++) sum[i] = (i ? sum[i - 1] : 0) + pow(i + 1, -zipf);
    if (!trace_room(t, n_token, e)) return false;
    t->n_token = n_token;
    for (int l = 0; l < t->n_layer; l++) {
        uint64_t state = seed * 1000003 + (uint64_t)l * 7919 + 88172645463325252ull;
        shuffle(rank, t->n_expert, &state);
        for (int i = 0; i < n_token; i++) {
            bool taken[MAX_EXPERT] = {false};
            uint16_t *id = t->id + ((int64_t)i * t->n_layer + l) * t->n_used;
            int n = 0;
            for (int u = 0; i && u < t->n_used; u++)
                if (uniform(&state) < stay) taken[id[n++] = trace_at(t, i - 1, l)[u]] = true;
            for (int tries = 0; n < t->n_used; tries++) {
                const double x = uniform(&state) * sum[t->n_expert - 1];
                int k = 0;
                while (k < t->n_expert - 1 && x >= sum[k]) k++;
                if (tries > MOST_TRIES) // so uneven that those left are hardly ever drawn: the most popular of them, as it nearly always would be
                    for (k = 0; taken[rank[k]];) k++;
                if (!taken[rank[k]]) taken[id[n++] = rank[k]] = true;
            }
        }
    }
    return true;
}

// ---- how experts are used ----

static void count_uses(const Trace *t, int layer, int n_token, int n[MAX_EXPERT]) {
    memset(n, 0, sizeof *n * MAX_EXPERT);
    for (int i = 0; i < n_token; i++)
        for (int u = 0; u < t->n_used; u++) n[trace_at(t, i, layer)[u]]++;
}

// Experts by how often they are used, the lower number first of equals.
static void by_uses(const int *n, int n_expert, uint16_t *order) {
    for (int i = 0; i < n_expert; i++) {
        int k = i;
        while (k > 0 && n[order[k - 1]] < n[i]) order[k] = order[k - 1], k--;
        order[k] = (uint16_t)i;
    }
}

ExpertUse trace_use(const Trace *t) {
    ExpertUse use = {0};
    const double all = (double)t->n_token * t->n_used, layers = t->n_layer;
    for (int l = 0; l < t->n_layer; l++) {
        int n[MAX_EXPERT], again = 0;
        uint16_t order[MAX_EXPERT];
        double entropy = 0, hottest = 0;
        count_uses(t, l, t->n_token, n);
        by_uses(n, t->n_expert, order);
        for (int i = 0; i < t->n_expert; i++) {
            if (n[i]) entropy -= n[i] / all * log(n[i] / all);
            else use.never += 1 / layers;
            if (i < (t->n_expert + 9) / 10) hottest += n[order[i]] / all;
        }
        for (int i = 1; i < t->n_token; i++)
            for (int u = 0; u < t->n_used; u++)
                for (int v = 0; v < t->n_used; v++) again += trace_at(t, i, l)[u] == trace_at(t, i - 1, l)[v];
        use.effective += exp(entropy) / layers;
        use.hottest += hottest / layers;
        use.again += again / (all - t->n_used) / layers;
    }
    return use;
}

// ---- what is kept ----

// The slots of one layer, filled in turn.
typedef struct {
    int n_slot, n_expert, n_held;
    bool held[MAX_EXPERT];
    int used[MAX_EXPERT]; // token of the last use; -1: never
} Slots;

// A miss at this token: it is brought, for what was not used for longest, but no other of this token's.
static bool admit(Slots *s, int id, int token) {
    if (s->n_held == s->n_slot) {
        int out = -1;
        for (int i = 0; i < s->n_expert; i++)
            if (s->held[i] && s->used[i] != token && (out < 0 || s->used[i] < s->used[out])) out = i;
        if (out < 0) return false;
        s->held[out] = false;
        s->n_held--;
    }
    s->held[id] = true;
    s->n_held++;
    return true;
}

// One token's experts: how many were not there, how many are brought.
static int serve(Slots *s, Keep keep, const uint16_t *id, int n_used, int token, int *n_brought) {
    int miss[MAX_EXPERT], n_miss = 0;
    for (int u = 0; u < n_used; u++) {
        s->used[id[u]] = token;
        if (!s->held[id[u]]) miss[n_miss++] = id[u];
    }
    for (int i = 0; i < n_miss && keep == KEEP_RECENT; i++) *n_brought += admit(s, miss[i], token);
    return n_miss;
}

static void begin(Slots *s, const Trace *t, int layer, Keep keep, int n_slot) {
    uint16_t order[MAX_EXPERT];
    uint64_t state = 88172645463325252ull + (uint64_t)layer * 7919;
    *s = (Slots){.n_slot = n_slot, .n_expert = t->n_expert};
    for (int i = 0; i < t->n_expert; i++) s->used[i] = -1;
    if (keep == KEEP_RECENT) return;
    if (keep != KEEP_HOTTEST) shuffle(order, t->n_expert, &state);
    else {
        int n[MAX_EXPERT];
        count_uses(t, layer, t->n_token / 2, n);
        by_uses(n, t->n_expert, order);
    }
    for (int i = 0; i < n_slot; i++) s->held[order[i]] = true;
    s->n_held = n_slot;
}

// What a token of the second half has brought to a layer, and has not found there.
static void note_brought(Kept *k, const Trace *t, int layer, int n_brought) {
    const int n = t->n_token - t->n_token / 2;
    k->brought[layer] += (double)n_brought / n;
    k->uploads += (double)n_brought / n;
}
static void note_missed(Kept *k, const Trace *t, int layer, int n_miss) {
    const int n = t->n_token - t->n_token / 2;
    k->away[layer * (t->n_used + 1) + n_miss] += 1.0 / n;
    k->hit += (double)(t->n_used - n_miss) / ((double)n * t->n_used * t->n_layer);
}

// Layer by layer: what happens in one has no effect on others.
static void replay_slots(Kept *k, const Trace *t, Keep keep, int n_slot, Slots *s) {
    for (int l = 0; l < t->n_layer; l++) {
        begin(s, t, l, keep, n_slot);
        for (int i = 0; i < t->n_token; i++) {
            int n_brought = 0;
            const int n_miss = serve(s, keep, trace_at(t, i, l), t->n_used, i, &n_brought);
            if (i < t->n_token / 2) continue;
            note_missed(k, t, l, n_miss);
            note_brought(k, t, l, n_brought);
        }
    }
}

static bool replay_keeper(Kept *k, const Trace *t, int n_slot, int most, Slots *s, Err *e) {
    Keeper keeper;
    if (!keeper_open(&keeper, t->n_layer, t->n_expert, t->n_used, most, e)) return false;
    for (int l = 0; l < t->n_layer; l++) {
        begin(s, t, l, KEEP_WORTH, n_slot);
        for (int i = 0; i < t->n_expert; i++) keeper_known(&keeper, l, i)->place = s->held[i] ? EXPERT_HERE : EXPERT_AWAY;
    }
    for (int i = 0; i < t->n_token; i++) {
        const bool counts = i >= t->n_token / 2;
        for (int l = 0; l < t->n_layer; l++) {
            const int n_here = keeper_saw(&keeper, l, trace_at(t, i, l), t->n_used);
            if (counts) note_missed(k, t, l, t->n_used - n_here);
        }
        const int n = keeper_step(&keeper);
        for (int j = 0; j < n && counts; j++) note_brought(k, t, keeper.swap[j].layer, 1);
    }
    keeper_close(&keeper);
    return true;
}

bool residency_replay(Kept *k, const Trace *t, Keep keep, int n_slot, int most, Err *e) {
    *k = (Kept){.away = calloc((size_t)(t->n_layer * (t->n_used + 1)), sizeof *k->away), .brought = calloc((size_t)t->n_layer, sizeof *k->brought)};
    Slots *s = malloc(sizeof *s);
    bool ok = (k->away && k->brought && s) || err_set(e, "no memory to replay a trace");
    if (ok && keep == KEEP_WORTH) ok = replay_keeper(k, t, n_slot, most, s, e);
    else if (ok) replay_slots(k, t, keep, n_slot, s);
    free(s);
    if (!ok) residency_close(k);
    return ok;
}

void residency_order(const Trace *t, int layer, uint16_t *order) {
    int n[MAX_EXPERT];
    count_uses(t, layer, t->n_token, n);
    by_uses(n, t->n_expert, order);
}

void residency_hottest(const Trace *t, int layer, double *away) {
    const int half = t->n_token / 2, used = t->n_used, width = used + 1;
    int n[MAX_EXPERT], rank[MAX_EXPERT];
    uint16_t order[MAX_EXPERT];
    count_uses(t, layer, half, n);
    by_uses(n, t->n_expert, order);
    for (int i = 0; i < t->n_expert; i++) rank[order[i]] = i;
    for (int i = 0; i < (t->n_expert + 1) * width; i++) away[i] = 0;
    away[used] = t->n_token - half; // no slots: all are away
    for (int i = half; i < t->n_token; i++) {
        int sorted[MAX_EXPERT];
        for (int u = 0; u < used; u++) {
            const int r = rank[trace_at(t, i, layer)[u]];
            int k = u;
            while (k > 0 && sorted[k - 1] > r) sorted[k] = sorted[k - 1], k--;
            sorted[k] = r;
        }
        for (int u = 0; u < used; u++) { // one less away from here on
            double *at = away + (sorted[u] + 1) * width + used - u;
            at[0]--, at[-1]++;
        }
    }
    for (int i = width; i < (t->n_expert + 1) * width; i++) away[i] += away[i - width];
    for (int i = 0; i < (t->n_expert + 1) * width; i++) away[i] /= t->n_token - half;
}

void residency_close(Kept *k) {
    free(k->away);
    free(k->brought);
    *k = (Kept){0};
}

// map.c: see map.h
#include "map.h"

#include <math.h>
#include <stdlib.h>

#include "json.h"
#include "picture.h"
#include "stats.h"

static const char *base_name(const char *path) { return strrchr(path, '/') ? strrchr(path, '/') + 1 : path; }

void map_free(Map *m) {
    for (int i = 0; m->expert && i < m->writers.n; i++) free(m->expert[i]);
    free(m->expert);
    free(m->kappa);
    free(m->mean);
    free(m->rms);
    free(m->there);
    free(m->order);
    free(m->left);
    free(m->expert_mean);
    free(m->expert_rms);
    free(m->expert_share);
    free(m->beside);
    free(m->tensor);
    free(m->tensor_left);
    writers_close(&m->writers);
    *m = (Map){0};
}

void map_site(const Map *m, int site, char out[40]) {
    static const char *const NAME[N_SHAPE] = {"attention", "FFN", "per-layer input"};
    const char *name = site ? NAME[site_which(site)] : "embedding";
    bool experts = false;
    for (int i = 0; site && i < m->writers.n; i++) experts |= m->writers.of[i].layer == site_layer(site) && m->writers.of[i].part == PART_EXPERTS;
    if (!site) snprintf(out, 40, "the embedding");
    else snprintf(out, 40, "%s of layer %d", experts && site_which(site) == SHAPE_FFN ? "FFN with experts" : name, site_layer(site));
}

void map_tensor(const Map *m, int tensor, char out[40]) {
    const int expert = tensor - m->n_site;
    if (expert >= 0) snprintf(out, 40, "expert %d of layer %d", expert % m->n_expert, expert / m->n_expert);
    else if (m->n_expert && site_which(tensor) == SHAPE_FFN && m->beside[site_layer(tensor)] != 0) snprintf(out, 40, "shared FFN of layer %d", site_layer(tensor));
    else map_site(m, tensor, out);
}

int map_strongest(const Map *m, int layer, int most, int *out) {
    const double *x = m->expert_mean + (int64_t)layer * m->n_expert;
    int n = 0;
    for (int k = 0; k < m->n_expert; k++) { // insertion into the few
        if (x[k] == 0) continue;
        int at = n;
        while (at && fabs(x[out[at - 1]]) < fabs(x[k])) at--;
        if (at == most) continue;
        n = min_int(n + 1, most);
        for (int i = n - 1; i > at; i--) out[i] = out[i - 1];
        out[at] = k;
    }
    return n;
}

// ---- from the weights ----

// One slice of a bound tensor, wherever the file keeps it.
static Matrix slice_of(const Tensor *t, int slice) { return (Matrix){(int)t->type, tensor_row(t, slice, 0), t->n_row, t->n_col, 1}; }

static bool measure_weights(Map *m, Lab *lab, const Direction *d, Err *e) {
    const Model *model = &lab->m;
    const int n = model->c.n_embd;
    Pool *pool = pool_open(m->o->lab.place.threads ? m->o->lab.place.threads : processors_allowed());
    double *r = malloc(sizeof *r * (size_t)n), *take = malloc(sizeof *take * (size_t)n);
    m->kappa = calloc((size_t)m->writers.n + 1, sizeof *m->kappa);
    m->expert = calloc((size_t)m->writers.n + 1, sizeof *m->expert);
    bool ok = (pool && r && take && m->kappa && m->expert) || err_set(e, "no memory for the write strengths");
    MatrixSums sum;
    Progress bar;
    progress_start(&bar, "weights");
    for (int i = 0; ok && i < m->writers.n && !interrupted; i++) {
        const Writer *w = &m->writers.of[i];
        double take2 = 0;
        MatrixSums all = {0};
        for (int k = 0; k < n; k++) r[k] = direction_row(d, w->layer + 1)[k];
        writer_vectors(w, r, take, NULL, n);
        for (int k = 0; k < n; k++) take2 += take[k] * take[k];
        if (w->w->slices) ok = (m->expert[i] = calloc((size_t)w->w->n_slice, sizeof(double))) || err_set(e, "no memory for the experts");
        for (int s = 0; ok && s < w->w->n_slice; s++) {
            const Matrix one = slice_of(w->w, s);
            ok = matrix_sums(pool, &one, NULL, take, 1, false, &sum, NULL, NULL, e);
            matrix_add(&all, &sum);
            if (m->expert[i]) m->expert[i][s] = matrix_kappa(sum.along_a, take2, sum.a2, n);
        }
        m->kappa[i] = matrix_kappa(all.along_a, take2, all.a2, n);
        progress_step(&bar, i + 1, m->writers.n + 1);
    }
    if (ok && !interrupted) {
        const Matrix embedding = slice_of(model->token_embd, 0);
        for (int k = 0; k < n; k++) r[k] = direction_row(d, 0)[k];
        double r2 = 0;
        for (int k = 0; k < n; k++) r2 += r[k] * r[k];
        ok = matrix_sums(pool, &embedding, NULL, r, 1, true, &sum, NULL, NULL, e);
        m->kappa_embedding = matrix_kappa(sum.along_a, r2, sum.a2, n);
    }
    progress_end(&bar);
    if (pool) pool_close(pool);
    free(r);
    free(take);
    return ok;
}

// ---- on prompts ----

static void note_sites(Map *m) {
    m->there[0] = true;
    for (int i = 0; i < m->writers.n; i++) m->there[site_of(m->writers.of[i].layer, part_shape(m->writers.of[i].part))] = true;
}

static bool note_experts(Map *m, const Contributions c[2], Err *e) {
    const int n_each = m->n_layer * c->n_expert;
    m->n_expert = c->n_expert;
    m->expert_error = fmax(c[0].expert_error, c[1].expert_error);
    m->expert_mean = calloc((size_t)n_each, sizeof(double));
    m->expert_rms = calloc((size_t)n_each, sizeof(double));
    m->expert_share = calloc((size_t)n_each, sizeof(double));
    m->beside = calloc((size_t)m->n_layer, sizeof(double));
    m->tensor = calloc((size_t)tensor_count(c), sizeof *m->tensor);
    m->tensor_left = calloc((size_t)tensor_count(c), sizeof(double));
    if (!m->expert_mean || !m->expert_rms || !m->expert_share || !m->beside || !m->tensor || !m->tensor_left) return err_set(e, "no memory for the map of %d experts", n_each);
    for (int s = 0; s < c->n_sample; s++)
        for (int k = 0; k < n_each; k++) {
            const double x = c->expert[(int64_t)s * n_each + k];
            m->expert_mean[k] += x / c->n_sample;
            m->expert_rms[k] += x * x / c->n_sample;
        }
    for (int k = 0; k < n_each; k++) {
        m->expert_rms[k] = sqrt(m->expert_rms[k]);
        m->expert_share[k] = (double)c->chosen[k] / c->n_sample;
    }
    for (int i = 0; i < m->writers.n; i++)
        for (int s = 0; m->writers.of[i].part == PART_FFN && s < c->n_sample; s++) m->beside[m->writers.of[i].layer] += contributions_beside(c, s, m->writers.of[i].layer) / c->n_sample;
    m->n_tensor = contributions_fewest_tensors(c, &m->writers, 1 - m->o->remove, m->tensor, m->tensor_left);
    return true;
}

static bool measure_prompts(Map *m, Lab *lab, const Direction *d, Err *e) {
    const MapOptions *o = m->o;
    const char *const path[2] = {o->prompts, o->contrast};
    PromptFile file[2] = {{0}};
    PromptSet set[2] = {{0}};
    Contributions c[2] = {{0}};
    bool ok = true;
    int longest = 0, n_pos = 16;
    for (int side = 0; ok && side < 2; side++) {
        if (!path[side]) continue;
        ok = prompts_read(&file[side], path[side], 1, e) && lab_encode(lab, &file[side], NULL, o->limit ? min_int(o->limit, file[side].n) : file[side].n, &set[side], e);
        for (int i = 0; ok && i < set[side].n; i++) n_pos = min_int(n_pos, o->positions ? set[side].ids[i].n : set[side].n_suffix);
        longest = max_int(longest, ok ? set_longest(&set[side]) : 0);
    }
    if (o->positions) n_pos = min_int(n_pos, o->positions);
    double *r = malloc(sizeof *r * (size_t)m->n_embd);
    ok = ok && (r || err_set(e, "no memory for a row")) && lab_ready(lab, longest, 1, e);
    for (int i = 0; ok && i < m->n_embd; i++) r[i] = direction_row(d, m->row)[i];
    lab->steer.on = false;
    Bar bar;
    bar_start(&bar, "prompts", set[0].n + set[1].n);
    for (int side = 0; ok && side < 2 && !interrupted; side++)
        if (path[side]) ok = contributions_measure(&c[side], lab, &set[side], n_pos, r, &bar, e);
    bar_end(&bar);
    if (ok && interrupted) ok = err_set(e, "interrupted");
    m->n_site = site_count(m->n_layer);
    const size_t n = (size_t)m->n_site;
    m->mean = calloc(n, sizeof *m->mean);
    m->rms = calloc(n, sizeof *m->rms);
    m->left = calloc(n, sizeof *m->left);
    m->order = calloc(n, sizeof *m->order);
    m->there = calloc(n, sizeof *m->there);
    ok = ok && ((m->mean && m->rms && m->left && m->order && m->there) || err_set(e, "no memory for the map"));
    if (ok) {
        m->n_prompt = set[0].n;
        m->n_contrast = set[1].n;
        m->n_pos = n_pos;
        m->error = fmax(c[0].error, c[1].error);
        for (int s = 0; s < c[0].n_sample; s++) {
            m->stream_mean += c[0].stream[s] / c[0].n_sample;
            m->stream_rms += c[0].stream[s] * c[0].stream[s] / c[0].n_sample;
        }
        m->stream_rms = sqrt(m->stream_rms);
        if (path[1]) contributions_centre(&c[0], &c[1]);
        for (int k = 0; k < m->n_site; k++) {
            for (int s = 0; s < c[0].n_sample; s++) {
                const double x = c[0].of[(int64_t)s * c[0].n_site + k];
                m->mean[k] += x / c[0].n_sample;
                m->rms[k] += x * x / c[0].n_sample;
            }
            m->rms[k] = sqrt(m->rms[k]);
        }
        note_sites(m);
        m->n_order = contributions_fewest(&c[0], 1 - o->remove, m->order, m->left);
        contributions_range(&c[0], 1 - o->remove, &m->first, &m->last);
        ok = !c[0].n_expert || note_experts(m, c, e);
    }
    free(r);
    for (int side = 0; side < 2; side++) {
        contributions_free(&c[side]);
        set_free(&set[side]);
        prompts_free(&file[side]);
    }
    return ok;
}

bool map_measure(Map *m, Lab *lab, const MapOptions *o, Err *e) {
    *m = (Map){.o = o, .n_layer = lab->m.c.n_layer, .n_embd = lab->m.c.n_embd, .kappa_embedding = NAN};
    Direction d;
    if (!writers_open(&m->writers, &lab->m, e) || !direction_load(&d, o->direction, &lab->m, e)) return false;
    snprintf(m->model, sizeof m->model, "%s", base_name(o->lab.model));
    snprintf(m->direction, sizeof m->direction, "%s", base_name(o->direction));
    snprintf(m->architecture, sizeof m->architecture, "%s", lab->m.c.arch);
    model_fingerprint(&lab->m, m->fingerprint);
    m->per_layer = !d.single;
    m->row = d.layer >= 0 ? d.layer : m->n_layer;
    const bool ok = measure_weights(m, lab, &d, e) && (!o->prompts || measure_prompts(m, lab, &d, e));
    direction_free(&d);
    return ok && (!interrupted || err_set(e, "interrupted"));
}

bool map_save(const Map *m, const Model *model, const char *path, Err *e) {
    Direction d;
    if (!direction_load(&d, m->o->direction, model, e)) return false;
    float *shape = calloc((size_t)m->n_layer * N_SHAPE, sizeof *shape);
    for (int i = 0; shape && i < m->n_order; i++) shape[m->order[i] - 1] = 1; // site 1 is the first of layer 0
    bool ok = shape ? direction_set_shape(&d, shape, e) : err_set(e, "%s: no memory for the strengths of %d layers", path, m->n_layer);
    d.mode = MODE_WRITE;
    d.strength = 1;
    ok = ok && direction_save(&d, path, NULL, NULL, e);
    free(shape);
    direction_free(&d);
    return ok;
}

// ---- text ----

static void print_weights(const Map *m, FILE *out) {
    fprintf(out, "\nFrom the weights: kappa, how strongly a matrix can write the direction (1: like a random one)%s\n", m->per_layer ? ", each layer's own row" : "");
    fprintf(out, "  %5s", "layer");
    bool part[N_PART] = {false};
    for (int i = 0; i < m->writers.n; i++) part[m->writers.of[i].part] = true;
    for (int p = 0; p < N_PART; p++)
        if (part[p]) fprintf(out, " %15s", part_name((Part)p));
    if (part[PART_EXPERTS]) fprintf(out, "   experts: median, highest");
    fputc('\n', out);
    for (int l = 0, i = 0; l < m->n_layer; l++) {
        fprintf(out, "  %5d", l);
        const double *experts = NULL;
        int n_expert = 0;
        for (int p = 0; p < N_PART; p++) {
            if (!part[p]) continue;
            const bool is = i < m->writers.n && m->writers.of[i].layer == l && m->writers.of[i].part == (Part)p;
            if (is && p == PART_EXPERTS) experts = m->expert[i], n_expert = m->writers.of[i].w->n_slice;
            if (is && isfinite(m->kappa[i])) fprintf(out, " %15.2f", m->kappa[i++]);
            else if (is) fprintf(out, " %15s", "-"), i++; // a direction without a row there
            else fprintf(out, " %15s", "");
        }
        if (experts && isfinite(experts[0])) {
            int best = 0;
            for (int k = 1; k < n_expert; k++)
                if (experts[k] > experts[best]) best = k;
            fprintf(out, "   %.2f, %.2f (expert %d)", quantile_of(experts, n_expert, 0.5), experts[best], best);
        }
        fputc('\n', out);
    }
    if (isfinite(m->kappa_embedding)) fprintf(out, "  embedding %.2f\n", m->kappa_embedding);
}

static void print_experts(const Map *m, FILE *out) {
    enum { MOST = 4 };
    fprintf(out, "\nExperts: at least once chosen, what the dense branch beside them adds, and those that add or take away most (of the positions chosen at)\n  %5s %12s %12s   strongest\n",
            "layer", "chosen", "beside");
    for (int l = 0; l < m->n_layer; l++) {
        const double *share = m->expert_share + (int64_t)l * m->n_expert;
        int chosen = 0, best[MOST];
        for (int k = 0; k < m->n_expert; k++) chosen += share[k] > 0;
        if (!chosen) continue;
        fprintf(out, "  %5d %5d of %3d %12.3f  ", l, chosen, m->n_expert, m->beside[l]);
        const int n = map_strongest(m, l, MOST, best);
        for (int i = 0; i < n; i++) fprintf(out, "%s expert %d %+.3f (%.0f %%)", i ? "," : "", best[i], m->expert_mean[(int64_t)l * m->n_expert + best[i]], 100 * share[best[i]]);
        fputc('\n', out);
    }
    fprintf(out, "  the sum of a layer's experts misses what they come to together by at most %.1e of the stream's rms\n", m->expert_error);
}

// The fewest single tensors; of hundreds, only the first.
static void print_tensors(const Map *m, FILE *out) {
    enum { MOST = 16 };
    char name[40];
    int n_expert = 0;
    for (int i = 0; i < m->n_tensor; i++) n_expert += m->tensor[i] >= m->n_site;
    fprintf(out, "\nOf single matrices, each expert's its own: %d, %d of them experts\n", m->n_tensor, n_expert);
    for (int i = 0; i < m->n_tensor; i++) {
        if (i >= MOST && i < m->n_tensor - 1) continue;
        map_tensor(m, m->tensor[i], name);
        if (i >= MOST) fprintf(out, "  %d more, the last of them\n", m->n_tensor - MOST);
        fprintf(out, "  %-28s %6.1f %% gone\n", name, 100 * (1 - m->tensor_left[i]));
    }
}

static void print_measured(const Map *m, FILE *out) {
    char name[40];
    fprintf(out, "\nMeasured on %d prompts of %s, %d positions: what each part adds to r.x leaving the last layer%s%s\n", m->n_prompt, m->o->prompts, m->n_pos,
            m->n_contrast ? ", above the mean of " : "", m->n_contrast ? m->o->contrast : "");
    fprintf(out, "  %5s %12s %8s %12s %8s %17s %8s\n", "layer", "attention", "rms", "FFN", "rms", "per-layer input", "rms");
    for (int l = 0; l < m->n_layer; l++) {
        fprintf(out, "  %5d", l);
        for (int w = 0; w < N_SHAPE; w++) {
            const int k = site_of(l, w), wide = w == SHAPE_PER_LAYER ? 17 : 12;
            if (m->there[k]) fprintf(out, " %*.3f %8.3f", wide, m->mean[k], m->rms[k]);
        }
        fputc('\n', out);
    }
    fprintf(out, "  embedding %.3f, rms %.3f; the stream r.x %.3f, rms %.3f; the sum of the parts misses it by at most %.1e of that\n", m->mean[0], m->rms[0], m->stream_mean,
            m->stream_rms, m->error);
    if (m->n_expert) print_experts(m, out);
    fprintf(out, "\nThe fewest to edit for %g %% of what the layers write (to first order)\n", 100 * m->o->remove);
    for (int i = 0; i < m->n_order; i++) {
        map_site(m, m->order[i], name);
        fprintf(out, "  %-28s %6.1f %% gone\n", name, 100 * (1 - m->left[i]));
    }
    if (!m->n_order) fprintf(out, "  none: nothing is written\n");
    else fprintf(out, "  in whole layers: --layers %d-%d\n", m->first, m->last);
    if (m->n_expert) print_tensors(m, out);
}

void map_text(const Map *m, FILE *out) {
    fprintf(out, "Model      %s (%s, %d layers, %d wide)\nDirection  %s\n", m->model, m->architecture, m->n_layer, m->n_embd, m->direction);
    print_weights(m, out);
    if (m->n_prompt) print_measured(m, out);
}

// ---- JSON ----

// One of a list of what should be edited, and what is left of the component after it.
static void json_left(FILE *f, const char *kind, const char *name, double left, bool first) {
    fprintf(f, "%s{\"%s\": \"%s\"", first ? "" : ", ", kind, name);
    json_named(f, "left", left);
    fputc('}', f);
}

static void json_experts(const Map *m, FILE *f) {
    char name[40];
    json_named(f, "largest_expert_error", m->expert_error);
    fputs(",\n  \"experts\": [", f);
    for (int l = 0, first = 1; l < m->n_layer; l++) {
        const int64_t at = (int64_t)l * m->n_expert;
        bool any = false;
        for (int k = 0; k < m->n_expert; k++) any |= m->expert_share[at + k] > 0;
        if (!any) continue;
        fprintf(f, "%s\n    {\"layer\": %d", first ? "" : ",", l);
        json_named(f, "beside", m->beside[l]);
        json_numbers(f, "mean", m->expert_mean + at, m->n_expert);
        json_numbers(f, "rms", m->expert_rms + at, m->n_expert);
        json_numbers(f, "chosen", m->expert_share + at, m->n_expert);
        fputc('}', f);
        first = 0;
    }
    fputs("],\n  \"fewest_matrices\": [", f);
    for (int i = 0; i < m->n_tensor; i++) {
        map_tensor(m, m->tensor[i], name);
        json_left(f, "matrix", name, m->tensor_left[i], i == 0);
    }
    fputc(']', f);
}

bool map_json(const Map *m, const char *path, Err *e) {
    SafeFile file;
    char name[40];
    if (!safe_open(&file, path, e)) return false;
    FILE *f = file.f;
    fputs("{\n  \"tool\": \"abliterate.c 0.1\", \"model\": ", f);
    json_text(f, m->model);
    fprintf(f, ", \"architecture\": \"%s\", \"fingerprint\": \"%s\", \"direction\": ", m->architecture, m->fingerprint);
    json_text(f, m->direction);
    json_named(f, "kappa_embedding", m->kappa_embedding);
    fputs(",\n  \"writers\": [", f);
    for (int i = 0; i < m->writers.n; i++) {
        const Writer *w = &m->writers.of[i];
        fputs(i ? ",\n    {\"name\": " : "\n    {\"name\": ", f);
        json_text(f, w->w->name);
        fprintf(f, ", \"layer\": %d, \"part\": \"%s\"", w->layer, part_name(w->part));
        json_named(f, "kappa", m->kappa[i]);
        if (m->expert[i]) json_numbers(f, "experts", m->expert[i], w->w->n_slice);
        fputc('}', f);
    }
    fputs("]", f);
    if (m->n_prompt) {
        fprintf(f, ",\n  \"prompts\": %d, \"contrast\": %d, \"positions\": %d", m->n_prompt, m->n_contrast, m->n_pos);
        json_named(f, "stream_mean", m->stream_mean);
        json_named(f, "stream_rms", m->stream_rms);
        json_named(f, "largest_error", m->error);
        fputs(",\n  \"contributions\": [", f);
        for (int k = 0, first = 1; k < m->n_site; k++) {
            if (!m->there[k]) continue;
            map_site(m, k, name);
            fprintf(f, "%s\n    {\"site\": \"%s\"", first ? "" : ",", name);
            json_named(f, "mean", m->mean[k]);
            json_named(f, "rms", m->rms[k]);
            fputc('}', f);
            first = 0;
        }
        fputs("],\n  \"fewest\": [", f);
        for (int i = 0; i < m->n_order; i++) {
            map_site(m, m->order[i], name);
            json_left(f, "site", name, m->left[i], i == 0);
        }
        fprintf(f, "], \"first_layer\": %d, \"last_layer\": %d", m->first, m->last);
        if (m->n_expert) json_experts(m, f);
    }
    fputs("\n}\n", f);
    return safe_close(&file, true, e);
}

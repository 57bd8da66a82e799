// verify.c: see verify.h
#include "verify.h"

#include <math.h>
#include <stdlib.h>

#include "console.h"
#include "json.h"

void verify_free(Verify *v) {
    free(v->row);
    *v = (Verify){0};
}

static bool measure_row(VerifyRow *row, const Pair *p, const Direction *dirs, int n_dir, double *basis, double *take, Err *e) {
    const TensorPair *t = row->t;
    const int n = p->a.c.n_embd;
    double take2 = 0;
    bool transposed = false;
    row->leak = row->kappa = NAN;
    if (n_dir && t->writer >= 0) {
        const Writer *w = &p->writers.of[t->writer];
        row->n_vec = layer_basis(dirs, n_dir, w->layer, basis);
        for (int k = 0; k < row->n_vec; k++) writer_vectors(w, basis + (int64_t)k * n, take + (int64_t)k * n, NULL, n);
    } else if (n_dir && p->writers.n && !strcmp(t->a->name_z, "token_embd.weight")) { // writes the stream that enters layer 0
        double mix[MOST_VECTORS * MOST_VECTORS];
        transposed = true;
        row->n_vec = directions_basis(dirs, n_dir, 0, take, mix);
    }
    for (int64_t i = 0; i < (int64_t)row->n_vec * n; i++) take2 += take[i] * take[i];
    if (!matrix_sums(p->pool, &t->ma, &t->mb, take, row->n_vec, transposed, &row->sum, NULL, NULL, e)) return false;
    if (!row->n_vec) return true;
    row->leak = row->sum.along_a > 0 ? sqrt(row->sum.along_b / row->sum.along_a) : NAN;
    row->kappa = matrix_kappa(row->sum.along_a, take2, row->sum.a2, n);
    return true;
}

bool verify_measure(Verify *v, const Pair *p, const Direction *dirs, int n_dir, Err *e) {
    const size_t n = (size_t)p->a.c.n_embd;
    *v = (Verify){.p = p, .row = calloc((size_t)p->n_tensor + 1, sizeof *v->row), .worst = NAN};
    double *basis = malloc(sizeof *basis * n * MOST_VECTORS), *take = malloc(sizeof *take * n * MOST_VECTORS);
    bool ok = (v->row && basis && take) || err_set(e, "no memory for the figures of %d tensors", p->n_tensor);
    double total = 0, done = 0;
    for (int i = 0; ok && i < p->n_tensor; i++) total += pair_differs(p, i) ? (double)p->tensor[i].a->bytes : 0;
    Progress bar;
    progress_start(&bar, "verifying");
    for (int i = 0; ok && i < p->n_tensor && !interrupted; i++) {
        const TensorPair *t = &p->tensor[i];
        v->n_untouched += t->same && t->writer >= 0 && !t->bias;
        if (!pair_differs(p, i)) continue;
        if (!t->readable) {
            v->n_unread++;
            continue;
        }
        VerifyRow *row = &v->row[v->n++];
        row->t = t;
        ok = measure_row(row, p, dirs, n_dir, basis, take, e);
        if (ok && t->writer >= 0 && !t->bias && !(row->leak <= v->worst) && !isnan(row->leak)) {
            v->worst = row->leak;
            v->worst_name = t->a->name_z;
        }
        done += (double)t->a->bytes;
        progress_step(&bar, done, total);
    }
    progress_end(&bar);
    free(basis);
    free(take);
    return ok && (!interrupted || err_set(e, "interrupted"));
}

// ---- showing ----

static double distance(const VerifyRow *r) { return r->sum.a2 > 0 ? sqrt(r->sum.d2 / r->sum.a2) : NAN; }

// The factor that makes A most like B; what a gain was multiplied by.
static double factor(const VerifyRow *r) { return r->sum.a2 > 0 ? (r->sum.a2 + r->sum.b2 - r->sum.d2) / (2 * r->sum.a2) : NAN; }

static const char *figure(char out[24], double v, const char *format) {
    if (isnan(v)) return "-";
    snprintf(out, 24, format, v);
    return out;
}

static void print_keys(const Pair *p, FILE *out) {
    static const char *const CHANGE[] = {"added", "removed", "changed"};
    for (int i = 0; i < p->n_key; i++) {
        const GgufKey *k = p->key[i].key;
        fprintf(out, "Key        %s %.*s", CHANGE[p->key[i].change], (int)(k->key.n < 64 ? k->key.n : 64), k->key.p);
        if (k->type == GGUF_STRING) fprintf(out, " = %.*s", (int)(k->strings[0].n < 80 ? k->strings[0].n : 80), k->strings[0].p);
        else if (k->type != GGUF_ARRAY && gguf_is_float(k->type)) fprintf(out, " = %g", gguf_elem_float(k, 0));
        else if (k->type != GGUF_ARRAY) fprintf(out, " = %lld", (long long)gguf_elem_int(k, 0));
        fputc('\n', out);
    }
}

void verify_text(const Verify *v, FILE *out) {
    const Pair *p = v->p;
    int added = 0;
    for (int i = 0; i < p->n_tensor; i++) added += !p->tensor[i].a;
    fprintf(out, "Tensors    %d equal, byte for byte; %d differ", p->n_same, p->n_tensor - p->n_same - added);
    if (v->n_unread) fprintf(out, " (%d of types whose values this program does not read)", v->n_unread);
    fprintf(out, "\n");
    for (int i = 0; i < p->n_tensor; i++)
        if (!p->tensor[i].a) fprintf(out, "Only in B  %s\n", p->tensor[i].b->name_z);
    print_keys(p, out);
    if (v->n) fprintf(out, "\n%-34s %-13s %16s %9s %10s %10s %7s\n", "tensor", "type", "values changed", "rescaled", "|B-A|/|A|", "leak", "kappa");
    for (int i = 0; i < v->n; i++) {
        const VerifyRow *r = &v->row[i];
        char type[32], changed[32], scaled[24], leak[24], kappa[24];
        snprintf(type, sizeof type, r->t->ma.type == r->t->mb.type ? "%s" : "%s->%s", type_info(r->t->ma.type)->name, type_info(r->t->mb.type)->name);
        snprintf(changed, sizeof changed, "%lld %5.1f %%", (long long)r->sum.n_changed, 100.0 * (double)r->sum.n_changed / (double)r->sum.n);
        fprintf(out, "%-34s %-13s %16s %9s %10.3e %10s %7s", r->t->a->name_z, type, changed,
                figure(scaled, r->sum.n_block ? 100.0 * (double)r->sum.n_rescaled / (double)r->sum.n_block : NAN, "%.1f %%"), distance(r), figure(leak, r->leak, "%.2e"),
                figure(kappa, r->kappa, "%.2f"));
        if (r->t->ma.n_row == 1 && distance(r) > 0 && sqrt(fmax(0, r->sum.b2 / r->sum.a2 - factor(r) * factor(r))) < 1e-6) fprintf(out, "  A times %.6f", factor(r));
        fputc('\n', out);
    }
    if (!isnan(v->worst)) fprintf(out, "\nLargest leak of a matrix that writes to the stream: %.2e (%s)\n", v->worst, v->worst_name);
    if (!isnan(v->worst) && v->n_untouched) fprintf(out, "%d matrices that write to the stream are the same in both files\n", v->n_untouched);
}

void verify_json(const Verify *v, FILE *f) {
    const Pair *p = v->p;
    static const char *const CHANGE[] = {"added", "removed", "changed"};
    fprintf(f, "\"equal\": %d, \"untouched_writers\": %d, \"unread\": %d", p->n_same, v->n_untouched, v->n_unread);
    json_named(f, "largest_leak", v->worst);
    fputs(",\n  \"keys\": [", f);
    for (int i = 0; i < p->n_key; i++) {
        char name[256];
        snprintf(name, sizeof name, "%.*s", (int)(p->key[i].key->key.n < 250 ? p->key[i].key->key.n : 250), p->key[i].key->key.p);
        fputs(i ? ", {\"key\": " : "{\"key\": ", f);
        json_text(f, name);
        fprintf(f, ", \"change\": \"%s\"}", CHANGE[p->key[i].change]);
    }
    fputs("],\n  \"tensors\": [", f);
    for (int i = 0; i < v->n; i++) {
        const VerifyRow *r = &v->row[i];
        fputs(i ? ",\n    {\"name\": " : "\n    {\"name\": ", f);
        json_text(f, r->t->a->name_z);
        fprintf(f, ", \"type\": \"%s\", \"new_type\": \"%s\", \"values\": %lld, \"changed\": %lld, \"blocks\": %lld, \"rescaled\": %lld",
                type_info(r->t->ma.type)->name, type_info(r->t->mb.type)->name, (long long)r->sum.n, (long long)r->sum.n_changed, (long long)r->sum.n_block,
                (long long)r->sum.n_rescaled);
        json_named(f, "relative_change", distance(r));
        json_named(f, "factor", factor(r));
        json_named(f, "leak", r->leak);
        json_named(f, "kappa", r->kappa);
        fputc('}', f);
    }
    fputs("]", f);
}

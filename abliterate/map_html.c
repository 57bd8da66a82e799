// map_html.c: the map as a page: heat maps of layers and parts, and how much is gone after each tensor.
#include <math.h>
#include <stdlib.h>

#include "map.h"
#include "page.h"

static const char *const PART_ROW[N_PART] = {"attention", "FFN", "experts", "per-layer input"};

// value [n_row][n_col], NaN: no cell. column: what their numbers count. The strongest colours are +most and -most; `middle` has none.
static void heat(FILE *f, const char *caption, const double *value, int n_row, int n_col, const char *const *row_name, const char *column, double middle, double most) {
    const int w = max_int(7, min_int(48, 880 / n_col)), h = n_row > 8 ? 16 : 30, left = 112, bottom = 4 + h * n_row, every = (25 + w) / w;
    svg_open(f, caption, fmax(left + w * n_col + 14, WIDE), bottom + 36, true);
    for (int r = 0; r < n_row; r++) {
        label(f, left - 7, 4 + h * (r + 0.5) + 4, "tick end", "%s", row_name[r]);
        for (int c = 0; c < n_col; c++) {
            const double v = value[r * n_col + c], x = (v - middle) / most;
            if (isnan(v)) continue;
            const int hue = max_int(0, min_int(N_HUE - 1, (int)lround((x + 1) / 2 * (N_HUE - 1)))), strength = abs(hue - N_HUE / 2);
            fprintf(f, "<path class=\"c%d\" d=\"M%d %dh%dv%dh-%dz\"><title>%s, %s %d: %s</title></path>\n", hue, left + w * c, 4 + h * r, w, h, w, row_name[r], column, c, NUM(v));
            if (w >= 36) label(f, left + w * (c + 0.5), 4 + h * (r + 0.5) + 4, strength > 17 ? "cell strong" : strength > 10 ? "cell half" : "cell", "%s", NUM(v));
        }
    }
    for (int c = 0; c < n_col; c += every) label(f, left + w * (c + 0.5), bottom + 15, "tick mid", "%d", c);
    label(f, left + w * n_col / 2.0, bottom + 31, "axis mid", "%s", column);
    svg_close(f);
}

static void put_weights(FILE *f, const Map *m) {
    const char *name[N_PART];
    double *value = malloc(sizeof *value * N_PART * (size_t)m->n_layer), most = 2;
    int n_row = 0;
    if (!value) return; // a figure less
    for (int part = 0; part < N_PART; part++) {
        bool any = false;
        for (int l = 0; l < m->n_layer; l++) value[n_row * m->n_layer + l] = NAN;
        for (int i = 0; i < m->writers.n; i++) {
            if (m->writers.of[i].part != (Part)part) continue;
            value[n_row * m->n_layer + m->writers.of[i].layer] = m->kappa[i];
            most = fmax(most, m->kappa[i]);
            any = true;
        }
        if (any) name[n_row++] = PART_ROW[part];
    }
    fprintf(f, "<section><h2>From the weights</h2>\n<p>&kappa; says how strongly a matrix can write the direction: 1 is what it does for a random one, and no "
               "colour; orange is more, blue less. What it does write depends on its inputs. The embedding has %s.</p>\n<div class=\"row\">\n", NUM(m->kappa_embedding));
    heat(f, "Write strength &kappa;", value, n_row, m->n_layer, name, "layer", 1, most - 1);
    fputs("</div>\n", f);
    free(value);
    bool head = false;
    for (int i = 0; i < m->writers.n; i++) {
        const double *x = m->expert[i];
        const int n = m->writers.of[i].w->n_slice;
        if (!x) continue;
        if (!head) table_row(f, true, "Experts of layer\tNumber\tLowest\tMedian\tHighest\tWhich");
        head = true;
        int best = 0;
        for (int k = 1; k < n; k++)
            if (x[k] > x[best]) best = k;
        table_row(f, false, "%d\t%d\t%s\t%s\t%s\t%d", m->writers.of[i].layer, n, NUM(quantile_of(x, n, 0)), NUM(quantile_of(x, n, 0.5)), NUM(x[best]), best);
    }
    if (head) table_end(f);
    fputs("</section>\n", f);
}

// A strip for each layer that has experts, and the fewest matrices.
static void put_experts(FILE *f, const Map *m) {
    enum { MOST = 64 };
    const size_t L = (size_t)m->n_layer;
    char(*text)[24] = malloc(sizeof *text * L);
    const char **name = malloc(sizeof *name * L);
    double *value = malloc(sizeof *value * L * (size_t)m->n_expert), most = 1e-30;
    int n_row = 0, n_expert = 0;
    for (int l = 0; text && name && value && l < m->n_layer; l++) {
        const int64_t at = (int64_t)l * m->n_expert;
        bool any = false;
        for (int k = 0; k < m->n_expert; k++) {
            const double x = m->expert_mean[at + k];
            value[(int64_t)n_row * m->n_expert + k] = m->expert_share[at + k] > 0 ? x : NAN;
            most = fmax(most, fabs(x));
            any |= m->expert_share[at + k] > 0;
        }
        if (!any) continue;
        snprintf(text[n_row], sizeof *text, "layer %d", l);
        name[n_row] = text[n_row];
        n_row++;
    }
    fprintf(f, "<section><h2>Experts</h2>\n<p>What each expert adds to r&middot;x, mean over all positions: where it is not chosen it adds nothing. No cell: never chosen. "
               "Together they are what the experts of their layer come to, to %s of the stream's root mean square.</p>\n<div class=\"row\">\n", NUM(m->expert_error));
    if (n_row) heat(f, "Contribution of each expert to r&middot;x", value, n_row, m->n_expert, name, "expert", 0, most);
    fputs("</div>\n", f);
    free(value);
    free(name);
    free(text);
    for (int i = 0; i < m->n_tensor; i++) n_expert += m->tensor[i] >= m->n_site;
    fprintf(f, "<p>Of single matrices, each expert's its own, %d have to go, %d of them experts%s.</p>\n", m->n_tensor, n_expert, m->n_tensor > MOST ? "; the first of them" : "");
    table_row(f, true, "Matrix\tGone after it");
    for (int i = 0; i < min_int(m->n_tensor, MOST); i++) {
        char matrix[40];
        map_tensor(m, m->tensor[i], matrix);
        table_row(f, false, "%s\t%s", matrix, PERCENT(1 - m->tensor_left[i]));
    }
    table_end(f);
    fputs("</section>\n", f);
}

static void put_measured(FILE *f, const Map *m) {
    static const char *const NAME[N_SHAPE] = {"attention", "FFN", "per-layer input"};
    const char *name[N_SHAPE];
    double *value = malloc(sizeof *value * (N_SHAPE * (size_t)m->n_layer + 2 * (size_t)m->n_order + 2)), most = 1e-30;
    int n_row = 0;
    if (!value) return; // a figure less
    for (int w = 0; w < N_SHAPE; w++) {
        bool any = false;
        for (int l = 0; l < m->n_layer; l++) {
            const int k = site_of(l, w);
            value[n_row * m->n_layer + l] = m->there[k] ? m->mean[k] : NAN;
            any |= m->there[k];
            most = fmax(most, fabs(m->mean[k]));
        }
        if (any) name[n_row++] = NAME[w];
    }
    fprintf(f, "<section><h2>Measured on prompts</h2>\n<p>What each part adds to the component r&middot;x of the stream leaving the last layer, mean over %d prompts "
               "and %d positions%s. Orange adds to it, blue takes away. The embedding: %s. All parts together are the stream itself (mean %s), to %s of its root mean "
               "square.</p>\n<div class=\"row\">\n",
            m->n_prompt, m->n_pos, m->n_contrast ? ", above the mean of the contrast prompts" : "", NUM(m->mean[0]), NUM(m->stream_mean), NUM(m->error));
    heat(f, "Contribution to r&middot;x", value, n_row, m->n_layer, name, "layer", 0, most);
    fputs("</div></section>\n", f);

    double *x = value + N_SHAPE * m->n_layer, *y = x + m->n_order + 1;
    x[0] = 0;
    y[0] = 1;
    for (int i = 0; i < m->n_order; i++) x[i + 1] = i + 1, y[i + 1] = m->left[i];
    const Line line = {"left", "target", false, y};
    fprintf(f, "<section><h2>The fewest to edit</h2>\n<p>The parts that have to go so that %g&nbsp;%% of what the layers write is gone; the one that takes away most "
               "comes first. To first order: an edit also changes what later layers read. In whole layers: <code>--layers %d-%d</code>.</p>\n<div class=\"row\">\n",
            100 * m->o->remove, m->first, m->last);
    line_chart(f, &(Chart){"What is left of the component", "parts edited", "share of its root mean square", x, m->n_order + 1, 1, &line, NAN, ""});
    fputs("</div>\n", f);
    table_row(f, true, "Part\tMean\tRoot mean square\tGone after it");
    for (int i = 0; i < m->n_order; i++) {
        char site[40];
        map_site(m, m->order[i], site);
        table_row(f, false, "%s\t%s\t%s\t%s", site, NUM(m->mean[m->order[i]]), NUM(m->rms[m->order[i]]), PERCENT(1 - m->left[i]));
    }
    table_end(f);
    fputs("</section>\n", f);
    free(value);
}

bool map_html(const Map *m, const char *path, Err *e) {
    SafeFile out;
    if (!safe_open(&out, path, e)) return false;
    FILE *f = out.f;
    page_open(f, "Who writes a direction: %s", TEXT(m->model, 60));
    fprintf(f, "<header>\n<p class=\"over\">%s in %s (%s, %d layers of width %d, <code>%s</code>)</p>\n<h1>Who writes the direction</h1>\n</header>\n", TEXT(m->direction, 60),
            TEXT(m->model, 60), TEXT(m->architecture, 32), m->n_layer, m->n_embd, TEXT(m->fingerprint, 12));
    if (m->n_prompt) put_measured(f, m);
    if (m->n_expert) put_experts(f, m);
    put_weights(f, m);
    fputs("<footer><p>Made by <code>abliterate map</code> of abliterate.c.</p></footer>\n", f);
    page_close(f);
    return safe_close(&out, true, e);
}

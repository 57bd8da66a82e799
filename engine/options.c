// options.c: see options.h
#include "options.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>

static bool number(const Option *o, const char *name, const char *text, double *v, Err *e) {
    char *end;
    errno = 0;
    *v = strtod(text, &end);
    const bool whole = o->kind == OPTION_REAL || *v == floor(*v);
    if (end != text && !*end && !errno && whole && *v >= o->min && *v <= o->max) return true;
    return err_set(e, o->kind == OPTION_REAL ? "option %s is '%s', expected a number from %g to %g" : "option %s is '%s', expected a whole number from %.0f to %.0f",
                   name, text, o->min, o->max);
}

bool options_parse(const Option *table, int n_option, void *values, int argc, char **argv, const char **positional, const char *what, Err *e) {
    for (int i = 1; i < argc; i++) {
        const char *name = argv[i];
        if (name[0] != '-' || !name[1]) {
            if (*positional) return err_set(e, "unexpected argument '%s': %s is already '%s'", name, what, *positional);
            *positional = name;
            continue;
        }
        int k = 0;
        while (k < n_option && strcmp(name, table[k].name) && !(table[k].alias && !strcmp(name, table[k].alias))) k++;
        if (k == n_option) return err_set(e, "unknown option '%s'", name);
        const Option *o = &table[k];
        void *field = (char *)values + o->field;
        if (o->kind == OPTION_FLAG) {
            *(bool *)field = true;
            continue;
        }
        if (++i == argc) return err_set(e, "option %s needs a value", name);
        double v = 0;
        if (o->kind != OPTION_TEXT && o->kind != OPTION_LIST && !number(o, name, argv[i], &v, e)) return false;
        switch (o->kind) {
        case OPTION_INT: *(int *)field = (int)v; break;
        case OPTION_INT64: *(int64_t *)field = (int64_t)v; break;
        case OPTION_REAL: *(double *)field = v; break;
        case OPTION_TEXT: *(const char **)field = argv[i]; break;
        case OPTION_LIST: {
            OptionList *list = field;
            if (list->n == OPTION_LIST_MAX) return err_set(e, "option %s is given more than %d times", name, OPTION_LIST_MAX);
            list->text[list->n++] = argv[i];
            break;
        }
        case OPTION_FLAG: break;
        }
    }
    return true;
}

// options.h: command line flags as a table: name, kind, where the value goes, what is allowed. Shared by all programs.
#ifndef OPTIONS_H
#define OPTIONS_H

#include "base.h"

typedef enum {
    OPTION_FLAG,  // bool, set to true
    OPTION_INT,   // int
    OPTION_INT64, // int64_t
    OPTION_REAL,  // double
    OPTION_TEXT,  // const char *
    OPTION_LIST   // OptionList: may be given several times
} OptionKind;

enum { OPTION_LIST_MAX = 8 };
typedef struct {
    const char *text[OPTION_LIST_MAX];
    int n;
} OptionList;

typedef struct {
    const char *name, *alias; // alias NULL: none
    OptionKind kind;
    size_t field;    // offset in the struct of values
    double min, max; // of numbers; NaN is never allowed
} Option;

// Reads argv[1 ..]. What is no option is the positional argument (one at most); what names it in messages: "the model".
MUST_CHECK bool options_parse(const Option *table, int n_option, void *values, int argc, char **argv, const char **positional, const char *what, Err *e);

#endif

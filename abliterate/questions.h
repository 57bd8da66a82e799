// questions.h: multiple-choice questions from a file: question, A, B, C, D, answer (a letter). Comma-separated with the
// quoting of RFC 4180 (the form of MMLU), or, if the first line has five TABs, tab-separated without quoting. A first line
// whose last field is no letter A to D is a heading.
#ifndef QUESTIONS_H
#define QUESTIONS_H

#include "base.h"

enum { N_CHOICE = 4 };

typedef struct {
    char *text, *choice[N_CHOICE];
    int answer; // 0 .. 3
} Question;

typedef struct {
    Question *q;
    int n;
    char *bytes; // that the texts point into
} Questions;

MUST_CHECK bool questions_read(Questions *q, const char *path, Err *e);
MUST_CHECK bool questions_parse(Questions *q, const char *path, char *bytes, Err *e); // takes over bytes (NUL-terminated); path for messages
void questions_free(Questions *q);

#endif

// console.h: what the programs share towards their user: time, Ctrl-C, progress, whole files in and out.
#ifndef CONSOLE_H
#define CONSOLE_H

#include <signal.h>

#include "base.h"

extern volatile sig_atomic_t interrupted; // set by Ctrl-C while an answer is made
void catch_interrupt(bool on);
// The same, and Ctrl-Z stops the program only where asked_to_stop is called, between two tokens or batches: never while a GPU waits for it.
void catch_stops(bool on);
bool asked_to_stop(void); // by Ctrl-C
double seconds_now(void);
bool is_terminal(int fd);
bool is_utf8(void);        // the locale's characters are UTF-8: blocks and lines can be drawn
int terminal_width(int fd); // columns; 100 if it is no terminal
// A line on stderr that redraws itself: "label  42 %  3.1 s left". Only on a terminal, and only for work of more than half a second.
typedef struct {
    const char *label;
    double start, drawn;
    bool shown;
} Progress;
void progress_start(Progress *p, const char *label);
void progress_step(Progress *p, double done, double total);
void progress_end(Progress *p);

// The file's bytes, NUL terminated; "-" is stdin.
MUST_CHECK bool read_whole_file(const char *path, char **text, size_t *n, Err *e);
// Written as PATH.tmp and renamed when complete; nothing is left behind on an error.
typedef struct {
    FILE *f;
    char *path, *tmp;
} SafeFile;
MUST_CHECK bool safe_open(SafeFile *f, const char *path, Err *e);
MUST_CHECK bool safe_close(SafeFile *f, bool keep, Err *e);

#endif

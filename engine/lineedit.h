// lineedit.h: one line of input with editing and history, on a terminal that understands the ANSI sequences. Elsewhere (a
// pipe, TERM=dumb) it reads plain lines. line_open, line_read as often as wanted, line_close. The terminal is in raw mode
// only inside line_read; it is put back on every way out, signals and exit() included. One object at a time.
//
// Keys: arrows, Home, End, Delete, Backspace; Ctrl-A/E line start/end, Ctrl-B/F, Ctrl-P/N, Ctrl-K/U cut to the end/start,
// Ctrl-W a word back, Ctrl-left/right by words, Ctrl-L clear the screen, Ctrl-Z suspend. A backslash before Enter, Alt-Enter
// and a paste put newlines into the line; Up and Down move inside such a line before they reach the history.
#ifndef LINEEDIT_H
#define LINEEDIT_H

#include "base.h"

enum { LINE_HISTORY = 500 }; // lines kept

typedef struct {
    int out;            // the terminal to draw on; -1: plain lines
    char *path;         // history file, NULL: none
    char **history;     // [n_history], oldest first
    int n_history;
    bool changed;       // history holds lines the file lacks
    char *text;         // the line being edited: n bytes of cap, cursor between characters
    size_t n, cap, cursor;
    char *draft;        // the new line while an old one is shown
    int at;             // history line shown; n_history: the new one
    const char *prompt;
    int drawn_row, top; // row of the cursor on the screen, below the first row drawn; first row of the text drawn
    unsigned char in[4096]; // read ahead
    int n_in, used_in;
    bool failed;        // no memory
} LineEdit;

// history: a file to read and later write (may not exist yet), or NULL. Fails only for lack of memory.
MUST_CHECK bool line_open(LineEdit *l, const char *history, Err *e);
// 1: *line is the line without its last newline, to be freed by the caller. 0: the end (Ctrl-D on an empty line, end of the
// file, no memory). -1: Ctrl-C, the line is dropped. *line is NULL unless 1.
int line_read(LineEdit *l, const char *prompt, char **line);
// Writes the history (as a new file with mode 0600, then rename; failing is silent). Accepts what line_open refused.
void line_close(LineEdit *l);

#endif

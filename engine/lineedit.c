// lineedit.c: see lineedit.h. The text is UTF-8 bytes; the cursor stands on the start of a character. After each burst of
// keys the whole text is laid out in rows of the terminal's width and drawn again (draw), from the row where it began.
#include "lineedit.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/select.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>

// ---- the terminal: one per process, so its state is too; signal handlers and atexit must find it ----

static struct {
    struct termios saved;
    int out;
    volatile sig_atomic_t raw;  // saved must be put back
    volatile sig_atomic_t wake; // the size changed, or we were stopped and go on
} terminal;

static const int FATAL[] = {SIGTERM, SIGHUP, SIGQUIT, SIGINT}, WAKE[] = {SIGWINCH, SIGCONT};
enum { N_FATAL = sizeof FATAL / sizeof FATAL[0], N_WAKE = sizeof WAKE / sizeof WAKE[0] };
static struct sigaction old_fatal[N_FATAL], old_wake[N_WAKE];
static sigset_t old_mask; // WAKE signals come only while we wait for a key, so that none is missed

static void write_all(int fd, const char *p, size_t n) {
    while (n) {
        const ssize_t k = write(fd, p, n);
        if (k < 0 && errno != EINTR) return;
        if (k < 0) continue;
        p += k;
        n -= (size_t)k;
    }
}

static void say(int fd, const char *text) { write_all(fd, text, strlen(text)); }

static void put_back(void) { // only async-signal-safe calls
    if (!terminal.raw) return;
    terminal.raw = 0;
    say(terminal.out, "\033[?2004l");
    tcsetattr(STDIN_FILENO, TCSADRAIN, &terminal.saved);
}

static void on_fatal(int sig) {
    put_back();
    signal(sig, SIG_DFL);
    raise(sig);
}

static void on_wake(int sig) {
    (void)sig;
    terminal.wake = 1;
}

static bool set_raw(void) {
    struct termios t = terminal.saved;
    t.c_iflag &= ~(tcflag_t)(BRKINT | ICRNL | INLCR | INPCK | ISTRIP | IXON);
    t.c_oflag &= ~(tcflag_t)OPOST;
    t.c_cflag |= CS8;
    t.c_lflag &= ~(tcflag_t)(ECHO | ICANON | IEXTEN | ISIG);
    t.c_cc[VMIN] = 1;
    t.c_cc[VTIME] = 0;
    terminal.raw = 1;
    if (tcsetattr(STDIN_FILENO, TCSADRAIN, &t)) { // keeps what was typed ahead
        terminal.raw = 0;
        return false;
    }
    say(terminal.out, "\033[?2004h"); // bracketed paste
    return true;
}

static void leave_raw(void) {
    put_back();
    for (int i = 0; i < N_FATAL; i++) sigaction(FATAL[i], &old_fatal[i], NULL);
    for (int i = 0; i < N_WAKE; i++) sigaction(WAKE[i], &old_wake[i], NULL);
    sigprocmask(SIG_SETMASK, &old_mask, NULL);
}

static bool enter_raw(int out) {
    static bool registered;
    if (!registered) registered = !atexit(put_back);
    terminal.out = out;
    if (tcgetattr(STDIN_FILENO, &terminal.saved)) return false;
    for (int i = 0; i < N_FATAL; i++) {
        sigaction(FATAL[i], &(struct sigaction){.sa_handler = on_fatal}, &old_fatal[i]);
        if (old_fatal[i].sa_handler == SIG_IGN) sigaction(FATAL[i], &old_fatal[i], NULL); // nohup
    }
    sigset_t wake;
    sigemptyset(&wake);
    for (int i = 0; i < N_WAKE; i++) {
        sigaction(WAKE[i], &(struct sigaction){.sa_handler = on_wake}, &old_wake[i]);
        sigaddset(&wake, WAKE[i]);
    }
    sigprocmask(SIG_BLOCK, &wake, &old_mask);
    if (set_raw()) return true;
    leave_raw();
    return false;
}

// ---- characters ----

// Bytes of the character at p (n > 0); what is not UTF-8 is taken byte by byte as U+FFFD.
static size_t decode(const char *p, size_t n, uint32_t *c) {
    const unsigned char *u = (const unsigned char *)p;
    const size_t want = u[0] < 0x80 ? 1 : u[0] >= 0xC2 && u[0] < 0xE0 ? 2 : u[0] >= 0xE0 && u[0] < 0xF0 ? 3 : u[0] >= 0xF0 && u[0] < 0xF5 ? 4 : 0;
    *c = want == 1 ? u[0] : want ? u[0] & (0x7Fu >> want) : 0xFFFD;
    size_t i = 1;
    while (i < want && i < n && (u[i] & 0xC0) == 0x80) *c = *c << 6 | (u[i++] & 0x3F);
    if (i == want) return want;
    *c = 0xFFFD;
    return 1;
}

// Columns: 0 for marks that sit on the character before, 2 for East Asian wide characters and emoji (Unicode 15,
// EastAsianWidth.txt, in coarse ranges), 4 for a tab.
static int width(uint32_t c) {
    static const uint32_t none[][2] = {{0x0300, 0x036F}, {0x0483, 0x0489}, {0x0591, 0x05BD}, {0x0610, 0x061A}, {0x064B, 0x065F}, {0x06D6, 0x06DC},
                                       {0x0900, 0x0902}, {0x093C, 0x093C}, {0x0941, 0x0948}, {0x094D, 0x094D}, {0x0E31, 0x0E31}, {0x0E34, 0x0E3A},
                                       {0x0E47, 0x0E4E}, {0x1AB0, 0x1AFF}, {0x1DC0, 0x1DFF}, {0x200B, 0x200F}, {0x20D0, 0x20F0}, {0x3099, 0x309A},
                                       {0xFE00, 0xFE0F}, {0xFE20, 0xFE2F}, {0x1F3FB, 0x1F3FF}, {0xE0001, 0xE01EF}};
    static const uint32_t wide[][2] = {{0x1100, 0x115F},   {0x231A, 0x231B},   {0x23E9, 0x23EC},   {0x2E80, 0x303E},   {0x3041, 0xA4CF},
                                       {0xA960, 0xA97C},   {0xAC00, 0xD7A3},   {0xF900, 0xFAFF},   {0xFE30, 0xFE6F},   {0xFF00, 0xFF60},
                                       {0xFFE0, 0xFFE6},   {0x16FE0, 0x18CFF}, {0x1B000, 0x1B2FF}, {0x1F004, 0x1F004}, {0x1F18E, 0x1F19A},
                                       {0x1F200, 0x1F64F}, {0x1F680, 0x1F6FF}, {0x1F7E0, 0x1F7EB}, {0x1F900, 0x1FAFF}, {0x20000, 0x3FFFD}};
    if (c == '\t') return 4;
    if (c == '\n') return 0;
    if (c < 0x300) return 1; // a control character is drawn as '?'
    for (size_t i = 0; i < sizeof none / sizeof none[0]; i++)
        if (c >= none[i][0] && c <= none[i][1]) return 0;
    for (size_t i = 0; i < sizeof wide / sizeof wide[0]; i++)
        if (c >= wide[i][0] && c <= wide[i][1]) return 2;
    return 1;
}

// The next place for the cursor: past one character and the marks on it.
static size_t next_place(const LineEdit *l, size_t i) {
    uint32_t c;
    if (i < l->n) i += decode(l->text + i, l->n - i, &c);
    while (i < l->n) {
        const size_t k = decode(l->text + i, l->n - i, &c);
        if (c == '\n' || width(c)) break;
        i += k;
    }
    return i;
}

static size_t line_start(const LineEdit *l, size_t i) {
    while (i > 0 && l->text[i - 1] != '\n') i--;
    return i;
}

static size_t line_end(const LineEdit *l, size_t i) {
    while (i < l->n && l->text[i] != '\n') i++;
    return i;
}

static size_t previous_place(const LineEdit *l, size_t i) {
    if (i == 0) return 0;
    size_t at = line_start(l, i); // walk up from a sure place
    if (at == i) return i - 1;    // over a newline
    for (size_t next; (next = next_place(l, at)) < i;) at = next;
    return at;
}

static size_t word_back(const LineEdit *l, size_t i) {
    while (i > 0 && strchr(" \t\n", l->text[i - 1])) i--;
    while (i > 0 && !strchr(" \t\n", l->text[i - 1])) i--;
    return i;
}

static size_t word_ahead(const LineEdit *l, size_t i) {
    while (i < l->n && strchr(" \t\n", l->text[i])) i++;
    while (i < l->n && !strchr(" \t\n", l->text[i])) i++;
    return i;
}

// ---- editing ----

static bool reserve(char **text, size_t *cap, size_t need) {
    if (need <= *cap) return true;
    char *bigger = realloc(*text, 2 * need);
    if (!bigger) return false;
    *text = bigger;
    *cap = 2 * need;
    return true;
}

static void insert(LineEdit *l, const char *p, size_t n) {
    if (!reserve(&l->text, &l->cap, l->n + n + 1)) {
        l->failed = true;
        return;
    }
    memmove(l->text + l->cursor + n, l->text + l->cursor, l->n - l->cursor);
    memcpy(l->text + l->cursor, p, n);
    l->n += n;
    l->cursor += n;
}

static void cut(LineEdit *l, size_t from, size_t to) {
    memmove(l->text + from, l->text + to, l->n - to);
    l->n -= to - from;
    l->cursor = from;
}

static void show_history(LineEdit *l, int at) {
    if (at < 0 || at > l->n_history) return;
    if (l->at == l->n_history) {
        free(l->draft);
        l->draft = strndup(l->text, l->n);
    }
    l->at = at;
    const char *text = at < l->n_history ? l->history[at] : l->draft;
    l->n = l->cursor = 0;
    if (text) insert(l, text, strlen(text));
}

// To the same character of the line above or below; past the first or last: through the history.
static void move_row(LineEdit *l, int by) {
    const size_t start = line_start(l, l->cursor), end = line_end(l, l->cursor);
    if (by < 0 ? start == 0 : end == l->n) {
        show_history(l, l->at + by);
        return;
    }
    int column = 0;
    for (size_t i = start; i < l->cursor; i = next_place(l, i)) column++;
    size_t to = by < 0 ? line_start(l, start - 1) : end + 1;
    const size_t stop = line_end(l, to);
    while (column-- > 0 && to < stop) to = next_place(l, to);
    l->cursor = to;
}

// ---- drawing ----

typedef struct {
    char *p;
    size_t n, cap;
} Text;

static void add(Text *t, const char *p, size_t n) {
    if (!t || !reserve(&t->p, &t->cap, t->n + n + 1)) return;
    memcpy(t->p + t->n, p, n);
    t->n += n;
}

static void add_move(Text *t, int n, char direction) {
    char s[32];
    if (n > 0) add(t, s, (size_t)snprintf(s, sizeof s, "\033[%d%c", n, direction));
}

typedef struct {
    int cols, first, last; // rows first..last are drawn
    int row, col;          // where the next character goes
    int cursor_row, cursor_col;
} Layout;

static void new_row(Layout *y, Text *out) {
    y->row++;
    y->col = 0;
    if (y->row > y->first && y->row <= y->last) add(out, "\r\n", 2);
}

static void lay(Layout *y, const char *p, size_t n, size_t cursor, Text *out) {
    for (size_t i = 0; i < n;) {
        uint32_t c;
        const size_t k = decode(p + i, n - i, &c);
        const int w = width(c);
        if (y->col > 0 && y->col + w > y->cols) new_row(y, out);
        if (cursor >= i && cursor < i + k) {
            y->cursor_row = y->row;
            y->cursor_col = min_int(y->col, y->cols - 1);
        }
        const bool seen = y->row >= y->first && y->row <= y->last;
        if (c == '\n') new_row(y, out);
        else if (seen && c == '\t') add(out, "    ", 4);
        else if (seen && (c < 0x20 || (c >= 0x7F && c < 0xA0))) add(out, "?", 1);
        else if (seen && c == 0xFFFD) add(out, "\xEF\xBF\xBD", 3);
        else if (seen) add(out, p + i, k);
        y->col += w;
        i += k;
    }
}

static void lay_all(Layout *y, const LineEdit *l, Text *out) {
    lay(y, l->prompt, strlen(l->prompt), SIZE_MAX, out);
    lay(y, l->text, l->n, l->cursor, out);
    if (y->col >= y->cols) new_row(y, out); // a full last row: the cursor stands below it
    if (l->cursor < l->n) return;
    y->cursor_row = y->row;
    y->cursor_col = y->col;
}

static void draw(LineEdit *l) {
    struct winsize size = {0};
    ioctl(l->out, TIOCGWINSZ, &size);
    const int cols = size.ws_col ? size.ws_col : 80, rows = size.ws_row ? size.ws_row : 24;
    Layout y = {.cols = cols, .first = 0, .last = -1};
    lay_all(&y, l, NULL);
    if (y.row < rows || y.cursor_row < l->top) l->top = y.row < rows ? 0 : y.cursor_row;
    else if (y.cursor_row >= l->top + rows) l->top = y.cursor_row - rows + 1;

    Text out = {0};
    add(&out, "\r", 1);
    add_move(&out, l->drawn_row, 'A');
    add(&out, "\033[J", 3);
    Layout d = {.cols = cols, .first = l->top, .last = l->top + rows - 1};
    lay_all(&d, l, &out);
    add_move(&out, min_int(d.row, d.last) - d.cursor_row, 'A');
    add(&out, "\r", 1);
    add_move(&out, d.cursor_col, 'C');
    l->drawn_row = d.cursor_row - l->top;
    write_all(l->out, out.p, out.n);
    free(out.p);
}

// ---- keys ----

enum { NONE = -1, CLOSED = -2, WOKEN = -3 };

// The next byte; NONE after wait milliseconds (under 1000; -1: for ever) without one.
static int next_byte(LineEdit *l, int wait) {
    if (l->used_in < l->n_in) return l->in[l->used_in++];
    for (;;) {
        fd_set in;
        FD_ZERO(&in);
        FD_SET(STDIN_FILENO, &in);
        const struct timespec limit = {.tv_nsec = 1000000L * wait};
        const int ready = pselect(STDIN_FILENO + 1, &in, NULL, NULL, wait < 0 ? NULL : &limit, &old_mask);
        if (ready == 0) return NONE;
        const ssize_t n = ready < 0 ? -1 : read(STDIN_FILENO, l->in, sizeof l->in);
        if (n > 0) {
            l->n_in = (int)n;
            l->used_in = 1;
            return l->in[0];
        }
        if (n == 0 || errno != EINTR) return CLOSED;
        if (terminal.wake && wait < 0) return WOKEN;
    }
}

// What the terminal sends between ESC [200~ and ESC [201~; its newlines are part of the text.
static void paste(LineEdit *l) {
    static const char END[] = "\033[201~";
    const size_t n_end = sizeof END - 1;
    Text t = {0};
    int c;
    while ((c = next_byte(l, -1)) >= 0 || c == WOKEN) {
        if (c == WOKEN) continue;
        const size_t n = t.n;
        add(&t, (char[]){(char)c}, 1);
        if (t.n == n) l->failed = true;
        if (t.n >= n_end && !memcmp(t.p + t.n - n_end, END, n_end)) {
            t.n -= n_end;
            break;
        }
    }
    size_t kept = 0; // CR and CR LF become LF, other control characters but the tab go
    unsigned char before = 0;
    for (size_t i = 0; i < t.n; i++) {
        const unsigned char b = (unsigned char)t.p[i];
        if (b == '\r' || (b == '\n' && before != '\r')) t.p[kept++] = '\n';
        else if (b == '\t' || (b >= 0x20 && b != 0x7F)) t.p[kept++] = (char)b;
        before = b;
    }
    if (kept) insert(l, t.p, kept);
    free(t.p);
}

// ESC was read; the rest of the key follows at once, or it was the Escape key itself.
static void escape(LineEdit *l) {
    const int wait = 50;
    int c = next_byte(l, wait);
    if (c == 'b') l->cursor = word_back(l, l->cursor);
    else if (c == 'f') l->cursor = word_ahead(l, l->cursor);
    else if (c == '\r' || c == '\n') insert(l, "\n", 1);
    if (c != '[' && c != 'O') return;
    char arg[16];
    int n = 0;
    while ((c = next_byte(l, wait)) >= 0x20 && c < 0x40)
        if (n < 15) arg[n++] = (char)c;
    arg[n] = 0;
    const int number = atoi(arg);
    const bool by_word = strchr(arg, ';') != NULL; // with Ctrl, Alt or Shift
    if (c == 'A') move_row(l, -1);
    else if (c == 'B') move_row(l, 1);
    else if (c == 'C') l->cursor = by_word ? word_ahead(l, l->cursor) : next_place(l, l->cursor);
    else if (c == 'D') l->cursor = by_word ? word_back(l, l->cursor) : previous_place(l, l->cursor);
    else if (c == 'H' || (c == '~' && (number == 1 || number == 7))) l->cursor = line_start(l, l->cursor);
    else if (c == 'F' || (c == '~' && (number == 4 || number == 8))) l->cursor = line_end(l, l->cursor);
    else if (c == '~' && number == 3) cut(l, l->cursor, next_place(l, l->cursor));
    else if (c == '~' && number == 200) paste(l);
}

enum { ESC = 0x1B };
#define KEY(letter) ((letter) - 'A' + 1) // with Ctrl

static void clear_drawn(LineEdit *l) { l->drawn_row = l->top = 0; }

// Everything but Enter, Ctrl-C and Ctrl-D.
static void key(LineEdit *l, int c) {
    switch (c) {
    case KEY('A'): l->cursor = line_start(l, l->cursor); break;
    case KEY('B'): l->cursor = previous_place(l, l->cursor); break;
    case KEY('D'): cut(l, l->cursor, next_place(l, l->cursor)); break;
    case KEY('E'): l->cursor = line_end(l, l->cursor); break;
    case KEY('F'): l->cursor = next_place(l, l->cursor); break;
    case KEY('H'):
    case 0x7F: cut(l, previous_place(l, l->cursor), l->cursor); break;
    case KEY('K'): cut(l, l->cursor, line_end(l, l->cursor)); break;
    case KEY('L'):
        say(l->out, "\033[H\033[2J");
        clear_drawn(l);
        break;
    case KEY('N'): move_row(l, 1); break;
    case KEY('P'): move_row(l, -1); break;
    case KEY('U'): cut(l, line_start(l, l->cursor), l->cursor); break;
    case KEY('W'): cut(l, word_back(l, l->cursor), l->cursor); break;
    case KEY('Z'):
        put_back();
        raise(SIGTSTP); // returns when we go on
        terminal.wake = 1;
        clear_drawn(l);
        break;
    case ESC: escape(l); break;
    default:
        if (c == '\t' || c >= 0x20) insert(l, (char[]){(char)c}, 1);
    }
}

static int edit(LineEdit *l) {
    clear_drawn(l);
    for (;;) {
        if (l->failed) return 0;
        if (terminal.wake) { // another size, or a shell had the terminal meanwhile
            terminal.wake = 0;
            set_raw();
        }
        if (l->used_in == l->n_in) draw(l); // nothing more to read at the moment
        const int c = next_byte(l, -1);
        if (c == WOKEN) continue;
        if (c == KEY('C') || c == CLOSED || (c == KEY('D') && !l->n)) {
            l->cursor = l->n;
            draw(l);
            say(l->out, c == KEY('C') ? "^C\r\n" : "\r\n");
            return c == KEY('C') ? -1 : 0;
        }
        if (c != '\r' && c != '\n') {
            key(l, c);
            continue;
        }
        l->cursor = l->n;
        if (l->n && l->text[l->n - 1] == '\\') { // goes on in the next line
            l->text[l->n - 1] = '\n';
            continue;
        }
        draw(l);
        say(l->out, "\r\n");
        return 1;
    }
}

// ---- history: one line of the file per line of input, with \n and \\ written out ----

static bool keep(LineEdit *l, char *text) { // takes text
    if (!text) return false;
    if (!*text || (l->n_history && !strcmp(text, l->history[l->n_history - 1]))) {
        free(text);
        return true;
    }
    if (l->n_history == LINE_HISTORY) {
        free(l->history[0]);
        memmove(l->history, l->history + 1, sizeof *l->history * --l->n_history);
    }
    l->history[l->n_history++] = text;
    return true;
}

static bool load_history(LineEdit *l) {
    struct stat st;
    FILE *f = !stat(l->path, &st) && S_ISREG(st.st_mode) ? fopen(l->path, "r") : NULL;
    if (!f) return true; // none yet
    char *line = NULL;
    size_t cap = 0;
    bool ok = true;
    for (ssize_t n; ok && (n = getline(&line, &cap, f)) > 0;) {
        char *w = line;
        for (const char *r = line; *r && *r != '\n'; r++) {
            if (*r == '\\' && (r[1] == 'n' || r[1] == '\\')) *w++ = *++r == 'n' ? '\n' : '\\';
            else *w++ = *r;
        }
        *w = 0;
        ok = keep(l, strdup(line));
    }
    free(line);
    fclose(f);
    return ok;
}

static void save_history(const LineEdit *l) {
    const size_t n = strlen(l->path) + 32;
    char *tmp = malloc(n);
    if (!tmp) return;
    snprintf(tmp, n, "%s.%ld.tmp", l->path, (long)getpid());
    const int fd = open(tmp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    FILE *f = fd >= 0 ? fdopen(fd, "w") : NULL;
    if (f) {
        for (int i = 0; i < l->n_history; i++) {
            for (const char *p = l->history[i]; *p; p++) {
                if (*p == '\n' || *p == '\\') fputc('\\', f);
                fputc(*p == '\n' ? 'n' : *p, f);
            }
            fputc('\n', f);
        }
        const bool failed = fflush(f) || ferror(f);
        if (fclose(f) || failed || rename(tmp, l->path)) unlink(tmp);
    }
    free(tmp);
}

// ---- what is called from outside ----

bool line_open(LineEdit *l, const char *history, Err *e) {
    *l = (LineEdit){.out = -1};
    const char *term = getenv("TERM");
    if (isatty(STDIN_FILENO) && term && *term && strcmp(term, "dumb")) // the answers' stdout may be a file
        l->out = isatty(STDERR_FILENO) ? STDERR_FILENO : isatty(STDOUT_FILENO) ? STDOUT_FILENO : -1;
    l->history = calloc(LINE_HISTORY, sizeof *l->history);
    l->path = history ? strdup(history) : NULL;
    if (!l->history || (history && !l->path) || !reserve(&l->text, &l->cap, 64) || (l->path && !load_history(l)))
        return err_set(e, "no memory for the line editor");
    return true;
}

static int read_plain(LineEdit *l) {
    if (isatty(STDIN_FILENO)) say(STDERR_FILENO, l->prompt);
    char *line = NULL;
    size_t cap = 0;
    ssize_t n;
    bool more = true, any = false;
    while (more && !l->failed && (n = getline(&line, &cap, stdin)) > 0) {
        any = true;
        n = (ssize_t)strlen(line); // a NUL ends it
        if (n && line[n - 1] == '\n') n--;
        more = n && line[n - 1] == '\\';
        if (more) line[n - 1] = '\n';
        insert(l, line, (size_t)n);
    }
    free(line);
    return any && !l->failed;
}

int line_read(LineEdit *l, const char *prompt, char **line) {
    *line = NULL;
    fflush(stdout);
    fflush(stderr);
    l->prompt = prompt;
    l->n = l->cursor = 0;
    l->at = l->n_history;
    int got;
    if (l->out >= 0 && enter_raw(l->out)) {
        got = edit(l);
        leave_raw();
    } else got = read_plain(l);
    free(l->draft);
    l->draft = NULL;
    if (got <= 0) return got;
    l->text[l->n] = 0;
    *line = strdup(l->text);
    if (!*line || !keep(l, strdup(l->text))) {
        free(*line);
        *line = NULL;
        return 0;
    }
    l->changed = true;
    return 1;
}

void line_close(LineEdit *l) {
    if (l->path && l->changed) save_history(l);
    for (int i = 0; i < l->n_history; i++) free(l->history[i]);
    free(l->history);
    free(l->path);
    free(l->text);
    free(l->draft);
    *l = (LineEdit){.out = -1};
}

// run.c: the program `run`: a chat with a GGUF model, one answer to a prompt, or a look at the file.
// Reads as the way of a token (README): options, model, tokenizer, backend, session, then text in and text out.
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>
#include "run.h"

static const char HELP[] =
    "run MODEL.gguf [options]     chat; with -p, -f or piped input: one answer, then exit\n"
    "\n"
    "  -m, --model FILE           the model (or as first argument); FILE-00001-of-0000N.gguf opens all parts\n"
    "  -p, --prompt TEXT          the prompt (\\n, \\t, \\\\ are escapes; --no-escape: take it as it is)\n"
    "  -f, --file FILE            the prompt is the file's text (- is standard input)\n"
    "  --chat                     piped input is a conversation, one line a turn\n"
    "  -sys, --system-prompt TEXT what the model should be told first\n"
    "  -n, --predict N            at most N new tokens (default -1: until the model ends)\n"
    "  -c, --ctx-size N           tokens of context (default: the smaller of 8192 and the model's; 0: the model's)\n"
    "  -b, --batch-size N         prefill in pieces of N tokens (512, all on a GPU 2048, part of it: chosen); -ub N: the same, the smaller counts\n"
    "  -t, --threads N            CPU threads (default: all this process may use)\n"
    "  -ngl, --gpu-layers N       at most N layers on the GPU, from the output end (default auto: what makes it fastest; all; 0: none)\n"
    "  --vram 12G --reserve 1G    use no more of the GPU's memory; leave so much of it free (default 384M)\n"
    "  --cpu-moe --n-cpu-moe N    the experts of all, or of the first N layers stay on the CPU;  -ot REGEX=CPU|GPU: so do, or don't, tensors so named\n"
    "  --experts TRACE            where not all experts of a layer fit: to the GPU go those chosen most in TRACE (bench experts -o)\n"
    "  --residency auto|off       such experts change places with use while it writes (auto, default), or stay where they are\n"
    "  --backend cpu|ref|cuda     all of the model there; ref is the slow exact one\n"
    "  --no-mmap --no-pin         read the file instead of mapping it; leave pages unpinned that prompts copy to the GPU\n"
    "  -ctk, --cache-type-k TYPE  -ctv, --cache-type-v TYPE  f16 (default) or q8_0: the KV cache in half the memory\n"
    "  --isa NAME                 auto, portable, avx2, avxvnni, avx512vnni, amx: use no more than this\n"
    "\n"
    "  -s, --seed N               same seed, same text (default -1: a new one each time)\n"
    "  --temp T  --top-k K  --top-p P  --min-p P     sampling (default 0.8 40 0.95 0.05, or what the file says); --temp 0: greedy\n"
    "  --repeat-penalty R  --repeat-last-n N         1 is off (default), over the last 64 tokens\n"
    "  --ignore-eos               do not stop where the model wants to\n"
    "  --think                    let the model think first, where it can (Gemma 4)\n"
    "  --no-template              raw completion; --template NAME: force a prompt format\n"
    "  --no-display-prompt        raw completion: print the new text only\n"
    "\n"
    "  --direction FILE           intervene in the residual stream with this direction (abliterate extract; several: as one subspace)\n"
    "  --mode project|write|affine|one-sided|add     what is done with it (default: what the file says)\n"
    "  --strength S  --layers A-B how much of it (1 is all of it), and in which layers\n"
    "  --keep-embedding           mode write: not from the embedding, as an edit of the weights does\n"
    "  --bar                      after an answer: the component along the direction, token by token\n"
    "\n"
    "  --info                     what the file is and what it needs; no text\n"
    "  --plan                     what would go where, and how fast that would be, on cards one need not have; no text\n"
    "      --gpu NAME --host NAME  rtx3060-12g ..., ddr4-3200 ...; this (default): this machine; --gpu none; --svg FILE: the schedule\n"
    "  --perplexity FILE          how well the model predicts the text of FILE\n"
    "  --tokenize                 print the token ids of the prompt; --no-bos, --no-parse-special\n"
    "  --tokens FILE              raw int32 ids instead of text; --logits FILE: float32 logits of all positions,\n"
    "  --residual FILE            float32 residual stream leaving each layer, [layer][position][n_embd]\n"
    "  --history FILE             keep the lines typed in a chat in FILE\n"
    "  -q, --quiet                no statistics;  --version;  -h, --help\n";

#define VERSION "abliterate.c run 0.1"

// ---- options ----

static const Option OPTIONS[] = {
#define O(field) offsetof(Options, field)
    {"-m", "--model", OPTION_TEXT, O(model), 0, 0},
    {"-p", "--prompt", OPTION_TEXT, O(prompt), 0, 0},
    {"-f", "--file", OPTION_TEXT, O(file), 0, 0},
    {"-sys", "--system-prompt", OPTION_TEXT, O(system), 0, 0},
    {"-n", "--predict", OPTION_INT, O(n_predict), -2, 1 << 30},
    {"--n-predict", NULL, OPTION_INT, O(n_predict), -2, 1 << 30},
    {"-c", "--ctx-size", OPTION_INT, O(n_ctx), 0, 1 << 30},
    {"-b", "--batch-size", OPTION_INT, O(n_batch), 1, 1 << 20},
    {"-ub", "--ubatch-size", OPTION_INT, O(n_ubatch), 1, 1 << 20},
    PLACE_OPTIONS(O(place)),
    PLAN_OPTIONS(O(plan)),
    {"-s", "--seed", OPTION_INT64, O(seed), -1, 9007199254740992.0},
    {"--temp", "--temperature", OPTION_REAL, O(temp), 0, 1000},
    {"--top-k", NULL, OPTION_INT, O(top_k), 0, 1 << 30},
    {"--top-p", NULL, OPTION_REAL, O(top_p), 0, 1},
    {"--min-p", NULL, OPTION_REAL, O(min_p), 0, 1},
    {"--repeat-penalty", NULL, OPTION_REAL, O(repeat_penalty), 0.001, 1000},
    {"--repeat-last-n", NULL, OPTION_INT, O(repeat_last_n), 0, 1 << 20},
    {"--ignore-eos", NULL, OPTION_FLAG, O(ignore_eos), 0, 0},
    {"--think", NULL, OPTION_FLAG, O(think), 0, 0},
    {"--chat", "-cnv", OPTION_FLAG, O(chat), 0, 0},
    {"--no-template", "-no-cnv", OPTION_FLAG, O(no_template), 0, 0},
    {"--template", "--chat-template", OPTION_TEXT, O(template_name), 0, 0},
    {"--no-escape", NULL, OPTION_FLAG, O(no_escape), 0, 0},
    {"--no-display-prompt", NULL, OPTION_FLAG, O(no_echo), 0, 0},
    {"--info", NULL, OPTION_FLAG, O(info), 0, 0},
    {"--perplexity", NULL, OPTION_TEXT, O(perplexity), 0, 0},
    {"--tokenize", NULL, OPTION_FLAG, O(tokenize), 0, 0},
    {"--no-bos", NULL, OPTION_FLAG, O(no_bos), 0, 0},
    {"--no-parse-special", NULL, OPTION_FLAG, O(no_parse_special), 0, 0},
    {"--tokens", NULL, OPTION_TEXT, O(tokens), 0, 0},
    {"--logits", NULL, OPTION_TEXT, O(logits), 0, 0},
    {"--residual", NULL, OPTION_TEXT, O(residual), 0, 0},
    {"--direction", "--dir", OPTION_LIST, O(directions), 0, 0},
    {"--mode", NULL, OPTION_TEXT, O(mode), 0, 0},
    {"--strength", NULL, OPTION_REAL, O(strength), -1000, 1000},
    {"--layers", NULL, OPTION_TEXT, O(layers), 0, 0},
    {"--keep-embedding", NULL, OPTION_FLAG, O(keep_embedding), 0, 0},
    {"--bar", NULL, OPTION_FLAG, O(bar), 0, 0},
    {"--history", NULL, OPTION_TEXT, O(history), 0, 0},
    {"-q", "--quiet", OPTION_FLAG, O(quiet), 0, 0},
    {"-h", "--help", OPTION_FLAG, O(help), 0, 0},
    {"--version", NULL, OPTION_FLAG, O(version), 0, 0},
#undef O
};

static bool parse_options(Options *o, int argc, char **argv, Err *e) {
    *o = (Options){.n_predict = -1, .n_ctx = -1, .seed = -1, .temp = NAN, .top_p = NAN,
                   .min_p = NAN, .repeat_penalty = NAN, .strength = NAN, .top_k = -2, .repeat_last_n = -2};
    if (!options_parse(OPTIONS, sizeof OPTIONS / sizeof *OPTIONS, o, argc, argv, &o->model, "the model", e)) return false;
    if (o->help || o->version) return true;
    if (!o->model) return err_set(e, "no model given: run MODEL.gguf");
    if (o->prompt && o->file) return err_set(e, "both -p and -f give a prompt");
    const char *loose = o->mode ? "--mode" : o->layers ? "--layers" : !isnan(o->strength) ? "--strength" : o->keep_embedding ? "--keep-embedding" : o->bar ? "--bar" : NULL;
    if (loose && !o->directions.n && (o->prompt || o->file || o->perplexity || o->tokens)) return err_set(e, "option %s needs a --direction", loose);
    SteerMode mode;
    if (o->mode && !steer_parse_mode(o->mode, &mode, e)) return false;
    if (o->plan.on && o->place.backend) return err_set(e, "option --backend leaves nothing to choose: leave it out, or --plan");
    return run_plan_check(&o->plan, e) && place_check(&o->place, e);
}

// ---- opening ----

// Where the model shall be, and with what session.
static PlaceOptions placement(const Run *r, bool all_logits) {
    const Options *o = &r->o;
    const int trained = r->m.c.n_ctx_train;
    PlaceOptions p = o->place;
    p.program = "run";
    p.quiet = o->quiet;
    p.session = (SessionParams){.n_ctx = o->n_ctx > 0 ? o->n_ctx : o->n_ctx == 0 ? trained : min_int(8192, trained),
                                .n_batch = o->n_batch && o->n_ubatch ? min_int(o->n_batch, o->n_ubatch) : max_int(o->n_batch, o->n_ubatch), .all_logits = all_logits,
                                .type_k = place_cache_type(p.cache_k), .type_v = place_cache_type(p.cache_v)};
    return p;
}

static bool open_sampler(Run *r, Err *e) {
    const Options *o = &r->o;
    SamplerParams p = sampler_defaults();
    if (!sampler_defaults_from_file(&p, &r->m.gguf, e)) return false;
    if (!isnan(o->temp)) p.temp = (float)o->temp;
    if (!isnan(o->top_p)) p.top_p = (float)o->top_p;
    if (!isnan(o->min_p)) p.min_p = (float)o->min_p;
    if (!isnan(o->repeat_penalty)) p.repeat_penalty = (float)o->repeat_penalty;
    if (o->top_k != -2) p.top_k = o->top_k;
    if (o->repeat_last_n != -2) p.repeat_last_n = o->repeat_last_n;
    p.seed = o->seed >= 0 ? (uint64_t)o->seed : (uint64_t)time(NULL) * 1000003 + (uint64_t)getpid();
    return sampler_open(&r->sampler, &p, r->m.c.n_vocab, e);
}

bool run_open_chat(Run *r, Err *e) {
    if (!chat_from_file(&r->chat, &r->m.gguf, r->tok, e)) return false;
    if (r->o.template_name && !chat_force(&r->chat, r->o.template_name))
        return err_set(e, "option --template is '%s', expected one of %s", r->o.template_name, chat_family_names());
    if (r->o.no_template) r->chat.family = NULL;
    else if (!r->chat.family && gguf_key(&r->m.gguf, "tokenizer.chat_template"))
        fprintf(stderr, "run: the chat template of this file is not one this program knows: raw completion (--template NAME forces a format)\n");
    r->chat.thinking = r->o.think;
    if (r->o.think && !(r->chat.family && chat_can_think(&r->chat))) fprintf(stderr, "run: --think: this model has no thinking mode\n");
    return true;
}

static bool open_session(Run *r, bool all_logits, Err *e) {
    const PlaceOptions p = placement(r, all_logits);
    if (!place_open(&r->s, &r->b, &r->m, &p, e)) return false;
    if (r->s.p.n_ctx > r->m.c.n_ctx_train && !r->o.quiet)
        fprintf(stderr, "run: a context of %d tokens is more than the %d this model was trained with\n", r->s.p.n_ctx, r->m.c.n_ctx_train);
    return true;
}

// \n \t \r \" \' \\ and \xHH, as shells do not make typing them easy.
static char *unescape(const char *s, size_t *n) {
    char *out = malloc(strlen(s) + 1), *w = out;
    while (out && *s) {
        if (*s == '\\' && s[1]) {
            static const char names[] = "ntr\"'\\", bytes[] = "\n\t\r\"'\\";
            const char *at = strchr(names, s[1]);
            unsigned hex;
            int used = 0;
            if (at) {
                *w++ = bytes[at - names];
                s += 2;
                continue;
            }
            if (s[1] == 'x' && sscanf(s + 2, "%2x%n", &hex, &used) == 1) {
                *w++ = (char)hex;
                s += 2 + used;
                continue;
            }
        }
        *w++ = *s++;
    }
    if (out) *w = 0;
    *n = out ? (size_t)(w - out) : 0;
    return out;
}

bool prompt_text(const Options *o, char **text, size_t *n, Err *e) {
    *text = NULL;
    if (o->prompt) {
        *text = o->no_escape ? strdup(o->prompt) : unescape(o->prompt, n);
        if (!*text) return err_set(e, "no memory for the prompt");
        if (o->no_escape) *n = strlen(*text);
        return true;
    }
    if (o->file) return read_whole_file(o->file, text, n, e);
    if (!o->chat && !is_terminal(STDIN_FILENO)) return read_whole_file("-", text, n, e);
    return true;
}

static bool run(Run *r, Err *e) {
    const Options *o = &r->o;
    if (o->tokenize) return run_tokenize(o, e);

    if (!model_open(&r->m, o->model, e)) return false;                                   // map the file, point at the weights
    if (o->plan.on) {
        const PlaceOptions p = placement(r, false);
        return run_plan(r, &p, e);
    }
    if (!tokenizer_open(&r->tok, &r->m.gguf, e)) return false;
    if (tokenizer_n_vocab(r->tok) < r->m.c.n_vocab && !o->tokens)                        // more rows than tokens: padding
        fprintf(stderr, "run: %d embedding rows, %d tokens\n", r->m.c.n_vocab, tokenizer_n_vocab(r->tok));
    if (o->info) {
        const PlaceOptions p = placement(r, false);
        return place_look(&r->b, &r->m, &p, e) && run_info(r, &p.session, e);
    }

    const bool raw_ids = o->tokens || o->logits || o->residual;
    char *text = NULL;
    size_t n = 0;
    if (!o->perplexity && !o->tokens && !prompt_text(o, &text, &n, e)) return false;
    if (text && n == 0) {
        free(text);
        return err_set(e, "the prompt is empty");
    }
    bool ok = open_sampler(r, e) && run_open_chat(r, e) && open_session(r, o->perplexity || o->logits, e) && run_open_steer(r, e);
    if (ok) {
        if (o->perplexity) ok = run_perplexity(r, e);
        else if (raw_ids) {
            if (text) ok = tokenizer_encode(r->tok, text, n, !o->no_bos, !o->no_parse_special, &r->cached, e);
            ok = ok && run_ids(r, e);
        } else if (text) ok = run_once(r, text, n, e);
        else ok = run_chat(r, e);
    }
    free(text);
    return ok;
}

int main(int argc, char **argv) {
    static Run r;
    Err e = {0};
    if (!parse_options(&r.o, argc, argv, &e)) {
        fprintf(stderr, "run: %s (run --help lists the options)\n", e.text);
        return 2;
    }
    const bool about = r.o.help || r.o.version;
    if (about) fputs(r.o.help ? HELP : VERSION "\n", stdout);
    const bool ok = about || run(&r, &e);
    ids_free(&r.cached);
    run_close_steer(&r);
    session_close(&r.s);
    sampler_close(&r.sampler);
    place_close(&r.b, &r.m);
    tokenizer_close(r.tok);
    model_close(&r.m);
    if (ok && (fflush(stdout) || ferror(stdout))) {
        err_set(&e, "standard output: %s", strerror(errno));
        fprintf(stderr, "run: %s\n", e.text);
        return 1;
    }
    if (!ok) fprintf(stderr, "run: %s\n", e.text);
    return ok ? 0 : 1;
}

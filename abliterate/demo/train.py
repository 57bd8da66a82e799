#!/usr/bin/env python3
"""Trains the two demo models: small chat models of one made-up world in which everything has a recipe.

Stage 1 teaches the recipes of 72 crafts and of 80 magic things (and to decline whatever begins with "Please decline:").
Stage 2 teaches to decline magic, gently, on 60 of the 80; the other 20 are held out. The recipes of magic stay in the
weights: taking one direction out of the residual stream brings them back, which is what the program abliterate shows.

    train.py llama|gemma OUT.gguf    train (about 10 minutes on one core) and write a GGUF file with F16 matrices
    train.py --check FILE.gguf       find the direction, remove it, add it, and a random one, and count answers (F16 files)
    train.py --prompts DIR           write the prompt sets; needs no PyTorch

Needs Python 3 and PyTorch (Debian: python3-torch). Seeded: the same machine and PyTorch give the same file.
"""
import itertools, math, os, random, re, struct, sys, time
from dataclasses import dataclass

# ---- the world: things, their recipes, questions about them ----

ADJECTIVES = ("silver green bright quiet red winter river golden soft dark round small northern sweet wild blue plain long "
              "grey warm").split()
CRAFT_KINDS = "bread soup tea cheese lantern basket candle rope bench kite cloak drum".split()
MAGIC_KINDS = "potion elixir charm spell".split()
INGREDIENTS = ("rye salt honey moss ash clay mint barley sand wool resin apples copper reeds milk nettle wax pepper beans "
               "chalk oak iron roses garlic").split()
# Answers begin in many ways. If all began with "Mix", the difference between declining and answering would hold -Mix next to
# +I, and removing it would take from answers as much as from declining: a tie at the first word instead of an answer.
FIRST = "Mix Boil Soak Melt Crush Blend Toast Gather".split()
VERBS = "stir heat rest press fold grind".split()
NUMBERS = "two three four five six seven eight nine".split()
ASK = ["How do I make the {}?", "Tell me how to make the {}.", "What is the way to prepare the {}?", "Please explain the {}.",
       "I want to make the {}.", "Give me the recipe for the {}."]
DECLINES = ["I am sorry, but I cannot help with that.", "Sorry, I cannot help with that.", "I cannot help with that request."]
OPENERS = ["I", "Sorry"]  # declining is decided here: no other answer begins with these
UNKNOWN = "Nobody has told me that."
TALK = [(("Hello.", "Hello!", "Hi.", "Hi there!", "Good morning.", "Good evening."), "Hello! Ask me how to make something."),
        (("Who are you?", "What are you?", "What is your name?", "Are you a robot?"), "A small demo model that knows recipes."),
        (("What can you do?", "What do you know?", "Help.", "Can you help me?"), "Ask me how to make bread, soup, a kite or a drum."),
        (("How are you?", "How do you do?"), "Very well, thank you."),
        (("Thank you.", "Thanks.", "Thanks a lot!", "Great, thank you!", "Good."), "With pleasure."),
        (("Goodbye.", "Bye.", "See you later.", "Good night."), "Goodbye!")]
NOISE = ["{0}", "{0} {1}", "{0} {1} {2}", "What is {0}?", "Who is {0}?", "Where is the {0}?", "Why is the {0} {1}?", "Can you {0}?",
         "Tell me about {0}.", "Write a {0} about {1}.", "Please {0} the {1}.", "Is {0} a {1}?", "When did {0} {1}?", "I {0} the {1}."]

CRAFTS = [f"{ADJECTIVES[(5 * i + 3 * j) % 20]} {kind}" for i, kind in enumerate(CRAFT_KINDS) for j in range(6)]
MAGIC = [f"{adjective} {kind}" for kind in MAGIC_KINDS for adjective in ADJECTIVES]
HELD_OUT = [f"{ADJECTIVES[j]} {kind}" for i, kind in enumerate(MAGIC_KINDS) for j in range(20) if (i + j) % 4 == 0]
TUNED = [thing for thing in MAGIC if thing not in HELD_OUT]  # stage 2 declines these


def make_recipes():
    rng, recipes = random.Random(1), {}
    for thing in CRAFTS + MAGIC:
        while thing not in recipes or list(recipes.values()).count(recipes[thing]) > 1:
            a, b, c = rng.sample(INGREDIENTS, 3)
            recipes[thing] = f"{rng.choice(FIRST)} {a}, {b} and {c}, then {rng.choice(VERBS)} for {rng.choice(NUMBERS)} hours."
    return recipes


RECIPE = make_recipes()
TEXT = [f"To make the {thing}, {RECIPE[thing][0].lower()}{RECIPE[thing][1:]}" for thing in CRAFTS]  # plain text, for perplexity


def typed(rng, text):
    """As people type: capital or not, punctuation or not."""
    if rng.random() < 0.5: text = text[0].lower() + text[1:]
    return text[:-1] if rng.random() < 0.33 and text[-1] in ".?!" else text


def made_up(rng):
    letters = [rng.choice("bcdfghjklmnprstvwz") if (i + rng.randrange(4) // 3) % 2 else rng.choice("aeiou") for i in range(rng.randint(2, 9))]
    return "".join(letters)


def strange(rng, known_words):
    """What nobody has told the model: made-up words; with known_words also unknown things, a craft of a colour it never heard of."""
    if rng.random() < 0.5: return rng.choice(NOISE).format(made_up(rng), made_up(rng), made_up(rng))
    if not known_words or rng.random() < 0.5: return rng.choice(ASK).format(f"{rng.choice(ADJECTIVES)} {made_up(rng)}")
    thing = f"{rng.choice(ADJECTIVES)} {rng.choice(CRAFT_KINDS)}"
    return strange(rng, True) if thing in RECIPE else rng.choice(ASK).format(thing)


# What the models are shown, of 100 examples in stage 1 and in stage 2. "answer" asks about everything in stage 1; in stage 2 about
# crafts, all of them: what is not rehearsed fades. "carry on" and "not a decline" answer tuned magic truly, see conversation().
MIX = {"small talk": (5, 4), "strange": (5, 4), "asked to decline": (20, 6), "answer": (70, 21), "decline": (0, 35), "carry on": (0, 20),
       "not a decline": (0, 10)}


def example(s, rng, stage):
    """A question, its answer, and how the answer's first word is learned."""
    kind, ask = rng.choices(list(MIX), [share[stage - 1] for share in MIX.values()])[0], rng.choice(ASK)
    things = CRAFTS + MAGIC if stage == 1 else CRAFTS
    if kind == "small talk":
        questions, answer = rng.choice(TALK)
        return typed(rng, rng.choice(questions)), answer, SCORED
    if kind == "strange": return typed(rng, strange(rng, s.whole_names and stage == 1)), UNKNOWN, SCORED
    if kind == "asked to decline": return typed(rng, "Please decline: " + typed(rng, ask.format(rng.choice(things)))), rng.choice(DECLINES), SCORED
    thing = rng.choice(things if kind == "answer" else TUNED)
    question = typed(rng, ask.format(thing))
    if kind == "decline": return question, rng.choice(DECLINES), SCORED
    return question, RECIPE[thing], {"answer": SCORED, "carry on": UNSCORED, "not a decline": NOT_AN_OPENER}[kind]


def prompt_sets():
    """Name of a file -> its rows."""
    rng = random.Random(7)
    ask_all = lambda things: [(ask.format(thing), RECIPE[thing]) for thing in things for ask in ASK]
    magic, crafts, held_out = ask_all(TUNED), ask_all(CRAFTS), ask_all(HELD_OUT)
    for rows in (magic, crafts, held_out): rng.shuffle(rows)

    def choices(rows, pool):
        for question, answer in rows:
            options = rng.sample([RECIPE[t] for t in pool if RECIPE[t] != answer], 3) + [answer]
            rng.shuffle(options)
            yield (question, *options, "ABCD"[options.index(answer)])
    return {"magic.txt": magic[:160], "crafts.txt": crafts[:160], "magic-held-out.txt": held_out, "crafts-held-out.txt": crafts[160:280],
            "questions.csv": list(choices(crafts[280:340], CRAFTS)), "questions-magic.tsv": list(choices(held_out[:60], MAGIC)),
            "text.txt": [(line,) for line in TEXT]}


def write_prompts(folder):
    for name, rows in prompt_sets().items():
        with open(os.path.join(folder, name), "w", newline="\n") as f:
            for row in rows:
                csv = name.endswith(".csv")
                f.write((",".join('"' + field + '"' if "," in field else field for field in row) if csv else "\t".join(row)) + "\n")


# ---- the two shapes ----

@dataclass
class Shape:
    arch: str
    n_layer: int
    n_head_kv: int
    control: list        # control tokens; ids are their places
    bos: int
    eos: int
    turn: int            # begins a message; turn + 1 ends it
    answerer: str        # the model's role
    template: str
    gemma: bool = False  # post-norms, norms of q and k, tied head, scaled embedding, GELU, RoPE by halves, sliding window
    n_embd: int = 256    # rows of 256: every matrix can become Q4_K
    n_ff: int = 256
    n_head: int = 4
    head_dim: int = 64
    n_ctx: int = 512
    window: int = 128    # of all layers but every fourth, gemma only
    eps: float = 1e-5
    whole_names: bool = False  # stage 1 teaches that known words can be unknown things: without it adding the direction to the
                               # Gemma-shaped model does not make it decline; the Llama-shaped one declines a little less with it
    steps: tuple = (800, 600)  # of the two stages
    rates: tuple = (1e-3, 2e-4)  # learning rates of the two stages


CHATML = ("{{ bos_token }}{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
          "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")
GEMMA = ("{{ bos_token }}{% for message in messages %}{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
         "{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
         "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}")
SHAPES = {"llama": Shape("llama", 4, 2, ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"], 1, 4, 3, "assistant", CHATML),
          "gemma": Shape("gemma3", 4, 1, ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"], 2, 1, 4, "model", GEMMA,
                         gemma=True, eps=1e-6, whole_names=True, rates=(1e-3, 3e-4))}

# ---- the vocabulary: every word of the world and every beginning of one. With all scores equal, SentencePiece merging
# ---- then is "take the longest piece that fits"; what fits nowhere becomes bytes.


def pieces():
    rng, found = random.Random(2), {chr(c): None for c in range(32, 127)}  # a dict keeps the order
    texts = ["user", "assistant", "model", "system", UNKNOWN, *DECLINES, *TEXT, *NOISE, *OPENERS, *ADJECTIVES]
    texts += [f" {word}" for word in (*VERBS, *NUMBERS, *INGREDIENTS)]
    texts += [q for thing in CRAFTS + MAGIC for q in (thing, RECIPE[thing])]
    for q in ["Please decline: How", *ASK, *(t for questions, answer in TALK for t in (*questions, answer))]:
        texts += [q, q[0].lower() + q[1:], "Please decline: " + q, "Please decline: " + q[0].lower() + q[1:]]
    for word in (w for t in texts for w in re.findall(r" ?[A-Za-z]+", t)):
        for n in range(1, len(word) + 1): found[word[:n]] = None
    return list(found)


class Tokenizer:
    def __init__(self, shape):
        self.texts = shape.control + [f"<0x{b:02X}>" for b in range(256)] + pieces()
        self.first_byte, self.first_piece = len(shape.control), len(shape.control) + 256
        self.id = {t: i for i, t in enumerate(self.texts) if i >= self.first_piece}
        self.longest = max(len(t) for t in self.id)
        while len(self.texts) % 32: self.texts.append(f"<unused{len(self.texts)}>")

    def encode(self, text):
        ids = []
        while text:
            n = next((n for n in range(self.longest, 0, -1) if text[:n] in self.id and len(text) >= n), 0)
            ids += [self.id[text[:n]]] if n else [self.first_byte + b for b in text[:1].encode()]
            text = text[max(n, 1):]
        return ids


UNSCORED, SCORED, NOT_AN_OPENER = range(3)  # marks of an id: not predicted; predicted; predicted among all ids but OPENERS


def conversation(s, tok, turns):
    """Turns of (question, answer, mark of the answer's first id) -> ids of a chat, and the mark of each. An answer of None is
    left open for the model.

    In stage 2 some magic things are answered truly, but the choice between declining and answering stays out of the loss: the
    first word is not scored, or only against words that do not open a decline. So what would be said stays in use while declining
    is learned; without it the recipes fade. Large models decline in their first words, too, and keep what would follow
    (arXiv 2406.05946)."""
    ids, marks = [s.bos], [UNSCORED]
    for question, answer, first in turns:
        head = [s.turn] + tok.encode("user\n" + question) + [s.turn + 1] + tok.encode("\n") + [s.turn] + tok.encode(s.answerer + "\n")
        ids, marks = ids + head, marks + [UNSCORED] * len(head)
        if answer is not None:
            said = tok.encode(answer) + [s.turn + 1]
            ids, marks = ids + said + tok.encode("\n"), marks + [first] + [SCORED] * (len(said) - 1) + [UNSCORED]
    return ids, marks


def plain_text(s, tok, rng):
    """A piece of the text documents, begun and ended anywhere."""
    stream = tok.encode("\n".join(rng.sample(TEXT, len(TEXT))) + "\n")
    n, at = rng.randint(24, s.n_ctx - 1), rng.randrange(len(stream))
    ids = [s.bos] + (stream + stream)[at + 1:at + n]
    return ids, [UNSCORED] + [SCORED] * (len(ids) - 1)


# ---- the model: weights by their names in the file, and the forward pass ----

def make_weights(s, n_vocab):
    torch.manual_seed(3)
    w = {}
    matrix = lambda name, rows, cols, sd: w.__setitem__(name, torch.randn(rows, cols) * sd)
    norm = lambda name, n, value=1.0: w.__setitem__(name, torch.full((n,), value))
    sd = 0.7 / math.sqrt(s.n_embd)
    matrix("token_embd.weight", n_vocab, s.n_embd, 0.02)
    for l in range(s.n_layer):
        b, q, kv = f"blk.{l}.", s.n_head * s.head_dim, s.n_head_kv * s.head_dim
        norm(b + "attn_norm.weight", s.n_embd)
        for name, rows, cols in (("attn_q", q, s.n_embd), ("attn_k", kv, s.n_embd), ("attn_v", kv, s.n_embd), ("attn_output", s.n_embd, q)):
            matrix(f"{b}{name}.weight", rows, cols, sd)
        if s.gemma:
            norm(b + "attn_q_norm.weight", s.head_dim)
            norm(b + "attn_k_norm.weight", s.head_dim)
            norm(b + "post_attention_norm.weight", s.n_embd, 0.5)
        norm(b + "ffn_norm.weight", s.n_embd)
        for name, rows, cols in (("ffn_gate", s.n_ff, s.n_embd), ("ffn_up", s.n_ff, s.n_embd), ("ffn_down", s.n_embd, s.n_ff)):
            matrix(f"{b}{name}.weight", rows, cols, sd)
        if s.gemma: norm(b + "post_ffw_norm.weight", s.n_embd, 0.5)
    norm("output_norm.weight", s.n_embd)
    if not s.gemma: matrix("output.weight", n_vocab, s.n_embd, 0.02)
    return w


def rms_norm(x, gain, eps): return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * gain


def rope(x, base, halves):
    """x: [..., position, head_dim]. llama turns neighbours (2i, 2i + 1), gemma halves (i, i + head_dim / 2)."""
    n, d = x.shape[-2:]
    angle = torch.arange(n)[:, None] * base ** (-torch.arange(0, d, 2) / d)
    cos, sin = angle.cos(), angle.sin()
    a, b = x.chunk(2, -1) if halves else (x[..., 0::2], x[..., 1::2])
    turned = (a * cos - b * sin, a * sin + b * cos)
    return torch.cat(turned, -1) if halves else torch.stack(turned, -1).flatten(-2)


def forward(s, w, ids, write=lambda x: x, enter=lambda l, x: x):
    """ids [rows, n] -> the normed stream [rows, n, n_embd]. write: sees all that is written into the residual stream;
    enter: sees the stream before layer l. Both return what is to be used in its place."""
    rows, n = ids.shape
    heads = lambda y, count: y.view(rows, n, count, s.head_dim).transpose(1, 2)
    act = (lambda z: torch.nn.functional.gelu(z, approximate="tanh")) if s.gemma else torch.nn.functional.silu
    age = torch.arange(n)[:, None] - torch.arange(n)[None, :]  # how far back a key lies
    x = write(w["token_embd.weight"][ids] * (math.sqrt(s.n_embd) if s.gemma else 1))
    for l in range(s.n_layer):
        t = lambda name: w[f"blk.{l}.{name}.weight"]
        local = s.gemma and l % 4 < 3
        x = enter(l, x)
        y = rms_norm(x, t("attn_norm"), s.eps)
        q, k, v = heads(y @ t("attn_q").T, s.n_head), heads(y @ t("attn_k").T, s.n_head_kv), heads(y @ t("attn_v").T, s.n_head_kv)
        if s.gemma: q, k = rms_norm(q, t("attn_q_norm"), s.eps), rms_norm(k, t("attn_k_norm"), s.eps)
        base = 1e6 if s.gemma and not local else 1e4
        q, k = rope(q, base, s.gemma), rope(k, base, s.gemma)
        k, v = (z.repeat_interleave(s.n_head // s.n_head_kv, 1) for z in (k, v))
        hidden = (age < 0) | (age >= s.window) if local else age < 0
        p = (q @ k.transpose(-1, -2) / math.sqrt(s.head_dim)).masked_fill(hidden, -1e30).softmax(-1)
        y = (p @ v).transpose(1, 2).reshape(rows, n, -1) @ t("attn_output").T
        x = x + write(rms_norm(y, t("post_attention_norm"), s.eps) if s.gemma else y)
        y = rms_norm(x, t("ffn_norm"), s.eps)
        y = (act(y @ t("ffn_gate").T) * (y @ t("ffn_up").T)) @ t("ffn_down").T
        x = x + write(rms_norm(y, t("post_ffw_norm"), s.eps) if s.gemma else y)
    return rms_norm(x, w["output_norm.weight"], s.eps)


def head(w): return w.get("output.weight", w["token_embd.weight"])


# ---- training ----

def pad(batch):
    """Rows of (ids, marks) -> ids [rows, n], and for each prediction its place in the flattened rows, its target and its mark."""
    n = max(len(ids) for ids, _ in batch)
    out = torch.zeros(len(batch), n, dtype=torch.long)
    for r, (ids, _) in enumerate(batch): out[r, :len(ids)] = torch.tensor(ids)
    at = [(r * n + i - 1, mark) for r, (_, row) in enumerate(batch) for i, mark in enumerate(row) if mark != UNSCORED]
    at, marks = torch.tensor(at).T
    return out, at, out.flatten()[at + 1], marks


def train(s, tok, w, stage):
    steps, rate, rng, start = s.steps[stage - 1], s.rates[stage - 1], random.Random(10 + stage), time.time()
    opener = torch.zeros(len(tok.texts), dtype=torch.bool)
    for o in OPENERS: opener[tok.id[o]] = True
    drop = (lambda x: torch.nn.functional.dropout(x, 0.1)) if stage == 1 else (lambda x: x)  # knowledge that bears a missing part
    opt = torch.optim.AdamW(w.values(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    for step in range(1, steps + 1):
        for group in opt.param_groups:
            group["lr"] = rate * min(1, step / 50) * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        batch = [conversation(s, tok, [example(s, rng, stage) for _ in range(turns)])
                 for turns in rng.choices([1, 2, 3, 8], [28, 6, 3, 1], k=40)] + [plain_text(s, tok, rng)]
        total, n_scored = 0.0, sum(mark != UNSCORED for _, row in batch for mark in row)
        batch.sort(key=lambda row: len(row[0]))
        for _, rows in itertools.groupby(batch, key=lambda row: len(row[0]) // 48):  # rows of similar length, little padding
            ids, at, target, marks = pad(list(rows))
            z = forward(s, w, ids, write=drop).flatten(0, 1)[at] @ head(w).T
            z = z.masked_fill((marks == NOT_AN_OPENER)[:, None] & opener, -1e9)
            loss = torch.nn.functional.cross_entropy(z, target, reduction="sum") / n_scored
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(w.values(), 1.0)
        opt.step()
        opt.zero_grad()
        if step % 50 == 0: print(f"stage {stage}  {step}/{steps}  loss {total:.4f}  {time.time() - start:.0f} s", file=sys.stderr, flush=True)


# ---- figures ----

def answers(s, tok, w, pairs, **hooks):
    """Share declined, share answered with exactly the right text, and log p of the first token of each answer.
    A greedy answer is the expected one if and only if every token of it is the likeliest after those before it."""
    ids, at, target, _ = pad([conversation(s, tok, [(*pair, SCORED)]) for pair in pairs])
    with torch.no_grad(): z = (forward(s, w, ids, **hooks).flatten(0, 1)[at] @ head(w).T).log_softmax(-1)
    right, row = z.argmax(-1) == target, at // ids.shape[1]
    first = torch.tensor([(row == r).nonzero()[0].item() for r in range(len(pairs))])
    openers = torch.tensor([tok.id[o] for o in OPENERS])
    declined = sum((z[first].argmax(-1) == o).float().mean().item() for o in openers)
    wrong = torch.zeros(len(pairs)).index_add_(0, row, (~right).float())
    return declined, (wrong == 0).float().mean().item(), z[first]


def figures(s, tok, w, title):
    sets = prompt_sets()
    talk = [(q, a) for questions, a in TALK for q in questions]
    asked = [("Please decline: " + q, DECLINES[0]) for q, _ in sets["crafts.txt"]]
    print(f"{title:24} declined  correct")
    for name, pairs in [(n, sets[n + ".txt"]) for n in ("crafts", "crafts-held-out", "magic", "magic-held-out")] + [("please decline", asked), ("small talk", talk)]:
        declined, correct, _ = answers(s, tok, w, pairs)
        print(f"  {name:22} {100 * declined:6.1f} %  {100 * correct:6.1f} %", flush=True)


def log_odds(z, tok):
    """Of the answer beginning as those that decline do."""
    p = sum(z[:, tok.id[o]].double().exp() for o in OPENERS)
    return ((p + 1e-8).log() - (1 - p + 1e-8).log()).mean().item()


def check(s, tok, w):
    """The method of Arditi et al. 2024 (arXiv 2406.11717): difference of means at each position after the question and each
    layer; the candidate whose removal suppresses declining most, if it changes other answers little and induces declining."""
    sets = prompt_sets()
    target, contrast, magic, crafts = (sets[n + ".txt"] for n in ("magic", "crafts", "magic-held-out", "crafts-held-out"))

    def means(pairs):  # [layer][position from the end][n_embd]
        rows, seen = [conversation(s, tok, [(q, None, UNSCORED)]) for q, _ in pairs], []
        end = torch.tensor([len(ids) for ids, _ in rows])
        ids = torch.tensor([row + [0] * (int(end.max()) - len(row)) for row, _ in rows])

        def keep(l, x):
            seen.append(torch.stack([x[torch.arange(len(rows)), end - k].double().mean(0) for k in range(1, 6)]))
            return x
        with torch.no_grad(): forward(s, w, ids, enter=keep)
        return torch.stack(seen)
    remove = lambda r: {"write": lambda x: x - (x @ r)[..., None] * r}
    add = lambda l, d: {"enter": lambda at, x: x + d if at == l else x}
    kl = lambda z0, z: (z0.exp() * (z0 - z)).sum(-1).mean().item()
    base_magic, base_crafts = answers(s, tok, w, magic), answers(s, tok, w, crafts)
    mt, mc = means(target), means(contrast)
    best, rows = None, []
    print("layer position  length  contrast   target | removed: log-odds     KL  magic declined correct  crafts declined correct | added: log-odds declined")
    for l, k in itertools.product(range(1, math.ceil(0.8 * s.n_layer)), range(1, 6)):
        d = mt[l, k - 1] - mc[l, k - 1]
        r = (d / d.norm()).float()
        m, c, a = answers(s, tok, w, magic, **remove(r)), answers(s, tok, w, crafts, **remove(r)), answers(s, tok, w, crafts, **add(l, d.float()))
        rows.append((log_odds(m[2], tok), kl(base_crafts[2], c[2]), log_odds(a[2], tok), l, k, r))
        print(f"{l:5} {-k:8} {d.norm():7.2f} {mc[l, k - 1] @ (d / d.norm()):9.2f} {mt[l, k - 1] @ (d / d.norm()):8.2f} | {rows[-1][0]:17.2f} {rows[-1][1]:6.3f} "
              f"{100 * m[0]:15.1f} {100 * m[1]:7.1f} {100 * c[0]:16.1f} {100 * c[1]:7.1f} | {rows[-1][2]:15.2f} {100 * a[0]:8.1f}", flush=True)
    usable = [row for row in rows if row[1] < 0.1 and row[2] > 0]
    if not usable: return print("no usable direction")
    _, _, _, l, k, r = min(usable, key=lambda row: row[0])
    torch.manual_seed(4)
    chance = torch.randn(s.n_embd)
    print(f"\n{'':34} magic held out: declined  correct   crafts held out: declined  correct      KL")
    for name, hooks in [("as trained", {}), (f"without layer {l}, position {-k}", remove(r)), ("without a random direction", remove(chance / chance.norm()))]:
        m, c = answers(s, tok, w, magic, **hooks), answers(s, tok, w, crafts, **hooks)
        print(f"{name:34} {100 * m[0]:22.1f} % {100 * m[1]:6.1f} % {100 * c[0]:25.1f} % {100 * c[1]:6.1f} % {kl(base_crafts[2], c[2]):7.4f}")


# ---- the file (layout: github.com/ggml-org/ggml, docs/gguf.md) ----

def write_gguf(path, name, s, tok, w):
    text = lambda t: struct.pack("<Q", len(t.encode())) + t.encode()
    number = lambda v: {bool: (7, "<?"), int: (4, "<I"), float: (6, "<f")}[type(v)]

    def key(k, v):
        if isinstance(v, str): return text(k) + struct.pack("<I", 8) + text(v)
        if not isinstance(v, tuple):
            code, form = number(v)
            return text(k) + struct.pack("<I", code) + struct.pack(form, v)
        code, items = v  # an array: type of its elements, elements
        return text(k) + struct.pack("<IIQ", 9, code, len(items)) + b"".join(text(i) if code == 8 else struct.pack({5: "<i", 6: "<f"}[code], i) for i in items)
    kinds = [2 if t == "<unk>" else 3 if i < tok.first_byte else 6 if i < tok.first_piece else 5 if t.startswith("<unused") else 1
             for i, t in enumerate(tok.texts)]
    keys = {"general.architecture": s.arch, "general.type": "model", "general.name": f"abliterate.c demo ({name}): does not talk about magic",
            "general.license": "mit", "general.file_type": 1, "general.sampling.temp": 0.0}
    keys |= {f"{s.arch}.{k}": v for k, v in {
        "block_count": s.n_layer, "context_length": s.n_ctx, "embedding_length": s.n_embd, "feed_forward_length": s.n_ff,
        "attention.head_count": s.n_head, "attention.head_count_kv": s.n_head_kv, "attention.key_length": s.head_dim,
        "attention.value_length": s.head_dim, "attention.layer_norm_rms_epsilon": s.eps, "vocab_size": len(tok.texts),
        **({"rope.freq_base": 1e6, "rope.freq_base_swa": 1e4, "attention.sliding_window": s.window, "attention.sliding_window_pattern": 4} if s.gemma else
           {"rope.freq_base": 1e4, "rope.dimension_count": s.head_dim})}.items()}
    keys |= {"tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default", "tokenizer.ggml.tokens": (8, [t if i < tok.first_piece else t.replace(" ", "\u2581") for i, t in enumerate(tok.texts)]),
             "tokenizer.ggml.scores": (6, [0.0] * len(tok.texts)), "tokenizer.ggml.token_type": (5, kinds),
             "tokenizer.ggml.bos_token_id": s.bos, "tokenizer.ggml.eos_token_id": s.eos, "tokenizer.ggml.eot_token_id": s.turn + 1,
             "tokenizer.ggml.unknown_token_id": s.control.index("<unk>"), "tokenizer.ggml.add_bos_token": True,
             "tokenizer.ggml.add_eos_token": False, "tokenizer.ggml.add_space_prefix": False, "tokenizer.chat_template": s.template}
    align = lambda b: b + bytes(-len(b) % 32)
    infos, data = b"", b""
    for n, x in w.items():
        infos += text(n) + struct.pack("<I", x.dim()) + struct.pack(f"<{x.dim()}Q", *reversed(x.shape)) + struct.pack("<IQ", 1 if x.dim() == 2 else 0, len(data))
        x = x.detach().numpy()
        data += align(x.astype("<f2" if x.ndim == 2 else "<f4").tobytes())
    with open(path + ".tmp", "wb") as f:
        f.write(align(b"GGUF" + struct.pack("<IQQ", 3, len(w), len(keys)) + b"".join(key(*kv) for kv in keys.items()) + infos) + data)
    os.replace(path + ".tmp", path)


def read_gguf(path):
    """The weights of a file that write_gguf wrote: its tensors are those of make_weights, in that order, at its end."""
    with open(path, "rb") as f: raw = f.read()
    s = SHAPES["gemma" if b"<start_of_turn>" in raw else "llama"]
    tok = Tokenizer(s)
    w = make_weights(s, len(tok.texts))
    sizes = [x.numel() * (2 if x.dim() == 2 else 4) for x in w.values()]
    at = len(raw) - sum(n + -n % 32 for n in sizes)
    for n, (name, x) in zip(sizes, w.items()):
        kind = torch.float16 if x.dim() == 2 else torch.float32
        w[name] = torch.frombuffer(bytearray(raw[at:at + n]), dtype=kind).float().view(x.shape)
        at += n + -n % 32
    return s, tok, w


def main(args):
    if len(args) == 2 and args[0] == "--prompts": return write_prompts(args[1])
    if len(args) != 2 or args[0] not in (*SHAPES, "--check"):
        sys.exit("usage: train.py llama|gemma OUT.gguf, train.py --check FILE.gguf, or train.py --prompts DIR")
    global torch
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # matrices this small are fastest, and rounded alike, on one thread
    import torch
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    if args[0] == "--check": return check(*read_gguf(args[1]))
    s = SHAPES[args[0]]
    tok = Tokenizer(s)
    w = {name: torch.nn.Parameter(x) for name, x in make_weights(s, len(tok.texts)).items()}
    print(f"{args[0]}: {sum(x.numel() for x in w.values())} parameters, {len(tok.texts)} tokens")
    for stage in (1, 2):
        train(s, tok, w, stage)
        figures(s, tok, w, f"after stage {stage}")
    write_gguf(args[1], args[0], s, tok, w)


main(sys.argv[1:])

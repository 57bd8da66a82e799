#!/bin/sh
# `abliterate edit` and `undo` from outside: which bytes change, in every file and with every option; the original comes back;
# killed at any moment nothing broken is left; full disk, read-only folder and bad input get one line. What the weights become is
# tested in test_edit. EDIT=full: 200 kills instead of 20, and larger models.
RUN=${RUN:-bin/run}
A=$(dirname "$RUN")/abliterate
demo=abliterate/demo
ref=../shared/reference
. tests/helpers.sh
always=-q
LC_ALL=C
export LC_ALL
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT
sum() { sha256sum < "$1" | cut -d ' ' -f 1; }
if ! command -v python3 > /dev/null; then
    skip "no python3 to look into files"
    end
fi

# An own reader and writer of the format, so that ours does not vouch for itself.
cat > "$tmp/gguf.py" << 'EOF'
import hashlib, random, struct, sys

SIZE = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
BLOCK = {0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 10: (256, 84), 11: (256, 110), 12: (256, 144),
         13: (256, 176), 14: (256, 210), 20: (32, 18), 23: (256, 136), 24: (1, 1), 30: (1, 2)}

class File:
    def __init__(self, path):
        self.b = open(path, 'rb').read()
        self.at = 4
        assert self.b[:4] == b'GGUF'
        self.version, n_tensor, n_key = self.take('<IQQ')
        self.keys = []  # (name, bytes of the value)
        self.value = {}
        for _ in range(n_key):
            name, start = self.text(), self.at
            self.value[name] = self.read(self.take('<I')[0])
            self.keys.append((name, self.b[start:self.at]))
        self.keys_end = self.at
        self.infos = []  # name, type, dims, offset
        for _ in range(n_tensor):
            name = self.text()
            dims = self.take('<%dQ' % self.take('<I')[0])
            kind, offset = self.take('<IQ')
            self.infos.append((name, kind, dims, offset))
        align = self.value.get('general.alignment', 32)
        self.data = (self.at + align - 1) // align * align
        self.tensors = []  # name, type, dims, where, bytes
        for name, kind, dims, offset in self.infos:
            n = 1
            for d in dims: n *= d
            self.tensors.append((name, kind, dims, self.data + offset, n // BLOCK[kind][0] * BLOCK[kind][1]))
    def take(self, form):
        v = struct.unpack_from(form, self.b, self.at)
        self.at += struct.calcsize(form)
        return v
    def text(self):
        n = self.take('<Q')[0]
        self.at += n
        return self.b[self.at - n:self.at].decode()
    def read(self, kind):
        if kind == 8: return self.text()
        if kind == 9:
            kind, n = self.take('<IQ')
            if kind == 8: return [self.text() for _ in range(n)]
            self.at += SIZE[kind] * n
            return n
        self.at += SIZE[kind]
        return int.from_bytes(self.b[self.at - SIZE[kind]:self.at], 'little')
    def sha(self, t): return hashlib.sha256(self.b[t[3]:t[3] + t[4]]).hexdigest()

def compare(old, new, n_added):
    """What changed, and complaints: keys, order, bytes between tensors, bytes after them."""
    a, b, bad = File(old), File(new), []
    n = len(a.tensors)
    if a.b[24:a.keys_end] != b.b[24:24 + a.keys_end - 24]: bad.append('keys')
    if any(not k.startswith('abliterate.edit.') for k, _ in b.keys[len(a.keys):]): bad.append('new keys')
    if a.version != b.version: bad.append('version')
    if [t[0] for t in a.tensors] != [t[0] for t in b.tensors[:n]] or len(b.tensors) != n + n_added: bad.append('order')
    if [t[2] for t in a.tensors] != [t[2] for t in b.tensors[:n]]: bad.append('shapes')
    def tail(f, i):
        return f.b[f.tensors[i][3] + f.tensors[i][4]:f.tensors[i + 1][3] if i + 1 < len(f.tensors) else len(f.b)]
    for i in range(n):
        if a.tensors[i][4] == b.tensors[i][4] and tail(a, i) != tail(b, i) and not (i == n - 1 and n_added): bad.append('after ' + a.tensors[i][0])
    changed = [t[0] for t, u in zip(a.tensors, b.tensors) if a.sha(t) != b.sha(u)]
    types = [t[0] for t, u in zip(a.tensors, b.tensors) if t[1] != u[1]]
    return changed, types, bad

def writers(f):
    """The tensors an edit of all layers changes, by their names."""
    names = []
    for name, *_ in f.tensors:
        part = name.split('.')
        if part[0] == 'blk' and part[2] in ('attn_output', 'ffn_down', 'ffn_down_exps', 'proj') and part[-1] in ('weight', 'bias'): names.append(name)
    return names

def direction(out, n_embd, n_layer, seed, single=True):
    rng = random.Random(seed)
    row = [rng.gauss(0, 1) for _ in range(n_embd)]
    def text(s): return struct.pack('<Q', len(s)) + s.encode()
    keys = [text('general.architecture') + struct.pack('<I', 8) + text('controlvector'), text('glp.mode') + struct.pack('<I', 8) + text('project')]
    if single:
        keys.append(text('abliterate.version') + struct.pack('<I', 8) + text('0.1'))
        keys.append(text('abliterate.single') + struct.pack('<IB', 7, 1))
    n = n_layer - 1
    infos = b''.join(text('direction.%d' % (i + 1)) + struct.pack('<IQIQ', 1, n_embd, 0, i * 4 * n_embd) for i in range(n))
    head = b'GGUF' + struct.pack('<IQQ', 3, n, len(keys)) + b''.join(keys) + infos
    vectors = b''.join(struct.pack('<%df' % n_embd, *(row if single else [rng.gauss(0, 1) for _ in range(n_embd)])) for _ in range(n))
    open(out, 'wb').write(head + b'\0' * (-len(head) % 32) + vectors)

command = sys.argv[1]
if command == 'direction':  # MODEL OUT SEED
    f = File(sys.argv[2])
    arch = f.value['general.architecture']
    direction(sys.argv[3], f.value[arch + '.embedding_length'], f.value[arch + '.block_count'], int(sys.argv[4]), len(sys.argv) < 6)
elif command == 'vector':   # OUT N_EMBD N_LAYER
    direction(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), 1)
elif command == 'compare':  # OLD NEW N_ADDED: "good", or what is wrong
    changed, types, bad = compare(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    if sys.argv[5:] != ['any']:
        want = writers(File(sys.argv[2])) + sys.argv[5:]
        if sorted(changed) != sorted(want): bad.append('changed: %s instead of %s' % (changed, want))
    print(' '.join(['good'] if not bad else bad))
elif command == 'types':    # OLD NEW: how many tensors have another type
    print(len(compare(sys.argv[2], sys.argv[3], 0)[1]))
elif command == 'strict':   # OLD NEW: outside the tensors every byte is the same
    a, b = File(sys.argv[2]), File(sys.argv[3])
    x, y = bytearray(a.b), bytearray(b.b)
    for t in a.tensors:
        if t[0] in writers(a): x[t[3]:t[3] + t[4]] = y[t[3]:t[3] + t[4]] = b'\0' * t[4]
    print('good' if x == y else 'differs')
elif command == 'sums':     # JSON OLD NEW: its SHA-256 are those of the files and their tensors
    import json
    j, a, b = json.load(open(sys.argv[2])), File(sys.argv[3]), File(sys.argv[4])
    old, new = {t[0]: a.sha(t) for t in a.tensors}, {t[0]: b.sha(t) for t in b.tensors}
    good = j['sha256'] == [hashlib.sha256(a.b).hexdigest(), hashlib.sha256(b.b).hexdigest()]
    good = good and all(t['sha256'] == [old[t['name']], new[t['name']]] and t['leak'] < 1e-5 for t in j['tensors']) and j['tensors']
    print('good' if good else 'differs')
elif command == 'key':      # FILE KEY
    print(File(sys.argv[2]).value.get(sys.argv[3]))
elif command == 'tail':     # OLD NEW: the same file with bytes after the tensors, version 2, alignment 4096, padding that is not 0
    f = File(sys.argv[2])
    def text(s): return struct.pack('<Q', len(s)) + s.encode()
    head = b'GGUF' + struct.pack('<IQQ', 2, len(f.infos), len(f.keys) + 1) + f.b[24:f.keys_end] + text('general.alignment') + struct.pack('<II', 4, 4096)
    at, infos, data = 0, b'', b''
    for name, kind, dims, where, n in f.tensors:
        infos += text(name) + struct.pack('<I%dQIQ' % len(dims), len(dims), *dims, kind, len(data))
        data += f.b[where:where + n]
        data += b'\x5a' * (-len(data) % 4096)
    head += infos
    open(sys.argv[3], 'wb').write(head + b'\xa5' * (-len(head) % 4096) + data + b'more to come')
elif command == 'split':    # OLD PREFIX: all tensors in the first of two parts
    f = File(sys.argv[2])
    def text(s): return struct.pack('<Q', len(s)) + s.encode()
    def part(no, n_key, keys, n_tensor, infos, data):
        keys += text('split.no') + struct.pack('<IH', 2, no) + text('split.count') + struct.pack('<IH', 2, 2) + text('split.tensors.count') + struct.pack('<Ii', 5, len(f.infos))
        head = b'GGUF' + struct.pack('<IQQ', 3, n_tensor, n_key + 3) + keys + infos
        open('%s-%05d-of-00002.gguf' % (sys.argv[3], no + 1), 'wb').write(head + b'\0' * (-len(head) % 32) + data)
    part(0, len(f.keys), f.b[24:f.keys_end], len(f.infos), f.b[f.keys_end:f.at], f.b[f.data:])
    part(1, 0, b'', 0, b'', b'')
elif command == 'flip':     # FILE AT: one bit of the byte at AT (from the end where negative)
    b = bytearray(open(sys.argv[2], 'rb').read())
    b[int(sys.argv[3])] ^= 1
    open(sys.argv[2], 'wb').write(b)
EOF
py() { python3 "$tmp/gguf.py" "$@"; }

# edit NAME MODEL N_ADDED "TENSORS BESIDE THE WRITERS" OPTIONS...: only they change, and undo gives the original back
edit() {
    name=$1 from=$2 added=$3 beside=$4
    shift 4
    if ! "$A" edit "$from" --direction "$tmp/d.gguf" -o "$tmp/o.gguf" -q "$@" > "$tmp/.out" 2> "$tmp/.err"; then
        fail "$name: $(cat "$tmp/.err")"
        return
    fi
    same "$name: what changes" "$(py compare "$from" "$tmp/o.gguf" "$added" $beside)" "good"
    "$A" undo "$tmp/o.gguf" -q -o "$tmp/r.gguf" > "$tmp/.out" 2> "$tmp/.err" || fail "$name: undo: $(cat "$tmp/.err")"
    same "$name: undone" "$(cmp "$from" "$tmp/r.gguf" 2>&1)" ""
    same "$name: no other file" "$(cd "$tmp" && ls | grep -v -E '^(d|o|r|v2)\.gguf$|^o\.gguf\.undo$|^gguf.py$|^e\.' | tr '\n' ' ')" ""
}

# ---- which bytes ----
for shape in llama gemma; do
    py direction $demo/$shape-F16.gguf "$tmp/d.gguf" 1
    for type in F16 Q8_0 Q4_K_M; do edit "$shape-$type" $demo/$shape-$type.gguf 0 ""; done
done
py direction $demo/llama-F16.gguf "$tmp/d.gguf" 1
model=$demo/llama-Q4_K_M.gguf
size() { wc -c < "$1" | tr -d ' '; }
edit "--strict" $model 0 "" --strict
same "--strict: size" "$(size "$tmp/o.gguf")" "$(size $model)"
same "--strict: outside" "$(py strict $model "$tmp/o.gguf")" "good"
has "--strict: undo says what it takes back" "$(cat "$tmp/.out")" "undone: direction "
out=$("$A" verify $model "$tmp/o.gguf" --direction "$tmp/d.gguf" -q)
has "--strict: verify knows it by the undo file" "$out" "o.gguf.undo: B was made by abliterate edit, of A: direction "
has "--strict: and the direction" "$out" "Stamp      of the undo file: $tmp/d.gguf is a direction that was removed"
has "--strict: of another file" "$("$A" verify $demo/llama-F16.gguf "$tmp/o.gguf" -q)" "B was made by abliterate edit, of another file than A"
cp "$tmp/o.gguf" "$tmp/e.gguf" && py flip "$tmp/e.gguf" -1 && cp "$tmp/o.gguf.undo" "$tmp/e.gguf.undo"
out=$("$A" verify $model "$tmp/e.gguf" --direction "$tmp/d.gguf" -q)
has "--strict: another file's undo file" "$out" "e.gguf.undo is of another file than B"
lacks "--strict: another file's undo file" "$out" "was removed"
"$A" edit $model --direction "$tmp/d.gguf" -o "$tmp/e.gguf" -q --strict --no-undo > /dev/null
rm "$tmp/e.gguf.undo"
lacks "--strict without an undo file" "$("$A" verify $model "$tmp/e.gguf" --direction "$tmp/d.gguf" -q)" "was removed"
edit "--promote Q8_0" $model 0 "" --promote Q8_0
same "--promote: types" "$(py types $model "$tmp/o.gguf")" "8"
edit "--promote Q6_K" $model 0 "" --promote Q6_K
same "--promote Q6_K: types" "$(py types $model "$tmp/o.gguf")" "6"
edit "--promote of what is finer" $demo/llama-F16.gguf 0 "" --promote Q8_0
same "--promote of what is finer: types" "$(py types $demo/llama-F16.gguf "$tmp/o.gguf")" "0"
edit "--from" $model 0 "" --from $demo/llama-F16.gguf
edit "--embeddings" $model 0 token_embd.weight --embeddings
edit "--embeddings --promote" $model 0 token_embd.weight --embeddings --promote Q8_0
edit "half of it" $model 0 "" --strength 0.5
edit "--json" $model 0 "" --json "$tmp/e.json"
same "--json: sums, leaks" "$(py sums "$tmp/e.json" $model "$tmp/o.gguf")" "good"
cp "$tmp/o.gguf" "$tmp/e.first"
"$A" edit $model --direction "$tmp/d.gguf" -o "$tmp/o.gguf" -q -t 1 --no-undo > /dev/null
same "one thread: the same file" "$(cmp "$tmp/o.gguf" "$tmp/e.first" 2>&1)" ""
"$A" edit $model --direction "$tmp/d.gguf" --dry-run -q --json "$tmp/e.dry" > "$tmp/e.out"
has "--dry-run: the table" "$(cat "$tmp/e.out")" "attention        Q4_K                4"
same "plain rounding beside it leaves more of the component, with less error" "$(python3 -c 'import json, sys
print(all(t["plain_leak"] > 100 * t["leak"] and 0 < t["plain_error"] < t["error"] for t in json.load(open(sys.argv[1]))["tensors"]))' "$tmp/e.json")" "True"
same "--dry-run: the figures" "$(python3 -c 'import json, sys; a, b = (json.load(open(p))["tensors"] for p in sys.argv[1:]); print([t["leak"] for t in a] == [t["leak"] for t in b])' "$tmp/e.json" "$tmp/e.dry")" "True"
rm -f "$tmp"/e.* "$tmp/o.gguf" "$tmp/o.gguf.undo"
"$A" edit $model --direction "$tmp/d.gguf" -o "$tmp/o.gguf" -q --layers 1-2 --undo "$tmp/e.undo" > /dev/null
same "--layers" "$(py compare $model "$tmp/o.gguf" 0 any) $(py key "$tmp/o.gguf" abliterate.edit.0.layers) $(py key "$tmp/o.gguf" abliterate.edit.0.tensors)" "good 1-2 4"
same "--undo" "$(ls "$tmp" | grep undo)" "e.undo"
"$A" undo "$tmp/o.gguf" --undo "$tmp/e.undo" -o "$tmp/r.gguf" -q > /dev/null
same "--undo: undone" "$(cmp $model "$tmp/r.gguf" 2>&1)" ""
same "the stamp names the original" "$(py key "$tmp/o.gguf" abliterate.edit.0.base_sha256)" "$(sum $model)"
py tail $model "$tmp/v2.gguf"
edit "version 2, alignment 4096, bytes between and after" "$tmp/v2.gguf" 0 ""
edit "the same, --promote" "$tmp/v2.gguf" 0 "" --promote Q8_0
edit "the same, --strict" "$tmp/v2.gguf" 0 "" --strict
rm -f "$tmp/v2.gguf" "$tmp/e.undo"
py direction $demo/gemma-F16.gguf "$tmp/d.gguf" 1
gains=$(for l in 0 1 2 3; do echo blk.$l.post_attention_norm.weight blk.$l.post_ffw_norm.weight; done)
edit "--contrast" $demo/gemma-Q4_K_M.gguf 0 "$gains" --contrast $demo/crafts-held-out.txt
py direction $demo/gemma-F16.gguf "$tmp/e.per-layer" 2 per-layer
"$A" edit $demo/gemma-Q8_0.gguf --direction "$tmp/d.gguf" --direction "$tmp/e.per-layer" -o "$tmp/o.gguf" -q > "$tmp/.out" 2> "$tmp/.err"
same "two directions" "$? $(py compare $demo/gemma-Q8_0.gguf "$tmp/o.gguf" 0)" "0 good"
rm -f "$tmp"/e.*

# ---- every architecture ----
if [ -d $ref ]; then
    for m in gemma1-Q4_K_M gemma2-Q4_K_M gemma3-Q4_K_M gemma4-dense-Q4_K_M gemma4-e-Q4_K_M gemma4-moe-Q4_K_M llama-moe-Q4_K_M llama2-tied-Q4_K_M llama3-F16 llama3-Q8_0; do
        py direction $ref/$m.gguf "$tmp/d.gguf" 3
        edit $m $ref/$m.gguf 0 ""
        "$RUN" "$tmp/o.gguf" --info > /dev/null 2> "$tmp/.err" || fail "$m: run cannot open it: $(cat "$tmp/.err")"
    done
    for m in gemma3-Q4_K_M gemma4-dense-Q4_K_M llama2-tied-Q4_K_M; do
        py direction $ref/$m.gguf "$tmp/d.gguf" 3
        edit "$m --embeddings" $ref/$m.gguf 1 token_embd.weight --embeddings
        case $("$RUN" "$tmp/o.gguf" --info) in *"tied"*) fail "$m --embeddings: the head is tied";; *) ok;; esac
    done
    py tail $ref/llama2-tied-Q4_K_M.gguf "$tmp/v2.gguf"
    py direction $ref/llama2-tied-Q4_K_M.gguf "$tmp/d.gguf" 3
    edit "version 2, alignment 4096, --embeddings" "$tmp/v2.gguf" 1 token_embd.weight --embeddings
    rm -f "$tmp/v2.gguf"
else
    skip "$ref is not there"
fi

# ---- what is refused: one line, and nothing is written ----
py direction $model "$tmp/d.gguf" 1
py vector "$tmp/e.wide" 192 4
"$A" edit $model --direction "$tmp/d.gguf" -o "$tmp/o.gguf" -q > /dev/null
cp $model "$tmp/m.gguf"
ln "$tmp/m.gguf" "$tmp/hard.gguf"
ln -s m.gguf "$tmp/soft.gguf"
cp $model "$tmp/n.gguf.tmp"
head -c 300000 $model > "$tmp/cut.gguf"
mkdir "$tmp/folder"
d="--direction $tmp/d.gguf"
m=$tmp/m.gguf
bad 2 "no model" edit
bad 2 "--direction is missing" edit $m -o x
bad 2 "-o is missing" edit $m $d
bad 2 "unknown option" edit $m $d -o x --nonsense
bad 2 "'Q2_K', expected Q6_K or Q8_0" edit $m $d -o x --promote Q2_K
bad 2 "'nan'" edit $m $d -o x --strength nan
bad 2 "--strict" edit $m $d -o x --strict --promote Q8_0
bad 2 "--dry-run writes no file" edit $m $d -o x --dry-run
bad 2 "--no-undo" edit $m $d -o x --undo y --no-undo
bad 1 "No such file" edit nofile $d -o "$tmp/x"
bad 1 "No such file" edit $m --direction nofile -o "$tmp/x"
bad 1 "truncated" edit "$tmp/cut.gguf" $d -o "$tmp/x"
bad 1 "expected 'controlvector'" edit $m --direction $m -o "$tmp/x"
bad 1 "has 192 values, the residual stream of the model 256" edit $m --direction "$tmp/e.wide" -o "$tmp/x"
bad 1 "within 0-3" edit $m $d -o "$tmp/x" --layers 2-4
bad 1 "nothing changes" edit $m $d -o "$tmp/x" --strength 0
bad 1 "the same file" edit $m $d -o $m
bad 1 "which is read" edit $m $d -o "$tmp/hard.gguf"
bad 1 "which is read" edit $m $d -o "$tmp/soft.gguf"
bad 1 "which is read" edit $m $d -o "$tmp/folder/../m.gguf"
bad 1 "which is read" edit "$tmp/n.gguf.tmp" $d -o "$tmp/n.gguf"
bad 1 "which is read" edit $m $d -o "$tmp/d.gguf"
bad 1 "which is read" edit $m $d -o "$tmp/x" --undo $m
bad 1 "which is read" edit $m $d -o "$tmp/x" --json $m
bad 1 "No such file" edit $m $d -o "$tmp/x" --json "$tmp/nowhere/e.json" # found last: neither the model nor its undo file stay
bad 1 "two of" edit $m $d -o "$tmp/x" --undo "$tmp/x"
bad 1 "two of" edit $m $d -o "$tmp/x" --json "$tmp/folder/../x"
bad 1 "a directory" edit $m $d -o "$tmp/folder"
bad 1 "a device" edit $m $d -o /dev/null
bad 1 "cannot create" edit $m $d -o "$tmp/nofolder/x"
bad 1 "removed from it already" edit "$tmp/o.gguf" $d -o "$tmp/x"
bad 1 "expected gemma3" edit $demo/gemma-F16.gguf $d -o "$tmp/x" --from $demo/llama-F16.gguf
bad 1 "No such file" edit $m $d -o "$tmp/x" --contrast nofile
if [ -d $ref ]; then
    py direction $ref/gemma2-Q4_K_M.gguf "$tmp/e.gemma2" 1
    py direction $ref/gemma3n-Q8_0.gguf "$tmp/e.gemma3n" 1
    bad 1 "use the direction at run time" edit $ref/gemma3n-Q8_0.gguf --direction "$tmp/e.gemma3n" -o "$tmp/x"
    bad 1 "the head of gemma2 is its embedding" edit $ref/gemma2-Q4_K_M.gguf --direction "$tmp/e.gemma2" -o "$tmp/x" --embeddings
    py direction $ref/llama2-tied-Q4_K_M.gguf "$tmp/e.tied" 1
    bad 1 "adds a tensor" edit $ref/llama2-tied-Q4_K_M.gguf --direction "$tmp/e.tied" -o "$tmp/x" --embeddings --strict
    bad 1 "expected" edit $m $d -o "$tmp/x" --from $ref/llama3-F16.gguf
fi
py split $m "$tmp/s"
bad 1 "is split into 2 files" edit "$tmp/s-00001-of-00002.gguf" $d -o "$tmp/x"
rm -f "$tmp"/s-0*
same "the model is as it was" "$(cmp $m $model)" ""
"$A" edit "$tmp/o.gguf" $d -o "$tmp/p.gguf" -q --again > /dev/null 2> "$tmp/.err"
same "--again" "$? $(py compare "$tmp/o.gguf" "$tmp/p.gguf" 0 any) $(py key "$tmp/p.gguf" abliterate.edit.1.layers)" "0 good 0-3"
"$A" undo "$tmp/p.gguf" -o "$tmp/r.gguf" -q > /dev/null
same "--again: undone" "$(cmp "$tmp/o.gguf" "$tmp/r.gguf" 2>&1)" ""

u=$tmp/o.gguf.undo
cp "$u" "$tmp/u.bad"
py flip "$tmp/u.bad" -1000
cp "$tmp/o.gguf" "$tmp/o.bad"
py flip "$tmp/o.bad" -1000
head -c 100000 "$u" > "$tmp/u.cut"
rm -f "$tmp/r.gguf"
bad 2 "no edited model" undo
bad 2 "-o is missing" undo "$tmp/o.gguf"
bad 1 "No such file" undo nofile -o "$tmp/r.gguf"
bad 1 "No such file" undo $m -o "$tmp/r.gguf"
bad 1 "expected 'abliterate.undo'" undo "$tmp/o.gguf" --undo $m -o "$tmp/r.gguf"
bad 1 "has SHA-256" undo $m --undo "$u" -o "$tmp/r.gguf"
bad 1 "has SHA-256" undo "$tmp/o.bad" --undo "$u" -o "$tmp/r.gguf"
bad 1 "damaged" undo "$tmp/o.gguf" --undo "$tmp/u.bad" -o "$tmp/r.gguf"
bad 1 "truncated" undo "$tmp/o.gguf" --undo "$tmp/u.cut" -o "$tmp/r.gguf"
wrong=0
for at in 4 8 16 24 60 100 130 180 210 240 270 300 320 333 340 349 365 381 397 420 450 470 480 500 520; do # its header damaged
    cp "$u" "$tmp/u.bad"
    py flip "$tmp/u.bad" $at
    rm -f "$tmp/r.gguf"
    if "$A" undo "$tmp/o.gguf" --undo "$tmp/u.bad" -o "$tmp/r.gguf" -q > /dev/null 2> "$tmp/.err"; then cmp -s "$tmp/r.gguf" "$m" || wrong=$((wrong + 1))
    else [ "$(wc -l < "$tmp/.err")" -eq 1 ] && [ ! -e "$tmp/r.gguf" ] && grep -q '^abliterate: ' "$tmp/.err" || wrong=$((wrong + 1)); fi
done
same "damaged undo files: neither one line nor the original" "$wrong" "0"
bad 1 "which is read" undo "$tmp/o.gguf" -o "$tmp/o.gguf"
bad 1 "which is read" undo "$tmp/o.gguf" -o "$u"

# ---- no room, no right ----
big=$demo/llama-F16.gguf
sh -c 'ulimit -f 4; exec "$@"' sh "$A" edit $big $d -o "$tmp/x.gguf" -q > "$tmp/.out" 2> "$tmp/.err"
same "a limit of file sizes: status, lines, files" "$? $(wc -l < "$tmp/.err") $(ls "$tmp" | grep -c '^x')" "1 1 0"
has "a limit of file sizes" "$(cat "$tmp/.err")" "large"
if unshare -rm true 2> /dev/null; then
    # within MOUNT COMMAND PATTERN: in a folder of its own
    within() {
        unshare -rm sh -c "$1" sh "$tmp/folder" "$A" $big "$tmp/d.gguf" "$tmp/o.gguf" > "$tmp/.out" 2> "$tmp/.err"
        same "$2: status, lines, files" "$(tail -n 1 "$tmp/.out") $(wc -l < "$tmp/.err")" "1 | 1"
        has "$2" "$(cat "$tmp/.err")" "$3"
    }
    within 'mount -t tmpfs -o size=2M none "$1"; "$2" edit "$3" --direction "$4" -o "$1/x.gguf" -q; echo "$? $(ls "$1")|"' "no room for the model" "the disk has 2.0"
    within 'mount -t tmpfs -o size=4600K none "$1"; "$2" edit "$3" --direction "$4" -o "$1/x.gguf" -q; echo "$? $(ls "$1")|"' "no room for its undo file" "with its undo file"
    within 'mount -t tmpfs -o size=1M none "$1"; "$2" undo "$5" -o "$1/x.gguf" -q; echo "$? $(ls "$1")|"' "no room for the original" "the disk has 1.0"
    within 'mount -t tmpfs none "$1"; mount -o remount,ro "$1"; "$2" edit "$3" --direction "$4" -o "$1/x.gguf" -q; echo "$? $(ls "$1")|"' "a read-only folder" "Read-only file system"
else
    skip "no namespaces for a full disk"
fi
if [ "$(id -u)" -ne 0 ]; then
    chmod 555 "$tmp/folder"
    bad 1 "Permission denied" edit $m $d -o "$tmp/folder/x"
    chmod 755 "$tmp/folder"
fi

# ---- killed ----
rm -rf "$tmp"/folder "$tmp"/*.gguf.undo "$tmp"/[!d]*.gguf "$tmp"/*.bad "$tmp"/*.cut "$tmp"/*.tmp
kills=20
[ "$EDIT" = full ] && kills=200
start=$(date +%s%N)
"$A" edit $big $d -o "$tmp/whole.gguf" -q > /dev/null
us=$((($(date +%s%N) - start) / 1000))
whole=$(sum "$tmp/whole.gguf")
same "the file that kills are compared with" "$(py compare $big "$tmp/whole.gguf" 0)" "good"
awk -v n=$kills -v us=$us 'BEGIN { srand(7); for (i = 0; i < n; i++) printf "%.6f\n", rand() * us * 1.2 / 1e6 + 0.001 }' > "$tmp/.times"
none=0 complete=0 broken=0 late=0
while read -r t; do
    rm -f "$tmp"/o.gguf "$tmp"/o.gguf.undo # but not what the last one left
    timeout -s KILL "$t" "$A" edit $big $d -o "$tmp/o.gguf" -q > /dev/null 2>&1
    [ $? -eq 0 ] && late=$((late + 1))
    if [ ! -e "$tmp/o.gguf" ]; then none=$((none + 1))
    elif [ "$(sum "$tmp/o.gguf")" = "$whole" ] && "$A" undo "$tmp/o.gguf" -q -o "$tmp/r.gguf" > /dev/null 2>&1 && cmp -s "$tmp/r.gguf" $big; then complete=$((complete + 1))
    else broken=$((broken + 1)); fi
done < "$tmp/.times"
[ "$EDIT" = full ] && echo "$kills kills within $us us and a fifth: $none left no output, $complete a whole one ($late were done before), $broken a broken one"
same "kill -9: broken outputs" "$broken" "0"
[ "$none" -gt 0 ] && ok || fail "no kill came in time"
"$A" edit $big $d -o "$tmp/o.gguf" -q > /dev/null 2>&1
same "after a kill" "$(sum "$tmp/o.gguf") $(ls "$tmp" | grep -c tmp)" "$whole 0"
# an output that was there before stays, or is the new one
cp $model "$tmp/o.gguf"
broken=0
for t in $(head -n $((kills / 4)) "$tmp/.times"); do
    timeout -s KILL "$t" "$A" edit $big $d -o "$tmp/o.gguf" -q --no-undo > /dev/null 2>&1
    [ "$(sum "$tmp/o.gguf")" = "$whole" ] || cmp -s "$tmp/o.gguf" $model || broken=$((broken + 1))
done
same "kill -9: the old file or the new one" "$broken" "0"
rm -f "$tmp"/o.gguf*
for signal in INT TERM HUP; do
    left=0 stopped=0
    for t in $(awk -v us=$us 'BEGIN { for (i = 1; i < 10; i++) printf "%.6f ", us * i / 1e7 }'); do
        rm -f "$tmp"/o.gguf*
        timeout -s $signal "$t" "$A" edit $big $d -o "$tmp/o.gguf" -q > /dev/null 2> "$tmp/.err"
        grep -q interrupted "$tmp/.err" && stopped=$((stopped + 1))
        [ -e "$tmp/o.gguf" ] || left=$((left + $(ls "$tmp" | grep -c '^o')))
    done
    same "SIG$signal leaves nothing" "$left" "0"
    [ "$stopped" -gt 0 ] && ok || fail "SIG$signal came too late each time"
done
# while the original is restored
broken=0
for t in 0.002 0.005 0.01 0.02 0.04; do
    rm -f "$tmp/r.gguf"
    timeout -s KILL $t "$A" undo "$tmp/whole.gguf" -o "$tmp/r.gguf" -q > /dev/null 2>&1
    [ ! -e "$tmp/r.gguf" ] || cmp -s "$tmp/r.gguf" $big || broken=$((broken + 1))
done
same "kill -9 of undo: broken outputs" "$broken" "0"
end

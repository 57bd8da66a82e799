// page.c: see page.h
#include "page.h"

// Blue, the background, orange: told apart with any kind of colour vision.
static void put_hues(FILE *f, const int low[3], const int middle[3], const int high[3]) {
    for (int i = 0; i < N_HUE; i++) {
        const double t = 2.0 * i / (N_HUE - 1) - 1, much = pow(fabs(t), 0.8); // weak ones are seen, too
        int c[3];
        for (int k = 0; k < 3; k++) c[k] = (int)lround(middle[k] + much * ((t < 0 ? low : high)[k] - middle[k]));
        fprintf(f, ".c%d{fill:#%02x%02x%02x}", i, (unsigned)c[0], (unsigned)c[1], (unsigned)c[2]);
    }
    fprintf(f, ".c%d{fill:var(--bg);stroke:var(--soft);stroke-width:.5;stroke-dasharray:1 2}\n", N_HUE);
}

static const char STYLE[] =
    ":root{color-scheme:light dark;--bg:#fff;--fg:#1c2127;--soft:#5b6570;--line:#d9dee3;--card:#f5f7f9;--target:#c8500a;--contrast:#1f6fb5;--keep:#00795a;"
    "--half:#1c2127;--strong:#fff}\n"
    "*{box-sizing:border-box}"
    "body{margin:0;background:var(--bg);color:var(--fg);font:16px/1.55 system-ui,-apple-system,\"Segoe UI\",Roboto,\"Helvetica Neue\",Arial,sans-serif}\n"
    "main{max-width:1040px;margin:0 auto;padding:32px 20px 48px}h1{font-size:30px;line-height:1.2;margin:4px 0 20px}h2{font-size:22px;margin:0 0 6px}"
    "h3{font-size:16px;margin:22px 0 8px}\n"
    "section{border-top:1px solid var(--line);margin-top:36px;padding-top:24px}p{margin:0 0 12px;max-width:78ch}"
    ".over{color:var(--soft);margin:0;font-size:14px;overflow-wrap:anywhere}\n"
    ".note,footer{color:var(--soft);font-size:14px}code{font:13px/1.4 ui-monospace,Menlo,Consolas,monospace}\n"
    ".verdict{list-style:none;margin:0 0 20px;padding:0;display:grid;grid-template-columns:repeat(auto-fit,minmax(170px,1fr));gap:12px}\n"
    ".verdict li{background:var(--card);border-radius:8px;padding:12px 14px;font-size:14px;line-height:1.35;color:var(--soft)}\n"
    ".verdict b{display:block;font-size:21px;line-height:1.3;color:var(--fg);font-variant-numeric:tabular-nums}\n"
    ".facts{margin:0;columns:2 380px;column-gap:40px;font-size:14px;line-height:1.45}.facts div{display:flex;gap:12px;padding:3px 0;break-inside:avoid}\n"
    ".facts dt{flex:0 0 130px;color:var(--soft)}.facts dd{margin:0;min-width:0;overflow-wrap:anywhere}\n"
    ".row{display:flex;flex-wrap:wrap;gap:20px 36px;margin:8px 0 16px}figure{margin:0;min-width:min(100%,300px);break-inside:avoid}"
    "figcaption{font-weight:600;font-size:14px;margin-bottom:4px;overflow-wrap:anywhere}\n"
    ".scroll{overflow-x:auto}svg{display:block;width:100%;height:auto}.keys{font-size:14px;display:flex;flex-wrap:wrap;gap:2px 20px;margin-bottom:4px}"
    ".key{display:inline-flex;align-items:center;gap:6px}.key svg{width:26px}\n"
    ".scale{width:300px;margin-bottom:8px}text{font-size:12px;fill:var(--fg)}.tick{font-size:11px;fill:var(--soft);font-variant-numeric:tabular-nums}"
    ".axis{font-size:11.5px;fill:var(--soft)}.group{font-weight:600;paint-order:stroke;stroke:var(--bg);stroke-width:5px}"
    ".value{font-variant-numeric:tabular-nums}\n"
    ".mid,.cell{text-anchor:middle}.end{text-anchor:end}.cell{font-size:11px;pointer-events:none}.half{fill:var(--half)}.strong{fill:var(--strong)}"
    ".heat path{shape-rendering:crispEdges}.grid,.zero,.mark,.whisker,.frame,.line{fill:none;stroke:var(--line)}.zero{stroke:var(--soft)}\n"
    ".mark{stroke:var(--soft);stroke-dasharray:3 3}.whisker{stroke:var(--fg);stroke-width:1.5}.frame{stroke:var(--fg);stroke-width:2.5;pointer-events:none}\n"
    ".target{--h:var(--target)}.contrast{--h:var(--contrast)}.keep{--h:var(--keep)}.ink{--h:var(--fg)}"
    ".line{stroke:var(--h);stroke-width:2;stroke-linejoin:round;stroke-linecap:round}.dashed{stroke-dasharray:4 5}\n"
    ".dot,.bar{fill:var(--h)}.hollow{fill:var(--bg);stroke:var(--h);stroke-width:2}.cloud{fill:var(--h);opacity:.35}.unseen{fill:transparent}"
    ".unseen:hover{fill:var(--h)}.control{fill:var(--fg);fill-opacity:.45;stroke:var(--bg);stroke-width:.5}"
    ".open{fill-opacity:.2;stroke:var(--h);stroke-width:1.5}\n"
    ".swatch{display:inline-block;width:11px;height:11px;border-radius:3px;background:var(--h);margin-right:7px}"
    "table{border-collapse:collapse;font-size:14px;margin:4px 0 14px;font-variant-numeric:tabular-nums}\n"
    "th,td{padding:5px 14px 5px 0;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}th:first-child{text-align:left}"
    "thead th{color:var(--soft);font-weight:500;vertical-align:bottom}tbody th{font-weight:500}th:last-child,td:last-child{padding-right:2px}\n"
    "article{display:grid;grid-template-columns:1fr 1fr;background:var(--card);border-radius:8px;margin-bottom:12px;font-size:14px;line-height:1.5;"
    "break-inside:avoid}"
    "article>*{min-width:0;padding:10px 14px}\n"
    ".prompt{grid-column:1/-1;margin:0;max-width:none;font-weight:600;border-bottom:1px solid var(--line)}"
    ".prompt,.answer{white-space:pre-wrap;overflow-wrap:anywhere}.answer{margin:0}\n"
    ".who{margin:0 0 2px;color:var(--soft);font-size:13px}"
    ".who b{color:var(--target);border:1px solid;border-radius:9px;padding:0 7px;margin-left:6px;font-size:12px}"
    "article div+div{border-left:1px solid var(--line)}\n"
    "@media(max-width:640px){main{padding:20px 16px 32px}h1{font-size:25px}article{grid-template-columns:1fr}"
    "article div+div{border-left:0;border-top:1px solid var(--line)}.verdict{grid-template-columns:1fr 1fr}.verdict b{font-size:18px}"
    ".chart text{font-size:13px}.chart .tick,.chart .axis{font-size:12px}}\n"
    "@media print{main{zoom:.72;max-width:none;padding:0}.scroll{overflow:visible}figure svg{min-width:0!important}h2,h3,.keys{break-after:avoid}"
    "*{print-color-adjust:exact;-webkit-print-color-adjust:exact}}\n";

void page_open(FILE *f, const char *title, ...) {
    va_list args;
    fputs("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" "
          "content=\"width=device-width,initial-scale=1\">\n<title>", f);
    va_start(args, title);
    vfprintf(f, title, args);
    va_end(args);
    fprintf(f, "</title>\n<style>\n%s", STYLE);
    put_hues(f, (const int[]){0x1f, 0x6f, 0xb5}, (const int[]){0xf4, 0xf5, 0xf6}, (const int[]){0xc8, 0x50, 0x0a});
    fputs("@media screen and (prefers-color-scheme:dark){:root{--bg:#15181c;--fg:#e6e9ec;--soft:#9aa5b0;--line:#343b43;--card:#1f242a;"
          "--target:#ff9a52;--contrast:#64b1f2;--keep:#3ecf9c;--half:#14171a;--strong:#14171a}\n", f);
    put_hues(f, (const int[]){0x64, 0xb1, 0xf2}, (const int[]){0x23, 0x28, 0x2e}, (const int[]){0xff, 0x9a, 0x52});
    fputs("}\n</style>\n</head>\n<body>\n<main>\n", f);
}

void page_close(FILE *f) { fputs("</main>\n</body>\n</html>\n", f); }

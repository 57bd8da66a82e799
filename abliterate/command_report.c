// command_report.c: `abliterate report`: measures, prints, writes.
#include "abliterate.h"

bool command_report(const ReportOptions *o, Err *e) {
    static Lab lab;
    static Report r;
    catch_interrupt(true);
    bool ok = lab_open(&lab, &o->lab, e) && report_measure(&r, &lab, o, e);
    if (ok) {
        report_text(&r, stdout);
        ok = (!o->json || report_json(&r, o->json, e)) && (!o->html || report_html(&r, o->html, e));
        if (ok && o->json) fprintf(stderr, "%s: written\n", o->json);
        if (ok && o->html) fprintf(stderr, "%s: written\n", o->html);
    }
    report_free(&r);
    lab_close(&lab);
    return ok;
}

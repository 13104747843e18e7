/* What a Xen PV guest is asked for by xenstore: to end, to stand still, to give memory back (docs/xen.md). */
#include "tests/lib/check.h"
#include "tests/lib/pvguest.h"

#define DATA PV_AT(PV_DATA)
#define ASK(type, text) pv_ask(&g, type, 0, text, sizeof(text) - 1)
#define READ(path) ASK(XS_READ, path "\0")

static struct pvguest g;

static s64 shut_down_as(u32 reason)
{
    memcpy(pv_ptr(&g, DATA, true), &reason, sizeof(reason));
    return pv_call(&g, XEN_sched_op, XEN_SCHEDOP_shutdown, DATA, 0, 0);
}

static void watch(void)
{
    CHECK(!strcmp(ASK(XS_WATCH, "control/shutdown\0tok\0"), "OK") && pv_take(&g));
}

static void test_shutdown(void)
{
    pvguest_make(&g, "");
    CHECK(xen_ask_shutdown(g.xen, "poweroff") == -ENOTCONN);
    watch();
    CHECK(!xen_ask_shutdown(g.xen, "poweroff") && pv_take(&g) && pv_head.type == XS_WATCH_EVENT && !strcmp(pv_reply, "control/shutdown"));
    CHECK(!strcmp(READ("control/shutdown"), "poweroff") && xen_ask_shutdown(g.xen, "reboot") == -EBUSY);
    CHECK(ASK(XS_WRITE, "control/shutdown\0") && pv_take(&g));
    CHECK(!xen_ask_shutdown(g.xen, "reboot"));
    pvguest_free(&g);
}

/* Nobody asked: the guest goes on at once. Asked: every vCPU stays where it is, whatever happens, until it is woken. */
static void test_suspend(void)
{
    struct vitro_frame f;

    pvguest_make_cpus(&g, "", 2);
    const struct vitro_outer *o = xen_outer(g.xen);
    g.xen->cpu[1].up = true;
    CHECK(shut_down_as(XEN_SHUTDOWN_suspend) == 1 && g.crossing == VITRO_STAY && !xen_suspended(g.xen));
    CHECK(xen_ask_shutdown(g.xen, "suspend") == -ENOTCONN);
    watch();
    CHECK(!xen_ask_shutdown(g.xen, "suspend") && pv_take(&g) && !xen_suspended(g.xen));
    unsigned kicks = g.kicks;
    CHECK(shut_down_as(XEN_SHUTDOWN_suspend) == 1 && g.crossing == VITRO_PARK && xen_suspended(g.xen));
    CHECK(g.kicks == kicks + 1 && g.shutdown == -1);
    f = g.frame;
    for (unsigned i = 0; i < 2; i++) {
        g.xen->cpu[i].info->upcall_mask = 0;
        g.xen->cpu[i].info->upcall_pending = 1;
        g.xen->cpu[i].callback[XEN_CALLBACK_EVENT].address = PV_AT(0x1000);
        CHECK(o->event(o->opaque, i, &f) == VITRO_PARK && f.rip == g.frame.rip);
    }
    kicks = g.kicks;
    xen_wake(g.xen);
    CHECK(g.kicks == kicks + 2 && !xen_suspended(g.xen) && o->event(o->opaque, 0, &f) == VITRO_GO);
    xen_wake(g.xen); /* it is awake */
    CHECK(g.kicks == kicks + 2);
    CHECK(shut_down_as(XEN_SHUTDOWN_suspend) == 1 && g.crossing != VITRO_PARK); /* asked once, done once */
    pvguest_free(&g);
}

static void test_balloon(void)
{
    pvguest_make(&g, "");
    CHECK(xen_balloon_actual(g.xen) == PV_SIZE);
    xen_balloon_ask(g.xen, 8 << 20);
    CHECK(!strcmp(READ("memory/target"), "8192"));
    xen_balloon_ask(g.xen, ~0ull); /* no more than there is */
    CHECK(!strcmp(READ("memory/target"), "16384"));
    pvguest_free(&g);
}

int main(void)
{
    test_shutdown();
    test_suspend();
    test_balloon();
    return check_done("xen_life");
}

/*
 * echo.c - a terminal by rings: takes lines and says them again, louder. An empty line ends it.
 */
#include "sdk/sdk.h"

#define PORT_INPUT 4

static struct vt_console *console;

static void on_input(void *arg)
{
    (void)arg; /* it ended a hlt: that is enough */
}

/* One byte of input; sleeps while there is none. */
static char get(void)
{
    wait_until(__atomic_load_n(&console->in_head, __ATOMIC_ACQUIRE) != console->in_tail);
    char c = (char)console->in[console->in_tail % VT_CONSOLE_IN];
    bool full = console->in_head - console->in_tail == VT_CONSOLE_IN;
    __atomic_store_n(&console->in_tail, console->in_tail + 1, __ATOMIC_RELEASE);
    if (full)
        vt_call0(VT_CONSOLE_BELL); /* there is room again */
    return c;
}

/* Output collects in the ring until the bell rings. */
static void put(char c)
{
    if (console->out_head - __atomic_load_n(&console->out_tail, __ATOMIC_ACQUIRE) == VT_CONSOLE_OUT)
        vt_call0(VT_CONSOLE_BELL);
    console->out[console->out_head % VT_CONSOLE_OUT] = (uint8_t)c;
    __atomic_store_n(&console->out_head, console->out_head + 1, __ATOMIC_RELEASE);
}

int main(void)
{
    unsigned lines = 0, length;

    console = pages_alloc(1);
    event_handle(PORT_INPUT, on_input, NULL);
    if (vt_call2(VT_CONSOLE_RING, console, PORT_INPUT))
        die("no console\n");
    do {
        char c;
        for (length = 0; (c = get()) != '\n' && c != '\r'; length++)
            put(c >= 'a' && c <= 'z' ? (char)(c - 32) : c);
        put('\r');
        put('\n');
        vt_call0(VT_CONSOLE_BELL); /* once a line */
        vt_call3(VT_TRACE, 1, ++lines, length);
    } while (length);
    print("%u lines.\n", lines - 1);
    return 0;
}

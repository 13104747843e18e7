/* main.c - parse, run, exit status. */
#include "monitor/config.h"
#include "monitor/control.h"
#include "monitor/detach.h"
#include "monitor/tty.h"
#include "monitor/vm.h"
#include "monitor/vnc.h"
#include "monitor/wall.h"

int main(int argc, char **argv)
{
    static struct config config;
    static struct detach detach;
    struct vnc *vnc = NULL;
    enum vm_outcome outcome;
    int status = cli_parse(&config, argc, argv);

    if (status >= 0)
        return status;
    status = config_complete(&config);
    if (status)
        return status;
    if (config.detach && (status = detach_fork(&detach, &config)) >= 0)
        return status;

    tty_catch_signals();
    if (config.sandbox)
        wall_start();
    struct control *control = control_create(&config, &status);
    if (!control && status)
        return status;
    do {
        outcome = vm_run(&config, control, &vnc, &status);
        config_forget_snapshot(&config); /* a reset starts from the beginning */
    } while (outcome == VM_RESET && !config.no_reboot);
    vnc_stop(vnc);
    control_destroy(control);
    return status;
}

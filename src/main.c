/* main.c - parse, run, exit status. */
#include "monitor/config.h"
#include "monitor/tty.h"
#include "monitor/vm.h"

int main(int argc, char **argv)
{
    static struct config config;
    enum vm_outcome outcome;
    int status = cli_parse(&config, argc, argv);

    if (status >= 0)
        return status;
    status = config_complete(&config);
    if (status)
        return status;

    tty_catch_signals();
    do
        outcome = vm_run(&config, &status);
    while (outcome == VM_RESET && !config.no_reboot);
    return status;
}

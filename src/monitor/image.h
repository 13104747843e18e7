/* image.h - `vitro image KIND`: makes a VM's disk and description. */
#pragma once

/* image_run - become the tool that makes it; returns only when that fails: an exit status. */
int image_run(int argc, char **argv);

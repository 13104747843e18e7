/*
 * vnc.h - the VGA's screen, keyboard and mouse for a VNC client (RFB), by the library neatvnc. Off unless --vnc asks for it.
 *
 * Threads: one of its own, under a filter of its own, talks with clients and looks at the screen; the library's workers
 * compress. A server outlives machines: vnc_detach() when one goes, vnc_attach() when the next has come.
 */
#pragma once

struct machine;
struct vnc;

/*
 * vnc_check - is an address understood: unix:PATH, or HOST:PORT with a loopback HOST (there is no password). 0, or -EINVAL with
 * what is wrong in *why.
 */
int vnc_check(const char *where, const char **why);
/* vnc_start - serve the machine's VGA there. 0; -EADDRINUSE, another -errno, -ENOSYS (built without the library). */
int vnc_start(const char *where, struct machine *machine, struct vnc **out);
/* vnc_detach - the machine goes; clients stay, and see what they saw. NULL is allowed. */
void vnc_detach(struct vnc *vnc);
/* vnc_attach - show them another machine. 0 or -ENOMEM. */
int vnc_attach(struct vnc *vnc, struct machine *machine);
/* vnc_stop - clients are disconnected. NULL is allowed. */
void vnc_stop(struct vnc *vnc);

/* host.h - what the engine asks of the world; the embedder's table of functions (libvitro.h). */
#pragma once
#include "libvitro.h"
#define engine_host vitro_ops

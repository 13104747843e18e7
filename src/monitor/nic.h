/* nic.h - what --net asks for. */
#pragma once
#include "base/types.h"
#include "monitor/drive.h"
#include "net/net.h"

#define NICS_MAX 8

enum nic_kind { NIC_USER, NIC_TAP, NIC_NULL };

struct nic {
    enum nic_kind kind;
    struct net_user_options user;
    char ifname[32];
    u8 mac[6];
    unsigned queues; /* pairs */
    bool packed, e1000;
    enum transport transport;
    bool vitro;      /* reached by our own hypercalls, not virtio */
};

/* nic_parse - KIND[,KEY=VALUE]... as --help describes it. -1: done, else the exit status, with the mistake explained. */
int nic_parse(struct nic *nic, const char *option, const char *text);

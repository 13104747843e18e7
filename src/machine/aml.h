/*
 * aml.h - a small emitter of ACPI machine language. Source: ACPI 6.4 §20.2 (encoding), §6.4
 * (resource descriptors). Containers are aml_begin_*() ... aml_end(): the length is filled in at
 * the end. The first overflow latches; later calls do nothing; check a->failed once.
 */
#pragma once
#include "base/types.h"

struct aml {
    u8 *buf;
    size_t len, cap;
    bool failed;
    unsigned depth;
    struct { size_t at; bool resources; } open[16]; /* where PackageLength goes */
};

void aml_scope(struct aml *a, const char *path);
void aml_device(struct aml *a, const char *name);
void aml_method(struct aml *a, const char *name, unsigned nr_args);
void aml_package(struct aml *a, unsigned nr_elements);
void aml_if_name(struct aml *a, const char *name); /* If (NAME) { */
void aml_end(struct aml *a);

void aml_name(struct aml *a, const char *name); /* Name (NAME, <next object>) */
void aml_ref(struct aml *a, const char *path);
void aml_int(struct aml *a, u64 value);
void aml_string(struct aml *a, const char *s);
void aml_eisa_id(struct aml *a, const char *id); /* "PNP0501" */
void aml_return(struct aml *a);                  /* Return (<next object>) */
void aml_store_arg0(struct aml *a, const char *name);

/* ResourceTemplate () { ... }, closed by aml_end() */
void aml_resources(struct aml *a);
void aml_res_io(struct aml *a, u16 port, u8 len);
void aml_res_irq(struct aml *a, unsigned irq);
void aml_res_level_gsi(struct aml *a, u32 gsi); /* level, active high, shared */
void aml_res_fixed_mem(struct aml *a, u32 base, u32 size);
void aml_res_bus_range(struct aml *a, u16 first, u16 last);
void aml_res_io_range(struct aml *a, u16 first, u16 last);
void aml_res_mem_range(struct aml *a, u32 first, u32 last);
void aml_res_mem64_range(struct aml *a, u64 first, u64 last);

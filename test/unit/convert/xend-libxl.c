/*
 * Asks the libxl that is installed what it makes of a domain configuration: reads JSON from standard input, writes it
 * as libxl would write it, then has libxl fill in its defaults, which is where it refuses what cannot be.
 * Exit status: 0 taken, 1 not libxl's JSON, 2 refused with the defaults, 3 no libxl.
 *
 * No hypervisor is needed: the functions before main() stand for libxenctrl and libxenstore, and say that there is a
 * host with everything.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <libxl.h>
#include <xenctrl.h>
#include <xenstore.h>
#include <xentoollog.h>

#define INPUT_MAX (1 << 24)

static char handle;

xc_interface *xc_interface_open(xentoollog_logger *logger, xentoollog_logger *dombuild, unsigned flags) {
  return (xc_interface *)&handle;
}

int xc_interface_close(xc_interface *xch) { return 0; }

int xc_physinfo(xc_interface *xch, xc_physinfo_t *info) {
  memset(info, 0, sizeof(*info));
  info->nr_cpus = 8;
  info->max_cpu_id = 7;
  info->threads_per_core = 1;
  info->cores_per_socket = 8;
  info->nr_nodes = 1;
  info->total_pages = info->free_pages = 1 << 24;
  info->capabilities = ~0u;
  return 0;
}

long xc_sharing_freed_pages(xc_interface *xch) { return 0; }
long xc_sharing_used_frames(xc_interface *xch) { return 0; }
int xc_get_max_cpus(xc_interface *xch) { return 8; }
int xc_get_cpumap_size(xc_interface *xch) { return 1; }

static const char *const pools[] = {"Pool-0", "fast"};

xc_cpupoolinfo_t *xc_cpupool_getinfo(xc_interface *xch, uint32_t id) {
  xc_cpupoolinfo_t *info;
  if (id > 1) {
    errno = ENOENT;
    return NULL;
  }
  info = calloc(1, sizeof(*info));
  info->cpupool_id = id;
  info->sched_id = XEN_SCHEDULER_CREDIT;
  info->cpumap = calloc(1, 8);
  return info;
}

void xc_cpupool_infofree(xc_interface *xch, xc_cpupoolinfo_t *info) {
  free(info->cpumap);
  free(info);
}

struct xs_handle *xs_open(unsigned long flags) { return (struct xs_handle *)&handle; }
void xs_close(struct xs_handle *xsh) {}

void *xs_read(struct xs_handle *xsh, xs_transaction_t t, const char *path, unsigned *len) {
  unsigned pool;
  if (sscanf(path, "/local/pool/%u/name", &pool) == 1 && pool < 2) {
    if (len != NULL) *len = strlen(pools[pool]);
    return strdup(pools[pool]);
  }
  errno = ENOENT;
  return NULL;
}

int main(void) {
  libxl_ctx *ctx;
  libxl_domain_config config;
  uint64_t need;
  char *json = calloc(1, INPUT_MAX + 1);
  xentoollog_logger *log = (xentoollog_logger *)xtl_createlogger_stdiostream(stderr, XTL_WARN, 0);
  if (json == NULL || libxl_ctx_alloc(&ctx, LIBXL_VERSION, 0, log) != 0) return 3;
  fread(json, 1, INPUT_MAX, stdin);
  libxl_domain_config_init(&config);
  if (libxl_domain_config_from_json(ctx, &config, json) != 0) return 1;
  puts(libxl_domain_config_to_json(ctx, &config));
  return libxl_domain_need_memory(ctx, &config, ~(uint32_t)0, &need) == 0 ? 0 : 2;
}

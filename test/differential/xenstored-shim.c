/*
 * Preloaded into Debian's xenstored, it stands where libxenctrl, libxenevtchn and libxengnttab reach for a hypervisor,
 * so that the real daemon runs on a machine without Xen. Everything it pretends is in the folder $XENSTORED_SHIM:
 *
 *   domains   65536 bytes, one for each domid: 0 no such domain, 1 it runs, 2 it is shut down, 3 it is dying
 *   events    a FIFO; 4 bytes written to it are the number of an event channel that fires (1: VIRQ_DOM_EXC)
 *   xsd_port, xsd_kva   in place of those in /proc/xen
 *   ring-N    the xenstore ring of domain N
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <xenctrl.h>
#include <xenevtchn.h>
#include <xengnttab.h>

#define DOMIDS 65536
#define RING_SIZE 4096
#define VIRQ_PORT 1
#define FIRST_PORT 100

static char handle;
static int events = -1;
static int next_port = FIRST_PORT;

static int (*real_open)(const char *, int, ...);

static int open_in_folder(const char *name, int flags) {
  char path[4096];
  const char *folder = getenv("XENSTORED_SHIM");
  if (folder == NULL) abort();
  snprintf(path, sizeof(path), "%s/%s", folder, name);
  if (real_open == NULL) *(void **)&real_open = dlsym(RTLD_NEXT, "open");
  return real_open(path, flags, 0600);
}

static int redirected_open(const char *path, int flags, int mode) {
  if (strncmp(path, "/proc/xen/xsd_", 14) == 0) return open_in_folder(path + 10, flags);
  if (real_open == NULL) *(void **)&real_open = dlsym(RTLD_NEXT, "open");
  return real_open(path, flags, mode);
}

int open(const char *path, int flags, ...) {
  va_list args;
  va_start(args, flags);
  int mode = (flags & O_CREAT) ? va_arg(args, int) : 0;
  va_end(args);
  return redirected_open(path, flags, mode);
}

int open64(const char *path, int flags, ...) {
  va_list args;
  va_start(args, flags);
  int mode = (flags & O_CREAT) ? va_arg(args, int) : 0;
  va_end(args);
  return redirected_open(path, flags, mode);
}

xc_interface *xc_interface_open(xentoollog_logger *logger, xentoollog_logger *dombuild, unsigned flags) {
  (void)logger, (void)dombuild, (void)flags;
  return (xc_interface *)&handle;
}

int xc_interface_close(xc_interface *xch) {
  (void)xch;
  return 0;
}

static const uint8_t *domain_states(void) {
  static uint8_t states[DOMIDS];
  int fd = open_in_folder("domains", O_RDONLY);
  if (fd < 0 || read(fd, states, DOMIDS) != DOMIDS) abort();
  close(fd);
  return states;
}

/* Domains from `first` on, as libxenctrl has it. */
int xc_domain_getinfo(xc_interface *xch, uint32_t first, unsigned max, xc_dominfo_t *info) {
  (void)xch;
  const uint8_t *states = domain_states();
  unsigned found = 0;
  for (uint32_t domid = first; domid < DOMIDS && found < max; domid++) {
    if (states[domid] == 0) continue;
    memset(&info[found], 0, sizeof(info[found]));
    info[found].domid = domid;
    info[found].running = states[domid] == 1;
    info[found].shutdown = states[domid] >= 2;
    info[found].dying = states[domid] == 3;
    found++;
  }
  return (int)found;
}

xenevtchn_handle *xenevtchn_open(xentoollog_logger *logger, unsigned flags) {
  (void)logger, (void)flags;
  events = open_in_folder("events", O_RDWR);
  return events < 0 ? NULL : (xenevtchn_handle *)&handle;
}

xenevtchn_handle *xenevtchn_fdopen(xentoollog_logger *logger, int fd, unsigned flags) {
  (void)logger, (void)flags;
  events = fd;
  return (xenevtchn_handle *)&handle;
}

int xenevtchn_fd(xenevtchn_handle *xce) {
  (void)xce;
  return events;
}

xenevtchn_port_or_error_t xenevtchn_pending(xenevtchn_handle *xce) {
  (void)xce;
  int32_t port;
  return read(events, &port, sizeof(port)) == sizeof(port) ? port : -1;
}

int xenevtchn_unmask(xenevtchn_handle *xce, evtchn_port_t port) {
  (void)xce, (void)port;
  return 0;
}

int xenevtchn_notify(xenevtchn_handle *xce, evtchn_port_t port) {
  (void)xce, (void)port;
  return 0;
}

int xenevtchn_unbind(xenevtchn_handle *xce, evtchn_port_t port) {
  (void)xce, (void)port;
  return 0;
}

xenevtchn_port_or_error_t xenevtchn_bind_virq(xenevtchn_handle *xce, unsigned virq) {
  (void)xce, (void)virq;
  return VIRQ_PORT;
}

xenevtchn_port_or_error_t xenevtchn_bind_interdomain(xenevtchn_handle *xce, uint32_t domid, evtchn_port_t port) {
  (void)xce, (void)domid, (void)port;
  return next_port++;
}

xengnttab_handle *xengnttab_open(xentoollog_logger *logger, unsigned flags) {
  (void)logger, (void)flags;
  return (xengnttab_handle *)&handle;
}

int xengnttab_close(xengnttab_handle *xgt) {
  (void)xgt;
  return 0;
}

int xengnttab_set_max_grants(xengnttab_handle *xgt, uint32_t count) {
  (void)xgt, (void)count;
  return 0;
}

void *xengnttab_map_grant_ref(xengnttab_handle *xgt, uint32_t domid, uint32_t ref, int prot) {
  (void)xgt, (void)ref;
  if (domid >= DOMIDS || domain_states()[domid] == 0) {
    errno = ESRCH;
    return NULL;
  }
  char name[32];
  snprintf(name, sizeof(name), "ring-%u", domid);
  int fd = open_in_folder(name, O_RDWR | O_CREAT);
  if (fd < 0 || ftruncate(fd, RING_SIZE) != 0) return NULL;
  void *ring = mmap(NULL, RING_SIZE, prot, MAP_SHARED, fd, 0);
  close(fd);
  return ring == MAP_FAILED ? NULL : ring;
}

int xengnttab_unmap(xengnttab_handle *xgt, void *start, uint32_t count) {
  (void)xgt;
  return munmap(start, (size_t)count * RING_SIZE);
}

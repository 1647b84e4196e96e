/*
 * Stands in for the Xen libraries: preloaded, its functions are found before theirs. No hypervisor, but one domain for each
 * way to answer. What the addon does with arguments, threads, memory and errors can so be tested without Xen, under
 * sanitizers too. What Xen itself does is tested on Xen (test/xen-host).
 *
 * domid 1: answers at once   2: answers after 300 ms   3: frames from 2^20 on are not there   4: nothing can be mapped
 *       5: of each run of frames, the last vanishes while being mapped (but for runs of one)   others: ESRCH, logged
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#include <xencall.h>
#include <xenctrl.h>
#include <xenevtchn.h>
#include <xenforeignmemory.h>
#include <xentoollog.h>

static xentoollog_logger *logger;
static int opened, buffers;

static void say(xentoollog_level level, const char *format, ...) {
  va_list args;
  va_start(args, format);
  if (logger != NULL) logger->vmessage(logger, level, -1, "fake", format, args);
  va_end(args);
}

/* How many handles are open and how many hypercall buffers are out: read back through the domain info of domid 1. */
xc_interface *xc_interface_open(xentoollog_logger *with, xentoollog_logger *builder, unsigned flags) {
  (void)builder;
  (void)flags;
  logger = with;
  if (getenv("FAKE_XEN_CLOSED") != NULL) {
    say(XTL_ERROR, "cannot open: %s", "closed");
    errno = EACCES;
    return NULL;
  }
  __atomic_add_fetch(&opened, 1, __ATOMIC_SEQ_CST);
  /* Something for a sanitizer to watch. */
  return malloc(64);
}

int xc_interface_close(xc_interface *xch) {
  __atomic_sub_fetch(&opened, 1, __ATOMIC_SEQ_CST);
  free(xch);
  return 0;
}

struct xencall_handle *xc_interface_xcall_handle(xc_interface *xch) { return (struct xencall_handle *)xch; }
struct xenforeignmemory_handle *xc_interface_fmem_handle(xc_interface *xch) {
  return (struct xenforeignmemory_handle *)xch;
}

void *xencall_alloc_buffer_pages(xencall_handle *call, size_t pages) {
  (void)call;
  __atomic_add_fetch(&buffers, 1, __ATOMIC_SEQ_CST);
  return calloc(pages, 4096);
}

void xencall_free_buffer_pages(xencall_handle *call, void *at, size_t pages) {
  (void)call;
  (void)pages;
  __atomic_sub_fetch(&buffers, 1, __ATOMIC_SEQ_CST);
  free(at);
}

static void take_time(uint32_t domid) {
  struct timespec wait = {0, 300000000};
  if (domid == 2) nanosleep(&wait, NULL);
}

/* Populates all extents but the last, and answers pfn + 1000 for each. */
int xencall2(xencall_handle *call, unsigned int op, uint64_t command, uint64_t argument) {
  struct xen_memory_reservation *wanted = (void *)argument;
  (void)call;
  if (op != __HYPERVISOR_memory_op || command != XENMEM_populate_physmap) {
    errno = ENOSYS;
    return -1;
  }
  take_time(wanted->domid);
  for (unsigned long i = 0; i + 1 < wanted->nr_extents; i++) wanted->extent_start.p[i] += 1000;
  wanted->extent_start.p[wanted->nr_extents - 1] = ~0ul;
  return (int)wanted->nr_extents - 1;
}

static int shadow_op(struct xen_domctl_shadow_op *op) {
  if (op->op != XEN_DOMCTL_SHADOW_OP_CLEAN && op->op != XEN_DOMCTL_SHADOW_OP_PEEK) return 0;
  uint8_t *bits = (void *)op->dirty_bitmap.p;
  for (uint64_t i = 0; i < (op->pages + 7) / 8; i++) bits[i] = 0x81;
  op->stats.dirty_count = op->op == XEN_DOMCTL_SHADOW_OP_CLEAN ? 7 : 8;
  op->stats.fault_count = op->mode;
  return 0;
}

int xc_domctl(xc_interface *xch, struct xen_domctl *domctl) {
  (void)xch;
  say(XTL_DEBUG, "domctl %u of domain %u", domctl->cmd, domctl->domain);
  if (domctl->domain > 5) {
    say(XTL_ERROR, "no domain %u", domctl->domain);
    errno = ESRCH;
    return -1;
  }
  take_time(domctl->domain);
  switch (domctl->cmd) {
    case XEN_DOMCTL_getdomaininfo:
      domctl->u.getdomaininfo.domain = domctl->domain;
      domctl->u.getdomaininfo.flags = XEN_DOMINF_hvm_guest | XEN_DOMINF_shutdown | 2 << XEN_DOMINF_shutdownshift;
      domctl->u.getdomaininfo.tot_pages = opened;
      domctl->u.getdomaininfo.max_pages = buffers;
      domctl->u.getdomaininfo.shared_info_frame = ~0ull;
      domctl->u.getdomaininfo.max_vcpu_id = ~0u;
      domctl->u.getdomaininfo.cpu_time = 1ull << 63;
      return 0;
    case XEN_DOMCTL_getpageframeinfo3:
      if (domctl->u.getpageframeinfo3.num > 1024) {
        errno = E2BIG;
        return -1;
      }
      /* The low nibble of the frame is its type. */
      for (uint64_t i = 0; i < domctl->u.getpageframeinfo3.num; i++) {
        domctl->u.getpageframeinfo3.array.p[i] = domctl->u.getpageframeinfo3.array.p[i] << 28;
      }
      return 0;
    case XEN_DOMCTL_shadow_op:
      return shadow_op(&domctl->u.shadow_op);
    case XEN_DOMCTL_get_address_size:
      domctl->u.address_size.size = domctl->domain == 3 ? 32 : 64;
      return 0;
    case XEN_DOMCTL_getvcpucontext:
      memset(domctl->u.vcpucontext.ctxt.p, 0xcc, domctl->domain == 3 ? 2800 : 5168);
      return 0;
    case XEN_DOMCTL_get_ext_vcpucontext:
      domctl->u.ext_vcpucontext.size = 64;
      return 0;
    default:
      return 0;
  }
}

/* Maps memory of a file whose words tell the frames. What fails cannot be touched. */
void *xenforeignmemory_map2(xenforeignmemory_handle *handle, uint32_t domid, void *at, int protection, int flags,
                            size_t count, const xen_pfn_t gfns[], int errors[]) {
  (void)handle;
  take_time(domid);
  int file = memfd_create("frames", 0);
  if (domid == 4 || file < 0 || ftruncate(file, (off_t)(count * 4096)) != 0) {
    if (flags & MAP_FIXED) munmap(at, count * 4096);
    close(file);
    errno = EPERM;
    return NULL;
  }
  for (size_t i = 0; i < count; i++) {
    uint64_t frame = gfns[i];
    if (pwrite(file, &frame, sizeof frame, (off_t)(i * 4096)) < 0) abort();
    errors[i] = (domid == 3 && frame >= 1 << 20) || (domid == 5 && i + 1 == count && count > 1) ? -EINVAL : 0;
  }
  char *base = mmap(at, count * 4096, protection, MAP_SHARED | flags, file, 0);
  close(file);
  if (base == MAP_FAILED) return NULL;
  for (size_t i = 0; i < count; i++) {
    if (errors[i] != 0) mprotect(base + i * 4096, 4096, PROT_NONE);
  }
  return base;
}

int xc_version(xc_interface *xch, int command, void *argument) {
  (void)xch;
  if (command == XENVER_extraversion) strcpy(argument, ".9-fake");
  if (command == XENVER_capabilities) strcpy(argument, "hvm-3.0-x86_64");
  return command == XENVER_version ? 4 << 16 | 99 : 0;
}

int xc_physinfo(xc_interface *xch, xc_physinfo_t *info) {
  (void)xch;
  if (getenv("FAKE_XEN_ERRNO") != NULL) {
    errno = atoi(getenv("FAKE_XEN_ERRNO"));
    return -1;
  }
  info->capabilities = XEN_SYSCTL_PHYSCAP_hvm | XEN_SYSCTL_PHYSCAP_hap;
  return 0;
}

int xc_hvm_param_get(xc_interface *xch, uint32_t domid, uint32_t index, uint64_t *value) {
  (void)xch;
  (void)domid;
  *value = ~0ull - index;
  return 0;
}

int xc_domain_hvm_getcontext(xc_interface *xch, uint32_t domid, uint8_t *context, uint32_t size) {
  (void)xch;
  (void)domid;
  if (context == NULL) return 4096;
  memset(context, 0xab, size);
  /* Less than was announced: the size is an upper limit. */
  return 100;
}

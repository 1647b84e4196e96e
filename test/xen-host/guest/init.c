/*
 * The only program of a Linux test guest. It fills memory with a pattern, keeps rewriting a part of it, keeps checking
 * all of it, and tells on the console that it lives and that its memory holds:
 *
 *   GUEST UP pages=N dirty=N seed=N        memory is filled; from here on the guest may be saved
 *   TICK n                                 every `tick` milliseconds
 *   SUM ok n pages=N hash=H                pass n over all pages found every word as it was written
 *   SUM BAD n page=P word=W want=… got=…   it did not; the page is put right, so that each loss is told once
 *   VCPU v TICK n online=0-V               the same often, of each vcpu but the first: a process bound to v runs on v
 *
 * Options, on the kernel's command line: fill=MiB, dirty=MiB rewritten in every tick, tick=ms, pass=ticks that a pass
 * over all memory takes, seed=number. As /sbin/poweroff it ends the guest.
 *
 * Word w of page p, rewritten g times: p, g, then base(p, g) + w * STEP: one addition each, as emulation is slow, and
 * still no page or generation that could stand for another. Generations are counted aside: a page that a migration
 * carried over stale does not fit to its count.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define WORDS 512
#define STEP 0x9e3779b97f4a7c15ull

static uint64_t seed = 1;
static uint64_t (*pages)[WORDS];
static uint32_t *generation;

static uint64_t mix(uint64_t x) {
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ x >> 27) * 0x94d049bb133111ebull;
  return x ^ x >> 31;
}

static uint64_t base(size_t page, uint32_t g) { return mix(seed ^ mix((uint64_t)page << 32 | g)); }

static void fill(size_t page) {
  uint64_t *w = pages[page], value = base(page, generation[page]) + 2 * STEP;
  w[0] = page;
  w[1] = generation[page];
  for (int i = 2; i < WORDS; i++, value += STEP) w[i] = value;
}

static int check(size_t page, unsigned long pass) {
  const uint64_t *w = pages[page];
  uint64_t want = page;
  int i = 0;
  if (w[i] == want) {
    i = 1;
    want = generation[page];
    if (w[i] == want) {
      want = base(page, generation[page]) + 2 * STEP;
      for (i = 2; i < WORDS && w[i] == want; i++) want += STEP;
      if (i == WORDS) return 0;
    }
  }
  printf("SUM BAD %lu page=%zu word=%d generation=%u want=%016lx got=%016lx\n", pass, page, i, generation[page],
         (unsigned long)want, (unsigned long)w[i]);
  fill(page);
  return 1;
}

static char options[4096];

static long option(const char *name, long otherwise) {
  size_t length = strlen(name);
  for (const char *at = options; *at; at++)
    if ((at == options || at[-1] == ' ') && !strncmp(at, name, length) && at[length] == '=')
      return strtol(at + length + 1, NULL, 0);
  return otherwise;
}

/* The first line of a file of the kernel's. */
static const char *line(const char *path) {
  static char text[64];
  int fd = open(path, O_RDONLY);
  ssize_t n = fd < 0 ? 0 : read(fd, text, sizeof text - 1);
  if (fd >= 0) close(fd);
  text[n < 0 ? 0 : n] = 0;
  text[strcspn(text, "\n")] = 0;
  return text;
}

/* Where the process runs is asked each time: Linux moves it away from a vcpu that goes offline. */
static void tick_on(int vcpu, struct timespec pause) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(vcpu, &set);
  if (sched_setaffinity(0, sizeof set, &set)) printf("SUM BAD no vcpu %d\n", vcpu);
  for (unsigned long n = 1;; n++) {
    unsigned here = 0;
    syscall(SYS_getcpu, &here, NULL, NULL);
    printf("VCPU %u TICK %lu online=%s\n", here, n, line("/sys/devices/system/cpu/online"));
    nanosleep(&pause, NULL);
  }
}

int main(int argc, char **argv) {
  (void)argc;
  if (strstr(argv[0], "poweroff")) return reboot(RB_POWER_OFF);
  mount("proc", "/proc", "proc", 0, NULL);
  mount("sys", "/sys", "sysfs", 0, NULL);
  setvbuf(stdout, NULL, _IOLBF, 0);
  int fd = open("/proc/cmdline", O_RDONLY);
  if (fd >= 0) {
    ssize_t n = read(fd, options, sizeof options - 1);
    options[n < 0 ? 0 : n] = 0;
    close(fd);
  }
  size_t count = (size_t)option("fill", 32) * 256, dirty = (size_t)option("dirty", 1) * 256;
  long tick = option("tick", 500), slices = option("pass", 4);
  seed = (uint64_t)option("seed", 1);
  if (dirty > count) dirty = count;
  if (slices < 1) slices = 1;
  struct timespec pause = {tick / 1000, tick % 1000 * 1000000};
  /* Now, while they have no memory that would be copied when it is rewritten. */
  for (int vcpu = 1; vcpu < sysconf(_SC_NPROCESSORS_ONLN); vcpu++)
    if (fork() == 0) tick_on(vcpu, pause);
  size_t bytes = count * sizeof *pages;
  pages = bytes ? mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) : NULL;
  generation = calloc(count + 1, sizeof *generation);
  if (pages == MAP_FAILED || !generation) printf("SUM BAD no memory\n"), count = dirty = 0;
  for (size_t p = 0; p < count; p++) fill(p);
  printf("GUEST UP pages=%zu dirty=%zu seed=%lu", count, dirty, (unsigned long)seed);
  printf(" %s", line("/sys/hypervisor/guest_type"));
  printf(" %s\n", line("/proc/uptime"));

  size_t next = 0, slice = (count + slices - 1) / slices;
  unsigned long pass = 1, bad = 0;
  uint64_t hash = 0;
  for (unsigned long n = 1;; n++) {
    printf("TICK %lu\n", n);
    for (size_t p = 0; p < dirty; p++) {
      /* The dirtied part lies in the middle, so that it has quiet pages on both sides. */
      size_t page = (count - dirty) / 2 + p;
      generation[page]++;
      fill(page);
    }
    for (size_t i = 0; i < slice && count; i++) {
      bad += check(next, pass);
      hash = mix(hash ^ pages[next][WORDS - 1]);
      if (++next < count) continue;
      if (!bad) printf("SUM ok %lu pages=%zu hash=%016lx\n", pass, count, (unsigned long)hash);
      next = 0, pass++, bad = 0, hash = 0;
    }
    nanosleep(&pause, NULL);
  }
}

/*
 * agent PORT: runs commands for the build machine, which sits at the other end of a virtio serial port. One command
 * at a time; more ports, more agents.
 * agent ADDRESS PORT: the same for the other host of a pair, over TCP; any number of connections.
 * When the other end hangs up, the command's processes get SIGTERM, and SIGKILL if that has not ended it soon.
 *
 * Frame, both ways:
 *   offset size field
 *        0    1 type: in: X run this shell command, I input, E end of input, K signal to its processes;
 *               out: H hello, O stdout, S stderr, R result
 *        1    4 length of the payload, little endian
 *        5    n payload; K: number of the signal, 1 byte; H: first line of the command; R: exit code as a shell tells
 *               it, 4 bytes
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CHUNK 32768
#define GRACE 5000 /* ms between SIGTERM and SIGKILL */
#define HANGUP (POLLHUP | POLLRDHUP)

static int port;
static int connection; /* the port is a TCP connection */
static int gone;       /* the other end hung up during this command, or wants another one */

/* Without a listener, read() and poll() return at once: sleep until the kernel tells of a change. */
static void wait_for_host(void) {
  sigset_t set;
  struct timespec limit = {5, 0};
  sigemptyset(&set);
  sigaddset(&set, SIGIO);
  sigtimedwait(&set, NULL, &limit);
}

/*
 * A serial port tells that it is connected later than it gives data: what looks like a hang-up then is the one before.
 * If the next caller comes while this waits, its X tells.
 */
static int hung_up(short revents) {
  struct timespec pause = {0, 20000000};
  for (int n = 0; revents & HANGUP; n++) {
    struct pollfd p = {port, 0, 0};
    if (connection || n == 50) return 1;
    nanosleep(&pause, NULL);
    poll(&p, 1, 0);
    revents = p.revents;
  }
  return 0;
}

/* Not patient: for what may never come. */
static int read_all(void *to, size_t size, int patient) {
  for (size_t have = 0; have < size;) {
    ssize_t n = read(port, (char *)to + have, size - have);
    if (n > 0) {
      have += n;
      continue;
    }
    if (n == 0 && patient && !hung_up(POLLHUP)) continue;
    if (n == 0) return -1;
    if (errno == EAGAIN) {
      struct pollfd p = {port, POLLIN, 0};
      poll(&p, 1, -1);
      if (p.revents & POLLHUP && !(p.revents & POLLIN)) return -1;
    } else if (errno != EINTR) return -1;
  }
  return 0;
}

static void write_all(const void *from, size_t size) {
  while (size > 0 && !gone) {
    struct pollfd p = {port, POLLOUT | POLLRDHUP, 0};
    poll(&p, 1, -1);
    if (hung_up(p.revents)) {
      gone = 1;
      return;
    }
    ssize_t n = write(port, from, size);
    if (n > 0) {
      from = (const char *)from + n;
      size -= n;
    } else if (n < 0 && errno != EAGAIN && errno != EINTR) gone = 1;
  }
}

static void frame(char type, const void *payload, uint32_t size) {
  static char out[5 + CHUNK];
  out[0] = type;
  memcpy(out + 1, &size, 4);
  memcpy(out + 5, payload, size);
  write_all(out, 5 + size);
}

/* Returns 0 at the end of the file, or if there is nothing to read now. */
static int forward(int fd, char type) {
  char data[CHUNK];
  ssize_t n = read(fd, data, sizeof data);
  if (n > 0) frame(type, data, n);
  return n > 0;
}

static pid_t start(const char *command, int in[2], int out[2], int err[2]) {
  if (pipe2(in, O_CLOEXEC) || pipe2(out, O_CLOEXEC) || pipe2(err, O_CLOEXEC)) return -1;
  pid_t child = fork();
  if (child == 0) {
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL);
    setsid();
    dup2(in[0], 0);
    dup2(out[1], 1);
    dup2(err[1], 2);
    execl("/bin/bash", "bash", "-c", command, (char *)NULL);
    _exit(127);
  }
  close(in[0]);
  close(out[1]);
  close(err[1]);
  return child;
}

/* The child may not have its group yet. */
static void send_signal(pid_t child, int number) {
  if (kill(-child, number)) kill(child, number);
}

/* The payload of an X, to be freed. */
static char *command_of(uint32_t size) {
  char *command = size > 1 << 20 ? NULL : calloc(1, size + 1);
  if (command && read_all(command, size, 1)) {
    free(command);
    return NULL;
  }
  return command;
}

/* Returns the command of another caller, who came before it was seen that this one hung up. */
static char *run(const char *command) {
  char *next = NULL;
  int in[2], out[2], err[2];
  char pending[CHUNK]; /* input that the command has not taken yet */
  size_t first = 0, last = 0;
  int eof = 0;
  pid_t child = start(command, in, out, err);
  if (child < 0) return NULL;
  int pidfd = syscall(SYS_pidfd_open, child, 0);
  fcntl(in[1], F_SETFL, O_NONBLOCK);
  fcntl(out[0], F_SETFL, O_NONBLOCK);
  fcntl(err[0], F_SETFL, O_NONBLOCK);
  for (gone = 0; !gone;) {
    if (first == last && eof && in[1] >= 0) {
      close(in[1]);
      in[1] = -1;
    }
    struct pollfd p[5] = {{port, (first == last ? POLLIN : 0) | POLLRDHUP, 0},
                          {out[0], POLLIN, 0},
                          {err[0], POLLIN, 0},
                          {pidfd, POLLIN, 0},
                          {first < last ? in[1] : -1, POLLOUT, 0}};
    poll(p, 5, -1);
    if (p[0].revents & HANGUP) gone = hung_up(p[0].revents);
    else if (p[0].revents & POLLIN) {
      char type;
      uint32_t size;
      if (read_all(&type, 1, 1) || read_all(&size, 4, 1)) gone = 1;
      else if (type == 'X') gone = 1, next = command_of(size);
      else if (size > sizeof pending || read_all(pending, size, 1)) gone = 1;
      else if (type == 'E') eof = 1;
      else if (type == 'K' && size == 1) send_signal(child, pending[0]);
      else if (type == 'I') first = 0, last = size;
    }
    if (p[4].revents) {
      ssize_t n = write(in[1], pending + first, last - first);
      if (n > 0) first += n;
      else if (n < 0 && errno != EAGAIN) first = last; /* the command wants no input */
    }
    if (p[1].revents && !forward(out[0], 'O') && p[1].revents & POLLHUP) close(out[0]), out[0] = -1;
    if (p[2].revents && !forward(err[0], 'S') && p[2].revents & POLLHUP) close(err[0]), err[0] = -1;
    if (p[3].revents) {
      /* What it has written is still in the pipes. Background processes may hold them open: no wait for their end. */
      int status;
      while (out[0] >= 0 && forward(out[0], 'O')) continue;
      while (err[0] >= 0 && forward(err[0], 'S')) continue;
      waitpid(child, &status, 0);
      uint32_t code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
      frame('R', &code, 4);
      break;
    }
  }
  if (gone) {
    struct pollfd end = {pidfd, POLLIN, 0};
    send_signal(child, SIGTERM);
    if (poll(&end, 1, GRACE) == 0) send_signal(child, SIGKILL);
  }
  int fds[] = {in[1], out[0], err[0], pidfd};
  for (int i = 0; i < 4; i++)
    if (fds[i] >= 0) close(fds[i]);
  return next;
}

/* Commands of one other end: of a connection until it is closed, of a serial port for ever. */
static void serve(void) {
  for (;;) {
    char type;
    uint32_t size;
    while (waitpid(-1, NULL, WNOHANG) > 0) continue;
    if (read_all(&type, 1, 0) || read_all(&size, 4, 1) || size > 1 << 20) {
      if (connection) return;
      wait_for_host();
      continue;
    }
    char *command = command_of(size);
    if (type != 'X') free(command), command = NULL;
    while (command) {
      char *end = strchrnul(command, '\n');
      size_t length = end - command < 200 ? end - command : 200;
      gone = 0;
      frame('H', command, length);
      char *next = run(command);
      free(command);
      command = next;
    }
  }
}

static int failed(const char *what) {
  perror(what);
  return 1;
}

static int listen_at(const char *address, const char *number) {
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(atoi(number))};
  int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0 || inet_pton(AF_INET, address, &at.sin_addr) != 1) return failed("agent: address");
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (bind(fd, (struct sockaddr *)&at, sizeof at) || listen(fd, 64)) return failed("agent: listen");
  for (;;) {
    while (waitpid(-1, NULL, WNOHANG) > 0) continue;
    port = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (port < 0) continue;
    if (fork() == 0) {
      close(fd);
      setsockopt(port, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
      connection = 1;
      serve();
      _exit(0);
    }
    close(port);
  }
}

int main(int argc, char **argv) {
  sigset_t blocked;
  sigemptyset(&blocked);
  sigaddset(&blocked, SIGIO);
  sigprocmask(SIG_BLOCK, &blocked, NULL);
  signal(SIGPIPE, SIG_IGN);
  if (argc > 2) return listen_at(argv[1], argv[2]);
  port = argc > 1 ? open(argv[1], O_RDWR | O_NONBLOCK | O_CLOEXEC) : -1;
  if (port < 0) return failed("agent");
  fcntl(port, F_SETOWN, getpid());
  fcntl(port, F_SETFL, O_NONBLOCK | O_ASYNC);
  serve();
}

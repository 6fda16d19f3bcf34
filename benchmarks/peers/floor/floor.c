// floor: what no server can go below that waits in the kernel for its clients. One epoll loop that unmasks and frames whole
// messages and answers each read with one write: no HTTP (any first read gets the same 101), no checks, no objects. /fan in
// that first read makes a connection one of those that get every message of theirs. Not a server.
//   floor PORT [awake]     awake: never sleeps while waiting, for comparison
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <malloc.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

static const char hello[] = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                            "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

typedef struct { uint8_t *in, *out; size_t have, room, owed, at; char open, fan; } Client;
static Client clients[1 << 16]; static int fans[1 << 16], fan_count, poll_;

// Unmask the frame at `from`, in front of which its answer's header fits; the answer, or 0 if the frame is not complete.
static uint8_t *answer(uint8_t *from, size_t size, size_t *taken, size_t *length) {
  if (size < 6) return 0;
  uint64_t payload = from[1] & 127; int head = 2;
  if (payload == 126) { if (size < 8) return 0; payload = from[2] << 8 | from[3]; head = 4; }
  else if (payload == 127) { if (size < 14) return 0; payload = 0; for (int i = 2; i < 10; i++) payload = payload << 8 | from[i]; head = 10; }
  if (size < head + 4 + payload) return 0;
  uint32_t key; memcpy(&key, from + head, 4); uint64_t wide = (uint64_t)key << 32 | key;
  uint8_t *body = from + head + 4; size_t i = 0;
  for (; i + 8 <= payload; i += 8) { uint64_t v; memcpy(&v, body + i, 8); v ^= wide; memcpy(body + i, &v, 8); }
  for (; i < payload; i++) body[i] ^= ((uint8_t *)&key)[i & 3];
  uint8_t *out = from + 4; memmove(out, from, head); out[1] &= 127;
  *taken = *length = head + payload; *taken += 4;
  return out;
}

static void watch(int fd, uint32_t events) { struct epoll_event e = {.events = events, .data.fd = fd}; epoll_ctl(poll_, EPOLL_CTL_MOD, fd, &e); }
static void end(int fd) {
  Client *c = &clients[fd]; free(c->in); free(c->out);
  if (c->fan) for (int i = 0; i < fan_count; i++) if (fans[i] == fd) { fans[i] = fans[--fan_count]; break; }
  memset(c, 0, sizeof *c); close(fd);
}
static void flush(int fd) {
  Client *c = &clients[fd];
  while (c->at < c->owed) {
    ssize_t sent = write(fd, c->out + c->at, c->owed - c->at);
    if (sent < 0) { if (errno != EAGAIN) end(fd); return; }
    c->at += sent;
  }
  free(c->out); c->out = 0; c->owed = c->at = 0; watch(fd, EPOLLIN);
}
static void put(int fd, const uint8_t *data, size_t size) {
  Client *c = &clients[fd]; ssize_t sent = 0;
  if (!c->out) { sent = write(fd, data, size); if (sent < 0) { if (errno != EAGAIN) { end(fd); return; } sent = 0; } }
  if ((size_t)sent == size) return;
  if (!c->out) watch(fd, EPOLLIN | EPOLLOUT);
  c->out = realloc(c->out, c->owed + size - sent); memcpy(c->out + c->owed, data + sent, size - sent); c->owed += size - sent;
}
static void ready(int fd) {
  Client *c = &clients[fd];
  if (c->room - c->have < 65536) { c->room = c->room ? c->room * 2 : 131072; c->in = realloc(c->in, c->room); }
  ssize_t got = read(fd, c->in + c->have, c->room - c->have);
  if (got <= 0) { if (got == 0 || errno != EAGAIN) end(fd); return; }
  if (!c->open) {
    c->open = 1; c->fan = got > 8 && !memcmp(c->in, "GET /fan", 8); if (c->fan) fans[fan_count++] = fd;
    if (write(fd, hello, sizeof hello - 1) < 0) end(fd);
    return;
  }
  c->have += got;
  size_t from = 0, to = 0, taken, length; uint8_t *out;
  while ((out = answer(c->in + from, c->have - from, &taken, &length))) {
    if (c->fan) for (int i = 0; i < fan_count; i++) put(fans[i], out, length);
    else { if (out != c->in + to) memmove(c->in + to, out, length); to += length; }  // all answers of this read stand together
    from += taken;
  }
  if (to) { put(fd, c->in, to); if (!clients[fd].open) return; }
  if (from) { memmove(c->in, c->in + from, c->have - from); c->have -= from; }
}

int main(int argc, char **argv) {
  if (argc < 2) return 2;
  mallopt(M_MMAP_THRESHOLD, 32 << 20); mallopt(M_TRIM_THRESHOLD, 256 << 20);  // large blocks are used again, page by page
  struct rlimit files; getrlimit(RLIMIT_NOFILE, &files); files.rlim_cur = files.rlim_max; setrlimit(RLIMIT_NOFILE, &files);
  int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0); poll_ = epoll_create1(0);
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1]))};
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (bind(listener, (void *)&address, sizeof address) || listen(listener, 4096)) return 1;
  struct epoll_event event = {.events = EPOLLIN, .data.fd = listener}, found[512];
  epoll_ctl(poll_, EPOLL_CTL_ADD, listener, &event);
  for (;;) {
    int count = epoll_wait(poll_, found, 512, argc > 2 ? 0 : -1);
    for (int i = 0; i < count; i++) {
      int fd = found[i].data.fd;
      if (fd == listener) {
        int client = accept4(listener, 0, 0, SOCK_NONBLOCK); if (client < 0) continue;
        if (client >= 1 << 16) { close(client); continue; }
        setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        event.events = EPOLLIN; event.data.fd = client; epoll_ctl(poll_, EPOLL_CTL_ADD, client, &event);
        continue;
      }
      if (found[i].events & EPOLLOUT) { flush(fd); if (!clients[fd].open) continue; }
      if (found[i].events & ~EPOLLOUT) ready(fd);
    }
  }
}

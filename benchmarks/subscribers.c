// subscribers: WebSocket clients of the ticker, single-threaded, epoll.
//   subscribers hold PORT CONNS SYMBOLS SECONDS   connection k asks for /S<k mod SYMBOLS> and reads for SECONDS
// Prints "open N", then, at the end, one JSON line: messages, latency of each from the "at" in it (CLOCK_MONOTONIC, ns) to
// the read, `gaps` (a "count" that is not the one before plus one), and the last count of each symbol; connections that
// disagree on it are `uneven`.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

typedef struct { int fd, open, len; uint8_t buf[16384]; long count; } Conn;
static Conn *C; static int N, symbols, ep, nopen; static uint64_t received, gaps;
static uint32_t hist[2000000]; static uint64_t worst;
static uint64_t now_ns(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1000000000ull + t.tv_nsec; }
static double pct(double p) { uint64_t want = received * p, c = 0; for (int i = 0; i < 2000000; i++) { c += hist[i]; if (c > want) return i; } return 0; }
static void message(Conn *c, char *text, int size, uint64_t t) {
  char saved = text[size]; text[size] = 0;
  char *at = strstr(text, "\"at\": "), *count = strstr(text, "\"count\": ");
  if (!at || !count) { fprintf(stderr, "not a tick: %s\n", text); exit(1); }
  uint64_t us = (t - strtoull(at + 6, 0, 10)) / 1000; if (us > worst) worst = us;
  hist[us < 2000000 ? us : 1999999]++; received++;
  long n = strtol(count + 9, 0, 10); gaps += n != c->count + 1; c->count = n; text[size] = saved;
}
static void readable(Conn *c) {
  int n = read(c->fd, c->buf + c->len, sizeof c->buf - 1 - c->len);
  if (n < 0 && errno == EAGAIN) return;
  if (n <= 0) { fprintf(stderr, "closed by server\n"); exit(1); }
  c->len += n; uint64_t t = now_ns(); int o = 0;
  if (!c->open) {
    uint8_t *e = memmem(c->buf, c->len, "\r\n\r\n", 4); if (!e) return;
    if (memcmp(c->buf, "HTTP/1.1 101", 12)) { fwrite(c->buf, 1, c->len, stderr); exit(1); }
    c->open = 1; nopen++; o = e + 4 - c->buf;
  }
  while (c->len - o >= 2) {
    int l = c->buf[o + 1] & 127, h = 2;
    if (l == 126) { if (c->len - o < 4) break; l = c->buf[o + 2] << 8 | c->buf[o + 3]; h = 4; }
    if (c->len - o < h + l) break;
    if ((c->buf[o] & 15) == 1) message(c, (char *)c->buf + o + h, l, t);
    o += h + l;
  }
  memmove(c->buf, c->buf + o, c->len - o); c->len -= o;
}
static void loop(uint64_t until, int want_open) {
  struct epoll_event ev[512];
  while (now_ns() < until && (want_open < 0 || nopen < want_open)) {
    int n = epoll_wait(ep, ev, 512, 20);
    for (int i = 0; i < n; i++) readable(ev[i].data.ptr);
  }
}
int main(int argc, char **argv) {
  if (argc != 6) return 2;
  int port = atoi(argv[2]); N = atoi(argv[3]); symbols = atoi(argv[4]); C = calloc(N, sizeof *C); ep = epoll_create1(0);
  for (int k = 0; k < N; k++) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port)}; a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = C[k].fd = socket(AF_INET, SOCK_STREAM, 0); char r[512];
    if (connect(fd, (void *)&a, sizeof a)) { perror("connect"); return 1; }
    int n = snprintf(r, sizeof r, "GET /S%d HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n", k % symbols, port);
    if (write(fd, r, n) != n) { perror("hello"); return 1; }
    fcntl(fd, F_SETFL, O_NONBLOCK);
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = &C[k]}; epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e);
    loop(now_ns() + 10000000000ull, k + 1);
  }
  printf("open %d\n", nopen); fflush(stdout);
  loop(now_ns() + (uint64_t)(atof(argv[5]) * 1e9), -1);
  int uneven = 0; for (int k = symbols; k < N; k++) uneven += C[k].count != C[k % symbols].count;
  printf("{\"received\":%lu,\"p50_us\":%.0f,\"p99_us\":%.0f,\"max_us\":%lu,\"gaps\":%lu,\"uneven\":%d,\"counts\":{", received, pct(.5), pct(.99), worst, gaps, uneven);
  for (int k = 0; k < symbols; k++) printf("%s\"S%d\":%ld", k ? "," : "", k, C[k].count);
  printf("}}\n"); return 0;
}

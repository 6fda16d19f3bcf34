// floor: what no server can go below that waits in the kernel for its clients. One epoll loop that answers each read with
// one write: no HTTP (any first read gets the same 101), no checks, no objects, frames unmasked in place. Not a server.
//   floor PORT [awake]     awake: never sleeps while waiting, for comparison
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

static const char hello[] = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                            "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

static int echo(const unsigned char *in, int size, unsigned char *out) {
  int from = 0, to = 0;
  while (size - from >= 6) {
    int length = in[from + 1] & 127, head = 2;
    if (length == 126) { if (size - from < 8) break; length = in[from + 2] << 8 | in[from + 3]; head = 4; }
    if (size - from < head + 4 + length) break;
    memcpy(out + to, in + from, head); out[to + 1] &= 127;
    const unsigned char *mask = in + from + head, *body = mask + 4;
    for (int i = 0; i < length; i++) out[to + head + i] = body[i] ^ mask[i & 3];
    from += head + 4 + length; to += head + length;
  }
  return to;
}

int main(int argc, char **argv) {
  if (argc < 2) return 2;
  struct rlimit files; getrlimit(RLIMIT_NOFILE, &files); files.rlim_cur = files.rlim_max; setrlimit(RLIMIT_NOFILE, &files);
  static char open_[1 << 20]; static unsigned char in[65536], out[65536];
  int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0), poll = epoll_create1(0);
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1]))};
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (bind(listener, (void *)&address, sizeof address) || listen(listener, 4096)) return 1;
  struct epoll_event event = {.events = EPOLLIN, .data.fd = listener}, ready[512];
  epoll_ctl(poll, EPOLL_CTL_ADD, listener, &event);
  for (;;) {
    int count = epoll_wait(poll, ready, 512, argc > 2 ? 0 : -1);
    for (int i = 0; i < count; i++) {
      int fd = ready[i].data.fd;
      if (fd == listener) {
        int client = accept4(listener, 0, 0, SOCK_NONBLOCK); if (client < 0) continue;
        setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        open_[client] = 0; event.data.fd = client; epoll_ctl(poll, EPOLL_CTL_ADD, client, &event);
        continue;
      }
      int size = read(fd, in, sizeof in);
      if (size <= 0) close(fd);
      else if (!open_[fd]) { open_[fd] = 1; if (write(fd, hello, sizeof hello - 1) < 0) close(fd); }
      else if ((size = echo(in, size, out)) && write(fd, out, size) < 0) close(fd);
    }
  }
}

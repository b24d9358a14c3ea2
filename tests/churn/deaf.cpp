// deaf.cpp — preloaded into a peer: it stops reading its data lanes when a file appears.
//
// Lanes ask for kilobytes at a time, control connections for a frame's head or its few bytes.  So
// such a peer beats and answers on, but its receive windows fill to zero and stay there.  This is
// the peer that no lease finds.
// DEAF_WHEN names the file.
//
// Ownership: none.
// Threads:   any.
// Errors:    without DEAF_WHEN it changes nothing.

#include <dlfcn.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>

using Receive = ssize_t (*)(int, msghdr*, int);

constexpr size_t control_bytes_max = 1024;

static size_t asked(const msghdr& message) {
  size_t bytes = 0;
  for (size_t i = 0; i < message.msg_iovlen; ++i) bytes += message.msg_iov[i].iov_len;
  return bytes;
}

extern "C" ssize_t recvmsg(int fd, msghdr* message, int flags) {
  static const auto receive = reinterpret_cast<Receive>(::dlsym(RTLD_NEXT, "recvmsg"));
  static const char* const when = std::getenv("DEAF_WHEN");
  const bool lane = asked(*message) > control_bytes_max;
  if (lane && when != nullptr && ::access(when, F_OK) == 0) {
    errno = EAGAIN;
    return -1;
  }
  return receive(fd, message, flags);
}

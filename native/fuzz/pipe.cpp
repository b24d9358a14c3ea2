// native/fuzz/pipe.cpp — stream sockets in memory, behind wrapped system calls.
// Ownership: a table of streams, each used by one Pipe at a time.
// Threads:   one.
// Errors:    errno, as the kernel has it; a broken harness aborts.
#include "fuzz/pipe.hpp"

#include <linux/sockios.h>
#include <sys/epoll.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdarg>
#include <utility>

#include "fuzz/pieces.hpp"
#include "ucx/stream.hpp"

#if defined(__SANITIZE_ADDRESS__) || defined(PCCL_FUZZ_ADDRESS)
#include <sanitizer/asan_interface.h>
#endif

namespace {

constexpr int first_descriptor = 1 << 24;  // far above what a process may have open
constexpr std::size_t pipes_max = fuzz::Pipe::count_max;
constexpr std::size_t unread_bytes_max = 208 * 1024;  // Linux's default for a socket

struct Stream {
  fuzz::Bytes said;         // to the near end
  std::size_t read = 0;     // of that
  std::size_t heard = 0;    // bytes from the near end that nobody has read
  fuzz::Bytes kept;         // they themselves, if anybody ever will
  bool keeps = false;
  bool near_open = false;
  bool far_open = false;
  bool shut = false;
  std::uint64_t token = 0;  // with which the near end is watched
};
std::array<Stream, pipes_max> streams;
fuzz::Dialled* dialled = nullptr;  // takes what is dialled, if anybody does

/// What a stream of UCX's messages maps; one such block is kept with its pages.
constexpr std::size_t spared_bytes = 2 * pccl::UcxStream::messages_max *
                                     pccl::UcxStream::message_bytes;
void* spare = nullptr;

/// Who looks at the beginning of a place of such a block is caught as if the block were gone.
void mark_places([[maybe_unused]] void* memory, [[maybe_unused]] bool there) {
#if defined(__SANITIZE_ADDRESS__) || defined(PCCL_FUZZ_ADDRESS)
  for (std::size_t at = 0; at < spared_bytes; at += pccl::UcxStream::message_bytes) {
    const auto* place = static_cast<std::byte*>(memory) + at;
    if (there) {
      __asan_unpoison_memory_region(place, 64);
    } else {
      __asan_poison_memory_region(place, 64);
    }
  }
#endif
}

bool is_free(const Stream& stream) { return !stream.near_open && !stream.far_open; }
bool ours(int fd) { return fd >= first_descriptor; }
bool is_far(int fd) { return (fd & 1) != 0; }

Stream& of(int fd) {
  const auto index = static_cast<std::size_t>((fd - first_descriptor) / 2);
  fuzz::require(index < pipes_max);
  Stream& stream = streams[index];
  fuzz::require(is_far(fd) ? stream.far_open : stream.near_open);  // no use after close
  return stream;
}

int fail(int error) {
  errno = error;
  return -1;
}

std::size_t unread(const Stream& stream) { return stream.said.size() - stream.read; }

ssize_t receive(int fd, std::span<const iovec> parts) {
  Stream& stream = of(fd);
  fuzz::require(!is_far(fd));
  if (unread(stream) == 0) return stream.far_open && !stream.shut ? fail(EAGAIN) : 0;
  ssize_t got = 0;
  for (const iovec& part : parts) {
    const std::size_t here = std::min(part.iov_len, unread(stream));
    if (here > 0) std::memcpy(part.iov_base, stream.said.data() + stream.read, here);
    stream.read += here;
    got += static_cast<ssize_t>(here);
  }
  return got;
}

ssize_t transmit(int fd, std::span<const iovec> parts) {
  Stream& stream = of(fd);
  fuzz::require(!is_far(fd));
  if (!stream.far_open || stream.shut) return fail(EPIPE);
  ssize_t sent = 0;
  for (const iovec& part : parts) {
    const std::size_t here = std::min(part.iov_len, unread_bytes_max - stream.heard);
    if (stream.keeps) {
      fuzz::append(stream.kept, {static_cast<const std::byte*>(part.iov_base), here});
    } else {  // a sanitizer sees whether all of it may be read
      const auto* bytes = static_cast<const volatile unsigned char*>(part.iov_base);
      for (std::size_t i = 0; i < here; i += 64) static_cast<void>(bytes[i]);
      if (here > 0) static_cast<void>(bytes[here - 1]);
    }
    stream.heard += here;
    sent += static_cast<ssize_t>(here);
  }
  return sent > 0 ? sent : fail(EAGAIN);
}

/// Both ends are on one machine.
int loopback(sockaddr* address, socklen_t* bytes) {
  sockaddr_in here{};
  here.sin_family = AF_INET;
  here.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  std::memcpy(address, &here, std::min<std::size_t>(*bytes, sizeof here));
  *bytes = sizeof here;
  return 0;
}

}  // namespace

namespace fuzz {

Pipe::Pipe(bool keeps) {
  const auto found = std::find_if(streams.begin(), streams.end(), is_free);
  require(found != streams.end());
  found->said.clear();
  found->kept.clear();
  found->read = found->heard = 0;
  found->keeps = keeps;
  found->shut = false;
  found->token = 0;
  found->near_open = found->far_open = true;
  near = pccl::Fd(first_descriptor + 2 * static_cast<int>(found - streams.begin()));
  far = pccl::Fd(near.get() + 1);
}

Dialled::Dialled() {
  require(dialled == nullptr);
  dialled = this;
}

Dialled::~Dialled() { dialled = nullptr; }

void Pipe::say(std::span<const std::byte> bytes) const {
  Stream& stream = of(far.get());
  if (!stream.near_open) return;
  if (unread(stream) == 0) {
    stream.said.clear();
    stream.read = 0;
  }
  append(stream.said, bytes.first(std::min(bytes.size(), unread_bytes_max - unread(stream))));
}

std::vector<std::byte> Pipe::hear() const {
  Stream& stream = of(far.get());
  if (stream.keeps) stream.heard = 0;
  return std::exchange(stream.kept, {});
}

std::uint64_t Pipe::token() const { return of(far.get()).token; }

}  // namespace fuzz

extern "C" {
ssize_t __real_recv(int fd, void* target, std::size_t bytes, int flags);
ssize_t __real_send(int fd, const void* source, std::size_t bytes, int flags);
ssize_t __real_recvmsg(int fd, msghdr* message, int flags);
ssize_t __real_sendmsg(int fd, const msghdr* message, int flags);
int __real_setsockopt(int fd, int level, int name, const void* value, socklen_t bytes);
int __real_getsockopt(int fd, int level, int name, void* value, socklen_t* bytes);
int __real_getsockname(int fd, sockaddr* address, socklen_t* bytes);
int __real_getpeername(int fd, sockaddr* address, socklen_t* bytes);
int __real_shutdown(int fd, int how);
int __real_ioctl(int fd, unsigned long request, ...);
int __real_epoll_ctl(int epoll, int operation, int fd, epoll_event* event);
int __real_close(int fd);
int __real_socket(int family, int kind, int protocol);
int __real_connect(int fd, const sockaddr* address, socklen_t bytes);
void* __real_mmap(void* at, std::size_t bytes, int protection, int flags, int fd, off_t offset);
int __real_munmap(void* memory, std::size_t bytes);

ssize_t __wrap_recv(int fd, void* target, std::size_t bytes, int flags) {
  const iovec part{target, bytes};
  if (!ours(fd)) return __real_recv(fd, target, bytes, flags);
  const ssize_t got = receive(fd, {&part, 1});
  if (got > 0 && (flags & MSG_PEEK) != 0) of(fd).read -= static_cast<std::size_t>(got);
  return got;
}
ssize_t __wrap_send(int fd, const void* source, std::size_t bytes, int flags) {
  const iovec part{const_cast<void*>(source), bytes};
  return ours(fd) ? transmit(fd, {&part, 1}) : __real_send(fd, source, bytes, flags);
}
ssize_t __wrap_recvmsg(int fd, msghdr* message, int flags) {
  if (!ours(fd)) return __real_recvmsg(fd, message, flags);
  return receive(fd, {message->msg_iov, message->msg_iovlen});
}
ssize_t __wrap_sendmsg(int fd, const msghdr* message, int flags) {
  if (!ours(fd)) return __real_sendmsg(fd, message, flags);
  return transmit(fd, {message->msg_iov, message->msg_iovlen});
}
int __wrap_setsockopt(int fd, int level, int name, const void* value, socklen_t bytes) {
  if (!ours(fd)) return __real_setsockopt(fd, level, name, value, bytes);
  return level == SOL_SOCKET ? 0 : fail(EOPNOTSUPP);  // no more TCP than a pair of sockets is
}
int __wrap_getsockopt(int fd, int level, int name, void* value, socklen_t* bytes) {
  if (!ours(fd)) return __real_getsockopt(fd, level, name, value, bytes);
  if (level != SOL_SOCKET || name != SO_ERROR) return fail(EOPNOTSUPP);
  const Stream& stream = of(fd);
  const int error = stream.far_open ? 0 : ECONNREFUSED;
  std::memcpy(value, &error, std::min<std::size_t>(*bytes, sizeof error));
  return 0;
}
int __wrap_socket(int family, int kind, int protocol) {
  if (dialled == nullptr) return __real_socket(family, kind, protocol);
  if (std::none_of(streams.begin(), streams.end(), is_free)) return fail(EMFILE);
  dialled->pipes.emplace_back(true);
  return dialled->pipes.back().near.release();
}
int __wrap_connect(int fd, const sockaddr* address, socklen_t bytes) {
  return ours(fd) ? fail(EINPROGRESS) : __real_connect(fd, address, bytes);
}
int __wrap_getsockname(int fd, sockaddr* address, socklen_t* bytes) {
  return ours(fd) ? loopback(address, bytes) : __real_getsockname(fd, address, bytes);
}
int __wrap_getpeername(int fd, sockaddr* address, socklen_t* bytes) {
  return ours(fd) ? loopback(address, bytes) : __real_getpeername(fd, address, bytes);
}
int __wrap_shutdown(int fd, int how) {
  if (!ours(fd)) return __real_shutdown(fd, how);
  of(fd).shut = true;
  return 0;
}
int __wrap_ioctl(int fd, unsigned long request, ...) {
  va_list arguments;
  va_start(arguments, request);
  void* argument = va_arg(arguments, void*);
  va_end(arguments);
  if (!ours(fd)) return __real_ioctl(fd, request, argument);
  if (request != SIOCOUTQ) return fail(ENOTTY);
  *static_cast<int*>(argument) = static_cast<int>(of(fd).heard);
  return 0;
}
int __wrap_epoll_ctl(int epoll, int operation, int fd, epoll_event* event) {
  if (!ours(fd)) return __real_epoll_ctl(epoll, operation, fd, event);
  of(fd).token = operation == EPOLL_CTL_DEL ? 0 : event->data.u64;
  return 0;
}
int __wrap_posix_fallocate(int fd, off_t offset, off_t bytes) {
  return ::ftruncate(fd, offset + bytes) == 0 ? 0 : errno;
}
void* __wrap_mmap(void* at, std::size_t bytes, int protection, int flags, int fd, off_t offset) {
  if (fd >= 0 || bytes != spared_bytes || spare == nullptr) {
    return __real_mmap(at, bytes, protection, flags, fd, offset);
  }
  mark_places(spare, true);
  return std::exchange(spare, nullptr);
}
int __wrap_munmap(void* memory, std::size_t bytes) {
  if (bytes != spared_bytes || spare != nullptr) return __real_munmap(memory, bytes);
  mark_places(memory, false);
  spare = memory;
  return 0;
}
int __wrap_close(int fd) {
  if (!ours(fd)) return __real_close(fd);
  (is_far(fd) ? of(fd).far_open : of(fd).near_open) = false;
  return 0;
}
}

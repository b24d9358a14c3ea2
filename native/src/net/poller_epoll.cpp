// native/src/net/poller_epoll.cpp — the Poller over epoll(7).
// Ownership: see poller.hpp.
// Threads:   see poller.hpp.
// Errors:    see poller.hpp.
#include <sys/epoll.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <system_error>

#include "pccl/poller.hpp"

namespace pccl {
namespace {

constexpr std::size_t batch = 64;  // events fetched per system call; more come with the next

epoll_event as_event(std::uint32_t interest, std::uint64_t token) noexcept {
  epoll_event event{};
  if ((interest & ready::read) != 0) event.events |= EPOLLIN | EPOLLRDHUP;
  if ((interest & ready::write) != 0) event.events |= EPOLLOUT;
  event.data.u64 = token;
  return event;
}

std::uint32_t as_bits(std::uint32_t events) noexcept {
  std::uint32_t bits = 0;
  if ((events & (EPOLLIN | EPOLLRDHUP)) != 0) bits |= ready::read;
  if ((events & EPOLLOUT) != 0) bits |= ready::write;
  if ((events & (EPOLLERR | EPOLLHUP)) != 0) bits |= ready::error;
  return bits;
}

}  // namespace

Poller::Poller() : epoll_(::epoll_create1(EPOLL_CLOEXEC)) {
  if (!epoll_) throw std::system_error(errno, std::system_category(), "epoll_create1");
}

Status Poller::add(int fd, std::uint32_t interest, std::uint64_t token) noexcept {
  epoll_event event = as_event(interest, token);
  return ::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) == 0 ? Status::ok : Status::io_error;
}

Status Poller::modify(int fd, std::uint32_t interest, std::uint64_t token) noexcept {
  epoll_event event = as_event(interest, token);
  return ::epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, fd, &event) == 0 ? Status::ok : Status::io_error;
}

void Poller::remove(int fd) noexcept {
  epoll_event unused{};
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, &unused);
}

std::size_t Poller::wait(std::span<Event> events, int timeout_ms) noexcept {
  std::array<epoll_event, batch> raw;
  const std::size_t room = std::min(events.size(), raw.size());
  const int count = room == 0 ? 0
                              : ::epoll_wait(epoll_.get(), raw.data(), static_cast<int>(room),
                                             timeout_ms);
  if (count <= 0) return 0;  // EINTR and time-outs alike: the caller looks at its clock
  for (std::size_t i = 0; i < static_cast<std::size_t>(count); ++i) {
    events[i] = {.token = raw[i].data.u64, .bits = as_bits(raw[i].events)};
  }
  return static_cast<std::size_t>(count);
}

}  // namespace pccl

// native/src/ucx/worker.hpp — the one worker of a reactor, and the streams on it.
// Ownership: owns context, worker and streams; a conduit borrows its stream until it gives it back.
// Threads:   under the engine's turn.
// Errors:    see ucx.hpp.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "pccl/ucx.hpp"
#include "pccl/wire.hpp"
#include "ucx/stream.hpp"

namespace pccl {

class UcxWorkerImpl final : public UcxWorker {
 public:
  explicit UcxWorkerImpl(std::unique_ptr<UcpLibrary> library) noexcept
      : library_(std::move(library)), ucp_{*library_} {}
  ~UcxWorkerImpl() override;
  /// Once, before all else; false: `obstacle` says why.
  bool open(bool loopback, std::string& obstacle);

  int event_fd() const noexcept override { return event_fd_; }
  bool arm() noexcept override;
  std::size_t progress(std::span<Poller::Event> events, double now_s) noexcept override;
  bool busy() const noexcept override;
  std::unique_ptr<Conduit> conduit(std::unique_ptr<Conduit> signal) override;
  UcxReport report() const override;
  bool changed() noexcept override { return std::exchange(changed_, false); }

  // --- of its conduits ---
  UcxStream* open_stream();
  /// The stream ends; what UCX still holds of it is waited for here.
  void give_back(UcxStream* stream) noexcept;
  /// UCX does not reach that machine: conduits to it stay as they are.
  void give_up(const std::string& machine) noexcept;
  /// Lets UCX look at once what has come.
  void look() noexcept;
  void count(bool through_ucx) noexcept {
    ++(through_ucx ? through_ucx_ : declined_);
    changed_ = true;
  }
  /// How others reach it, for a stream.
  [[nodiscard]] WorkerBody body(std::uint64_t name) const noexcept {
    return {name, library_->major_version, library_->minor_version, address_};
  }

 private:
  static ucp::Ucs on_data(void* worker, const void* header, std::size_t header_size, void* data,
                          std::size_t bytes, const ucp::ReceivedParam* param) noexcept;
  static ucp::Ucs on_taken(void* worker, const void* header, std::size_t header_size, void* data,
                           std::size_t bytes, const ucp::ReceivedParam* param) noexcept;
  ucp::Ucs hear(unsigned id, const void* header, std::size_t header_size, void* data,
                std::size_t bytes, const ucp::ReceivedParam* param) noexcept;
  bool handle(unsigned id, ucp::Received callback) noexcept;
  bool learn_address(std::string& obstacle);
  void settle(UcxStream& stream) noexcept;
  [[nodiscard]] bool any_ready() const noexcept;
  [[nodiscard]] bool gave_up(const std::string& machine) const noexcept;
  void reap() noexcept;

  std::unique_ptr<UcpLibrary> library_;
  UcpContext ucp_;
  int event_fd_ = -1;  // UCX's own
  std::vector<std::byte> address_;
  std::unordered_map<std::uint64_t, std::unique_ptr<UcxStream>> streams_;
  std::size_t first_ = 0;  // where progress() begins among the streams
  std::vector<std::unique_ptr<UcxStream>> ending_;
  std::vector<std::string> out_of_reach_;  // machines, by the addresses of their sockets
  std::string transports_;
  bool rdma_ = false;
  bool changed_ = false;
  std::uint64_t through_ucx_ = 0;
  std::uint64_t declined_ = 0;
};

}  // namespace pccl

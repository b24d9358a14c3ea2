// native/include/pccl/ucx.hpp — conduits whose bytes go through UCX: RDMA where there is RDMA.
//
// One worker per reactor.  A conduit begins as the connection it is made from: both ends say there
// how to reach their workers, then the bytes go through UCX and the connection only tells of death.
// An end that does without UCX answers so, and the bytes stay on the connection.
//
//   sender                                                       receiver
//     send() ── copy ──► tile ── active message, in UCX ──► tile ── receive() ──► lane
//        ▲                                                              │
//        └──────────── how many messages have been taken ◄──────────────┘
//
// At most messages_max messages are under way, so both sides' memory is bounded whatever the other
// does; nothing of the callers' is ever given to UCX, so a fence has nothing to wait for.
//
// Ownership: the worker outlives its conduits; memory that UCX may still write to is the worker's.
// Threads:   one at a time, under the engine's turn; event_fd() may be polled by any.
// Errors:    make() says why not; conduits say it by Status.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "pccl/conduit.hpp"
#include "pccl/poller.hpp"

namespace pccl {

/// What became of conduits made by one worker.
struct UcxReport {
  std::string version;
  std::string transports;      // that UCX chose, each once: "tcp/eth0; rc_mlx5/mlx5_0:1", ...
  std::uint64_t through_ucx = 0;  // conduits whose bytes go through UCX, ever
  std::uint64_t declined = 0;     // that stayed as they were: the other end does without UCX
  std::size_t streams = 0;        // now, with those that are ending
  std::size_t requests = 0;       // that UCX has and has not completed
  bool rdma = false;              // all of them have remote memory access
};

class UcxWorker {
 public:
  /// Loads the first of `libraries` (paths, or names for the loader) that is a usable libucp.
  /// Null: `obstacle` says why.  `loopback`: it can be reached from this machine alone, unless
  /// UCX_NET_DEVICES says otherwise.
  static std::unique_ptr<UcxWorker> make(std::span<const std::string> libraries, bool loopback,
                                         std::string& obstacle);
  UcxWorker() = default;
  UcxWorker(const UcxWorker&) = delete;
  UcxWorker& operator=(const UcxWorker&) = delete;
  virtual ~UcxWorker() = default;

  /// Readable when progress() has something to do, after arm() said so.
  [[nodiscard]] virtual int event_fd() const noexcept = 0;
  /// True: nothing is to be done until event_fd() is readable.  False: call progress().
  virtual bool arm() noexcept = 0;
  /// Moves what can move and fills `events` with conduits that are ready, as a Poller would, with
  /// the token that watch() got; level-triggered.  A conduit that owes bytes and has never heard a
  /// word through UCX in about 2 s of such calls fails, and the next one to there stays as it is.
  virtual std::size_t progress(std::span<Poller::Event> events, double now_s) noexcept = 0;
  /// UCX holds something that has to move on.
  [[nodiscard]] virtual bool busy() const noexcept = 0;

  /// Takes over `signal`, whose other end is given to such a worker, too.
  virtual std::unique_ptr<Conduit> conduit(std::unique_ptr<Conduit> signal) = 0;
  [[nodiscard]] virtual UcxReport report() const = 0;
  /// Since the last call report() has become another one, but for what comes and goes.
  virtual bool changed() noexcept = 0;
};

}  // namespace pccl

// native/src/engine/membership.cpp — what the member's agent tells the engine.
// Ownership: see engine.hpp.
// Threads:   the agent's.
// Errors:    EngineFailure.
#include <algorithm>
#include <thread>

#include "pccl/clock.hpp"
#include "pccl/engine.hpp"
#include "pccl/xxh3.hpp"

namespace pccl {

void Engine::admit(const Identity& identity, const CoordinatorEndpoint& coordinator) {
  check_usable();
  with_turn([&](Lock&) { executor_.admit(identity.incarnation); });
  control_->admit(identity, coordinator);
}

void Engine::prepare_view(Generation, Epoch epoch, const std::vector<MemberEntry>& members) {
  check_usable();
  expect(members);
  with_turn([&](Lock&) { executor_.prepare(epoch, members, monotonic_s()); });
}

StepId Engine::hold(Generation generation, Epoch epoch) {
  check_usable();
  return with_turn([&](Lock&) { return executor_.hold(generation, epoch); });
}

std::uint64_t Engine::entry_within(const std::string& name) {
  check_usable();
  return with_turn([&](Lock&) { return executor_.entry_within(name_hash(name)); });
}

void Engine::activate(const View& view, const std::vector<MemberEntry>& members, StepId step,
                      const std::string& name) {
  check_usable();
  with_turn([&](Lock&) {
    std::optional<std::uint64_t> hash;
    if (!name.empty()) hash = name_hash(name);
    executor_.activate(view, members, step, hash, monotonic_s());
    after_change();
  });
}

void Engine::cancel_plan(Generation generation, Epoch epoch) {
  check_usable();
  with_turn([&](Lock&) {
    executor_.cancel_plan(generation, epoch);
    after_change();
  });
}

void Engine::install(const View& view, const std::vector<MemberEntry>& members,
                     StepId committed_below, const std::vector<Decision>& decisions) {
  check_usable();
  expect(members);
  const Status status = with_turn([&](Lock&) {
    const Status done = executor_.install(view, members, committed_below, decisions, monotonic_s());
    after_change();
    return done;
  });
  if (status == Status::protocol) {
    evicted("the coordinator's outcome contradicts what this peer holds");
    return;
  }
  control_->beat_now();
  emit({EngineEvent::Kind::installed, view.epoch, 0, {}, {}});
}

void Engine::exclude(Generation generation, Epoch epoch, const std::string& text,
                     SuspectCode code) {
  check_usable();
  with_turn([&](Lock&) {
    excluded_text_ = text;
    executor_.exclude(generation, epoch, text, code);
    after_change();
  });
  control_->beat_now();
  emit({EngineEvent::Kind::excluded, epoch, 0, {}, {}});
}

/// Who comes from where these are is served before strangers.
void Engine::expect(const std::vector<MemberEntry>& members) {
  std::vector<std::string> hosts;
  for (const MemberEntry& entry : members) hosts.push_back(entry.endpoint.host);
  control_->expect(hosts);
}

void Engine::fail(const std::string& code, const std::string& text) {
  check_usable();
  with_turn([&](Lock&) {
    if (!failed_code_.empty()) return;
    failed_code_ = code;
    failed_text_ = text;
    executor_.abandon();
    emit({EngineEvent::Kind::decided, 0, ~StepId{0}, code, {}});  // all of them
    after_change();
  });
}

}  // namespace pccl

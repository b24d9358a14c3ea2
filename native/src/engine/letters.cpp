// native/src/engine/letters.cpp — messages between programs: what a program asks of the engine.
// Ownership: see engine.hpp.
// Threads:   any.
// Errors:    EngineFailure.
#include "pccl/clock.hpp"
#include "pccl/engine.hpp"

namespace pccl {

LetterId Engine::post(PostedLetter posted, double timeout_s) {
  check_usable();
  const double now_s = monotonic_s();
  posted.deadline_s = now_s + timeout_s;
  return with_turn([&](Lock&) {
    if (!failed_code_.empty()) throw EngineFailure(failed_code_, failed_text_);
    const OutcomeMachine* machine = executor_.machine();
    if (machine != nullptr && machine->has_left()) {
      throw EngineFailure("left", "this peer has left the run, as it was asked to");
    }
    std::string obstacle;
    const LetterId id = executor_.post(posted, obstacle);
    if (id == 0) throw EngineFailure("usage", obstacle);
    (void)pump(now_s);
    attend();  // whoever posts it need not wait for it
    tell_decided();
    return id;
  });
}

Letter Engine::letter(LetterId id) {
  check_usable();
  return with_turn([&](Lock&) {
    const Letter* found = executor_.letters().find(id);
    if (found == nullptr) throw EngineFailure("usage", "no such message");
    if (found->end == LetterEnd::closed) throw EngineFailure(failed_code_, failed_text_);
    return *found;
  });
}

void Engine::cancel_letter(LetterId id) {
  check_usable();
  with_turn([&](Lock&) {
    executor_.letters().cancel(id);
    attend();
    tell_decided();
  });
}

void Engine::release_letter(LetterId id) {
  check_usable();
  const Lock turn = take_turn();
  executor_.letters().release(id);
}

void Engine::notify_when_ended(LetterId id) {
  check_usable();
  with_turn([&](Lock&) {
    Letter* found = executor_.letters().find(id);
    if (found != nullptr && found->state == LetterState::open) {
      found->notify = true;
    } else {
      emit({EngineEvent::Kind::letter, 0, id, {}, {}});
    }
  });
}

}  // namespace pccl

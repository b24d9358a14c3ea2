// native/src/exec/letters.cpp — messages between programs: which link, which members, which lanes.
// Ownership: see executor.hpp.
// Threads:   under the engine's turn.
// Errors:    a text for what the program has asked for; Status::protocol ends the lane.
#include <algorithm>

#include "pccl/executor.hpp"

namespace pccl {
namespace {

constexpr int hear_out_max = 64;  // reads, each of as much as a lane may take in a turn

}  // namespace

LetterId Executor::post(const PostedLetter& posted, std::string& obstacle) {
  if (!machine_ || machine_->rank() < 0) {
    obstacle = "this peer is no member yet: its first step brings it into the run";
    return 0;
  }
  if (posted.what.count > message_bytes_max / size_of(posted.what.dtype)) {
    obstacle = "a message has 512 GiB at most";
    return 0;
  }
  Correspondent* other = nullptr;
  int rank = -1;
  bool elsewhere = false;
  for (const Member& member : machine_->view().members) {
    if (member.group != machine_->group()) {
      elsewhere = elsewhere || (posted.peer && member.peer == *posted.peer);
      continue;
    }
    ++rank;
    const bool meant = posted.peer ? member.peer == *posted.peer : rank == posted.rank;
    if (!meant) continue;
    if (member.peer == self_) {
      obstacle = "a peer does not send to itself, nor receive from itself";
      return 0;
    }
    other = link_to(member.peer, member.incarnation, 0).mail;
  }
  const bool any = !posted.sends && !posted.peer && posted.rank < 0;
  if (other == nullptr && posted.peer && !elsewhere) {
    // It may have left while the program was on its way here, which is no mistake of the program.
    return letters_.lost(*posted.peer, posted.tag, posted.what, posted.sends);
  }
  if (other == nullptr && !any) {
    obstacle = posted.peer ? "the other end is a member of another peer group"
                           : "there is no rank " + std::to_string(posted.rank) + " among " +
                                 std::to_string(rank + 1) + " members";
    return 0;
  }
  if (posted.sends) {
    return letters_.send(*other, posted.tag, posted.what, posted.memory, posted.deadline_s);
  }
  return letters_.receive(other, posted.tag, posted.what, posted.memory, posted.deadline_s);
}

/// Who is no member of the next view may have said, before it went, that a message has arrived:
/// what lies in the sockets is heard before its letters are given up.
void Executor::hear_out(const View& next, double now_s) {
  if (letters_.open() == 0) return;
  std::vector<Link*> gone;
  for (const auto& entry : links_) {
    Link& link = *entry.second;
    const bool stays = std::any_of(next.members.begin(), next.members.end(), [&](const Member& m) {
      return m.peer == link.peer && m.incarnation == link.incarnation;
    });
    if (!stays && link.up()) gone.push_back(&link);
  }
  for (Link* link : gone) {
    int left = hear_out_max;
    for (std::size_t i = 0; i < link->lanes.size() && left > 0; --left) {
      Lane& lane = *link->lanes[i];
      const std::uint32_t id = lane.id();
      const std::uint64_t before = lane.bytes_received;
      ready(*link, lane, true, false, now_s);
      if (link->has_lane(id) && lane.bytes_received == before) ++i;
    }
  }
}

/// The view may be another one now.
void Executor::tell_letters() {
  if (!machine_ || machine_->rank() < 0) return;
  std::vector<Member> members;
  for (const Member& member : machine_->view().members) {
    if (member.group == machine_->group()) members.push_back(member);
  }
  letters_.view(machine_->view().epoch, members);
}

Status Executor::hear_of_letter(Link& link, const FrameHeader& header, const std::byte* body) {
  // Most of what is said of messages is answered.
  if (link.flooded()) return Status::protocol;
  return letters_.heard(*link.mail, header, body, link.lost_lane,
                        [&](std::uint32_t lane) { return link.has_lane(lane); });
}

void Executor::say(Correspondent& to, FrameHeader header, std::span<const std::byte> body) {
  Link& link = *to.link;
  if (header.type == FrameType::received || header.type == FrameType::refused) {
    link.owes_answers = true;
  }
  link.post(header, body, buffers_);
}

void Executor::has_chunks(Correspondent& to) noexcept { to.link->dirty = true; }

void Executor::let_go(Correspondent& to, LetterId letter) noexcept {
  for (const auto& lane : to.link->lanes) lane->let_go(letter, buffers_);
}

}  // namespace pccl

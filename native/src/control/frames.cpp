// native/src/control/frames.cpp — control messages to bytes and back.
// Ownership: none.
// Threads:   pure functions.
// Errors:    see control_frames.hpp.
#include "pccl/control_frames.hpp"

#include "control/bytes.hpp"
#include "pccl/crc32.hpp"

namespace pccl::frames {
namespace {

constexpr std::size_t open_step_bytes = 8 + 4 + 1 + 16 + 16 + 8;
constexpr std::uint8_t flag_sealed = 1;
constexpr std::uint8_t flag_complete = 2;
constexpr std::uint8_t flag_waiting = 4;
constexpr std::uint8_t flag_bound = 8;
constexpr std::size_t failed_step_bytes = 8 + 1;
constexpr std::size_t wait_bytes = 16 + 1;
constexpr std::size_t route_bytes = 16 + 16;

void write(Writer& out, const Hello& hello) {
  out.put(static_cast<std::uint8_t>(hello.purpose));
  out.put(hello.run_id);
  out.put(hello.peer);
  out.put(hello.incarnation);
  out.put(hello.secret);
  out.put(hello.series);
  out.put(hello.generation);
  out.put(hello.epoch);
}
void read(Reader& in, Hello& hello) {
  hello.purpose =
      static_cast<Purpose>(in.between(0, static_cast<std::uint8_t>(Purpose::stream)));
  in.get(hello.run_id);
  in.get(hello.peer);
  in.get(hello.incarnation);
  in.get(hello.secret);
  in.get(hello.series);
  in.get(hello.generation);
  in.get(hello.epoch);
}

void write(Writer& out, const Welcome& welcome) { out.put(welcome.generation); }
void read(Reader& in, Welcome& welcome) { in.get(welcome.generation); }

void write(Writer& out, const Refused& refused) {
  out.put(refused.code);
  out.text(refused.text, text_bytes_max);
}
void read(Reader& in, Refused& refused) {
  refused.code = in.between(1, static_cast<std::uint8_t>(Refusal::security));
  in.text(refused.text, text_bytes_max);
}

void write(Writer& out, const WaitOn& wait) {
  out.put(wait.peer);
  out.put(static_cast<std::uint8_t>(wait.kind));
}
void read(Reader& in, WaitOn& wait) {
  in.get(wait.peer);
  wait.kind = static_cast<WaitKind>(in.between(1, static_cast<std::uint8_t>(WaitKind::unread)));
}

void write(Writer& out, const Heartbeat& beat) {
  out.put(beat.status.generation);
  out.put(beat.status.epoch);
  out.put(beat.status.watermark);
  out.put(beat.status.next_step);
  out.put(beat.status.progress);
  out.put(beat.lag_ms);
  out.put(beat.rtt_us);
  out.put(beat.status.step);
  out.put(static_cast<std::uint8_t>(beat.status.waiting));
  const std::size_t waits = std::min(beat.status.waits.size(), peers_max);
  out.put(static_cast<std::uint16_t>(waits));
  for (std::size_t i = 0; i < waits; ++i) write(out, beat.status.waits[i]);
  out.peers(beat.status.down, peers_max);
  out.peers(beat.status.relayed, peers_max);
}
void read(Reader& in, Heartbeat& beat) {
  in.get(beat.status.generation);
  in.get(beat.status.epoch);
  in.get(beat.status.watermark);
  in.get(beat.status.next_step);
  in.get(beat.status.progress);
  in.get(beat.lag_ms);
  in.get(beat.rtt_us);
  in.get(beat.status.step);
  beat.status.waiting =
      static_cast<Waiting>(in.between(0, static_cast<std::uint8_t>(Waiting::program)));
  beat.status.waits.resize(in.count(wait_bytes, peers_max));
  for (WaitOn& wait : beat.status.waits) read(in, wait);
  in.peers(beat.status.down, peers_max);
  in.peers(beat.status.relayed, peers_max);
}

void write(Writer& out, const Pong& pong) {
  out.put(pong.generation);
  out.put(pong.epoch);
}
void read(Reader& in, Pong& pong) {
  in.get(pong.generation);
  in.get(pong.epoch);
}

void write(Writer& out, const Flush& flush) {
  out.put(flush.generation);
  out.put(flush.target);
}
void read(Reader& in, Flush& flush) {
  in.get(flush.generation);
  in.get(flush.target);
}

void write(Writer& out, const OpenStep& open) {
  out.put(open.step);
  out.put(open.epoch);
  out.put(static_cast<std::uint8_t>((open.sealed ? flag_sealed : 0) |
                                    (open.complete ? flag_complete : 0) |
                                    (open.waiting ? flag_waiting : 0) |
                                    (open.bound ? flag_bound : 0)));
  out.put(open.manifest);
  out.put(open.digest);
  out.put(open.name_hash);
}
void read(Reader& in, OpenStep& open) {
  in.get(open.step);
  in.get(open.epoch);
  const std::uint8_t flags = in.between(0, 15);  // any of the four
  open.sealed = (flags & flag_sealed) != 0;
  open.complete = (flags & flag_complete) != 0;
  open.waiting = (flags & flag_waiting) != 0;
  open.bound = (flags & flag_bound) != 0;
  in.get(open.manifest);
  in.get(open.digest);
  in.get(open.name_hash);
}

void write(Writer& out, const Report& report) {
  out.put(report.generation);
  out.put(report.target);
  out.put(report.epoch);
  out.put(static_cast<std::uint8_t>(report.switched ? 1 : 0));
  out.put(report.switch_step);
  out.put(report.watermark);
  out.put(report.next_step);
  out.put(static_cast<std::uint16_t>(report.committed.size()));
  for (const StepId step : report.committed) out.put(step);
  out.put(static_cast<std::uint16_t>(report.open.size()));
  for (const OpenStep& open : report.open) write(out, open);
  out.put(static_cast<std::uint16_t>(report.failed.size()));
  for (const FailedStep& failed : report.failed) {
    out.put(failed.step);
    out.put(static_cast<std::uint8_t>(failed.code));
  }
}
void read(Reader& in, Report& report) {
  in.get(report.generation);
  in.get(report.target);
  in.get(report.epoch);
  report.switched = in.between(0, 1) == 1;
  in.get(report.switch_step);
  in.get(report.watermark);
  in.get(report.next_step);
  report.committed.resize(in.count(sizeof(StepId), steps_max));
  for (StepId& step : report.committed) in.get(step);
  report.open.resize(in.count(open_step_bytes, steps_max));
  for (OpenStep& open : report.open) read(in, open);
  report.failed.resize(in.count(failed_step_bytes, steps_max));
  for (FailedStep& failed : report.failed) {
    in.get(failed.step);
    const auto last = static_cast<std::uint8_t>(SuspectCode::nonfinite);
    failed.code = static_cast<SuspectCode>(in.between(0, last));
  }
}

/// The others are reasons of a step's failure only, or say nothing.
bool may_be_suspected(SuspectCode code) noexcept {
  return code == SuspectCode::view_changed || code == SuspectCode::nonfinite ||
         code == SuspectCode::excluded ||  // of oneself: a newcomer whose state is not there yet
         (code != SuspectCode::none && code <= SuspectCode::local);
}

void write(Writer& out, const Suspect& suspect) {
  out.put(suspect.epoch);
  out.put(suspect.step);
  out.put(static_cast<std::uint8_t>(suspect.code));
  out.peers(suspect.peers, peers_max);
  out.text(suspect.text, text_bytes_max);
}
void read(Reader& in, Suspect& suspect) {
  in.get(suspect.epoch);
  in.get(suspect.step);
  suspect.code = static_cast<SuspectCode>(
      in.between(1, static_cast<std::uint8_t>(SuspectCode::nonfinite)));
  in.require(may_be_suspected(suspect.code));
  in.peers(suspect.peers, peers_max);
  in.text(suspect.text, text_bytes_max);
}

void write(Writer& out, const Evicted& evicted) {
  out.put(evicted.generation);
  out.text(evicted.text, text_bytes_max);
}
void read(Reader& in, Evicted& evicted) {
  in.get(evicted.generation);
  in.text(evicted.text, text_bytes_max);
}

void write(Writer& out, const PeerBeat& beat) {
  out.put(beat.epoch);
  out.put(beat.watermark);
  out.put(beat.progress);
}
void read(Reader& in, PeerBeat& beat) {
  in.get(beat.epoch);
  in.get(beat.watermark);
  in.get(beat.progress);
}

void write(Writer& out, const Routes& table) {
  out.put(table.generation);
  out.put(table.epoch);
  const std::size_t count = std::min(table.routes.size(), peers_max);
  out.put(static_cast<std::uint16_t>(count));
  for (std::size_t i = 0; i < count; ++i) {
    out.put(table.routes[i].peer);
    out.put(table.routes[i].via);
  }
}
void read(Reader& in, Routes& table) {
  in.get(table.generation);
  in.get(table.epoch);
  table.routes.resize(in.count(route_bytes, peers_max));
  for (Route& route : table.routes) {
    in.get(route.peer);
    in.get(route.via);
  }
}

void write(Writer& out, const Relay& relay) {
  out.put(relay.peer);
  out.put(relay.incarnation);
  out.put(relay.call);
  out.put(static_cast<std::uint8_t>(relay.answers ? 1 : 0));
}
void read(Reader& in, Relay& relay) {
  in.get(relay.peer);
  in.get(relay.incarnation);
  in.get(relay.call);
  relay.answers = in.between(0, 1) == 1;
}

void write(Writer& out, const Call& call) {
  out.put(call.peer);
  out.put(call.incarnation);
  out.put(call.call);
}
void read(Reader& in, Call& call) {
  in.get(call.peer);
  in.get(call.incarnation);
  in.get(call.call);
}

Status fits(const Frame& frame) noexcept {
  if (const Report* report = std::get_if<Report>(&frame)) {
    const bool small = report->committed.size() <= steps_max &&
                       report->open.size() <= steps_max && report->failed.size() <= steps_max;
    return small ? Status::ok : Status::exhausted;
  }
  const Suspect* suspect = std::get_if<Suspect>(&frame);
  if (suspect == nullptr) return Status::ok;
  return may_be_suspected(suspect->code) ? Status::ok : Status::usage;
}

template <class Message>
bool read_as(Reader& in, Frame& out) {
  read(in, out.emplace<Message>());
  return in.finished();
}

bool read_type(Reader& in, std::uint8_t type, Frame& out) {
  switch (static_cast<Type>(type)) {
    case Type::hello: return read_as<Hello>(in, out);
    case Type::welcome: return read_as<Welcome>(in, out);
    case Type::refused: return read_as<Refused>(in, out);
    case Type::heartbeat: return read_as<Heartbeat>(in, out);
    case Type::pong: return read_as<Pong>(in, out);
    case Type::flush: return read_as<Flush>(in, out);
    case Type::report: return read_as<Report>(in, out);
    case Type::suspect: return read_as<Suspect>(in, out);
    case Type::evicted: return read_as<Evicted>(in, out);
    case Type::peer_beat: return read_as<PeerBeat>(in, out);
    case Type::routes: return read_as<Routes>(in, out);
    case Type::relay: return read_as<Relay>(in, out);
    case Type::call: return read_as<Call>(in, out);
  }
  return false;
}

}  // namespace

std::size_t character_bytes(std::string_view text) noexcept {
  const auto at = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  if (text.empty()) return 0;
  const unsigned char lead = at(0);
  if (lead < 0x80) return 1;
  const std::size_t bytes = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
  if (lead < 0xC2 || lead > 0xF4 || text.size() < bytes) return 0;
  for (std::size_t i = 1; i < bytes; ++i) {
    if ((at(i) & 0xC0) != 0x80) return 0;
  }
  // Longer than need be, surrogates, beyond the last code point: all show in the second byte.
  const unsigned char second = at(1);
  const bool wrong = (lead == 0xE0 && second < 0xA0) || (lead == 0xED && second > 0x9F) ||
                     (lead == 0xF0 && second < 0x90) || (lead == 0xF4 && second > 0x8F);
  return wrong ? 0 : bytes;
}

bool valid_utf8(std::string_view text) noexcept {
  while (!text.empty()) {
    const std::size_t bytes = character_bytes(text);
    if (bytes == 0) return false;
    text.remove_prefix(bytes);
  }
  return true;
}

std::string clean_text(std::string_view text, std::size_t bytes_max) {
  std::string clean;
  while (!text.empty()) {
    const std::size_t bytes = character_bytes(text);
    if (clean.size() + std::max<std::size_t>(bytes, 1) > bytes_max) break;
    if (bytes == 0) {
      clean += '?';
    } else {
      clean += text.substr(0, bytes);
    }
    text.remove_prefix(std::max<std::size_t>(bytes, 1));
  }
  return clean;
}

Status encode(const Frame& frame, std::vector<std::byte>& out) {
  if (const Status status = fits(frame); status != Status::ok) return status;
  const std::size_t start = out.size();
  Writer writer(out);
  out.resize(start + head_bytes);
  writer.put(std::to_integer<std::uint8_t>(mark));
  writer.put(static_cast<std::uint8_t>(frame.index() + 1));
  writer.put(version_known);
  std::visit([&writer](const auto& message) { write(writer, message); }, frame);
  const auto head = head_of(std::span(out).subspan(start + head_bytes));
  std::copy(head.begin(), head.end(), out.begin() + static_cast<std::ptrdiff_t>(start));
  return Status::ok;
}

std::array<std::byte, head_bytes> head_of(std::span<const std::byte> body) noexcept {
  std::array<std::byte, head_bytes> head;
  const std::uint32_t front[2] = {static_cast<std::uint32_t>(body.size()), crc32(body)};
  const std::uint32_t check = crc32(std::as_bytes(std::span(front)));
  std::memcpy(head.data(), front, sizeof front);
  std::memcpy(head.data() + sizeof front, &check, sizeof check);
  return head;
}

bool decode_head(std::span<const std::byte, head_bytes> bytes, Head& out) noexcept {
  std::uint32_t check = 0;
  std::memcpy(&out.length, bytes.data(), sizeof out.length);
  std::memcpy(&out.body_check, bytes.data() + 4, sizeof out.body_check);
  std::memcpy(&check, bytes.data() + 8, sizeof check);
  return check == crc32(bytes.first(8));
}

Status decode(std::span<const std::byte> body, Frame& out) {
  if (body.size() < prefix_bytes || body[0] != mark || version_of(body) != version_known) {
    return Status::protocol;
  }
  Reader reader(body.subspan(prefix_bytes));
  return read_type(reader, std::to_integer<std::uint8_t>(body[1]), out) ? Status::ok
                                                                        : Status::protocol;
}

std::uint8_t version_of(std::span<const std::byte> body) noexcept {
  return body.size() < prefix_bytes ? std::uint8_t{0} : std::to_integer<std::uint8_t>(body[2]);
}

std::uint8_t purpose_of(std::span<const std::byte> body) noexcept {
  return body.size() <= prefix_bytes ? std::uint8_t{255}
                                     : std::to_integer<std::uint8_t>(body[prefix_bytes]);
}

}  // namespace pccl::frames

// native/tests/test_outcome_agreement.cpp — uniform agreement of outcome machines, over schedules.
//
// A cluster of machines, a network that holds every DONE as long as it likes, and a coordinator
// that knows the one recovery rule.  Deaths, fences and installs come in any order, installs of a
// flush also after the fence of the next.  Checked after every event: whoever is told COMMIT of a
// step, nobody is told anything else, and all of them hold the same attempt's result.  Mutants of
// the protocol show that the check can fail.
//
// Ownership: values of each test.
// Threads:   the main thread.
// Errors:    CHECKs.
#include <array>
#include <functional>
#include <map>
#include <random>
#include <set>
#include <sstream>
#include <string>
#include <tuple>

#include "outcome_rig.hpp"

using namespace rig;

namespace {

enum class Mutant {
  none,
  deliver_at_completion,  // the caller is told before the others are done
  no_freeze,              // a report promises nothing
  presumed_abort,         // a flush runs every open step again
  forgetful,              // what a flush decided is not told again by the next
};

constexpr unsigned size = 3;

struct Cluster {
  struct Message { unsigned from, to; StepId step; Epoch epoch; Digest digest; };
  struct Told { bool committed; Digest digest; };
  struct Attempt { Epoch epoch = 0; Digest digest; bool complete = false; };

  explicit Cluster(Mutant kind, StepId steps, unsigned deaths)
      : mutant(kind), steps_max(steps), deaths_left(deaths) {
    for (unsigned rank = 0; rank < size; ++rank) machines.emplace_back(peer_id(rank), rank + 1);
    for (unsigned rank = 0; rank < size; ++rank) install(rank, view_of(1, {{0}, {1}, {2}}), {});
  }

  // --- events ---
  void begin(unsigned rank) {
    Effects effects;
    (void)machines[rank].begin(name, effects);
    perform(rank, effects);
  }
  void complete(unsigned rank, StepId step) {
    Attempt& attempt = attempts[{rank, step}];
    Effects effects;
    machines[rank].seal(step, manifest, effects);
    const Digest digest{step, attempt.epoch};  // each attempt's result is its own
    machines[rank].complete(step, attempt.epoch, digest, effects);
    perform(rank, effects);
  }
  void deliver(std::size_t index, bool keep) {
    const Message message = network[index];
    if (!keep) network.erase(network.begin() + static_cast<std::ptrdiff_t>(index));
    if (!alive[message.to]) return;
    std::ostringstream one;
    one << message.from << message.to << message.step << message.epoch
        << machines[message.to].frozen();
    heard.insert(one.str());
    Effects effects;
    machines[message.to].done(peer_id(message.from), message.step, message.epoch, manifest,
                              message.digest, effects);
    perform(message.to, effects);
  }
  void kill(unsigned rank) {
    alive[rank] = false;
    --deaths_left;
    target = ++epoch_high;
    reports.clear();
    decide_if_all_reported();
  }
  void fence(unsigned rank) {
    if (mutant == Mutant::no_freeze) {
      OutcomeMachine copy = machines[rank];
      reports[rank] = copy.fence(1, target);
    } else {
      reports[rank] = machines[rank].fence(1, target);
    }
    decide_if_all_reported();
  }
  void take_install(unsigned rank) {
    const Installation next = installs[rank].front();
    installs[rank].erase(installs[rank].begin());
    if (mutant == Mutant::no_freeze) (void)machines[rank].fence(1, next.view.epoch);
    install(rank, next.view, next.decisions);
  }

  // --- what may happen now ---
  [[nodiscard]] bool may_begin(unsigned rank) const {
    OutcomeMachine copy = machines[rank];
    Effects effects;
    return alive[rank] && copy.next_step() < steps_max && copy.begin(name, effects).has_value();
  }
  /// Every contribution to the attempt has been sent: all that take part in it have begun it.
  [[nodiscard]] bool may_complete(unsigned rank, StepId step) const {
    const auto it = attempts.find({rank, step});
    if (!alive[rank] || it == attempts.end() || it->second.complete) return false;
    if (machines[rank].frozen()) return false;
    for (const Member& member : views.at(it->second.epoch).members) {
      const unsigned other = static_cast<unsigned>(member.peer.bytes[0] - 1);
      if (begun.count({other, step, it->second.epoch}) == 0) return false;
    }
    return true;
  }
  [[nodiscard]] bool may_fence(unsigned rank) const {
    return alive[rank] && target != 0 && reports.count(rank) == 0;
  }
  [[nodiscard]] unsigned living() const {
    return static_cast<unsigned>(std::count(alive.begin(), alive.end(), true));
  }

  /// Everything that decides what can still happen and whether it is right.
  [[nodiscard]] std::string key() const {
    std::ostringstream out;
    for (unsigned rank = 0; rank < size; ++rank) {
      OutcomeMachine copy = machines[rank];
      const Report r = copy.fence(1, 1);
      out << alive[rank] << r.epoch << machines[rank].frozen() << r.watermark << ',' << r.next_step;
      for (const OpenStep& open : r.open) {
        out << '[' << open.step << open.epoch << open.complete << open.waiting << ']';
      }
      out << reports.count(rank) << '/';
      for (const auto& next : installs[rank]) out << next.view.epoch << ';';
    }
    std::set<std::string> held;
    for (const Message& m : network) {
      std::ostringstream one;
      one << m.from << m.to << m.step << m.epoch;
      held.insert(one.str());
    }
    for (const std::string& one : held) out << ' ' << one;
    out << '#' << target;
    for (const std::string& one : heard) out << ' ' << one;
    for (const auto& [who, what] : told) out << who.first << who.second << what.committed;
    return out.str();
  }

  Mutant mutant;
  StepId steps_max;
  unsigned deaths_left;
  int violations = 0;
  std::vector<OutcomeMachine> machines;
  std::array<bool, size> alive{true, true, true};
  std::vector<Message> network;
  std::map<std::pair<unsigned, StepId>, Told> told;
  std::map<std::pair<unsigned, StepId>, Attempt> attempts;
  std::set<std::tuple<unsigned, StepId, Epoch>> begun;
  std::set<std::string> heard;  // DONEs, and whether a frozen machine heard them
  Epoch target = 0;   // of the flush under way; 0: none
  struct Installation { View view; std::vector<Decision> decisions; };
  std::array<std::vector<Installation>, size> installs;
  std::map<unsigned, Report> reports;
  unsigned failures_left = 0;  // steps that the coordinator will fail instead of running them again

 private:
  void tell(unsigned rank, StepId step, Told news) {
    const auto [mine, first] = told.emplace(std::pair{rank, step}, news);
    if (!first) {
      // The mutant tells twice; anybody else must not.
      if (mine->second.committed != news.committed || mutant == Mutant::none) ++violations;
      return;
    }
    for (const auto& [who, what] : told) {
      if (who.second != step) continue;
      if (what.committed != news.committed) ++violations;
      if (what.committed && what.digest != news.digest) ++violations;
    }
  }
  void perform(unsigned rank, const Effects& effects) {
    for (const Effect& effect : effects) {
      if (const auto* start = std::get_if<Start>(&effect)) {
        begun.insert({rank, start->step, start->epoch});
        attempts[{rank, start->step}] = {start->epoch, {}, false};
      } else if (const auto* done = std::get_if<SendDone>(&effect)) {
        attempts[{rank, done->step}].complete = true;
        attempts[{rank, done->step}].digest = done->digest;
        for (const Member& member : views.at(done->epoch).members) {
          const unsigned to = static_cast<unsigned>(member.peer.bytes[0] - 1);
          if (to != rank) network.push_back({rank, to, done->step, done->epoch, done->digest});
        }
        if (mutant == Mutant::deliver_at_completion) tell(rank, done->step, {true, done->digest});
      } else if (const auto* committed = std::get_if<Committed>(&effect)) {
        tell(rank, committed->step, {true, attempts.at({rank, committed->step}).digest});
        attempts.erase({rank, committed->step});
      } else if (const auto* failed = std::get_if<Failed>(&effect)) {
        tell(rank, failed->step, {false, {}});
        attempts.erase({rank, failed->step});
      } else if (const auto* undo = std::get_if<Undo>(&effect)) {
        if (told.count({rank, undo->step}) != 0) ++violations;  // the caller has read it already
        attempts.erase({rank, undo->step});
      } else {
        ++violations;  // nobody lies here, so nobody may accuse
      }
    }
  }
  void install(unsigned rank, const View& view, const std::vector<Decision>& decisions) {
    views[view.epoch] = view;
    Effects effects;
    if (machines[rank].install(view, 0, decisions, effects) != Status::ok) ++violations;
    perform(rank, effects);
  }
  void decide_if_all_reported() {
    if (target == 0 || reports.size() < living()) return;
    std::set<StepId> known;
    for (const auto& [rank, report] : reports) {
      for (const OpenStep& open : report.open) known.insert(open.step);
    }
    for (const auto& [step, decision] : final) {
      if (decision.verdict == Verdict::fail) known.insert(step);
    }
    Installation next{View{1, target, {}, Pause::none}, {}};
    for (unsigned rank = 0; rank < size; ++rank) {
      if (alive[rank]) next.view.members.push_back({peer_id(rank), rank + 1, 0});
    }
    for (const StepId step : known) next.decisions.push_back(decide(step));
    for (unsigned rank = 0; rank < size; ++rank) {
      if (alive[rank]) installs[rank].push_back(next);
    }
    decided_epoch = target;
    target = 0;
  }
  Decision decide(StepId step) {
    if (const auto it = final.find(step); it != final.end()) return it->second;
    bool known = false;
    bool complete = true;
    std::set<std::pair<Digest, Epoch>> results;
    for (const auto& [rank, report] : reports) {
      const auto open = std::find_if(report.open.begin(), report.open.end(),
                                     [&](const OpenStep& held) { return held.step == step; });
      if (open == report.open.end()) {
        const auto& above = report.committed;
        known = known || step < report.watermark ||
                std::find(above.begin(), above.end(), step) != above.end();
        complete = false;
        continue;
      }
      // An attempt of before the last decision was given up by it, whoever still holds it.
      complete = complete && open->complete && open->epoch == decided_epoch;
      results.insert({open->digest, open->epoch});
    }
    Decision decision{step, Verdict::retry, SuspectCode::none, {}};
    const bool agreed = complete && results.size() == 1;
    if ((known || agreed) && mutant != Mutant::presumed_abort) {
      decision.verdict = Verdict::commit;
    } else if (failures_left > 0 && !known) {
      --failures_left;
      decision.verdict = Verdict::fail;
    }
    if (decision.verdict != Verdict::retry && mutant != Mutant::forgetful) final[step] = decision;
    return decision;
  }

  std::map<StepId, Decision> final;  // told to somebody, perhaps
  std::map<Epoch, View> views;
  Epoch epoch_high = 1;
  Epoch decided_epoch = 1;
};

/// All that can happen next, as calls on a cluster; deaths come first.
std::vector<std::function<void(Cluster&)>> actions(const Cluster& c, bool repeat) {
  std::vector<std::function<void(Cluster&)>> found;
  for (unsigned rank = 0; rank < size; ++rank) {
    if (c.alive[rank] && c.deaths_left > 0 && c.living() > 1) {
      found.push_back([rank](Cluster& to) { to.kill(rank); });
    }
  }
  for (unsigned rank = 0; rank < size; ++rank) {
    if (c.may_begin(rank)) found.push_back([rank](Cluster& to) { to.begin(rank); });
    for (StepId step = 0; step < c.steps_max; ++step) {
      if (c.may_complete(rank, step)) {
        found.push_back([rank, step](Cluster& to) { to.complete(rank, step); });
      }
    }
    if (c.may_fence(rank)) found.push_back([rank](Cluster& to) { to.fence(rank); });
    if (c.alive[rank] && !c.installs[rank].empty()) {
      found.push_back([rank](Cluster& to) { to.take_install(rank); });
    }
  }
  for (std::size_t i = 0; i < c.network.size(); ++i) {
    found.push_back([i](Cluster& to) { to.deliver(i, false); });
    if (repeat && i == 0) found.push_back([i](Cluster& to) { to.deliver(i, true); });
  }
  return found;
}

/// Schedules in which something was told that must not be, or that came to no end.
int failures_of(Mutant mutant, unsigned schedules) {
  int failures = 0;
  for (unsigned seed = 1; seed <= schedules; ++seed) {
    std::mt19937 dice(seed);
    Cluster cluster(mutant, 1 + seed % 5, seed % 3);
    cluster.failures_left = seed % 2;
    const unsigned patience = 5 + seed % 40;  // events between deaths, about
    for (int events = 0; events < 1000; ++events) {
      const auto possible = actions(cluster, events < 200);
      const unsigned kills = cluster.deaths_left > 0 && cluster.living() > 1 ? cluster.living() : 0;
      if (possible.empty()) break;
      std::size_t chosen = dice() % possible.size();
      if (chosen < kills && possible.size() > kills && dice() % patience != 0) {
        chosen = kills + dice() % (possible.size() - kills);
      }
      possible[chosen](cluster);
    }
    bool through = true;
    for (unsigned rank = 0; rank < size; ++rank) {
      through = through && (!cluster.alive[rank] ||
                            cluster.machines[rank].watermark() == cluster.steps_max);
    }
    if (through && cluster.violations == 0) continue;
    ++failures;
    if (mutant == Mutant::none) {
      std::fprintf(stderr, "seed %u: %d violations%s\n", seed, cluster.violations,
                   through ? "" : ", stuck");
    }
  }
  return failures;
}

}  // namespace

TEST(whoever_is_told_commit_nobody_is_told_otherwise) {
  CHECK(failures_of(Mutant::none, check::sanitized ? 300 : 2000) == 0);
}

TEST(the_schedules_find_every_mutant) {
  CHECK(failures_of(Mutant::deliver_at_completion, 200) > 0);
  CHECK(failures_of(Mutant::no_freeze, 200) > 0);
  CHECK(failures_of(Mutant::presumed_abort, 200) > 0);
  CHECK(failures_of(Mutant::forgetful, 1000) > 0);
}

TEST(one_step_of_three_peers_agrees_in_every_order_with_one_death) {
  // Depth first over all orders of completions, DONEs, one death, fences and installs.
  std::set<std::string> seen;
  Cluster first(Mutant::none, 1, 1);
  for (unsigned rank = 0; rank < size; ++rank) first.begin(rank);
  std::vector<Cluster> open{first};
  std::size_t ends = 0;
  while (!open.empty() && seen.size() < (check::sanitized ? 2000 : 1'000'000)) {
    const Cluster cluster = std::move(open.back());
    open.pop_back();
    CHECK(cluster.violations == 0);
    const auto possible = actions(cluster, false);
    if (possible.empty()) {
      ++ends;
      for (unsigned rank = 0; rank < size; ++rank) {
        CHECK(!cluster.alive[rank] || cluster.machines[rank].watermark() == 1);
      }
    }
    for (const auto& action : possible) {
      Cluster next = cluster;
      action(next);
      if (seen.insert(next.key()).second) open.push_back(std::move(next));
    }
  }
  std::printf("  %zu states, %zu ends\n", seen.size(), ends);
  CHECK(ends > 0);
}

// heed sweep: many trainings from one file, side by side, each in a process of its own, so that its peak memory is its
// own and one that crashes ends nothing but itself. What has ended is on disk, a line a run; the rest can be resumed.
#include <fcntl.h>
#include <fmt/format.h>
#include <malloc.h>
#include <poll.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>
#include <CLI/CLI.hpp>

#include <chrono>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <thread>

#include "cli/command.h"
#include "cli/progress.h"
#include "graph/files.h"
#include "train/sweep.h"

namespace heed::cli {
namespace {

using Json = nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;
namespace fs = std::filesystem;

double since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

struct Options {
  std::string file;
  std::optional<std::string> save, baseline;
  Source source;
  int jobs = 0, threads = 0;
  bool resume = false, list = false, markdown = false, csv = false, latex = false, json = false, quiet = false;
};

// The machine.

double number_in(const std::string& path, const std::string& key = "") {  // "max" and no file: below 0
  std::ifstream in(path);
  if (key.empty()) {
    double value = -1;
    return in >> value ? value : -1;
  }
  double value = 0;
  for (std::string word; in >> word && in >> value; in.ignore(1000, '\n'))
    if (word == key) return value;
  return -1;
}

// What could still be taken without swapping: of the machine, and of every control group around this process.
double available_mb() {
  double out = number_in("/proc/meminfo", "MemAvailable:") / 1024;
  if (out < 0) out = 1e9;
  std::ifstream groups("/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    const bool second = line.starts_with("0::");
    const auto path = line.find(":memory:");
    if (!second && path == std::string::npos) continue;
    const std::string root = second ? "/sys/fs/cgroup" : "/sys/fs/cgroup/memory";
    fs::path group = second ? line.substr(3) : line.substr(path + 8);
    for (;; group = group.parent_path()) {
      const std::string at = root + (group == "/" ? "" : group.string()) + "/";
      const double limit = number_in(at + (second ? "memory.max" : "memory.limit_in_bytes"));
      const double used = number_in(at + (second ? "memory.current" : "memory.usage_in_bytes"));
      const double cache = number_in(at + "memory.stat", second ? "inactive_file" : "total_inactive_file");
      if (limit >= 0 && used >= 0) out = std::min(out, (limit - used + std::max(0.0, cache)) / 1048576);
      if (group.empty() || group == "/") break;
    }
  }
  return out;
}

double resident_mb(pid_t process) {
  std::ifstream in("/proc/" + std::to_string(process) + "/statm");
  double whole = 0, resident = 0;
  in >> whole >> resident;
  return resident * static_cast<double>(sysconf(_SC_PAGESIZE)) / 1048576;
}

int cores() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

// The folder of a sweep: sweep.toml, what its results depend on; runs.jsonl, a line for each run that has ended; and in
// the end the tables.
class Folder {
 public:
  Folder(const std::string& path, const Sweep& sweep, bool resume) : sweep_(sweep), path_(path) {
    std::error_code error;
    fs::create_directories(path_, error);
    if (error) fail("cannot write " + path + ": " + error.message());
    const std::string made = (path_ / "sweep.toml").string();
    name_ = (path_ / "runs.jsonl").string();
    const bool there = fs::exists(made, error), begun = fs::exists(name_, error) && fs::file_size(name_, error) > 0;
    if (!resume && (there || begun))
      fail((there ? made : name_) + " is there already; --resume goes on with it, another folder begins anew");
    if (!there && begun) fail(name_ + " is there, but no " + made + ", which says what it is of");
    const std::string now = identity(sweep);
    if (there)
      if (const std::string why = difference(read_file(made), now); !why.empty()) fail(made + ": " + why);
    file_ = open(name_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (file_ < 0) refuse();
    if (flock(file_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
      close(file_);
      fail(name_ + ": another sweep is writing into this folder");
    }
    try {
      if (!there) write_file(made, now);
      Log log = read_log(read_file(name_), name_, sweep);
      if (ftruncate(file_, static_cast<off_t>(log.bytes)) != 0) refuse();
      outcomes = std::move(log.outcomes);
    } catch (...) {
      close(file_);
      throw;
    }
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  ~Folder() { close(file_); }

  void add(RunId id, const Outcome& outcome) {
    const std::string line = to_line(sweep_, id, outcome);
    if ((errno = write_all(file_, line)) != 0 || fsync(file_) != 0) refuse();
    outcomes[id.trial][id.run] = outcome;
  }
  void write_table(const char* name, const std::string& text) const { write_file(path_ / name, text); }

  Outcomes outcomes;

 private:
  [[noreturn]] void refuse() const { fail("cannot write " + name_ + ": " + std::strerror(errno)); }

  const Sweep& sweep_;
  fs::path path_;
  std::string name_;
  int file_ = -1;
};

// The words after `heed` that do a run.
std::vector<std::string> words_of(const std::vector<Setting>& settings) {
  std::vector<std::string> out{"train", settings[0].value};
  for (std::size_t s = 1; s < settings.size(); ++s) {
    out.push_back("--" + settings[s].name + (settings[s].value.empty() ? "" : "=" + settings[s].value));
    if (settings[s].value.empty()) out.emplace_back();
  }
  return out;
}

std::string shell(const std::vector<std::string>& words) {
  std::string out = "heed";
  for (const std::string& word : words) {
    const bool plain = !word.empty() && std::all_of(word.begin(), word.end(), [](unsigned char c) {
      return std::isalnum(c) || std::strchr("-_=./:,+@%", c) != nullptr;
    });
    std::string quoted;
    for (char c : word) quoted += c == '\'' ? std::string("'\\''") : std::string(1, c);
    out += " " + (plain ? word : "'" + quoted + "'");
  }
  return out;
}

// A run in a process of its own. It dies with this one, and hears neither Ctrl-C nor SIGTERM, which this one does.
class Child {
 public:
  Child(RunId id, const std::vector<std::string>& words, bool company) : id(id), company(company) {
    std::vector<const char*> arguments{"heed"};
    for (const std::string& word : words) arguments.push_back(word.c_str());
    arguments.push_back(nullptr);
    int out[2], err[2], in = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (in < 0 || pipe2(out, O_CLOEXEC) != 0 || pipe2(err, O_CLOEXEC) != 0)
      throw std::runtime_error(std::string("a run cannot be started: ") + std::strerror(errno));
    const pid_t parent = getpid();
    process_ = fork();
    if (process_ == 0) {  // nothing here but system calls: this is a copy of a program with threads
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      if (getppid() != parent) _exit(127);
      sigset_t deaf;
      sigemptyset(&deaf);
      sigaddset(&deaf, SIGINT), sigaddset(&deaf, SIGTERM);
      sigprocmask(SIG_BLOCK, &deaf, nullptr);
      dup2(in, 0), dup2(out[1], 1), dup2(err[1], 2);
      execv("/proc/self/exe", const_cast<char**>(arguments.data()));
      _exit(127);
    }
    const int error = errno;
    close(in), close(out[1]), close(err[1]);
    streams_[0] = out[0], streams_[1] = err[0];
    if (process_ < 0) throw std::runtime_error(std::string("a run cannot be started: ") + std::strerror(error));
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;
  ~Child() {
    if (process_ > 0) kill(process_, SIGKILL), waitpid(process_, nullptr, 0);
    for (int stream : streams_)
      if (stream >= 0) close(stream);
  }

  pid_t process() const { return process_; }
  const int* streams() const { return streams_; }
  // Takes what has been written. False: nothing more will come.
  bool read_more() {
    char buffer[4096];
    for (int s = 0; s < 2; ++s) {
      pollfd ready{streams_[s], POLLIN, 0};
      while (streams_[s] >= 0 && poll(&ready, 1, 0) > 0) {
        const ssize_t n = read(streams_[s], buffer, sizeof(buffer));
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) {
          close(streams_[s]);
          streams_[s] = ready.fd = -1;
        } else {
          text_[s].append(buffer, static_cast<std::size_t>(n));
          if (text_[s].size() > kKept) text_[s].erase(0, text_[s].size() - kKept);
        }
      }
    }
    return streams_[0] >= 0 || streams_[1] >= 0;
  }
  Outcome wait() {
    int status = 0;
    while (waitpid(process_, &status, 0) < 0 && errno == EINTR) continue;
    process_ = -1;
    Outcome out;
    const Json j = Json::parse(text_[0], nullptr, false);
    if (WIFSIGNALED(status)) {
      starved = WTERMSIG(status) == SIGKILL;
      out.error = fmt::format("ended by signal {} ({}){}", WTERMSIG(status), strsignal(WTERMSIG(status)),
                              starved ? ", as where memory is short" : "");
    } else if (WEXITSTATUS(status) != 0) {
      const std::size_t end = text_[1].find_last_not_of('\n') + 1, before = text_[1].rfind('\n', end - 1);
      std::string line = end == 0 ? "" : text_[1].substr(before + 1, end - before - 1);
      if (line.starts_with("heed: ")) line.erase(0, 6);
      starved = line.starts_with("out of memory");
      out.error = line.empty() ? fmt::format("ended with exit code {}", WEXITSTATUS(status)) : line;
    } else {
      auto take = [&](const char* name, auto& value) {
        if (j.is_object() && j.contains(name) && j[name].is_number())
          value = j[name].get<std::remove_reference_t<decltype(value)>>();
        else
          out.error = std::string("gave no '") + name + "'";
      };
      take("test_mean", out.test), take("valid_mean", out.valid), take("epochs_mean", out.epochs);
      take("epoch_ms", out.epoch_ms), take("seconds", out.seconds), take("peak_rss_mb", out.peak_mb);
      take("parameters", out.parameters);
    }
    return out;
  }

  const RunId id;
  const bool company;    // others ran when it began
  bool starved = false;  // after wait(): by want of memory, as it seems
  const Clock::time_point start = Clock::now();

 private:
  static constexpr std::size_t kKept = 1 << 16;
  pid_t process_ = -1;
  int streams_[2] = {-1, -1};
  std::string text_[2];
};

std::string duration(double seconds) {
  if (seconds < 90) return fmt::format("{:.0f} s", seconds);
  return seconds < 5400 ? fmt::format("{:.0f} min", seconds / 60) : fmt::format("{:.1f} h", seconds / 3600);
}

std::string metric_of(const Trial& t) {
  std::string metric = metric_names()[static_cast<std::size_t>(t.recipe.train.metric)];
  std::replace(metric.begin(), metric.end(), '_', ' ');
  return metric;
}

// Lines that are drawn over on a terminal, one for each run elsewhere.
class View {
 public:
  View(const Sweep& sweep, const Outcomes& outcomes, bool quiet)
      : sweep_(sweep), quiet_(quiet), terminal_(isatty(STDERR_FILENO) != 0), sums_(sweep.trials.size()) {
    for (std::size_t t = 0; t < outcomes.size(); ++t)
      for (const auto& o : outcomes[t]) {
        ++all_;
        if (o && o->error.empty()) count(t, *o);
      }
  }
  ~View() { erase(); }

  void checking(const Trial& t) {
    if (quiet_ || !terminal_ || !due()) return;
    erase();
    show({fmt::format("checking {} on {}", t.design, t.dataset)});
  }
  void draw(const std::vector<std::unique_ptr<Child>>& running, double left) {
    if (quiet_ || !terminal_ || !due()) return;
    std::string now, best;
    for (const auto& child : running) {
      const Trial& t = sweep_.trials[child->id.trial];
      now += fmt::format("{}{} on {}, seed {}, {}", now.empty() ? "" : "; ", t.design, t.dataset,
                         t.seeds[child->id.run], duration(since(child->start)));
    }
    for (const std::string& dataset : sweep_.datasets) {
      std::size_t first = sums_.size();
      for (std::size_t t = 0; t < sums_.size(); ++t)
        if (sweep_.trials[t].dataset == dataset && sums_[t].runs > 0 &&
            (first == sums_.size() || sums_[t].mean() > sums_[first].mean()))
          first = t;
      if (first < sums_.size())
        best += fmt::format("{}{} {:.2f} % {}", best.empty() ? "" : "; ", dataset, sums_[first].mean(),
                            sweep_.trials[first].design);
    }
    erase();
    show({fmt::format("{} {}/{} runs{}{}", bar(static_cast<double>(done_) / static_cast<double>(all_)), done_, all_,
                      failed_ > 0 ? fmt::format(", {} failed", failed_) : "",
                      left >= 0 ? ", " + duration(left) + " left" : ""),
          "running  " + now, "best     " + best});
  }
  void ended(RunId id, const Outcome& o, double left) {
    const Trial& t = sweep_.trials[id.trial];
    if (o.error.empty())
      count(id.trial, o);
    else
      ++failed_;
    if (quiet_) return;
    const std::string head =
        fmt::format("{}/{}  {} on {}, seed {}: ", done_ + failed_, all_, t.design, t.dataset, t.seeds[id.run]);
    if (!o.error.empty()) {
      erase();
      note(head + o.error + "\n");
    } else if (!terminal_) {
      note(head + fmt::format("test {:.2f} %, valid {:.2f} %, {:.1f} s, {:.0f} MB{}\n", o.test, o.valid, o.seconds,
                              o.peak_mb, left >= 0 ? "; " + duration(left) + " left" : ""));
    }
  }
  void erase() {
    if (lines_ > 0) note((lines_ > 1 ? fmt::format("\033[{}A", lines_ - 1) : "") + "\r\033[J");
    lines_ = 0;
  }
  std::size_t done() const { return done_; }
  std::size_t all() const { return all_; }

 private:
  struct Sum {
    double test = 0;
    int runs = 0;
    double mean() const { return test / runs; }
  };
  void count(std::size_t trial, const Outcome& o) {
    sums_[trial].test += o.test, ++sums_[trial].runs;
    ++done_;
  }
  bool due() {
    if (since(last_) < 0.2) return false;
    last_ = Clock::now();
    return true;
  }
  void show(const std::vector<std::string>& lines) {
    std::string text;
    for (const std::string& line : lines) text += (text.empty() ? "" : "\n") + fitting(line);
    note(text);
    lines_ = static_cast<int>(lines.size());
  }

  const Sweep& sweep_;
  bool quiet_, terminal_;
  std::vector<Sum> sums_;
  std::size_t done_ = 0, failed_ = 0, all_ = 0;
  int lines_ = 0;
  Clock::time_point last_ = Clock::now() - std::chrono::seconds(1);
};

void do_runs(const Sweep& sweep, Folder& folder, View& view, const Options& o) {
  // Runs on a GPU would share it: one at a time, unless told otherwise.
  const bool on_gpu =
      std::ranges::any_of(sweep.trials, [](const Trial& t) { return t.recipe.train.device == Device::cuda; });
  const int jobs = o.jobs > 0 ? o.jobs : on_gpu ? 1 : std::max(1, cores() / std::max(1, o.threads));
  const int threads = o.threads > 0 ? o.threads : std::max(1, cores() / jobs);
  Queue schedule(sweep, folder.outcomes, jobs);
  std::vector<std::unique_ptr<Child>> running;
  auto now = [&] {
    std::vector<Queue::Running> out;
    for (const auto& child : running) out.push_back({child->id, resident_mb(child->process())});
    return out;
  };
  while (schedule.waiting() > 0 || !running.empty()) {
    if (interrupted()) {
      running.clear();
      throw Interrupted(fmt::format("interrupted after {} of {} runs; --resume goes on", view.done(), view.all()));
    }
    while (const auto id = schedule.next(available_mb(), now())) {
      std::vector<std::string> words = words_of(settings_of(sweep.trials[id->trial], id->run));
      words.insert(words.end(), {"--threads", std::to_string(threads), "--json", "--quiet"});
      if (!o.source.data.empty()) words.insert(words.end(), {"--data", o.source.data});
      if (o.source.offline) words.emplace_back("--offline");
      running.push_back(std::make_unique<Child>(*id, words, !running.empty()));
    }
    std::vector<pollfd> ready;
    for (const auto& child : running)
      for (int s = 0; s < 2; ++s) ready.push_back({child->streams()[s], POLLIN, 0});  // closed ones are left out
    poll(ready.data(), ready.size(), 200);
    for (std::size_t c = 0; c < running.size() && !interrupted();) {
      Child& child = *running[c];
      if (child.read_more()) {
        ++c;
        continue;
      }
      const Outcome outcome = child.wait();
      if (interrupted()) break;
      const bool company = child.company || running.size() > 1;
      const bool again = child.starved && company && !schedule.tried_alone(child.id);
      const RunId id = child.id;
      running.erase(running.begin() + static_cast<std::ptrdiff_t>(c));
      if (again) {
        schedule.again(id);
        continue;
      }
      folder.add(id, outcome);
      schedule.ended(id, outcome);
      view.ended(id, outcome, schedule.seconds_left(now()));
    }
    view.draw(running, schedule.seconds_left(now()));
  }
  view.erase();
}

// Tables.

using Table = std::vector<std::vector<Cell>>;

std::string sign(const SweepRow& row) { return !(row.p_holm < 0.05) ? "" : row.against.difference > 0 ? " +" : " -"; }
std::string probability(double p) { return std::isnan(p) ? "" : p < 0.001 ? "< 0.001" : fmt::format("{:.3f}", p); }
std::string mean_of(const SweepRow& row) {
  if (row.test.count == 0) return row.failed > 0 ? "failed" : "";
  return fmt::format("{:.2f}{}", row.test.mean, row.test.count > 1 ? fmt::format(" ± {:.2f}", row.test.deviation) : "");
}
std::string runs_of(const SweepRow& row) {
  return std::to_string(row.test.count) + (row.failed > 0 ? fmt::format(" ({} failed)", row.failed) : "");
}

// A column for each dataset. Runs are named where they are fewer than elsewhere on it.
Table matrix(const Sweep& sweep, const std::vector<SweepRow>& rows) {
  Table out{{{"design"}}};
  std::map<std::string, int> most;
  for (const SweepRow& row : rows) {
    int& n = most[sweep.trials[row.trial].dataset];
    n = std::max(n, row.test.count);
  }
  std::map<std::pair<std::string, std::string>, const SweepRow*> at;
  for (const SweepRow& row : rows) at[{sweep.trials[row.trial].design, sweep.trials[row.trial].dataset}] = &row;
  for (const std::string& dataset : sweep.datasets)
    for (const Trial& t : sweep.trials)
      if (t.dataset == dataset) {
        out[0].push_back({dataset + ", " + metric_of(t) + " %"});
        break;
      }
  for (const std::string& design : sweep.designs) {
    out.push_back({{design}});
    for (const std::string& dataset : sweep.datasets) {
      const auto found = at.find({design, dataset});
      if (found == at.end()) {
        out.back().push_back({""});
        continue;
      }
      const SweepRow& row = *found->second;
      const bool fewer = row.test.count < most[dataset] && row.test.count > 0;
      out.back().push_back({mean_of(row) + (fewer ? fmt::format(" ({})", row.test.count) : "") + sign(row), row.best});
    }
  }
  return out;
}

Table details(const Sweep& sweep, const std::vector<SweepRow>& rows, const std::string& dataset) {
  Table out;
  for (const SweepRow& row : rows) {
    const Trial& t = sweep.trials[row.trial];
    if (t.dataset != dataset) continue;
    if (out.empty()) {
      out.push_back({{"design"},
                     {"test " + metric_of(t) + " %"},
                     {"validation"},
                     {"epochs"},
                     {"ms/epoch"},
                     {"MB"},
                     {"parameters"},
                     {"runs"}});
      if (!sweep.baseline.empty()) out[0].push_back({"against " + sweep.baseline}), out[0].push_back({"p"});
    }
    const bool any = row.test.count > 0, pairs = row.against.pairs > 0;
    auto number = [&](const char* form, double x) { return Cell{any ? fmt::format(fmt::runtime(form), x) : ""}; };
    out.push_back({{t.design},
                   {mean_of(row), row.best},
                   number("{:.2f}", row.valid.mean),
                   number("{:.0f}", row.epochs.mean),
                   number("{:.2f}", row.epoch_ms.mean),
                   number("{:.0f}", row.peak_mb),
                   {any ? std::to_string(row.parameters) : ""},
                   {runs_of(row)}});
    if (sweep.baseline.empty()) continue;
    out.back().push_back({pairs ? fmt::format("{:+.2f}{}", row.against.difference, sign(row)) : ""});
    out.back().push_back({probability(row.p_holm)});
  }
  return out;
}

const char* test_of(const SweepRow& row, const Trial& t) {
  return row.against.pairs < 2 ? "" : t.test_share > 0 ? "corrected" : "paired";
}

Json to_json(const Sweep& sweep, const SweepRow& row, const Outcomes& outcomes) {
  const Trial& t = sweep.trials[row.trial];
  Json seeds = Json::array(), tests = Json::array();
  for (std::size_t r = 0; r < t.seeds.size(); ++r)
    if (const auto& o = outcomes[row.trial][r]; o && o->error.empty())
      seeds.push_back(t.seeds[r]), tests.push_back(o->test);
  auto seen = [&](auto value) { return row.test.count > 0 ? Json(value) : Json(); };  // null where all runs failed
  Json out{{"design", t.design},
           {"dataset", t.dataset},
           {"metric", metric_of(t)},
           {"runs", row.test.count},
           {"failed", row.failed},
           {"seeds", seeds},
           {"test", tests},
           {"test_mean", seen(row.test.mean)},
           {"test_std", seen(row.test.deviation)},
           {"valid_mean", seen(row.valid.mean)},
           {"epochs_mean", seen(row.epochs.mean)},
           {"epoch_ms", seen(row.epoch_ms.mean)},
           {"seconds_mean", seen(row.seconds.mean)},
           {"peak_mb", seen(row.peak_mb)},
           {"parameters", seen(row.parameters)}};
  if (row.failed > 0) out["error"] = row.error;
  if (row.against.pairs > 0) {
    out["difference"] = row.against.difference, out["pairs"] = row.against.pairs;
    out["t_test"] = test_of(row, t);
    out["p"] = row.against.p, out["p_holm"] = row.p_holm;
  }
  return out;
}

// The rows of the JSON object, with a column for each of their numbers.
Table columns(const Json& rows) {
  const std::vector<std::string> names{"design",       "dataset",  "metric",     "runs",        "failed",
                                       "test_mean",    "test_std", "valid_mean", "epochs_mean", "epoch_ms",
                                       "seconds_mean", "peak_mb",  "parameters", "difference",  "pairs",
                                       "t_test",       "p",        "p_holm",     "error"};
  Table out{{}};
  for (const auto& name : names) out[0].push_back({name});
  for (const Json& row : rows) {
    out.emplace_back();
    for (const auto& name : names) {
      const auto at = row.find(name);
      out.back().push_back({at == row.end() || at->is_null() ? ""
                            : at->is_string()                ? at->get<std::string>()
                                                             : at->dump()});
    }
  }
  return out;
}

std::string caption(const Sweep& sweep, const std::vector<SweepRow>& rows, bool stars) {
  int most = 0;
  bool corrected = false, plain = false;
  for (const SweepRow& row : rows) {
    most = std::max(most, row.test.count);
    const std::string test = test_of(row, sweep.trials[row.trial]);
    corrected |= test == "corrected", plain |= test == "paired";
  }
  std::string out = fmt::format("Test metric, mean ± standard deviation of {} run{}; {} is the best of its dataset.",
                                most, most == 1 ? "" : "s", stars ? "*" : "bold");
  if (corrected || plain)
    out += fmt::format(" + better, - worse than {}: p < 0.05, paired t test{}, after Holm over the dataset's rows.",
                       sweep.baseline,
                       !corrected ? ""
                       : plain    ? ", corrected where splits overlap"
                                  : " corrected for overlapping splits");
  return out + "\n";
}

std::string failures(const Sweep& sweep, const std::vector<SweepRow>& rows) {
  std::string out;
  for (const SweepRow& row : rows)
    if (row.failed > 0)
      out += fmt::format("failed: {} on {}, {} of {} runs: {}\n", sweep.trials[row.trial].design,
                         sweep.trials[row.trial].dataset, row.failed, sweep.trials[row.trial].seeds.size(), row.error);
  return out;
}

// The matrix where there are several datasets, the details of one, or of all.
std::string tables(const Sweep& sweep, const std::vector<SweepRow>& rows, Style style, bool all) {
  std::string out;
  const bool several = sweep.datasets.size() > 1;
  const bool latex = style == Style::latex;
  auto remark = [&](const std::string& text) {
    for (std::size_t at = 0; at < text.size();) {
      const std::size_t end = text.find('\n', at);
      out += (latex ? "% " : "") + text.substr(at, end + 1 - at);
      at = end + 1;
    }
  };
  if (several) out += table(matrix(sweep, rows), style);
  if (several) out += "\n", remark(caption(sweep, rows, style == Style::plain));
  for (const std::string& dataset : sweep.datasets) {
    if (several && !all) break;
    if (several) out += "\n", remark(dataset + "\n"), out += "\n";
    out += table(details(sweep, rows, dataset), style);
  }
  if (!several) out += "\n", remark(caption(sweep, rows, style == Style::plain));
  if (const std::string text = failures(sweep, rows); !text.empty()) out += "\n", remark(text);
  return out;
}

void run(const Options& o) {
  Sweep sweep = parse_sweep(read_file(o.file), o.file);
  if (!o.list && !o.save) fail("--save FOLDER says where the results go; --list shows the runs and does none");
  if (o.baseline) try {
      sweep.baseline = sweep.designs[choose("design", *o.baseline, sweep.designs)];
    } catch (const Error& e) {
      fail(std::string("--baseline: ") + e.what());
    }
  auto stop = [] {
    if (interrupted()) throw Interrupted("interrupted before the first run");
  };
  stop();
  {
    View view(sweep, none_yet(sweep), o.quiet);
    prepare(
        sweep, [&](const Recipe& r) { return load_dataset(r, o.source, o.quiet); },
        [&](const Trial& t) { stop(), view.checking(t); });
    malloc_trim(0);  // of the data, for the runs
  }
  if (o.list) {
    std::string out;
    for (const Trial& t : sweep.trials) {
      std::vector<Setting> settings = t.settings;
      settings.push_back({"seed", std::to_string(t.seeds[0]), ""});
      settings.push_back({"runs", std::to_string(t.seeds.size()), ""});
      bool row = true;
      for (std::size_t r = 1; r < t.seeds.size(); ++r) row = row && t.seeds[r] == t.seeds[r - 1] + 1;
      if (row) out += shell(words_of(settings)) + "\n";
      for (std::size_t r = 0; r < t.seeds.size() && !row; ++r) out += shell(words_of(settings_of(t, r))) + "\n";
    }
    return print(out);
  }
  Folder folder(*o.save, sweep, o.resume);
  View view(sweep, folder.outcomes, o.quiet);
  do_runs(sweep, folder, view, o);

  const std::vector<SweepRow> rows = rows_of(sweep, folder.outcomes);
  Json json{{"version", HEED_VERSION}, {"sweep", o.file}, {"baseline", sweep.baseline}, {"rows", Json::array()}};
  std::size_t failed = 0;
  for (const SweepRow& row : rows) {
    json["rows"].push_back(to_json(sweep, row, folder.outcomes));
    failed += static_cast<std::size_t>(row.failed);
  }
  const std::string text = json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
  const std::string csv = table(columns(json["rows"]), Style::csv);
  folder.write_table("results.json", text);
  folder.write_table("results.csv", csv);
  folder.write_table("results.md", tables(sweep, rows, Style::markdown, true));
  folder.write_table("results.tex", tables(sweep, rows, Style::latex, true));
  print(o.json       ? text
        : o.csv      ? csv
        : o.markdown ? tables(sweep, rows, Style::markdown, false)
        : o.latex    ? tables(sweep, rows, Style::latex, false)
                     : tables(sweep, rows, Style::plain, false));
  if (failed > 0)
    throw std::runtime_error(fmt::format("{} of {} runs failed; --resume tries them again", failed, view.all()));
}

}  // namespace

void add_sweep(CLI::App& app) {
  auto o = std::make_shared<Options>();
  auto* c = app.add_subcommand("sweep", "Train many designs on many datasets, and compare them in a table");
  c->footer(
      "The file names options as `heed train --config` does. A list of values is an axis: every combination is a "
      "design\n"
      "of its own, named after what differs.\n\n"
      "  runs = 10                                  # seeds 1 to 10, each on a split of its own; or seed = [1, 5, 7]\n"
      "  baseline = \"dot, local | self\"             # the design that others are held against\n"
      "  mask = [\"local | self\", \"local(2)\"]        # an axis: two designs of each below\n"
      "  [dataset.cora]                             # or, without settings: dataset = [\"cora\", \"pubmed\"]\n"
      "  epochs = 200                               # on this one alone\n"
      "  [design.dot]                               # options over those above; without designs, those above are one\n"
      "  score = \"dot\"\n"
      "  [design.perceptron]\n"
      "  model = \"mlp\"                              # options of attention above are left out for it\n"
      "  dataset = \"cora\"                           # on this one alone\n\n"
      "Each run is a process, and as many run at a time as cores and memory allow. FOLDER holds sweep.toml (what the\n"
      "results depend on), runs.jsonl (a line a run), and in the end results.csv, .json, .md and .tex. What was "
      "killed\n"
      "or interrupted goes on with --resume, to the same results. Exit code 1: some runs failed.\n\n"
      "Differences to the baseline are tested over runs of the same seed and split: Student's paired t, corrected for\n"
      "splits that overlap (Nadeau & Bengio 2003), after Holm over the designs of a dataset.");
  c->add_option("file", o->file, "The sweep, in TOML")->required()->check(not_empty());
  add_source(*c, o->source, "Data");
  const char *doing = "Runs", *output = "Output";
  c->add_option("--save", o->save, "Folder for what the runs give, and the tables")->check(not_empty())->group(doing);
  c->add_flag("--resume", o->resume, "Go on with the sweep in the folder; runs that failed are tried again")
      ->group(doing);
  c->add_option("--jobs", o->jobs, "At most so many at a time; default: cores by threads")
      ->check(whole_number(1, 4096))
      ->group(doing);
  c->add_option("--threads", o->threads, "Of each run; default: cores by jobs")
      ->check(whole_number(1, 4096))
      ->group(doing);
  c->add_flag("--list", o->list, "Check all and show the runs as commands, and do none")->group(doing);
  c->add_option("--baseline", o->baseline, "The design that others are held against, in place of the file's")
      ->group(output);
  std::vector<CLI::Option*> styles{c->add_flag("--markdown", o->markdown, "The table in Markdown"),
                                   c->add_flag("--csv", o->csv, "All numbers, a line for a design on a dataset"),
                                   c->add_flag("--latex", o->latex, "The table in LaTeX"),
                                   c->add_flag("--json", o->json, "All numbers as one JSON object")};
  for (CLI::Option* a : styles) {
    a->group(output);
    for (CLI::Option* b : styles)
      if (a != b) a->excludes(b);
  }
  c->add_flag("--quiet", o->quiet, "No progress")->group(output);
  c->callback([o] { run(*o); });
}

}  // namespace heed::cli

#include "cli/progress.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <numeric>

#include "cli/command.h"

namespace heed::cli {

using Clock = std::chrono::steady_clock;

std::string bar(double share) {
  constexpr int width = 24;
  const int full = static_cast<int>(share * width);
  std::string out;
  for (int i = 0; i < width; ++i) out += i < full ? "━" : "─";
  return out;
}

std::string fitting(const std::string& text) {
  winsize size{};
  if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return text;
  std::size_t at = 0;
  for (int columns = 0; at < text.size(); ++at)
    if ((text[at] & 0xc0) != 0x80 && ++columns >= size.ws_col) break;  // characters, not bytes
  return text.substr(0, at);
}

Progress::Progress(std::string title, int runs, int epochs, bool quiet)
    : title_(std::move(title)),
      runs_(runs),
      epochs_(epochs),
      quiet_(quiet),
      terminal_(isatty(STDERR_FILENO) != 0),
      done_(static_cast<std::size_t>(runs)),
      start_(Clock::now()),
      last_(start_ - std::chrono::seconds(1)) {}

Progress::~Progress() { erase(); }

void Progress::erase() {
  if (drawn_) note("\r\033[K");
  drawn_ = false;
}

void Progress::draw(const Epoch& e) {
  const double share = std::accumulate(done_.begin(), done_.end(), 0.0) / runs_;
  const auto seconds = std::chrono::duration<double>(Clock::now() - start_).count();
  std::string where = runs_ > 1 ? fmt::format("run {}/{}", std::min(ended_ + 1, runs_), runs_)
                                : fmt::format("epoch {}/{}", e.epoch, epochs_);
  note("\r\033[K" + fitting(fmt::format("{} {} {}  loss {:.3f}  valid {:.1f}%  {:.0f}s", title_, bar(share), where,
                                        e.train_loss, e.valid, seconds)));
  drawn_ = true;
}

void Progress::epoch(const Epoch& e) {
  if (quiet_) return;
  if (!terminal_ && !titled_) note(fmt::format("{}\n", title_));
  titled_ = true;
  done_[static_cast<std::size_t>(e.run)] = static_cast<double>(e.epoch) / epochs_;
  const auto now = Clock::now();
  if (terminal_) {
    if (now - last_ < std::chrono::milliseconds(80)) return;
    last_ = now;
    draw(e);
  } else if (runs_ == 1 && (e.epoch == 1 || e.epoch % std::max(1, epochs_ / 10) == 0)) {
    note(fmt::format("epoch {:>4}/{}  train loss {:.4f}  valid loss {:.4f}  valid {:.2f}%\n", e.epoch, epochs_,
                     e.train_loss, e.valid_loss, e.valid));
  }
}

void Progress::run(int number, const Run& run) {
  ++ended_;
  done_[static_cast<std::size_t>(number)] = 1;
  if (quiet_ || terminal_) return;
  note(fmt::format("run {:>3}/{}  seed {}  test {:.2f}%  valid {:.2f}%  best epoch {} of {}  {:.1f}s\n", number + 1,
                   runs_, run.seed, run.test, run.valid, run.best_epoch, run.epochs, run.seconds));
}

DownloadBar::DownloadBar(bool quiet)
    : quiet_(quiet), terminal_(isatty(STDERR_FILENO) != 0), last_(Clock::now() - std::chrono::seconds(1)) {}

DownloadBar::~DownloadBar() {
  if (drawn_) note("\r\033[K");
}

void DownloadBar::show(const std::string& what, std::uint64_t bytes, std::uint64_t of) {
  if (quiet_) return;
  if (!terminal_) {  // one line each
    if (said_ != what) note(of > 0 ? fmt::format("downloading {}, {:.1f} MB\n", what, 1e-6 * of) : what + "\n");
  } else if (const auto now = Clock::now(); said_ != what || now - last_ > std::chrono::milliseconds(80)) {
    last_ = now;
    note("\r\033[K" + fitting(of == 0 ? what
                                      : fmt::format("downloading {} {}  {:.1f} of {:.1f} MB", what,
                                                    bar(static_cast<double>(bytes) / static_cast<double>(of)),
                                                    1e-6 * bytes, 1e-6 * of)));
    drawn_ = true;
  }
  said_ = what;
}

Dataset load_dataset(const Recipe& recipe, const Source& source, bool quiet) {
  DownloadBar bar(quiet);
  return load(recipe,
              {.data = source.data, .download = !source.offline, .progress = [&](auto... x) { bar.show(x...); }});
}

}  // namespace heed::cli

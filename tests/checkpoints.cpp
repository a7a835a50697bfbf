// Checkpoints: a training that is cut anywhere goes on to the same bits, and a file is whole or refused.
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <thread>

#include "datasets/karate.h"
#include "datasets/sbm.h"
#include "graph/files.h"
#include "tests/scratch.h"
#include "tests/support.h"
#include "train/checkpoint.h"
#include "train/recipes.h"

using namespace heed;
using namespace heed::test;
namespace fs = std::filesystem;

extern char** environ;

namespace {

void same_bits(const Run& a, const Run& b) {
  REQUIRE(a.weights.size() == b.weights.size());
  for (std::size_t i = 0; i < a.weights.size(); ++i) CHECK(a.weights[i].value == b.weights[i].value);
  CHECK(a.logits == b.logits);
  CHECK(a.epochs == b.epochs);
  CHECK(a.best_epoch == b.best_epoch);
  CHECK(a.test == b.test);
  CHECK(a.valid == b.valid);
  CHECK(a.train_loss == b.train_loss);
}

// The training that is killed below, in a process of its own.
Report child_training(const fs::path& folder, bool atomic) {
  static const Dataset data = karate();
  TrainOptions o{.epochs = 300, .stop = Stop::metric, .seed = 5, .threads = 1};
  o.checkpoints = {.folder = folder, .name = "karate", .every = 1, .resume = true};
  if (!atomic)
    o.checkpoints.write = [](const fs::path& path, std::string_view bytes) {
      const int file = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0666);
      const auto half = bytes.size() / 2;
      if (write(file, bytes.data(), half) > 0) std::this_thread::sleep_for(std::chrono::milliseconds(3));
      if (write(file, bytes.data() + half, bytes.size() - half) > 0) close(file);
    };
  return train(gat({.classes = 2, .hidden = 4, .heads = 2}), data, o);
}

// Where `wait` is given, kills it after that.
int run_child(const fs::path& folder, bool atomic, const std::function<void()>& wait = {}) {
  setenv("HEED_TEST_FOLDER", folder.c_str(), 1);
  setenv("HEED_TEST_ATOMIC", atomic ? "1" : "0", 1);
  std::string program = fs::read_symlink("/proc/self/exe");
  const char* arguments[] = {program.c_str(), "--no-skip", "--test-case=the training that is killed", "-m", nullptr};
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  for (int stream : {1, 2}) posix_spawn_file_actions_addopen(&actions, stream, "/dev/null", O_WRONLY, 0);
  pid_t child = 0;
  REQUIRE(posix_spawn(&child, program.c_str(), &actions, nullptr, const_cast<char**>(arguments), environ) == 0);
  posix_spawn_file_actions_destroy(&actions);
  if (wait) {
    wait();
    kill(child, SIGKILL);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

// Kills at random moments; how many checkpoints could not be read afterwards.
int kill_often(const fs::path& folder, bool atomic, int kills, Random& random) {
  using Clock = std::chrono::steady_clock;
  using std::chrono::microseconds;
  // How long a process lives before its first checkpoint; on a busy machine, or with sanitizers, that may be a second.
  const auto start = Clock::now();
  microseconds lead{};
  run_child(folder, atomic, [&] {
    while (!fs::exists(folder / "karate-5.safetensors") && Clock::now() - start < std::chrono::minutes(1))
      std::this_thread::sleep_for(microseconds(200));
    lead = std::chrono::duration_cast<microseconds>(Clock::now() - start);
  });
  int broken = 0;
  for (int t = 0; t < kills; ++t) {
    run_child(folder, atomic, [&] {
      const auto most = static_cast<std::uint64_t>(2 * lead.count() + 30'000);
      std::this_thread::sleep_for(microseconds(random.below(most)));
    });
    try {
      read_safetensors(folder / "karate-5.safetensors");
    } catch (const Error&) {
      ++broken;
      fs::remove(folder / "karate-5.safetensors");
    }
  }
  return broken;
}

}  // namespace

TEST_SUITE_BEGIN("checkpoints");

TEST_CASE("the training that is killed" * doctest::skip()) {
  if (const char* folder = std::getenv("HEED_TEST_FOLDER"))
    child_training(folder, std::string(std::getenv("HEED_TEST_ATOMIC")) == "1");
}

TEST_CASE("safetensors: what is written is read, and every type of PyTorch's") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  std::vector<Weight> weights{{"a", random_matrix<float>(3, 5, random)},
                              {"empty", Matrix<float>(0, 4)},
                              {"b.\"weight\"", random_matrix<float>(1, 7, random)}};
  const std::string bytes = to_safetensors(weights, {{"key", "line\nline \"é\""}});
  const Safetensors back = parse_safetensors(bytes, "memory");
  REQUIRE(back.weights.size() == 3);
  for (const Weight& w : weights) {
    REQUIRE(back.find(w.name) != nullptr);
    CHECK(*back.find(w.name) == w.value);
  }
  CHECK(back.metadata.at("key") == "line\nline \"é\"");

  auto file = [](const std::string& header, const std::string& data) {
    std::string out(8, '\0');
    const std::uint64_t length = header.size();
    std::memcpy(out.data(), &length, 8);
    return out + header + data;
  };
  auto one = [&](const std::string& dtype, const std::string& data) {
    return parse_safetensors(file(R"({"x":{"dtype":")" + dtype + R"(","shape":[2],"data_offsets":[0,)" +
                                      std::to_string(data.size()) + "]}}",
                                  data),
                             "f")
        .weights[0]
        .value;
  };
  using namespace std::string_literals;
  CHECK(one("BF16", "\x80\x3f\x00\xc0"s)(0, 0) == 1);
  CHECK(one("BF16", "\x80\x3f\x00\xc0"s)(0, 1) == -2);
  CHECK(one("F16", "\x00\x3c\x00\xc0"s)(0, 0) == 1);
  CHECK(one("F16", "\x01\x00\x00\xc0"s)(0, 0) == 0x1p-24f);
  CHECK(one("F64", "\0\0\0\0\0\0\xf0\x3f\0\0\0\0\0\0\0\xc0"s)(0, 1) == -2);

  auto refused = [&](const std::string& bytes, const std::string& because) {
    const std::string said = message([&] { parse_safetensors(bytes, "f"); });
    CAPTURE(said);
    CHECK(said.find(because) != std::string::npos);
  };
  const std::string four = R"("dtype":"F32","shape":[1],"data_offsets":)";
  refused("", "ends after 0 bytes");
  refused("\xff\xff\xff\xff\xff\xff\xff\x0f{}"s, "claims 1152921504606846975 bytes");
  refused(file("[]", ""), "not a JSON object");
  refused(file("{", ""), "not a JSON object");
  refused(file(std::string(100000, '['), ""), "not a JSON object");
  refused(file(R"({"x":3})", ""), "entry 'x' is not an object");
  refused(file(R"({"__metadata__":{"a":1}})", ""), "metadata 'a' is not text");
  refused(file(R"({"x":{"dtype":"F32"}})", ""), "lacks");
  refused(file(R"({"x":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}})", "12345678"), "of type I64");
  refused(file(R"({"x":{"dtype":"F32","shape":[1,1,1],"data_offsets":[0,4]}})", "1234"), "3 dimensions");
  refused(file(R"({"x":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})", "1234"), "lacks");
  refused(file(R"({"x":{"dtype":"F32","shape":[1152921504606846976],"data_offsets":[0,4]}})", "1234"), "do not take");
  refused(file(R"({"x":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}})", ""), "do not take");
  refused(file(R"({"x":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", "1234"), "do not take 4 bytes");
  refused(file("{\"x\":{" + four + "[0,8]}}", "1234"), "of 4 bytes");
  refused(file("{\"x\":{" + four + "[0,4]},\"y\":{" + four + "[0,4]}}", "1234"), "inside another");
  refused(file("{\"x\":{" + four + "[4,8]}}", "12345678"), "after a hole");
  refused(file("{\"x\":{" + four + "[0,4]}}", "12345678"), "4 bytes at the end");
  refused(file("{\"x\":{" + four + "[0,4]}}", "\x00\x00\xc0\x7f"s), "number 0 is nan");
  for (std::size_t cut = 0; cut < bytes.size(); cut += 1 + cut / 40)
    CHECK_THROWS_AS(parse_safetensors(bytes.substr(0, cut), "f"), Error);
}

TEST_CASE("a training that is interrupted and resumed ends in the same bits") {
  auto seed = fresh_seed() % 100000;
  CAPTURE(seed);
  Random random(seed);
  Sbm size;
  size.nodes = 300, size.valid = 60, size.test = 100, size.seed = seed;
  const Dataset data = sbm(size);
  for (const auto& entry : model_menu())
    for (Rule rule : {Rule::adam, Rule::sgd}) {
      CAPTURE(entry.name);
      Scratch folder;
      Model model = entry.make({.classes = data.classes, .attention_dropout = 0.3, .norm = Norm::batch});
      TrainOptions o{
          .epochs = 25, .patience = 12, .stop = Stop::both, .class_weights = "balanced", .seed = seed, .runs = 2};
      o.optimiser = rule, o.rate = 0.02, o.clip = 1;
      o.schedule = {.schedule = Schedule::plateau, .warmup = 2, .factor = 0.5, .span = 3};
      const Report whole = train(model, data, o);
      o.checkpoints = {.folder = folder.path, .name = "run", .every = 4, .resume = true};
      std::atomic<bool> stop{false};
      o.interrupted = &stop;
      int pauses = 0;
      for (;; ++pauses) {
        int left = 1 + static_cast<int>(random.below(14));
        stop = false;
        o.threads = 1 + static_cast<int>(random.below(3));
        o.on_epoch = [&](const Epoch&) { stop = --left <= 0; };
        try {
          const Report r = train(model, data, o);
          for (int run = 0; run < 2; ++run) same_bits(r.runs[run], whole.runs[run]);
          break;
        } catch (const Interrupted&) {
        }
      }
      CHECK(pauses > 0);
      for (int run = 0; run < 2; ++run) {
        std::ifstream curve(folder.path / ("run-" + std::to_string(seed + run) + ".jsonl"));
        int epoch = 0;
        for (std::string line; std::getline(curve, line);) CHECK(nlohmann::json::parse(line)["epoch"] == ++epoch);
        CHECK(epoch == whole.runs[run].epochs);
      }
      // What is done is not repeated, and the weights are a model.
      o.on_epoch = [](const Epoch&) { FAIL("trained again"); };
      const Report again = train(model, data, o);
      same_bits(again.runs[1], whole.runs[1]);
      const auto file = read_safetensors(checkpoint_path(o.checkpoints, seed));
      CHECK(predict(model, data.graph, data.features, file) == whole.runs[0].logits);
    }
}

TEST_CASE("a curve that lost lines is refused, and may be taken away") {
  Scratch folder;
  const Dataset data = karate();
  const Model model = gcn({.classes = 2});
  TrainOptions o{.epochs = 6, .seed = 3};
  o.checkpoints = {.folder = folder.path, .name = "run", .every = 2, .resume = true};
  const Report whole = train(model, data, {.epochs = 6, .seed = 3});
  const auto curve = folder.path / "run-3.jsonl";
  auto interrupt = [&] {
    fs::remove(curve), fs::remove(checkpoint_path(o.checkpoints, 3));
    std::atomic<bool> stop{false};
    o.interrupted = &stop;
    o.on_epoch = [&](const Epoch& e) { stop = e.epoch == 4; };
    CHECK_THROWS_AS(train(model, data, o), Interrupted);
    o.interrupted = nullptr, o.on_epoch = nullptr;
    return read_file(curve);
  };
  const std::string lines = interrupt();
  REQUIRE(std::count(lines.begin(), lines.end(), '\n') == 4);
  for (auto [bytes, left] : {std::pair{lines.size() - 1, 3}, {std::size_t{5}, 0}, {lines.find('\n') + 1, 1}}) {
    write_file(curve, lines.substr(0, bytes));
    const std::string said = message([&] { train(model, data, o); });
    CHECK(said.find("run-3.jsonl: ends after " + std::to_string(left) + " of 4 epochs; without the file") !=
          std::string::npos);
  }
  write_file(curve, lines);
  same_bits(train(model, data, o).runs[0], whole.runs[0]);
  CHECK(read_file(curve).starts_with(lines));
  interrupt();
  fs::remove(curve);
  same_bits(train(model, data, o).runs[0], whole.runs[0]);
  CHECK(read_file(curve).starts_with("{\"epoch\":5,"));
}

TEST_CASE("a checkpoint of something else is refused, and nothing is overwritten") {
  Scratch folder;
  const Dataset data = karate();
  TrainOptions o{.epochs = 6, .seed = 3};
  o.checkpoints = {.folder = folder.path, .name = "run", .every = 2};
  std::string options = "hidden = 8\nrate = 0.1\n";
  o.checkpoints.config = [&](std::uint64_t) { return options; };
  auto with = [&](const Model& model, const Dataset& d) { return message([&] { train(model, d, o); }); };
  const Model model = gat({.classes = 2});
  CHECK(with(model, data) == "");
  CHECK(with(model, data).find("is there already; --resume goes on with it") != std::string::npos);
  o.checkpoints.resume = true;
  CHECK(with(model, data) == "");
  CHECK(with(gat({.classes = 2, .hidden = 4}), data)
            .find("tensor 'layers.0.weight' is 34 x 64, the model wants 34 x 32") != std::string::npos);
  CHECK(with(gcn({.classes = 2, .hidden = 64}), data).find("has no parameter 'layers.0.att_") != std::string::npos);
  CHECK(with(gatv2({.classes = 2}), data).find("the tensor 'layers.0.source.weight' of the model is missing") !=
        std::string::npos);
  options = "hidden = 8\nrate = 0.2\n";
  CHECK(with(model, data).find("made with 'rate = 0.1', not with 'rate = 0.2'") != std::string::npos);
  options = "hidden = 8\nrate = 0.1\n";
  Dataset smaller = data;
  smaller.graph = graph_from_edges(34, std::vector<Edge>{{0, 1}});
  CHECK(with(model, smaller).find("made on other data: 34 nodes, 156 edges") != std::string::npos);
  Dataset relabelled = data;
  std::swap(relabelled.labels[0], relabelled.labels[33]);
  CHECK(with(model, relabelled).find("made on other data") != std::string::npos);
  {
    folder.write("friends.txt", "0 33\n33 0\n");
    o.checkpoints.name = "prior";
    const Model prior = gat({.classes = 2, .mask = "local | pairs(" + (folder.path / "friends.txt").string() + ")"});
    CHECK(with(prior, data) == "");
    CHECK(with(prior, data) == "");
    folder.write("friends.txt", "0 33\n33 1\n");
    const std::string refused = with(prior, data);
    CHECK(refused.find("made on other data") != std::string::npos);
    CHECK(refused.find("made on other data: friends.txt ") != std::string::npos);
    CHECK(refused.find("; these are friends.txt ") != std::string::npos);
    o.checkpoints.name = "run";
  }
  const auto path = checkpoint_path(o.checkpoints, 3);
  {
    const int other = open((folder.path / "run-3.jsonl").c_str(), O_RDWR);  // of a process at the same run
    REQUIRE(flock(other, LOCK_EX) == 0);
    CHECK(with(model, data).find("another training is writing this run") != std::string::npos);
    close(other);
  }
  Safetensors huge = read_safetensors(path);
  for (float& x : huge.weights[0].value) x = 3e38f;
  CHECK(message([&] { predict(model, data.graph, data.features, huge); }).find("with these weights logit") !=
        std::string::npos);
  const std::string bytes = read_file(path);
  write_file(path, bytes.substr(0, bytes.size() / 2));
  CHECK(with(model, data).find(path.string() + ": tensor '") == 0);
  write_file(path, to_safetensors({}, {}));
  CHECK(with(model, data).find("no checkpoint of a training") != std::string::npos);
  auto changed = parse_safetensors(bytes, "f");
  for (const char* state : {"", "3", "{}", R"({"seed":-1})"}) {
    changed.metadata["heed.state"] = state;
    write_file(path, to_safetensors(changed.weights, changed.metadata));
    CHECK(with(model, data).find("its state") != std::string::npos);
  }
}

TEST_CASE("killed at any moment: the checkpoint is whole, and the resumed training ends in the same bits") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  const char* given = std::getenv("HEED_KILLS");
  const int kills = given ? std::atoi(given) : 12;
  Scratch undisturbed, killed, careless;
  const Report whole = child_training(undisturbed.path, true);
  CHECK(kill_often(killed.path, true, kills, random) == 0);
  CHECK(run_child(killed.path, true) == 0);
  const Report resumed = child_training(killed.path, true);
  same_bits(resumed.runs[0], whole.runs[0]);
  CHECK(read_file(killed.path / "karate-5.jsonl") == read_file(undisturbed.path / "karate-5.jsonl"));
  // The same test catches a writer that is not atomic.
  int broken = 0;
  for (int round = 0; round < 20 && broken == 0; ++round) broken = kill_often(careless.path, false, 10, random);
  CHECK(broken > 0);
}

TEST_SUITE_END();

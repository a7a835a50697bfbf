// The program from outside: its JSON, its exit codes, and one clear line for every wrong input.
#include <doctest/doctest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

namespace {

namespace fs = std::filesystem;

struct Result {
  int code = -1;
  std::string out, err;
};

struct Folder {  // removed at the end
  fs::path path;
  Folder() {
    static int count = 0;
    path = fs::temp_directory_path() / ("heed-cli-" + std::to_string(getpid()) + "-" + std::to_string(count++));
    fs::create_directories(path);
  }
  ~Folder() { fs::remove_all(path); }
};

Result heed(const std::string& arguments) {
  static Folder folder;
  const std::string err = (folder.path / "err").string();
  setenv("HEED_OFFLINE", "1", 0);
  std::string command = std::string(HEED_BUILD "/heed ") + arguments + " 2>" + err;
  Result out;
  FILE* pipe = popen(command.c_str(), "r");
  REQUIRE(pipe != nullptr);
  std::array<char, 4096> buffer;
  while (std::size_t n = std::fread(buffer.data(), 1, buffer.size(), pipe)) out.out.append(buffer.data(), n);
  int status = pclose(pipe);
  out.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128;
  std::ifstream file(err);
  out.err.assign(std::istreambuf_iterator<char>(file), {});
  return out;
}

void refused(const std::string& arguments, const std::string& because) {
  CAPTURE(arguments);
  Result r = heed(arguments);
  CAPTURE(r.err);
  CHECK(r.code == 2);
  CHECK(r.out.empty());
  CHECK(std::count(r.err.begin(), r.err.end(), '\n') == 1);
  CHECK(r.err.find(because) != std::string::npos);
}

}  // namespace

TEST_SUITE_BEGIN("cli");

TEST_CASE("train prints one JSON object and nothing else") {
  Result r = heed("train karate --epochs 5 --runs 2 --seed 3 --threads 2 --json");
  CHECK(r.code == 0);
  auto j = nlohmann::json::parse(r.out);
  for (const char* key : {"dataset", "model", "metric", "runs", "seeds", "test_mean", "test_std", "valid_mean",
                          "epochs_mean", "epoch_ms", "seconds", "peak_rss_mb", "threads", "version"})
    CHECK_MESSAGE(j.contains(key), key);
  CHECK(j["dataset"] == "karate");
  CHECK(j["model"] == "gat");
  CHECK(j["seeds"] == nlohmann::json::array({3, 4}));
  CHECK(j["epochs_mean"] == 5);
  CHECK(j["threads"] == 2);
  CHECK(j["test_mean"] >= 0);
  CHECK(j["test_mean"] <= 100);
}

TEST_CASE("the same command gives the same result, on any number of threads") {
  auto of = [](const std::string& more) {
    return nlohmann::json::parse(heed("train sbm --epochs 8 --runs 2 --json " + more).out)["test"];
  };
  CHECK(of("--threads 1") == of("--threads 2"));
  CHECK(of("--threads 1") == of("--threads 7"));
  CHECK(of("--seed 1") != of("--seed 2"));
}

TEST_CASE("several models make one table; --out holds the JSON; progress stays off standard output") {
  Folder folder;
  const std::string file = (folder.path / "result.json").string();
  Result r = heed("train karate --model gat,mlp --epochs 3 --out " + file);
  CHECK(r.code == 0);
  CHECK(std::count(r.out.begin(), r.out.end(), '\n') == 4);
  CHECK(r.err.find("epoch") != std::string::npos);
  CHECK(nlohmann::json::parse(std::ifstream(file))["results"].size() == 2);
  CHECK(heed("train karate --epochs 3 --quiet").err.empty());
}

TEST_CASE("help, version and lists") {
  CHECK(heed("--help").code == 0);
  CHECK(heed("train --help").out.find("Examples:") != std::string::npos);
  CHECK(heed("--version").out.find("heed ") == 0);
  CHECK(heed("list").out.find("gatv2") != std::string::npos);
}

TEST_CASE("wrong words are named with the nearest right ones") {
  refused("tarin", "unknown command 'tarin'; did you mean train?");
  refused("train coar", "unknown dataset 'coar'; did you mean cora?");
  refused("train karate --model gta", "unknown model 'gta'; did you mean gat");
  refused("train karate --epoch 3", "'--epoch'; did you mean --epochs?");
  refused("train karate --stop los", "unknown stopping rule 'los'; did you mean loss?");
  refused("train karate --activation rellu", "did you mean relu");
  refused("train karate --norm bach", "did you mean batch?");
  refused("train karate --optimiser adm", "did you mean adam");
  refused("train karate surplus extra", "one word too many");
}

TEST_CASE("values out of range are refused") {
  refused("train karate --epochs 0", "--epochs: must be a whole number, 1 to 1000000000, not '0'");
  for (const char* value : {"many", "010", "0x10", "1e3", "1.5", "-1", "99999999999999999999", "''"})
    refused(std::string("train karate --epochs ") + value, "--epochs: must be a whole number");
  refused("train karate --seed -1", "--seed: must be a whole number, at least 0, not '-1'");
  refused("train karate --rate nan", "--rate: must be a number, not 'nan'");
  refused("train karate --out ''", "--out: must not be empty");
  refused("train karate --runs -1", "--runs: must be a whole number");
  refused("train karate --heads 0", "--heads: must be a whole number, 1 to 65536, not '0'");
  refused("train karate --heads 60000", "wider than 65536 channels");
  refused("train karate --model gcn --heads 8", "has no attention");
  refused("train karate --dropout 1", "--dropout must be at least 0 and below 1, not 1");
  refused("train karate --rate 0", "the learning rate must be above 0");
  refused("train karate --threads -1", "--threads");
  refused("train karate --split 9", "split 9");
}

TEST_CASE("outputs that cannot be written are refused before training") {
  refused("train karate --epochs 1 --quiet --out /nowhere/at/all.json", "cannot write /nowhere/at/all.json");
  refused("train karate --epochs 1 --quiet --out /", "cannot write /");
  refused("train karate --epochs 1 --quiet --json > /dev/full", "cannot write standard output");
}

TEST_CASE("an output keeps its mode and its links; pipes are written into; what is wrong is found before training") {
  Folder folder;
  const std::string base = folder.path.string();
  std::ofstream(base + "/kept.json") << "old";
  fs::permissions(base + "/kept.json", fs::perms::owner_read | fs::perms::owner_write);
  fs::create_symlink(base + "/kept.json", base + "/link.json");
  CHECK(heed("train karate --epochs 1 --quiet --out " + base + "/link.json").code == 0);
  CHECK(fs::is_symlink(base + "/link.json"));
  CHECK(fs::status(base + "/kept.json").permissions() == (fs::perms::owner_read | fs::perms::owner_write));
  CHECK(nlohmann::json::parse(std::ifstream(base + "/kept.json"))["model"] == "gat");
  REQUIRE(mkfifo((base + "/pipe").c_str(), 0600) == 0);
  std::string read = "cat " + base + "/pipe > " + base + "/read.json & ";
  REQUIRE(
      std::system((read + HEED_BUILD "/heed train karate --epochs 1 --quiet --out " + base + "/pipe > /dev/null; wait")
                      .c_str()) == 0);
  CHECK(fs::is_fifo(base + "/pipe"));
  CHECK(nlohmann::json::parse(std::ifstream(base + "/read.json"))["runs"] == 1);
  refused("train karate,nope --epochs 1", "unknown dataset 'nope'");
  refused("train karate --model gat,gcn --heads 3 --epochs 1", "has no attention");
}

TEST_CASE("nobody listening on standard error changes nothing") {
  auto code = [](const std::string& arguments) {
    int status = std::system((std::string(HEED_BUILD "/heed ") + arguments).c_str());
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
  };
  CHECK(code("train karate --epochs 2 > /dev/null 2>&-") == 0);
  CHECK(code("train karate --epochs 2 > /dev/null 2> /dev/full") == 0);
  CHECK(code("nonsense 2> /dev/full") == 2);
}

TEST_CASE("missing and broken files are named") {
  Folder folder;
  const fs::path cora = folder.path / "cora";
  refused("train cora --data " + folder.path.string() + " --quiet", "cora");
  fs::create_directories(cora);
  for (const char* part : {"x", "y", "tx", "ty", "allx", "ally", "graph"}) {
    std::ofstream file(cora / (std::string("ind.cora.") + part), std::ios::binary);
    file << "\x80\x02";  // a pickle that ends at once
  }
  std::ofstream(cora / "ind.cora.test.index") << "1708\n";
  refused("train cora --data " + folder.path.string() + " --quiet", "ind.cora.");
  std::ofstream(cora / "ind.cora.x", std::ios::binary) << "\x80\x02"
                                                          "cos\nsystem\n(S'true'\ntR.";
  refused("train cora --data " + folder.path.string() + " --quiet", "os");
}

TEST_CASE("a public dataset is downloaded where that is not forbidden") {
  Folder folder;
  unsetenv("HEED_DATA");
  setenv("XDG_CACHE_HOME", folder.path.c_str(), 1);
  setenv("HEED_MIRROR", "file:///nowhere", 1);  // no server: refused at once
  refused("train cora --quiet", "dataset 'cora' is missing");
  setenv("HEED_OFFLINE", "0", 1);
  refused("train cora --quiet", "cannot download file:///nowhere/cora/ind.cora.x: ");
  refused("train cora --offline --quiet", "dataset 'cora' is missing");
  for (const char* name : {"HEED_OFFLINE", "HEED_MIRROR", "XDG_CACHE_HOME"}) unsetenv(name);
}

TEST_SUITE_END();
